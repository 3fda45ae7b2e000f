//! Not asking a service management that keeps failing: a circuit breaker that all workers
//! share.
//!
//! Apart from the budget because it is about the backend's health, not about who asks. Only
//! unknown applications depend on it: refreshes have a pause of their own, and what they
//! learn of the backend counts here too.

use super::refresh::backoff;
use crate::moment::Moment;
use crate::shared_data::{ATTEMPTS, Key, SetError, SharedData, Token};

const KIND: u8 = b'c';
const MAGIC: &[u8; 4] = b"TGc1";
/// So many failures in a row, and nobody is asked for a while.
const MOST_FAILURES: u32 = 5;
/// The first pause, doubled after each probe that fails up to the longest; the upper half
/// of each is random, so that many gateways do not come back at once.
const FIRST_PAUSE: u64 = 1_000;
const LONGEST_PAUSE: u64 = 10_000;
/// No probe has longer: a question may be configured to take a minute.
const LONGEST_PROBE: u64 = 61_000;

/// Whether service management is to be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passage {
    /// Ask.
    Closed,
    /// Ask, but one at a time: nobody knows whether it has recovered.
    HalfOpen,
    /// Do not ask.
    Open,
}

/// What a question's outcome changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Nobody is asked from now on.
    Opened,
    /// Everybody may ask again.
    Closed,
}

/// The breaker of one backend, by a number that stands for its cluster and authority.
///
/// A value is magic, failures in a row (u32), the end of the pause and the end of the time
/// that a probe has (monotonic milliseconds); little-endian. Absent means no failure.
#[derive(Clone, Copy, Debug)]
pub struct Breaker {
    backend: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    failures: u32,
    open_until: u64,
    probe_until: u64,
}

impl Breaker {
    /// The breaker of that backend.
    #[must_use]
    pub const fn new(backend: u64) -> Self {
        Self { backend }
    }

    /// Whether a question may be asked; it must still [`Breaker::pass`].
    #[must_use]
    pub fn passage(&self, data: &impl SharedData, now: Moment) -> Passage {
        self.read(data, now)
            .map_or(Passage::Closed, |(state, _)| state.passage(now))
    }

    /// For how many milliseconds nobody will be asked; 0 if somebody is now, or if whoever
    /// asks may come back any moment.
    #[must_use]
    pub fn pause(&self, data: &impl SharedData, now: Moment) -> u64 {
        self.read(data, now).map_or(0, |(state, _)| {
            state.open_until.saturating_sub(now.monotonic)
        })
    }

    /// Asks, if it may: with the breaker half open only one at a time does, for as long as a
    /// question takes (milliseconds).
    #[must_use]
    pub fn pass(&self, data: &impl SharedData, now: Moment, milliseconds: u64) -> bool {
        let Some((mut state, token)) = self.read(data, now) else {
            return true;
        };
        match state.passage(now) {
            Passage::Closed => true,
            Passage::Open => false,
            Passage::HalfOpen => {
                state.probe_until = now
                    .monotonic
                    .saturating_add(milliseconds.min(LONGEST_PROBE));
                // Whoever was faster probes.
                self.write(data, state, token).is_ok()
            }
        }
    }

    /// Service management has answered, whatever the answer says.
    pub fn answered(&self, data: &impl SharedData, now: Moment) -> Option<Turn> {
        self.change(data, now, |state| {
            let was_open = state.failures >= MOST_FAILURES;
            let changed = state.failures > 0;
            *state = State::default();
            (changed, was_open.then_some(Turn::Closed))
        })
    }

    /// Service management has not answered, or not as it should. `jitter` is any random
    /// number.
    pub fn failed(&self, data: &impl SharedData, now: Moment, jitter: u64) -> Option<Turn> {
        self.change(data, now, |state| {
            if now.monotonic < state.open_until {
                // One of several that failed together: they are one failure.
                return (false, None);
            }
            state.failures = state.failures.saturating_add(1);
            state.probe_until = 0;
            let Some(probes) = state.failures.checked_sub(MOST_FAILURES) else {
                return (true, None);
            };
            let pause = backoff(probes, FIRST_PAUSE, LONGEST_PAUSE, jitter);
            state.open_until = now.monotonic.saturating_add(pause);
            (true, (probes == 0).then_some(Turn::Opened))
        })
    }

    /// A question was answered in a way that says nothing of service management itself: if it was
    /// the probe, the next question may be.
    pub fn unjudged(&self, data: &impl SharedData, now: Moment) {
        self.change(data, now, |state| {
            let probed = now.monotonic < state.probe_until;
            state.probe_until = 0;
            (probed, None)
        });
    }

    fn change(
        &self,
        data: &impl SharedData,
        now: Moment,
        change: impl Fn(&mut State) -> (bool, Option<Turn>),
    ) -> Option<Turn> {
        for _ in 0..ATTEMPTS {
            let (mut state, token) = self.read(data, now)?;
            let (changed, turn) = change(&mut state);
            if !changed {
                return turn;
            }
            match self.write(data, state, token) {
                Ok(()) => return turn,
                Err(SetError::Mismatch) => {}
                Err(SetError::Unavailable) => return None,
            }
        }
        None
    }

    /// The state; what is none of ours is one without failures. `None`: no shared data.
    fn read(&self, data: &impl SharedData, now: Moment) -> Option<(State, Token)> {
        let mut value = Vec::new();
        let token = data.get(self.key().as_bytes(), &mut value).ok()?;
        Some((parse(&value, now).unwrap_or_default(), token))
    }

