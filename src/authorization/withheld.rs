//! Sending a record's usage without that of some metrics.
//!
//! Apart from the record because it adds nothing to what a record is: the metrics stay
//! pending as if they had been admitted after the batch was made.

use super::names::Names;
use super::record::{Dispatched, Record};
use crate::mapping::Metrics;

impl Record {
    /// The metrics with pending usage, and of each whether the last answer had a limit of
    /// it. A metric can come several times, once for each minute.
    pub fn pending_metrics(&self) -> impl Iterator<Item = (&str, bool)> {
        let pending = self.usage.iter().filter(|entry| entry.pending > 0);
        pending.map(|entry| {
            let limited = self.limits.iter().any(|limit| limit.name == entry.name);
            (self.names.text(entry.name), limited)
        })
    }

    /// [`Record::dispatch`] of all pending usage but that of the metrics that are withheld:
    /// called with a metric's name and whether the last answer had a limit of it.
    pub fn dispatch_without(
        &mut self,
        withheld: impl Fn(&str, bool) -> bool,
        batch: u64,
        deadline: u64,
        most: usize,
        metrics: &Metrics,
    ) -> Vec<Dispatched> {
        let of_withheld = self
            .pending_metrics()
            .filter(|(metric, limited)| withheld(metric, *limited))
            .filter_map(|(metric, _)| self.names.find(metric))
            .fold(0, |names, name| names | Names::bit(name));
        if of_withheld == 0 {
            return self.dispatch(batch, deadline, most, metrics);
        }
        let is_withheld = |name| Names::bit(name) & of_withheld != 0;
        let mut aside = Vec::new();
        for entry in self
            .usage
            .iter_mut()
            .filter(|entry| is_withheld(entry.name))
        {
            aside.push((entry.name, entry.hour, entry.at, entry.pending));
            entry.pending = 0;
        }
        let transactions = self.dispatch(batch, deadline, most, metrics);
        // There is one entry of a metric for each minute and one for each hour.
        for (name, hour, at, pending) in aside {
            let entry = self
                .usage
                .iter_mut()
                .find(|entry| (entry.name, entry.hour, entry.at) == (name, hour, at));
            if let Some(entry) = entry {
                entry.pending = pending;
            }
        }
        transactions
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::Outcome;
    use super::super::testing::{at, usage};
    use super::*;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    fn table() -> Metrics {
        Metrics::new(["hits", "typo"].map(|name| (name.to_owned(), None))).unwrap()
    }

    /// A record with a unit of both metrics in each of these minutes.
    fn used_in(minutes: &[u64], metrics: &Metrics) -> Record {
        let mut record = Record::vacant();
        for minute in minutes {
            let both = usage(metrics, &[("hits", 1), ("typo", 1)]);
            record.admit(&both, metrics, at(minute * 60_000)).unwrap();
        }
        record
    }

    fn pending(record: &Record, metric: &str) -> u64 {
        let mut accounts = record.accounts();
        accounts.find(|(name, ..)| *name == metric).unwrap().2
    }

    #[test]
    fn what_is_withheld_stays_pending_and_goes_with_a_later_batch() {
        let metrics = table();
        let mut record = used_in(&[1, 2, 90], &metrics);
        let sent = record.dispatch_without(|name, _| name == "typo", 7, 0, 62, &metrics);
        let sent: Vec<_> = sent.into_iter().flat_map(|it| it.usage).collect();
        // The first two minutes are long ago, and one sum.
        assert_eq!(sent, [("hits".to_owned(), 2), ("hits".to_owned(), 1)]);
        assert_eq!((pending(&record, "hits"), pending(&record, "typo")), (0, 3));

        record.settle(7, Outcome::Acknowledged, &metrics, at(91 * 60_000));
        let sent = record.dispatch_without(|_, _| false, 8, 0, 62, &metrics);
        let units = sent.iter().flat_map(|it| &it.usage).map(|(name, units)| {
            assert_eq!(name, "typo");
            *units
        });
        assert_eq!(units.sum::<u64>(), 3);
    }

    #[test]
    fn nothing_goes_if_everything_is_withheld() {
        let metrics = table();
        let mut record = used_in(&[1], &metrics);
        let sent = record.dispatch_without(|_, _| true, 7, 0, 62, &metrics);
        assert_eq!(sent, Vec::new());
        assert_eq!((record.batch, record.has_pending()), (0, true));
    }
}
