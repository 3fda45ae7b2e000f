//! Keys and referrers that service management accepted for an application, where the
//! record and its list of keys cannot tell: every referrer, and the keys of an application
//! that has more than can be listed.
//!
//! Apart from the strangers, so that nobody who is refused pushes out one who is accepted; and
//! with several places for each, so that two who are in use do not push out each other.
//! Nothing is lost when one goes: the next request asks again.

use crate::credentials::Digest;
use crate::moment::Moment;
use crate::shared_data::{ATTEMPTS, Key, SetError, SharedData};

const KIND: u8 = b'p';
const MAGIC: &[u8; 4] = b"TGp1";
/// Entries of one value.
const WAYS: usize = 8;

/// How far an acceptance may be relied on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acceptance {
    /// Decide on it.
    Fresh {
        /// Until then (monotonic milliseconds).
        until: u64,
    },
    /// Ask, and if nobody answers decide on it.
    Stale,
}

/// The table. A value is magic and up to eight entries: digest (16), fresh until, stale
/// until (monotonic milliseconds, 8 each, little-endian).
pub struct Accepted {
    places: u32,
    value: Vec<u8>,
}

#[derive(Clone, Copy)]
struct Entry {
    digest: Digest,
    fresh_until: u64,
    stale_until: u64,
}

impl Accepted {
    /// A table for about so many, at least eight.
    #[must_use]
    pub fn new(capacity: u32) -> Self {
        Self {
            places: capacity.div_ceil(8).max(1),
            value: Vec::new(),
        }
    }

    fn key(&self, digest: Digest) -> Key {
        let [.., a, b, c, d] = digest.0;
        let place = u32::from_le_bytes([a, b, c, d])
            .checked_rem(self.places)
            .unwrap_or(0);
        Key::new(KIND, 0, place)
    }

    /// Whether this was accepted, as far as that is remembered.
    pub fn find(
        &mut self,
        data: &impl SharedData,
        digest: Digest,
        now: Moment,
    ) -> Option<Acceptance> {
        data.get(self.key(digest).as_bytes(), &mut self.value)
            .ok()?;
        let entry = parse(&self.value)
            .into_iter()
            .flatten()
            .find(|entry| entry.digest == digest)?;
        if now.monotonic < entry.fresh_until {
            Some(Acceptance::Fresh {
                until: entry.fresh_until,
            })
        } else if now.monotonic < entry.stale_until {
            Some(Acceptance::Stale)
        } else {
            None
        }
    }

    /// Remembers that this was accepted, for so many milliseconds and then, should nobody
    /// answer, for so many more.
    pub fn remember(
        &mut self,
        data: &impl SharedData,
        digest: Digest,
        now: Moment,
        ttl: u64,
        stale_if_error: u64,
    ) {
        let fresh_until = now.monotonic.saturating_add(ttl);
        let entry = Entry {
            digest,
            fresh_until,
            stale_until: fresh_until.saturating_add(stale_if_error),
        };
        self.change(data, digest, Some(entry));
    }

    /// Forgets it: it is refused now.
    pub fn forget(&mut self, data: &impl SharedData, digest: Digest) {
        self.change(data, digest, None);
    }

    /// Puts an entry in the place of the one with that digest, if there is one, and of the one
    /// that goes stale first, if there are too many.
    fn change(&mut self, data: &impl SharedData, digest: Digest, new: Option<Entry>) {
        let key = self.key(digest);
        for _ in 0..ATTEMPTS {
            let Ok(token) = data.get(key.as_bytes(), &mut self.value) else {
                return;
            };
            let mut entries: Vec<_> = parse(&self.value).into_iter().flatten().collect();
            let before = entries.len();
            entries.retain(|entry| entry.digest != digest);
            if new.is_none() && entries.len() == before {
                return;
            }
            entries.sort_unstable_by_key(|entry| std::cmp::Reverse(entry.stale_until));
            entries.truncate(WAYS.saturating_sub(usize::from(new.is_some())));
            entries.extend(new);
            self.value.clear();
            self.value.extend_from_slice(MAGIC);
            for entry in &entries {
                self.value.extend_from_slice(&entry.digest.0);
                for word in [entry.fresh_until, entry.stale_until] {
                    self.value.extend_from_slice(&word.to_le_bytes());
                }
            }
            // If it is not kept, the next request asks again.
            match data.set(key.as_bytes(), &self.value, token) {
                Err(SetError::Mismatch) => {}
                Ok(()) | Err(SetError::Unavailable) => return,
            }
        }
    }
}

