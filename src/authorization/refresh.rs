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
use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};

/// Questions in flight at most, of one service.
const MOST_IN_FLIGHT: usize = 16;
/// While so many slots wait, no marks are taken: they keep, and a tick holds up its worker.
const MOST_WAITING: usize = 1_000;
/// Questions after the first until an application is known again whose key has gone: without
/// one, and with one that is listed; and once more, for the two need not agree.
const MOST_ATTEMPTS: u8 = 3;
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
    /// The key to show, if the application is known by an `app_id` and has one.
    pub app_key: Option<String>,
    /// How many questions led to this one.
    pub attempt: u8,
}

impl Question {
    /// About the application whose record stands in this slot, if there is one that fits.
    pub fn about(
        data: &impl SharedData,
        applications: &mut Applications,
        slot: Slot,
        fits: impl Fn(&Record) -> bool,
    ) -> Option<Self> {
        let question = applications.table().change_slot(data, slot, |record| {
            fits(record).then(|| {
                let question = Self {
                    slot,
                    digest: record.digest,
                    kind: record.kind,
                    value: record.identity.clone(),
                    app_key: None,
                    attempt: 0,
                };
                Change::Keep((question, record.keys))
            })
        });
        let (mut question, keys) = question.ok()??;
        question.app_key = applications.accepted_key(data, slot, question.digest, keys);
        Some(question)
    }

    /// What to ask instead when the key was refused, which says nothing of the application.
    ///
    /// Without a key, the refusal lists the application's keys (`listed`, of
    /// [`crate::service_management::listed_keys`]), and with one of these it is said what the
    /// application may do. `None` if that leads nowhere.
    #[must_use]
    pub fn after_wrong_key(self, listed: Option<Vec<String>>) -> Option<Self> {
        let app_key = match (&self.app_key, listed) {
            (Some(_), _) => None,
            (None, listed) => Some(listed?.into_iter().next()?),
        };
        (self.attempt < MOST_ATTEMPTS).then(|| Self {
            app_key,
            attempt: self.attempt.saturating_add(1),
            ..self
        })
    }
}

/// The refreshes of one service, on the VM that leads it.
#[derive(Debug)]
pub struct Refresher {
    scope: u64,
    /// Every slot that waits or is asked about, so that none stands here twice.
    listed: HashMap<Slot, Listed>,
    waiting: VecDeque<Slot>,
    /// Where to go on with the segments of marks.
    segment: u32,
    /// The segment that is looked at next whether or not marks are noted for it.
    turn: u32,
    in_flight: usize,
    failures: u32,
    not_before: u64,
}

/// Why a slot is listed.
#[derive(Clone, Copy, Debug)]
enum Listed {
    /// Somebody looked at its record at that time (monotonic milliseconds), and wants a
    /// younger answer than it had.
    Since(u64),
    /// A request found it stale, some time ago.
    Stale,
}

impl Refresher {
    /// No refresh yet.
    #[must_use]
    pub fn new(scope: u64) -> Self {
        Self {
            scope,
            listed: HashMap::new(),
            waiting: VecDeque::new(),
            segment: 0,
            turn: 0,
            in_flight: 0,
            failures: 0,
            not_before: 0,
        }
    }

    /// Puts a slot on the list, unless it stands there.
    pub fn add(&mut self, slot: Slot, now: Moment) {
        self.list(slot, Listed::Since(now.monotonic));
    }

    fn list(&mut self, slot: Slot, why: Listed) {
        if let Entry::Vacant(entry) = self.listed.entry(slot) {
            entry.insert(why);
            self.waiting.push_back(slot);
        }
    }

    /// Puts a slot before all others, unless it stands on the list. An answer of before now
    /// does not do, however fresh the record is.
    pub fn add_first(&mut self, slot: Slot, now: Moment) {
        let why = Listed::Since(now.monotonic);
        if self.listed.insert(slot, why).is_none() {
            self.waiting.push_front(slot);
        }
    }

    /// Puts the slots on the list that requests found stale, unless enough stand there.
    pub fn take_marks(&mut self, data: &impl SharedData, applications: &Applications) {
        let marks = applications.marks(Mark::Stale, self.scope);
        if self.waiting.len() >= MOST_WAITING {
            return;
        }
        let mut slots = marks.take(data, self.turn);
        self.turn = self.turn.saturating_add(1);
        if self.turn >= marks.segments() {
            self.turn = 0;
        }
        loop {
            for slot in slots {
                self.list(slot, Listed::Stale);
            }
            if self.waiting.len() >= MOST_WAITING {
                return;
            }
            let Some(segment) = marks.next_segment(data, self.segment) else {
                self.segment = 0;
                return;
            };
            self.segment = segment.saturating_add(1);
            slots = marks.take(data, segment);
        }
    }

