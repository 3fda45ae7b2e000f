//! Which slots have something to do: sets of slots in shared data, a bit each.
//!
//! Apart from the flush because requests on every worker write them and only the
//! leader takes them. A bit that is set twice is set once, so the sets never grow;
//! one that is lost with its VM is found by the leader's sweep.

use super::table::Slot;
use crate::shared_data::{ATTEMPTS, Key, SetError, SharedData, Token};

const MAGIC: &[u8; 4] = b"TGm1";
/// Bits of one value: small enough to copy, large enough that few are read.
const SEGMENT_BITS: u32 = 1_024;
const SEGMENT_BYTES: usize = 128;

/// What there is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// Usage is pending.
    Dirty,
    /// The record is stale and in use.
    Stale,
    /// A limit that others use, too, is to be looked at again.
    Urgent,
}

/// The slots of one service that are marked with one thing to do.
#[derive(Clone, Copy, Debug)]
pub struct Marks {
    mark: Mark,
    scope: u64,
    slots: u32,
}

impl Marks {
    /// The marks of this kind for a service, in a table of so many slots.
    #[must_use]
    pub const fn new(mark: Mark, scope: u64, slots: u32) -> Self {
        Self { mark, scope, slots }
    }

    /// How many values the set is spread over; `take` is called with each number below.
    #[must_use]
    pub const fn segments(&self) -> u32 {
        self.slots.div_ceil(SEGMENT_BITS)
    }

    fn key(&self, segment: u32) -> Key {
        let kind = match self.mark {
            Mark::Dirty => b'd',
            Mark::Stale => b's',
            Mark::Urgent => b'u',
        };
        Key::new(kind, self.scope, segment)
    }

    /// Marks a slot. A mark that could not be set is left to the leader's sweep.
    pub fn set(&self, data: &impl SharedData, slot: Slot) {
        let key = self.key(slot.0 / SEGMENT_BITS);
        let bit = slot.0 % SEGMENT_BITS;
        let place = usize::try_from(bit / 8).unwrap_or(0);
        let mut value = Vec::new();
        for _ in 0..ATTEMPTS {
            let Ok(token) = data.get(key.as_bytes(), &mut value) else {
                return;
            };
            if bits_of(&value).is_none() {
                value.clear();
                value.extend_from_slice(MAGIC);
                value.resize(MAGIC.len().saturating_add(SEGMENT_BYTES), 0);
            }
            let Some(byte) = value
                .get_mut(MAGIC.len()..)
                .and_then(|bits| bits.get_mut(place))
            else {
                return;
            };
            let marked = *byte | 1_u8.checked_shl(bit % 8).unwrap_or(0);
            if *byte == marked {
                return;
            }
            *byte = marked;
            match data.set(key.as_bytes(), &value, token) {
                Err(SetError::Mismatch) => {}
                Ok(()) | Err(SetError::Unavailable) => return,
            }
        }
    }

    /// Takes the marked slots of a segment: returns them and removes the marks.
    #[must_use]
    pub fn take(&self, data: &impl SharedData, segment: u32) -> Vec<Slot> {
        let key = self.key(segment);
        let mut value = Vec::new();
        for _ in 0..ATTEMPTS {
            let Ok(token) = data.get(key.as_bytes(), &mut value) else {
                break;
            };
            let Some(bits) = bits_of(&value) else {
                break;
            };
            if token == Token::ABSENT || bits.iter().all(|byte| *byte == 0) {
                break;
            }
            let first = segment.saturating_mul(SEGMENT_BITS);
            let slots = (first..self.slots)
                .zip(bits.iter().flat_map(|byte| {
                    (0..8_u32).map(move |bit| byte.checked_shr(bit).unwrap_or(0) & 1 != 0)
                }))
                .filter_map(|(slot, marked)| marked.then_some(Slot(slot)))
                .collect();
            let mut empty = MAGIC.to_vec();
            empty.resize(MAGIC.len().saturating_add(SEGMENT_BYTES), 0);
            match data.set(key.as_bytes(), &empty, token) {
                Ok(()) => return slots,
                Err(SetError::Mismatch) => {}
                Err(SetError::Unavailable) => break,
            }
        }
        Vec::new()
    }
}

fn bits_of(value: &[u8]) -> Option<&[u8]> {
    value
        .strip_prefix(MAGIC)
        .filter(|bits| bits.len() == SEGMENT_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shared_data::memory::Memory;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    #[test]
    fn what_is_marked_is_taken_once() {
        let data = Memory::default();
        let marks = Marks::new(Mark::Dirty, 7, 4_096);
        for slot in [0, 9, 1_023, 1_024, 4_095] {
            marks.set(&data, Slot(slot));
            marks.set(&data, Slot(slot));
        }
        let taken: Vec<_> = (0..marks.segments())
            .flat_map(|segment| marks.take(&data, segment))
            .collect();
        assert_eq!(taken, [0, 9, 1_023, 1_024, 4_095].map(Slot));
        assert!(marks.take(&data, 0).is_empty());
    }

    #[test]
    fn services_and_kinds_do_not_take_each_others_marks() {
        let data = Memory::default();
        Marks::new(Mark::Dirty, 1, 64).set(&data, Slot(3));
        assert!(Marks::new(Mark::Stale, 1, 64).take(&data, 0).is_empty());
        assert!(Marks::new(Mark::Dirty, 2, 64).take(&data, 0).is_empty());
        assert_eq!(Marks::new(Mark::Dirty, 1, 64).take(&data, 0), [Slot(3)]);
    }

    #[test]
    fn a_lost_race_loses_no_mark() {
        let data = Memory::default();
        let marks = Marks::new(Mark::Dirty, 1, 64);
        data.lose_next(3);
        marks.set(&data, Slot(5));
        data.lose_next(3);
        assert_eq!(marks.take(&data, 0), [Slot(5)]);
    }

    #[test]
    fn a_foreign_value_under_our_key_is_replaced() {
        let data = Memory::default();
        let marks = Marks::new(Mark::Dirty, 1, 64);
        let key = Key::new(b'd', 1, 0);
        data.set(key.as_bytes(), b"something else", Token::OVERWRITE)
            .unwrap();
        assert!(marks.take(&data, 0).is_empty());
        marks.set(&data, Slot(5));
        assert_eq!(marks.take(&data, 0), [Slot(5)]);
    }
}
