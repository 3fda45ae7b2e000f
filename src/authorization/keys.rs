//! The keys of applications that are known by an `app_id`: the cold value beside each
//! record, and what this VM keeps of it.
//!
//! Apart from the record because keys are many and change rarely, while a record is read and
//! written with every request. The two hold together by a number: the record has the hash of
//! the cold value that belongs to it. A cold value with another hash is nobody's, whoever wrote
//! it and whenever: then nothing is known of the keys, and service management is asked.
//!
//! A cold value holds digests of the keys, never the keys, but for one: a key that service
//! management accepted last. It does not say what an application may do, nor whether it is
//! suspended, to somebody who shows none, so without it no answer could be kept young.
//! It stands where the `user_key`s of other services stand, too, in this process's memory.
//!
//! Little-endian: magic and layout version `TGa1`, digest of the application (16), 1 if the
//! list is complete (1), number of keys (2), their digests (16 each), the accepted key to the end.

use super::table::Slot;
use crate::credentials::{Digest, MAXIMUM_BYTES, Part};
use crate::service_management::Authorization;
use crate::shared_data::{Key, SharedData, Token};
use siphasher::sip128::SipHasher13;
use std::collections::HashMap;
use std::fmt;
use std::hash::Hasher as _;

const KIND: u8 = b'a';
const MAGIC: &[u8; 4] = b"TGa1";
/// Keys of an application that are remembered; service management lists no more.
const MOST_KEYS: usize = 256;
/// Digests of keys that a VM keeps, over all applications: 2 MiB. With more, all are
/// forgotten and read again, at one host call each.
const MOST_CACHED: usize = 131_072;

/// What a record says of its application's keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keys {
    /// Nothing was heard of them: the application was let in unheard, or has no `app_id`.
    Unheard,
    /// It has none, and any key is as good as no key.
    None,
    /// They are in the cold value that has this hash, above 1.
    Listed(u64),
}

impl Keys {
    /// The number that stands for it in a record.
    #[must_use]
    pub const fn code(self) -> u64 {
        match self {
            Self::Unheard => 0,
            Self::None => 1,
            Self::Listed(hash) => hash,
        }
    }

    /// What that number stands for.
    #[must_use]
    pub const fn from_code(code: u64) -> Self {
        match code {
            0 => Self::Unheard,
            1 => Self::None,
            hash => Self::Listed(hash),
        }
    }
}

/// When a key is checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeyRule {
    /// If the application has keys, and then one must be shown.
    #[default]
    IfAny,
    /// If one is shown, and then the application must have it: services in OAuth mode.
    IfShown,
}

/// How a key stands to a list of keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is one of the application's.
    Listed,
    /// It is none of them, as of the last answer.
    Unlisted,
    /// The list is not complete, and it is not on it.
    Unknown,
}

/// The keys of one application. `Debug` shows no key.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyList {
    digests: Vec<Digest>,
    complete: bool,
    accepted: Option<String>,
}

impl fmt::Debug for KeyList {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("KeyList")
            .field("keys", &self.digests.len())
            .field("complete", &self.complete)
            .finish_non_exhaustive()
    }
}

impl KeyList {
    /// The keys that an answer lists, to a question in which `shown` was accepted. `None` if
    /// the application surely has none.
    ///
    /// A key that was accepted is on the list, whatever the answer lists: the backend reads the
    /// two at different moments.
    #[must_use]
    pub fn new(
        application: Digest,
        answer: &Authorization,
        rule: KeyRule,
        shown: Option<&str>,
    ) -> Option<Self> {
        let listed = answer.app_keys.as_deref();
        let nothing_listed = listed.is_some_and(<[String]>::is_empty);
        if nothing_listed && (rule == KeyRule::IfAny || shown.is_none()) {
            return None;
        }
        let digest = |key: &str| application.with(Part::AppKey, Some(key));
        let mut digests: Vec<_> = listed
            .unwrap_or_default()
            .iter()
            .map(|key| digest(key))
            .chain(shown.map(digest))
            .take(MOST_KEYS)
            .collect();
        // In one order, so that the same keys have the same hash.
        digests.sort_unstable();
        digests.dedup();
        Some(Self {
            digests,
            complete: listed.is_some(),
            // Where nobody needs a key, it is no use, and could go bad.
            accepted: match rule {
                KeyRule::IfAny => shown.map(str::to_owned),
                KeyRule::IfShown => None,
            },
        })
    }

    /// How a key stands to the list. Every digest is compared, and all of it, so that the
    /// time tells nothing of how near a guess was.
    #[must_use]
    pub fn standing(&self, key: Digest) -> Standing {
        let key = u128::from_le_bytes(key.0);
        let found = self.digests.iter().fold(0_u8, |found, listed| {
            let different = std::hint::black_box(key ^ u128::from_le_bytes(listed.0));
            found | u8::from(different == 0)
        });
        if found != 0 {
            Standing::Listed
        } else if self.complete {
            Standing::Unlisted
        } else {
            Standing::Unknown
        }
    }

