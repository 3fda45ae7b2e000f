//! Who flushes a service: one VM of the process at a time, by a lease in shared data.
//!
//! Apart from the flush because it is for economy only. Correctness is in the
//! records: usage leaves a record by compare-and-set, so two leaders at once would
//! send different usage, never the same twice.

use crate::moment::Moment;
use crate::shared_data::{Key, SharedData};

const KIND: u8 = b'l';
const MAGIC: &[u8; 4] = b"TGl1";
/// VMs of one configuration are made within a moment of each other; one that is
/// younger by more than this belongs to a newer configuration.
const SAME_GENERATION_MILLISECONDS: u64 = 5_000;
/// A lease of more than this is not believed, unless one asks for such a long one.
const LONGEST_MILLISECONDS: u64 = 60_000;

/// A candidate for leading: one root context of one VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Random, so that no two are the same.
    pub id: u64,
    /// When it was configured (monotonic milliseconds). An old configuration yields
    /// to a newer one.
    pub born: u64,
}

/// Takes or renews the lease of a service for so many milliseconds. True if the
/// candidate leads now.
pub fn lead(
    data: &impl SharedData,
    scope: u64,
    candidate: Candidate,
    now: Moment,
    milliseconds: u64,
) -> bool {
    let key = Key::new(KIND, scope, 0);
    let mut value = Vec::new();
    let Ok(token) = data.get(key.as_bytes(), &mut value) else {
        return false;
    };
    if let Some((holder, until)) = parse(&value) {
        let mine = holder.id == candidate.id;
        let outdated = holder.born.saturating_add(SAME_GENERATION_MILLISECONDS) < candidate.born;
        // Another configuration may take longer leases. What ends later still was not written by us.
        let longest = milliseconds.saturating_mul(2).max(LONGEST_MILLISECONDS);
        let possible = until <= now.monotonic.saturating_add(longest);
        if !mine && !outdated && possible && now.monotonic < until {
            return false;
        }
        if mine && now.monotonic.saturating_add(milliseconds / 2) < until {
            return true;
        }
    }
    value.clear();
    value.extend_from_slice(MAGIC);
    for word in [
        candidate.id,
        candidate.born,
        now.monotonic.saturating_add(milliseconds),
    ] {
        value.extend_from_slice(&word.to_le_bytes());
    }
    data.set(key.as_bytes(), &value, token).is_ok()
}

fn parse(value: &[u8]) -> Option<(Candidate, u64)> {
    let rest = value.strip_prefix(MAGIC)?;
    let (id, rest) = rest.split_first_chunk::<8>()?;
    let (born, until) = rest.split_first_chunk::<8>()?;
    Some((
        Candidate {
            id: u64::from_le_bytes(*id),
            born: u64::from_le_bytes(*born),
        },
        u64::from_le_bytes(until.try_into().ok()?),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::moment::testing::at;
    use crate::shared_data::memory::Memory;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    #[test]
    fn one_leads_until_its_lease_ends() {
        let data = Memory::default();
        let [one, other] = [1, 2].map(|id| Candidate { id, born: 0 });
        assert!(lead(&data, 9, one, at(0), 3_000));
        assert!(!lead(&data, 9, other, at(2_999), 3_000));
        assert!(lead(&data, 9, one, at(2_999), 3_000));
        assert!(!lead(&data, 9, other, at(5_000), 3_000));
        assert!(lead(&data, 9, other, at(6_000), 3_000));
        assert!(!lead(&data, 9, one, at(6_001), 3_000));
    }

    #[test]
    fn another_service_has_another_leader() {
        let data = Memory::default();
        assert!(lead(&data, 1, Candidate { id: 1, born: 0 }, at(0), 3_000));
        assert!(lead(&data, 2, Candidate { id: 2, born: 0 }, at(0), 3_000));
    }

    #[test]
    fn an_old_configuration_yields_to_a_newer_one_at_once() {
        let data = Memory::default();
        let old = Candidate { id: 1, born: 0 };
        let new = Candidate {
            id: 2,
            born: 60_000,
        };
        assert!(lead(&data, 9, old, at(60_000), 3_000));
        assert!(lead(&data, 9, new, at(60_001), 3_000));
        assert!(!lead(&data, 9, old, at(60_002), 3_000));
    }

    #[test]
    fn who_loses_the_race_does_not_lead() {
        let data = Memory::default();
        data.lose_next(1);
        assert!(!lead(&data, 9, Candidate { id: 1, born: 0 }, at(0), 3_000));
    }
}
