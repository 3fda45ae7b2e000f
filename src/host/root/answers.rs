//! The end of a call: what it says is remembered, and everybody who waited for it is
//! decided about.

use super::basis::Basis;
use super::{Call, Root, Waiting, access, identification, lifetimes, settings};
use crate::authorization::{Caller, Landing, Learned, Lifetimes, Outcome, Question, Record, Units};
use crate::credentials::{Digest, Kind};
use crate::host::calls::{self, Answered};
use crate::host::clock;
use crate::host::local_reply::Reply;
use crate::host::stats::Counter;
use crate::host::vm::Shared;
use crate::moment::Moment;
use crate::service_management::{AuthorizeAnswer, Denial, ReportAnswer, ReportBody};
use crate::usage::{Accounts, MOST_LOOKS, Terms, push};

/// Questions after the first with which an application's keys are found out.
const MOST_ATTEMPTS: u8 = 2;

impl Root {
    /// Takes in the answer to a call.
    pub fn on_call_response(&mut self, token: u32, shared: &mut Shared) {
        let now = clock::now();
        let Some(call) = self.calls.remove(token) else {
            return;
        };
        let answered = Answered::read();
        match call {
            Call::Authorize(digest) | Call::Behind(digest) => {
                self.answered_unknown(digest, &answered, shared, now);
            }
            Call::Refresh {
                service,
                question,
                asked,
            } => {
                self.answered_refresh(service, question, &answered, asked, shared, now);
                if self.leads(service) {
                    self.refresh(shared, now);
                }
            }
            Call::Report { service, batch } => {
                self.answered_report(service, batch, &answered.to_report(), shared, now);
                if self.leads(service) {
                    self.flush(service, shared, now, &mut MOST_LOOKS.clone());
                }
            }
            Call::Probe {
                service,
                kind,
                metrics,
            } => self.answered_probe(service, kind, &metrics, &answered, shared, now),
            Call::Keys { source, document } => {
                self.answered_keys(source, document, &answered, shared, now);
            }
            Call::Introspection { service, digest } => {
                self.answered_introspection(service, digest, &answered, shared, now);
            }
            Call::Uncached { service, units } => {
                let outcome = match answered.to_report() {
                    ReportAnswer::Acknowledged => Outcome::Acknowledged,
                    _ => Outcome::Lost,
                };
                self.settle_uncached(service, &units, outcome, now);
            }
        }
    }

