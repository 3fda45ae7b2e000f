//! The counters of a service, defined once per configuration.
//!
//! Envoy shows them as `wasmcustom.tollgate.<service id>.<counter>`. They add up over
//! all VMs of the process; there are as many as services times counters, whatever the
//! traffic is.

use super::abi::{self, MetricType};

/// What is counted, per service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Counter {
    /// Requests admitted.
    Admitted,
    /// Of those, decided on an answer older than its `ttl`.
    AdmittedStale,
    /// Of those, without any answer: `unknown: allow`.
    AdmittedUnknown,
    /// Requests that passed untouched.
    Exempt,
    /// Refused: no credential.
    NoCredential,
    /// Refused: denied by service management, or a credential nobody can have.
    Denied,
    /// Refused: no mapping rule.
    NoRule,
    /// Refused: a limit.
    Limited,
    /// Refused: a limit is near, and its rest is not granted to this gateway yet.
    Early,
    /// Refused: it could not be known whether the caller may pass.
    Unavailable,
    /// Decided without a record, because no slot could give way.
    Uncached,
    /// Questions sent about unknown applications.
    AuthorizeCalls,
    /// Questions sent about known applications.
    RefreshCalls,
    /// Questions without a usable answer.
    AuthorizeFailures,
    /// Answers that say that this gateway is misconfigured.
    Misconfigured,
    /// Reports sent.
    ReportCalls,
    /// Reports refused by service management.
    ReportsRefused,
    /// Reports that surely did not arrive.
    ReportsNotDelivered,
    /// Reports of which nobody knows.
    ReportsUncertain,
    /// Units of usage acknowledged.
    UsageAcknowledged,
    /// Units that perhaps arrived and are sent again.
    UsageResent,
    /// Units given up because of an uncertain outcome.
    UsageLostUncertain,
    /// Units given up because they are too old to be reported.
    UsageLostTooOld,
    /// Units given up because they had no record and their report failed.
    UsageLostUncached,
}

impl Counter {
    const ALL: [(Self, &'static str); 24] = [
        (Self::Admitted, "requests_admitted"),
        (Self::AdmittedStale, "requests_admitted_stale"),
        (Self::AdmittedUnknown, "requests_admitted_unknown"),
        (Self::Exempt, "requests_exempt"),
        (Self::NoCredential, "requests_no_credential"),
        (Self::Denied, "requests_denied"),
        (Self::NoRule, "requests_no_mapping_rule"),
        (Self::Limited, "requests_limited"),
        (Self::Early, "requests_early"),
        (Self::Unavailable, "requests_unavailable"),
        (Self::Uncached, "requests_uncached"),
        (Self::AuthorizeCalls, "authorize_calls"),
        (Self::RefreshCalls, "refresh_calls"),
        (Self::AuthorizeFailures, "authorize_failures"),
        (Self::Misconfigured, "misconfigured"),
        (Self::ReportCalls, "report_calls"),
        (Self::ReportsRefused, "reports_refused"),
        (Self::ReportsNotDelivered, "reports_not_delivered"),
        (Self::ReportsUncertain, "reports_uncertain"),
        (Self::UsageAcknowledged, "usage_acknowledged"),
        (Self::UsageResent, "usage_resent"),
        (Self::UsageLostUncertain, "usage_lost_uncertain"),
        (Self::UsageLostTooOld, "usage_lost_too_old"),
        (Self::UsageLostUncached, "usage_lost_uncached"),
    ];
}

/// The counters of one service.
#[derive(Debug)]
pub struct Stats {
    /// Host ids, by counter; `None` where the host refused.
    ids: [Option<u32>; Counter::ALL.len()],
}

impl Stats {
    /// Defines the counters of a service, or finds them.
    pub fn define(service: &str) -> Self {
        let service: String = service
            .chars()
            .map(|letter| match letter {
                'a'..='z' | 'A'..='Z' | '0'..='9' | '-' | '_' => letter,
                _ => '_',
            })
            .collect();
        Self {
            ids: Counter::ALL.map(|(_, name)| {
                abi::define_metric(MetricType::Counter, &format!("tollgate.{service}.{name}")).ok()
            }),
        }
    }

    /// Counts one.
    pub fn count(&self, counter: Counter) {
        self.add(counter, 1);
    }

    /// Counts several.
    pub fn add(&self, counter: Counter, by: u64) {
        if by > 0
            && let Some(Some(id)) = self.ids.get(counter as usize)
        {
            abi::increment_metric(*id, i64::try_from(by).unwrap_or(i64::MAX));
        }
    }
}

/// The counter of requests that no service's hosts cover:
/// `wasmcustom.tollgate.requests_unmatched_host`.
#[derive(Clone, Copy, Debug)]
pub struct UnmatchedHosts(Option<u32>);

impl UnmatchedHosts {
    /// Defines the counter, or finds it.
    pub fn define() -> Self {
        let name = "tollgate.requests_unmatched_host";
        Self(abi::define_metric(MetricType::Counter, name).ok())
    }

    /// Counts one.
    pub fn count(self) {
        if let Some(id) = self.0 {
            abi::increment_metric(id, 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_counter_stands_at_its_own_number() {
        for (index, (counter, name)) in Counter::ALL.iter().enumerate() {
            assert_eq!(*counter as usize, index, "{name}");
        }
    }
}
