//! A backend, and one gateway's filter in front of it: what happens in each step, and what
//! is claimed after it.
//!
//! Apart from the model, which knows nothing of time lags, reports and gateways. The
//! backend here is only a keeper of the model's counters that applies reports late.

use crate::generate::{Case, End, Step};
use crate::model::{self, Counters, Hierarchy, LimitOf, Metric};
use proptest::test_runner::TestCaseError;
use proptest::{prop_assert, prop_assert_eq};
use std::collections::{BTreeMap, BTreeSet};
use tollgate::authorization::{
    Accuracy, Ahead, Applications, Change, Freshness, Identity, Learned, Lifetimes, Mark, Record,
    Refusal, Shown, Slot, Table, Verdict, Window,
};
use tollgate::config::Uncertain;
use tollgate::credentials::{Digest, Kind};
use tollgate::mapping::{self, Metrics};
use tollgate::moment::Moment;
use tollgate::service_management::{
    Authorization, Denial, Failure, Misconfiguration, ReportAnswer, Right, ServiceAccess,
    UsageReport,
};
use tollgate::usage::{Flusher, MOST_LOOKS, Settings, Settled, Terms, wants_flush};
use tollgate_shared_data::Memory;

type Checked = Result<(), TestCaseError>;

const SCOPE: u64 = 7;
const VMS: usize = 2;
/// Milliseconds until Envoy gives up a report, and a question.
const REPORT_TIMEOUT: u64 = 2_000;
const QUESTION_TIMEOUT: u64 = 1_000;
const LIFETIMES: Lifetimes = Lifetimes {
    ttl: 60_000,
    negative_ttl: 10_000,
    stale_if_error: 600_000,
    accuracy: Accuracy::Exact,
};
const SERVICE: ServiceAccess<'_> = ServiceAccess {
    id: "1001",
    right: Right::ServiceToken("svc-token"),
};

/// Usage of one application at one time, in a report.
#[derive(Clone, Debug)]
struct Transaction {
    application: usize,
    at: u64,
    usage: Vec<(Metric, u64)>,
}

struct Call {
    batch: u64,
    sent: u64,
    transactions: Vec<Transaction>,
}

/// A report that the backend has queued.
struct Job {
    /// When workers apply it at the latest (monotonic milliseconds).
    due: u64,
    transactions: Vec<Transaction>,
}

/// What the backend said, and when by its clock.
struct Said {
    suspended: bool,
    plan: Vec<LimitOf>,
    counters: Counters,
    second: u64,
}

struct Question {
    application: usize,
    slot: Slot,
    asked: u64,
    said: Said,
}

#[derive(Default)]
struct Application {
    digest: Option<Digest>,
    key: String,
    // At the backend.
    plan: Vec<LimitOf>,
    suspended: bool,
    counters: Counters,
    /// The part of the counters that is not this gateway's.
    foreign: Counters,
    // What this gateway has heard.
    heard: Vec<LimitOf>,
    denied: bool,
    /// The most that it can know of others, by what it heard and sent.
    known: BTreeMap<(Metric, tollgate::authorization::Period, u64), i128>,
    // What this gateway did.
    /// Whether it has a record.
    recorded: bool,
    /// The latest second that the record has seen: windows never go backwards.
    latest: u64,
    /// Admitted, in the windows that were open.
    own: Counters,
    /// Sent and not surely refused.
    sent: Counters,
    /// What the backend is to have of us in the end, by the seconds in the reports.
    expected: Counters,
    admitted: BTreeMap<Metric, u64>,
    acknowledged: BTreeMap<Metric, u64>,
    /// Given up after an uncertain answer.
    dropped: BTreeMap<Metric, u64>,
    /// Units not acknowledged, by minute.
    open: BTreeMap<u64, u64>,
    /// Hours in which minutes may have been put together.
    folded: BTreeSet<u64>,
    /// Whether some may have been reported in another minute than it was stamped with: the clock was set back
    /// by nearly as much as the backend takes.
    brought_back: bool,
}

/// See the module's description.
pub struct World<'a> {
    case: &'a Case,
    /// Whether the backend may be as late as it likes, instead of less than the 5 seconds
    /// after which the filter takes a report for applied.
    late: bool,
    /// Whether nobody else uses anything.
    alone: bool,
    hierarchy: Hierarchy,
    metrics: Metrics,
    data: Memory,
    vms: Vec<Applications>,
    observer: Table,
    flusher: Flusher,
    made: u64,
    monotonic: u64,
    ahead: i64,
    applications: Vec<Application>,
    calls: Vec<Call>,
    jobs: Vec<Job>,
    questions: Vec<Question>,
    settled: Settled,
    uncertain: u64,
}

