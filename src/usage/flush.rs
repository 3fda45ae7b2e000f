//! The flush: pending usage of one service into batches, and batches into their ends.
//!
//! Usage leaves a record by compare-and-set before it is sent, marked with the batch
//! it is in and a deadline. So whoever leads later can tell what was in flight when
//! this VM went away, and nothing is ever sent by two. What is here besides the
//! records is for speed and may be lost.

use super::accounts::Accounts;
use super::probe::Probe;
use super::suspects::{Group, Suspects, Then, Trial, uncertain};
use crate::authorization::{
    Ahead, Applications, Change, Dispatched, Mark, Outcome, Question, Record, Slot, State, Units,
    Wanted, application, backoff,
};
use crate::config::Uncertain;
use crate::credentials::{Digest, Kind};
use crate::mapping::Metrics;
use crate::moment::Moment;
use crate::service_management::{
    MAX_REPORT_PARAMETERS, MetricsAnswer, NotPushed, ReportAnswer, ReportBody, ServiceAccess,
    Transaction,
};
use crate::shared_data::SharedData;
use std::collections::{HashMap, HashSet, VecDeque};

/// Batches of one service in flight at most.
const MOST_IN_FLIGHT: usize = 4;
/// Of these, batches of suspects at most, so that nobody waits for them.
const MOST_TRIALS: usize = 2;
/// Records that a tick or an answer looks at at most, of all services: it holds up its worker.
pub const MOST_LOOKS: u32 = 2_000;
/// Transactions of one record in one batch at most, so that any record with all its
/// names fits into an empty batch: 62 x (64 metrics + application + time) < 4096.
const MOST_OF_ONE: usize = 62;
/// Longest pause after failures.
const LONGEST_PAUSE: u64 = 60_000;
/// Pause after the first question about metrics that failed.
const FIRST_PROBE_PAUSE: u64 = 1_000;
/// Longest time between two ticks, in milliseconds.
const LONGEST_TICK: u64 = 1_000;
/// How much longer than the call's own timeout a batch is waited for.
const DEADLINE_GRACE: u64 = 5_000;

/// How a service's usage is reported.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Between flushes, in milliseconds.
    pub interval: u64,
    /// Of one report call, in milliseconds.
    pub timeout: u64,
    /// Transactions in a batch at most.
    pub batch: usize,
    /// The policy for uncertain outcomes.
    pub uncertain: Uncertain,
    /// How early the answer of an application in use is asked for again.
    pub ahead: Ahead,
}

impl Settings {
    /// Until when (monotonic milliseconds) the answer to a report of now is waited for.
    #[must_use]
    pub const fn deadline(&self, now: Moment) -> u64 {
        now.monotonic
            .saturating_add(self.timeout)
            .saturating_add(DEADLINE_GRACE)
    }
}

/// How often to tick, in milliseconds, for an interval between flushes: a flush is never late
/// by more than half of that, nor a refresh by more than a second.
#[must_use]
pub const fn tick(interval: u64) -> u64 {
    if interval < LONGEST_TICK {
        interval
    } else {
        LONGEST_TICK
    }
}

/// What every step of a service's flush goes by.
#[derive(Clone, Copy, Debug)]
pub struct Terms<'a> {
    /// The service's metrics.
    pub metrics: &'a Metrics,
    /// How its usage is reported.
    pub settings: Settings,
    /// The moment of the step.
    pub now: Moment,
}

/// A report to send.
pub struct Report {
    /// Names it in the answer.
    pub batch: u64,
    /// The form to post. Holds the service token and consumers' keys.
    pub body: Vec<u8>,
}

/// Units of usage by what became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    /// Acknowledged by service management.
    pub acknowledged: u64,
    /// Surely not applied, and pending again.
    pub returned: u64,
    /// Perhaps applied, and pending again.
    pub resent: u64,
    /// Perhaps applied, and given up.
    pub dropped: u64,
    /// Given up because the backend would refuse it as too old.
    pub too_old: u64,
    /// Given up because the backend refuses it, also alone.
    pub refused: u64,
}

