//! What the filter does, told as scenarios: requests, ticks, answers and accidents on
//! the fake host, and what became of them.
//!
//! One test binary, because linking the filter is what takes long; a module for each
//! subject. Nothing here looks into the filter: scenarios see what Envoy, service
//! management and an operator see, and read the records from shared data.

mod accidents;
mod asking;
mod budget;
mod credentials;
mod ended;
mod exact;
mod flights;
mod floods;
mod flush;
mod introspection;
mod isolation;
mod keys;
mod limits;
mod metrics;
mod outage;
mod quotas;
mod refresh;
mod refused;
mod replies;
mod shared_limits;
mod sharing;
mod sums;
mod support;
mod table;
mod ticks;
mod tokens;
mod unread;
mod worded;
