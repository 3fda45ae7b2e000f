//! What became of requests, and what of that may not be: wrong statuses, limits overrun, and
//! refusals where something was left.
//!
//! In which window a request was counted is known as far as the times say at which it was sent
//! and answered: only what lies wholly in a window is held against a limit, and whatever may lie in
//! it speaks for a refusal. So nothing is ever found that is none.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use serde::Serialize;
use tollgate_harness::Client;

use super::consumers::{METRICS, Request, Sort};
use super::world::wall;

/// More violations than these are counted as one.
const MOST_VIOLATIONS: usize = 50;
const MINUTE: Duration = Duration::from_secs(60);

/// What became of one request.
pub struct Became {
    pub status: u16,
    sent: Duration,
    answered: Duration,
    took: Duration,
}

impl Became {
    /// Sends it.
    pub async fn of(client: &Client, request: &Request) -> Result<Self> {
        let mut headers = request.headers();
        headers.push(("host", request.host()));
        let sent = wall()?;
        let begun = Instant::now();
        let reply = client.get(request.path, &headers).await?;
        Ok(Self {
            status: reply.status,
            sent,
            took: begun.elapsed(),
            answered: wall()?,
        })
    }
}

/// A request of an application with limits.
struct Counted {
    sent: Duration,
    answered: Duration,
    /// Of each of [`METRICS`], with what it means for its parent.
    units: [u64; 2],
    admitted: bool,
}

