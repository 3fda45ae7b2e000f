//! The byte layout of a record in shared data, and nothing else.
//!
//! Apart from the record because the layout outlives a version of the code: another
//! module, an older one, or no one of ours at all may have written what is read.
//!
//! Little-endian. A header of fixed offsets:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | magic and layout version, `TGr3` |
//! | 4 | 1 | state: 0 vacant, 1 candidate, 2 live |
//! | 5 | 1 | denial, by its code; 0 if allowed |
//! | 6 | 1 | kind of the identity |
//! | 7 | 1 | flags: 1 refresh marked, 2 reported alone |
//! | 8 | 16 | digest |
//! | 24 | 8 | scope |
//! | 32 | 32 | fetched at, fresh until, stale until, last used |
//! | 64 | 24 | batch, its deadline, acknowledged at |
//! | 88 | 8 | the keys: 0 unheard, 1 none, else the hash of the cold value |
//! | 96 | 4 | number of names, of limits; 2 bytes of zero |
//! | 100 | 4 | number of usage entries, length of the identity, 2 bytes each |
//!
//! Then, without gaps: limits (51 bytes each: name, period, flags, start, end, maximum,
//! own, sent, foreign; flags: 1 unsure, 4 given up, 2 with a grant, which follows in 20
//! bytes: until, urgent at, share, gateways), ledgers (32: admitted, acknowledged, lost, published; one per
//! name), usage (34: name, hour, at, pending, in flight, settling), names (parent, length,
//! text), identity.

use super::accuracy::Grant;
use super::keys::Keys;
use super::limit::Limit;
use super::names::Names;
use super::period::{Period, Window};
use super::record::{Entry, Ledger, Record, State};
use crate::credentials::{Digest, Kind};
use crate::service_management::Denial;
use thiserror::Error;

const MAGIC: &[u8; 4] = b"TGr3";
/// Offsets of the header, for whoever works on the bytes themselves.
pub const STATE: usize = 4;
/// See [`STATE`].
pub const DENIAL: usize = 5;
/// See [`STATE`].
pub const DIGEST: usize = 8;
/// See [`STATE`].
pub const FRESH_UNTIL: usize = 40;
/// See [`STATE`].
pub const LAST_USED: usize = 56;
/// See [`STATE`].
pub const KEYS: usize = 88;
/// The state of a record that may be used.
pub const LIVE: u8 = 2;
/// The parent of a name that has none.
pub const NO_PARENT: u8 = Names::NO_PARENT;
const COUNTS: usize = 96;
const HEADER: usize = 104;
/// The length of a limit without a grant.
pub const LIMIT: usize = 51;
const LIMIT_FLAGS: usize = 2;
/// Offsets in a limit; at 0 is its name.
pub const LIMIT_START: usize = 3;
/// See [`LIMIT_START`].
pub const LIMIT_END: usize = 11;
/// See [`LIMIT_START`].
pub const LIMIT_MAXIMUM: usize = 19;
/// See [`LIMIT_START`].
pub const LIMIT_OWN: usize = 27;
/// See [`LIMIT_START`].
pub const LIMIT_FOREIGN: usize = 43;
const LEDGER: usize = 32;
/// The length of an entry of usage.
pub const USAGE: usize = 34;
/// Offsets in an entry of usage; at 0 is its name.
pub const USAGE_HOUR: usize = 1;
/// See [`USAGE_HOUR`].
pub const USAGE_AT: usize = 2;
/// See [`USAGE_HOUR`].
pub const USAGE_PENDING: usize = 10;
const REFRESH_MARKED: u8 = 1;
const ALONE: u8 = 2;
const UNSURE: u8 = 1;
const GRANTED: u8 = 2;
const GIVEN_UP: u8 = 4;

/// The bytes are not a record of this layout. Whoever wrote them, they are nobody's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("not a record of this layout")]
pub struct NotARecord;

/// The digest of the record in these bytes, without reading the rest.
#[must_use]
pub fn digest_of(bytes: &[u8]) -> Option<Digest> {
    let header = bytes.get(..24)?;
    if !header.starts_with(MAGIC) {
        return None;
    }
    let digest = header.get(8..24)?.try_into().ok()?;
    Some(Digest(digest))
}

