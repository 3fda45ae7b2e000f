//! Services and what happens to them, at random.
//!
//! Apart from what is claimed of them. Whom a step is about is a number that is taken modulo
//! what there is, so a service and its steps shrink independently.

use crate::model::{Hierarchy, LimitOf, Metric};
use proptest::collection::vec;
use proptest::prelude::*;
use std::fmt;
use time::macros::datetime;
use tollgate::authorization::Period;

/// A service with its applications, and the sequence of what happens.
pub struct Case {
    pub parents: Vec<Option<Metric>>,
    /// Whether the configuration names the parent, where it need not.
    pub named: Vec<bool>,
    pub applications: Vec<Application>,
    pub start: u64,
    pub resend: bool,
    pub batch: usize,
    pub seed: u64,
    pub steps: Vec<Step>,
}

impl fmt::Debug for Case {
    /// A line for each thing, which is what a failure is read by.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            parents,
            named,
            start,
            resend,
            batch,
            seed,
            ..
        } = self;
        writeln!(
            formatter,
            "parents {parents:?}, named {named:?}, start {start}"
        )?;
        writeln!(formatter, "resend {resend}, batch {batch}, seed {seed}")?;
        for application in &self.applications {
            writeln!(formatter, "{application:?}")?;
        }
        for step in &self.steps {
            writeln!(formatter, "{step:?}")?;
        }
        Ok(())
    }
}

/// One application: its plan, and what it has used before.
#[derive(Debug)]
pub struct Application {
    pub plan: Vec<LimitOf>,
    pub before: Vec<(Metric, u64)>,
}

/// How a report ends.
#[derive(Clone, Copy, Debug)]
pub enum End {
    Accepted,
    Refused,
    NotDelivered,
    /// Whether it was applied all the same.
    Uncertain(bool),
}

/// One thing that happens.
#[derive(Clone, Debug)]
pub enum Step {
    Request {
        application: usize,
        vm: usize,
        usage: Vec<(usize, u64)>,
    },
    /// Milliseconds pass.
    Pass(u64),
    /// Time passes until so many milliseconds after a window's end.
    PassTo(Period, i64),
    /// The gateway's wall clock is set so many seconds ahead of the backend's.
    SetClock(i64),
    Flush {
        vm: usize,
        sweep: bool,
    },
    EndReport(usize, End),
    /// The backend's workers apply so many of the accepted reports.
    Apply(usize),
    Ask(usize),
    Hear {
        question: usize,
        vm: usize,
    },
    /// Another gateway's usage arrives at the backend.
    Foreign(usize, usize, u64),
    /// Every VM is made anew; their calls in flight are applied or not, answered never.
    Restart(bool),
    Maximum(usize, usize, u64),
    /// The application is suspended, or lives again.
    Suspend(usize),
}

/// Moments shortly before a window ends.
const EDGES: [u64; 8] = [
    datetime!(2026-12-31 23:59:30 UTC).unix_timestamp() as u64,
    datetime!(2028-02-28 23:59:30 UTC).unix_timestamp() as u64,
    datetime!(2028-02-29 23:59:30 UTC).unix_timestamp() as u64,
    datetime!(2027-02-28 23:59:30 UTC).unix_timestamp() as u64,
    // A Sunday.
    datetime!(2026-11-22 23:59:30 UTC).unix_timestamp() as u64,
    datetime!(2026-04-30 23:58:00 UTC).unix_timestamp() as u64,
    datetime!(2026-11-21 20:59:00 UTC).unix_timestamp() as u64,
    datetime!(2100-02-28 23:59:30 UTC).unix_timestamp() as u64,
];

fn maximum() -> impl Strategy<Value = u64> {
    prop_oneof![1 => Just(0), 6 => 1..12_u64, 3 => 12..60_u64, 1 => Just(u64::MAX)]
}

fn period() -> impl Strategy<Value = Period> {
    (0..7_usize).prop_map(|index| Period::ALL[index])
}

/// Up to seven metrics, several roots, four levels at most.
fn parents() -> impl Strategy<Value = Vec<Option<Metric>>> {
    vec(any::<Option<u8>>(), 1..=7).prop_map(|raw| {
        let mut hierarchy = Hierarchy(Vec::new());
        for (metric, parent) in raw.into_iter().enumerate() {
            let parent = parent
                .filter(|_| metric > 0)
                .map(|it| usize::from(it) % metric);
            let parent = parent.filter(|it| hierarchy.lineage(*it).count() < 4);
            hierarchy.0.push(parent);
        }
        hierarchy.0
    })
}

