//! Many gateways and one late backend, in virtual time: how far a shared limit is overrun,
//! how many requests are refused early, and what that costs in calls.
//!
//! The gateways run the filter's own core (records, limits, flush, refresh, urgency) as the
//! host does, each over shared data of its own. The backend is nothing but its counters and
//! a queue that is applied late. Nothing here takes real time, so that 64 gateways and ten
//! minutes are a matter of seconds.

mod backend;
mod gateway;
mod random;
mod world;

pub use random::Random;
pub use tollgate::authorization::Period;
pub use world::{Figures, Load, Mode, Setup, run};
