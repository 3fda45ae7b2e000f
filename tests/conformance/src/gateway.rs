//! The filter's rooms, put together as one gateway with one worker: a request goes
//! through the records in shared data, questions and reports go to a stand-in by their
//! real bytes, and seconds tick as they do in Envoy.
//!
//! Apart from the comparison because it does what `tollgate::host` does, without Envoy:
//! what is tested with it is everything outside of `host`.

use std::borrow::Cow;
use std::collections::BTreeMap;

use anyhow::{Context, Result};
use service_management::{Backend, Request, Response};
use tollgate::authorization::{
    Accuracy, Ahead, Applications, Asked, Change, Identity, KeyRule, Learned, Lifetimes, Limit,
    Next, Question, Referrer, Refresher, Refusal, Shown, Slot, Verdict, application,
};
use tollgate::config::Uncertain;
use tollgate::credentials::{Credential, Identities, Kind, Scope};
use tollgate::mapping::{Metrics, Usage};
use tollgate::moment::Moment;
use tollgate::service_management::{
    Authorization, AuthorizeAnswer, Denial, Endpoint, Identification, REJECTION_REASON_HEADER,
    REPORT_CONTENT_TYPE, REPORT_PATH, Reply, ReportAnswer, ReportBody, Right, ServiceAccess,
    authorize_answer, authorize_target, listed_keys, report_answer,
};
use tollgate::usage::{Flusher, MOST_LOOKS, Settings, Terms, push};
use tollgate_shared_data::Memory;

use crate::recording::{self, Data};

const KEY: [u8; 16] = *b"a fixed test key";
/// The defaults of the filter's configuration.
const LIFETIMES: Lifetimes = Lifetimes {
    ttl: 60_000,
    negative_ttl: 10_000,
    stale_if_error: 600_000,
    accuracy: Accuracy::Exact,
};
/// Questions for one request at most.
const MOST_QUESTIONS: usize = 4;
const INTERVAL: u64 = 10_000;
const AHEAD: Ahead = Ahead {
    least: 2 * INTERVAL,
    round: INTERVAL,
};
const SETTINGS: Settings = Settings {
    interval: INTERVAL,
    timeout: 5_000,
    batch: 100,
    uncertain: Uncertain::Resend,
    ahead: AHEAD,
};

/// A gateway, and the backend that it asks and reports to.
pub struct Gateway {
    backend: Backend,
    data: Memory,
    applications: Applications,
    services: BTreeMap<String, Service>,
    /// Monotonic time began then (Unix milliseconds).
    began: u64,
    /// The last tick (Unix seconds).
    ticked: u64,
    /// The report of the last request, if there was no room for a record of it.
    uncached: Option<Vec<u8>>,
}

struct Service {
    id: String,
    token: String,
    identification: Identification,
    metrics: Metrics,
    scope: u64,
    identities: Identities,
    rule: KeyRule,
    endpoint: Endpoint,
    flusher: Flusher,
    refresher: Refresher,
}

/// Who makes a request.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Consumer {
    /// One with a `user_key`.
    UserKey(String),
    /// One with an `app_id`, and perhaps an `app_key`.
    AppId(String, Option<String>),
}

/// What the gateway says to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It may pass, and is counted.
    Admitted,
    /// It may not.
    Refused(Refusal),
}

impl Gateway {
    /// A gateway that knows nobody yet, with room for so many applications. Time begins
    /// at `now` (Unix milliseconds).
    ///
    /// # Errors
    /// The data has metrics that the filter does not take.
    pub fn new(data: &Data, backend: Backend, capacity: u32, now: u64) -> Result<Self> {
        let memory = Memory::default();
        Ok(Self {
            backend,
            applications: Applications::open(&memory, capacity),
            data: memory,
            services: data
                .services
                .iter()
                .map(|service| {
                    let built = Service::new(service, &data.service_token)
                        .with_context(|| format!("service {}", service.id))?;
                    Ok((service.id.clone(), built))
                })
                .collect::<Result<_>>()?,
            began: now,
            ticked: now / 1_000,
            uncached: None,
        })
    }