impl Settled {
    /// Adds up.
    pub const fn add(&mut self, other: Self) {
        self.acknowledged = self.acknowledged.saturating_add(other.acknowledged);
        self.returned = self.returned.saturating_add(other.returned);
        self.resent = self.resent.saturating_add(other.resent);
        self.dropped = self.dropped.saturating_add(other.dropped);
        self.too_old = self.too_old.saturating_add(other.too_old);
        self.refused = self.refused.saturating_add(other.refused);
    }

    const fn count(&mut self, outcome: Outcome, units: u64) {
        let into = match outcome {
            Outcome::Acknowledged => &mut self.acknowledged,
            Outcome::Returned => &mut self.returned,
            Outcome::Resent => &mut self.resent,
            Outcome::Lost => &mut self.dropped,
            Outcome::Refused => &mut self.refused,
        };
        *into = into.saturating_add(units);
    }
}

/// The flush of one service, on the VM that leads it.
pub struct Flusher {
    scope: u64,
    next_batch: u64,
    /// Slots taken from the marks and not yet looked at.
    waiting: VecDeque<Slot>,
    /// Where to go on with the segments of marks in this round; `None` between rounds.
    segment: Option<u32>,
    /// The segment that is looked at in the next round whether or not marks are noted for it.
    turn: u32,
    next_round: u64,
    /// Nothing is sent before this, after a failure.
    paused_until: u64,
    failures: u32,
    in_flight: HashMap<u64, Sent>,
    suspects: Suspects,
    /// What is known of the metrics. `None`: nobody asks, and everything is sent.
    probe: Option<Probe>,
    accounts: Accounts,
    /// Slots seen that want a refresh soon.
    due: Vec<(Slot, Wanted)>,
    /// Slots whose usage is not to be sent now.
    held: HashSet<Slot>,
}

/// A report under way.
struct Sent {
    members: Vec<(Slot, Digest)>,
    units: Units,
    transactions: usize,
    /// Most transactions of one record that it could hold.
    most: usize,
    trial: Trial,
}

/// What looking at one record came to.
enum Looked {
    /// Nothing to send, or a batch in flight.
    Nothing,
    /// Not in this batch.
    Later,
    /// In this batch.
    Sent {
        digest: Digest,
        kind: Kind,
        identity: Vec<u8>,
        transactions: Vec<Dispatched>,
        alone: bool,
    },
}

impl Flusher {
    /// Nothing in flight. `first_batch` is random, so that no two VMs name the same batch.
    #[must_use]
    pub fn new(scope: u64, first_batch: u64) -> Self {
        Self {
            scope,
            next_batch: first_batch,
            waiting: VecDeque::new(),
            segment: None,
            turn: 0,
            next_round: 0,
            paused_until: 0,
            failures: 0,
            in_flight: HashMap::new(),
            suspects: Suspects::default(),
            probe: None,
            accounts: Accounts::default(),
            due: Vec::new(),
            held: HashSet::new(),
        }
    }

    /// Has these slots looked at before all others, whether a round is due or not; and
    /// leaves those in `held` for a later round. Nothing is hurried after a failure.
    pub fn urge(&mut self, slots: &[Slot], held: HashSet<Slot>, now: Moment) {
        self.held = held;
        for slot in slots {
            self.held.remove(slot);
            if now.monotonic >= self.paused_until {
                self.waiting.push_front(*slot);
            }
        }
    }

    /// Sends no usage of a metric before service management is known to have it: whoever
    /// flushes asks what [`Flusher::probe`] says.
    #[must_use]
    pub fn probing(self) -> Self {
        Self {
            probe: Some(Probe::default()),
            ..self
        }
    }

    /// An application and the metrics to ask about now: authorized with a usage of 0 of each.
    /// The answer goes to [`Flusher::probed`]. Called after [`Flusher::next`].
    pub fn probe(
        &mut self,
        data: &impl SharedData,
        applications: &mut Applications,
        metrics: &Metrics,
        now: Moment,
    ) -> Option<(Question, Vec<String>)> {
        let probe = self.probe.as_mut()?;
        let (slot, digest) = probe.due(metrics, now.monotonic)?;
        let question = Question::about(data, applications, slot, |record| record.digest == digest);
        match question {
            Some(question) => Some((question, probe.ask())),
            None => {
                probe.has_gone();
                None
            }
        }
    }