    /// Whether it surely holds all keys.
    #[must_use]
    pub const fn is_complete(&self) -> bool {
        self.complete
    }

    /// A key that service management accepted.
    #[must_use]
    pub fn accepted(&self) -> Option<&str> {
        self.accepted.as_deref()
    }

    fn encode(&self, application: Digest) -> Vec<u8> {
        let mut value = MAGIC.to_vec();
        value.extend_from_slice(&application.0);
        value.push(u8::from(self.complete));
        let count = u16::try_from(self.digests.len()).unwrap_or(0);
        value.extend_from_slice(&count.to_le_bytes());
        for digest in self.digests.iter().take(usize::from(count)) {
            value.extend_from_slice(&digest.0);
        }
        value.extend_from_slice(self.accepted.as_deref().unwrap_or_default().as_bytes());
        value
    }

    /// Reads a cold value that anybody may have written. `None` if it is not this
    /// application's, or not of this layout.
    fn decode(value: &[u8], application: Digest) -> Option<Self> {
        let rest = value.strip_prefix(MAGIC)?.strip_prefix(&application.0)?;
        let (complete, rest) = rest.split_first()?;
        let (count, rest) = rest.split_first_chunk::<2>()?;
        let count = usize::from(u16::from_le_bytes(*count));
        let (digests, accepted) = rest.split_at_checked(count.checked_mul(16)?)?;
        if *complete > 1 || count > MOST_KEYS || accepted.len() > MAXIMUM_BYTES {
            return None;
        }
        let (digests, []) = digests.as_chunks::<16>() else {
            return None;
        };
        let accepted = std::str::from_utf8(accepted).ok()?;
        Some(Self {
            digests: digests.iter().map(|digest| Digest(*digest)).collect(),
            complete: *complete == 1,
            accepted: (!accepted.is_empty()).then(|| accepted.to_owned()),
        })
    }
}

/// The hash by which a record names its cold value. Not keyed: it is not against forgery,
/// for whoever can write one can write the other.
fn hash(value: &[u8]) -> u64 {
    let mut hasher = SipHasher13::new();
    hasher.write(value);
    // 0 and 1 are taken, and of 2^64 nobody misses two.
    hasher.finish().max(2)
}

/// The cold values, as one VM sees them.
#[derive(Default)]
pub struct ColdValues {
    cached: HashMap<Digest, (u64, KeyList)>,
    digests: usize,
    value: Vec<u8>,
}

impl ColdValues {
    /// The hash that a record must have for this list to be its own.
    #[must_use]
    pub fn hash_of(application: Digest, list: &KeyList) -> u64 {
        hash(&list.encode(application))
    }

    /// The list with this hash, if this VM has it. No host call.
    #[must_use]
    pub fn cached(&self, application: Digest, wanted: u64) -> Option<&KeyList> {
        self.cached
            .get(&application)
            .filter(|(hash, _)| *hash == wanted)
            .map(|(_, list)| list)
    }

    /// The list with this hash. `None` if it is nowhere: ask.
    pub fn find(
        &mut self,
        data: &impl SharedData,
        slot: Slot,
        application: Digest,
        wanted: u64,
    ) -> Option<&KeyList> {
        if self.cached(application, wanted).is_none() {
            let key = Key::new(KIND, 0, slot.0);
            data.get(key.as_bytes(), &mut self.value).ok()?;
            if hash(&self.value) != wanted {
                return None;
            }
            let list = KeyList::decode(&self.value, application)?;
            self.cache(application, wanted, list);
        }
        self.cached(application, wanted)
    }

    /// Puts the list beside the record in that slot, unless it is there.
    pub fn put(
        &mut self,
        data: &impl SharedData,
        slot: Slot,
        application: Digest,
        list: &KeyList,
    ) -> u64 {
        let value = list.encode(application);
        let wanted = hash(&value);
        let key = Key::new(KIND, 0, slot.0);
        let there = data.get(key.as_bytes(), &mut self.value).is_ok() && self.value == value;
        if !there {
            // If it is not kept, the next request asks again.
            let _ = data.set(key.as_bytes(), &value, Token::OVERWRITE);
        }
        self.cache(application, wanted, list.clone());
        wanted
    }

    /// Keeps a list for the record of an application that has no slot.
    pub fn keep(&mut self, application: Digest, list: KeyList) {
        let hash = Self::hash_of(application, &list);
        self.cache(application, hash, list);
    }

    fn cache(&mut self, application: Digest, hash: u64, list: KeyList) {
        if let Some((_, old)) = self.cached.remove(&application) {
            self.digests = self.digests.saturating_sub(weight(&old));
        }
        self.digests = self.digests.saturating_add(weight(&list));
        if self.digests > MOST_CACHED {
            self.cached.clear();
            self.digests = weight(&list);
        }
        self.cached.insert(application, (hash, list));
    }
}

/// What a list takes of the cache: its digests, and about five of them for the rest.
fn weight(list: &KeyList) -> usize {
    list.digests.len().saturating_add(5)
}