/// Where the parts of a record stand whose limits are all without a grant, and so of one
/// length.
///
/// They may lie beyond the end of the bytes they were read from: read and write with
/// checked access.
#[derive(Clone, Copy, Debug)]
pub struct Sections {
    names: usize,
    limits: usize,
    usage: usize,
}

impl Sections {
    /// Those of the record in these bytes. `None` if they do not begin as one of this layout,
    /// or a limit has a grant: nothing behind it stands where it is looked for.
    pub fn of(bytes: &[u8]) -> Option<Self> {
        if !bytes.starts_with(MAGIC) {
            return None;
        }
        let [names, limits, _, _, low, high]: [u8; 6] = *bytes.get(COUNTS..)?.first_chunk()?;
        let sections = Self {
            names: usize::from(names),
            limits: usize::from(limits),
            usage: usize::from(u16::from_le_bytes([low, high])),
        };
        for limit in sections.limits() {
            if bytes.get(limit.checked_add(LIMIT_FLAGS)?)? & GRANTED != 0 {
                return None;
            }
        }
        Some(sections)
    }

    /// Whether the plan has no limits.
    pub const fn has_no_limits(self) -> bool {
        self.limits == 0
    }

    /// Offsets of the limits.
    pub fn limits(self) -> impl Iterator<Item = usize> {
        (HEADER..).step_by(LIMIT).take(self.limits)
    }

    /// Offset of the units admitted of a name.
    pub fn admitted(self, name: usize) -> Option<usize> {
        self.ledgers()?.checked_add(name.checked_mul(LEDGER)?)
    }

    /// Offsets of the entries of usage.
    pub fn usage(self) -> impl Iterator<Item = usize> {
        let ledgers = self.ledgers().unwrap_or(usize::MAX);
        let start = ledgers.saturating_add(self.names.saturating_mul(LEDGER));
        (start..).step_by(USAGE).take(self.usage)
    }

    /// Each name with its parent, or [`NO_PARENT`].
    pub fn names(self, bytes: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
        let start = self
            .ledgers()
            .unwrap_or(usize::MAX)
            .saturating_add(self.names.saturating_mul(LEDGER))
            .saturating_add(self.usage.saturating_mul(USAGE));
        let mut reader = Reader(bytes.get(start..).unwrap_or_default());
        (0..self.names).map_while(move |_| reader.name().ok())
    }

    fn ledgers(self) -> Option<usize> {
        HEADER.checked_add(self.limits.checked_mul(LIMIT)?)
    }
}

/// Writes the record into `out`, replacing what is there.
pub fn encode(record: &Record, out: &mut Vec<u8>) {
    out.clear();
    out.extend_from_slice(MAGIC);
    out.push(match record.state {
        State::Vacant => 0,
        State::Candidate => 1,
        State::Live => 2,
    });
    out.push(record.denial.map_or(0, Denial::code));
    out.push(record.kind.code());
    out.push(
        if record.refresh_marked {
            REFRESH_MARKED
        } else {
            0
        } | if record.alone { ALONE } else { 0 },
    );
    out.extend_from_slice(&record.digest.0);
    put_words(
        out,
        [
            record.scope,
            record.fetched_at,
            record.fresh_until,
            record.stale_until,
            record.last_used,
            record.batch,
            record.batch_deadline,
            record.acknowledged_at,
            record.keys.code(),
        ],
    );
    out.push(u8::try_from(record.names.len()).unwrap_or(0));
    out.push(u8::try_from(record.limits.len()).unwrap_or(0));
    out.extend_from_slice(&[0, 0]);
    for length in [record.usage.len(), record.identity.len()] {
        out.extend_from_slice(&u16::try_from(length).unwrap_or(0).to_le_bytes());
    }
    for limit in record.limits.iter().take(usize::from(u8::MAX)) {
        let unsure = if limit.unsure { UNSURE } else { 0 };
        let given_up = if limit.given_up { GIVEN_UP } else { 0 };
        let granted = if limit.grant.is_some() { GRANTED } else { 0 };
        out.extend_from_slice(&[limit.name, limit.period as u8, unsure | given_up | granted]);
        put_words(
            out,
            [
                limit.window.start,
                limit.window.end,
                limit.maximum,
                limit.own,
                limit.sent,
                limit.foreign,
            ],
        );
        if let Some(grant) = limit.grant {
            put_words(out, [grant.until, grant.urgent_at]);
            out.extend_from_slice(&grant.share.to_le_bytes());
            out.extend_from_slice(&grant.gateways.to_le_bytes());
        }
    }
    let without = Ledger::default();
    for index in 0..record.names.len() {
        let ledger = record.ledger.get(index).unwrap_or(&without);
        put_words(
            out,
            [
                ledger.admitted,
                ledger.acknowledged,
                ledger.lost,
                ledger.published,
            ],
        );
    }
    for entry in &record.usage {
        out.extend_from_slice(&[entry.name, u8::from(entry.hour)]);
        put_words(
            out,
            [entry.at, entry.pending, entry.in_flight, entry.settling],
        );
    }
    for index in (0_u8..).take(record.names.len()) {
        let text = record.names.bytes(index);
        out.push(record.names.parent(index).unwrap_or(Names::NO_PARENT));
        out.push(u8::try_from(text.len()).unwrap_or(0));
        out.extend_from_slice(text);
    }
    out.extend_from_slice(&record.identity);
}