    /// The stand-in that it asks and reports to.
    pub fn backend(&self) -> &Backend {
        &self.backend
    }

    /// The metrics of a service.
    pub fn metrics(&self, service: &str) -> Option<&Metrics> {
        Some(&self.services.get(service)?.metrics)
    }

    /// Everything that other workers and later requests see, to come back to.
    pub fn state(&self) -> Memory {
        self.data.clone()
    }

    /// Goes back to a state, as if what came after it had not happened.
    pub fn restore(&mut self, state: Memory) {
        self.data = state;
        self.uncached = None;
    }

    /// Lets time pass until `now` (Unix milliseconds): every full second ticks.
    ///
    /// # Errors
    /// The stand-in refuses what the gateway asks or reports.
    pub fn advance(&mut self, now: u64) -> Result<()> {
        while self.ticked < now / 1_000 {
            self.ticked += 1;
            let at = self.moment(self.ticked * 1_000);
            self.tick(at)?;
        }
        Ok(())
    }

    /// Reports all usage, whatever time that takes. Returns when it was done.
    ///
    /// # Errors
    /// As [`Gateway::advance`].
    pub fn finish(&mut self, now: u64) -> Result<u64> {
        let end = now + 2 * INTERVAL;
        self.advance(end)?;
        Ok(end)
    }

    fn moment(&self, wall: u64) -> Moment {
        Moment {
            wall,
            // Not the time from the beginning alone: 0 must not look like "never".
            monotonic: 1_000_000 + wall - self.began,
        }
    }

    fn tick(&mut self, at: Moment) -> Result<()> {
        for service in self.services.values_mut() {
            service.flush(&self.data, &mut self.applications, &mut self.backend, at)?;
            service.refresh(&self.data, &mut self.applications, &mut self.backend, at)?;
        }
        Ok(())
    }

    /// Decides about a request, at a moment in Unix milliseconds. If it is admitted, either
    /// [`Gateway::went_on`] or [`Gateway::restore`] must follow.
    ///
    /// # Errors
    /// There is no such service, or nothing could be decided, for a reason that no
    /// recording has.
    pub fn request(
        &mut self,
        service: &str,
        consumer: &Consumer,
        usage: &Usage,
        now: u64,
    ) -> Result<Decision> {
        let now = self.moment(now);
        let service = self.services.get_mut(service).context("no such service")?;
        let credential = consumer.credential()?;
        let identity = service.identity(&credential);
        let metrics = &service.metrics;
        for _ in 0..MOST_QUESTIONS {
            let verdict = self
                .applications
                .decide(&self.data, &identity, usage, metrics, now)?;
            match verdict {
                Verdict::Admitted { .. } => return Ok(Decision::Admitted),
                Verdict::Refused(refusal) => return Ok(Decision::Refused(refusal)),
                Verdict::Unknown => {}
            }
            let question = self.applications.question(&self.data, &identity, now);
            let Some(asked) = question else {
                let denial = Denial::ApplicationKeyInvalid;
                return Ok(Decision::Refused(Refusal::Denied(denial)));
            };
            let kind = identity.kind;
            let answer = service.ask(&mut self.backend, kind, identity.value, &asked, now)?;
            let identity = Identity {
                shown: asked.shown(service.rule, false),
                tells: false,
                ..identity
            };
            let authorization = match answer.to_known(service)? {
                Err(denial) => {
                    self.applications
                        .learn_denial(&self.data, &identity, denial, now, &LIFETIMES)?;
                    if denial.is_of_the_application() {
                        return Ok(Decision::Refused(Refusal::Denied(denial)));
                    }
                    continue;
                }
                Ok(authorization) => authorization,
            };
            let learned = self.applications.learn(
                &self.data,
                &identity,
                &authorization,
                metrics,
                now,
                &LIFETIMES,
            )?;
            match learned {
                Learned::Remembered => {}
                Learned::TooManyMetrics => {
                    return Ok(Decision::Refused(Refusal::TooManyMetrics));
                }
                Learned::Uncached(mut record) => match record.admit(usage, metrics, now) {
                    Err(refusal) => return Ok(Decision::Refused(refusal)),
                    Ok(()) => {
                        let sent = record.dispatch(1, 0, usize::MAX, metrics);
                        let mut body = ReportBody::new(&service.access());
                        push(&mut body, record.kind, &record.identity, &sent)
                            .expect("the recordings' metrics can be reported");
                        self.uncached = (body.transactions() > 0).then(|| body.into_bytes());
                        return Ok(Decision::Admitted);
                    }
                },
            }
        }
        anyhow::bail!("the record went while it was decided on")
    }

