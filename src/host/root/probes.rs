//! Asking which metrics a service has. Apart from the refreshes: the application that is asked
//! about is any, and what is said of it here is not remembered.

use super::{Call, Root, access, identification};
use crate::authorization::application;
use crate::credentials::Kind;
use crate::host::calls::{self, Answered};
use crate::host::stats::Counter;
use crate::host::vm::Shared;
use crate::moment::Moment;
use crate::service_management::{AuthorizeAnswer, MetricsAnswer, Misconfiguration};
use crate::usage::MOST_LOOKS;

impl Root {
    /// Asks about metrics, if that is due.
    pub(super) fn probe(&mut self, index: usize, shared: &mut Shared, now: Moment) {
        let Some(at_work) = self.services.get_mut(index) else {
            return;
        };
        let Some((question, metrics)) = at_work.flusher.probe(
            &shared.data,
            &mut shared.applications,
            &at_work.service.metrics,
            now,
        ) else {
            return;
        };
        at_work.stats.count(Counter::ProbeCalls);
        let asked = at_work.asks_again_with(question.app_key.as_deref());
        let token = calls::authorize_with(
            &self.configuration.service_management,
            &access(&at_work.service),
            at_work.endpoint(),
            &application(question.kind, &question.value, asked.app_key.as_deref()),
            asked.referrer.as_deref(),
            &metrics,
        );
        match token {
            Some(token) => {
                let call = Call::Probe {
                    service: index,
                    kind: question.kind,
                    metrics,
                };
                self.calls.insert(token, call);
            }
            None => {
                at_work.not_called(now);
                let jitter = shared.random();
                let (data, applications) = (&shared.data, &shared.applications);
                let failed = (metrics.as_slice(), MetricsAnswer::Failed);
                at_work
                    .flusher
                    .probed(data, applications, failed, now, jitter);
            }
        }
    }

    /// Takes in what is said of metrics, asks about the others, and sends what has waited.
    pub(super) fn answered_probe(
        &mut self,
        index: usize,
        kind: Kind,
        metrics: &[String],
        answered: &Answered,
        shared: &mut Shared,
        now: Moment,
    ) {
        let answer = answered.to_authorize(identification(kind));
        self.judge(&answer, shared, now);
        let jitter = shared.random();
        let Some(at_work) = self.services.get_mut(index) else {
            return;
        };
        match answer {
            AuthorizeAnswer::Misconfigured(Misconfiguration::MetricInvalid) => {
                at_work.stats.count(Counter::Misconfigured);
            }
            AuthorizeAnswer::Misconfigured(what) => at_work.misconfigured(what, now),
            AuthorizeAnswer::Failed(failure) => at_work.failed(failure, now),
            AuthorizeAnswer::Known(_) | AuthorizeAnswer::Denied(_) => {}
        }
        let complete = at_work.flusher.probed(
            &shared.data,
            &shared.applications,
            (metrics, answered.to_metrics(&answer, metrics)),
            now,
            jitter,
        );
        if complete {
            at_work.metrics_probed(now);
        }
        if self.leads(index) {
            self.probe(index, shared, now);
            self.flush(index, shared, now, &mut MOST_LOOKS.clone());
        }
    }
}