    /// The answer about an unknown application is here: remember it and decide about
    /// everybody who waits.
    fn answered_unknown(
        &mut self,
        digest: Digest,
        answered: &Answered,
        shared: &mut Shared,
        now: Moment,
    ) {
        let Some(fetch) = self.fetches.get(&digest) else {
            return;
        };
        let answer = answered.to_authorize(identification(fetch.kind));
        self.judge(&answer, shared, now);
        let Some(at_work) = self.services.get_mut(fetch.service) else {
            return;
        };
        let accuracy = self.configuration.authorization.accuracy;
        let lifetimes = lifetimes(&at_work.service.trust, accuracy);
        match &answer {
            // Whoever makes it fail must not let others on by what is old.
            AuthorizeAnswer::Failed(failure) if failure.may_be_of_the_consumers_making() => {}
            AuthorizeAnswer::Failed(_) | AuthorizeAnswer::Misconfigured(_) => {
                self.in_vain.failed(digest, now);
            }
            AuthorizeAnswer::Known(_) | AuthorizeAnswer::Denied(_) => {
                self.in_vain.answered(digest);
            }
        }
        let identity = at_work.identity_of(digest, fetch, &fetch.asked);
        let failed = match &answer {
            AuthorizeAnswer::Failed(failure) => Some(Landing::failed(*failure)),
            _ => None,
        };
        let basis = match answer {
            AuthorizeAnswer::Known(authorization) => {
                // What was reported since it was asked may not be in the counts; but what it says
                // is relied on for as long as if it had come at once.
                let asked = fetch.asked_at;
                let late = now.monotonic.saturating_sub(asked.monotonic);
                let ttl = lifetimes.ttl.saturating_add(late);
                let learned = shared.applications.learn(
                    &shared.data,
                    &identity,
                    &authorization,
                    &at_work.service.metrics,
                    asked,
                    &Lifetimes { ttl, ..lifetimes },
                );
                match learned {
                    Ok(Learned::Remembered) => Basis::Remembered,
                    Ok(Learned::Uncached(record)) => {
                        at_work.uncached(now);
                        Basis::Uncached(record)
                    }
                    Ok(Learned::TooManyMetrics) => {
                        at_work.stats.count(Counter::Misconfigured);
                        Basis::Reply(Reply::Misconfigured)
                    }
                    Err(_) => Basis::Reply(Reply::Contended),
                }
            }
            AuthorizeAnswer::Denied(denial) => {
                // Not remembered, it is asked about again.
                let _ = shared.applications.learn_denial(
                    &shared.data,
                    &identity,
                    denial,
                    now,
                    &lifetimes,
                );
                if denial == Denial::ApplicationKeyInvalid
                    && self.ask_about_keys(digest, answered, shared, now)
                {
                    return;
                }
                if denial.is_of_the_application() {
                    Basis::Reply(Reply::Denied(denial))
                } else {
                    Basis::Remembered
                }
            }
            AuthorizeAnswer::Misconfigured(what) => {
                at_work.misconfigured(what, now);
                Basis::Known(Reply::Misconfigured)
            }
            AuthorizeAnswer::Failed(failure) => {
                at_work.failed(failure, now);
                let service = fetch.service;
                if failure.may_be_of_the_consumers_making() {
                    Basis::Known(self.backend_failed(shared, now))
                } else {
                    self.unheard(service, shared, now)
                }
            }
        };
        // Others first: they go on while this VM does.
        self.land(digest, failed.unwrap_or_else(|| basis.landing()), shared);
        self.conclude(digest, basis, shared, now);
    }

    /// A key is wrong, and others wait with other keys: asks once for all of them, without a
    /// key, which has the application's keys listed, and then with one of these. False: it is
    /// not worth it, or leads nowhere.
    fn ask_about_keys(
        &mut self,
        digest: Digest,
        answered: &Answered,
        shared: &mut Shared,
        now: Moment,
    ) -> bool {
        let Some(fetch) = self.fetches.get(&digest) else {
            return false;
        };
        let Some(at_work) = self.services.get(fetch.service) else {
            return false;
        };
        let others = |waiting: &Waiting| waiting.shows.app_key != fetch.asked.app_key;
        if fetch.attempt >= MOST_ATTEMPTS || !fetch.waiting.iter().any(others) {
            return false;
        }
        let app_key = match fetch.asked.app_key {
            Some(_) => None,
            None => match answered
                .to_listed_keys()
                .and_then(|keys| keys.into_iter().next())
            {
                Some(key) => Some(key),
                None => return false,
            },
        };
        let asked = at_work.asks_again_with(app_key.as_deref());
        let service = fetch.service;
        if self.pass_gate(digest, shared, now).is_err() {
            return false;
        }
        let Some(token) = self.ask(service, fetch.kind, &fetch.value, &asked) else {
            return false;
        };
        self.count(service, Counter::AuthorizeCalls);
        self.calls.insert(token, Call::Authorize(digest));
        if let Some(fetch) = self.fetches.get_mut(&digest) {
            (fetch.asked, fetch.asked_at) = (asked, now);
            fetch.attempt = fetch.attempt.saturating_add(1);
        }
        true
    }

