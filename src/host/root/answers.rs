//! The end of a call: what it says is remembered, and everybody who waited for it is
//! decided about.

use super::at_work::{self, AtWork};
use super::{Call, Fetch, Root, Waiting, access, identification, lifetimes, settings};
use crate::authorization::{Identity, Learned, Lifetimes, Question, Record, Verdict};
use crate::config::Unknown;
use crate::credentials::{Digest, Kind};
use crate::host::abi::{self, Action};
use crate::host::calls::{self, Answered};
use crate::host::clock;
use crate::host::local_reply::Reply;
use crate::host::stats::Counter;
use crate::host::vm::Shared;
use crate::moment::Moment;
use crate::service_management::{AuthorizeAnswer, Denial, ReportAnswer, ReportBody};
use crate::usage::{Terms, push};
use std::rc::Rc;

/// Answers that a request waits for at most: the first can be about another key, and the next
/// about the key and not the referrer.
const MOST_ANSWERS: u8 = 3;

/// What those who waited for an answer are decided on.
enum Basis {
    /// What is remembered by now.
    Record,
    /// A record that has no slot.
    Uncached(Box<Record>),
    /// Nobody answered. On what was known before, and without any such thing all are let in.
    Unheard,
    /// Somebody was let in unheard; on a record that has no slot, if there is one.
    LetIn(Option<Box<Record>>),
    /// On what was known before, and without any such thing this is said.
    Nothing(Reply),
    /// This is said to all.
    Reply(Reply),
}