fn name(metric: Metric) -> String {
    format!("m{metric}")
}

fn metric(name: &str) -> Metric {
    name[1..].parse().unwrap()
}

fn units(transactions: &[Transaction]) -> u64 {
    let usage = transactions.iter().flat_map(|it| &it.usage);
    usage.map(|(_, delta)| delta).sum()
}

impl<'a> World<'a> {
    pub fn new(case: &'a Case, late: bool, alone: bool) -> Self {
        let hierarchy = Hierarchy(case.parents.clone());
        // The backend shows the children of limited metrics only; the rest must be configured.
        let metrics = case.parents.iter().enumerate().map(|(child, parent)| {
            let shown = |parent: Metric| {
                let plans = case.applications.iter().map(|it| &it.plan);
                plans
                    .clone()
                    .all(|plan| plan.iter().any(|limit| limit.metric == parent))
            };
            let parent = parent.filter(|parent| case.named[child] || !shown(*parent));
            (name(child), parent.map(name))
        });
        let metrics = Metrics::new(metrics).unwrap();
        let data = Memory::unlucky(case.seed);
        let applications = case.applications.iter().enumerate().map(|(index, it)| {
            let mut before = Counters::default();
            before.count(&hierarchy, &it.before, case.start, 1);
            Application {
                // All in one set of slots.
                digest: Some(Digest([
                    0,
                    0,
                    0,
                    0,
                    0,
                    0,
                    0,
                    0,
                    index as u8,
                    1,
                    1,
                    1,
                    1,
                    1,
                    1,
                    1,
                ])),
                key: format!("key&{index}"),
                plan: it.plan.clone(),
                counters: before.clone(),
                foreign: before,
                ..Application::default()
            }
        });
        Self {
            case,
            late,
            alone,
            metrics,
            vms: (0..VMS).map(|_| Applications::open(&data, 4)).collect(),
            observer: Table::open(&data, 4),
            flusher: Flusher::new(SCOPE, case.seed),
            made: 0,
            monotonic: 1_000_000,
            ahead: 0,
            applications: applications.collect(),
            calls: Vec::new(),
            jobs: Vec::new(),
            questions: Vec::new(),
            settled: Settled::default(),
            uncertain: 0,
            hierarchy,
            data,
        }
    }

    /// Goes through all the steps, then delivers everything and compares the sums.
    pub fn run(mut self) -> Checked {
        for step in &self.case.steps {
            self.step(step)?;
            self.is_conserved()?;
        }
        self.deliver_everything()?;
        self.sums_agree()
    }

    /// The backend's clock, in Unix milliseconds.
    fn wall(&self) -> u64 {
        self.case.start * 1_000 + (self.monotonic - 1_000_000)
    }

    fn now(&self) -> Moment {
        Moment {
            wall: self.wall().saturating_add_signed(self.ahead * 1_000),
            monotonic: self.monotonic,
        }
    }

