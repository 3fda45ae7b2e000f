//! What an application may do: its record in shared data, the table of slots that
//! holds the records, limits and their windows, and the decision itself.
//!
//! A request touches one record: read it, decide, count, write it back if nobody
//! came in between. Everything else here is for the day when that is not enough: an
//! application seen for the first time, an answer that changes the plan, a batch that
//! leaves, a slot that must be given to somebody else.

mod accuracy;
mod applications;
mod codec;
mod debug;
mod limit;
mod marks;
mod names;
mod period;
mod record;
mod refresh;
mod strangers;
mod table;
#[cfg(test)]
mod testing;

pub use accuracy::{Accuracy, Grant, LONGEST_SETTLING, SHORTEST_SETTLING};
pub use applications::{Applications, Identity, Learned, Lifetimes, Verdict, application};
pub use limit::Limit;
pub use marks::{Mark, Marks};
pub use period::{Period, Window};
pub use record::{Dispatched, Freshness, Ledger, Look, Outcome, Record, Refusal, State};
pub use refresh::{Question, Refresher, backoff};
pub use strangers::Strangers;
pub use table::{Change, Slot, Table, TableError};
