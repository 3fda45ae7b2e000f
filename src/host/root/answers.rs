//! The end of a call: what it says is remembered, and everybody who waited for it is
//! decided about.

use super::{Call, Root, access, identification, lifetimes, settings};
use crate::authorization::{Learned, Record, Slot, Verdict};
use crate::config::Unknown;
use crate::credentials::Digest;
use crate::host::abi;
use crate::host::calls::{self, Answered};
use crate::host::clock;
use crate::host::local_reply::Reply;
use crate::host::stats::Counter;
use crate::host::vm::Shared;
use crate::moment::Moment;
use crate::service_management::{AuthorizeAnswer, ReportAnswer, ReportBody};
use crate::usage::{Terms, push};

impl Root {
    /// Takes in the answer to a call.
    pub fn on_call_response(&mut self, token: u32, shared: &mut Shared) {
        let now = clock::now();
        let Some(call) = self.calls.remove(&token) else {
            return;
        };
        let answered = Answered::read();
        match call {
            Call::Authorize(digest) => {
                let answer = self
                    .fetches
                    .get(&digest)
                    .map(|fetch| answered.to_authorize(identification(fetch.kind)));
                if let Some(answer) = answer {
                    self.answered_unknown(digest, &answer, shared, now);
                }
            }
            Call::Refresh {
                service,
                slot,
                digest,
                kind,
                asked,
            } => {
                let answer = answered.to_authorize(identification(kind));
                self.answered_refresh(service, (slot, digest), &answer, asked, shared, now);
                if self.leads(service) {
                    self.refresh(service, shared, now);
                }
            }
            Call::Report { service, batch } => {
                self.answered_report(service, batch, &answered.to_report(), shared, now);
                if self.leads(service) {
                    self.flush(service, shared, now);
                }
            }
            Call::Uncached { service, units } => {
                let acknowledged = matches!(answered.to_report(), ReportAnswer::Acknowledged);
                self.settle_uncached(service, units, acknowledged, now);
            }
        }
    }

    /// The answer about an unknown application is here: remember it and decide about
    /// everybody who waits.
    fn answered_unknown(
        &mut self,
        digest: Digest,
        answer: &AuthorizeAnswer,
        shared: &mut Shared,
        now: Moment,
    ) {
        let Some(fetch) = self.fetches.remove(&digest) else {
            return;
        };
        self.waiting = self.waiting.saturating_sub(fetch.waiting.len());
        let Some(at_work) = self.services.get_mut(fetch.service) else {
            return;
        };
        let lifetimes = lifetimes(&self.configuration);
        let identity = at_work.identity_of(digest, &fetch);
        let allow_unknown = self.configuration.authorization.unknown == Unknown::Allow;
        let learned = match answer {
            AuthorizeAnswer::Known(authorization) => shared
                .applications
                .learn(
                    &shared.data,
                    &identity,
                    authorization,
                    &at_work.service.metrics,
                    now,
                    &lifetimes,
                )
                .map_err(|_| Reply::Contended),
            AuthorizeAnswer::Denied(denial) => {
                // Not remembered, it is asked about again.
                let _ = shared.applications.learn_denial(
                    &shared.data,
                    &identity,
                    *denial,
                    now,
                    &lifetimes,
                );
                Err(Reply::Denied(*denial))
            }
            AuthorizeAnswer::Misconfigured(what) => {
                at_work.misconfigured(*what, now);
                Err(Reply::Misconfigured)
            }
            AuthorizeAnswer::Failed(failure) => {
                at_work.stats.count(Counter::AuthorizeFailures);
                at_work.failed(failure.as_str(), now);
                if allow_unknown {
                    shared
                        .applications
                        .let_in_unheard(&shared.data, &identity, now, lifetimes.negative_ttl)
                        .map_err(|_| Reply::Contended)
                } else {
                    Err(Reply::BackendFailed)
                }
            }
        };
        let mut uncached = None;
        let learned = match learned {
            Ok(Learned::Remembered) => Ok(()),
            Ok(Learned::Uncached(record)) => {
                at_work.uncached(now);
                uncached = Some(record);
                Ok(())
            }
            Ok(Learned::TooManyMetrics) => {
                at_work.stats.count(Counter::Misconfigured);
                Err(Reply::Misconfigured)
            }
            Err(reply) => Err(reply),
        };
        for waiting in &fetch.waiting {
            // A stream that has ended meanwhile is not counted.
            if abi::set_effective_context(waiting.stream_id).is_err() {
                continue;
            }
            let verdict = match (learned, &mut uncached) {
                (Err(reply), _) => Err(reply),
                (Ok(()), Some(record)) => record
                    .admit(&waiting.usage, &at_work.service.metrics, now)
                    .map(|()| Verdict::Admitted { stale: false })
                    .map_err(Reply::from),
                (Ok(()), None) => shared
                    .applications
                    .decide(
                        &shared.data,
                        &identity,
                        &waiting.usage,
                        &at_work.service.metrics,
                        now,
                    )
                    .map_err(|_| Reply::Contended),
            };
            let reply = match verdict {
                Ok(Verdict::Admitted { stale }) => {
                    at_work.admitted(stale);
                    if matches!(answer, AuthorizeAnswer::Failed(_)) {
                        at_work.stats.count(Counter::AdmittedUnknown);
                    }
                    let _ = abi::continue_request();
                    continue;
                }
                Ok(Verdict::Refused(refusal)) => refusal.into(),
                // It went between the answer and now: the caller may try again.
                Ok(Verdict::Unknown) => Reply::Contended,
                Err(reply) => reply,
            };
            at_work.refused(reply).send(now);
        }
        if let Some(record) = uncached {
            self.report_uncached(fetch.service, *record, shared, now);
        }
    }