    /// Takes in what was said of these metrics. Whether that is all that was to be found out for now.
    pub fn probed(
        &mut self,
        data: &impl SharedData,
        applications: &Applications,
        (metrics, answer): (&[String], MetricsAnswer),
        now: Moment,
        jitter: u64,
    ) -> bool {
        let Some(probe) = self.probe.as_mut() else {
            return false;
        };
        let pause = |failures| backoff(failures, FIRST_PROBE_PAUSE, LONGEST_PAUSE, jitter);
        let found = probe.answered(metrics, answer, now.monotonic, pause);
        if now.monotonic < self.paused_until {
            let marks = applications.marks(Mark::Dirty, self.scope);
            for slot in found.released {
                marks.set(data, slot);
            }
        } else {
            self.waiting.extend(found.released);
        }
        found.complete
    }

    /// The metrics that service management does not have, whose usage waits.
    pub fn unknown_metrics(&self) -> impl Iterator<Item = &str> {
        self.probe.iter().flat_map(Probe::unknown)
    }

    /// The slots that were seen to want a refresh soon.
    pub fn take_due(&mut self) -> Vec<(Slot, Wanted)> {
        std::mem::take(&mut self.due)
    }

    /// Books what became of usage that was in no record.
    pub fn book(&mut self, accounts: &Accounts) {
        self.accounts.add(accounts);
    }

    /// What became of usage since this was last taken, if anything did.
    pub fn take_accounts(&mut self) -> Option<Accounts> {
        let accounts = std::mem::take(&mut self.accounts);
        accounts.is_changed().then_some(accounts)
    }

    /// Units in reports of this VM that are not yet answered.
    #[must_use]
    pub fn in_flight(&self) -> Units {
        let mut units = Units::default();
        for sent in self.in_flight.values() {
            units.add_all(&sent.units);
        }
        units
    }

    /// Leaves everything that waits here to whoever leads now.
    pub fn hand_over(&mut self, data: &impl SharedData, applications: &Applications) {
        let marks = applications.marks(Mark::Dirty, self.scope);
        let suspects = self.suspects.release();
        let held = self.probe.as_mut().map(Probe::reset).unwrap_or_default();
        for slot in self.waiting.drain(..).chain(suspects).chain(held) {
            marks.set(data, slot);
        }
        self.segment = None;
    }

