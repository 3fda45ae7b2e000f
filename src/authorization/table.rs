//! The slots of shared data that hold the records, and how a record gets one.
//!
//! Shared data has no delete, no expiry, no listing and no bound, so keys must be
//! few and used again: a fixed number of slots, eight to a set, the set picked by
//! the digest. Twice as many slots as applications keep sets from overflowing.
//!
//! Two VMs can put the same application into two slots of its set at the same
//! moment, and then each would count half of its usage. So a record is put in three
//! steps: claim a slot as a candidate, look at the rest of the set, and only then go
//! live. Of two candidates in two slots the later always sees the earlier and withdraws;
//! of two in one slot the later takes over, and the earlier fails to go live.

use super::codec;
use super::recent::Recent;
use super::record::{Record, State};
use crate::credentials::Digest;
use crate::moment::Moment;
use crate::shared_data::{ATTEMPTS, Key, SetError, SharedData, Token};
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use thiserror::Error;

/// Slots of a set: with twice the capacity in slots, few sets overflow at full load.
const WAYS: u32 = 8;
/// Sets for twice the largest capacity that can be configured. A larger number that is
/// read back is nobody's, and to walk that many slots would hold up the worker.
const MOST_SETS: u32 = 262_144;
/// A candidate whose VM died gives way after so long. Putting takes microseconds.
const CANDIDATE_MILLISECONDS: u64 = 1_000;
/// Two that see each other may both withdraw; they try again so often.
const PUT_ATTEMPTS: u32 = 16;
const KIND: u8 = b'r';
const SIZE_KIND: u8 = b'z';
const SIZE_MAGIC: &[u8; 4] = b"TGz1";

/// The number of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(pub u32);

/// Why a record could not be read, changed or put.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum TableError {
    /// Too many others changed it meanwhile, or the host refused: decide nothing.
    #[error("the record is contended or shared data is not available")]
    Unavailable,
    /// Every slot of the set holds usage that must not be lost.
    #[error("no slot of the set may give way")]
    Full,
}

/// What a change to a record wants of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change<T> {
    /// Write it, then return this.
    Write(T),
    /// Leave it as it is and return this.
    Keep(T),
}

/// The table as one VM sees it. The slots are shared; the hints, which slot an
/// application was last found in, are its own and may be wrong.
pub struct Table {
    sets: u32,
    hints: HashMap<Digest, Slot, BuildHasherDefault<DigestHasher>>,
    record: Record,
    value: Vec<u8>,
    encoded: Vec<u8>,
    recent: Recent,
}

impl Table {
    /// The table of this process: with slots for twice `capacity` applications, or as
    /// many as whoever came first in this process wanted.
    pub fn open(data: &impl SharedData, capacity: u32) -> Self {
        let wanted = capacity
            .saturating_mul(2)
            .div_ceil(WAYS)
            .clamp(1, MOST_SETS);
        Self {
            sets: agreed_sets(data, wanted).unwrap_or(wanted),
            hints: HashMap::default(),
            record: Record::vacant(),
            value: Vec::new(),
            encoded: Vec::new(),
            recent: Recent::new(),
        }
    }

    /// It is known again where the counter of tokens stands.
    pub fn begin_again(&mut self) {
        self.recent.begin_again();
    }

    /// Number of slots.
    #[must_use]
    pub const fn slots(&self) -> u32 {
        self.sets.saturating_mul(WAYS)
    }

    /// Whether this VM has found the application's record before.
    #[must_use]
    pub fn has_hint(&self, digest: Digest) -> bool {
        self.hints.contains_key(&digest)
    }

    /// Changes an application's record, as often as others come in between.
    /// `None` if it has none. The change may run several times and must not keep
    /// anything of a run that was not the last.
    ///
    /// # Errors
    /// `Unavailable` if every attempt lost its race. Then nothing was changed.
    pub fn change<T>(
        &mut self,
        data: &impl SharedData,
        digest: Digest,
        change: impl FnMut(&mut Record) -> Change<T>,
    ) -> Result<Option<(Slot, T)>, TableError> {
        self.change_in_place(data, digest, |_| None, change)
    }

