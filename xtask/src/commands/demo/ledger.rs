//! The demo's own book of what consumers were let through, kept from the replies they
//! got: what service management holds in the end is compared with it.

use std::collections::BTreeMap;

use super::consumers::Ask;
use super::world::{METRIC_OF_ALL, cost};

/// Usage by application and metric.
pub type Usage = BTreeMap<(String, String), u64>;

/// Requests and what they must count for.
#[derive(Default)]
pub struct Ledger {
    /// Requests that are not exempt.
    pub requests: u64,
    /// Of those, the ones that were let through.
    pub admitted: u64,
    /// Requests to exempt paths.
    pub exempt: u64,
    usage: Usage,
}

impl Ledger {
    /// Notes a request that carried a key, or none, and how it was answered.
    pub fn note(&mut self, ask: &Ask, status: u16) {
        self.requests += 1;
        let (Some(application), 200) = (&ask.application, status) else {
            return;
        };
        self.admitted += 1;
        let Some(metric) = cost(&ask.path) else {
            return;
        };
        // A method's usage counts for its parent, too.
        let parent = (metric != METRIC_OF_ALL).then_some(METRIC_OF_ALL);
        for metric in std::iter::once(metric).chain(parent) {
            let of = (application.clone(), metric.to_owned());
            *self.usage.entry(of).or_default() += 1;
        }
    }

    /// What service management must hold.
    pub fn usage(&self) -> &Usage {
        &self.usage
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_admitted_counts_and_a_method_counts_for_its_parent() {
        let mut ledger = Ledger::default();
        ledger.note(&Ask::by("alice", "/v1/orders/1"), 200);
        ledger.note(&Ask::by("alice", "/v1/items"), 200);
        ledger.note(&Ask::by("alice", "/v1/items"), 429);
        ledger.note(&Ask::anonymous("/v1/items"), 401);
        assert_eq!(ledger.requests, 4);
        assert_eq!(ledger.admitted, 2);
        let usage = |metric: &str| ledger.usage().get(&("alice".to_owned(), metric.to_owned()));
        assert_eq!((usage("hits"), usage("orders")), (Some(&2), Some(&1)));
    }
}
