//! The records that this VM wrote last, as it wrote them.
//!
//! Apart from the table because it is about saving a read, never about what is true: shared
//! data alone is. A record that nobody has changed since this VM wrote it need not be
//! read to be changed again; whether nobody has is for the compare-and-set to say, with the
//! token that the write was [guessed](crate::shared_data::Guess) to have been given.
//!
//! The guess holds as long as this VM is the only one that writes to shared data, which is so
//! with one worker, and with more while the others are idle. Otherwise it fails, and is then
//! not tried again before the next tick.

use super::table::Slot;
use crate::shared_data::Guess;

/// Records that are kept. A power of two.
const KEPT: usize = 64;
/// Reads that must have been saved in a row to make up for finding the counter again.
const WORTHWHILE: u32 = 16;

/// The records, each at the place that its slot's number gives it.
pub(super) struct Recent {
    kept: Vec<Option<Kept>>,
    /// Right guesses since the last wrong one.
    hits: u32,
    resting: bool,
}

/// A record as it was written.
pub(super) struct Kept {
    slot: Slot,
    pub(super) bytes: Vec<u8>,
    pub(super) guess: Guess,
}

impl Recent {
    pub(super) fn new() -> Self {
        Self {
            kept: (0..KEPT).map(|_| None).collect(),
            hits: 0,
            resting: false,
        }
    }

    /// The record of this slot, if this VM wrote it lately and it is worth a try. The time is
    /// in milliseconds of the steady clock.
    pub(super) fn find(&mut self, slot: Slot, now: u64) -> Option<&mut Kept> {
        if self.resting {
            return None;
        }
        self.place(slot)?
            .as_mut()
            .filter(|kept| kept.slot == slot && kept.guess.is_good(now))
    }

    /// Keeps a record that was just written to this slot, by taking its bytes; others are
    /// given for them.
    pub(super) fn keep(&mut self, slot: Slot, bytes: &mut Vec<u8>, guess: Guess) {
        if let Some(place) = self.place(slot) {
            let mut kept = place.take().unwrap_or(Kept {
                slot,
                bytes: Vec::new(),
                guess,
            });
            std::mem::swap(&mut kept.bytes, bytes);
            *place = Some(Kept {
                slot,
                guess,
                ..kept
            });
        }
    }

    /// Forgets the record of this slot.
    pub(super) fn forget(&mut self, slot: Slot) {
        if let Some(place) = self.place(slot) {
            *place = None;
        }
    }

    /// The guess was right.
    pub(super) fn hit(&mut self) {
        self.hits = self.hits.saturating_add(1);
    }

    /// The guess was wrong, and those that came after it are, too. Whether it is worthwhile to find out
    /// at once where the counter stands; else nothing is guessed until
    /// [`Recent::begin_again`].
    pub(super) fn missed(&mut self) -> bool {
        let worthwhile = self.hits >= WORTHWHILE;
        self.begin_again();
        self.hits = 0;
        self.resting = !worthwhile;
        worthwhile
    }

    /// The counter has been found again. To read a record once costs less than a wrong guess.
    pub(super) fn begin_again(&mut self) {
        self.resting = false;
        self.kept.fill_with(|| None);
    }

    fn place(&mut self, slot: Slot) -> Option<&mut Option<Kept>> {
        let place = usize::try_from(slot.0).ok()? & KEPT.saturating_sub(1);
        self.kept.get_mut(place)
    }
}