    /// As [`Table::change`], but first `in_place` may make the change on the bytes of the
    /// record: `None` if it cannot, and has changed nothing.
    ///
    /// # Errors
    /// As [`Table::change`].
    pub fn change_in_place<T>(
        &mut self,
        data: &impl SharedData,
        digest: Digest,
        mut in_place: impl FnMut(&mut [u8]) -> Option<T>,
        mut change: impl FnMut(&mut Record) -> Change<T>,
    ) -> Result<Option<(Slot, T)>, TableError> {
        for _ in 0..ATTEMPTS {
            let Some(slot) = self.locate(data, digest)? else {
                return Ok(None);
            };
            match self.try_change(data, slot, &mut in_place, |record| {
                (record.digest == digest).then(|| change(record))
            })? {
                Attempt::Done(done) => return Ok(Some((slot, done))),
                Attempt::Lost => {}
                // The hint was wrong or the record went meanwhile: look again.
                Attempt::Absent => {
                    self.hints.remove(&digest);
                }
            }
        }
        Err(TableError::Unavailable)
    }

    /// Changes whatever record a slot holds. `None` if it holds none, or if the
    /// change returns `None` because the record is not the one that was meant.
    ///
    /// # Errors
    /// As [`Table::change`].
    pub fn change_slot<T>(
        &mut self,
        data: &impl SharedData,
        slot: Slot,
        mut change: impl FnMut(&mut Record) -> Option<Change<T>>,
    ) -> Result<Option<T>, TableError> {
        for _ in 0..ATTEMPTS {
            match self.try_change(data, slot, |_| None, &mut change)? {
                Attempt::Done(done) => return Ok(Some(done)),
                Attempt::Absent => return Ok(None),
                Attempt::Lost => {}
            }
        }
        Err(TableError::Unavailable)
    }

    /// Changes an application's record as this VM wrote it last, without reading it, if it is
    /// still that. `None`: it was not written lately, somebody else has changed it, or
    /// `in_place` cannot make the change. Then nothing was changed.
    ///
    /// # Errors
    /// `Unavailable` if the host refused.
    pub fn change_unread<T>(
        &mut self,
        data: &impl SharedData,
        digest: Digest,
        now: Moment,
        in_place: impl FnOnce(&mut [u8]) -> Option<T>,
    ) -> Result<Option<T>, TableError> {
        let Some(slot) = self.hints.get(&digest).copied() else {
            return Ok(None);
        };
        let Some(kept) = self.recent.find(slot, now.monotonic) else {
            return Ok(None);
        };
        let Some(done) = in_place(&mut kept.bytes) else {
            return Ok(None);
        };
        let key = Key::new(KIND, 0, slot.0);
        match (
            data.set(key.as_bytes(), &kept.bytes, kept.guess.token),
            data.last_token(),
        ) {
            (Ok(()), Some(guess)) => {
                kept.guess = guess;
                self.recent.hit();
                Ok(Some(done))
            }
            (Ok(()), None) => {
                self.recent.forget(slot);
                Ok(Some(done))
            }
            (Err(error), _) => {
                self.recent.forget(slot);
                if self.recent.missed() {
                    data.find_counter();
                }
                won(Err(error)).map(|_| None)
            }
        }
    }

    fn try_change<T>(
        &mut self,
        data: &impl SharedData,
        slot: Slot,
        in_place: impl FnOnce(&mut [u8]) -> Option<T>,
        change: impl FnOnce(&mut Record) -> Option<Change<T>>,
    ) -> Result<Attempt<T>, TableError> {
        let key = Key::new(KIND, 0, slot.0);
        let token = self.fetch(data, &key)?;
        if let Some(done) = in_place(&mut self.value) {
            let set = data.set(key.as_bytes(), &self.value, token);
            if set.is_ok()
                && let Some(guess) = data.last_token()
            {
                self.recent.keep(slot, &mut self.value, guess);
            }
            return attempt(set, done);
        }
        self.decode();
        if self.record.state != State::Live {
            return Ok(Attempt::Absent);
        }
        match change(&mut self.record) {
            None => Ok(Attempt::Absent),
            Some(Change::Keep(done)) => Ok(Attempt::Done(done)),
            Some(Change::Write(done)) => {
                codec::encode(&self.record, &mut self.encoded);
                self.recent.forget(slot);
                attempt(data.set(key.as_bytes(), &self.encoded, token), done)
            }
        }
    }

