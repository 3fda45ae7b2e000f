//! What Tollgate promises, shown with the real module in a real Envoy against the
//! stand-in. One binary, because every one takes its time to link.

mod accounting;
mod configuration;
mod faults;
mod flood;
mod hostile;
mod limits;
mod many;
mod metrics;
mod observability;
mod outage;
mod reload;
mod replies;
mod services;
mod single_flight;
mod traps;
mod waiting;
mod windows;
mod worst_day;
