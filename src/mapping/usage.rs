//! What one request costs.
//!
//! Apart from the rules that fill it, because the decision and the records only read it.

use super::MetricId;

/// Metric -> delta of one request.
///
/// Each metric occurs once, with a delta above 0, in the order in which it was
/// first added. Made to be cleared and filled again, so that requests do not allocate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    deltas: Vec<(MetricId, u64)>,
}

impl Usage {
    /// A usage of nothing.
    #[must_use]
    pub const fn new() -> Self {
        Self { deltas: Vec::new() }
    }

    /// Forgets every delta and keeps the memory.
    pub fn clear(&mut self) {
        self.deltas.clear();
    }

    /// Adds to what is there of this metric, up to `u64::MAX`. Adding 0 adds nothing.
    pub fn add(&mut self, metric: MetricId, delta: u64) {
        if delta == 0 {
            return;
        }
        match self.deltas.iter_mut().find(|(known, _)| *known == metric) {
            Some((_, sum)) => *sum = sum.saturating_add(delta),
            None => self.deltas.push((metric, delta)),
        }
    }

    /// Every metric with its delta, in the order of their first addition.
    pub fn iter(&self) -> impl Iterator<Item = (MetricId, u64)> + '_ {
        self.deltas.iter().copied()
    }

    /// Whether the request costs nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.deltas.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mapping::Metrics;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    fn two_metrics() -> (MetricId, MetricId) {
        let metrics = Metrics::new([("a".into(), None), ("b".into(), None)]).unwrap();
        (metrics.id("a").unwrap(), metrics.id("b").unwrap())
    }

    #[test]
    fn deltas_add_up_per_metric_in_the_order_of_first_mention() {
        let (a, b) = two_metrics();
        let mut usage = Usage::new();
        usage.add(b, 1);
        usage.add(a, 2);
        usage.add(b, 3);
        assert_eq!(usage.iter().collect::<Vec<_>>(), [(b, 4), (a, 2)]);
    }

    #[test]
    fn a_sum_stops_at_the_largest_number() {
        let (a, _) = two_metrics();
        let mut usage = Usage::new();
        usage.add(a, u64::MAX);
        usage.add(a, 1);
        assert_eq!(usage.iter().collect::<Vec<_>>(), [(a, u64::MAX)]);
    }

    #[test]
    fn nothing_added_or_everything_cleared_is_no_usage() {
        let (a, b) = two_metrics();
        let mut usage = Usage::new();
        usage.add(a, 0);
        assert!(usage.is_empty());
        usage.add(b, 1);
        assert!(!usage.is_empty());
        usage.clear();
        assert!(usage.is_empty());
    }
}
