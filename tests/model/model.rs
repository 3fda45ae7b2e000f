//! What the backend decides, as simply as it can be said: counters by metric, period and
//! window, and one comparison (service management protocol, section 8).
//!
//! Apart from the filter in every line: the calendar is computed anew by the `time` crate, metrics
//! are plain numbers, and nothing is remembered but sums. Of the filter's own only the
//! names of the periods are used.

use std::collections::BTreeMap;
use time::{Date, Duration, OffsetDateTime, Time};
use tollgate::authorization::Period;

/// A metric: its place among the service's metrics.
pub type Metric = usize;
/// What a request costs.
pub type Usage = [(Metric, u64)];

/// The first second of the calendar window that this second is in.
pub fn start(period: Period, second: u64) -> u64 {
    let now = OffsetDateTime::from_unix_timestamp(second as i64).unwrap();
    let midnight = |date: Date| date.with_time(Time::MIDNIGHT).assume_utc();
    let start = match period {
        Period::Minute => now - Duration::seconds(now.second().into()),
        Period::Hour => now.replace_time(Time::from_hms(now.hour(), 0, 0).unwrap()),
        Period::Day => midnight(now.date()),
        Period::Week => {
            midnight(now.date()) - Duration::days(now.weekday().number_days_from_monday().into())
        }
        Period::Month => midnight(now.date().replace_day(1).unwrap()),
        Period::Year => midnight(Date::from_ordinal_date(now.year(), 1).unwrap()),
        Period::Eternity => OffsetDateTime::UNIX_EPOCH,
    };
    start.unix_timestamp() as u64
}

/// The first second after that window.
pub fn end(period: Period, second: u64) -> u64 {
    // Somewhere in the next window, whatever the length of this one.
    let into_the_next = match period {
        Period::Minute => 60,
        Period::Hour => 3_600,
        Period::Day => 86_400,
        Period::Week => 7 * 86_400,
        Period::Month => 32 * 86_400,
        Period::Year => 367 * 86_400,
        Period::Eternity => return u64::MAX,
    };
    start(period, start(period, second) + into_the_next)
}

/// The parent of each metric.
pub struct Hierarchy(pub Vec<Option<Metric>>);

impl Hierarchy {
    /// A metric and all its ancestors: what its usage counts for.
    pub fn lineage(&self, metric: Metric) -> impl Iterator<Item = Metric> + '_ {
        std::iter::successors(Some(metric), |metric| self.0[*metric])
    }
}

/// Usage by metric, period and window. Signed, so that differences can be kept too.
#[derive(Clone, Debug, Default)]
pub struct Counters(pub BTreeMap<(Metric, Period, u64), i128>);

impl Counters {
    /// Counts usage of that second so many times, in every period and for every ancestor.
    pub fn count(&mut self, hierarchy: &Hierarchy, usage: &Usage, second: u64, times: i128) {
        for (metric, delta) in usage {
            for counted in hierarchy.lineage(*metric) {
                for period in Period::ALL {
                    let window = (counted, period, start(period, second));
                    *self.0.entry(window).or_default() += i128::from(*delta) * times;
                }
            }
        }
    }

    /// What the window of that second holds.
    pub fn of(&self, metric: Metric, period: Period, second: u64) -> i128 {
        let window = (metric, period, start(period, second));
        self.0.get(&window).copied().unwrap_or(0)
    }
}

/// One limit of a plan.
#[derive(Clone, Copy, Debug)]
pub struct LimitOf {
    pub metric: Metric,
    pub period: Period,
    pub maximum: u64,
}

/// What a denial says: whether a metric is disabled, and when the last window ends that
/// is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Denied {
    pub disabled: bool,
    pub until: u64,
}

/// Authorized iff `stored + usage <= maximum` for every limit on a metric in the usage or
/// on an ancestor of one.
pub fn authorize(
    plan: &[LimitOf],
    hierarchy: &Hierarchy,
    usage: &Usage,
    second: u64,
    stored: impl Fn(&LimitOf) -> i128,
) -> Result<(), Denied> {
    let cost = |limit: &LimitOf| -> i128 {
        let counts = |metric| hierarchy.lineage(metric).any(|it| it == limit.metric);
        let of_limit = usage.iter().filter(|(metric, _)| counts(*metric));
        of_limit.map(|(_, delta)| i128::from(*delta)).sum()
    };
    let exceeded: Vec<_> = plan
        .iter()
        .filter(|limit| cost(limit) > 0)
        .filter(|limit| stored(limit) + cost(limit) > i128::from(limit.maximum))
        .collect();
    match exceeded.iter().map(|limit| end(limit.period, second)).max() {
        None => Ok(()),
        Some(until) => Err(Denied {
            disabled: exceeded.iter().any(|limit| limit.maximum == 0),
            until,
        }),
    }
}