/// Reads a record from bytes that anybody may have written, into one whose memory
/// is used again. On an error `record` is not to be used.
///
/// # Errors
/// The bytes are not a whole record of this layout.
pub fn decode(bytes: &[u8], record: &mut Record) -> Result<(), NotARecord> {
    let mut reader = Reader(bytes);
    if reader.bytes::<4>()? != *MAGIC {
        return Err(NotARecord);
    }
    record.state = match reader.byte()? {
        0 => State::Vacant,
        1 => State::Candidate,
        2 => State::Live,
        _ => return Err(NotARecord),
    };
    record.denial = match reader.byte()? {
        0 => None,
        code => Some(Denial::from_code(code).ok_or(NotARecord)?),
    };
    record.kind = Kind::from_code(reader.byte()?).ok_or(NotARecord)?;
    let flags = reader.byte()?;
    record.refresh_marked = flags & REFRESH_MARKED != 0;
    record.alone = flags & ALONE != 0;
    record.digest = Digest(reader.bytes()?);
    let keys;
    [
        record.scope,
        record.fetched_at,
        record.fresh_until,
        record.stale_until,
        record.last_used,
        record.batch,
        record.batch_deadline,
        record.acknowledged_at,
        keys,
    ] = reader.words::<9>()?;
    record.keys = Keys::from_code(keys);
    let [names, limits, 0, 0] = reader.bytes()? else {
        return Err(NotARecord);
    };
    let usage = u16::from_le_bytes(reader.bytes()?);
    let identity = usize::from(u16::from_le_bytes(reader.bytes()?));
    if usize::from(names) > Names::MOST {
        return Err(NotARecord);
    }
    let named = |name: u8| {
        if name < names {
            Ok(name)
        } else {
            Err(NotARecord)
        }
    };
    record.limits.clear();
    for _ in 0..limits {
        let [name, period, flags] = reader.bytes()?;
        let [start, end, maximum, own, sent, foreign] = reader.words()?;
        let grant = if flags & GRANTED == 0 {
            None
        } else {
            Some(reader.grant()?)
        };
        record.limits.push(Limit {
            name: named(name)?,
            period: Period::from_code(period).ok_or(NotARecord)?,
            window: Window { start, end },
            maximum,
            own,
            sent,
            foreign,
            unsure: flags & UNSURE != 0,
            given_up: flags & GIVEN_UP != 0,
            grant,
        });
    }
    record.ledger.clear();
    for _ in 0..names {
        let [admitted, acknowledged, lost, published] = reader.words()?;
        record.ledger.push(Ledger {
            admitted,
            acknowledged,
            lost,
            published,
        });
    }
    record.usage.clear();
    for _ in 0..usage {
        let [name, hour] = reader.bytes()?;
        let [at, pending, in_flight, settling] = reader.words()?;
        record.usage.push(Entry {
            name: named(name)?,
            hour: hour != 0,
            at,
            pending,
            in_flight,
            settling,
        });
    }
    record.names.clear();
    for _ in 0..names {
        let (parent, text) = reader.name()?;
        let known = parent == Names::NO_PARENT || parent < names;
        if !known || !record.names.add(text, parent) {
            return Err(NotARecord);
        }
    }
    record.identity.clear();
    record.identity.extend_from_slice(reader.slice(identity)?);
    if reader.0.is_empty() {
        Ok(())
    } else {
        Err(NotARecord)
    }
}