    /// What to send now: as many reports as may be in flight, from `looks` records at most, which
    /// is less by those that were looked at afterwards. Called on ticks, and after an answer so that a round with more batches
    /// does not wait for the next tick.
    pub fn next(
        &mut self,
        data: &impl SharedData,
        applications: &mut Applications,
        service: &ServiceAccess<'_>,
        terms: &Terms<'_>,
        looks: &mut u32,
    ) -> (Vec<Report>, Settled) {
        let Terms { settings, now, .. } = terms;
        let mut settled = Settled::default();
        let mut reports = Vec::new();
        if self.segment.is_none()
            && self.waiting.is_empty()
            && self.begins_round(settings.interval, *now)
        {
            self.segment = Some(0);
            // Requests mark no record that has pending usage already.
            if let Some(probe) = &mut self.probe {
                self.waiting.extend(probe.take_held());
            }
            let marks = applications.marks(Mark::Dirty, self.scope);
            self.waiting.extend(marks.take(data, self.turn));
            self.turn = self.turn.saturating_add(1);
            if self.turn >= marks.segments() {
                self.turn = 0;
            }
            // Once in a round, what other VMs did by themselves is shown, too.
            self.accounts.sent();
        }
        while *looks > 0 && self.in_flight.len() < MOST_IN_FLIGHT {
            let group = self.next_group(now.monotonic);
            if group.is_none() && !self.take_marks(data, applications) {
                break;
            }
            let batch = self.next_batch_id();
            let round = Round {
                batch,
                deadline: settings.deadline(*now),
                most: group.as_ref().map_or(MOST_OF_ONE, |group| group.most),
                terms,
            };
            let mut body = ReportBody::new(service);
            let mut members = Vec::new();
            let mut units = Units::default();
            let trial = group
                .as_ref()
                .map_or_else(|| self.suspects.first_trial(), |group| group.trial);
            let mut group = group;
            while *looks > 0 && body.transactions() < settings.batch {
                let Some(slot) = self.next_slot(data, applications, group.as_mut()) else {
                    break;
                };
                *looks = looks.saturating_sub(1);
                if group.is_none() && self.held.contains(&slot) {
                    applications.marks(Mark::Dirty, self.scope).set(data, slot);
                    continue;
                }
                match self.look(data, applications, slot, &round, &body, &mut settled) {
                    Looked::Nothing => {}
                    Looked::Later => {
                        match &mut group {
                            Some(group) => group.slots.push_front(slot),
                            None => self.waiting.push_front(slot),
                        }
                        break;
                    }
                    Looked::Sent {
                        digest,
                        kind,
                        identity,
                        transactions,
                        alone,
                    } => {
                        if push(&mut body, kind, &identity, &transactions).is_err() {
                            self.give_up(data, applications, (slot, digest), &round, &mut settled);
                            continue;
                        }
                        members.push((slot, digest));
                        for (metric, delta) in transactions.iter().flat_map(|it| &it.usage) {
                            units.add_named(terms.metrics, metric, *delta);
                        }
                        if alone {
                            break;
                        }
                    }
                }
            }
            if let Some(rest) = group.filter(|group| !group.slots.is_empty()) {
                self.suspects.put_first(rest);
            }
            if body.transactions() > 0 {
                self.accounts.sent();
                let sent = Sent {
                    members,
                    units,
                    transactions: body.transactions(),
                    most: round.most,
                    trial,
                };
                self.in_flight.insert(batch, sent);
                reports.push(Report {
                    batch,
                    body: body.into_bytes(),
                });
            }
        }
        (reports, settled)
    }

    /// The next round is due now; but nothing is hurried after a failure.
    pub const fn hasten(&mut self, now: Moment) {
        if now.monotonic < self.next_round {
            self.next_round = now.monotonic;
        }
    }

    /// Whether a round is due; the next one then is an interval after this one was due, not
    /// after it began. Ticks come a little early or late: one that is nearer to the due time than
    /// the next will be begins the round, or an interval of one tick would last two.
    fn begins_round(&mut self, interval: u64, now: Moment) -> bool {
        let soon = now.monotonic.saturating_add(tick(interval) / 2);
        if soon < self.next_round || now.monotonic < self.paused_until {
            return false;
        }
        self.next_round = self.next_round.saturating_add(interval);
        if self.next_round <= soon {
            // Rounds were missed. They are not made up for.
            self.next_round = now.monotonic.saturating_add(interval);
        }
        true
    }

    /// The next suspects to try, unless the others would have to wait for them.
    fn next_group(&mut self, now: u64) -> Option<Group> {
        let trials = self.in_flight.values().filter(|sent| sent.trial.is_trial());
        if now < self.paused_until || trials.count() >= MOST_TRIALS {
            return None;
        }
        self.suspects.take(now)
    }

    /// The next record to look at: of the group, or else of the round.
    fn next_slot(
        &mut self,
        data: &impl SharedData,
        applications: &Applications,
        group: Option<&mut Group>,
    ) -> Option<Slot> {
        if let Some(group) = group {
            return group.slots.pop_front();
        }
        while self.take_marks(data, applications) {
            let slot = self.waiting.pop_front()?;
            if !self.suspects.contains(slot) {
                return Some(slot);
            }
        }
        None
    }

    const fn next_batch_id(&mut self) -> u64 {
        // 0 stands for "no batch" in a record.
        self.next_batch = self.next_batch.wrapping_add(1);
        if self.next_batch == 0 {
            self.next_batch = 1;
        }
        self.next_batch
    }

