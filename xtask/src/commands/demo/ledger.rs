//! The demo's own book of what consumers were let through, kept from the replies they
//! got: what service management holds in the end is compared with it.

use std::collections::BTreeMap;

use super::consumers::Ask;
use super::world::{METRIC_OF_ALL, cost};

/// Requests and what they must count for.
#[derive(Default)]
pub struct Ledger {
    /// Requests that were sent with or without a credential, exempt ones left out.
    pub requests: u64,
    /// Of those, the ones that were let through.
    pub admitted: u64,
    /// Requests to exempt paths.
    pub exempt: u64,
    usage: BTreeMap<(String, &'static str), u64>,
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
            *self.usage.entry((application.clone(), metric)).or_default() += 1;
        }
    }

    /// What service management must hold: application, metric, value.
    pub fn usage(&self) -> impl Iterator<Item = (&str, &'static str, u64)> {
        self.usage
            .iter()
            .map(|((application, metric), value)| (application.as_str(), *metric, *value))
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
        let usage: Vec<_> = ledger.usage().collect();
        assert_eq!(usage, [("alice", "hits", 2), ("alice", "orders", 1)]);
    }
}
