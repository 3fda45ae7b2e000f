//! Applications near a limit that other gateways use, too: report what they used, wait
//! until the backend has counted it, look again.
//!
//! Apart from the flush and the refresh, which it only hurries: it says which slots are due
//! for either now, within a budget of calls. Only a service's leader does it, on ticks.
//! What stands here may be lost: whoever wants to be looked at is marked again.

use crate::authorization::{
    Accuracy, Applications, Change, LONGEST_SETTLING, Mark, Record, SHORTEST_SETTLING, Slot,
};
use crate::moment::Moment;
use crate::shared_data::SharedData;
use std::collections::{HashMap, HashSet};

/// Between two calls, in the long run (milliseconds): less than three a second.
const MILLISECONDS_OF_A_CALL: u64 = 360;
/// Calls saved up at most.
const MOST_SAVED: u64 = 1;
/// A report was seen to be missing at some age: so many times that age is waited from then on.
/// Most looks cannot tell, because what the others report hides what is missing.
const MARGIN: u64 = 3;
/// So much of that age is forgotten with every look that misses nothing: one part in so many.
const FADING: u64 = 256;
/// Under `eager`, how soon after it the counts are looked at, settled or not.
const EAGER_SETTLING: u64 = 200;
/// Slots that are followed at a time. Others are marked again when they are refused.
const MOST_FOLLOWED: usize = 2_000;
/// When somebody else asks about a slot, or has asked, it is begun again after so long.
const ELSEWHERE: u64 = 1_000;
/// Who knows nothing of the others for so long looks before it reports: that need not wait for
/// a report to settle. Not where a window has just begun: then there is nothing to see yet.
const LONG_UNSEEN: u64 = 10_000;
/// A step of a slot that takes longer than this is begun again (milliseconds).
const LONGEST_STEP: u64 = 15_000;

/// Between the ticks that this needs (milliseconds). When idle, a tick of 100 ms instead of
/// a second costs 0.2% of a core in a gateway of four workers.
pub const TICK_MILLISECONDS: u32 = 100;

/// The calls that may be made for the sake of urgency, by all services of one VM.
#[derive(Clone, Copy, Debug, Default)]
pub struct UrgentCalls {
    /// When so much is saved that the bucket is full (monotonic milliseconds).
    full_at: u64,
}

impl UrgentCalls {
    /// Takes a call out, if one is in.
    pub const fn take(&mut self, now: Moment) -> bool {
        let full_at = if self.full_at > now.monotonic {
            self.full_at
        } else {
            now.monotonic
        };
        let after = full_at.saturating_add(MILLISECONDS_OF_A_CALL);
        let longest = MILLISECONDS_OF_A_CALL.saturating_mul(MOST_SAVED);
        if after > now.monotonic.saturating_add(longest) {
            return false;
        }
        self.full_at = after;
        true
    }
}

/// Where a slot stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// To be reported, if anything is pending.
    Noticed,
    /// To be looked at before anything is reported.
    Unseen {
        /// Since when.
        since: u64,
    },
    /// Reported, or had nothing to report: to be looked at once that has settled.
    Reported {
        /// When it was handed to the flush.
        since: u64,
    },
    /// The backend is asked.
    Asked {
        /// When.
        since: u64,
    },
    /// Somebody else asks or has asked, and the answer may not come here.
    Elsewhere {
        /// Since when.
        since: u64,
    },
}

/// What is due now.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Due {
    /// Slots to report at once, in one report.
    pub report: Vec<Slot>,
    /// Slots to ask about at once: under `strict` those whose last look is the oldest first, under
    /// `eager` those with the least left.
    pub ask: Vec<Slot>,
}

/// See the module's description. For one service.
#[derive(Debug)]
pub struct Urgent {
    scope: u64,
    strict: bool,
    followed: HashMap<Slot, Stage>,
    /// The segment of marks that is looked at next whether or not marks are noted for it.
    turn: u32,
    /// The age of the oldest acknowledged report that was seen to be missing in the
    /// counts; it fades.
    late: u64,
    reported_last: bool,
}

/// What a step needs to know of a record.
struct Seen {
    left: u64,
    pending: bool,
    in_flight: bool,
    acknowledged_at: u64,
    known_until: u64,
}

impl Urgent {
    /// Follows nobody yet. `None` where no limit is shared.
    #[must_use]
    pub fn wanted(scope: u64, accuracy: Accuracy) -> Option<Self> {
        let strict = match accuracy {
            Accuracy::Exact => return None,
            Accuracy::Eager { .. } => false,
            Accuracy::Strict { .. } => true,
        };
        Some(Self {
            scope,
            strict,
            followed: HashMap::new(),
            turn: 0,
            late: 0,
            reported_last: false,
        })
    }