    /// After a request was admitted: it is over. If it has no record, its usage is reported
    /// now.
    ///
    /// # Errors
    /// As [`Gateway::advance`].
    pub fn went_on(&mut self, service: &str, now: u64) -> Result<()> {
        let at = self.moment(now);
        let admitted = self.services.get_mut(service).context("no such service")?;
        if let Some(body) = self.uncached.take() {
            admitted.report(&mut self.backend, &body, at)?;
        }
        Ok(())
    }

    /// Somebody else has reported usage of an application: by the call `report`, which is
    /// made on the backend. The record of that application is then refreshed.
    ///
    /// # Errors
    /// As [`Gateway::advance`].
    pub fn meanwhile(
        &mut self,
        service: &str,
        consumer: &Consumer,
        report: impl FnOnce(&mut Backend),
        now: u64,
    ) -> Result<()> {
        report(&mut self.backend);
        self.refresh(service, consumer, now)
    }

    fn refresh(&mut self, service: &str, consumer: &Consumer, now: u64) -> Result<()> {
        let at = self.moment(now);
        let service = self.services.get_mut(service).context("no such service")?;
        let digest = service.identity(&consumer.credential()?).digest;
        let table = self.applications.table();
        let slot = table.change(&self.data, digest, |_| Change::Keep(()))?;
        if let Some((slot, ())) = slot {
            service.refresher.add_first(slot, at);
        }
        service.refresh(&self.data, &mut self.applications, &mut self.backend, at)
    }

    /// The limits that the gateway follows for an application, in the windows open at
    /// `now`: by metric. `None` if it has no record.
    ///
    /// # Errors
    /// There is no such service.
    pub fn limits(
        &mut self,
        service: &str,
        consumer: &Consumer,
        now: u64,
    ) -> Result<Option<Vec<(String, Limit)>>> {
        let now = self.moment(now);
        let service = self.services.get_mut(service).context("no such service")?;
        let digest = service.identity(&consumer.credential()?).digest;
        let found = self
            .applications
            .table()
            .change(&self.data, digest, |record| {
                let limits = record.limits().map(|(metric, limit)| {
                    let mut limit = *limit;
                    limit.roll(now, 0, 0);
                    (metric.to_owned(), limit)
                });
                Change::Keep(limits.collect())
            })?;
        Ok(found.map(|(_, limits)| limits))
    }