    /// Whether a slot waits, after taking marks until one does or the round is over.
    fn take_marks(&mut self, data: &impl SharedData, applications: &Applications) -> bool {
        let marks = applications.marks(Mark::Dirty, self.scope);
        while self.waiting.is_empty() {
            let Some(from) = self.segment else {
                return false;
            };
            let next = marks.next_segment(data, from);
            if let Some(segment) = next {
                self.waiting.extend(marks.take(data, segment));
            }
            self.segment = next.map(|segment| segment.saturating_add(1));
        }
        true
    }

    fn look(
        &mut self,
        data: &impl SharedData,
        applications: &mut Applications,
        slot: Slot,
        round: &Round<'_>,
        body: &ReportBody,
        settled: &mut Settled,
    ) -> Looked {
        let scope = self.scope;
        let empty = body.transactions() == 0;
        let most = round
            .terms
            .settings
            .batch
            .saturating_sub(body.transactions())
            .min(round.most);
        let room = MAX_REPORT_PARAMETERS.saturating_sub(body.parameters());
        let probe = self.probe.as_ref();
        let clock = round.terms.now.monotonic;
        let mut news = Vec::new();
        let mut held = false;
        let mut witness = None;
        let seen = applications.table().change_slot(data, slot, |record| {
            if record.scope != scope {
                return None;
            }
            let metrics = round.terms.metrics;
            let mut ended = Settled::default();
            let mut accounts = Accounts::default();
            end_overdue_batch(record, round, &mut ended, &mut accounts);
            let refresh = record.wants_refresh(round.terms.now, round.terms.settings.ahead);
            if record.alone && !empty {
                return Some(Change::Keep((Looked::Later, None, refresh)));
            }
            record.bring_back(metrics, round.terms.now);
            let too_old = record.give_up_unreportable(metrics, round.terms.now);
            ended.too_old = too_old.sum();
            accounts.lost(&too_old);
            let alone = record.alone;
            let withheld = |metric: &str, limited| {
                probe.is_some_and(|probe| probe.withholds(metric, limited, alone, clock))
            };
            news.clear();
            if let Some(probe) = probe {
                let pending = record.pending_metrics();
                let new = pending.filter(|(metric, _)| probe.is_news(metric, clock));
                news.extend(new.map(|(metric, limited)| (metric.to_owned(), limited)));
                witness = (!alone && record.has_pending()).then_some(record.digest);
            }
            held = news
                .iter()
                .any(|(metric, limited)| withheld(metric, *limited));
            let transactions =
                record.dispatch_without(withheld, round.batch, round.deadline, most, metrics);
            if parameters(&transactions) > room {
                return Some(Change::Keep((Looked::Later, None, refresh)));
            }
            if transactions.is_empty() {
                let admitted = record.publish(metrics);
                // What waits for its metric is shown as pending.
                if ended == Settled::default() && (!held || admitted.is_empty()) {
                    return Some(Change::Keep((Looked::Nothing, None, refresh)));
                }
                accounts.admitted(&admitted);
                let ended = Some((ended, accounts));
                return Some(Change::Write((Looked::Nothing, ended, refresh)));
            }
            let looked = Looked::Sent {
                digest: record.digest,
                kind: record.kind,
                identity: record.identity.clone(),
                transactions,
                alone: record.alone,
            };
            accounts.admitted(&record.publish(metrics));
            Some(Change::Write((looked, Some((ended, accounts)), refresh)))
        });
        if let Some(probe) = self.probe.as_mut() {
            for (metric, limited) in news {
                probe.note(&metric, limited, clock);
            }
            if held {
                probe.hold(slot);
            }
            if let Some(application) = witness {
                probe.offer(slot, application);
            }
        }
        match seen {
            Ok(Some((looked, ended, refresh))) => {
                if let Some((ended, accounts)) = ended {
                    settled.add(ended);
                    self.accounts.add(&accounts);
                }
                if let Some(wanted) = refresh
                    && !matches!(looked, Looked::Later)
                {
                    self.due.push((slot, wanted));
                }
                looked
            }
            Ok(None) => Looked::Nothing,
            // Contended beyond reason: the next round looks again.
            Err(_) => {
                applications.marks(Mark::Dirty, scope).set(data, slot);
                Looked::Nothing
            }
        }
    }

