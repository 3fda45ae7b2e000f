//! The filter's rooms, put together as one gateway with one worker: a request goes
//! through the records in shared data, questions and reports go to a stand-in by their
//! real bytes, and seconds tick as they do in Envoy.
//!
//! Apart from the comparison because it does what `tollgate::host` does, without Envoy:
//! what is tested with it is everything outside of `host`.
//!
//! What the filter cannot do yet is done here: it knows applications by `user_key` only.
//! So a pair of `app_id` and `app_key` stands where a `user_key` would, as one text, and
//! is translated where it leaves for the backend. Several keys of one application then
//! have several records, each of which sees the others' usage as somebody else's; so that
//! they are as exact as one, such usage is reported at once and the other records are
//! refreshed before the next request.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use service_management::{Backend, Request, Response};
use tollgate::authorization::{
    Accuracy, Applications, Change, Identity, Learned, Lifetimes, Limit, Refresher, Refusal, Slot,
    Verdict,
};
use tollgate::config::Uncertain;
use tollgate::credentials::{Credential, Identities, Kind, Scope};
use tollgate::mapping::{Metrics, Usage};
use tollgate::moment::Moment;
use tollgate::service_management::{
    Application, AuthorizeAnswer, Denial, Identification, REJECTION_REASON_HEADER,
    REPORT_CONTENT_TYPE, REPORT_PATH, Reply, ReportAnswer, ReportBody, ServiceAccess,
    authorize_answer, authorize_target, report_answer,
};
use tollgate::usage::{Flusher, Settings, Terms, push};

use crate::memory::Memory;
use crate::recording::{self, Data};

