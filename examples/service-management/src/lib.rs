//! A local stand-in for the 3scale Service Management API, for development and tests.
mod authorize;
mod backend;
mod calendar;
mod clock;
mod counters;
mod dataset;
mod error;
mod form;
mod message;
mod parameters;
mod report;
mod status;
mod usage;

pub use backend::{Backend, Endpoint, Errors, IntegrationError};
pub use calendar::Period;
pub use clock::Clock;
pub use counters::Usage;
pub use dataset::{ApplicationChange, Dataset, DatasetError};
pub use message::{Request, Response};