    /// What to ask now: as much as may be in flight. Called on ticks, and after an answer
    /// so that the next question does not wait for one. What another VM has
    /// refreshed since it was listed here is left out.
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
            let listed = self.listed.get(&slot).copied();
            let wanted = |record: &Record| match listed {
                Some(Listed::Since(when)) => record.fetched_at <= when,
                Some(Listed::Stale) | None => record.freshness(now) != Freshness::Fresh,
            };
            let fits = |record: &Record| record.scope == scope && wanted(record);
            if let Some(question) = Question::about(data, applications, slot, fits) {
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

    /// Another VM is asking already.
    pub fn left_to_another(&mut self, slot: Slot) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.listed.remove(&slot);
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

#[cfg(test)]
mod tests {
    use super::super::keys::KeyRule;
    use super::super::shown::{Referrer, Shown};
    use super::super::testing::{at, known, metrics};
    use super::super::{Accuracy, Applications, Identity, Lifetimes};
    use super::*;
    use crate::shared_data::memory::Memory;
    use crate::shared_data::{SetError, Token};
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    const LIFETIMES: Lifetimes = Lifetimes {
        ttl: 1_000,
        negative_ttl: 1_000,
        stale_if_error: 1_000,
        accuracy: Accuracy::Exact,
    };

    const ALICE: Identity<'_> = Identity {
        digest: Digest([1; 16]),
        scope: 7,
        kind: Kind::UserKey,
        value: b"alice",
        shown: Shown {
            rule: KeyRule::IfAny,
            app_key: None,
            referrer: Referrer::Ignored,
        },
        tells: false,
    };

    /// Alice is known since the start. Her slot.
    fn learned(data: &Memory, applications: &mut Applications) -> Slot {
        let answer = known(Vec::new());
        applications
            .learn(data, &ALICE, &answer, &metrics(false), at(0), &LIFETIMES)
            .unwrap();
        let found = applications
            .table()
            .change(data, ALICE.digest, |_| Change::Keep(()));
        found.unwrap().unwrap().0
    }

    #[test]
    fn a_key_that_has_gone_is_replaced_by_one_that_is_listed_and_not_for_ever() {
        let question = |app_key: Option<&str>, attempt| Question {
            slot: Slot(1),
            digest: Digest([1; 16]),
            kind: Kind::AppId,
            value: b"app".to_vec(),
            app_key: app_key.map(str::to_owned),
            attempt,
        };
        let listed = || Some(vec!["k2".to_owned(), "k3".to_owned()]);
        let after = |question: Question, listed| question.after_wrong_key(listed);
        assert!(after(question(Some("k1"), 0), None) == Some(question(None, 1)));
        assert!(after(question(None, 1), listed()) == Some(question(Some("k2"), 2)));
        assert!(after(question(Some("k1"), MOST_ATTEMPTS), None).is_none());
        assert!(after(question(None, 1), None).is_none());
        assert!(after(question(None, 1), Some(Vec::new())).is_none());
    }

    #[test]
    fn what_another_vm_has_refreshed_since_it_was_listed_is_not_asked_again() {
        let data = Memory::default();
        let mut applications = Applications::open(&data, 8);
        let slot = learned(&data, &mut applications);
        let mut refresher = Refresher::new(ALICE.scope);
        let asked = |refresher: &mut Refresher, applications: &mut Applications, now| {
            refresher.next(&data, applications, at(now)).len()
        };

        refresher.add(slot, at(800));
        assert_eq!(asked(&mut refresher, &mut applications, 800), 1);
        refresher.failed(slot, at(800), 0);
        let shown = Shown::default();
        let place = (slot, ALICE.digest, &shown);
        let answer = known(Vec::new());
        applications
            .refresh(
                &data,
                place,
                Ok(&answer),
                &metrics(false),
                at(900),
                &LIFETIMES,
            )
            .unwrap();
        assert_eq!(asked(&mut refresher, &mut applications, 60_000), 0);
        refresher.add(slot, at(60_000));
        assert_eq!(asked(&mut refresher, &mut applications, 60_000), 1);
        refresher.left_to_another(slot);
        refresher.add(slot, at(60_000));
        assert_eq!(asked(&mut refresher, &mut applications, 60_000), 1);
    }

    /// Shared data that counts how often it is read.
    #[derive(Default)]
    struct Counting {
        data: Memory,
        reads: std::cell::Cell<u32>,
    }

    impl SharedData for Counting {
        fn get(&self, key: &[u8], into: &mut Vec<u8>) -> Result<Token, SetError> {
            self.reads.set(self.reads.get() + 1);
            self.data.get(key, into)
        }

        fn set(&self, key: &[u8], value: &[u8], token: Token) -> Result<(), SetError> {
            self.data.set(key, value, token)
        }
    }

    #[test]
    fn a_service_without_marks_costs_a_tick_a_few_reads_however_large_the_table() {
        let data = Counting::default();
        let applications = Applications::open(&data, 1_000_000);
        let mut refresher = Refresher::new(ALICE.scope);
        data.reads.set(0);
        refresher.take_marks(&data, &applications);
        assert!(data.reads.get() <= 3, "{} reads", data.reads.get());
    }

    #[test]
    fn marks_are_taken_as_far_as_there_is_room_for_them_and_all_in_the_end() {
        let data = Memory::default();
        let applications = Applications::open(&data, 4 * 1_024);
        let marks = applications.marks(Mark::Stale, ALICE.scope);
        let all: u32 = 8 * 1_024;
        for slot in 0..all {
            marks.set(&data, Slot(slot));
        }
        let mut refresher = Refresher::new(ALICE.scope);
        let mut taken = 0;
        for _ in 0..8 {
            refresher.take_marks(&data, &applications);
            assert!(refresher.waiting.len() < MOST_WAITING + 1_024);
            taken += refresher.waiting.len();
            refresher.waiting.clear();
        }
        assert_eq!(taken, 8 * 1_024);
        assert_eq!(marks.next_segment(&data, 0), None);
    }

    #[test]
    fn a_mark_that_was_set_before_the_last_answer_came_is_not_asked_about() {
        let data = Memory::default();
        let mut applications = Applications::open(&data, 8);
        let slot = learned(&data, &mut applications);
        let mark = applications.marks(Mark::Stale, ALICE.scope);
        let mut refresher = Refresher::new(ALICE.scope);
        for (now, questions) in [(999, 0), (1_000, 1)] {
            mark.set(&data, slot);
            refresher.take_marks(&data, &applications);
            let asked = refresher.next(&data, &mut applications, at(now));
            assert_eq!(asked.len(), questions, "after {now} ms");
        }
    }
}
