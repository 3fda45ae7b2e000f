//! Which slots have something to do: sets of slots in shared data, a bit each.
//!
//! Apart from the flush because requests on every worker write them and only the
//! leader takes them. A bit that is set twice is set once, so the sets never grow;
//! one that is lost with its VM is found by the leader's sweep.
//!
//! A set is spread over segments, and one more value says which of them have marks, so that
//! the leader of a thousand services in a large table reads a few values and not a hundred thousand.
//! Whoever marks the first slot of a segment notes the segment afterwards; whoever takes the
//! segment strikes it off before. So a note without marks is possible, at the price of one
//! look, and marks without a note only where a VM goes away between the two: the sweep notes them
//! again, and takers look at one segment in turn whatever is noted.

use super::table::Slot;
use crate::shared_data::{ATTEMPTS, Key, SetError, SharedData, Token};

const MAGIC: &[u8; 4] = b"TGm1";
/// Bits of one value: small enough to copy, large enough that few are read.
const SEGMENT_BITS: u32 = 1_024;
/// In place of a segment's number, in the key of the value that notes the segments. There
/// are at most 2,048 segments.
const NOTES: u32 = u32::MAX;

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

    /// How many values the set is spread over; `take` is called with numbers below.
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
        let segment = slot.0 / SEGMENT_BITS;
        let bit = slot.0 % SEGMENT_BITS;
        if set_bit(data, self.key(segment), SEGMENT_BITS, bit, 0) == Some(Before::Empty) {
            self.note(data, segment);
        }
    }

    /// Marks a slot, and notes its segment also if it had marks before.
    pub fn set_and_note(&self, data: &impl SharedData, slot: Slot) {
        self.set(data, slot);
        self.note(data, slot.0 / SEGMENT_BITS);
    }

    fn note(&self, data: &impl SharedData, segment: u32) {
        // In place of what cannot be read stands that all segments may have marks.
        let _ = set_bit(data, self.key(NOTES), self.segments(), segment, u8::MAX);
    }

    /// The first segment from this one on that is noted to have marks.
    #[must_use]
    pub fn next_segment(&self, data: &impl SharedData, from: u32) -> Option<u32> {
        let mut value = Vec::new();
        let token = data.get(self.key(NOTES).as_bytes(), &mut value).ok()?;
        if token == Token::ABSENT {
            return None;
        }
        let notes = bits_of(&value, self.segments());
        (from..self.segments()).find(|segment| notes.is_none_or(|notes| has(notes, *segment)))
    }

    /// Takes the marked slots of a segment: returns them and removes the marks.
    #[must_use]
    pub fn take(&self, data: &impl SharedData, segment: u32) -> Vec<Slot> {
        clear_bit(data, self.key(NOTES), self.segments(), segment);
        let key = self.key(segment);
        let mut value = Vec::new();
        for _ in 0..ATTEMPTS {
            let Ok(token) = data.get(key.as_bytes(), &mut value) else {
                break;
            };
            let Some(bits) = bits_of(&value, SEGMENT_BITS) else {
                break;
            };
            if token == Token::ABSENT || is_empty(bits) {
                break;
            }
            let first = segment.saturating_mul(SEGMENT_BITS);
            let slots = (first..self.slots)
                .zip(0..SEGMENT_BITS)
                .filter_map(|(slot, bit)| has(bits, bit).then_some(Slot(slot)))
                .collect();
            match data.set(key.as_bytes(), &filled(SEGMENT_BITS, 0), token) {
                Ok(()) => return slots,
                Err(SetError::Mismatch) => {}
                Err(SetError::Unavailable) => break,
            }
        }
        // What is there was not taken.
        if bits_of(&value, SEGMENT_BITS).is_some_and(|bits| !is_empty(bits)) {
            self.note(data, segment);
        }
        Vec::new()
    }
}

/// What a set of bits was before one was set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Before {
    Empty,
    NotEmpty,
}

/// Sets a bit of a value of so many. `None`: it could not be set. A value that is none of
/// ours is replaced by bytes of `instead`.
fn set_bit(data: &impl SharedData, key: Key, bits: u32, bit: u32, instead: u8) -> Option<Before> {
    let mut value = Vec::new();
    for _ in 0..ATTEMPTS {
        let token = data.get(key.as_bytes(), &mut value).ok()?;
        let before = match bits_of(&value, bits) {
            Some(all) if has(all, bit) => return Some(Before::NotEmpty),
            Some(all) if !is_empty(all) => Before::NotEmpty,
            Some(_) => Before::Empty,
            None => {
                value = filled(bits, if token == Token::ABSENT { 0 } else { instead });
                Before::Empty
            }
        };
        *byte_of(&mut value, bit)? |= mask(bit);
        match data.set(key.as_bytes(), &value, token) {
            Err(SetError::Mismatch) => {}
            Ok(()) => return Some(before),
            Err(SetError::Unavailable) => return None,
        }
    }
    None
}

