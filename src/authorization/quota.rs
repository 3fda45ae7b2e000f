//! What is left of one limit, as a caller is told.
//!
//! Apart from the limit because this is a summary: how others' usage and ours make it up
//! is nobody's business outside.

use super::limit::Limit;
use crate::moment::Moment;

/// What is left of a limit in its open window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// Units that the plan allows in a window.
    pub maximum: u64,
    /// Units that are left; 0 if more was used than is allowed.
    pub remaining: u64,
    /// First second (Unix) of the next window; `u64::MAX`: there is none.
    pub until: u64,
}

impl Quota {
    pub(super) const fn of(limit: &Limit) -> Self {
        Self {
            maximum: limit.maximum,
            remaining: limit
                .maximum
                .saturating_sub(limit.own.saturating_add(limit.foreign)),
            until: limit.window.end,
        }
    }

    /// Seconds until the window ends, rounded up and at least 1; `None` if it does not.
    #[must_use]
    pub const fn reset(&self, now: Moment) -> Option<u64> {
        seconds_to(self.until, now)
    }
}

/// Seconds from now to a Unix second, rounded up and at least 1: 0 would mean now. `None`:
/// it never comes (`u64::MAX`).
#[must_use]
pub const fn seconds_to(until: u64, now: Moment) -> Option<u64> {
    if until == u64::MAX {
        return None;
    }
    let milliseconds = until.saturating_mul(1_000).saturating_sub(now.wall);
    let seconds = milliseconds.div_ceil(1_000);
    Some(if seconds == 0 { 1 } else { seconds })
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    #[test]
    fn the_time_to_the_end_of_a_window_is_rounded_up() {
        let now = Moment {
            wall: 59_001,
            monotonic: 0,
        };
        assert_eq!(seconds_to(60, now), Some(1));
        assert_eq!(seconds_to(61, now), Some(2));
        assert_eq!(seconds_to(59, now), Some(1), "never 0: that would mean now");
        assert_eq!(seconds_to(u64::MAX, now), None, "eternity does not end");
    }
}