    fn write(&self, data: &impl SharedData, state: State, token: Token) -> Result<(), SetError> {
        let mut value = MAGIC.to_vec();
        value.extend_from_slice(&state.failures.to_le_bytes());
        value.extend_from_slice(&state.open_until.to_le_bytes());
        value.extend_from_slice(&state.probe_until.to_le_bytes());
        data.set(self.key().as_bytes(), &value, token)
    }

    const fn key(&self) -> Key {
        Key::new(KIND, self.backend, 0)
    }
}

impl State {
    const fn passage(&self, now: Moment) -> Passage {
        if self.failures < MOST_FAILURES {
            Passage::Closed
        } else if now.monotonic < self.open_until || now.monotonic < self.probe_until {
            Passage::Open
        } else {
            Passage::HalfOpen
        }
    }
}

fn parse(value: &[u8], now: Moment) -> Option<State> {
    let (failures, rest) = value.strip_prefix(MAGIC)?.split_first_chunk::<4>()?;
    let (open_until, rest) = rest.split_first_chunk::<8>()?;
    let state = State {
        failures: u32::from_le_bytes(*failures),
        open_until: u64::from_le_bytes(*open_until),
        probe_until: u64::from_le_bytes(rest.try_into().ok()?),
    };
    // Nobody pauses or probes longer. A clock may be read a little later elsewhere.
    let longest = |milliseconds: u64| {
        now.monotonic
            .saturating_add(milliseconds)
            .saturating_add(10_000)
    };
    let possible =
        state.open_until <= longest(LONGEST_PAUSE) && state.probe_until <= longest(LONGEST_PROBE);
    possible.then_some(state)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::moment::testing::at;
    use crate::shared_data::memory::Memory;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    const BREAKER: Breaker = Breaker::new(7);

    /// Fails until the breaker opens, all at once.
    fn opened() -> Memory {
        let data = Memory::default();
        for _ in 0..4 {
            assert_eq!(BREAKER.failed(&data, at(0), 0), None);
        }
        assert!(BREAKER.pass(&data, at(0), 100));
        assert_eq!(BREAKER.failed(&data, at(0), 0), Some(Turn::Opened));
        data
    }

    #[test]
    fn some_failures_in_a_row_open_it_and_an_answer_between_them_does_not() {
        let data = Memory::default();
        for round in 0..20 {
            let turn = BREAKER.failed(&data, at(round), 0);
            assert_eq!(turn, None);
            if round % 4 == 3 {
                assert_eq!(BREAKER.answered(&data, at(round)), None);
            }
        }
        assert_eq!(BREAKER.passage(&data, at(20)), Passage::Closed);
        assert_eq!(BREAKER.passage(&opened(), at(0)), Passage::Open);
        assert_eq!(
            Breaker::new(8).passage(&opened(), at(0)),
            Passage::Closed,
            "another backend"
        );
    }

    #[test]
    fn a_probe_that_tells_nothing_lets_the_next_question_be_one() {
        let data = opened();
        let later = at(LONGEST_PAUSE);
        assert!(BREAKER.pass(&data, later, 2_000));
        assert!(!BREAKER.pass(&data, later, 2_000));
        BREAKER.unjudged(&data, later);
        assert!(BREAKER.pass(&data, later, 2_000), "as half open as before");
        assert!(!BREAKER.pass(&data, later, 2_000));
        // Nothing of it lets anybody through while it is open or makes it close.
        let data = opened();
        BREAKER.unjudged(&data, at(0));
        assert_eq!(BREAKER.passage(&data, at(0)), Passage::Open);
    }

    #[test]
    fn when_the_pause_is_over_one_probes_and_an_answer_closes_it() {
        let data = opened();
        assert!(!BREAKER.pass(&data, at(499), 100));
        assert_eq!(BREAKER.pause(&data, at(1)), 499);
        assert_eq!(BREAKER.pause(&data, at(500)), 0);
        assert_eq!(BREAKER.passage(&data, at(500)), Passage::HalfOpen);
        assert!(BREAKER.pass(&data, at(500), 100));
        assert!(!BREAKER.pass(&data, at(599), 100));
        assert!(BREAKER.pass(&data, at(600), 100), "the probe was lost");
        assert_eq!(BREAKER.answered(&data, at(650)), Some(Turn::Closed));
        assert_eq!(BREAKER.answered(&data, at(651)), None);
        for _ in 0..10 {
            assert!(BREAKER.pass(&data, at(652), 100));
        }
    }

    #[test]
    fn of_several_who_would_probe_one_does() {
        let data = opened();
        data.lose_next(1);
        assert!(!BREAKER.pass(&data, at(500), 100));
    }

    #[test]
    fn each_probe_that_fails_doubles_the_pause_and_what_fails_beside_it_does_not() {
        let data = opened();
        let mut now = 500;
        for pause in [1_000, 2_000, 4_000, 5_000, 5_000, 5_000] {
            assert!(BREAKER.pass(&data, at(now), 100));
            for _ in 0..5 {
                assert_eq!(BREAKER.failed(&data, at(now), 0), None);
            }
            assert_eq!(BREAKER.passage(&data, at(now + pause - 1)), Passage::Open);
            now += pause;
            assert_eq!(BREAKER.passage(&data, at(now)), Passage::HalfOpen);
        }
    }

    #[test]
    fn what_is_no_breaker_of_ours_is_a_closed_one() {
        let data = opened();
        for value in [
            &b"TGc1"[..],
            b"",
            &[0xff; 24],
            b"TGc1\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\0\0\0\0\0\0\0\0",
        ] {
            data.set(BREAKER.key().as_bytes(), value, Token::OVERWRITE)
                .unwrap();
            assert_eq!(BREAKER.passage(&data, at(0)), Passage::Closed, "{value:?}");
        }
    }
}
