//! The counters of a service, defined once per configuration.
//!
//! Envoy shows them as `wasmcustom.tollgate.<service id>.<counter>`. They add up over
//! all VMs of the process; there are as many as services times counters, whatever the
//! traffic is.
//!
//! Each is exact at once but for requests that were admitted at first sight: a call of the host
//! for each would be a thirtieth of what such a request costs, so a VM hands them over by
//! [`BY_SO_MANY`], and on its next tick. Those since the last tick of a VM that ends or traps are
//! missing; their usage is not, for that is in the records.

use super::abi::{self, MetricType};
use crate::authorization::Units;
use crate::mapping::{MetricId, Metrics};
use crate::service_management::Failure;
use crate::usage::Accounts;
use std::cell::Cell;

/// How many admitted requests a VM keeps to itself at most, and one more.
const BY_SO_MANY: u64 = 64;
/// Stands for the metrics of other configurations.
const OTHER_METRICS: &str = "_other";

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
    /// Of those that could not be known: too many unknown credentials were asked about.
    OverBudget,
    /// Answered without a question, because service management keeps failing.
    BreakerOpen,
    /// Decided without a record, because no slot could give way.
    Uncached,
    /// Questions sent about unknown applications.
    AuthorizeCalls,
    /// Questions not sent, because another worker was asking the same.
    AuthorizeShared,
    /// Questions sent about known applications.
    RefreshCalls,
    /// Questions sent about the service's metrics.
    ProbeCalls,
    /// Questions without a usable answer.
    AuthorizeFailures,
    /// Calls of all kinds that Envoy did not make.
    FailuresNotCalled,
    /// Calls of all kinds that ended without an answer in this way.
    FailuresNotConnected,
    /// See [`Failure`].
    FailuresTimeout,
    /// See [`Failure`].
    FailuresInterrupted,
    /// See [`Failure`].
    FailuresNoReply,
    /// See [`Failure`].
    FailuresServerError,
    /// See [`Failure`].
    FailuresUnexpectedStatus,
    /// See [`Failure`].
    FailuresMalformed,
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
    /// Units of admitted requests, as far as the leader has seen their records.
    UsageAdmitted,
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
    /// Units given up because service management refuses them.
    UsageLostRefused,
}

impl Counter {
    const ALL: [(Self, &'static str); 38] = [
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
        (Self::OverBudget, "requests_over_budget"),
        (Self::BreakerOpen, "requests_breaker_open"),
        (Self::Uncached, "requests_uncached"),
        (Self::AuthorizeCalls, "authorize_calls"),
        (Self::AuthorizeShared, "authorize_shared"),
        (Self::RefreshCalls, "refresh_calls"),
        (Self::ProbeCalls, "probe_calls"),
        (Self::AuthorizeFailures, "authorize_failures"),
        (Self::FailuresNotCalled, "failures_not_called"),
        (Self::FailuresNotConnected, "failures_not_connected"),
        (Self::FailuresTimeout, "failures_timeout"),
        (Self::FailuresInterrupted, "failures_interrupted"),
        (Self::FailuresNoReply, "failures_no_reply"),
        (Self::FailuresServerError, "failures_server_error"),
        (Self::FailuresUnexpectedStatus, "failures_unexpected_status"),
        (Self::FailuresMalformed, "failures_malformed"),
        (Self::Misconfigured, "misconfigured"),
        (Self::ReportCalls, "report_calls"),
        (Self::ReportsRefused, "reports_refused"),
        (Self::ReportsNotDelivered, "reports_not_delivered"),
        (Self::ReportsUncertain, "reports_uncertain"),
        (Self::UsageAdmitted, "usage_admitted"),
        (Self::UsageAcknowledged, "usage_acknowledged"),
        (Self::UsageResent, "usage_resent"),
        (Self::UsageLostUncertain, "usage_lost_uncertain"),
        (Self::UsageLostTooOld, "usage_lost_too_old"),
        (Self::UsageLostUncached, "usage_lost_uncached"),
        (Self::UsageLostRefused, "usage_lost_refused"),
    ];
}

impl From<Failure> for Counter {
    /// The one that counts this failure, of a question or of a report.
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::NotConnected => Self::FailuresNotConnected,
            Failure::Timeout => Self::FailuresTimeout,
            Failure::Interrupted => Self::FailuresInterrupted,
            Failure::NoReply => Self::FailuresNoReply,
            Failure::ServerError(_) => Self::FailuresServerError,
            Failure::UnexpectedStatus(_) => Self::FailuresUnexpectedStatus,
            Failure::Malformed(_) => Self::FailuresMalformed,
        }
    }
}

/// The counters of one service.
#[derive(Debug)]
pub struct Stats {
    /// Host ids, by counter; `None` where the host refused.
    ids: [Option<u32>; Counter::ALL.len()],
    /// Of [`Counter::Admitted`], what Envoy has not been told. Below [`BY_SO_MANY`].
    admitted: Cell<u64>,
}

impl Stats {
    /// Defines the counters of a service, or finds them.
    pub fn define(service: &str) -> Self {
        let service = plain(service);
        Self {
            ids: Counter::ALL.map(|(_, name)| {
                abi::define_metric(MetricType::Counter, &format!("tollgate.{service}.{name}")).ok()
            }),
            admitted: Cell::new(0),
        }
    }

    /// Counts a request that was admitted at first sight; Envoy is told with others.
    pub fn count_admitted(&self) {
        let admitted = self.admitted.get().saturating_add(1);
        self.admitted.set(admitted);
        if admitted >= BY_SO_MANY {
            self.hand_over();
        }
    }