/// See the module's description.
pub struct Tally {
    limits: [u64; 2],
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    requests: u64,
    behind: u64,
    outcomes: BTreeMap<(Sort, u16), u64>,
    known: Vec<Duration>,
    /// How long those took of whom nothing needs to be known: as long as the machine makes them.
    beside: Vec<Duration>,
    /// Units of each of [`METRICS`] without what they mean for their parents, by service and
    /// application.
    admitted: BTreeMap<(&'static str, String), [u64; 2]>,
    counted: BTreeMap<(&'static str, String), Vec<Counted>>,
    windows: u64,
    full_windows: u64,
    /// Units that were counted twice at service management, and here may be taken for somebody
    /// else's: in all at each rest.
    doubled: Vec<BTreeMap<(&'static str, String), u64>>,
    violations: Vec<String>,
    more: u64,
}

/// The figures.
#[derive(Serialize)]
pub struct Figures {
    pub requests: u64,
    pub behind: u64,
    pub outcomes: BTreeMap<String, u64>,
    pub known_p50_ms: f64,
    pub known_p99_ms: f64,
    pub known_longest_ms: f64,
    pub beside_p99_ms: f64,
    pub beside_longest_ms: f64,
    pub windows: u64,
    pub full_windows: u64,
}

impl Tally {
    /// `limits`: what may be used a minute, of each of [`METRICS`].
    pub fn new(limits: [u64; 2]) -> Self {
        Self {
            limits,
            inner: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request could not be sent in time.
    pub fn behind(&self) {
        self.lock().behind += 1;
    }

    /// A request has ended.
    pub fn add(&self, request: &Request, became: Result<Became>) {
        let mut inner = self.lock();
        inner.requests += 1;
        let became = match became {
            Ok(became) => became,
            Err(error) => {
                inner.violation(format!("no answer to {request:?}: {error:#}"));
                return;
            }
        };
        let Request { sort, service, .. } = *request;
        *inner.outcomes.entry((sort, became.status)).or_default() += 1;
        if !sort.may_be(became.status) {
            inner.violation(format!("{} to {request:?}", became.status));
        }
        match sort {
            Sort::Known => inner.known.push(became.took),
            Sort::Anonymous | Sort::NoRule => inner.beside.push(became.took),
            _ => {}
        }
        let whose = (service, request.application.clone());
        let admitted = became.status == 200;
        if admitted {
            let units = inner.admitted.entry(whose.clone()).or_default();
            units
                .iter_mut()
                .zip(request.cost)
                .for_each(|(sum, cost)| *sum += cost);
        }
        if sort == Sort::Limited {
            inner.counted.entry(whose).or_default().push(Counted {
                sent: became.sent,
                answered: became.answered,
                units: Request::counted(request.cost),
                admitted,
            });
        }
    }

    pub fn violation(&self, what: String) {
        self.lock().violation(what);
    }

    /// So many units in all have been counted twice by now, by service and application.
    pub fn doubled(&self, units: BTreeMap<(&'static str, String), u64>) {
        self.lock().doubled.push(units);
    }

    /// Nothing is under way: looks at all windows that ended before then.
    pub fn windows_until(&self, end: Duration) {
        let mut inner = self.lock();
        for (whose, mut counted) in std::mem::take(&mut inner.counted) {
            let doubled = inner.doubled_lately(&whose);
            let mut minutes: Vec<u64> = counted.iter().map(|one| minute(one.sent)).collect();
            minutes.sort_unstable();
            minutes.dedup();
            for minute in minutes {
                if MINUTE * u32::try_from(minute + 1).unwrap_or(u32::MAX) > end {
                    continue;
                }
                inner.windows += 1;
                let found = judge(&counted, minute, self.limits, doubled);
                inner.full_windows += u64::from(found.full);
                for what in found.wrong {
                    inner.violation(format!("{} of {}: {what}", whose.1, whose.0));
                }
            }
            // A window is looked at once, and those that have ended are behind us.
            counted.retain(|one| minute(one.answered) >= minute(end));
            if !counted.is_empty() {
                inner.counted.insert(whose, counted);
            }
        }
    }

    /// Everything has ended.
    pub fn close(&self) {
        self.windows_until(Duration::MAX);
    }

    /// What was admitted, by service, application and each of [`METRICS`].
    pub fn admitted(&self) -> BTreeMap<(&'static str, String), [u64; 2]> {
        self.lock().admitted.clone()
    }

    pub fn progress(&self) -> String {
        let inner = self.lock();
        let found = inner.violations.len() as u64 + inner.more;
        format!("{} requests, {found} violations", inner.requests)
    }

    pub fn violations(&self) -> Vec<String> {
        let inner = self.lock();
        let more = (inner.more > 0).then(|| format!("and {} more", inner.more));
        inner.violations.iter().cloned().chain(more).collect()
    }

    pub fn figures(&self) -> Figures {
        let mut inner = self.lock();
        let inner = &mut *inner;
        let known = [50, 99, 100].map(|percent| percentile(&mut inner.known, percent));
        let beside = [99, 100].map(|percent| percentile(&mut inner.beside, percent));
        let outcomes = inner.outcomes.iter();
        Figures {
            requests: inner.requests,
            behind: inner.behind,
            outcomes: outcomes
                .map(|((sort, status), count)| (format!("{sort:?} {status}"), *count))
                .collect(),
            known_p50_ms: known[0],
            known_p99_ms: known[1],
            known_longest_ms: known[2],
            beside_p99_ms: beside[0],
            beside_longest_ms: beside[1],
            windows: inner.windows,
            full_windows: inner.full_windows,
        }
    }
}

impl Inner {
    /// A window reaches into two rounds at most.
    fn doubled_lately(&self, whose: &(&'static str, String)) -> u64 {
        let of = |rest: Option<&BTreeMap<_, u64>>| rest.and_then(|it| it.get(whose)).copied();
        let before = self.doubled.len().checked_sub(3);
        let before = of(before.and_then(|rest| self.doubled.get(rest)));
        of(self.doubled.last())
            .unwrap_or(0)
            .saturating_sub(before.unwrap_or(0))
    }

    fn violation(&mut self, what: String) {
        if self.violations.len() < MOST_VIOLATIONS {
            eprintln!("VIOLATION: {what}");
            self.violations.push(what);
        } else {
            self.more += 1;
        }
    }
}

/// Milliseconds within which so many of a hundred were answered.
fn percentile(times: &mut [Duration], percent: usize) -> f64 {
    times.sort_unstable();
    let rank = (times.len() * percent).div_ceil(100).max(1);
    let took = times.get(rank - 1).copied().unwrap_or_default();
    took.as_secs_f64() * 1_000.0
}

/// Minutes since 1970.
const fn minute(at: Duration) -> u64 {
    at.as_secs() / 60
}

struct Found {
    /// Somebody was refused.
    full: bool,
    wrong: Vec<String>,
}

/// Looks at one window of one application. `doubled`: so many units may be counted twice.
fn judge(counted: &[Counted], window: u64, limits: [u64; 2], doubled: u64) -> Found {
    let wholly = |one: &&Counted| minute(one.sent) == window && minute(one.answered) == window;
    let perhaps = |one: &&Counted| minute(one.sent) <= window && window <= minute(one.answered);
    let mut wrong = Vec::new();
    for (metric, limit) in limits.into_iter().enumerate() {
        let surely: u64 = counted
            .iter()
            .filter(wholly)
            .filter(|one| one.admitted)
            .map(|one| one.units[metric])
            .sum();
        if surely > limit {
            wrong.push(format!(
                "{surely} {} were admitted in the minute {window}, of {limit}",
                METRICS[metric]
            ));
        }
    }
    let refused: Vec<&Counted> = counted
        .iter()
        .filter(wholly)
        .filter(|one| !one.admitted)
        .collect();
    for refusal in &refused {
        let before = |one: &&Counted| one.admitted && one.sent <= refusal.answered;
        let used = |metric: usize| -> u64 {
            let all = counted.iter().filter(perhaps).filter(before);
            all.map(|one| one.units[metric]).sum()
        };
        let right = limits.into_iter().enumerate().any(|(metric, limit)| {
            let units = refusal.units[metric];
            units > 0 && used(metric) + units + doubled > limit
        });
        if !right {
            let used = [used(0), used(1)];
            wrong.push(format!(
                "{:?} were refused in the minute {window} with {used:?} of {limits:?} used",
                refusal.units
            ));
            break;
        }
    }
    Found {
        full: !refused.is_empty(),
        wrong,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(sent: u64, answered: u64, units: u64, admitted: bool) -> Counted {
        Counted {
            sent: Duration::from_secs(sent),
            answered: Duration::from_secs(answered),
            units: [0, units],
            admitted,
        }
    }

    fn wrong(counted: &[Counted], doubled: u64) -> usize {
        judge(counted, 1, [0, 10], doubled).wrong.len()
    }

    #[test]
    fn an_overrun_is_found_and_nothing_that_may_belong_to_another_window_is_one() {
        assert_eq!(wrong(&[one(60, 61, 10, true)], 0), 0);
        assert_eq!(
            wrong(&[one(60, 61, 10, true), one(119, 119, 1, true)], 0),
            1
        );
        assert_eq!(
            wrong(&[one(60, 61, 10, true), one(119, 120, 1, true)], 0),
            0
        );
        assert_eq!(wrong(&[one(59, 60, 10, true), one(70, 71, 1, true)], 0), 0);
    }

    #[test]
    fn a_refusal_is_wrong_unless_something_may_have_used_the_limit_up() {
        let refused = || one(70, 71, 1, false);
        assert_eq!(wrong(&[one(60, 61, 9, true), refused()], 0), 1);
        assert_eq!(wrong(&[one(60, 61, 9, true), refused()], 1), 0);
        assert_eq!(wrong(&[one(60, 61, 10, true), refused()], 0), 0);
        assert_eq!(wrong(&[one(59, 60, 10, true), refused()], 0), 0);
        assert_eq!(wrong(&[one(72, 73, 10, true), refused()], 0), 1);
        assert_eq!(wrong(&[one(119, 120, 1, false)], 0), 0);
    }
}