    /// Gives up usage that no report can carry. Names and deltas are checked before they
    /// get into a record, so only a corrupt one comes here.
    fn give_up(
        &mut self,
        data: &impl SharedData,
        applications: &mut Applications,
        (slot, digest): (Slot, Digest),
        round: &Round<'_>,
        settled: &mut Settled,
    ) {
        let Terms { metrics, now, .. } = *round.terms;
        let units = applications.table().change_slot(data, slot, |record| {
            (record.digest == digest)
                .then(|| Change::Write(record.settle(round.batch, Outcome::Lost, metrics, now)))
        });
        if let Ok(Some(units)) = units {
            settled.count(Outcome::Lost, units.sum());
            self.accounts.lost(&units);
        }
    }

    /// Takes in what became of a report. Returns the units by their end.
    pub fn answered(
        &mut self,
        data: &impl SharedData,
        applications: &mut Applications,
        batch: u64,
        answer: &ReportAnswer,
        terms: &Terms<'_>,
        jitter: u64,
    ) -> Settled {
        let Terms {
            metrics,
            settings,
            now,
        } = *terms;
        let mut settled = Settled::default();
        let Some(sent) = self.in_flight.remove(&batch) else {
            return settled;
        };
        self.accounts.sent();
        let fate = self
            .suspects
            .judge(answer, sent.trial, sent.transactions, settings.uncertain);
        let marks = applications.marks(Mark::Dirty, self.scope);
        let mut left = VecDeque::new();
        for (slot, digest) in sent.members {
            let seen = applications.table().change_slot(data, slot, |record| {
                (record.digest == digest).then(|| {
                    let units = record.settle(batch, fate.outcome, metrics, now);
                    Change::Write((units, record.has_pending()))
                })
            });
            if let Ok(Some((units, _))) = &seen {
                settled.count(fate.outcome, units.sum());
                self.accounts.settled(fate.outcome, units);
            }
            // Also what was admitted meanwhile: a round that came by took its mark and
            // had to leave it.
            if !matches!(seen, Ok(Some((_, false)))) {
                left.push_back(slot);
            }
        }
        // Suspects are not marked, or they would be among others in the next round.
        let again = match fate.then {
            Then::Forget => Vec::new(),
            // Of one record not everything was in it: the rest is as suspect as it was.
            Then::GoOn(trial) if left.len() == 1 && sent.transactions == sent.most => {
                vec![Group::of(std::mem::take(&mut left), sent.most, trial)]
            }
            Then::GoOn(_) => Vec::new(),
            Then::TryAgain(trial) => {
                let not_before = now.monotonic.saturating_add(trial.pause(&settings, jitter));
                vec![Group {
                    slots: std::mem::take(&mut left),
                    most: sent.most,
                    trial,
                    not_before,
                }]
            }
            Then::Split(trial) => {
                let of_one = (sent.transactions.min(sent.most) / 2).max(1);
                Group::halves(std::mem::take(&mut left), sent.most, of_one, trial)
            }
        };
        for group in again {
            if let Err(group) = self.suspects.put_last(group) {
                left.extend(group.slots);
            }
        }
        for slot in left {
            marks.set(data, slot);
        }
        if matches!(answer, ReportAnswer::Acknowledged) {
            self.failures = 0;
        } else if fate.pause {
            self.pause(data, applications, &settings, now, jitter);
        }
        settled
    }

    /// After a failure: nothing more in this round, and the next one later each time.
    fn pause(
        &mut self,
        data: &impl SharedData,
        applications: &Applications,
        settings: &Settings,
        now: Moment,
        jitter: u64,
    ) {
        let marks = applications.marks(Mark::Dirty, self.scope);
        for slot in self.waiting.drain(..) {
            marks.set(data, slot);
        }
        self.segment = None;
        if now.monotonic >= self.paused_until {
            // Batches that fail together are one failure.
            let longest = LONGEST_PAUSE.max(settings.interval);
            let pause = backoff(self.failures, settings.interval, longest, jitter);
            self.paused_until = now.monotonic.saturating_add(pause);
            self.failures = self.failures.saturating_add(1);
        }
        self.next_round = self.next_round.max(self.paused_until);
    }
}