#[cfg(test)]
mod tests {
    use super::super::testing::known;
    use super::*;
    use crate::shared_data::memory::Memory;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    const APPLICATION: Digest = Digest([7; 16]);

    fn key(text: &str) -> Digest {
        APPLICATION.with(Part::AppKey, Some(text))
    }

    fn list(keys: Option<&[&str]>, rule: KeyRule, shown: Option<&str>) -> Option<KeyList> {
        let mut answer = known(Vec::new());
        answer.app_keys = keys.map(|keys| keys.iter().map(|key| (*key).to_owned()).collect());
        KeyList::new(APPLICATION, &answer, rule, shown)
    }

    fn two() -> KeyList {
        list(Some(&["k1", "k2"]), KeyRule::IfAny, Some("k1")).unwrap()
    }

    #[test]
    fn an_application_without_keys_has_no_list() {
        assert_eq!(list(Some(&[]), KeyRule::IfAny, None), None);
        assert_eq!(list(Some(&[]), KeyRule::IfAny, Some("any")), None);
        assert_eq!(list(Some(&[]), KeyRule::IfShown, None), None);
    }

    #[test]
    fn a_complete_list_knows_every_key_and_another_only_its_own() {
        let standing = |list: &KeyList| ["k1", "k2", "k3"].map(|text| list.standing(key(text)));
        assert_eq!(
            standing(&two()),
            [Standing::Listed, Standing::Listed, Standing::Unlisted]
        );
        let incomplete = list(None, KeyRule::IfAny, Some("k1")).unwrap();
        assert_eq!(
            standing(&incomplete),
            [Standing::Listed, Standing::Unknown, Standing::Unknown]
        );
    }

    #[test]
    fn a_key_that_was_accepted_is_on_the_list() {
        let list = list(Some(&["k2"]), KeyRule::IfAny, Some("k1")).unwrap();
        assert_eq!(list.standing(key("k1")), Standing::Listed);
        assert_eq!(list.accepted(), Some("k1"));
    }

    #[test]
    fn the_same_keys_have_the_same_hash_in_any_order() {
        let turned = list(Some(&["k2", "k1"]), KeyRule::IfAny, Some("k1")).unwrap();
        let hash = |list: &KeyList| ColdValues::hash_of(APPLICATION, list);
        assert_eq!(hash(&turned), hash(&two()));
        let other = list(Some(&["k1", "k2"]), KeyRule::IfAny, Some("k2")).unwrap();
        assert_ne!(hash(&other), hash(&two()));
    }

    #[test]
    fn another_vm_finds_the_list_and_only_by_its_hash() {
        let data = Memory::default();
        let wanted = ColdValues::default().put(&data, Slot(3), APPLICATION, &two());
        let mut other = ColdValues::default();
        let mut find =
            |slot, application, hash| other.find(&data, slot, application, hash).cloned();
        assert_eq!(find(Slot(3), APPLICATION, wanted), Some(two()));
        assert_eq!(find(Slot(3), APPLICATION, wanted ^ 4), None);
        assert_eq!(find(Slot(3), Digest([8; 16]), wanted), None);
        let mut third = ColdValues::default();
        assert_eq!(third.find(&data, Slot(4), APPLICATION, wanted), None);
    }

    #[test]
    fn neither_the_shared_value_nor_debug_shows_a_key_but_the_accepted_one() {
        let list = list(Some(&["canary", "k1"]), KeyRule::IfAny, Some("k1")).unwrap();
        let value = list.encode(APPLICATION);
        let holds = |text: &[u8]| value.windows(text.len()).any(|bytes| bytes == text);
        assert!(!holds(b"canary") && holds(b"k1"));
        assert!(!format!("{list:?}").contains("k1"));
    }

    #[test]
    fn a_vm_keeps_a_bounded_number_of_keys() {
        let data = Memory::default();
        let mut cold = ColdValues::default();
        let digests = vec![key("k"); 250];
        for number in 0..2_000_u32 {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&number.to_le_bytes());
            let list = KeyList {
                digests: digests.clone(),
                complete: true,
                accepted: None,
            };
            cold.put(&data, Slot(number), Digest(bytes), &list);
            assert!(cold.digests <= MOST_CACHED);
            let sum: usize = cold.cached.values().map(|(_, list)| weight(list)).sum();
            assert_eq!(sum, cold.digests);
        }
    }
}

#[cfg(all(test, not(target_family = "wasm")))]
mod properties {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_are_a_list_or_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = KeyList::decode(&bytes, Digest([7; 16]));
        }

        #[test]
        fn a_list_reads_as_it_was_written(
            keys in proptest::collection::vec(any::<[u8; 16]>(), 0..300),
            complete: bool,
            accepted in proptest::option::of("[^\\p{Cc}]{1,60}"),
        ) {
            let list = KeyList {
                digests: keys.into_iter().take(MOST_KEYS).map(Digest).collect(),
                complete,
                accepted,
            };
            let application = Digest([9; 16]);
            prop_assert_eq!(KeyList::decode(&list.encode(application), application), Some(list));
        }
    }
}
