//! What an application may do: its record in shared data, the table of slots that
//! holds the records, limits and their windows, and the decision itself.

mod period;

pub use period::{Period, Window};