    /// Whether some usage was admitted and is not acknowledged, or given up.
    ///
    /// # Errors
    /// Shared data is not available.
    pub fn has_unacknowledged(&mut self) -> Result<bool> {
        for slot in 0..self.applications.slots() {
            let table = self.applications.table();
            let settled = table.change_slot(&self.data, Slot(slot), |record| {
                let mut accounts = record.accounts();
                Some(Change::Keep(accounts.all(|(_, ledger, ..)| {
                    ledger.admitted == ledger.acknowledged
                })))
            })?;
            if settled == Some(false) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl Service {
    fn new(data: &recording::Service, token: &str) -> Result<Self> {
        let scope = Scope {
            cluster: "service-management".to_owned(),
            authority: "localhost".to_owned(),
            service: data.id.clone(),
        };
        let number = scope.number();
        let oauth = data.backend_version == "oauth";
        let metrics = data.metrics.iter();
        let metrics = metrics.map(|metric| (metric.name.clone(), metric.parent.clone()));
        Ok(Self {
            id: data.id.clone(),
            token: token.to_owned(),
            identification: match data.backend_version.as_str() {
                "1" => Identification::UserKey,
                _ => Identification::AppId,
            },
            metrics: Metrics::new(metrics)?,
            scope: number,
            identities: Identities::new(&KEY, &scope),
            flusher: Flusher::new(number, number),
            refresher: Refresher::new(number),
            rule: if oauth {
                KeyRule::IfShown
            } else {
                KeyRule::IfAny
            },
            endpoint: if oauth {
                Endpoint::OauthAuthorize
            } else {
                Endpoint::Authorize
            },
        })
    }

    fn access(&self) -> ServiceAccess<'_> {
        ServiceAccess {
            id: &self.id,
            right: Right::ServiceToken(&self.token),
        }
    }

    fn identity<'a>(&self, credential: &'a Credential<'_>) -> Identity<'a> {
        Identity {
            digest: self.identities.digest(credential),
            scope: self.scope,
            kind: credential.kind(),
            value: credential.expose().as_bytes(),
            shown: Shown {
                rule: self.rule,
                app_key: credential.app_key(),
                referrer: Referrer::Ignored,
            },
            tells: false,
        }
    }

    /// Reports what waits, when it is time to.
    fn flush(
        &mut self,
        data: &Memory,
        applications: &mut Applications,
        backend: &mut Backend,
        now: Moment,
    ) -> Result<()> {
        loop {
            let access = ServiceAccess {
                id: &self.id,
                right: Right::ServiceToken(&self.token),
            };
            let terms = Terms {
                metrics: &self.metrics,
                settings: SETTINGS,
                now,
            };
            let (reports, _) =
                self.flusher
                    .next(data, applications, &access, &terms, &mut MOST_LOOKS.clone());
            for (slot, wanted) in self.flusher.take_due() {
                self.refresher.add(slot, wanted, now);
            }
            if reports.is_empty() {
                return Ok(());
            }
            for report in reports {
                let answer = self.report(backend, &report.body, now)?;
                let terms = Terms {
                    metrics: &self.metrics,
                    ..terms
                };
                self.flusher
                    .answered(data, applications, report.batch, &answer, &terms, 0);
            }
        }
    }

    /// Asks about the applications that it is time to ask about again.
    fn refresh(
        &mut self,
        data: &Memory,
        applications: &mut Applications,
        backend: &mut Backend,
        now: Moment,
    ) -> Result<()> {
        self.refresher.take_marks(data, applications);
        let mut looks = MOST_LOOKS;
        self.refresher
            .list_marked(data, applications, AHEAD, now, &mut looks);
        loop {
            match self.refresher.next(data, applications, AHEAD, now, || true) {
                Next::Ask(question) => {
                    self.ask_again(data, applications, backend, question, now)?;
                }
                Next::NotWanted(_) => {}
                Next::Nobody | Next::OverBudget { .. } => return Ok(()),
            }
        }
    }

    fn ask_again(
        &mut self,
        data: &Memory,
        applications: &mut Applications,
        backend: &mut Backend,
        question: Question,
        now: Moment,
    ) -> Result<()> {
        let mut next = Some(question);
        while let Some(question) = next.take() {
            let asked = Asked {
                app_key: question.app_key.clone(),
                referrer: None,
            };
            let answer = self.ask(backend, question.kind, &question.value, &asked, now)?;
            let (slot, digest) = (question.slot, question.digest);
            let known = answer.to_known(self)?;
            if known == Err(Denial::ApplicationKeyInvalid) {
                let listed = match question.app_key {
                    Some(_) => None,
                    None => listed_keys(&reply(&answer.0)),
                };
                next = question.after_wrong_key(listed);
                if next.is_none() {
                    applications.expire(data, (slot, digest), now)?;
                    self.refresher.answered(slot);
                }
                continue;
            }
            applications.refresh(
                data,
                (slot, digest, &asked.shown(self.rule, false)),
                known.as_ref().map_err(|denial| *denial),
                &self.metrics,
                now,
                &LIFETIMES,
            )?;
            self.refresher.answered(slot);
        }
        Ok(())
    }

    /// Asks what an application may do; as the filter does, without any usage.
    fn ask(
        &self,
        backend: &mut Backend,
        kind: Kind,
        value: &[u8],
        asked: &Asked,
        now: Moment,
    ) -> Result<Answer> {
        let application = application(kind, value, asked.app_key.as_deref());
        let target = authorize_target(&self.access(), self.endpoint, &application, None);
        let (path, query) = target.split_once('?').context("a question has a query")?;
        let request = Request {
            method: "GET",
            path,
            query: query.as_bytes(),
            options: Some(application.identification().options().as_bytes()),
            ..Request::default()
        };
        Ok(Answer(backend.handle(&request, now.wall)))
    }

    /// Sends a report.
    fn report(&self, backend: &mut Backend, body: &[u8], now: Moment) -> Result<ReportAnswer> {
        let request = Request {
            method: "POST",
            path: REPORT_PATH,
            content_type: Some(REPORT_CONTENT_TYPE),
            body,
            ..Request::default()
        };
        let answer = report_answer(&reply(&backend.handle(&request, now.wall)));
        anyhow::ensure!(
            answer == ReportAnswer::Acknowledged,
            "service {}: a report was not acknowledged: {answer:?}",
            self.id
        );
        Ok(answer)
    }
}

/// An answer as Envoy would hand it over.
fn reply(response: &Response) -> Reply<'_> {
    Reply {
        status: response.status,
        rejection_reason: response.header(REJECTION_REASON_HEADER).map(str::as_bytes),
        from_upstream: true,
        body: &response.body,
    }
}

/// The answer to a question.
struct Answer(Response);

impl Answer {
    fn to_known(&self, asked: &Service) -> Result<Result<Authorization, Denial>> {
        match authorize_answer(&reply(&self.0), asked.identification) {
            AuthorizeAnswer::Known(authorization) => Ok(Ok(authorization)),
            AuthorizeAnswer::Denied(denial) => Ok(Err(denial)),
            AuthorizeAnswer::Misconfigured(what) => {
                anyhow::bail!("service {}: misconfigured: {}", asked.id, what.as_str())
            }
            AuthorizeAnswer::Failed(failure) => {
                anyhow::bail!("service {}: no answer: {failure}", asked.id)
            }
        }
    }
}

impl Consumer {
    /// Who makes a call with these parameters.
    #[must_use]
    pub fn of(user_key: Option<&str>, app_id: Option<&str>, app_key: Option<&str>) -> Option<Self> {
        match (user_key, app_id) {
            (Some(key), None) => Some(Self::UserKey(key.to_owned())),
            (None, Some(id)) => Some(Self::AppId(id.to_owned(), app_key.map(str::to_owned))),
            _ => None,
        }
    }

    fn credential(&self) -> Result<Credential<'_>> {
        let bytes = |text: &'_ str| Cow::Owned(text.as_bytes().to_vec());
        let credential = match self {
            Self::UserKey(key) => Credential::new(Kind::UserKey, bytes(key)),
            Self::AppId(id, key) => {
                let credential = Credential::new(Kind::AppId, bytes(id));
                match key {
                    Some(key) => {
                        credential.and_then(|credential| credential.with_app_key(bytes(key)))
                    }
                    None => credential,
                }
            }
        };
        credential.context("the filter takes no such credential")
    }
}