/// The entries of a value, if it is one of ours.
fn parse(value: &[u8]) -> Option<impl Iterator<Item = Entry>> {
    let (entries, rest) = value.strip_prefix(MAGIC)?.as_chunks::<32>();
    if entries.len() > WAYS || !rest.is_empty() {
        return None;
    }
    Some(entries.iter().filter_map(|bytes| {
        let (digest, times) = bytes.split_first_chunk::<16>()?;
        let (fresh_until, stale_until) = times.split_first_chunk::<8>()?;
        Some(Entry {
            digest: Digest(*digest),
            fresh_until: u64::from_le_bytes(*fresh_until),
            stale_until: u64::from_le_bytes(stale_until.try_into().ok()?),
        })
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::moment::testing::at;
    use crate::shared_data::Token;
    use crate::shared_data::memory::Memory;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    fn digest(number: u8) -> Digest {
        Digest([number; 16])
    }

    #[test]
    fn what_was_accepted_is_fresh_then_stale_then_forgotten() {
        let data = Memory::default();
        let mut accepted = Accepted::new(8);
        accepted.remember(&data, digest(1), at(0), 10, 5);
        let mut find = |number, now| accepted.find(&data, digest(number), at(now));
        assert_eq!(find(1, 9), Some(Acceptance::Fresh { until: 10 }));
        assert_eq!(find(1, 10), Some(Acceptance::Stale));
        assert_eq!(find(1, 15), None);
        assert_eq!(find(2, 0), None);
    }

    #[test]
    fn eight_in_one_place_do_not_push_out_each_other_and_a_ninth_the_oldest() {
        let data = Memory::default();
        let mut accepted = Accepted::new(8);
        for number in 1..=9 {
            accepted.remember(&data, digest(number), at(u64::from(number)), 10, 0);
            accepted.remember(&data, digest(number), at(u64::from(number)), 10, 0);
        }
        assert_eq!(accepted.find(&data, digest(1), at(0)), None);
        for number in 2..=9 {
            assert!(
                accepted.find(&data, digest(number), at(0)).is_some(),
                "{number}"
            );
        }
        assert_eq!(data.keys(), 1);
    }

    #[test]
    fn what_is_refused_now_is_forgotten_and_nothing_else() {
        let data = Memory::default();
        let mut accepted = Accepted::new(8);
        accepted.remember(&data, digest(1), at(0), 10, 0);
        accepted.remember(&data, digest(2), at(0), 10, 0);
        accepted.forget(&data, digest(1));
        assert_eq!(accepted.find(&data, digest(1), at(0)), None);
        assert!(accepted.find(&data, digest(2), at(0)).is_some());
    }

    #[test]
    fn a_foreign_value_accepts_nobody() {
        let data = Memory::default();
        let mut accepted = Accepted::new(8);
        let key = Key::new(KIND, 0, 0);
        let mut value = [MAGIC.as_slice(), &[1; 16], &[0xff; 16]].concat();
        data.set(key.as_bytes(), &value, Token::OVERWRITE).unwrap();
        assert!(accepted.find(&data, digest(1), at(0)).is_some(), "as ours");
        value[0] = b'x';
        data.set(key.as_bytes(), &value, Token::OVERWRITE).unwrap();
        assert_eq!(accepted.find(&data, digest(1), at(0)), None);
        accepted.remember(&data, digest(1), at(0), 10, 0);
        assert!(accepted.find(&data, digest(1), at(0)).is_some());
    }
}
