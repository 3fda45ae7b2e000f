//! Keeping the answers of service management young behind the traffic's back.
//!
//! Apart from the decision because only a service's leader does it, on ticks: an
//! application that is in use is asked about again before its answer goes stale, one
//! that nobody uses never. Where there are more of them than a gateway may ask about, those near
//! a limit go first.

use super::applications::Applications;
use super::marks::Mark;
use super::record::{Freshness, Record};
use super::table::{Change, Slot};
use crate::credentials::{Digest, Kind};
use crate::moment::Moment;
use crate::shared_data::SharedData;
use std::cmp::Reverse;
use std::collections::hash_map::Entry;
use std::collections::{BinaryHeap, HashMap, VecDeque};

/// Questions in flight at most, of one service.
const MOST_IN_FLIGHT: usize = 16;
/// While so many marked slots wait to be looked at, no marks are taken: they keep, and a tick
/// holds up its worker.
const MOST_MARKED: usize = 1_000;
/// Slots on the list at most: some megabytes.
const MOST_LISTED: usize = 100_000;
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
        mut fits: impl FnMut(&Record) -> bool,
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

/// When an answer is to be asked for again, and before whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Not before (monotonic milliseconds).
    pub due: u64,
    /// Of those that are due, the one with the least goes first. On the scale of `due`, so
    /// that whoever waits long enough comes to be the first.
    pub rank: u64,
}

/// How early answers are asked for again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ahead {
    /// How long before its end, in milliseconds, or half its lifetime if that is less; and
    /// whoever was admitted within as long is in use.
    pub least: u64,
    /// How long it is until a record in use is looked at again, in milliseconds.
    pub round: u64,
}

/// What became of looking at the slot that was next.
pub enum Next {
    /// No slot is next: none is due, or enough is in flight, or service management failed.
    Nobody,
    /// Its application need not be asked about any more.
    NotWanted(Slot),
    /// It may not be asked about now, and stays the next.
    OverBudget {
        /// It has waited for so long that its answer is three quarters of the way from fresh to
        /// unusable.
        late: bool,
    },
    /// To be asked.
    Ask(Question),
}

/// The refreshes of one service, on the VM that leads it.
#[derive(Debug)]
pub struct Refresher {
    scope: u64,
    /// Every slot that waits or is asked about, so that none stands here twice.
    listed: HashMap<Slot, Listed>,
    /// Those that somebody has looked for a place in the budget for already.
    first: VecDeque<Slot>,
    /// Those that are due, by rank.
    ready: BinaryHeap<Reverse<(u64, Slot)>>,
    /// Those that will be, by when.
    later: BinaryHeap<Reverse<(u64, Slot)>>,
    /// Those that requests marked, and whose records nobody has looked at yet.
    marked: VecDeque<Slot>,
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
struct Listed {
    /// Somebody looked at its record at that time (monotonic milliseconds), and wants a
    /// younger answer than it had.
    since: u64,
    rank: u64,
    /// Whether somebody must still need it when its turn comes.
    if_needed: bool,
    stage: Stage,
}

/// Where a listed slot stands. What else of it is in the queues is left over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// In its turn.
    Waiting,
    /// Before all others.
    First,
    /// It is asked about.
    Asked,
}

impl Refresher {
    /// No refresh yet.
    #[must_use]
    pub fn new(scope: u64) -> Self {
        Self {
            scope,
            listed: HashMap::new(),
            first: VecDeque::new(),
            ready: BinaryHeap::new(),
            later: BinaryHeap::new(),
            marked: VecDeque::new(),
            segment: 0,
            turn: 0,
            in_flight: 0,
            failures: 0,
            not_before: 0,
        }
    }

    /// Puts a slot on the list, unless it stands there or the list is full: who is still in
    /// use is found again.
    pub fn add(&mut self, slot: Slot, wanted: Wanted, now: Moment) {
        self.list(slot, wanted, now, true);
    }

    fn list(&mut self, slot: Slot, wanted: Wanted, now: Moment, if_needed: bool) {
        if self.listed.len() >= MOST_LISTED {
            return;
        }
        if let Entry::Vacant(entry) = self.listed.entry(slot) {
            entry.insert(Listed {
                since: now.monotonic,
                rank: wanted.rank,
                if_needed,
                stage: Stage::Waiting,
            });
            self.later.push(Reverse((wanted.due, slot)));
        }
    }

