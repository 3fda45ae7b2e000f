//! What an application may do: its record in shared data, the table of slots that
//! holds the records, limits and their windows, and the decision itself.
//!
//! A request touches one record: read it, decide, count, write it back if nobody
//! came in between. Everything else here is for the day when that is not enough: an
//! application seen for the first time, an answer that changes the plan, a batch that
//! leaves, a slot that must be given to somebody else.

mod accepted;
mod accuracy;
mod applications;
mod breaker;
mod budget;
mod codec;
mod debug;
mod flights;
mod in_place;
mod keys;
mod limit;
pub mod mailboxes;
mod marks;
mod names;
mod pauses;
mod period;
mod quota;
mod recent;
mod record;
mod refresh;
mod shown;
mod strangers;
mod table;
#[cfg(test)]
pub mod testing;
mod units;
mod withheld;

pub use accuracy::{Accuracy, Grant, LONGEST_SETTLING, SHORTEST_SETTLING};
pub use applications::{Applications, Identity, Learned, Lifetimes, Verdict, application};
pub use breaker::{Breaker, Passage, Turn};
pub use budget::{BURST_SECONDS, Budget, Caller};
pub use flights::{Flights, Joined, Landing, Message};
pub use keys::{KeyList, KeyRule, Keys};
pub use limit::Limit;
pub use mailboxes::Mailbox;
pub use marks::{Mark, Marks};
pub use pauses::PAUSE_MILLISECONDS;
pub use period::{Period, Window};
pub use quota::{Quota, seconds_to};
pub use record::{Dispatched, Freshness, Ledger, Look, Outcome, Record, Refusal, State};
pub use refresh::{Ahead, Next, Question, Refresher, Wanted, backoff};
pub use shown::{Asked, Referrer, Shown};
pub use strangers::Strangers;
pub use table::{Change, Slot, Table, TableError};
pub use units::Units;
