//! From admitted usage to acknowledged usage: who sends it, in which batches, and
//! what becomes of it when the answer is late, lost or no.

mod accounts;
mod flush;
mod lease;
mod probe;
mod suspects;
mod sweep;
mod urgent;

pub use accounts::Accounts;
pub use flush::{Flusher, MOST_LOOKS, Report, Settings, Settled, Terms, push, tick, wants_flush};
pub use lease::{Candidate, Lead, lead};
pub use sweep::Sweep;
pub use urgent::{Due, TICK_MILLISECONDS, Urgent, UrgentCalls};