    /// Reads a slot into `self.record`: vacant if it is absent or not a record of ours.
    fn read(&mut self, data: &impl SharedData, key: &Key) -> Result<Token, TableError> {
        let token = self.fetch(data, key)?;
        self.decode();
        Ok(token)
    }

    fn fetch(&mut self, data: &impl SharedData, key: &Key) -> Result<Token, TableError> {
        data.get(key.as_bytes(), &mut self.value)
            .map_err(|_| TableError::Unavailable)
    }

    fn decode(&mut self) {
        if codec::decode(&self.value, &mut self.record).is_err() {
            self.record.state = State::Vacant;
        }
    }

    fn locate(
        &mut self,
        data: &impl SharedData,
        digest: Digest,
    ) -> Result<Option<Slot>, TableError> {
        if let Some(slot) = self.hints.get(&digest) {
            return Ok(Some(*slot));
        }
        for slot in self.ways(digest) {
            data.get(Key::new(KIND, 0, slot.0).as_bytes(), &mut self.value)
                .map_err(|_| TableError::Unavailable)?;
            if codec::digest_of(&self.value) == Some(digest)
                && codec::decode(&self.value, &mut self.record).is_ok()
                && self.record.state == State::Live
            {
                self.hint(digest, slot);
                return Ok(Some(slot));
            }
        }
        Ok(None)
    }

    /// Remembers a slot. There are never more hints than slots; when there would be,
    /// many must be of records that have gone.
    fn hint(&mut self, digest: Digest, slot: Slot) {
        if u32::try_from(self.hints.len()).unwrap_or(u32::MAX) >= self.slots() {
            self.hints.clear();
        }
        self.hints.insert(digest, slot);
    }

    /// The slots in which the record of this digest can be.
    fn ways(&self, digest: Digest) -> impl Iterator<Item = Slot> + use<> {
        let [a, b, c, d, e, f, g, h, ..] = digest.0;
        let word = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
        let set = word
            .checked_rem(u64::from(self.sets))
            .and_then(|set| u32::try_from(set).ok())
            .unwrap_or(0);
        let first = set.saturating_mul(WAYS);
        (0..WAYS).map(move |way| Slot(first.saturating_add(way)))
    }

    /// Puts a new record, unless the application has one: then that one is changed
    /// by `merge` instead. Returns the slot.
    ///
    /// # Errors
    /// `Full` if no slot of the set may give way; `Unavailable` as [`Table::change`].
    pub fn put(
        &mut self,
        data: &impl SharedData,
        new: &Record,
        now: Moment,
        mut merge: impl FnMut(&mut Record),
    ) -> Result<Slot, TableError> {
        for _ in 0..PUT_ATTEMPTS {
            let changed = self.change(data, new.digest, |record| {
                merge(record);
                Change::Write(())
            })?;
            if let Some((slot, ())) = changed {
                return Ok(slot);
            }
            let Some((slot, token)) = self.find_room(data, new.digest, now)? else {
                return Err(TableError::Full);
            };
            if self.claim_and_fill(data, slot, token, new, now)? {
                self.hint(new.digest, slot);
                return Ok(slot);
            }
        }
        Err(TableError::Unavailable)
    }

    /// The slot to put a record of this digest in, with the token it was read with: that
    /// of another candidate of the same digest, which is not waited for, else a vacant
    /// one, else the least recently used that nobody needs.
    fn find_room(
        &mut self,
        data: &impl SharedData,
        digest: Digest,
        now: Moment,
    ) -> Result<Option<(Slot, Token)>, TableError> {
        let mut vacant = None;
        let mut oldest: Option<(u64, Slot, Token)> = None;
        for slot in self.ways(digest) {
            let token = self.read(data, &Key::new(KIND, 0, slot.0))?;
            let used = match self.record.state {
                State::Candidate if self.record.digest == digest => {
                    return Ok(Some((slot, token)));
                }
                State::Candidate if !self.candidate_is_dead(now) => continue,
                State::Vacant | State::Candidate => {
                    vacant = vacant.or(Some((slot, token)));
                    continue;
                }
                State::Live if self.record.may_give_way(now) => self.record.last_used,
                State::Live => continue,
            };
            if oldest.is_none_or(|(best, ..)| used < best) {
                oldest = Some((used, slot, token));
            }
        }
        Ok(vacant.or(oldest.map(|(_, slot, token)| (slot, token))))
    }