/// The rest of the bytes.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn slice(&mut self, length: usize) -> Result<&'a [u8], NotARecord> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(NotARecord)?;
        self.0 = rest;
        Ok(taken)
    }

    fn name(&mut self) -> Result<(u8, &'a [u8]), NotARecord> {
        let [parent, length] = self.bytes()?;
        Ok((parent, self.slice(usize::from(length))?))
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], NotARecord> {
        let (taken, rest) = self.0.split_first_chunk::<N>().ok_or(NotARecord)?;
        self.0 = rest;
        Ok(*taken)
    }

    fn byte(&mut self) -> Result<u8, NotARecord> {
        let [byte] = self.bytes()?;
        Ok(byte)
    }

    fn grant(&mut self) -> Result<Grant, NotARecord> {
        let [until, urgent_at] = self.words()?;
        Ok(Grant {
            until,
            urgent_at,
            share: u16::from_le_bytes(self.bytes()?),
            gateways: u16::from_le_bytes(self.bytes()?),
        })
    }

    fn words<const N: usize>(&mut self) -> Result<[u64; N], NotARecord> {
        let (words, _) = self.0.as_chunks::<8>();
        let (words, _) = words.split_first_chunk::<N>().ok_or(NotARecord)?;
        let (_, rest) = self
            .0
            .split_at_checked(words.as_flattened().len())
            .ok_or(NotARecord)?;
        self.0 = rest;
        Ok(words.map(u64::from_le_bytes))
    }
}

/// Appends words in one copy: a record is written for every admitted request.
fn put_words<const N: usize>(out: &mut Vec<u8>, words: [u64; N]) {
    out.extend_from_slice(words.map(u64::to_le_bytes).as_flattened());
}

#[cfg(test)]
mod tests {
    use super::super::testing::{at, known, limit, metrics, usage};
    use super::*;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    /// A record with something in every section.
    pub(super) fn full() -> Record {
        let metrics = metrics(true);
        let mut record = Record::vacant();
        record.state = State::Live;
        record.digest = Digest([7; 16]);
        record.scope = 0x0123_4567_89ab_cdef;
        record.identity = b"a user's key".to_vec();
        let mut answer = known(vec![
            limit("hits", Period::Minute, 10, 1, at(0)),
            limit("ads", Period::Eternity, 7, 0, at(0)),
        ]);
        answer.hierarchy = vec![("hits".to_owned(), "orders".to_owned())];
        record.refresh(&answer, &metrics, at(0), 60_000, 1).unwrap();
        let both = usage(&metrics, &[("orders", 2), ("ads", 1)]);
        record.admit(&both, &metrics, at(0)).unwrap();
        record.dispatch(99, 1_234, 10, &metrics);
        record.admit(&both, &metrics, at(61_000)).unwrap();
        record.denial = Some(Denial::ApplicationNotActive);
        record.refresh_marked = true;
        record.keys = Keys::Listed(0x1234_5678_9abc_def0);
        record
    }

    fn bytes_of(record: &Record) -> Vec<u8> {
        let mut bytes = Vec::new();
        encode(record, &mut bytes);
        bytes
    }

    #[test]
    fn a_record_reads_as_it_was_written() {
        let bytes = bytes_of(&full());
        // Into memory that held another record.
        let mut read = full();
        read.identity = vec![b'x'; 200];
        decode(&bytes, &mut read).unwrap();
        assert_eq!(bytes_of(&read), bytes);
        assert_eq!(read.identity, b"a user's key");
        assert_eq!(read.denial, Some(Denial::ApplicationNotActive));
        assert_eq!(read.keys, Keys::Listed(0x1234_5678_9abc_def0));
        assert_eq!(read.limits().count(), 2);
        assert_eq!(digest_of(&bytes), Some(Digest([7; 16])));
    }

