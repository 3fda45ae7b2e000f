//! The fetched keys of an issuer in shared data, and whose turn it is to fetch them.
//!
//! Apart from the calls because this is what all workers agree on: one of them fetches, at most
//! once in a while, and all have the keys. Everything here may be lost at the price of one fetch.

use super::discovery::Discovery;
use super::jwks::{KeySet, LONGEST_SET};
use crate::moment::Moment;
use crate::shared_data::{ATTEMPTS, Key, SetError, SharedData, Token};

const KIND: u8 = b'j';
/// The number of the value that says how things stand.
const STATE: u32 = 0;
/// The number of the value that has the keys.
const KEYS: u32 = 1;
const STATE_MAGIC: &[u8; 4] = b"TGj1";
const KEYS_MAGIC: &[u8; 4] = b"TGJ1";
/// The pause after the first fetch that failed, in milliseconds; it doubles with each further one.
const FIRST_PAUSE: u64 = 1_000;
/// The longest pause after a failure, in milliseconds.
const LONGEST_PAUSE: u64 = 30_000;
/// How much longer than its calls may take a fetch is waited for, in milliseconds.
const SLACK: u64 = 1_000;

/// The keys of one source.
#[derive(Clone, Copy, Debug)]
pub struct Keyring {
    number: u64,
    refresh: u64,
    interval: u64,
    kept: u64,
    longest: u64,
}

/// Why keys are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// A token names one that is not there, or there are none at all.
    Unknown,
    /// They have become old.
    Refresh,
}

/// Whose turn it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// The caller's: it must [finish](Keyring::finish) what it began.
    Fetch,
    /// Another's, who should have finished by then (monotonic milliseconds).
    UnderWay(u64),
    /// Nobody's before then.
    Later(u64),
}

/// Keys as they stand in shared data.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// Which fetch they are of.
    pub edition: u64,
    /// The keys.
    pub keys: KeySet,
}

/// How things stand, all times in monotonic milliseconds. Bytes: magic, then each field (u64,
/// little endian) in this order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Until when a fetch is under way; 0 if there is none.
    until: u64,
    /// When the last one began.
    began: u64,
    /// When keys were last fetched; 0: never.
    pub fetched: u64,
    /// How many have failed since.
    pub failures: u64,
    /// The last that brought keys; 0: none did.
    pub edition: u64,
}

impl Keyring {
    /// The keys of this issuer from this source.
    #[must_use]
    pub fn new(issuer: &str, discovery: &Discovery) -> Self {
        let milliseconds =
            |duration: std::time::Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        // Two calls: document and keys.
        let calls = milliseconds(discovery.timeout).saturating_mul(2);
        Self {
            number: discovery.number(issuer),
            refresh: milliseconds(discovery.refresh),
            interval: milliseconds(discovery.interval),
            kept: milliseconds(discovery.kept),
            longest: calls.saturating_add(SLACK),
        }
    }

    /// What stands for it: the same in all VMs.
    #[must_use]
    pub const fn number(&self) -> u64 {
        self.number
    }

    /// How long a fetch may be under way, in milliseconds.
    #[must_use]
    pub const fn longest(&self) -> u64 {
        self.longest
    }

    /// Whether keys that were fetched then are still good.
    #[must_use]
    pub const fn are_good(&self, standing: &Standing, now: Moment) -> bool {
        standing.edition != 0 && now.monotonic < standing.fetched.saturating_add(self.kept)
    }

    /// How things stand.
    #[must_use]
    pub fn standing(&self, data: &impl SharedData) -> Standing {
        let mut value = Vec::new();
        match data.get(self.key(STATE).as_bytes(), &mut value) {
            Ok(_) => Standing::decode(&value),
            Err(_) => Standing::default(),
        }
    }

    /// Whose turn it is to fetch. [`Turn::Fetch`] is told to one at a time.
    ///
    /// # Errors
    /// Shared data is not available.
    pub fn turn(
        &self,
        data: &impl SharedData,
        wanted: Wanted,
        now: Moment,
    ) -> Result<Turn, SetError> {
        let mut value = Vec::new();
        for _ in 0..ATTEMPTS {
            let token = data.get(self.key(STATE).as_bytes(), &mut value)?;
            let mut standing = Standing::decode(&value);
            // Whoever fetches sets no end that is further away.
            if standing.until > now.monotonic.saturating_add(self.longest) {
                standing.until = 0;
            }
            if now.monotonic < standing.until {
                return Ok(Turn::UnderWay(standing.until));
            }
            let due = self.due(&standing, wanted);
            if now.monotonic < due {
                return Ok(Turn::Later(due));
            }
            standing.until = now.monotonic.saturating_add(self.longest);
            standing.began = now.monotonic;
            match self.set(data, &standing, token) {
                Ok(()) => return Ok(Turn::Fetch),
                Err(SetError::Mismatch) => {}
                Err(error) => return Err(error),
            }
        }
        Err(SetError::Unavailable)
    }