    fn step(&mut self, step: &Step) -> Checked {
        let applications = self.applications.len();
        match *step {
            Step::Request {
                application,
                vm,
                ref usage,
            } => {
                let metrics = self.case.parents.len();
                let mut sums = BTreeMap::<Metric, u64>::new();
                for (metric, delta) in usage {
                    *sums.entry(metric % metrics).or_default() += delta;
                }
                let usage: Vec<_> = sums.into_iter().collect();
                self.request(application % applications, vm % VMS, &usage)?;
            }
            Step::Pass(milliseconds) => self.pass(milliseconds)?,
            Step::PassTo(period, after) => {
                let now = self.now();
                let end = model::end(period, now.seconds()) * 1_000;
                let until = end.saturating_add_signed(after);
                self.pass(until.saturating_sub(now.wall))?;
            }
            Step::SetClock(ahead) => self.ahead = ahead,
            Step::Flush { vm, sweep } => self.flush(vm % VMS, sweep)?,
            Step::EndReport(call, end) => {
                if !self.calls.is_empty() {
                    self.end_report(call % self.calls.len(), end);
                }
            }
            Step::Apply(jobs) => {
                for _ in 0..jobs.min(self.jobs.len()) {
                    self.apply(0)?;
                }
            }
            Step::Ask(application) => {
                let application = application % applications;
                // One at a time: answers that overtake each other are not looked at here.
                self.questions.retain(|it| it.application != application);
                if let Some((slot, _)) = self.observe(application, |_| ()) {
                    let (asked, said) = (self.monotonic, self.said(application));
                    self.questions.push(Question {
                        application,
                        slot,
                        asked,
                        said,
                    });
                }
            }
            Step::Hear { question, vm } => {
                if !self.questions.is_empty() {
                    let question = self.questions.remove(question % self.questions.len());
                    self.hear(question, vm % VMS);
                }
            }
            Step::Foreign(application, metric, delta) => {
                let usage = [(metric % self.case.parents.len(), delta)];
                let second = self.wall() / 1_000;
                let application = &mut self.applications[application % applications];
                application
                    .counters
                    .count(&self.hierarchy, &usage, second, 1);
                application
                    .foreign
                    .count(&self.hierarchy, &usage, second, 1);
            }
            Step::Restart(applied) => {
                self.made += 1;
                self.vms = (0..VMS)
                    .map(|_| Applications::open(&self.data, 4))
                    .collect();
                self.flusher = Flusher::new(SCOPE, self.case.seed.wrapping_add(self.made << 32));
                self.questions.clear();
                for call in std::mem::take(&mut self.calls) {
                    self.unsure(call.transactions, applied);
                }
            }
            Step::Maximum(application, limit, maximum) => {
                let plan = &mut self.applications[application % applications].plan;
                if !plan.is_empty() {
                    let limit = limit % plan.len();
                    plan[limit].maximum = maximum;
                }
            }
            Step::Suspend(application) => {
                let application = &mut self.applications[application % applications];
                application.suspended = !application.suspended;
            }
        }
        Ok(())
    }

    /// Time passes; what has its time meanwhile happens.
    fn pass(&mut self, milliseconds: u64) -> Checked {
        let end = self.monotonic + milliseconds;
        while let Some(call) = self
            .calls
            .iter()
            .position(|it| it.sent + REPORT_TIMEOUT <= end)
        {
            self.monotonic = self.monotonic.max(self.calls[call].sent + REPORT_TIMEOUT);
            let applied = self.calls[call].batch.is_multiple_of(2);
            self.end_report(call, End::Uncertain(applied));
        }
        while let Some(job) = self.jobs.iter().position(|it| it.due <= end) {
            self.monotonic = self.monotonic.max(self.jobs[job].due);
            self.apply(job)?;
        }
        self.questions
            .retain(|it| it.asked + QUESTION_TIMEOUT > end);
        self.monotonic = end;
        Ok(())
    }

    fn observe<T>(
        &mut self,
        application: usize,
        mut look: impl FnMut(&Record) -> T,
    ) -> Option<(Slot, T)> {
        let digest = self.applications[application].digest.unwrap();
        let seen = self
            .observer
            .change(&self.data, digest, |record| Change::Keep(look(record)));
        seen.unwrap()
    }

    // ---- Requests

    fn decide(&mut self, application: usize, vm: usize, usage: &model::Usage) -> Verdict {
        let mut cost = mapping::Usage::new();
        for (metric, delta) in usage {
            cost.add(self.metrics.id(&name(*metric)).unwrap(), *delta);
        }
        let now = self.now();
        let of = &self.applications[application];
        let identity = identity(of);
        let verdict = self.vms[vm].decide(&self.data, &identity, &cost, &self.metrics, now);
        verdict.unwrap()
    }