impl Basis {
    fn decide(
        &mut self,
        at_work: &AtWork,
        shared: &mut Shared,
        identity: &Identity<'_>,
        waiting: &Waiting,
        lifetimes: &Lifetimes,
        now: Moment,
    ) -> Result<Verdict, Reply> {
        let metrics = &at_work.service.metrics;
        let usage = &waiting.usage;
        let applications = &mut shared.applications;
        let data = &shared.data;
        let decided = match self {
            Self::Reply(reply) => return Err(*reply),
            Self::Uncached(record) | Self::LetIn(Some(record)) => {
                Ok(applications.decide_uncached(data, record, identity, usage, metrics, now))
            }
            Self::Record => applications.decide(data, identity, usage, metrics, now),
            Self::LetIn(None) | Self::Nothing(_) | Self::Unheard => {
                applications.decide_unanswered(data, identity, usage, metrics, now)
            }
        };
        match (decided, &*self) {
            (Ok(Verdict::Unknown), Self::Nothing(reply)) => Err(*reply),
            (Ok(Verdict::Unknown), Self::Unheard) => {
                let learned =
                    applications.let_in_unheard(data, identity, now, lifetimes.negative_ttl);
                *self = match learned {
                    Ok(Learned::Uncached(record)) => Self::LetIn(Some(record)),
                    Ok(Learned::Remembered | Learned::TooManyMetrics) => Self::LetIn(None),
                    Err(_) => Self::Reply(Reply::Contended),
                };
                self.decide(at_work, shared, identity, waiting, lifetimes, now)
            }
            (decided, _) => decided.map_err(|_| Reply::Contended),
        }
    }
}

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
                question,
                asked,
            } => {
                self.answered_refresh(service, question, &answered, asked, shared, now);
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
        let identity = at_work.identity_of(digest, &fetch, &fetch.asked);
        let mut basis = match answer {
            AuthorizeAnswer::Known(authorization) => {
                let learned = shared.applications.learn(
                    &shared.data,
                    &identity,
                    authorization,
                    &at_work.service.metrics,
                    now,
                    &lifetimes,
                );
                match learned {
                    Ok(Learned::Remembered) => Basis::Record,
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
                    *denial,
                    now,
                    &lifetimes,
                );
                if denial.is_of_the_application() {
                    Basis::Reply(Reply::Denied(*denial))
                } else {
                    Basis::Record
                }
            }
            AuthorizeAnswer::Misconfigured(what) => {
                at_work.misconfigured(*what, now);
                Basis::Nothing(Reply::Misconfigured)
            }
            AuthorizeAnswer::Failed(failure) => {
                at_work.stats.count(Counter::AuthorizeFailures);
                at_work.failed(failure.as_str(), now);
                if self.configuration.authorization.unknown == Unknown::Allow {
                    Basis::Unheard
                } else {
                    Basis::Nothing(Reply::BackendFailed)
                }
            }
        };
        let mut again = Vec::new();
        for waiting in fetch.waiting.iter() {
            // A stream that has ended meanwhile is not counted.
            if abi::set_effective_context(waiting.stream_id).is_err() {
                continue;
            }
            let unheard = matches!(basis, Basis::Unheard | Basis::LetIn(_));
            let identity = at_work.identity_of(digest, &fetch, &waiting.shows);
            let verdict = basis.decide(at_work, shared, &identity, waiting, &lifetimes, now);
            let reply = match verdict {
                Ok(Verdict::Admitted { stale }) => {
                    at_work.admitted(stale);
                    if unheard && matches!(basis, Basis::LetIn(_)) {
                        at_work.stats.count(Counter::AdmittedUnknown);
                    }
                    let _ = abi::continue_request();
                    continue;
                }
                Ok(Verdict::Refused(refusal)) => refusal.into(),
                // The answer was about another key or referrer than this one's.
                Ok(Verdict::Unknown)
                    if matches!(basis, Basis::Record) && waiting.answers < MOST_ANSWERS =>
                {
                    again.push(waiting);
                    continue;
                }
                // The caller may try again.
                Ok(Verdict::Unknown) => Reply::Contended,
                Err(reply) => reply,
            };
            at_work.refused(reply).send(now);
        }
        let again: Vec<_> = again
            .into_iter()
            .map(|waiting| Waiting {
                answers: waiting.answers.saturating_add(1),
                ..waiting.clone()
            })
            .collect();
        if let Basis::Uncached(record) | Basis::LetIn(Some(record)) = basis {
            self.report_uncached(fetch.service, *record, shared, now);
        }
        for waiting in again {
            self.wait_again(digest, &fetch, waiting, shared, now);
        }
    }

    /// A request that shows something else than the question did waits for an answer of its
    /// own, or of the one of these that is first.
    fn wait_again(
        &mut self,
        digest: Digest,
        fetch: &Fetch,
        waiting: Waiting,
        shared: &mut Shared,
        now: Moment,
    ) {
        let Some(at_work) = self.services.get(fetch.service) else {
            return;
        };
        let stream_id = waiting.stream_id;
        let shows = waiting.shows.clone();
        let service = Rc::clone(&at_work.service);
        let identity = Identity {
            shown: at_work::shown(&service, &shows),
            ..at_work.identity_of(digest, fetch, &fetch.asked)
        };
        let decided = self.wait((fetch.service, identity), waiting, shared, now);
        if matches!(decided, Ok(Action::Pause)) || abi::set_effective_context(stream_id).is_err() {
            return;
        }
        match decided {
            Ok(Action::Pause) => {}
            Ok(Action::Continue) => {
                let _ = abi::continue_request();
            }
            Err(reply) => reply.send(now),
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
        question: Question,
        answered: &Answered,
        asked: Moment,
        shared: &mut Shared,
        now: Moment,
    ) {
        let lifetimes = lifetimes(&self.configuration);
        let Some(at_work) = self.services.get_mut(index) else {
            return;
        };
        let Question { slot, digest, .. } = question;
        let answer = answered.to_authorize(identification(question.kind));
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
                    Some(next) => self.ask_again(index, next, shared, now),
                    None => {
                        let _ = shared
                            .applications
                            .expire(&shared.data, (slot, digest), now);
                        at_work.refresher.answered(slot);
                    }
                }
                return;
            }
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
        let with = at_work.asks_again_with(&question);
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