    /// How long after its acknowledgement a report is in the backend's counts, as far as
    /// is known (milliseconds).
    #[must_use]
    pub fn settled_after(&self) -> u64 {
        if self.strict {
            self.late
                .saturating_mul(MARGIN)
                .clamp(SHORTEST_SETTLING, LONGEST_SETTLING)
        } else {
            EAGER_SETTLING
        }
    }

    /// How an answer is to be taken in now.
    #[must_use]
    pub fn accuracy(&self, configured: Accuracy) -> Accuracy {
        match configured {
            Accuracy::Strict { gateways, .. } => Accuracy::Strict {
                gateways,
                settled_after: self.settled_after(),
            },
            other => other,
        }
    }

    /// What is due now. Called on ticks.
    pub fn next(
        &mut self,
        data: &impl SharedData,
        applications: &mut Applications,
        now: Moment,
        most_reported: usize,
        calls: &mut UrgentCalls,
    ) -> Due {
        self.take_marks(data, applications);
        let settled_after = self.settled_after();
        let mut report = Vec::new();
        let mut ask = Vec::new();
        let scope = self.scope;
        self.followed.retain(|slot, stage| {
            let seen = applications.table().change_slot(data, *slot, |record| {
                (record.scope == scope).then(|| Change::Keep(see(record, now)))
            });
            let Ok(Some(Some(seen))) = seen else {
                return false;
            };
            let settled = !seen.in_flight
                && now.monotonic > seen.acknowledged_at.saturating_add(settled_after);
            let unseen = now.monotonic > seen.known_until.saturating_add(LONG_UNSEEN);
            match *stage {
                Stage::Noticed if seen.in_flight => {}
                Stage::Noticed if self.strict && settled && unseen => {
                    *stage = Stage::Unseen {
                        since: now.monotonic,
                    };
                }
                Stage::Noticed if seen.pending => report.push((seen.left, *slot)),
                Stage::Noticed => {
                    *stage = Stage::Reported {
                        since: now.monotonic,
                    };
                }
                Stage::Reported { since } | Stage::Asked { since } | Stage::Unseen { since }
                    if since.saturating_add(LONGEST_STEP) < now.monotonic =>
                {
                    *stage = Stage::Noticed;
                }
                Stage::Elsewhere { since } if since.saturating_add(ELSEWHERE) < now.monotonic => {
                    *stage = Stage::Noticed;
                }
                Stage::Reported { .. }
                | Stage::Asked { .. }
                | Stage::Unseen { .. }
                | Stage::Elsewhere { .. } => {}
            }
            if settled && matches!(stage, Stage::Reported { .. } | Stage::Unseen { .. }) {
                // Under `strict` nobody admits more than was granted, however late a look is; so nobody
                // should wait for most of a window because others have less left. Under `eager`
                // a late look is overrun: with three applications at four times their limit and
                // twenty just below it, on four gateways, 55% of it instead of 13%.
                let turn = if self.strict {
                    seen.known_until
                } else {
                    seen.left
                };
                ask.push((turn, *slot));
            }
            true
        });
        report.sort_unstable();
        ask.sort_unstable();
        let mut due = Due::default();
        let mut asks = ask.into_iter();
        // One report serves many applications; but looks must not wait for ever.
        let mut may_report = !report.is_empty() && (!self.reported_last || asks.len() == 0);
        loop {
            if may_report {
                if !calls.take(now) {
                    break;
                }
                may_report = false;
                self.reported_last = true;
                due.report = report
                    .drain(..report.len().min(most_reported))
                    .map(|(_, slot)| slot)
                    .collect();
                continue;
            }
            let Some((_, slot)) = asks.as_slice().first().copied() else {
                break;
            };
            if !calls.take(now) {
                break;
            }
            self.reported_last = false;
            asks.next();
            due.ask.push(slot);
        }
        for slot in &due.report {
            self.followed.insert(
                *slot,
                Stage::Reported {
                    since: now.monotonic,
                },
            );
        }
        for slot in &due.ask {
            self.followed.insert(
                *slot,
                Stage::Asked {
                    since: now.monotonic,
                },
            );
        }
        due
    }

    /// How many slots are followed: each is looked at on each tick.
    #[must_use]
    pub fn following(&self) -> usize {
        self.followed.len()
    }