    fn due(&self, standing: &Standing, wanted: Wanted) -> u64 {
        if standing.began == 0 {
            return 0;
        }
        if standing.failures > 0 {
            let doublings = u32::try_from(standing.failures.saturating_sub(1)).unwrap_or(u32::MAX);
            let pause = FIRST_PAUSE
                .checked_shl(doublings.min(16))
                .unwrap_or(LONGEST_PAUSE)
                .min(LONGEST_PAUSE);
            return standing.began.saturating_add(pause);
        }
        match wanted {
            Wanted::Unknown => standing.began.saturating_add(self.interval),
            Wanted::Refresh => standing.fetched.saturating_add(self.refresh),
        }
    }

    /// A fetch has ended, with these bytes of a set or in vain. What is remembered of keys stays
    /// if it was in vain.
    ///
    /// # Errors
    /// Shared data is not available.
    pub fn finish(
        &self,
        data: &impl SharedData,
        brought: Option<&[u8]>,
        edition: u64,
        now: Moment,
    ) -> Result<(), SetError> {
        if let Some(bytes) = brought {
            let mut value = KEYS_MAGIC.to_vec();
            value.extend_from_slice(&edition.to_le_bytes());
            value.extend_from_slice(bytes);
            data.set(self.key(KEYS).as_bytes(), &value, Token::OVERWRITE)?;
        }
        let mut value = Vec::new();
        for _ in 0..ATTEMPTS {
            let token = data.get(self.key(STATE).as_bytes(), &mut value)?;
            let before = Standing::decode(&value);
            let after = match brought {
                Some(_) => Standing {
                    until: 0,
                    fetched: now.monotonic,
                    failures: 0,
                    edition,
                    ..before
                },
                None => Standing {
                    until: 0,
                    failures: before.failures.saturating_add(1),
                    ..before
                },
            };
            match self.set(data, &after, token) {
                Err(SetError::Mismatch) => {}
                other => return other,
            }
        }
        Err(SetError::Unavailable)
    }

    /// The keys that were last fetched, if they are there.
    #[must_use]
    pub fn load(&self, data: &impl SharedData) -> Option<Loaded> {
        let mut value = Vec::new();
        data.get(self.key(KEYS).as_bytes(), &mut value).ok()?;
        let rest = value.strip_prefix(KEYS_MAGIC)?;
        let (edition, bytes) = rest.split_first_chunk::<8>()?;
        if bytes.len() > LONGEST_SET {
            return None;
        }
        Some(Loaded {
            edition: u64::from_le_bytes(*edition),
            keys: KeySet::parse(bytes).ok()?,
        })
    }

    fn set(
        &self,
        data: &impl SharedData,
        standing: &Standing,
        token: Token,
    ) -> Result<(), SetError> {
        data.set(self.key(STATE).as_bytes(), &standing.encode(), token)
    }

    const fn key(&self, number: u32) -> Key {
        Key::new(KIND, self.number, number)
    }
}

impl Standing {
    fn encode(&self) -> Vec<u8> {
        let mut value = STATE_MAGIC.to_vec();
        for field in [
            self.until,
            self.began,
            self.fetched,
            self.failures,
            self.edition,
        ] {
            value.extend_from_slice(&field.to_le_bytes());
        }
        value
    }