    fn request(&mut self, application: usize, vm: usize, usage: &model::Usage) -> Checked {
        let now = self.now();
        let (first, is_marked) = (self.will_mark(application), |it: &Record| it.refresh_marked);
        let mut verdict = self.decide(application, vm, usage);
        if verdict == Verdict::Unknown {
            let said = self.said(application);
            if said.suspended {
                let of = &mut self.applications[application];
                of.denied = true;
                let denial = Denial::ApplicationNotActive;
                let vm = &mut self.vms[vm];
                vm.learn_denial(&self.data, &identity(of), denial, now, &LIFETIMES)
                    .unwrap();
                return Ok(());
            }
            self.questions.retain(|it| it.application != application);
            let answer = self.authorization(&said);
            let identity = identity(&self.applications[application]);
            let learned = self.vms[vm]
                .learn(
                    &self.data,
                    &identity,
                    &answer,
                    &self.metrics,
                    now,
                    &LIFETIMES,
                )
                .unwrap();
            prop_assert!(matches!(learned, Learned::Remembered), "{:?}", learned);
            self.heard(application, said);
            verdict = self.decide(application, vm, usage);
        }
        let marked = first
            && self
                .observe(application, is_marked)
                .is_some_and(|(_, it)| it);

        let of = &self.applications[application];
        if of.denied {
            let denied = matches!(verdict, Verdict::Refused(Refusal::Denied(_)));
            prop_assert!(denied, "{:?} of a denied application", verdict);
            return Ok(());
        }
        let second = of.latest.max(now.seconds());
        let with = |others: &dyn Fn(&LimitOf) -> i128| {
            model::authorize(&of.heard, &self.hierarchy, usage, second, |limit| {
                of.own.of(limit.metric, limit.period, second) + others(limit)
            })
        };
        let truth = with(&|limit| of.foreign.of(limit.metric, limit.period, second));
        let at_least = with(&|limit| {
            let window = (
                limit.metric,
                limit.period,
                model::start(limit.period, second),
            );
            of.known.get(&window).copied().unwrap_or(0)
        });
        let admitted = match verdict {
            Verdict::Admitted { .. } => true,
            Verdict::Refused(_) => false,
            Verdict::Unknown => {
                prop_assert!(false, "asked, and still unknown");
                false
            }
        };
        if self.alone {
            let said = match verdict {
                Verdict::Refused(Refusal::Limited { until }) => Err((false, until)),
                Verdict::Refused(Refusal::Disabled) => Err((true, 0)),
                Verdict::Refused(other) => {
                    prop_assert!(false, "{:?}", other);
                    return Ok(());
                }
                _ => Ok(()),
            };
            let model = truth.map_err(|it| (it.disabled, if it.disabled { 0 } else { it.until }));
            prop_assert_eq!(said, model, "(i) the filter's decision, and the model's");
        } else if admitted {
            prop_assert_eq!(at_least, Ok(()), "(ii) admitted, against what is known");
        } else {
            prop_assert!(truth.is_err(), "(ii) refused {:?}, though it fits", verdict);
        }

        let of = &mut self.applications[application];
        if admitted {
            of.latest = second;
            of.own.count(&self.hierarchy, usage, second, 1);
            // A worker whose clock is a little late reports in the window that is open.
            let starts = of
                .heard
                .iter()
                .map(|limit| model::start(limit.period, second));
            let open = starts.filter(|start| *start <= now.seconds() + 60).max();
            let minute = (now.seconds() - now.seconds() % 60).max(open.unwrap_or(0));
            of.expected.count(&self.hierarchy, usage, minute, 1);
            let old = of
                .open
                .iter()
                .filter(|(at, open)| **at + 180 <= minute && **open > 0);
            let old: Vec<_> = old.map(|(at, _)| at / 3_600).collect();
            of.folded.extend(old);
            for (metric, delta) in usage {
                *of.admitted.entry(*metric).or_default() += delta;
                *of.open.entry(minute).or_default() += delta;
            }
        } else if marked {
            // Only a record that was written has seen this moment.
            of.latest = second;
        }
        Ok(())
    }

    /// Whether a decision now is the first on a stale record, so that it marks it.
    fn will_mark(&mut self, application: usize) -> bool {
        let now = self.now();
        let will_mark =
            |record: &Record| record.freshness(now) == Freshness::Stale && !record.refresh_marked;
        self.observe(application, will_mark)
            .is_some_and(|(_, it)| it)
    }

    // ---- Answers

    fn said(&self, application: usize) -> Said {
        let of = &self.applications[application];
        Said {
            suspended: of.suspended,
            plan: of.plan.clone(),
            counters: of.counters.clone(),
            second: self.wall() / 1_000,
        }
    }

