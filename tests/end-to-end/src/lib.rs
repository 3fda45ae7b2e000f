//! What the end-to-end tests start from: a whole gateway, and load that goes on while
//! something happens to it. The tests stand in a crate of their own because they need
//! servers that the filter's crate must not depend on.

mod gateway;
mod load;
mod provider;
mod recorder;

pub use gateway::{Gateway, PATIENCE, SERVICE, Setup, wall_milliseconds};
pub use load::{Load, Sample, percentile};
pub use provider::Provider;
pub use recorder::{Recorder, Seen};