fn application(metrics: usize, used: bool) -> impl Strategy<Value = Application> {
    let before = if used { 0..=3 } else { 0..=0 };
    let plan = vec((0..metrics, period(), maximum()), 0..=6);
    (plan, vec((0..metrics, 1..20_u64), before)).prop_map(|(raw, before)| {
        let mut plan: Vec<LimitOf> = Vec::new();
        for (metric, period, maximum) in raw {
            if !plan
                .iter()
                .any(|it| it.metric == metric && it.period == period)
            {
                plan.push(LimitOf {
                    metric,
                    period,
                    maximum,
                });
            }
        }
        Application { plan, before }
    })
}

fn end() -> impl Strategy<Value = End> {
    prop_oneof![
        4 => Just(End::Accepted),
        1 => Just(End::Refused),
        1 => Just(End::NotDelivered),
        2 => any::<bool>().prop_map(End::Uncertain),
    ]
}

fn step(foreign: bool) -> impl Strategy<Value = Step> {
    let some = 0..8_usize;
    let of_others = (some.clone(), some, 1..9_u64)
        .prop_map(|(application, metric, delta)| Step::Foreign(application, metric, delta));
    if foreign {
        prop_oneof![10 => own_step(), 1 => of_others].boxed()
    } else {
        own_step().boxed()
    }
}

fn own_step() -> impl Strategy<Value = Step> {
    let some = 0..8_usize;
    let milliseconds = prop_oneof![
        4 => 0..900_u64,
        4 => 900..70_000_u64,
        1 => 70_000..900_000_u64,
        1 => 900_000..90_000_000_u64,
    ];
    let edge = prop_oneof![6 => 0..3_usize, 1 => 3..6_usize].prop_map(|index| Period::ALL[index]);
    let clock = (0..10_usize).prop_map(|it| [0, -120, -61, -1, 1, 59, 61, 190, 1_000, 3_000][it]);
    prop_oneof![
        30 => (some.clone(), some.clone(), vec((some.clone(), 1..5_u64), 1..=3)).prop_map(
            |(application, vm, usage)| Step::Request { application, vm, usage }
        ),
        6 => milliseconds.prop_map(Step::Pass),
        4 => (edge, -1_100..1_100_i64).prop_map(|(period, after)| Step::PassTo(period, after)),
        2 => clock.prop_map(Step::SetClock),
        10 => (some.clone(), any::<bool>()).prop_map(|(vm, sweep)| Step::Flush { vm, sweep }),
        9 => (some.clone(), end()).prop_map(|(call, end)| Step::EndReport(call, end)),
        5 => (1..4_usize).prop_map(Step::Apply),
        6 => some.clone().prop_map(Step::Ask),
        6 => (some.clone(), some.clone()).prop_map(|(question, vm)| Step::Hear { question, vm }),
        1 => any::<bool>().prop_map(Step::Restart),
        1 => (some.clone(), some.clone(), maximum())
            .prop_map(|(application, limit, maximum)| Step::Maximum(application, limit, maximum)),
        1 => some.prop_map(Step::Suspend),
    ]
}

/// A case; `used`: with usage from before, `foreign`: with other gateways.
pub fn case(used: bool, foreign: bool) -> impl Strategy<Value = Case> {
    let start = (0..EDGES.len(), 0..100_u64).prop_map(|(edge, before)| EDGES[edge] - before);
    parents().prop_flat_map(move |parents| {
        let metrics = parents.len();
        (
            Just(parents),
            vec(any::<bool>(), metrics),
            vec(application(metrics, used), 1..=3),
            start.clone(),
            (
                any::<bool>(),
                prop_oneof![Just(1), Just(2), Just(100_usize)],
                any::<u64>(),
            ),
            vec(step(foreign), 1..50),
        )
            .prop_map(
                |(parents, named, applications, start, (resend, batch, seed), steps)| Case {
                    parents,
                    named,
                    applications,
                    start,
                    resend,
                    batch,
                    seed,
                    steps,
                },
            )
    })
}