    const fn candidate_is_dead(&self, now: Moment) -> bool {
        self.record
            .fetched_at
            .saturating_add(CANDIDATE_MILLISECONDS)
            < now.monotonic
    }

    /// Claims a slot as a candidate, makes sure that the digest stands nowhere else in
    /// its set, and goes live. False if somebody else was there: try again.
    fn claim_and_fill(
        &mut self,
        data: &impl SharedData,
        slot: Slot,
        token: Token,
        new: &Record,
        now: Moment,
    ) -> Result<bool, TableError> {
        let key = Key::new(KIND, 0, slot.0);
        let mut candidate = Record::vacant();
        candidate.state = State::Candidate;
        candidate.digest = new.digest;
        candidate.fetched_at = now.monotonic;
        codec::encode(&candidate, &mut self.encoded);
        if !won(data.set(key.as_bytes(), &self.encoded, token))? {
            return Ok(false);
        }
        let claimed = self.read(data, &key)?;
        if self.record.state != State::Candidate || self.record.digest != new.digest {
            return Ok(false);
        }
        for other in self.ways(new.digest).filter(|other| *other != slot) {
            self.read(data, &Key::new(KIND, 0, other.0))?;
            if self.record.state != State::Vacant && self.record.digest == new.digest {
                codec::encode(&Record::vacant(), &mut self.encoded);
                let _ = won(data.set(key.as_bytes(), &self.encoded, claimed))?;
                return Ok(false);
            }
        }
        codec::encode(new, &mut self.encoded);
        won(data.set(key.as_bytes(), &self.encoded, claimed))
    }
}

/// The number of sets that the process agreed on, after offering `wanted` if there is
/// none, or something that is none.
fn agreed_sets(data: &impl SharedData, wanted: u32) -> Option<u32> {
    let key = Key::new(SIZE_KIND, 0, 0);
    let mut value = Vec::new();
    let token = data.get(key.as_bytes(), &mut value).ok()?;
    if let Some(sets) = parse_sets(&value) {
        return Some(sets);
    }
    let mut offer = SIZE_MAGIC.to_vec();
    offer.extend_from_slice(&wanted.to_le_bytes());
    // Whose offer was taken shows when it is read back.
    let _ = data.set(key.as_bytes(), &offer, token);
    data.get(key.as_bytes(), &mut value).ok()?;
    parse_sets(&value)
}

fn parse_sets(value: &[u8]) -> Option<u32> {
    let sets = u32::from_le_bytes(value.strip_prefix(SIZE_MAGIC)?.try_into().ok()?);
    (1..=MOST_SETS).contains(&sets).then_some(sets)
}

enum Attempt<T> {
    Done(T),
    Lost,
    Absent,
}

fn attempt<T>(set: Result<(), SetError>, done: T) -> Result<Attempt<T>, TableError> {
    won(set).map(|won| {
        if won {
            Attempt::Done(done)
        } else {
            Attempt::Lost
        }
    })
}

fn won(set: Result<(), SetError>) -> Result<bool, TableError> {
    match set {
        Ok(()) => Ok(true),
        Err(SetError::Mismatch) => Ok(false),
        Err(SetError::Unavailable) => Err(TableError::Unavailable),
    }
}

/// A digest is random already: its own bytes are the hash.
#[derive(Default)]
struct DigestHasher(u64);

impl Hasher for DigestHasher {
    fn write(&mut self, bytes: &[u8]) {
        if let Some(word) = bytes.first_chunk::<8>() {
            self.0 ^= u64::from_le_bytes(*word);
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
