//! The usual request, admitted on the bytes of its application's record.
//!
//! Apart from the record, which can do everything, because nearly every request needs
//! only this: the record is live, fresh and not denied, no limit is shared with other
//! gateways, no window has ended, and this minute has usage of the metric already. Then a
//! few words change, and the rest of the record is neither read nor written anew. Whatever is not so is left to
//! [`super::record::Record::admit`]; the two are held against each other by a property.

use super::codec::{self, DENIAL, DIGEST, FRESH_UNTIL, KEYS, LAST_USED, STATE, Sections};
use super::keys::Keys;
use super::record::LATE_READING_SECONDS;
use crate::credentials::Digest;
use crate::mapping::{MetricId, Metrics, Usage};
use crate::moment::Moment;

/// Metrics of a request that is still a usual one.
const MOST_METRICS: usize = 4;

/// A metric of the request, found in the record.
#[derive(Clone, Copy, Default)]
struct Charge {
    name: usize,
    delta: u64,
    /// The metric and its ancestors, a bit for each of the record's names.
    counts_for: u64,
    /// Where its pending usage of this minute stands.
    pending: usize,
}

/// Admits a request on the record of `digest` and counts it. `good` says whether the key
/// that is shown is good where the application has these keys. False: the bytes are as
/// they were, and somebody else must decide.
pub fn admit(
    bytes: &mut [u8],
    digest: Digest,
    usage: &Usage,
    metrics: &Metrics,
    now: Moment,
    good: impl FnOnce(Keys) -> bool,
) -> bool {
    let mut charges = [Charge::default(); MOST_METRICS];
    let Some(plan) = plan(bytes, digest, usage, metrics, now, &mut charges) else {
        return false;
    };
    good(plan.keys) && plan.carry_out(bytes, now).is_some()
}

/// What is to be changed, once everything has been found right.
struct Plan<'a> {
    keys: Keys,
    sections: Sections,
    charges: &'a [Charge],
}

/// Reads only. `None`: not a usual request.
fn plan<'a>(
    bytes: &[u8],
    digest: Digest,
    usage: &Usage,
    metrics: &Metrics,
    now: Moment,
    room: &'a mut [Charge; MOST_METRICS],
) -> Option<Plan<'a>> {
    let sections = Sections::of(bytes)?;
    let mine = byte(bytes, STATE)? == codec::LIVE
        && byte(bytes, DENIAL)? == 0
        && bytes.get(DIGEST..DIGEST.checked_add(16)?)? == digest.0
        && now.monotonic < word(bytes, FRESH_UNTIL)?;
    if !mine {
        return None;
    }
    let minute = minute_of(bytes, sections, now)?;
    let mut used = 0_usize;
    for (metric, delta) in usage.iter() {
        let name = find_name(bytes, sections, metrics.name(metric))?;
        *room.get_mut(used)? = Charge {
            name,
            delta,
            counts_for: counts_for(bytes, sections, name, metric, metrics)?,
            pending: pending(bytes, sections, name, minute)?,
        };
        used = used.checked_add(1)?;
    }
    let charges = room.get(..used)?;
    for at in sections.limits() {
        let limit = limit(bytes, at)?;
        let cost = charges
            .iter()
            .filter(|charge| charge.counts(limit))
            .try_fold(0_u64, |sum, charge| sum.checked_add(charge.delta))?;
        let known =
            word(limit, codec::LIMIT_OWN)?.checked_add(word(limit, codec::LIMIT_FOREIGN)?)?;
        if cost > 0 && known.checked_add(cost)? > word(limit, codec::LIMIT_MAXIMUM)? {
            return None;
        }
    }
    Some(Plan {
        keys: Keys::from_code(word(bytes, KEYS)?),
        sections,
        charges,
    })
}

impl Charge {
    /// Whether it uses up a limit, of which these are the bytes.
    fn counts(&self, limit: &[u8; codec::LIMIT]) -> bool {
        let [name, ..] = *limit;
        self.counts_for.checked_shr(u32::from(name)).unwrap_or(0) & 1 != 0
    }
}

impl Plan<'_> {
    fn carry_out(&self, bytes: &mut [u8], now: Moment) -> Option<()> {
        for charge in self.charges {
            for at in self.sections.limits() {
                if charge.counts(limit(bytes, at)?) {
                    add(bytes, at.checked_add(codec::LIMIT_OWN)?, charge.delta)?;
                }
            }
            add(bytes, self.sections.admitted(charge.name)?, charge.delta)?;
            add(bytes, charge.pending, charge.delta)?;
        }
        *bytes.get_mut(LAST_USED..)?.first_chunk_mut()? = now.monotonic.to_le_bytes();
        Some(())
    }
}

/// The place of a name among the record's.
fn find_name(bytes: &[u8], sections: Sections, text: &str) -> Option<usize> {
    sections
        .names(bytes)
        .position(|(_, name)| name == text.as_bytes())
}