const KEY: [u8; 16] = *b"a fixed test key";
/// The defaults of the filter's configuration.
const LIFETIMES: Lifetimes = Lifetimes {
    ttl: 60_000,
    negative_ttl: 10_000,
    stale_if_error: 600_000,
    accuracy: Accuracy::Exact,
};
const INTERVAL: u64 = 10_000;
const SETTINGS: Settings = Settings {
    interval: INTERVAL,
    timeout: 5_000,
    batch: 100,
    uncertain: Uncertain::Resend,
    refresh_ahead: 2 * INTERVAL,
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
    flusher: Flusher,
    refresher: Refresher,
    /// Everybody who was asked about.
    seen: BTreeSet<Consumer>,
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
            let interval = match service.identification {
                Identification::UserKey => INTERVAL,
                // Always, so that what must be reported at once need not wait for a round.
                Identification::AppId => 0,
            };
            service.flush(
                &self.data,
                &mut self.applications,
                &mut self.backend,
                interval,
                at,
            )?;
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
        service.seen.insert(consumer.clone());
        let text = consumer.text();
        let identity = service.identity(&text)?;
        let metrics = &service.metrics;
        let decide = |applications: &mut Applications| {
            applications.decide(&self.data, &identity, usage, metrics, now)
        };
        let verdict = match decide(&mut self.applications)? {
            Verdict::Unknown => match service.ask(&mut self.backend, consumer, now)? {
                Err(denial) => {
                    self.applications
                        .learn_denial(&self.data, &identity, denial, now, &LIFETIMES)?;
                    Verdict::Refused(Refusal::Denied(denial))
                }
                Ok(authorization) => {
                    let learned = self.applications.learn(
                        &self.data,
                        &identity,
                        &authorization,
                        metrics,
                        now,
                        &LIFETIMES,
                    )?;
                    match learned {
                        Learned::Remembered => decide(&mut self.applications)?,
                        Learned::TooManyMetrics => Verdict::Refused(Refusal::TooManyMetrics),
                        Learned::Uncached(mut record) => match record.admit(usage, metrics, now) {
                            Err(refusal) => Verdict::Refused(refusal),
                            Ok(()) => {
                                let sent = record.dispatch(1, 0, usize::MAX, metrics);
                                let mut body = ReportBody::new(&service.access());
                                push(&mut body, record.kind, &record.identity, &sent)
                                    .expect("the recordings' metrics can be reported");
                                self.uncached =
                                    (body.transactions() > 0).then(|| body.into_bytes());
                                Verdict::Admitted { stale: false }
                            }
                        },
                    }
                }
            },
            verdict => verdict,
        };
        match verdict {
            Verdict::Admitted { .. } => Ok(Decision::Admitted),
            Verdict::Refused(refusal) => Ok(Decision::Refused(refusal)),
            Verdict::Unknown => anyhow::bail!("the record went while it was decided on"),
        }
    }

    /// After a request was admitted: it is over. If it has no record, its usage is reported
    /// now; and where other keys of the same application have records, these learn of it.
    ///
    /// # Errors
    /// As [`Gateway::advance`].
    pub fn went_on(&mut self, service: &str, consumer: &Consumer, now: u64) -> Result<()> {
        let at = self.moment(now);
        let admitted = self.services.get_mut(service).context("no such service")?;
        if let Some(body) = self.uncached.take() {
            admitted.report(&mut self.backend, &body, at)?;
        }
        if matches!(consumer, Consumer::UserKey(_)) {
            return Ok(());
        }
        admitted.flush(&self.data, &mut self.applications, &mut self.backend, 0, at)?;
        self.refresh(service, consumer, now)
    }

    /// Somebody else has reported usage of an application: by the call `report`, which is
    /// made on the backend. The records of that application are then refreshed.
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
        let seen: Vec<_> = service.seen.iter().map(Consumer::clone).collect();
        for other in seen
            .iter()
            .filter(|other| other.is_same_application(consumer))
        {
            let text = other.text();
            let digest = service.identity(&text)?.digest;
            let slot =
                self.applications
                    .table()
                    .change(&self.data, digest, |_| Change::Keep(()))?;
            if let Some((slot, ())) = slot {
                service.refresher.add(slot);
            }
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
        let text = consumer.text();
        let digest = service.identity(&text)?.digest;
        let found = self
            .applications
            .table()
            .change(&self.data, digest, |record| {
                let limits = record.limits().map(|(metric, limit)| {
                    let mut limit = *limit;
                    limit.roll(now, 0);
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
            seen: BTreeSet::new(),
        })
    }

    fn access(&self) -> ServiceAccess<'_> {
        ServiceAccess {
            id: &self.id,
            token: &self.token,
        }
    }

    fn identity<'a>(&self, text: &'a str) -> Result<Identity<'a>> {
        let credential = Credential::new(Kind::UserKey, Cow::Borrowed(text.as_bytes()))
            .context("the filter takes no such credential")?;
        Ok(Identity {
            digest: self.identities.digest(&credential),
            scope: self.scope,
            kind: Kind::UserKey,
            value: text.as_bytes(),
        })
    }

    /// Reports what waits, `interval` after it was last done; with 0 until nothing waits.
    fn flush(
        &mut self,
        data: &Memory,
        applications: &mut Applications,
        backend: &mut Backend,
        interval: u64,
        now: Moment,
    ) -> Result<()> {
        loop {
            let access = ServiceAccess {
                id: &self.id,
                token: &self.token,
            };
            let terms = Terms {
                metrics: &self.metrics,
                settings: Settings {
                    interval,
                    ..SETTINGS
                },
                now,
            };
            let (reports, _) = self.flusher.next(data, applications, &access, &terms);
            for slot in self.flusher.take_due() {
                self.refresher.add(slot);
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
        loop {
            let questions = self.refresher.next(data, applications, now);
            if questions.is_empty() {
                return Ok(());
            }
            for question in questions {
                let text = String::from_utf8(question.value)?;
                let consumer = Consumer::of_text(self.identification, &text);
                let answer = self.ask(backend, &consumer, now)?;
                applications.refresh(
                    data,
                    (question.slot, question.digest),
                    answer.as_ref().map_err(|denial| *denial),
                    &self.metrics,
                    now,
                    &LIFETIMES,
                )?;
                self.refresher.answered(question.slot);
            }
        }
    }

    /// Asks what an application may do; as the filter does, without any usage.
    fn ask(
        &self,
        backend: &mut Backend,
        consumer: &Consumer,
        now: Moment,
    ) -> Result<Result<tollgate::service_management::Authorization, Denial>> {
        let application = consumer.application();
        let asked = application.identification();
        let target = authorize_target(&self.access(), &application);
        let (path, query) = target.split_once('?').context("a question has a query")?;
        let request = Request {
            method: "GET",
            path,
            query: query.as_bytes(),
            options: Some(asked.options().as_bytes()),
            ..Request::default()
        };
        let response = backend.handle(&request, now.wall);
        match authorize_answer(&reply(&response), asked) {
            AuthorizeAnswer::Known(authorization) => Ok(Ok(authorization)),
            AuthorizeAnswer::Denied(denial) => Ok(Err(denial)),
            AuthorizeAnswer::Misconfigured(what) => {
                anyhow::bail!("service {}: misconfigured: {}", self.id, what.as_str())
            }
            AuthorizeAnswer::Failed(failure) => {
                anyhow::bail!("service {}: no answer: {failure}", self.id)
            }
        }
    }

    /// Sends a report.
    fn report(&self, backend: &mut Backend, body: &[u8], now: Moment) -> Result<ReportAnswer> {
        let body = match self.identification {
            Identification::UserKey => Cow::Borrowed(body),
            Identification::AppId => Cow::Owned(with_app_ids(body)),
        };
        let request = Request {
            method: "POST",
            path: REPORT_PATH,
            content_type: Some(REPORT_CONTENT_TYPE),
            body: &body,
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

/// A report in which `user_key`s that stand for pairs are replaced by their `app_id`s.
fn with_app_ids(body: &[u8]) -> Vec<u8> {
    let mut form = form_urlencoded::Serializer::new(String::new());
    for (name, value) in form_urlencoded::parse(body) {
        match name.strip_suffix("[user_key]") {
            Some(transaction) => {
                if let Consumer::AppId(id, _) = Consumer::of_text(Identification::AppId, &value) {
                    form.append_pair(&format!("{transaction}[app_id]"), &id);
                }
            }
            None => {
                form.append_pair(&name, &value);
            }
        }
    }
    form.finish().into_bytes()
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

    /// Whether both are the same application, as far as the credentials tell.
    fn is_same_application(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::UserKey(one), Self::UserKey(other)) => one == other,
            (Self::AppId(one, _), Self::AppId(other, _)) => one == other,
            _ => false,
        }
    }

    /// What stands in a record: a `user_key` as it is, a pair as a form.
    fn text(&self) -> String {
        match self {
            Self::UserKey(key) => key.clone(),
            Self::AppId(id, key) => {
                let mut form = form_urlencoded::Serializer::new(String::new());
                form.append_pair("app_id", id);
                if let Some(key) = key {
                    form.append_pair("app_key", key);
                }
                form.finish()
            }
        }
    }

    fn of_text(identification: Identification, text: &str) -> Self {
        match identification {
            Identification::UserKey => Self::UserKey(text.to_owned()),
            Identification::AppId => {
                let mut values = form_urlencoded::parse(text.as_bytes());
                let mut next = || values.next().map(|(_, value)| value.into_owned());
                Self::AppId(next().unwrap_or_default(), next())
            }
        }
    }

    fn application(&self) -> Application<'_> {
        match self {
            Self::UserKey(key) => Application::UserKey(key.as_bytes()),
            Self::AppId(id, key) => Application::AppId {
                id: id.as_bytes(),
                key: key.as_ref().map(String::as_bytes),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_reads_as_it_was_written_and_no_key_is_not_an_empty_one() {
        for key in [None, Some(""), Some("k&app_id=b")] {
            let pair = Consumer::of(None, Some("a=&"), key).unwrap();
            assert_eq!(Consumer::of_text(Identification::AppId, &pair.text()), pair);
        }
    }

    #[test]
    fn a_report_of_pairs_names_their_ids_and_never_a_key() {
        let pair = Consumer::AppId("a 1".to_owned(), Some("secret".to_owned()));
        let text = pair.text();
        let mut body = ReportBody::new(&ServiceAccess {
            id: "1",
            token: "t",
        });
        let usage = [("hits", 3)];
        body.try_push(&tollgate::service_management::Transaction {
            application: Application::UserKey(text.as_bytes()),
            at: 7,
            usage: &usage,
        })
        .unwrap();
        let sent = with_app_ids(&body.into_bytes());
        let sent: Vec<_> = form_urlencoded::parse(&sent).into_owned().collect();
        let names = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(
            sent,
            [
                names("service_token", "t"),
                names("service_id", "1"),
                names("transactions[0][app_id]", "a 1"),
                names("transactions[0][timestamp]", "7"),
                names("transactions[0][usage][hits]", "3"),
            ]
        );
    }
}