    /// What the bytes say; as if nothing had happened yet, if they are not ours.
    fn decode(value: &[u8]) -> Self {
        let Some(rest) = value.strip_prefix(STATE_MAGIC) else {
            return Self::default();
        };
        let mut fields = rest
            .chunks_exact(8)
            .map(|bytes| bytes.try_into().map_or(0, u64::from_le_bytes));
        let mut field = || fields.next().unwrap_or(0);
        Self {
            until: field(),
            began: field(),
            fetched: field(),
            failures: field(),
            edition: field(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::discovery::{Start, Url};
    use super::super::testing;
    use super::*;
    use crate::moment::testing::at;
    use crate::shared_data::memory::Memory;
    use std::time::Duration;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    fn keyring() -> Keyring {
        let discovery = Discovery {
            cluster: "id".to_owned(),
            start: Start::Document(Url::of_document("https://id").unwrap()),
            timeout: Duration::from_secs(2),
            refresh: Duration::from_secs(600),
            interval: Duration::from_secs(5),
            kept: Duration::from_secs(3_600),
        };
        Keyring::new("https://id", &discovery)
    }

    /// The same, with keys that came at 10.
    fn fetched(data: &Memory) -> Keyring {
        let keyring = keyring();
        keyring.turn(data, Wanted::Refresh, at(1)).unwrap();
        keyring
            .finish(data, Some(testing::JWKS.as_bytes()), 1, at(10))
            .unwrap();
        keyring
    }

    #[test]
    fn one_fetches_and_all_have_the_keys() {
        let data = Memory::default();
        let keyring = keyring();
        assert!(keyring.load(&data).is_none());
        assert_eq!(
            keyring.turn(&data, Wanted::Unknown, at(100)),
            Ok(Turn::Fetch)
        );
        assert_eq!(
            keyring.turn(&data, Wanted::Refresh, at(200)),
            Ok(Turn::UnderWay(5_100))
        );
        keyring
            .finish(&data, Some(testing::JWKS.as_bytes()), 7, at(300))
            .unwrap();
        let loaded = keyring.load(&data).unwrap();
        assert_eq!((loaded.edition, loaded.keys.len()), (7, 1));
        let standing = keyring.standing(&data);
        assert_eq!(
            (standing.edition, standing.fetched, standing.failures),
            (7, 300, 0)
        );
        assert!(keyring.are_good(&standing, at(3_600_299)));
        assert!(!keyring.are_good(&standing, at(3_600_300)));
    }

    #[test]
    fn unknown_keys_lead_to_one_fetch_in_an_interval() {
        let data = Memory::default();
        let keyring = keyring();
        let mut fetches = 0;
        for now in (1_000..61_000).step_by(10) {
            if keyring.turn(&data, Wanted::Unknown, at(now)) == Ok(Turn::Fetch) {
                fetches += 1;
                keyring
                    .finish(&data, Some(testing::JWKS.as_bytes()), now, at(now + 5))
                    .unwrap();
            }
        }
        assert_eq!(fetches, 12);
    }

    #[test]
    fn keys_are_refreshed_when_they_are_old_and_not_before() {
        let data = Memory::default();
        let keyring = fetched(&data);
        assert_eq!(
            keyring.turn(&data, Wanted::Refresh, at(600_009)),
            Ok(Turn::Later(600_010))
        );
        assert_eq!(
            keyring.turn(&data, Wanted::Refresh, at(600_010)),
            Ok(Turn::Fetch)
        );
    }

    #[test]
    fn a_failure_keeps_the_keys_and_is_tried_again_ever_later() {
        let data = Memory::default();
        let keyring = fetched(&data);
        let mut now = 600_010;
        for pause in [1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000] {
            assert_eq!(
                keyring.turn(&data, Wanted::Refresh, at(now)),
                Ok(Turn::Fetch)
            );
            keyring.finish(&data, None, 2, at(now + 3)).unwrap();
            assert_eq!(
                keyring.turn(&data, Wanted::Unknown, at(now + 4)),
                Ok(Turn::Later(now + pause))
            );
            now += pause;
        }
        assert_eq!(keyring.load(&data).unwrap().edition, 1);
        assert!(keyring.are_good(&keyring.standing(&data), at(now)));
    }

    #[test]
    fn a_fetch_that_nobody_finishes_is_taken_over() {
        let data = Memory::default();
        let keyring = keyring();
        assert_eq!(
            keyring.turn(&data, Wanted::Unknown, at(1_000)),
            Ok(Turn::Fetch)
        );
        assert_eq!(
            keyring.turn(&data, Wanted::Unknown, at(5_999)),
            Ok(Turn::UnderWay(6_000))
        );
        assert_eq!(
            keyring.turn(&data, Wanted::Unknown, at(6_000)),
            Ok(Turn::Fetch)
        );
    }

    #[test]
    fn damaged_values_cost_a_fetch_and_nothing_else() {
        let keyring = keyring();
        for bytes in [
            &b""[..],
            b"TGj1",
            b"TGJ1",
            &[0xff; 44],
            b"TGj1\xff\xff\xff\xff\xff\xff\xff\xff",
        ] {
            let data = Memory::default();
            for number in [STATE, KEYS] {
                data.set(keyring.key(number).as_bytes(), bytes, Token::OVERWRITE)
                    .unwrap();
            }
            assert!(keyring.load(&data).is_none());
            assert_eq!(
                keyring.turn(&data, Wanted::Unknown, at(1_000)),
                Ok(Turn::Fetch),
                "{bytes:?}"
            );
        }
        let data = Memory::default();
        data.lose_next(u32::MAX);
        assert!(keyring.turn(&data, Wanted::Unknown, at(1)).is_err());
    }
}
