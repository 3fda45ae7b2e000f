//! Units of usage by metric, for the sums of a whole service.
//!
//! Apart from a record's ledger, which has its own names: these are of the service's table, so
//! there are never more of them than its configuration has.

use crate::mapping::{MetricId, Metrics};
use smallvec::SmallVec;

/// Units of some metrics, each above 0. `None` stands for all metrics that this configuration
/// does not have: usage of an older one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Units(SmallVec<[(Option<MetricId>, u64); 2]>);

impl Units {
    /// Adds units of a metric.
    pub fn add(&mut self, metric: Option<MetricId>, units: u64) {
        if units == 0 {
            return;
        }
        match self.0.iter_mut().find(|(known, _)| *known == metric) {
            Some((_, sum)) => *sum = sum.saturating_add(units),
            None => self.0.push((metric, units)),
        }
    }

    /// Adds units of a metric by its name.
    pub fn add_named(&mut self, metrics: &Metrics, name: &str, units: u64) {
        self.add(metrics.id(name), units);
    }

    /// Adds all of these.
    pub fn add_all(&mut self, others: &Self) {
        for (metric, units) in others.iter() {
            self.add(metric, units);
        }
    }

    /// Every metric with its units.
    pub fn iter(&self) -> impl Iterator<Item = (Option<MetricId>, u64)> + '_ {
        self.0.iter().copied()
    }

    /// All units together.
    #[must_use]
    pub fn sum(&self) -> u64 {
        self.iter()
            .fold(0, |sum, (_, units)| sum.saturating_add(units))
    }

    /// Units of one metric.
    #[must_use]
    pub fn of(&self, metric: Option<MetricId>) -> u64 {
        self.iter()
            .find(|(known, _)| *known == metric)
            .map_or(0, |(_, units)| units)
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
