//! Which slots the leader looks at on a tick although no mark names them.
//!
//! Apart from the flush because it goes over the whole table, whatever service a slot belongs to.
//! What a VM had taken from the marks, and what it had in flight, is found by nobody else if
//! that VM goes away.

use crate::authorization::Slot;
use crate::moment::Moment;

/// Every slot is looked at once in so many milliseconds,
const ROUND_MILLISECONDS: u32 = 60_000;
/// and in so many where another VM has led before.
const HURRIED_MILLISECONDS: u32 = 8_000;
/// Slots of one tick at most: about a millisecond,
const MOST: u32 = 1_000;
/// and in a hurry some milliseconds.
const MOST_HURRIED: u32 = 4_096;

/// Where the sweep of a table stands.
#[derive(Debug, Default)]
pub struct Sweep {
    next: u32,
    /// Slots that are still to be looked at in a hurry.
    hurried: u32,
    /// When all of them are to be looked at in a hurry once more (monotonic milliseconds).
    again_at: Option<u64>,
}

impl Sweep {
    /// This VM leads in place of another one, which may have gone away: everything is looked at soon,
    /// and once more from `again_at` on (monotonic milliseconds), when nobody waits any longer for what
    /// the other one had in flight.
    pub fn hurry(&mut self, slots: u32, again_at: u64) {
        self.hurried = slots;
        self.again_at = self.again_at.max(Some(again_at));
    }

    /// The slots to look at on this tick, of a table of so many, with ticks so many milliseconds apart;
    /// and whether that is done in a hurry.
    pub fn next(
        &mut self,
        slots: u32,
        tick: u32,
        now: Moment,
    ) -> (bool, impl Iterator<Item = Slot> + use<>) {
        if self.again_at.is_some_and(|at| at <= now.monotonic) {
            self.again_at = None;
            self.hurried = slots;
        }
        let hurries = self.hurried > 0;
        let (round, most) = if hurries {
            (HURRIED_MILLISECONDS, MOST_HURRIED)
        } else {
            (ROUND_MILLISECONDS, MOST)
        };
        let ticks = round.checked_div(tick).unwrap_or(1).max(1);
        let share = slots.div_ceil(ticks).min(most);
        self.hurried = self.hurried.saturating_sub(share);
        let first = if self.next < slots { self.next } else { 0 };
        let end = first.saturating_add(share);
        let from_the_start = end.saturating_sub(slots);
        self.next = if from_the_start > 0 {
            from_the_start
        } else {
            end
        };
        let looked_at = (first..end.min(slots)).chain(0..from_the_start);
        (hurries, looked_at.map(Slot))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    /// The slots of the default capacity.
    const SLOTS: u32 = 32_768;

    fn at(monotonic: u64) -> Moment {
        Moment { wall: 0, monotonic }
    }

    /// The slots of each of so many ticks, and whether they are looked at in a hurry.
    fn ticks(
        sweep: &mut Sweep,
        slots: u32,
        tick: u32,
        at_ticks: std::ops::Range<u64>,
    ) -> Vec<(bool, Vec<u32>)> {
        let mut step = |number: u64| {
            let now = at(number.saturating_mul(tick.into()));
            let (hurries, slots) = sweep.next(slots, tick, now);
            (hurries, slots.map(|slot| slot.0).collect())
        };
        at_ticks.map(&mut step).collect()
    }

    fn all(ticks: &[(bool, Vec<u32>)]) -> usize {
        let slots: BTreeSet<_> = ticks.iter().flat_map(|(_, slots)| slots).collect();
        slots.len()
    }

    #[test]
    fn every_slot_has_its_turn_once_a_minute_and_no_tick_has_more_than_a_thousand() {
        for (slots, tick) in [(8, 1_000), (SLOTS, 1_000), (SLOTS, 333), (59_999, 1_000)] {
            let mut sweep = Sweep::default();
            let count = u64::from(60_000 / tick);
            for round in 0..3 {
                let seen = ticks(&mut sweep, slots, tick, round * count..(round + 1) * count);
                assert_eq!(all(&seen), slots as usize, "{slots}, {tick}");
                assert!(
                    seen.iter()
                        .all(|(hurries, of_tick)| !hurries && of_tick.len() <= 1_000)
                );
            }
        }
    }

    #[test]
    fn behind_another_leader_every_slot_has_its_turn_in_eight_seconds_wherever_the_sweep_stood() {
        for (tick, before) in [(1_000, 0), (1_000, 7), (1_000, 59), (100, 3), (500, 50)] {
            let mut sweep = Sweep::default();
            ticks(&mut sweep, SLOTS, tick, 0..before);
            sweep.hurry(SLOTS, u64::MAX);
            let count = u64::from(8_000 / tick);
            let seen = ticks(&mut sweep, SLOTS, tick, before..before + count);
            assert_eq!(all(&seen), SLOTS as usize, "{tick}, {before}");
            assert!(seen.iter().all(|(hurries, _)| *hurries));
            let after = ticks(&mut sweep, SLOTS, tick, before + count..before + 2 * count);
            assert!(
                after
                    .iter()
                    .all(|(hurries, slots)| !hurries && slots.len() <= 1_000)
            );
        }
    }

    #[test]
    fn what_is_in_flight_is_looked_at_when_it_is_overdue() {
        let mut sweep = Sweep::default();
        sweep.hurry(SLOTS, 12_000);
        let seen = ticks(&mut sweep, SLOTS, 1_000, 0..24);
        let hurried: Vec<_> = (0..24).filter(|tick| seen[*tick].0).collect();
        assert_eq!(
            hurried,
            [0, 1, 2, 3, 4, 5, 6, 7, 12, 13, 14, 15, 16, 17, 18, 19]
        );
        assert_eq!(all(&seen[12..20]), SLOTS as usize);
    }

    #[test]
    fn a_tick_in_a_hurry_is_bounded_and_a_larger_table_takes_more_of_them() {
        let slots = 8 * SLOTS;
        let mut sweep = Sweep::default();
        sweep.hurry(slots, 10_000);
        // The first time is not over when it is time for the second.
        let seen = ticks(&mut sweep, slots, 1_000, 0..100);
        assert!(seen.iter().all(|(_, of_tick)| of_tick.len() <= 4_096));
        let hurried = seen.iter().filter(|(hurries, _)| *hurries);
        assert_eq!(hurried.count(), 10 + 64);
        assert_eq!(all(&seen[..64]), slots as usize);
        assert_eq!(all(&seen[10..74]), slots as usize);
    }
}