    fn authorization(&self, said: &Said) -> Authorization {
        let limits = said.plan.iter().map(|limit| UsageReport {
            metric: name(limit.metric),
            period: limit.period,
            window: Window {
                start: model::start(limit.period, said.second),
                end: model::end(limit.period, said.second),
            },
            maximum: limit.maximum,
            current: said.counters.of(limit.metric, limit.period, said.second) as u64,
        });
        let pairs = self.case.parents.iter().enumerate();
        let pairs = pairs.filter_map(|(child, parent)| parent.map(|parent| (parent, child)));
        let limited = |metric| said.plan.iter().any(|limit| limit.metric == metric);
        let pairs = pairs.filter(|(parent, _)| limited(*parent));
        Authorization {
            limits: limits.collect(),
            hierarchy: pairs
                .map(|(parent, child)| (name(parent), name(child)))
                .collect(),
            app_keys: None,
        }
    }

    /// An answer that lets the application in has been taken in.
    fn heard(&mut self, application: usize, said: Said) {
        let now = self.now().seconds();
        let of = &mut self.applications[application];
        of.denied = false;
        of.latest = of.latest.max(now);
        // A backend that is ahead says which window a new record begins in; in one that
        // is there it opens no window before its time.
        if !of.recorded {
            of.latest = of.latest.max(said.second);
        }
        of.recorded = true;
        for LimitOf { metric, period, .. } in &said.plan {
            let count = said.counters.of(*metric, *period, said.second);
            let others = count - of.sent.of(*metric, *period, said.second);
            let start = model::start(*period, said.second);
            if start != model::start(*period, of.latest) {
                // It speaks of another window than the open one, and is not believed.
                continue;
            }
            let window = (*metric, *period, start);
            let known = of.known.entry(window).or_default();
            *known = others.max(*known);
        }
        of.heard = said.plan;
    }

    fn hear(&mut self, question: Question, vm: usize) {
        let Question {
            application,
            slot,
            said,
            ..
        } = question;
        let now = self.now();
        let authorization = self.authorization(&said);
        let answer = if said.suspended {
            Err(Denial::ApplicationNotActive)
        } else {
            Ok(&authorization)
        };
        let digest = self.applications[application].digest.unwrap();
        self.vms[vm]
            .refresh(
                &self.data,
                (slot, digest, &Shown::default()),
                answer,
                &self.metrics,
                now,
                &LIFETIMES,
            )
            .unwrap();
        if said.suspended {
            self.applications[application].denied = true;
        } else {
            self.heard(application, said);
        }
    }

    // ---- Reports

    fn settings(&self) -> Settings {
        Settings {
            interval: 500,
            timeout: REPORT_TIMEOUT,
            batch: self.case.batch,
            uncertain: if self.case.resend {
                Uncertain::Resend
            } else {
                Uncertain::Drop
            },
            ahead: Ahead {
                least: 15_000,
                round: 500,
            },
        }
    }

    fn flush(&mut self, vm: usize, sweep: bool) -> Checked {
        let now = self.now();
        if sweep {
            for slot in (0..self.observer.slots()).map(Slot) {
                let found = self.observer.change_slot(&self.data, slot, |record| {
                    Some(Change::Keep(wants_flush(record, now)))
                });
                if found.unwrap() == Some(true) {
                    self.vms[vm].marks(Mark::Dirty, SCOPE).set(&self.data, slot);
                }
            }
        }
        for of in &mut self.applications {
            let mut open = of.open.iter().filter(|(_, units)| **units > 0);
            of.brought_back |= open.any(|(at, _)| *at > now.seconds() + 3_000);
        }
        let settings = self.settings();
        let terms = Terms {
            metrics: &self.metrics,
            settings,
            now,
        };
        let vm = &mut self.vms[vm];
        let (reports, settled) =
            self.flusher
                .next(&self.data, vm, &SERVICE, &terms, &mut MOST_LOOKS.clone());
        self.settled.add(settled);
        for report in reports {
            let transactions = self.read(&report.body);
            prop_assert!(!transactions.is_empty() && transactions.len() <= self.case.batch);
            for it in &transactions {
                let of = &mut self.applications[it.application];
                of.sent.count(&self.hierarchy, &it.usage, it.at, 1);
            }
            self.calls.push(Call {
                batch: report.batch,
                sent: self.monotonic,
                transactions,
            });
        }
        Ok(())
    }