    /// Reports the usage of a record that has no slot.
    pub(super) fn report_uncached(
        &mut self,
        index: usize,
        mut record: Record,
        shared: &mut Shared,
        now: Moment,
    ) {
        let Some(at_work) = self.services.get_mut(index) else {
            return;
        };
        let batch = shared.random();
        let transactions = record.dispatch(batch, 0, usize::MAX, &at_work.service.metrics);
        let mut units = Units::default();
        for (metric, delta) in transactions.iter().flat_map(|it| &it.usage) {
            units.add_named(&at_work.service.metrics, metric, *delta);
        }
        if units.is_empty() {
            return;
        }
        let mut accounts = Accounts::default();
        accounts.admitted(&units);
        at_work.flusher.book(&accounts);
        at_work.publish();
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
            None => self.settle_uncached(index, &units, Outcome::Refused, now),
        }
    }

    fn settle_uncached(&mut self, index: usize, units: &Units, outcome: Outcome, now: Moment) {
        let Some(at_work) = self.services.get_mut(index) else {
            return;
        };
        let mut accounts = Accounts::default();
        accounts.settled(outcome, units);
        at_work.flusher.book(&accounts);
        at_work.publish();
        let units = units.sum();
        if outcome == Outcome::Acknowledged {
            at_work.stats.add(Counter::UsageAcknowledged, units);
        } else {
            at_work.stats.add(Counter::UsageLostUncached, units);
            at_work.lost(units, "its application had no record", now);
        }
    }

    fn answered_refresh(
        &mut self,
        index: usize,
        question: Question,
        answered: &Answered,
        asked: Moment,
        shared: &mut Shared,
        now: Moment,
    ) {
        let answer = answered.to_authorize(identification(question.kind));
        self.judge(&answer, shared, now);
        let Some(at_work) = self.services.get_mut(index) else {
            return;
        };
        let accuracy = self.configuration.authorization.accuracy;
        let mut lifetimes = lifetimes(&at_work.service.trust, accuracy);
        if let Some(urgent) = &at_work.urgent {
            lifetimes.accuracy = urgent.accuracy(lifetimes.accuracy);
        }
        let Question { slot, digest, .. } = question;
        let known = match &answer {
            AuthorizeAnswer::Known(authorization) => Ok(authorization),
            AuthorizeAnswer::Denied(Denial::ApplicationKeyInvalid)
                if question.kind == Kind::AppId =>
            {
                let listed = match question.app_key {
                    // Somebody chose it, and could have the body say anything.
                    Some(_) => None,
                    None => answered.to_listed_keys(),
                };
                match question.after_wrong_key(listed) {
                    Some(next) => {
                        // What cannot be booked is little beside what the others will have taken.
                        let _ = self.refreshes.take(&shared.data, now, Caller::KnownAgain);
                        self.ask_again(index, next, shared, now);
                    }
                    None => {
                        // Who shows a key asks with it.
                        let _ = shared
                            .applications
                            .expire(&shared.data, (slot, digest), now);
                        at_work.refresher.answered(slot);
                        self.land(digest, Landing::Remembered, shared);
                    }
                }
                return;
            }
            AuthorizeAnswer::Denied(denial) => Err(*denial),
            AuthorizeAnswer::Misconfigured(what) => {
                at_work.misconfigured(*what, now);
                at_work.refresher.failed(slot, now, shared.random());
                self.land(digest, Landing::Misconfigured, shared);
                return;
            }
            AuthorizeAnswer::Failed(failure) => {
                at_work.failed(*failure, now);
                at_work.refresher.failed(slot, now, shared.random());
                self.land(digest, Landing::failed(*failure), shared);
                return;
            }
        };
        let with = at_work.asks_again_with(question.app_key.as_deref());
        let taken = shared.applications.refresh(
            &shared.data,
            (slot, digest, &at_work.shown(&with)),
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
        let landing = match known {
            Ok(_) => Landing::Remembered,
            Err(denial) => Landing::denied(denial),
        };
        self.land(digest, landing, shared);
    }

    pub(super) fn answered_report(
        &mut self,
        index: usize,
        batch: u64,
        answer: &ReportAnswer,
        shared: &mut Shared,
        now: Moment,
    ) {
        let jitter = shared.random();
        let Some(at_work) = self.services.get_mut(index) else {
            return;
        };
        let settings = settings(&self.configuration.reporting, &at_work.service.trust);
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