/// The metric and all its ancestors, by the record's hierarchy and the service's.
fn counts_for(
    bytes: &[u8],
    sections: Sections,
    name: usize,
    metric: MetricId,
    metrics: &Metrics,
) -> Option<u64> {
    // Without limits nobody asks.
    if sections.has_no_limits() {
        return Some(0);
    }
    let mut set = with_ancestors(bytes, sections, name, 0)?;
    for ancestor in metrics.ancestors(metric) {
        if let Some(name) = find_name(bytes, sections, metrics.name(*ancestor)) {
            set = with_ancestors(bytes, sections, name, set)?;
        }
    }
    Some(set)
}

/// Adds a name and its ancestors to a set; those of a name that is in it are, too.
fn with_ancestors(bytes: &[u8], sections: Sections, name: usize, mut set: u64) -> Option<u64> {
    let mut next = name;
    loop {
        let bit = 1_u64.checked_shl(u32::try_from(next).ok()?)?;
        if set & bit != 0 {
            return Some(set);
        }
        set |= bit;
        let (parent, _) = sections.names(bytes).nth(next)?;
        if parent == codec::NO_PARENT {
            return Some(set);
        }
        next = usize::from(parent);
    }
}

/// As [`super::record::Record`] has it: the minute that usage of now is reported at. `None` if
/// the window of a limit has ended.
fn minute_of(bytes: &[u8], sections: Sections, now: Moment) -> Option<u64> {
    let seconds = now.seconds();
    let latest = seconds.saturating_add(LATE_READING_SECONDS);
    let mut minute = now.minute();
    for at in sections.limits() {
        let limit = limit(bytes, at)?;
        if word(limit, codec::LIMIT_END)? <= seconds {
            return None;
        }
        let start = word(limit, codec::LIMIT_START)?;
        if start <= latest {
            minute = minute.max(start);
        }
    }
    Some(minute)
}

/// Where the pending usage of a metric in this minute stands, if there is any: the first
/// of a minute makes a new entry, and the first after a flush marks the record.
fn pending(bytes: &[u8], sections: Sections, name: usize, minute: u64) -> Option<usize> {
    let pending = sections.usage().find_map(|at| {
        let entry: &[u8; codec::USAGE] = bytes.get(at..)?.first_chunk()?;
        let fits = usize::from(byte(entry, 0)?) == name
            && byte(entry, codec::USAGE_HOUR)? == 0
            && word(entry, codec::USAGE_AT)? == minute;
        fits.then_some(at.checked_add(codec::USAGE_PENDING)?)
    })?;
    (word(bytes, pending)? > 0).then_some(pending)
}

/// The bytes of the limit that stands here.
fn limit(bytes: &[u8], at: usize) -> Option<&[u8; codec::LIMIT]> {
    bytes.get(at..)?.first_chunk()
}

fn byte(bytes: &[u8], at: usize) -> Option<u8> {
    bytes.get(at).copied()
}

fn word(bytes: &[u8], at: usize) -> Option<u64> {
    bytes
        .get(at..)?
        .first_chunk()
        .copied()
        .map(u64::from_le_bytes)
}

fn add(bytes: &mut [u8], at: usize, delta: u64) -> Option<()> {
    let word: &mut [u8; 8] = bytes.get_mut(at..)?.first_chunk_mut()?;
    *word = u64::from_le_bytes(*word)
        .saturating_add(delta)
        .to_le_bytes();
    Some(())
}

#[cfg(all(test, not(target_family = "wasm")))]
mod properties {
    use super::super::record::{Record, State};
    use super::super::testing::{at, known, limit, metrics, usage};
    use super::*;
    use crate::authorization::{Grant, Period};
    use proptest::prelude::*;

    fn bytes_of(record: &Record) -> Vec<u8> {
        let mut bytes = Vec::new();
        codec::encode(record, &mut bytes);
        bytes
    }

    /// One that no request of these tests reaches, so that the long way admits, too.
    const GRANT: Grant = Grant {
        until: u64::MAX,
        urgent_at: u64::MAX,
        share: 1,
        gateways: 2,
    };

    fn record(with_limits: bool, hierarchy: bool, maximum: u64) -> Record {
        let mut record = Record::vacant();
        record.state = State::Live;
        record.digest = Digest([7; 16]);
        record.identity = b"a user's key".to_vec();
        let mut answer = known(if with_limits {
            vec![
                limit("hits", Period::Minute, maximum, 1, at(0)),
                limit("ads", Period::Eternity, 7, 0, at(0)),
                limit("hits", Period::Day, maximum.saturating_add(3), 2, at(0)),
            ]
        } else {
            Vec::new()
        });
        if hierarchy {
            answer.hierarchy = vec![("hits".to_owned(), "orders".to_owned())];
        }
        let taken = record.refresh(&answer, &metrics(hierarchy), at(0), 200_000, 1);
        assert!(taken.is_ok());
        record
    }

    /// Some request of the metrics that the testing table has.
    fn cost() -> impl Strategy<Value = Vec<(&'static str, u64)>> {
        proptest::collection::vec(
            (
                prop_oneof![
                    Just("hits"),
                    Just("orders"),
                    Just("orders_vip"),
                    Just("ads")
                ],
                1_u64..4,
            ),
            1..4,
        )
    }