    /// Tells Envoy what has been kept back.
    pub fn hand_over(&self) {
        self.add(Counter::Admitted, self.admitted.take());
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

impl Drop for Stats {
    /// Another configuration takes the place of this one.
    fn drop(&mut self) {
        self.hand_over();
    }
}

/// A name as it stands between dots.
pub fn plain(name: &str) -> String {
    name.chars()
        .map(|letter| match letter {
            'a'..='z' | 'A'..='Z' | '0'..='9' | '-' | '_' => letter,
            _ => '_',
        })
        .collect()
}

/// The sums of a service's usage, for each metric of its configuration:
/// `wasmcustom.tollgate.<service id>.metric.<metric>.units_admitted` and so on; and the gauges
/// `usage_pending` and `usage_in_flight` of all together, and the gauges `metrics_unknown` and
/// `refreshes_waiting`. Always
/// `admitted = acknowledged + lost + pending + in flight`; requests since the leader
/// last looked at their records are not in it yet.
#[derive(Debug)]
pub struct Sums {
    /// By the number of the metric; the last is of metrics that another configuration had.
    metrics: Vec<Sum>,
    pending: Option<u32>,
    in_flight: Option<u32>,
    unknown: Option<u32>,
    refreshes: Option<u32>,
}

/// The host ids of one metric's sums; `None` where the host refused.
#[derive(Debug)]
struct Sum {
    admitted: Option<u32>,
    acknowledged: Option<u32>,
    lost: Option<u32>,
    pending: Option<u32>,
    in_flight: Option<u32>,
}

impl Sums {
    /// Defines the sums of a service, or finds them.
    pub fn define(service: &str, metrics: &Metrics) -> Self {
        let service = plain(service);
        let gauge = |name| {
            let name = format!("tollgate.{service}.{name}");
            abi::define_metric(MetricType::Gauge, &name).ok()
        };
        let names = metrics.ids().map(|id| plain(metrics.name(id)));
        let sum = |metric: String| {
            let define = |kind, name| {
                let name = format!("tollgate.{service}.metric.{metric}.units_{name}");
                abi::define_metric(kind, &name).ok()
            };
            Sum {
                admitted: define(MetricType::Counter, "admitted"),
                acknowledged: define(MetricType::Counter, "acknowledged"),
                lost: define(MetricType::Counter, "lost"),
                pending: define(MetricType::Gauge, "pending"),
                in_flight: define(MetricType::Gauge, "in_flight"),
            }
        };
        Self {
            metrics: names.chain([OTHER_METRICS.to_owned()]).map(sum).collect(),
            pending: gauge("usage_pending"),
            in_flight: gauge("usage_in_flight"),
            unknown: gauge("metrics_unknown"),
            refreshes: gauge("refreshes_waiting"),
        }
    }

    /// Shows how many metrics service management does not have.
    pub fn show_unknown(&self, metrics: usize) {
        if let Some(id) = self.unknown {
            abi::record_metric(id, u64::try_from(metrics).unwrap_or(u64::MAX));
        }
    }

    /// Shows how many applications are due to be asked about again.
    pub fn show_refreshes(&self, waiting: usize) {
        if let Some(id) = self.refreshes {
            abi::record_metric(id, u64::try_from(waiting).unwrap_or(u64::MAX));
        }
    }

    fn of(&self, metric: Option<MetricId>) -> Option<&Sum> {
        match metric {
            Some(metric) => self.metrics.get(metric.index()),
            None => self.metrics.last(),
        }
    }

    /// Adds what became of usage.
    pub fn add(&self, accounts: &Accounts) {
        let each = |units: &Units, id: fn(&Sum) -> Option<u32>| {
            for (metric, units) in units.iter() {
                if let Some(id) = self.of(metric).and_then(id) {
                    abi::increment_metric(id, i64::try_from(units).unwrap_or(i64::MAX));
                }
            }
        };
        each(&accounts.admitted, |sum| sum.admitted);
        each(&accounts.acknowledged, |sum| sum.acknowledged);
        each(&accounts.lost, |sum| sum.lost);
    }

    /// Shows what is in flight, and as pending all that is neither that nor settled.
    /// `None`: what is in flight is as the leader said.
    pub fn show(&self, in_flight: Option<&Units>) {
        let others = self.metrics.len().saturating_sub(1);
        let of = |units: &Units, index: usize| {
            let is = |metric: Option<MetricId>| metric.map_or(others, MetricId::index) == index;
            let units = units.iter().find(|(metric, _)| is(*metric));
            units.map_or(0, |(_, units)| units)
        };
        let value = |id: Option<u32>| abi::get_metric(id?).ok();
        let set = |id: Option<u32>, value| {
            if let Some(id) = id {
                abi::record_metric(id, value);
            }
        };
        let (mut all_pending, mut all_in_flight) = (0_u64, 0_u64);
        for (index, sum) in self.metrics.iter().enumerate() {
            let in_flight = match in_flight {
                Some(units) => of(units, index),
                None => value(sum.in_flight).unwrap_or(0),
            };
            let (Some(admitted), Some(acknowledged), Some(lost)) = (
                value(sum.admitted),
                value(sum.acknowledged),
                value(sum.lost),
            ) else {
                continue;
            };
            let open = admitted.saturating_sub(acknowledged).saturating_sub(lost);
            // A report without an answer past its deadline is sent again, and still listed.
            let in_flight = in_flight.min(open);
            let pending = open.saturating_sub(in_flight);
            all_pending = all_pending.saturating_add(pending);
            all_in_flight = all_in_flight.saturating_add(in_flight);
            set(sum.pending, pending);
            set(sum.in_flight, in_flight);
        }
        set(self.pending, all_pending);
        set(self.in_flight, all_in_flight);
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
