//! One service of a configuration at work: its counters, its flush, its refresh, and
//! the log lines that it writes seldom.

use super::Fetch;
use super::tokens::TokensAtWork;
use crate::authorization::{
    Accuracy, Asked, Identity, KeyRule, Quota, Referrer, Refresher, Shown, Slot,
};
use crate::config::Service;
use crate::credentials::{Credential, Digest, Identities};
use crate::host::local_reply::{Reply, waiting_wants_grpc};
use crate::host::logger::Seldom;
use crate::host::stats::{Counter, Stats, Sums};
use crate::host::vm::Shared;
use crate::moment::Moment;
use crate::service_management::{Endpoint, Failure, Misconfiguration, ReportAnswer};
use crate::usage::{Flusher, Settled, Urgent};
use log::{error, warn};
use std::rc::Rc;

/// One service at work.
pub(super) struct AtWork {
    pub service: Rc<Service>,
    pub scope: u64,
    pub identities: Identities,
    pub flusher: Flusher,
    pub refresher: Refresher,
    /// Where limits are shared with other gateways.
    pub urgent: Option<Urgent>,
    pub leads: bool,
    /// How many refreshes are shown to wait; `None` if another VM led last.
    shown_waiting: Option<usize>,
    pub stats: Stats,
    pub sums: Sums,
    /// Where it has tokens.
    pub tokens: Option<Box<TokensAtWork>>,
    quiet: Quiet,
}

/// When a service's applications' keys are checked.
const fn key_rule(service: &Service) -> KeyRule {
    if service.oauth {
        KeyRule::IfShown
    } else {
        KeyRule::IfAny
    }
}

/// What was shown to a service.
pub(super) fn shown<'a>(service: &Service, asked: &'a Asked) -> Shown<'a> {
    let referrers = service.credentials.looks_at_referrer();
    asked.shown(key_rule(service), referrers)
}

/// Lines that must not fill the log.
#[derive(Default)]
struct Quiet {
    misconfigured: Seldom,
    failed: Seldom,
    report: Seldom,
    lost: Seldom,
    uncached: Seldom,
    metrics: Seldom,
}

impl AtWork {
    pub fn new(
        service: &Rc<Service>,
        key: &[u8; 16],
        accuracy: Accuracy,
        shared: &mut Shared,
    ) -> Self {
        let scope = service.scope.number();
        Self {
            service: Rc::clone(service),
            scope,
            identities: Identities::new(key, &service.scope),
            flusher: Flusher::new(scope, shared.random()).probing(),
            refresher: Refresher::new(scope),
            urgent: Urgent::wanted(scope, accuracy),
            leads: false,
            shown_waiting: None,
            stats: Stats::define(&service.id),
            sums: Sums::define(&service.id, &service.metrics),
            tokens: None,
            quiet: Quiet::default(),
        }
    }

    pub fn identity<'a>(&self, credential: &'a Credential<'_>) -> Identity<'a> {
        Identity {
            digest: self.identities.digest(credential),
            scope: self.scope,
            kind: credential.kind(),
            value: credential.expose().as_bytes(),
            shown: Shown {
                rule: key_rule(&self.service),
                app_key: credential.app_key(),
                referrer: if self.service.credentials.looks_at_referrer() {
                    Referrer::Named(credential.referrer())
                } else {
                    Referrer::Ignored
                },
            },
            tells: self.service.rate_limit_headers,
        }
    }

