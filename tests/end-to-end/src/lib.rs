//! What the end-to-end tests start from: a whole gateway, and load that goes on while
//! something happens to it. The tests stand in a crate of their own because they need
//! servers that the filter's crate must not depend on.

mod gateway;
mod key_manager;
mod load;
mod provider;
mod recorder;
mod token_service;

pub use gateway::{Gateway, PATIENCE, SERVICE, Setup, merge, wall_milliseconds};
pub use key_manager::{KeyManager, Said};
pub use load::{Load, Sample, percentile};
pub use provider::Provider;
pub use recorder::{Recorder, Seen};
pub use token_service::{
    INSUFFICIENT_SCOPE, INVALID_TOKEN, TokenService, challenge, get, get_at, order,
};

/// Whether tests are to run at their full size, which takes minutes: `TOLLGATE_FULL_SIZE=1`.
#[must_use]
pub fn full_size() -> bool {
    std::env::var_os("TOLLGATE_FULL_SIZE").is_some_and(|value| value == "1")
}
