//! Keeping the answers of service management young behind the traffic's back.
//!
//! Apart from the decision because only a service's leader does it, on ticks: an
//! application that is in use is asked about again before its answer goes stale, one
//! that nobody uses never.

use super::applications::Applications;
use super::marks::Mark;
use super::record::{Freshness, Record};
use super::table::{Change, Slot};
use crate::credentials::{Digest, Kind};
use crate::moment::Moment;
use crate::shared_data::SharedData;
use std::collections::{HashSet, VecDeque};

/// Questions in flight at most, of one service.
const MOST_IN_FLIGHT: usize = 16;
/// Pause after a failure, doubled at each further one up to the longest.
const FIRST_PAUSE: u64 = 1_000;
const LONGEST_PAUSE: u64 = 30_000;

/// An application to ask about, by the slot its record stands in. `Debug` does not show
/// the credential.
#[derive(Clone, PartialEq, Eq)]
pub struct Question {
    /// Where the answer goes.
    pub slot: Slot,
    /// Whose record must still be there then.
    pub digest: Digest,
    /// What kind of credential it is.
    pub kind: Kind,
    /// The credential.
    pub value: Vec<u8>,
}

/// The refreshes of one service, on the VM that leads it.
#[derive(Debug)]
pub struct Refresher {
    scope: u64,
    /// Every slot that waits or is asked about, so that none stands here twice.
    listed: HashSet<Slot>,
    waiting: VecDeque<Slot>,
    in_flight: usize,
    failures: u32,
    not_before: u64,
}

impl Refresher {
    /// No refresh yet.
    #[must_use]
    pub fn new(scope: u64) -> Self {
        Self {
            scope,
            listed: HashSet::new(),
            waiting: VecDeque::new(),
            in_flight: 0,
            failures: 0,
            not_before: 0,
        }
    }

    /// Puts a slot on the list, unless it stands there.
    pub fn add(&mut self, slot: Slot) {
        if self.listed.insert(slot) {
            self.waiting.push_back(slot);
        }
    }

    /// Puts a slot before all others, unless it stands on the list.
    pub fn add_first(&mut self, slot: Slot) {
        if self.listed.insert(slot) {
            self.waiting.push_front(slot);
        }
    }

    /// Puts the slots on the list that requests found stale.
    pub fn take_marks(&mut self, data: &impl SharedData, applications: &Applications) {
        let marks = applications.marks(Mark::Stale, self.scope);
        for segment in 0..marks.segments() {
            for slot in marks.take(data, segment) {
                self.add(slot);
            }
        }
    }

    /// What to ask now: as much as may be in flight. Called on ticks, and after an answer
    /// so that the next question does not wait for one.
    pub fn next(
        &mut self,
        data: &impl SharedData,
        applications: &mut Applications,
        now: Moment,
    ) -> Vec<Question> {
        let mut questions = Vec::new();
        if now.monotonic < self.not_before {
            return questions;
        }
        while self.in_flight < MOST_IN_FLIGHT
            && let Some(slot) = self.waiting.pop_front()
        {
            let scope = self.scope;
            let question = applications.table().change_slot(data, slot, |record| {
                (record.scope == scope).then(|| {
                    Change::Keep(Question {
                        slot,
                        digest: record.digest,
                        kind: record.kind,
                        value: record.identity.clone(),
                    })
                })
            });
            if let Ok(Some(question)) = question {
                self.in_flight = self.in_flight.saturating_add(1);
                questions.push(question);
            } else {
                self.listed.remove(&slot);
            }
        }
        questions
    }

    /// A question was answered, whatever the answer says.
    pub fn answered(&mut self, slot: Slot) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.listed.remove(&slot);
        self.failures = 0;
        self.not_before = 0;
    }

    /// A question was not answered: it is asked again, after a pause that grows. `jitter`
    /// is any random number; it spreads the pauses of many gateways.
    pub fn failed(&mut self, slot: Slot, now: Moment, jitter: u64) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.waiting.push_back(slot);
        if now.monotonic < self.not_before {
            // One of several that failed together: they are one failure.
            return;
        }
        self.not_before = now.monotonic.saturating_add(backoff(
            self.failures,
            FIRST_PAUSE,
            LONGEST_PAUSE,
            jitter,
        ));
        self.failures = self.failures.saturating_add(1);
    }
}

/// A pause in milliseconds: `first` doubled with each failure up to `longest`, of which
/// the upper half is random.
#[must_use]
pub fn backoff(failures: u32, first: u64, longest: u64, jitter: u64) -> u64 {
    let full = first
        .saturating_mul(1_u64.checked_shl(failures).unwrap_or(u64::MAX))
        .min(longest);
    let half = full / 2;
    half.saturating_add(jitter.checked_rem(half.max(1)).unwrap_or(0))
}

impl Record {
    /// Whether the answer it holds should be asked for again now: it will be stale within
    /// `ahead` milliseconds or is, and somebody needs it. That is an application in use,
    /// which was admitted within as many milliseconds; a request that found it stale; or
    /// whoever needs the slot next, if all that holds it is that reported usage has not
    /// been seen in an answer yet.
    #[must_use]
    pub fn wants_refresh(&self, now: Moment, ahead: u64) -> bool {
        let soon = Moment {
            monotonic: now.monotonic.saturating_add(ahead),
            ..now
        };
        let in_use = self.last_used >= self.fetched_at
            && self.last_used.saturating_add(ahead) >= now.monotonic;
        self.freshness(soon) != Freshness::Fresh
            && (in_use || self.refresh_marked || self.wants_confirmation(now))
    }
}