    proptest! {
        /// What is admitted on the bytes is what the record would have admitted, to the byte.
        #[test]
        fn the_short_way_leads_where_the_long_way_leads(
            with_limits: bool,
            hierarchy: bool,
            maximum in 0_u64..40,
            granted in 0_usize..3,
            requests in proptest::collection::vec((cost(), -8_000_i64..20_000, 0..14), 1..40),
        ) {
            let metrics = metrics(hierarchy);
            let mut record = record(with_limits, hierarchy, maximum);
            let mut now = 0_u64;
            for (cost, later, event) in requests {
                // A worker that read its clock earlier may come later.
                now = now.saturating_add_signed(later);
                match event {
                    0 => { record.dispatch(now + 1, u64::MAX, 9, &metrics); }
                    1 => { record.denial = Some(crate::service_management::Denial::ApplicationNotActive); }
                    2 => record.limits.iter_mut().for_each(|limit| limit.unsure = true),
                    3 => if let Some(limit) = record.limits.get_mut(granted) {
                        limit.grant = Some(GRANT);
                    },
                    4 => record.limits.iter_mut().for_each(|limit| limit.grant = None),
                    _ => record.denial = None,
                }
                let cost = usage(&metrics, &cost);
                let before = bytes_of(&record);
                let mut bytes = before.clone();
                let admitted = admit(&mut bytes, record.digest, &cost, &metrics, at(now), |_| true);
                let fresh = record.freshness(at(now)) == super::super::record::Freshness::Fresh;
                let had_pending = record.has_pending();
                let shared = record.limits.iter().any(|limit| limit.grant.is_some());
                let long = record.admit(&cost, &metrics, at(now));
                if admitted {
                    prop_assert!(fresh && had_pending && !shared);
                    prop_assert_eq!(long, Ok(()));
                    prop_assert_eq!(bytes, bytes_of(&record));
                } else {
                    prop_assert_eq!(bytes, before);
                }
            }
        }

        #[test]
        fn any_bytes_are_survived(
            damage in proptest::collection::vec((0_usize..500, any::<u8>()), 1..8),
            length in 0_usize..600,
        ) {
            let mut record = record(true, true, 100);
            let metrics = metrics(true);
            let cost = usage(&metrics, &[("orders_vip", u64::MAX / 2), ("hits", 1)]);
            record.admit(&usage(&metrics, &[("orders_vip", 1), ("hits", 1)]), &metrics, at(0)).unwrap();
            let mut bytes = bytes_of(&record);
            for (place, byte) in damage {
                if let Some(damaged) = bytes.get_mut(place) {
                    *damaged = byte;
                }
            }
            bytes.truncate(length);
            let _ = admit(&mut bytes, record.digest, &cost, &metrics, at(0), |_| true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::{Record, State};
    use super::super::testing::{at, known, limit, metrics, usage};
    use super::*;
    use crate::authorization::{Accuracy, Period};
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    #[test]
    fn the_second_request_of_a_minute_is_a_usual_one_and_the_first_of_the_next_is_not() {
        let metrics = metrics(true);
        let mut record = Record::vacant();
        record.state = State::Live;
        let answer = known(vec![limit("hits", Period::Day, 10, 0, at(0))]);
        record
            .refresh(&answer, &metrics, at(0), 600_000, 1)
            .unwrap();
        let cost = usage(&metrics, &[("orders", 2)]);
        let mut bytes = Vec::new();
        codec::encode(&record, &mut bytes);
        assert!(!admit(
            &mut bytes,
            record.digest,
            &cost,
            &metrics,
            at(0),
            |_| true
        ));
        record.admit(&cost, &metrics, at(0)).unwrap();
        codec::encode(&record, &mut bytes);
        assert!(admit(
            &mut bytes,
            record.digest,
            &cost,
            &metrics,
            at(1_000),
            |_| true
        ));
        assert!(!admit(
            &mut bytes,
            Digest([1; 16]),
            &cost,
            &metrics,
            at(1_000),
            |_| true
        ));
        assert!(!admit(
            &mut bytes,
            record.digest,
            &cost,
            &metrics,
            at(61_000),
            |_| true
        ));
    }

    #[test]
    fn an_unsure_limit_is_usual_and_one_that_is_shared_is_not() {
        let metrics = metrics(true);
        let mut record = Record::vacant();
        record.state = State::Live;
        let answer = known(vec![
            limit("hits", Period::Day, 10, 0, at(0)),
            limit("hits", Period::Month, 10, 0, at(0)),
        ]);
        record
            .refresh(&answer, &metrics, at(0), 600_000, 1)
            .unwrap();
        let cost = usage(&metrics, &[("orders", 2)]);
        record.admit(&cost, &metrics, at(0)).unwrap();
        let admits = |record: &Record| {
            let mut bytes = Vec::new();
            codec::encode(record, &mut bytes);
            admit(&mut bytes, record.digest, &cost, &metrics, at(1), |_| true)
        };
        record.limits[1].unsure = true;
        assert!(admits(&record));
        let eager = Accuracy::Eager { gateways: 2 };
        record.renew_grants(&answer, eager, at(0));
        assert!(!admits(&record));
        record.limits[0].grant = None;
        assert!(!admits(&record));
    }
}