    /// Reports the usage of a record that has no slot.
    fn report_uncached(
        &mut self,
        index: usize,
        mut record: Record,
        shared: &mut Shared,
        now: Moment,
    ) {
        let Some(at_work) = self.services.get(index) else {
            return;
        };
        let batch = shared.random();
        let transactions = record.dispatch(batch, 0, usize::MAX, &at_work.service.metrics);
        let units = transactions
            .iter()
            .flat_map(|transaction| &transaction.usage)
            .fold(0_u64, |sum, (_, delta)| sum.saturating_add(*delta));
        if units == 0 {
            return;
        }
        let mut body = ReportBody::new(&access(&at_work.service));
        let written = push(&mut body, record.kind, &record.identity, &transactions);
        at_work.stats.count(Counter::ReportCalls);
        let sent = written.ok().and_then(|()| {
            calls::report(
                &self.configuration.service_management,
                self.configuration.reporting.timeout,
                &body.into_bytes(),
            )
        });
        match sent {
            Some(token) => {
                self.calls.insert(
                    token,
                    Call::Uncached {
                        service: index,
                        units,
                    },
                );
            }
            None => self.settle_uncached(index, units, false, now),
        }
    }

    fn settle_uncached(&mut self, index: usize, units: u64, acknowledged: bool, now: Moment) {
        let Some(at_work) = self.services.get_mut(index) else {
            return;
        };
        if acknowledged {
            at_work.stats.add(Counter::UsageAcknowledged, units);
        } else {
            at_work.stats.add(Counter::UsageLostUncached, units);
            at_work.lost(units, "its application had no record", now);
        }
    }

    fn answered_refresh(
        &mut self,
        index: usize,
        (slot, digest): (Slot, Digest),
        answer: &AuthorizeAnswer,
        asked: Moment,
        shared: &mut Shared,
        now: Moment,
    ) {
        let mut lifetimes = lifetimes(&self.configuration);
        let Some(at_work) = self.services.get_mut(index) else {
            return;
        };
        if let Some(urgent) = &at_work.urgent {
            lifetimes.accuracy = urgent.accuracy(lifetimes.accuracy);
        }
        let known = match answer {
            AuthorizeAnswer::Known(authorization) => Ok(authorization),
            AuthorizeAnswer::Denied(denial) => Err(*denial),
            AuthorizeAnswer::Misconfigured(what) => {
                at_work.misconfigured(*what, now);
                at_work.refresher.failed(slot, now, shared.random());
                return;
            }
            AuthorizeAnswer::Failed(failure) => {
                at_work.stats.count(Counter::AuthorizeFailures);
                at_work.failed(failure.as_str(), now);
                at_work.refresher.failed(slot, now, shared.random());
                return;
            }
        };
        let taken = shared.applications.refresh(
            &shared.data,
            (slot, digest),
            known,
            &at_work.service.metrics,
            asked,
            &lifetimes,
        );
        if taken.is_ok() {
            at_work.refresher.answered(slot);
        } else {
            at_work.refresher.failed(slot, now, shared.random());
        }
        if let Some(urgent) = &mut at_work.urgent {
            urgent.answered(slot, taken.ok().and_then(|look| look.late), now);
            at_work.flusher.urge(&[], urgent.held(), now);
        }
    }

    pub(super) fn answered_report(
        &mut self,
        index: usize,
        batch: u64,
        answer: &ReportAnswer,
        shared: &mut Shared,
        now: Moment,
    ) {
        let settings = settings(&self.configuration);
        let jitter = shared.random();
        let Some(at_work) = self.services.get_mut(index) else {
            return;
        };
        at_work.not_acknowledged(answer, now);
        let settled = at_work.flusher.answered(
            &shared.data,
            &mut shared.applications,
            batch,
            answer,
            &Terms {
                metrics: &at_work.service.metrics,
                settings,
                now,
            },
            jitter,
        );
        at_work.settled(settled, now);
    }
}
