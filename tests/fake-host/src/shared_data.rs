//! Shared data: the one key-value store of an Envoy process, with its
//! compare-and-set rules, and those rules as claims that can be put to any store.
//! Apart because everything the filter promises about limits stands on it.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::Status;

/// The store of one process. One mutex, one counter, no expiry, no delete.
///
/// Source: `SharedData` of proxy-wasm-cpp-host. The counter starts at 1, moves with
/// every successful set of any key, and skips 0 when it wraps.
pub(crate) struct SharedData(Mutex<Store>);

struct Store {
    values: BTreeMap<Vec<u8>, (Vec<u8>, u32)>,
    next_cas: u32,
    compare_and_sets: CompareAndSets,
    reads: u64,
}

/// How often values were set with a CAS, and how often that was not the value's any more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub struct CompareAndSets {
    pub attempts: u64,
    pub mismatches: u64,
}

impl SharedData {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(Store {
            values: BTreeMap::new(),
            next_cas: 1,
            compare_and_sets: CompareAndSets::default(),
            reads: 0,
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Store> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn keys(&self) -> Vec<Vec<u8>> {
        self.lock().values.keys().cloned().collect()
    }

    pub(crate) fn compare_and_sets(&self) -> CompareAndSets {
        self.lock().compare_and_sets
    }

    pub(crate) fn reads(&self) -> u64 {
        self.lock().reads
    }

    /// Lets the counter continue from `next`, to come near its wrap.
    pub(crate) fn set_next_cas(&self, next: u32) {
        self.lock().next_cas = next;
    }

    /// Changes values where they lie: neither their CAS nor the counter moves.
    pub(crate) fn tamper(&self, mut with: impl FnMut(&[u8], &mut Vec<u8>)) {
        for (key, (value, _)) in &mut self.lock().values {
            with(key, value);
        }
    }
}

/// Access to a store of shared data, whoever keeps it.
pub trait SharedDataAccess {
    /// The value of `key` and its CAS, if the key exists.
    fn get(&self, key: &[u8]) -> Option<(Vec<u8>, u32)>;
    /// Writes `key`; `cas` 0 writes whatever is there.
    fn set(&self, key: &[u8], value: &[u8], cas: u32) -> Status;
}

impl SharedDataAccess for SharedData {
    fn get(&self, key: &[u8]) -> Option<(Vec<u8>, u32)> {
        let mut store = self.lock();
        store.reads += 1;
        store.values.get(key).cloned()
    }

    fn set(&self, key: &[u8], value: &[u8], cas: u32) -> Status {
        let mut store = self.lock();
        store.compare_and_sets.attempts += u64::from(cas != 0);
        if let Some((_, present)) = store.values.get(key)
            && cas != 0
            && cas != *present
        {
            store.compare_and_sets.mismatches += 1;
            return Status::CasMismatch;
        }
        let new_cas = store.next_cas;
        store.next_cas = match new_cas.wrapping_add(1) {
            0 => 1,
            next => next,
        };
        store.values.insert(key.to_vec(), (value.to_vec(), new_cas));
        Status::Ok
    }
}

/// One claim about shared data and whether the store bore it out.
#[derive(Debug)]
pub struct Claim {
    /// What is claimed.
    pub claim: &'static str,
    /// Whether it held.
    pub holds: bool,
}

/// Puts every claim that the filter relies on to `store`, under keys that begin with
/// `prefix` and are not used otherwise. Nobody else may write to the store meanwhile:
/// two claims are about the process-wide counter.
pub fn shared_data_contract(store: &dyn SharedDataAccess, prefix: &str) -> Vec<Claim> {
    let key = |name: &str| format!("{prefix}{name}").into_bytes();
    let cas_of = |key: &[u8]| store.get(key).map(|(_, cas)| cas).unwrap_or_default();
    let value_of = |key: &[u8]| store.get(key).map(|(value, _)| value);
    let mut claims = Vec::new();
    let mut claim = |claim: &'static str, holds: bool| claims.push(Claim { claim, holds });

    let absent = key("absent");
    claim("an absent key is not found", store.get(&absent).is_none());

    let plain = key("plain");
    let set = store.set(&plain, b"one", 0);
    claim("a set with CAS 0 creates a key", set == Status::Ok);
    claim(
        "what was set is read back",
        value_of(&plain).as_deref() == Some(b"one"),
    );
    claim("a key that exists has a CAS that is not 0", {
        cas_of(&plain) != 0
    });
    let first = cas_of(&plain);
    claim("reading does not move the CAS", cas_of(&plain) == first);
    let set = store.set(&plain, b"two", 0);
    claim(
        "a set with CAS 0 overwrites",
        set == Status::Ok && value_of(&plain).as_deref() == Some(b"two"),
    );
    claim("every set gives a new CAS", cas_of(&plain) != first);

    let stale = store.set(&plain, b"stale", first);
    claim("an outdated CAS mismatches", stale == Status::CasMismatch);
    claim(
        "a mismatch leaves the value alone",
        value_of(&plain).as_deref() == Some(b"two"),
    );
    let current = cas_of(&plain);
    let set = store.set(&plain, b"three", current);
    claim(
        "the current CAS writes",
        set == Status::Ok && value_of(&plain).as_deref() == Some(b"three"),
    );
    let again = store.set(&plain, b"four", current);
    claim("a CAS writes once", again == Status::CasMismatch);

    let current = cas_of(&plain);
    let same = store.set(&plain, b"three", current);
    claim(
        "writing the same value is a write all the same",
        same == Status::Ok && cas_of(&plain) != current,
    );

    let inserted = key("inserted");
    let set = store.set(&inserted, b"mine", u32::MAX);
    claim(
        "a CAS that is not 0 inserts an absent key",
        set == Status::Ok && value_of(&inserted).as_deref() == Some(b"mine"),
    );
    let set = store.set(&inserted, b"theirs", u32::MAX);
    claim(
        "u32::MAX is insert-if-absent: the second candidate is refused and the first stays",
        set == Status::CasMismatch && value_of(&inserted).as_deref() == Some(b"mine"),
    );

    let (left, right) = (key("left"), key("right"));
    store.set(&left, b"l", 0);
    store.set(&right, b"r", 0);
    claim(
        "the counter is the process's, not the key's",
        cas_of(&right) == cas_of(&left).wrapping_add(1),
    );
    let refused = store.set(&left, b"x", cas_of(&right));
    claim(
        "another key's CAS mismatches",
        refused == Status::CasMismatch,
    );
    store.set(&left, b"l", 0);
    claim(
        "a refused set does not move the counter",
        cas_of(&left) == cas_of(&right).wrapping_add(1),
    );

    let empty = key("empty");
    store.set(&empty, b"", 0);
    claim(
        "an empty value exists",
        value_of(&empty).as_deref() == Some(b"") && cas_of(&empty) != 0,
    );
    let bytes: Vec<u8> = (0..=255).collect();
    store.set(&empty, &bytes, 0);
    claim(
        "values are bytes, whatever they are",
        value_of(&empty).as_deref() == Some(&bytes),
    );
    claims
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fake_keeps_the_contract_that_the_filter_relies_on() {
        let claims = shared_data_contract(&SharedData::new(), "contract.");
        assert!(claims.len() > 15);
        let broken: Vec<_> = claims.iter().filter(|claim| !claim.holds).collect();
        assert!(broken.is_empty(), "{broken:?}");
    }

    #[test]
    fn compare_and_sets_are_counted_and_other_sets_are_not() {
        let store = SharedData::new();
        for cas in [0, 1, 7, 0, u32::MAX] {
            store.set(b"key", b"value", cas);
        }
        let counted = CompareAndSets {
            attempts: 3,
            mismatches: 2,
        };
        assert_eq!(store.compare_and_sets(), counted);
    }

    #[test]
    fn the_contract_notices_a_store_without_compare_and_set() {
        struct Careless(SharedData);
        impl SharedDataAccess for Careless {
            fn get(&self, key: &[u8]) -> Option<(Vec<u8>, u32)> {
                self.0.get(key)
            }
            fn set(&self, key: &[u8], value: &[u8], _: u32) -> Status {
                self.0.set(key, value, 0)
            }
        }
        let claims = shared_data_contract(&Careless(SharedData::new()), "");
        assert!(claims.iter().filter(|claim| !claim.holds).count() >= 4);
    }

    #[test]
    fn the_counter_skips_zero_when_it_wraps() {
        let store = SharedData::new();
        store.set_next_cas(u32::MAX);
        store.set(b"a", b"", 0);
        store.set(b"b", b"", 0);
        assert_eq!(store.get(b"a").unwrap().1, u32::MAX);
        assert_eq!(store.get(b"b").unwrap().1, 1);
    }

    #[test]
    fn tampering_goes_unnoticed_by_compare_and_set() {
        let store = SharedData::new();
        store.set(b"a", b"good", 0);
        store.tamper(|_, value| value.truncate(1));
        assert_eq!(store.get(b"a"), Some((b"g".to_vec(), 1)));
        assert_eq!(store.set(b"a", b"new", 1), Status::Ok);
    }
}