struct Round<'a> {
    batch: u64,
    deadline: u64,
    /// Transactions of one record at most.
    most: usize,
    terms: &'a Terms<'a>,
}

/// Ends a batch that nobody answered in time: its VM went away.
fn end_overdue_batch(
    record: &mut Record,
    round: &Round<'_>,
    ended: &mut Settled,
    accounts: &mut Accounts,
) {
    if record.batch != 0 && record.batch_deadline <= round.terms.now.monotonic {
        let outcome = uncertain(round.terms.settings.uncertain);
        let units = record.settle(record.batch, outcome, round.terms.metrics, round.terms.now);
        ended.count(outcome, units.sum());
        accounts.settled(outcome, &units);
    }
}

/// Form parameters that these transactions need.
fn parameters(transactions: &[Dispatched]) -> usize {
    transactions.iter().fold(0_usize, |sum, transaction| {
        sum.saturating_add(transaction.usage.len())
            .saturating_add(2)
    })
}

/// Puts an application's usage into a report.
///
/// # Errors
/// A transaction cannot be written. Those before it are in the report.
pub fn push(
    body: &mut ReportBody,
    kind: Kind,
    identity: &[u8],
    transactions: &[Dispatched],
) -> Result<(), NotPushed> {
    for transaction in transactions {
        let usage: Vec<_> = transaction
            .usage
            .iter()
            .map(|(metric, delta)| (metric.as_str(), *delta))
            .collect();
        body.try_push(&Transaction {
            application: application(kind, identity, None),
            at: transaction.at,
            usage: &usage,
        })?;
    }
    Ok(())
}

/// Whether the record in a slot has anything for the flush to do that no mark says.
#[must_use]
pub fn wants_flush(record: &Record, now: Moment) -> bool {
    record.state == State::Live
        && (record.has_pending() || (record.batch != 0 && record.batch_deadline <= now.monotonic))
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    /// When rounds begin, if the flush is called at these times (monotonic milliseconds).
    fn rounds(interval: u64, calls: impl IntoIterator<Item = u64>) -> Vec<u64> {
        let mut flusher = Flusher::new(1, 1);
        let begins = |monotonic: &u64| {
            let moment = Moment {
                wall: 0,
                monotonic: *monotonic,
            };
            flusher.begins_round(interval, moment)
        };
        calls.into_iter().filter(begins).collect()
    }

    #[test]
    fn every_tick_of_an_interval_of_one_tick_begins_a_round_also_if_it_comes_early_or_late() {
        for every in [500, 501, 503] {
            let ticks: Vec<u64> = (1..2_000).map(|tick| 10_000 + tick * every).collect();
            assert_eq!(rounds(500, ticks.clone()), ticks, "a tick every {every} ms");
        }
        let early_and_late = |tick: u64| 10_000 + tick * 500 + tick * 7 % 11 - 5;
        let ticks: Vec<u64> = (1..2_000).map(early_and_late).collect();
        assert_eq!(rounds(500, ticks.clone()), ticks);
    }

    #[test]
    fn rounds_keep_their_interval_whatever_the_ticks_do() {
        for tick in [990, 999, 1_000, 1_001, 1_050] {
            let calls: Vec<u64> = (1..=3_000).map(|number| number * tick).collect();
            let rounds = rounds(10_000, calls);
            for pair in rounds.windows(2) {
                let between = pair[1] - pair[0];
                assert!((8_900..=11_100).contains(&between), "{tick}: {between}");
            }
            let expected = 3_000 * tick / 10_000;
            let count = rounds.len() as u64;
            assert!(
                count.abs_diff(expected) <= expected / 50 + 1,
                "{tick}: {count}"
            );
        }
    }

    #[test]
    fn calls_after_answers_do_not_make_more_rounds() {
        let rounds = rounds(500, 5_000..25_000);
        assert!(rounds.len() <= 41, "{}", rounds.len());
    }

    #[test]
    fn rounds_that_were_missed_are_not_made_up_for() {
        assert_eq!(
            rounds(10_000, [5_000, 95_000, 96_000, 104_400, 104_500]),
            [5_000, 95_000, 104_500]
        );
    }
}
