//! How many questions a gateway asks: token buckets that all workers share, one for unknown
//! credentials and one for the refreshes of known ones.
//!
//! Apart from the flights because it is about how much is asked, not about what: keys that
//! nobody knows can be made up faster than any backend answers, and so many applications can be in
//! use that asking about all of them in time would be too much for it. The buckets are apart, so that
//! neither strangers nor customers use up what is there for the others. Those that were known, and
//! are asked about anew because they were away or service management was, go before strangers: or a
//! flood of made-up keys would keep customers out.

use super::table::TableError;
use crate::moment::Moment;
use crate::shared_data::{ATTEMPTS, Key, SetError, SharedData};

const KIND: u8 = b'b';
const MAGIC: &[u8; 4] = b"TGb1";
/// What a bucket holds when nothing was asked for long: the questions of so many seconds,
/// so that a gateway that has just started learns its applications quickly.
pub const BURST_SECONDS: u64 = 10;
/// What the bucket holds beyond that, for those who were known before: the questions of so many
/// seconds. Once a flood has taken the rest, they also come first for what comes in.
const RETURNING_SECONDS: u64 = 2;
/// What the bucket of the refreshes holds, in microseconds: those of a tick, which may come a
/// little late.
const BURST_OF_REFRESHES: u64 = 1_250_000;
const SECOND: u64 = 1_000_000;

/// Who is asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    /// Nobody knows whether there is such an application.
    Stranger,
    /// An application that service management let in when it was asked last.
    Returning,
    /// An application that is known.
    Known,
    /// The same, by a question that follows from the answer to one: it is asked in any case, and
    /// the next ones wait for it, but for none of longer than a second.
    KnownAgain,
}

impl Caller {
    /// How much the bucket holds for it at most, in microseconds of what it gains.
    const fn holds(self) -> u64 {
        match self {
            Self::Stranger => BURST_SECONDS * SECOND,
            Self::Returning => (BURST_SECONDS + RETURNING_SECONDS) * SECOND,
            Self::Known => BURST_OF_REFRESHES,
            Self::KnownAgain => BURST_OF_REFRESHES + SECOND,
        }
    }

    /// Which bucket is for it.
    const fn key(self) -> Key {
        match self {
            Self::Stranger | Self::Returning => Key::new(KIND, 0, 0),
            Self::Known | Self::KnownAgain => Key::new(KIND, 0, 1),
        }
    }
}

/// A bucket of this process, which gains so many questions a second.
///
/// It is kept as the time at which it would be full again if nothing more was taken
/// (microseconds of the monotonic clock), so that one number says all and nobody has to fill
/// it. A value is magic and that time.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    per_second: u32,
}

impl Budget {
    /// A bucket that gains `per_second` questions a second, at least one. Each of the two has its
    /// own rate, and its own callers.
    #[must_use]
    pub const fn new(per_second: u32) -> Self {
        Self { per_second }
    }

    /// Whether there is something to take. It may be gone when it is taken.
    #[must_use]
    pub fn has_some(&self, data: &impl SharedData, now: Moment, caller: Caller) -> bool {
        let mut value = Vec::new();
        data.get(caller.key().as_bytes(), &mut value)
            .is_ok_and(|_| self.after(&value, now, caller).is_some())
    }

    /// Takes one question; false if there is none.
    ///
    /// # Errors
    /// `Unavailable`: shared data is contended beyond reason or not available, and nothing
    /// was taken.
    pub fn take(
        &self,
        data: &impl SharedData,
        now: Moment,
        caller: Caller,
    ) -> Result<bool, TableError> {
        let mut value = Vec::new();
        for _ in 0..ATTEMPTS {
            let token = data
                .get(caller.key().as_bytes(), &mut value)
                .map_err(|_| TableError::Unavailable)?;
            let Some(after) = self.after(&value, now, caller) else {
                return Ok(false);
            };
            value.clear();
            value.extend_from_slice(MAGIC);
            value.extend_from_slice(&after.to_le_bytes());
            match data.set(caller.key().as_bytes(), &value, token) {
                Ok(()) => return Ok(true),
                Err(SetError::Mismatch) => {}
                Err(SetError::Unavailable) => break,
            }
        }
        Err(TableError::Unavailable)
    }

