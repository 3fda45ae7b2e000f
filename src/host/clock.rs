//! The one place where clocks are read, once per callback.

use super::abi;
use crate::moment::Moment;

const NANOSECONDS_IN_MILLISECOND: u64 = 1_000_000;

/// Now, on both clocks. A clock that the host refuses reads 0: windows then stay as
/// they are and lifetimes do not end, so nobody is let in who was not before.
pub fn now() -> Moment {
    Moment {
        wall: abi::wall_nanoseconds().unwrap_or(0) / NANOSECONDS_IN_MILLISECOND,
        monotonic: abi::monotonic_nanoseconds().unwrap_or(0) / NANOSECONDS_IN_MILLISECOND,
    }
}