    fn take_marks(&mut self, data: &impl SharedData, applications: &Applications) {
        let marks = applications.marks(Mark::Urgent, self.scope);
        let mut slots = marks.take(data, self.turn);
        self.turn = self.turn.saturating_add(1);
        if self.turn >= marks.segments() {
            self.turn = 0;
        }
        let mut from = 0;
        while let Some(segment) = marks.next_segment(data, from) {
            slots.extend(marks.take(data, segment));
            from = segment.saturating_add(1);
        }
        for slot in slots {
            if self.followed.len() < MOST_FOLLOWED {
                self.followed.entry(slot).or_insert(Stage::Noticed);
            }
        }
    }

    /// The slots whose usage must not be reported now: it would put off the moment at which
    /// the counts can be relied on.
    #[must_use]
    pub fn held(&self) -> HashSet<Slot> {
        let reported = |(_, stage): &(&Slot, &Stage)| {
            matches!(stage, Stage::Reported { .. } | Stage::Asked { .. })
        };
        let slots = self.followed.iter().filter(reported);
        if self.strict {
            slots.map(|(slot, _)| *slot).collect()
        } else {
            HashSet::new()
        }
    }

    /// A slot that was due to be asked about was not, because somebody else asks about it or has
    /// asked.
    pub fn left_to_another(&mut self, slot: Slot, now: Moment) {
        if let Some(stage) = self.followed.get_mut(&slot) {
            *stage = Stage::Elsewhere {
                since: now.monotonic,
            };
        }
    }

    /// The backend has answered about a slot, whoever asked. `late`: its counts did not have
    /// an acknowledged report in them which was so old (milliseconds).
    pub fn answered(&mut self, slot: Slot, late: Option<u64>, now: Moment) {
        let Some(age) = late.filter(|_| self.strict) else {
            self.late = self.late.saturating_sub(self.late / FADING);
            self.followed.remove(&slot);
            return;
        };
        self.late = self.late.max(age);
        if let Some(stage) = self.followed.get_mut(&slot) {
            *stage = Stage::Reported {
                since: now.monotonic,
            };
        }
    }
}