    /// When the bucket would be full once one more is taken; `None` if it is empty to this caller.
    fn after(&self, value: &[u8], now: Moment, caller: Caller) -> Option<u64> {
        let now = now.monotonic.saturating_mul(1_000);
        let one = SECOND
            .checked_div(u64::from(self.per_second))
            .unwrap_or(SECOND)
            .max(1);
        let empty = now.saturating_add(caller.holds());
        let full = value
            .strip_prefix(MAGIC)
            .and_then(|bytes| bytes.try_into().ok())
            .map_or(0, u64::from_le_bytes);
        // Nobody takes more than there is. A clock may be read a little later elsewhere.
        let most = now.saturating_add((BURST_SECONDS + RETURNING_SECONDS + 2) * SECOND);
        let full = if full > most { 0 } else { full };
        let after = full.max(now).saturating_add(one);
        (after <= empty).then_some(after)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::moment::testing::at;
    use crate::shared_data::Token;
    use crate::shared_data::memory::Memory;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    fn taken(data: &Memory, budget: Budget, now: u64) -> u32 {
        taken_by(Caller::Stranger, data, budget, now)
    }

    fn taken_by(caller: Caller, data: &Memory, budget: Budget, now: u64) -> u32 {
        let now = at(now);
        let mut taken = 0;
        while budget.has_some(data, now, caller) && budget.take(data, now, caller).unwrap() {
            taken += 1;
        }
        assert_eq!(budget.take(data, now, caller), Ok(false));
        taken
    }

    #[test]
    fn strangers_who_take_all_leave_something_to_those_who_were_known() {
        let data = Memory::default();
        let budget = Budget::new(10);
        let returning = |now| taken_by(Caller::Returning, &data, budget, now);
        assert_eq!(taken(&data, budget, 1_000_000), 100);
        assert_eq!(returning(1_000_000), 20);
        // They come first for what comes in, too, until they have had theirs.
        assert_eq!(taken(&data, budget, 1_001_000), 0);
        assert_eq!(returning(1_001_000), 10);
        assert_eq!(taken(&data, budget, 1_003_000), 0);
        assert_eq!(taken(&data, budget, 1_004_000), 10);
        assert_eq!(returning(2_000_000), 120);
    }

    #[test]
    fn ten_seconds_worth_can_be_taken_at_once_and_then_as_much_as_comes_in() {
        for per_second in [1, 7, 100, 1_000] {
            let data = Memory::default();
            let budget = Budget::new(per_second);
            assert_eq!(taken(&data, budget, 1_000_000), per_second * 10);
            assert_eq!(taken(&data, budget, 1_003_000), per_second * 3);
            let mut sum = 0;
            for now in (1_003_000..=1_063_000).step_by(10) {
                sum += taken(&data, budget, now);
            }
            assert!(
                sum <= per_second * 60 && sum + 1 >= per_second * 60,
                "{sum}"
            );
            assert_eq!(taken(&data, budget, 9_000_000), per_second * 10);
        }
    }

    #[test]
    fn refreshes_have_a_bucket_of_their_own_that_saves_up_little() {
        for per_second in [1, 7, 100, 1_000] {
            let data = Memory::default();
            let budget = Budget::new(per_second);
            taken(&data, budget, 1_000_000);
            let refreshes = |now| taken_by(Caller::Known, &data, budget, now);
            let burst = refreshes(1_000_000);
            assert!(
                (per_second..=per_second * 5 / 4).contains(&burst),
                "{burst}"
            );
            let sum: u32 = (1..=60)
                .map(|second| refreshes(1_000_000 + second * 1_000))
                .sum();
            assert!(
                sum <= per_second * 60 && sum + 1 >= per_second * 60,
                "{sum}"
            );
        }
    }

    #[test]
    fn what_is_asked_in_any_case_is_waited_for_by_others_for_a_second_at_most() {
        let data = Memory::default();
        let budget = Budget::new(10);
        let refreshes = |now| taken_by(Caller::Known, &data, budget, now);
        refreshes(5_000);
        taken_by(Caller::KnownAgain, &data, budget, 5_000);
        assert_eq!(refreshes(6_000), 0);
        assert_eq!(refreshes(6_100), 1);
    }

    #[test]
    fn a_lost_race_takes_one_and_losing_all_takes_none() {
        let data = Memory::default();
        data.lose_next(3);
        assert_eq!(
            Budget::new(1).take(&data, at(0), Caller::Stranger),
            Ok(true)
        );
        data.lose_next(u32::MAX);
        assert!(Budget::new(1).take(&data, at(0), Caller::Stranger).is_err());
        data.lose_next(0);
        assert_eq!(taken(&data, Budget::new(1), 0), 9);
    }

    #[test]
    fn what_is_no_bucket_of_ours_is_a_full_one() {
        for value in [
            &b""[..],
            b"TGb1",
            &[0xff; 12],
            b"TGb1\xff\xff\xff\xff\xff\xff\xff\xff",
        ] {
            let data = Memory::default();
            let key = Caller::Stranger.key();
            data.set(key.as_bytes(), value, Token::OVERWRITE).unwrap();
            assert_eq!(taken(&data, Budget::new(3), 5_000), 30, "{value:?}");
        }
    }
}
