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

/// Whether a candidate leads now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lead {
    /// Another leads, or it could not be found out.
    No,
    /// It is the first, or goes on.
    Yes,
    /// It leads from now on in place of another, which may have gone away: its lease had ended,
    /// or it is older. (A VM that is made after a trap finds the lease of the one that trapped, as that of an older
    /// configuration.)
    Inherited,
}

/// Takes or renews the lease of a service for so many milliseconds.
pub fn lead(
    data: &impl SharedData,
    scope: u64,
    candidate: Candidate,
    now: Moment,
    milliseconds: u64,
) -> Lead {
    let key = Key::new(KIND, scope, 0);
    let mut value = Vec::new();
    let Ok(token) = data.get(key.as_bytes(), &mut value) else {
        return Lead::No;
    };
    let mut lead = Lead::Yes;
    if let Some((holder, until)) = parse(&value) {
        let mine = holder.id == candidate.id;
        let outdated = holder.born.saturating_add(SAME_GENERATION_MILLISECONDS) < candidate.born;
        // Another configuration may take longer leases. What ends later still was not written by us.
        let longest = milliseconds.saturating_mul(2).max(LONGEST_MILLISECONDS);
        let possible = until <= now.monotonic.saturating_add(longest);
        if !mine && !outdated && possible && now.monotonic < until {
            return Lead::No;
        }
        if mine && now.monotonic.saturating_add(milliseconds / 2) < until {
            return Lead::Yes;
        }
        if !mine {
            lead = Lead::Inherited;
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
    match data.set(key.as_bytes(), &value, token) {
        Ok(()) => lead,
        Err(_) => Lead::No,
    }
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
        assert_eq!(lead(&data, 9, one, at(0), 3_000), Lead::Yes);
        assert_eq!(lead(&data, 9, other, at(2_999), 3_000), Lead::No);
        assert_eq!(lead(&data, 9, one, at(2_999), 3_000), Lead::Yes);
        assert_eq!(lead(&data, 9, other, at(5_000), 3_000), Lead::No);
        assert_eq!(lead(&data, 9, other, at(6_000), 3_000), Lead::Inherited);
        assert_eq!(lead(&data, 9, one, at(6_001), 3_000), Lead::No);
    }

    #[test]
    fn nothing_is_inherited_from_oneself_nor_by_the_first() {
        let data = Memory::default();
        let one = Candidate { id: 1, born: 0 };
        for now in [0, 1_000, 2_000, 60_000] {
            assert_eq!(lead(&data, 9, one, at(now), 3_000), Lead::Yes);
        }
    }

    #[test]
    fn another_service_has_another_leader() {
        let data = Memory::default();
        for scope in [1, 2] {
            let candidate = Candidate { id: scope, born: 0 };
            assert_eq!(lead(&data, scope, candidate, at(0), 3_000), Lead::Yes);
        }
    }

    #[test]
    fn an_old_configuration_yields_to_a_newer_one_at_once() {
        let data = Memory::default();
        let old = Candidate { id: 1, born: 0 };
        let new = Candidate {
            id: 2,
            born: 60_000,
        };
        assert_eq!(lead(&data, 9, old, at(60_000), 3_000), Lead::Yes);
        assert_eq!(lead(&data, 9, new, at(60_001), 3_000), Lead::Inherited);
        assert_eq!(lead(&data, 9, old, at(60_002), 3_000), Lead::No);
    }

    #[test]
    fn who_loses_the_race_does_not_lead() {
        let data = Memory::default();
        data.lose_next(1);
        let candidate = Candidate { id: 1, born: 0 };
        assert_eq!(lead(&data, 9, candidate, at(0), 3_000), Lead::No);
    }
}