    /// A report as the backend reads it: of a name that comes twice, the last counts.
    fn read(&self, body: &[u8]) -> Vec<Transaction> {
        let mut read = BTreeMap::<usize, BTreeMap<String, String>>::new();
        for (name, value) in form_urlencoded::parse(body) {
            if let Some((index, rest)) = name
                .strip_prefix("transactions[")
                .and_then(|it| it.split_once(']'))
            {
                let of = read.entry(index.parse().unwrap()).or_default();
                of.insert(rest.to_owned(), value.into_owned());
            }
        }
        let transactions = read.into_values().map(|fields| Transaction {
            application: self
                .applications
                .iter()
                .position(|it| it.key == fields["[user_key]"])
                .unwrap(),
            at: fields["[timestamp]"].parse().unwrap(),
            usage: fields
                .iter()
                .filter_map(|(name, value)| {
                    let name = name.strip_prefix("[usage][")?.strip_suffix(']')?;
                    Some((metric(name), value.parse().unwrap()))
                })
                .collect(),
        });
        transactions.collect()
    }

    fn end_report(&mut self, call: usize, end: End) {
        let Call {
            batch,
            transactions,
            ..
        } = self.calls.remove(call);
        let answer = match end {
            End::Accepted => ReportAnswer::Acknowledged,
            End::Refused => ReportAnswer::Refused {
                status: 403,
                why: Misconfiguration::ServiceTokenInvalid,
            },
            End::NotDelivered => ReportAnswer::NotDelivered(Failure::NotConnected),
            End::Uncertain(_) => ReportAnswer::Uncertain(Failure::Timeout),
        };
        let (settings, now) = (self.settings(), self.now());
        let terms = Terms {
            metrics: &self.metrics,
            settings,
            now,
        };
        let vm = &mut self.vms[0];
        let settled = self
            .flusher
            .answered(&self.data, vm, batch, &answer, &terms, batch);
        self.settled.add(settled);
        match end {
            End::Accepted => {
                for it in &transactions {
                    let of = &mut self.applications[it.application];
                    for (metric, delta) in &it.usage {
                        *of.acknowledged.entry(*metric).or_default() += delta;
                        let open = of.open.entry(it.at).or_default();
                        *open = open.saturating_sub(*delta);
                    }
                }
                self.queue(transactions);
            }
            End::Refused | End::NotDelivered => {
                for it in &transactions {
                    let of = &mut self.applications[it.application];
                    of.sent.count(&self.hierarchy, &it.usage, it.at, -1);
                }
            }
            End::Uncertain(applied) => self.unsure(transactions, applied),
        }
    }

    /// What nobody was told of: the filter goes by its policy, and the sums differ by that.
    fn unsure(&mut self, transactions: Vec<Transaction>, applied: bool) {
        self.uncertain += units(&transactions);
        for it in &transactions {
            let of = &mut self.applications[it.application];
            let more = i128::from(applied) - i128::from(!self.case.resend);
            of.expected.count(&self.hierarchy, &it.usage, it.at, more);
            if !self.case.resend {
                for (metric, delta) in &it.usage {
                    *of.dropped.entry(*metric).or_default() += delta;
                }
            }
        }
        if applied {
            self.queue(transactions);
        }
    }

    fn queue(&mut self, transactions: Vec<Transaction>) {
        let lag = if self.late { 300_000 } else { 3_900 };
        let due = self.monotonic + lag;
        self.jobs.push(Job { due, transactions });
    }

    fn apply(&mut self, job: usize) -> Checked {
        let now = self.wall() / 1_000;
        for Transaction {
            application,
            at,
            usage,
        } in self.jobs.remove(job).transactions
        {
            let taken = at + 86_400 >= now && at <= now + 3_600;
            prop_assert!(
                taken,
                "the backend drops a batch with usage of {} at {}",
                at,
                now
            );
            let of = &mut self.applications[application];
            of.counters.count(&self.hierarchy, &usage, at, 1);
        }
        Ok(())
    }

    // ---- Sums