    #[test]
    fn a_grant_reads_as_it_was_written_and_costs_nothing_where_there_is_none() {
        let mut record = full();
        let without = bytes_of(&record).len();
        assert!(Sections::of(&bytes_of(&record)).is_some());
        let grant = Grant {
            until: 17,
            urgent_at: u64::MAX,
            share: 12_345,
            gateways: 16,
        };
        record.limits[1].grant = Some(grant);
        record.limits[1].unsure = true;
        record.limits[0].given_up = true;
        let bytes = bytes_of(&record);
        assert_eq!(bytes.len(), without + 20);
        assert!(Sections::of(&bytes).is_none());
        let mut read = Record::vacant();
        decode(&bytes, &mut read).unwrap();
        assert_eq!(read.limits[0].grant, None);
        assert_eq!(read.limits[1].grant, Some(grant));
        assert!(read.limits[1].unsure && !read.limits[1].given_up);
        assert!(read.limits[0].given_up && !read.limits[0].unsure);
        assert_eq!(bytes_of(&read), bytes);
    }

    #[test]
    fn a_usual_record_is_a_few_hundred_bytes() {
        assert!(bytes_of(&full()).len() < 500, "{}", bytes_of(&full()).len());
    }

    #[test]
    fn a_record_cut_short_or_with_more_behind_it_is_none() {
        let bytes = bytes_of(&full());
        let mut read = Record::vacant();
        for length in 0..bytes.len() {
            let cut = bytes.get(..length).unwrap();
            assert_eq!(decode(cut, &mut read), Err(NotARecord), "{length}");
        }
        let mut longer = bytes;
        longer.push(0);
        assert_eq!(decode(&longer, &mut read), Err(NotARecord));
    }

    #[test]
    fn another_layout_is_none() {
        let mut bytes = bytes_of(&full());
        bytes[3] = b'2';
        assert_eq!(decode(&bytes, &mut Record::vacant()), Err(NotARecord));
        assert_eq!(digest_of(&bytes), None);
    }
}

#[cfg(test)]
#[cfg(not(target_family = "wasm"))]
mod properties {
    use super::super::testing::{at, known, limit, metrics, usage};
    use super::*;
    use crate::authorization::{Accuracy, Outcome};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_decode_or_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = decode(&bytes, &mut Record::vacant());
        }

        /// A record with some bytes changed is refused, or is one that every step survives.
        #[test]
        fn a_damaged_record_traps_nobody(
            damage in proptest::collection::vec((0_usize..500, any::<u8>()), 1..8)
        ) {
            let mut bytes = Vec::new();
            encode(&super::tests::full(), &mut bytes);
            for (place, byte) in damage {
                if let Some(damaged) = bytes.get_mut(place) {
                    *damaged = byte;
                }
            }
            let mut record = Record::vacant();
            if decode(&bytes, &mut record).is_ok() {
                let metrics = metrics(true);
                let cost = usage(&metrics, &[("orders_vip", u64::MAX / 2), ("hits", 1)]);
                let _ = record.admit(&cost, &metrics, at(200_000));
                let _ = record.take_urgent();
                let _ = record.least_headroom(at(0));
                let strict = Accuracy::Strict {
                    gateways: 2,
                    settled_after: 0,
                };
                let answer = known(vec![limit("hits", Period::Minute, u64::MAX, 3, at(0))]);
                let _ = record.renew_grants(&answer, strict, at(0));
                let _ = record.admit(&cost, &metrics, at(900_000));
                record.settle(record.batch, Outcome::Returned, &metrics, at(0));
                record.dispatch(3, u64::MAX, 10, &metrics);
                record.settle(3, Outcome::Acknowledged, &metrics, at(1));
                record.give_up_unreportable(&metrics, at(1));
                record.publish(&metrics);
                let _ = record.may_give_way(at(1));
                encode(&record, &mut bytes);
            }
        }
    }
}