    /// Puts a slot before all others, outside of the budget, unless it is asked about. An
    /// answer of before now does not do, however fresh the record is.
    pub fn add_first(&mut self, slot: Slot, now: Moment) {
        let mut listed = Listed {
            since: now.monotonic,
            rank: 0,
            if_needed: false,
            stage: Stage::First,
        };
        match self.listed.get(&slot).map(|before| before.stage) {
            None | Some(Stage::Waiting) => self.first.push_front(slot),
            Some(Stage::First) => {}
            Some(Stage::Asked) => listed.stage = Stage::Asked,
        }
        self.listed.insert(slot, listed);
    }

    /// Takes the slots that requests found stale, unless enough wait to be looked at.
    pub fn take_marks(&mut self, data: &impl SharedData, applications: &Applications) {
        let marks = applications.marks(Mark::Stale, self.scope);
        if self.marked.len() >= MOST_MARKED || self.listed.len() >= MOST_LISTED {
            return;
        }
        let mut slots = marks.take(data, self.turn);
        self.turn = self.turn.saturating_add(1);
        if self.turn >= marks.segments() {
            self.turn = 0;
        }
        loop {
            self.marked.extend(slots);
            if self.marked.len() >= MOST_MARKED {
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

    /// Looks at the records of marked slots and lists those that are stale. `looks` is how many
    /// more records may be looked at.
    pub fn list_marked(
        &mut self,
        data: &impl SharedData,
        applications: &mut Applications,
        ahead: Ahead,
        now: Moment,
        looks: &mut u32,
    ) {
        let scope = self.scope;
        while *looks > 0
            && let Some(slot) = self.marked.pop_front()
        {
            if self.listed.contains_key(&slot) {
                continue;
            }
            *looks = looks.saturating_sub(1);
            let wanted = applications.table().change_slot(data, slot, |record| {
                let stale = record.scope == scope && record.freshness(now) != Freshness::Fresh;
                stale.then(|| Change::Keep(record.refresh_at(now, ahead)))
            });
            if let Ok(Some(wanted)) = wanted {
                self.list(slot, wanted, now, false);
            }
        }
    }

    /// How many wait although they are due.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.ready.len().saturating_add(self.marked.len())
    }

    /// The rank of whoever is next, by which services are told apart; `None` if nobody is to
    /// be asked about now.
    pub fn rank(&mut self, now: Moment) -> Option<u64> {
        while let Some(Reverse((due, slot))) = self.later.peek().copied()
            && due <= now.monotonic
        {
            self.later.pop();
            let rank = self.listed.get(&slot).map_or(due, |listed| listed.rank);
            self.ready.push(Reverse((rank, slot)));
        }
        if now.monotonic < self.not_before || self.in_flight >= MOST_IN_FLIGHT {
            return None;
        }
        if !self.first.is_empty() {
            return Some(0);
        }
        self.ready.peek().map(|Reverse((rank, _))| *rank)
    }

    /// What to ask next, if `may_ask` says that one more may be. Called on ticks, and after
    /// an answer so that the next question does not wait for one. What another VM has
    /// refreshed since it was listed here is left out.
    pub fn next(
        &mut self,
        data: &impl SharedData,
        applications: &mut Applications,
        ahead: Ahead,
        now: Moment,
        may_ask: impl FnOnce() -> bool,
    ) -> Next {
        if self.rank(now).is_none() {
            return Next::Nobody;
        }
        let Some((slot, listed)) = self.pop() else {
            return Next::Nobody;
        };
        let mut late = false;
        let fits = |record: &Record| {
            late = now.monotonic > record.mostly_stale();
            record.scope == self.scope
                && record.fetched_at <= listed.since
                && (!listed.if_needed || record.is_needed(now, ahead))
        };
        let Some(question) = Question::about(data, applications, slot, fits) else {
            self.listed.remove(&slot);
            return Next::NotWanted(slot);
        };
        if listed.stage == Stage::Waiting && !may_ask() {
            self.ready.push(Reverse((listed.rank, slot)));
            return Next::OverBudget { late };
        }
        if let Some(listed) = self.listed.get_mut(&slot) {
            listed.stage = Stage::Asked;
        }
        self.in_flight = self.in_flight.saturating_add(1);
        Next::Ask(question)
    }

    /// Takes the next slot out of the queues.
    fn pop(&mut self) -> Option<(Slot, Listed)> {
        loop {
            let (slot, stage) = match self.first.pop_front() {
                Some(slot) => (slot, Stage::First),
                None => (self.ready.pop()?.0.1, Stage::Waiting),
            };
            let listed = self.listed.get(&slot).copied();
            if let Some(listed) = listed.filter(|listed| listed.stage == stage) {
                return Some((slot, listed));
            }
        }
    }

    /// Leaves everything that waits here to whoever leads now, and finds who is in use.
    pub fn hand_over(&mut self) {
        if self.listed.is_empty() && self.marked.is_empty() {
            return;
        }
        self.listed.retain(|_, listed| listed.stage == Stage::Asked);
        self.first.clear();
        self.ready.clear();
        self.later.clear();
        self.marked.clear();
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
        if let Some(listed) = self.listed.get_mut(&slot) {
            listed.stage = Stage::Waiting;
            self.ready.push(Reverse((listed.rank, slot)));
        }
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
    /// When the answer it holds should be asked for again, and before whom, if that is before
    /// it is looked at the next time and somebody needs it. That is an application in use,
    /// which was admitted lately; a request that found it stale; or
    /// whoever needs the slot next, if all that holds it is that reported usage has not
    /// been seen in an answer yet, once and after all others. One that nobody uses is never asked
    /// about otherwise.
    #[must_use]
    pub fn wants_refresh(&self, now: Moment, ahead: Ahead) -> Option<Wanted> {
        if !self.is_needed(now, ahead) {
            return None;
        }
        let mut wanted = self.refresh_at(now, ahead);
        if !self.is_used(now, ahead) {
            wanted.rank = wanted.due.max(self.stale_until);
        }
        (wanted.due <= now.monotonic.saturating_add(ahead.round)).then_some(wanted)
    }

    /// Whether somebody needs what it says, or its slot.
    fn is_needed(&self, now: Moment, ahead: Ahead) -> bool {
        self.is_used(now, ahead) || self.wants_confirmation(now)
    }

    const fn is_used(&self, now: Moment, ahead: Ahead) -> bool {
        let lately = self.last_used.saturating_add(ahead.least) >= now.monotonic;
        self.refresh_marked || (lately && self.last_used >= self.fetched_at)
    }

    /// When its answer should be asked for again if somebody needs it, and before whom.
    ///
    /// Near a limit that is when half of its lifetime is over. Else it is between that
    /// and the least time before its end, and where in between is chance: applications that became
    /// known together are not asked about together. And who is not near a limit waits, if
    /// there are more than may be asked about, as long as it takes for those who are; but not
    /// until nobody could decide about them: halfway there, all wait alike.
    #[must_use]
    pub fn refresh_at(&self, now: Moment, ahead: Ahead) -> Wanted {
        let half = self.fresh_until.saturating_sub(self.fetched_at) / 2;
        if self.is_near_a_limit(now) {
            let due = self.fresh_until.saturating_sub(half);
            return Wanted { due, rank: due };
        }
        let least = ahead.least.min(half);
        let between = half.saturating_sub(least).saturating_add(1);
        let chance = self.luck(self.fetched_at);
        let more = chance.checked_rem(between).unwrap_or(0);
        let due = self.fresh_until.saturating_sub(least.saturating_add(more));
        let rank = due.saturating_add(self.half_stale().saturating_sub(self.fresh_until));
        Wanted { due, rank }
    }

    /// When it is as long since its answer was fresh as it is until nobody can decide on it
    /// (monotonic milliseconds).
    const fn half_stale(&self) -> u64 {
        let stale = self.stale_until.saturating_sub(self.fresh_until);
        self.fresh_until.saturating_add(stale / 2)
    }

    /// When three quarters of that are over (monotonic milliseconds).
    const fn mostly_stale(&self) -> u64 {
        let stale = self.stale_until.saturating_sub(self.fresh_until);
        self.stale_until.saturating_sub(stale / 4)
    }

    /// Whether three quarters of a limit are used in the window that is open.
    fn is_near_a_limit(&self, now: Moment) -> bool {
        self.limits.iter().any(|limit| {
            let known = limit.own.saturating_add(limit.foreign);
            let left = limit.maximum.saturating_sub(known);
            limit.maximum > 0 && left <= limit.maximum / 4 && limit.window.contains(now.seconds())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::shown::Shown;
    use super::super::testing::{ALICE, at, known, limit, metrics};
    use super::super::{Accuracy, Applications, Identity, Lifetimes, Period, State};
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

    const AHEAD: Ahead = Ahead {
        least: 250,
        round: 100,
    };
    const NOW: Wanted = Wanted { due: 0, rank: 0 };

    /// Whom it asks about now, if so many more may be asked.
    fn asked(
        data: &Memory,
        applications: &mut Applications,
        refresher: &mut Refresher,
        now: u64,
        budget: usize,
    ) -> Vec<Digest> {
        let mut asked = Vec::new();
        loop {
            let may_ask = || asked.len() < budget;
            match refresher.next(data, applications, AHEAD, at(now), may_ask) {
                Next::Ask(question) => asked.push(question.digest),
                Next::NotWanted(_) => {}
                Next::Nobody | Next::OverBudget { .. } => return asked,
            }
        }
    }

    /// A record of an answer of the start, fresh for a minute and usable for ten more, with
    /// a limit of 100 of which so many are used, last used at this moment.
    fn record(number: u64, used: u64, last_used: u64) -> Record {
        let mut record = Record::vacant();
        record.state = State::Live;
        record.digest.0[..8].copy_from_slice(&number.to_le_bytes());
        let plan = [limit("hits", Period::Day, 100, used, at(0))];
        let answer = known(plan.to_vec());
        record
            .refresh(&answer, &metrics(false), at(0), 60_000, 600_000)
            .unwrap();
        record.last_used = at(last_used).monotonic;
        record
    }

    const MINUTE: Ahead = Ahead {
        least: 15_000,
        round: 10_000,
    };

    #[test]
    fn an_application_in_use_is_asked_about_before_its_answer_is_stale_and_an_idle_one_never() {
        let wanted = |record: &Record, now| record.wants_refresh(at(now), MINUTE);
        for number in 0..1_000 {
            let used = record(number, 0, 44_000);
            let due = wanted(&used, 45_000).expect("in use").due;
            assert!((at(30_000).monotonic..=at(45_000).monotonic).contains(&due));
            assert_eq!(wanted(&record(number, 0, 15_000), 19_000), None, "too soon");
            let idle = record(number, 0, 20_000);
            for now in (36_000..700_000).step_by(1_000) {
                assert_eq!(wanted(&idle, now), None, "idle for {now} - 20,000 ms");
            }
        }
    }

    #[test]
    fn applications_that_became_known_together_are_not_asked_about_together() {
        let mut seconds = [0; 61];
        for number in 0..15_000 {
            let wanted = record(number, 0, 44_000).refresh_at(at(44_000), MINUTE);
            let second = (wanted.due - at(0).monotonic) / 1_000;
            seconds[usize::try_from(second).unwrap()] += 1;
        }
        let most = seconds.iter().max().unwrap();
        assert!((1_000..1_300).contains(most), "{seconds:?}");
    }

    #[test]
    fn who_is_near_a_limit_goes_first_until_the_others_have_waited_for_half_of_what_they_can() {
        let near = |used| record(1, used, 0).refresh_at(at(40_000), MINUTE);
        let far = record(2, 74, 0).refresh_at(at(40_000), MINUTE);
        assert_eq!(near(75).due, at(30_000).monotonic);
        assert_eq!(near(75).rank, near(75).due);
        assert_eq!(far.rank, far.due + 300_000);
        // One whose window has ended is not near: all of it is there again.
        let tomorrow = record(1, 100, 0).refresh_at(at(86_400_000), MINUTE);
        assert!(tomorrow.rank >= tomorrow.due + 300_000);
    }

    #[test]
    fn those_with_the_least_rank_are_asked_about_as_far_as_the_budget_goes_and_the_rest_later() {
        let data = Memory::default();
        let mut applications = Applications::open(&data, 64);
        let mut refresher = Refresher::new(ALICE.scope);
        let mut slots = Vec::new();
        for number in 0..12_u8 {
            let identity = Identity {
                digest: Digest([number + 1; 16]),
                ..ALICE
            };
            let slot = learn(&data, &mut applications, &identity);
            let wanted = Wanted {
                due: at(100).monotonic,
                rank: at(100).monotonic + u64::from(number.reverse_bits()),
            };
            refresher.list(slot, wanted, at(0), false);
            slots.push((wanted.rank, identity.digest, slot));
        }
        slots.sort_unstable_by_key(|(rank, ..)| *rank);
        let order: Vec<_> = slots.iter().map(|(_, digest, _)| *digest).collect();
        let mut ask = |now, budget| asked(&data, &mut applications, &mut refresher, now, budget);
        assert!(ask(99, 5).is_empty(), "before they are due");
        assert!(ask(100, 0).is_empty(), "without a budget");
        assert!(ask(100, 5) == order[..5]);
        assert!(ask(100, 3) == order[5..8]);
        assert_eq!(refresher.waiting(), 4);
        refresher.failed(slots[0].2, at(100), 0);
        refresher.not_before = 0;
        let rest = asked(&data, &mut applications, &mut refresher, 100, 99);
        assert!(rest[0] == order[0], "who failed keeps its rank");
        assert!(rest[1..] == order[8..]);
    }

    #[test]
    fn who_has_become_idle_while_it_waited_is_not_asked_about() {
        let data = Memory::default();
        let mut applications = Applications::open(&data, 8);
        let slot = learned(&data, &mut applications);
        let mut refresher = Refresher::new(ALICE.scope);
        let mut used = |milliseconds| {
            let used = applications.table().change_slot(&data, slot, |record| {
                record.last_used = at(milliseconds).monotonic;
                Some(Change::Write(()))
            });
            assert_eq!(used, Ok(Some(())));
        };
        used(400);
        for (now, last_used, questions) in [(651, 400, 0), (900, 650, 1)] {
            refresher.add(slot, NOW, at(400));
            used(last_used);
            let mut applications = Applications::open(&data, 8);
            let asked = asked(&data, &mut applications, &mut refresher, now, 9);
            assert_eq!(asked.len(), questions, "at {now} ms");
        }
    }

    #[test]
    fn what_is_urgent_has_its_own_budget_and_does_not_wait_for_its_turn() {
        let data = Memory::default();
        let mut applications = Applications::open(&data, 8);
        let slot = learned(&data, &mut applications);
        let mut refresher = Refresher::new(ALICE.scope);
        let tomorrow = Wanted {
            due: at(86_400_000).monotonic,
            rank: 0,
        };
        refresher.list(slot, tomorrow, at(0), false);
        refresher.add_first(slot, at(0));
        refresher.add_first(slot, at(0));
        assert_eq!(
            asked(&data, &mut applications, &mut refresher, 0, 0).len(),
            1
        );
    }

    #[test]
    fn who_leads_no_more_waits_for_nothing() {
        let data = Memory::default();
        let mut applications = Applications::open(&data, 8);
        let slot = learned(&data, &mut applications);
        let mut refresher = Refresher::new(ALICE.scope);
        refresher.list(slot, NOW, at(0), false);
        refresher.hand_over();
        assert!(asked(&data, &mut applications, &mut refresher, 0, 9).is_empty());
        refresher.list(slot, NOW, at(0), false);
        assert_eq!(
            asked(&data, &mut applications, &mut refresher, 0, 9).len(),
            1
        );
    }

    /// Alice is known since the start. Her slot.
    fn learned(data: &Memory, applications: &mut Applications) -> Slot {
        learn(data, applications, &ALICE)
    }

    fn learn(data: &Memory, applications: &mut Applications, whom: &Identity<'_>) -> Slot {
        let answer = known(Vec::new());
        applications
            .learn(data, whom, &answer, &metrics(false), at(0), &LIFETIMES)
            .unwrap();
        let found = applications
            .table()
            .change(data, whom.digest, |_| Change::Keep(()));
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
            asked(&data, applications, refresher, now, usize::MAX).len()
        };

        refresher.list(slot, NOW, at(800), false);
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
        refresher.list(slot, NOW, at(60_000), false);
        assert_eq!(asked(&mut refresher, &mut applications, 60_000), 1);
        refresher.left_to_another(slot);
        refresher.list(slot, NOW, at(60_000), false);
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
            assert!(refresher.marked.len() < MOST_MARKED + 1_024);
            taken += refresher.marked.len();
            refresher.marked.clear();
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
            refresher.list_marked(&data, &mut applications, AHEAD, at(now), &mut 10);
            let asked = asked(&data, &mut applications, &mut refresher, now, usize::MAX);
            assert_eq!(asked.len(), questions, "after {now} ms");
        }
    }
}