/// Clears a bit of a value of so many, if it can.
fn clear_bit(data: &impl SharedData, key: Key, bits: u32, bit: u32) {
    let mut value = Vec::new();
    for _ in 0..ATTEMPTS {
        let Ok(token) = data.get(key.as_bytes(), &mut value) else {
            return;
        };
        if !bits_of(&value, bits).is_some_and(|all| has(all, bit)) {
            return;
        }
        let Some(byte) = byte_of(&mut value, bit) else {
            return;
        };
        *byte &= !mask(bit);
        match data.set(key.as_bytes(), &value, token) {
            Err(SetError::Mismatch) => {}
            Ok(()) | Err(SetError::Unavailable) => return,
        }
    }
}

/// The bits of a value of ours.
fn bits_of(value: &[u8], bits: u32) -> Option<&[u8]> {
    value
        .strip_prefix(MAGIC)
        .filter(|bytes| bytes.len() == bytes_for(bits))
}

/// A value whose bytes are all the same.
fn filled(bits: u32, byte: u8) -> Vec<u8> {
    let mut value = MAGIC.to_vec();
    value.resize(MAGIC.len().saturating_add(bytes_for(bits)), byte);
    value
}

fn bytes_for(bits: u32) -> usize {
    usize::try_from(bits.div_ceil(8)).unwrap_or(0)
}

fn is_empty(bits: &[u8]) -> bool {
    bits.iter().all(|byte| *byte == 0)
}

fn has(bits: &[u8], bit: u32) -> bool {
    let byte = usize::try_from(bit / 8).ok().and_then(|at| bits.get(at));
    byte.is_some_and(|byte| byte & mask(bit) != 0)
}

fn byte_of(value: &mut [u8], bit: u32) -> Option<&mut u8> {
    let place = usize::try_from(bit / 8).ok()?;
    value.get_mut(MAGIC.len()..)?.get_mut(place)
}

const fn mask(bit: u32) -> u8 {
    // Below 8, so nothing is shifted out.
    match 1_u8.checked_shl(bit % 8) {
        Some(mask) => mask,
        None => 0,
    }
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

    /// What a taker takes that goes by what is noted.
    fn noted(data: &Memory, marks: Marks) -> Vec<Slot> {
        let mut taken = Vec::new();
        let mut from = 0;
        while let Some(segment) = marks.next_segment(data, from) {
            taken.extend(marks.take(data, segment));
            from = segment + 1;
        }
        taken
    }

    #[test]
    fn segments_with_marks_are_noted_and_others_are_not() {
        let data = Memory::default();
        let marks = Marks::new(Mark::Dirty, 7, 20 * 1_024);
        assert_eq!(marks.next_segment(&data, 0), None);
        for slot in [5 * 1_024, 5 * 1_024 + 1, 19 * 1_024] {
            marks.set(&data, Slot(slot));
        }
        assert_eq!(marks.next_segment(&data, 0), Some(5));
        assert_eq!(marks.next_segment(&data, 6), Some(19));
        assert_eq!(noted(&data, marks).len(), 3);
        assert_eq!(marks.next_segment(&data, 0), None);
        marks.set(&data, Slot(5 * 1_024));
        assert_eq!(noted(&data, marks), [Slot(5 * 1_024)]);
    }

    #[test]
    fn a_mark_whose_note_was_lost_is_noted_again_by_the_sweep() {
        let data = Memory::default();
        let marks = Marks::new(Mark::Dirty, 7, 4_096);
        marks.set(&data, Slot(2_000));
        clear_bit(&data, marks.key(NOTES), marks.segments(), 1);
        marks.set(&data, Slot(2_000));
        assert_eq!(noted(&data, marks), []);
        marks.set_and_note(&data, Slot(2_000));
        assert_eq!(noted(&data, marks), [Slot(2_000)]);
    }

    #[test]
    fn a_note_that_is_not_ours_has_every_segment_looked_at() {
        let data = Memory::default();
        let marks = Marks::new(Mark::Dirty, 7, 4_096);
        for slot in [0, 2_000] {
            marks.set(&data, Slot(slot));
        }
        for then in [None, Some(Slot(4_000))] {
            for slot in [0, 2_000] {
                marks.set(&data, Slot(slot));
            }
            let notes = marks.key(NOTES);
            data.set(notes.as_bytes(), b"something else", Token::OVERWRITE)
                .unwrap();
            let mut expected = vec![Slot(0), Slot(2_000)];
            if let Some(slot) = then {
                marks.set(&data, slot);
                expected.push(slot);
            }
            assert_eq!(noted(&data, marks), expected);
        }
        assert_eq!(marks.next_segment(&data, 0), None);
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