fn see(record: &Record, now: Moment) -> Option<Seen> {
    Some(Seen {
        left: record.least_headroom(now)?,
        pending: record.has_pending(),
        in_flight: record.batch != 0,
        acknowledged_at: record.acknowledged_at,
        known_until: record.known_until(now),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authorization::testing::{
        ALICE, STRICT, at as moment, known, limit, metrics, usage,
    };
    use crate::authorization::{Identity, Lifetimes, Period};
    use crate::credentials::Digest;
    use crate::moment::testing::at;
    use crate::shared_data::memory::Memory;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    #[test]
    fn a_budget_gives_less_than_three_calls_a_second_and_saves_up_no_more_than_one() {
        let mut urgent = UrgentCalls::default();
        let calls = (0..10_000).filter(|now| urgent.take(at(100_000 + now)));
        assert!((27..30).contains(&calls.count()));
        assert!(urgent.take(at(1_000_000)));
        assert!(!urgent.take(at(1_000_000)));
    }

    #[test]
    fn a_gateway_alone_follows_nobody() {
        assert!(Urgent::wanted(1, Accuracy::Exact).is_none());
    }

    /// One application with a limit of 100 hits a day, 50 of which are used, and its slot.
    fn known_one() -> (Memory, Applications, Slot) {
        let data = Memory::default();
        let mut applications = Applications::open(&data, 8);
        let lifetimes = Lifetimes {
            ttl: 60_000,
            negative_ttl: 1_000,
            stale_if_error: 60_000,
            accuracy: STRICT,
        };
        let plan = known(vec![limit("hits", Period::Day, 100, 50, moment(0))]);
        applications
            .learn(&data, &ALICE, &plan, &metrics(false), moment(0), &lifetimes)
            .unwrap();
        let slot = occupied(&data, &mut applications).first().copied();
        (data, applications, slot.unwrap())
    }

    fn occupied(data: &Memory, applications: &mut Applications) -> Vec<Slot> {
        let all = (0..applications.slots()).map(Slot);
        all.filter(|slot| {
            let found = applications
                .table()
                .change_slot(data, *slot, |_| Some(Change::Keep(())));
            found == Ok(Some(()))
        })
        .collect()
    }

    /// Which of two is asked about first: `Some(true)` if it is the one that was looked at longer
    /// ago, of whose limit more is left.
    fn the_older_look_goes_first(accuracy: Accuracy) -> Option<bool> {
        const BOB: Identity<'_> = Identity {
            digest: Digest([2; 16]),
            value: b"bob",
            ..ALICE
        };
        let data = Memory::default();
        let mut applications = Applications::open(&data, 8);
        let lifetimes = Lifetimes {
            ttl: 60_000,
            negative_ttl: 1_000,
            stale_if_error: 60_000,
            accuracy,
        };
        let mut learn = |identity, used, looked| {
            let plan = known(vec![limit("hits", Period::Day, 100, used, moment(0))]);
            let at = moment(looked);
            applications
                .learn(&data, identity, &plan, &metrics(false), at, &lifetimes)
                .unwrap();
            occupied(&data, &mut applications)
        };
        let older = learn(&ALICE, 50, 0);
        let both = learn(&BOB, 90, 1_000);
        assert_eq!((older.len(), both.len()), (1, 2));
        let now = moment(5_000);
        let mut urgent = Urgent::wanted(ALICE.scope, accuracy).unwrap();
        let since = now.monotonic;
        urgent
            .followed
            .extend(both.iter().map(|slot| (*slot, Stage::Reported { since })));
        let mut calls = UrgentCalls::default();
        let due = urgent.next(&data, &mut applications, now, 9, &mut calls);
        let [first] = due.ask.as_slice() else {
            return None;
        };
        Some(older.contains(first))
    }

    #[test]
    fn under_strict_the_oldest_look_goes_before_less_that_is_left() {
        assert_eq!(the_older_look_goes_first(STRICT), Some(true));
    }

    #[test]
    fn under_eager_the_least_left_goes_before_an_older_look() {
        let eager = Accuracy::Eager { gateways: 4 };
        assert_eq!(the_older_look_goes_first(eager), Some(false));
    }

    #[test]
    fn a_slot_that_another_asks_about_is_not_held_and_is_begun_again_after_a_second() {
        let (data, mut applications, slot) = known_one();
        let mut urgent = Urgent::wanted(ALICE.scope, STRICT).unwrap();
        let asked = Stage::Asked {
            since: moment(5_000).monotonic,
        };
        urgent.followed.insert(slot, asked);
        assert!(urgent.held().contains(&slot));
        urgent.left_to_another(slot, moment(5_000));
        assert!(urgent.held().is_empty());
        let mut asks = |milliseconds| {
            let mut calls = UrgentCalls::default();
            let now = moment(milliseconds);
            let due = urgent.next(&data, &mut applications, now, 9, &mut calls);
            due.ask == [slot]
        };
        // Noticed, and with nothing to report it is then asked about.
        let asked: Vec<_> = [5_500, 6_000, 6_100, 6_200].map(&mut asks).to_vec();
        assert_eq!(asked.iter().filter(|asks| **asks).count(), 1, "{asked:?}");
        assert!(!asked[0] && !asked[1], "{asked:?}");
    }

    #[test]
    fn who_has_not_looked_for_long_looks_before_it_reports_and_keeps_nothing_from_being_reported() {
        for (now, asks) in [(5_000, false), (30_000, true)] {
            let (data, mut applications, slot) = known_one();
            let metrics = metrics(false);
            let hits = usage(&metrics, &[("hits", 7)]);
            applications
                .decide(&data, &ALICE, &hits, &metrics, moment(now))
                .unwrap();
            let mut urgent = Urgent::wanted(ALICE.scope, STRICT).unwrap();
            let mut next = |milliseconds, urgent: &mut Urgent, calls: &mut UrgentCalls| {
                let now = moment(now + milliseconds);
                urgent.next(&data, &mut applications, now, 9, calls)
            };
            // Nothing may be asked yet.
            let mut spent = UrgentCalls { full_at: u64::MAX };
            assert_eq!(next(0, &mut urgent, &mut spent), Due::default());
            assert!(urgent.held().is_empty());
            let mut calls = UrgentCalls::default();
            let due = next(100, &mut urgent, &mut calls);
            let slots = vec![slot];
            let expected = match asks {
                true => (vec![], slots),
                false => (slots, vec![]),
            };
            assert_eq!((due.report, due.ask), expected, "{now}");
        }
    }

    #[test]
    fn a_report_seen_to_be_late_is_waited_for_longer_within_bounds() {
        let mut urgent = Urgent::wanted(ALICE.scope, STRICT).unwrap();
        assert_eq!(urgent.settled_after(), SHORTEST_SETTLING);
        urgent.answered(Slot(1), Some(1_100), at(0));
        assert_eq!(urgent.settled_after(), 3_300);
        urgent.answered(Slot(1), Some(9_000), at(0));
        assert_eq!(urgent.settled_after(), LONGEST_SETTLING);
        for _ in 0..2_000 {
            urgent.answered(Slot(1), None, at(0));
        }
        assert_eq!(urgent.settled_after(), SHORTEST_SETTLING);
    }
}