    /// The application of a question, with what was shown in it or by one who waits for it.
    pub fn identity_of<'a>(
        &self,
        digest: Digest,
        fetch: &'a Fetch,
        shown: &'a Asked,
    ) -> Identity<'a> {
        Identity {
            digest,
            scope: self.scope,
            kind: fetch.kind,
            value: fetch.value.as_slice(),
            shown: self.shown(shown),
            tells: self.service.rate_limit_headers,
        }
    }

    pub fn shown<'a>(&self, asked: &'a Asked) -> Shown<'a> {
        shown(&self.service, asked)
    }

    /// Where its applications are asked about.
    pub fn endpoint(&self) -> Endpoint {
        if self.service.oauth {
            Endpoint::OauthAuthorize
        } else {
            Endpoint::Authorize
        }
    }

    /// What is shown in a question about an application that is known.
    pub fn asks_again_with(&self, app_key: Option<&str>) -> Asked {
        self.shown(&Asked::default()).about_application(app_key)
    }

    /// Counts a request that was admitted without waiting.
    pub fn admitted_at_once(&self, stale: bool) {
        self.stats.count_admitted();
        if stale {
            self.stats.count(Counter::AdmittedStale);
        }
    }

    /// Counts a request that was admitted after it had waited.
    pub fn admitted(&self, stale: bool) {
        self.stats.count(Counter::Admitted);
        if stale {
            self.stats.count(Counter::AdmittedStale);
        }
    }

    /// Counts a refusal and sends it to the request of the effective context, which has waited.
    pub fn refuse_waiting(&self, reply: Reply, quota: Option<Quota>, now: Moment) {
        let grpc = waiting_wants_grpc();
        self.refused(reply)
            .send(&self.service.replies, grpc, quota, now);
    }

    /// Counts a refusal and hands it on.
    pub fn refused(&self, reply: Reply) -> Reply {
        if reply == Reply::OverBudget {
            self.stats.count(Counter::OverBudget);
        }
        self.stats.count(match reply {
            Reply::NoCredential | Reply::NoToken | Reply::LargeBody | Reply::LateBody => {
                Counter::NoCredential
            }
            Reply::UnusableCredential
            | Reply::Denied(_)
            | Reply::InvalidToken(_)
            | Reply::InsufficientScope => Counter::Denied,
            Reply::NoRule => Counter::NoRule,
            Reply::Limited { .. } | Reply::Disabled => Counter::Limited,
            Reply::Early => Counter::Early,
            Reply::NoService
            | Reply::BackendFailed { .. }
            | Reply::Misconfigured
            | Reply::Contended
            | Reply::OverBudget
            | Reply::OverPace
            | Reply::KeysUnavailable
            | Reply::KeyManagerUnavailable { .. }
            | Reply::Overloaded => Counter::Unavailable,
        });
        reply
    }

    pub fn settled(&mut self, settled: Settled, now: Moment) {
        self.publish();
        self.stats
            .add(Counter::UsageAcknowledged, settled.acknowledged);
        self.stats.add(Counter::UsageResent, settled.resent);
        self.stats.add(Counter::UsageLostUncertain, settled.dropped);
        self.stats.add(Counter::UsageLostTooOld, settled.too_old);
        self.stats.add(Counter::UsageLostRefused, settled.refused);
        if settled.refused > 0 {
            self.lost(settled.refused, "service management refuses it", now);
        }
        if settled.dropped > 0 {
            self.lost(settled.dropped, "its report had no certain answer", now);
        }
        if settled.too_old > 0 {
            self.lost(settled.too_old, "it is too old to be reported", now);
        }
    }

    /// Brings the sums up to date. What is in flight is the leader's to say.
    pub fn publish(&mut self) {
        let Some(accounts) = self.flusher.take_accounts() else {
            return;
        };
        self.stats
            .add(Counter::UsageAdmitted, accounts.admitted.sum());
        self.sums.add(&accounts);
        let in_flight = self.leads.then(|| self.flusher.in_flight());
        self.sums.show(in_flight.as_ref());
    }

    /// Shows how many refreshes wait, if that is another number than before.
    pub fn show_refreshes(&mut self) {
        let waiting = self.leads.then(|| self.refresher.waiting());
        if let Some(waiting) = waiting
            && self.shown_waiting != Some(waiting)
        {
            self.sums.show_refreshes(waiting);
        }
        self.shown_waiting = waiting;
    }

    /// A slot is not asked about, because somebody else asks or has asked.
    pub fn looked_elsewhere(&mut self, slot: Slot, now: Moment) {
        if let Some(urgent) = &mut self.urgent {
            urgent.left_to_another(slot, now);
            self.flusher.urge(&[], urgent.held(), now);
        }
    }

    pub fn lost(&mut self, units: u64, why: &str, now: Moment) {
        if let Some(withheld) = self.quiet.lost.due(now.monotonic) {
            error!(
                "service {}: {units} units of usage are lost: {why} ({withheld} such lines \
                 withheld; the counters usage_lost_* have the sum)",
                self.service.id
            );
        }
    }

    pub fn misconfigured(&mut self, what: Misconfiguration, now: Moment) {
        self.stats.count(Counter::Misconfigured);
        if let Some(withheld) = self.quiet.misconfigured.due(now.monotonic) {
            error!(
                "service {}: service management refuses this gateway: {}. New callers get 503, known \
                 applications go on, their usage waits ({withheld} such lines withheld)",
                self.service.id,
                what.as_str()
            );
        }
    }

    /// Shows and tells which metrics service management does not have.
    pub fn metrics_probed(&mut self, now: Moment) {
        let unknown: Vec<&str> = self.flusher.unknown_metrics().collect();
        self.sums.show_unknown(unknown.len());
        if unknown.is_empty() {
            return;
        }
        if let Some(withheld) = self.quiet.metrics.due(now.monotonic) {
            error!(
                "service {}: service management does not have these metrics: {unknown:?}. \
                 Create them there, or correct the configuration. Requests go on; usage of these \
                 metrics waits up to a day and is then lost ({withheld} such lines withheld)",
                self.service.id
            );
        }
    }

    /// Counts a question without a usable answer.
    pub fn failed(&mut self, why: Failure, now: Moment) {
        self.stats.count(Counter::AuthorizeFailures);
        self.stats.count(why.into());
        self.warn_failed(why.as_str(), now);
    }

    /// Counts a question that Envoy did not make a call of.
    pub fn not_called(&mut self, now: Moment) {
        self.stats.count(Counter::AuthorizeFailures);
        self.stats.count(Counter::FailuresNotCalled);
        self.warn_failed("the call could not be made", now);
    }

    fn warn_failed(&mut self, why: &str, now: Moment) {
        if let Some(withheld) = self.quiet.failed.due(now.monotonic) {
            warn!(
                "service {}: service management did not answer: {why} ({withheld} such lines \
                 withheld)",
                self.service.id
            );
        }
    }

    /// Counts a report that was not acknowledged.
    pub fn not_acknowledged(&mut self, answer: &ReportAnswer, now: Moment) {
        self.stats.count(match answer {
            ReportAnswer::Acknowledged => return,
            ReportAnswer::Refused { .. } => Counter::ReportsRefused,
            ReportAnswer::NotDelivered(_) => Counter::ReportsNotDelivered,
            ReportAnswer::Uncertain(_) => Counter::ReportsUncertain,
        });
        if let ReportAnswer::NotDelivered(why) | ReportAnswer::Uncertain(why) = answer {
            self.stats.count((*why).into());
        }
        if let ReportAnswer::Refused { why, .. } = answer
            && !why.may_lie_in_one_transaction()
        {
            self.misconfigured(*why, now);
            return;
        }
        if let Some(withheld) = self.quiet.report.due(now.monotonic) {
            warn!(
                "service {}: a report was not acknowledged: {answer:?}. What becomes of its usage is \
                 in the counters usage_* ({withheld} such lines withheld)",
                self.service.id
            );
        }
    }

    pub fn uncached(&mut self, now: Moment) {
        self.stats.count(Counter::Uncached);
        if let Some(withheld) = self.quiet.uncached.due(now.monotonic) {
            warn!(
                "service {}: no room for another application; limits are not exact for those \
                 without a record. Raise authorization.capacity ({withheld} such lines withheld)",
                self.service.id
            );
        }
    }
}
