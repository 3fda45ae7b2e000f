//! The usage that workers have applied: the only thing that changes as calls
//! are made, apart from the queue.

use crate::calendar::{Period, control_time};
use crate::usage::Amount;
use serde::ser::{Serialize, SerializeMap, Serializer};
use std::collections::BTreeMap;

/// Usage by service, application, metric, period and window.
///
/// Every value fits a signed 64-bit number, as those of the backend's store do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage(BTreeMap<String, BTreeMap<String, BTreeMap<String, Counter>>>);

/// One metric's usage: period -> start of the window (Unix seconds) -> value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Counter(BTreeMap<Period, BTreeMap<i64, u64>>);

/// A number that the store refuses: the counter would not fit 64 bits.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct OutOfRange;

const LARGEST: u64 = i64::MAX as u64;

impl Usage {
    /// The value for the window of `period` that holds the moment (Unix seconds).
    #[must_use]
    pub fn value(
        &self,
        service: &str,
        application: &str,
        metric: &str,
        period: Period,
        seconds: i64,
    ) -> u64 {
        self.counter(service, application, metric)
            .and_then(|counter| counter.0.get(&period))
            .and_then(|windows| windows.get(&period.window(seconds).0))
            .copied()
            .unwrap_or(0)
    }

    /// Everything that was ever counted for a metric of an application.
    #[must_use]
    pub fn total(&self, service: &str, application: &str, metric: &str) -> u64 {
        self.value(service, application, metric, Period::Eternity, 0)
    }

    /// The windows of one period that hold something: start (Unix seconds) and value.
    #[must_use]
    pub fn windows(
        &self,
        service: &str,
        application: &str,
        metric: &str,
        period: Period,
    ) -> Vec<(i64, u64)> {
        self.counter(service, application, metric)
            .and_then(|counter| counter.0.get(&period))
            .map(|windows| {
                windows
                    .iter()
                    .map(|(start, value)| (*start, *value))
                    .collect()
            })
            .unwrap_or_default()
    }

    fn counter(&self, service: &str, application: &str, metric: &str) -> Option<&Counter> {
        self.0.get(service)?.get(application)?.get(metric)
    }

    /// Counts an amount in every period, at this moment (Unix seconds).
    ///
    /// # Errors
    /// When some counter refused it; the others took it.
    pub(crate) fn apply(
        &mut self,
        service: &str,
        application: &str,
        metric: &str,
        amount: Amount,
        seconds: i64,
    ) -> Result<(), OutOfRange> {
        let counter = self
            .0
            .entry(service.to_owned())
            .or_default()
            .entry(application.to_owned())
            .or_default()
            .entry(metric.to_owned())
            .or_default();
        let mut outcome = Ok(());
        for period in Period::LONGEST_FIRST {
            let windows = counter.0.entry(period).or_default();
            let start = period.window(seconds).0;
            let current = windows.get(&start).copied().unwrap_or(0);
            match u64::try_from(amount.apply(u128::from(current))) {
                Ok(0) => {
                    windows.remove(&start);
                }
                Ok(value) if value <= LARGEST => {
                    windows.insert(start, value);
                }
                _ => outcome = Err(OutOfRange),
            }
        }
        outcome
    }
}

impl Serialize for Usage {
    /// `{"usage": {service: {application: {metric: {period: {start: value}}}}},
    /// "total": {service: {application: {metric: value}}}}`
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let totals: BTreeMap<_, BTreeMap<_, BTreeMap<_, _>>> = self
            .0
            .iter()
            .map(|(service, applications)| {
                let applications = applications.iter().map(|(application, metrics)| {
                    let totals = metrics
                        .keys()
                        .map(|metric| (metric, self.total(service, application, metric)));
                    (application, totals.collect())
                });
                (service, applications.collect())
            })
            .collect();
        let mut map = serializer.serialize_map(Some(2))?;
        map.serialize_entry("usage", &self.0)?;
        map.serialize_entry("total", &totals)?;
        map.end()
    }
}

impl Serialize for Counter {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let periods = self.0.iter().map(|(period, windows)| {
            let windows: BTreeMap<_, _> = windows
                .iter()
                .map(|(start, value)| (control_time(*start), value))
                .collect();
            (period.name(), windows)
        });
        serializer.collect_map(periods)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_amount_counts_in_every_period_of_its_moment() {
        let mut usage = Usage::default();
        usage.apply("s", "a", "hits", Amount::Add(2), 30).unwrap();
        usage.apply("s", "a", "hits", Amount::Add(3), 90).unwrap();
        assert_eq!(usage.value("s", "a", "hits", Period::Minute, 0), 2);
        assert_eq!(usage.value("s", "a", "hits", Period::Minute, 119), 3);
        assert_eq!(usage.value("s", "a", "hits", Period::Hour, 3_599), 5);
        assert_eq!(usage.total("s", "a", "hits"), 5);
        usage.apply("s", "a", "hits", Amount::Set(0), 90).unwrap();
        assert_eq!(usage.total("s", "a", "hits"), 0);
        assert_eq!(usage.windows("s", "a", "hits", Period::Minute), [(0, 2)]);
    }

    #[test]
    fn a_counter_never_leaves_the_range_of_the_store() {
        let mut usage = Usage::default();
        let huge = Amount::Add(u128::from(LARGEST));
        usage.apply("s", "a", "hits", huge, 0).unwrap();
        assert_eq!(
            usage.apply("s", "a", "hits", Amount::Add(1), 0),
            Err(OutOfRange)
        );
        assert_eq!(
            usage.apply("s", "a", "hits", Amount::Add(u128::MAX), 0),
            Err(OutOfRange)
        );
        assert_eq!(usage.total("s", "a", "hits"), LARGEST);
    }
}