    /// Every admitted unit is acknowledged, lost, pending or in flight.
    fn is_conserved(&mut self) -> Checked {
        for application in 0..self.applications.len() {
            let accounts = |record: &Record| {
                let accounts = record.accounts();
                let accounts = accounts.map(|(name, ledger, pending, in_flight)| {
                    (metric(name), (ledger, pending, in_flight))
                });
                accounts.collect::<BTreeMap<_, _>>()
            };
            let Some((_, accounts)) = self.observe(application, accounts) else {
                continue;
            };
            let of = &self.applications[application];
            for metric in 0..self.case.parents.len() {
                let (ledger, pending, in_flight) =
                    accounts.get(&metric).copied().unwrap_or_default();
                let count = |of: &BTreeMap<Metric, u64>| of.get(&metric).copied().unwrap_or(0);
                prop_assert_eq!(
                    ledger.admitted,
                    ledger.acknowledged + ledger.lost + pending + in_flight,
                    "(iii) {:?}, pending {}, in flight {}",
                    ledger,
                    pending,
                    in_flight
                );
                prop_assert_eq!(ledger.admitted, count(&of.admitted), "(iii) admitted");
                prop_assert_eq!(
                    ledger.acknowledged,
                    count(&of.acknowledged),
                    "(iii) acknowledged"
                );
            }
        }
        Ok(())
    }

    fn deliver_everything(&mut self) -> Checked {
        for round in 0..40 {
            self.flush(0, true)?;
            while !self.calls.is_empty() {
                self.end_report(0, End::Accepted);
                self.is_conserved()?;
            }
            let waits = |record: &Record| record.has_pending() || record.batch != 0;
            let waits = (0..self.applications.len())
                .any(|it| self.observe(it, waits).is_some_and(|(_, waits)| waits));
            if !waits {
                self.pass(301_000)?;
                return Ok(());
            }
            // Past the longest pause first.
            self.pass(if round % 10 == 0 { 61_000 } else { 1_000 })?;
        }
        prop_assert!(false, "(iii) usage is never delivered");
        Ok(())
    }

    /// What the backend has of us is what was admitted, but for what is counted otherwise.
    fn sums_agree(&mut self) -> Checked {
        let (mut lost, mut acknowledged) = (0, 0);
        for application in 0..self.applications.len() {
            let accounts = |record: &Record| {
                let accounts = record.accounts();
                accounts
                    .map(|(name, ledger, ..)| (metric(name), ledger))
                    .collect::<Vec<_>>()
            };
            let accounts = self.observe(application, accounts);
            let of = &mut self.applications[application];
            let mut too_old = 0;
            for (metric, ledger) in accounts.into_iter().flat_map(|(_, accounts)| accounts) {
                let dropped = of.dropped.get(&metric).copied().unwrap_or(0);
                prop_assert!(
                    ledger.lost >= dropped,
                    "(iii) lost {}, dropped {}",
                    ledger.lost,
                    dropped
                );
                let old = ledger.lost - dropped;
                // Whenever that was; only the sum of all time is looked at then.
                of.expected.count(&self.hierarchy, &[(metric, old)], 0, -1);
                too_old += old;
                lost += ledger.lost;
                acknowledged += ledger.acknowledged;
            }
            let windows: BTreeSet<_> = of
                .expected
                .0
                .keys()
                .chain(of.counters.0.keys())
                .copied()
                .collect();
            for (metric, period, start) in windows {
                use tollgate::authorization::Period::{Eternity, Minute};
                let told_apart = match period {
                    Eternity => true,
                    _ if too_old > 0 || of.brought_back => false,
                    Minute => !of.folded.contains(&(start / 3_600)),
                    _ => true,
                };
                if told_apart {
                    let ours = of.counters.of(metric, period, start)
                        - of.foreign.of(metric, period, start);
                    let expected = of.expected.of(metric, period, start);
                    prop_assert_eq!(
                        ours,
                        expected,
                        "(iii) the backend's and the gateway's sum of m{} in the {:?} of {}",
                        metric,
                        period,
                        start
                    );
                }
            }
        }
        let (resent, dropped) = if self.case.resend {
            (self.uncertain, 0)
        } else {
            (0, self.uncertain)
        };
        prop_assert_eq!(self.settled.resent, resent, "(iii) counted as resent");
        prop_assert_eq!(self.settled.dropped, dropped, "(iii) counted as dropped");
        prop_assert_eq!(
            self.settled.dropped + self.settled.too_old + self.settled.refused,
            lost,
            "(iii) counted as lost"
        );
        prop_assert_eq!(
            self.settled.acknowledged,
            acknowledged,
            "(iii) counted as acknowledged"
        );
        Ok(())
    }
}

fn identity(of: &Application) -> Identity<'_> {
    Identity {
        digest: of.digest.unwrap(),
        scope: SCOPE,
        kind: Kind::UserKey,
        value: of.key.as_bytes(),
        shown: Shown::default(),
        tells: false,
    }
}
