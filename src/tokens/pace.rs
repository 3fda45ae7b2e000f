//! How many signatures a worker verifies in a second: a token bucket of its own. One that takes
//! longer counts for several.
//!
//! Apart from the gateway's budget of questions because what it saves is this worker's time, which
//! no other worker can give back.

/// A bucket that holds one second's worth. Kept as the time at which it would be full again.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    per_second: u32,
    /// Monotonic microseconds.
    full: u64,
}

const SECOND: u64 = 1_000_000;

impl Pace {
    /// A full bucket that gains so many in a second, at least one.
    #[must_use]
    pub const fn new(per_second: u32) -> Self {
        Self {
            per_second,
            full: 0,
        }
    }

    /// Takes so many, or none: false. `now` is in monotonic milliseconds.
    pub fn take(&mut self, count: usize, now: u64) -> bool {
        let now = now.saturating_mul(1_000);
        let one = SECOND
            .checked_div(u64::from(self.per_second))
            .unwrap_or(SECOND)
            .max(1);
        let many = one.saturating_mul(u64::try_from(count).unwrap_or(u64::MAX));
        let after = self.full.max(now).saturating_add(many);
        // Whoever needs more than it ever holds gets it when the bucket is full.
        let most = now.saturating_add(SECOND.max(many));
        if after > most {
            return false;
        }
        self.full = after;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    #[test]
    fn a_second_has_what_it_may_have_and_a_pause_gives_no_more() {
        let mut pace = Pace::new(10);
        let mut taken = |now| (0..100).filter(|_| pace.take(1, now)).count();
        assert_eq!(taken(5_000), 10);
        assert_eq!(taken(5_100), 1);
        assert_eq!(taken(5_600), 5);
        assert_eq!(taken(60_000), 10);
    }

    #[test]
    fn more_than_a_seconds_worth_is_given_to_one_who_needs_it_at_once() {
        let mut pace = Pace::new(1);
        assert!(pace.take(4, 1_000));
        assert!(!pace.take(1, 4_000));
        assert!(pace.take(1, 5_000));
    }
}
