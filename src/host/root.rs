//! One configuration at work in one VM: requests, ticks and the answers to calls.

use super::abi::{self, Action, MapType};
use super::calls::{self, Answered};
use super::clock;
use super::logger::Seldom;
use super::reply::Reply;
use super::seed;
use super::stats::{Counter, Stats};
use super::vm::Shared;
use crate::authorization::{
    Change, Identity, Learned, Lifetimes, Mark, Question, Record, Refresher, Slot, Verdict,
    application,
};
use crate::config::{Configuration, Service, Unknown, UnmatchedHosts};
use crate::credentials::{Credential, Digest, Found, Identities, Kind};
use crate::mapping::Usage;
use crate::moment::Moment;
use crate::request::{Headers, Request};
use crate::service_management::{
    AuthorizeAnswer, Failure, Identification, Misconfiguration, ReportAnswer, ReportBody,
    ServiceAccess,
};
use crate::usage::{Candidate, Flusher, Settings, Settled, Terms, lead, push, wants_flush};
use log::{error, info, warn};
use std::collections::HashMap;

/// Requests that may wait for answers in one VM: each holds a connection, and some
/// hundred bytes here.
const MOST_WAITING: usize = 10_000;
/// A leader that does not renew its lease for so long is replaced.
const LEASE_MILLISECONDS: u64 = 4_000;
/// The sweep looks at every slot once in so many ticks.
const TICKS_OF_A_SWEEP: u32 = 60;
/// The sweep looks at no more slots in a tick than this: about a millisecond.
const MOST_SWEPT: u32 = 1_000;

/// One service at work.
struct AtWork {
    scope: u64,
    identities: Identities,
    flusher: Flusher,
    refresher: Refresher,
    leads: bool,
    stats: Stats,
    quiet: Quiet,
}

/// Lines that must not fill the log.
#[derive(Default)]
struct Quiet {
    misconfigured: Seldom,
    failed: Seldom,
    report: Seldom,
    lost: Seldom,
    uncached: Seldom,
}

/// A request that is paused until its application is known.
struct Waiting {
    stream_id: u32,
    usage: Usage,
}

/// A question about an unknown application, and everybody who waits for its answer.
struct Fetch {
    service: usize,
    kind: Kind,
    value: Vec<u8>,
    waiting: Vec<Waiting>,
}

/// What a call was made for.
enum Call {
    Authorize(Digest),
    Refresh {
        service: usize,
        slot: Slot,
        digest: Digest,
        kind: Kind,
    },
    Report {
        service: usize,
        batch: u64,
    },
    /// Usage of requests that had no record.
    Uncached {
        service: usize,
        units: u64,
    },
}

/// A root context with its configuration.
pub struct Root {
    id: u32,
    configuration: Configuration,
    key: [u8; 16],
    candidate: Candidate,
    services: Vec<AtWork>,
    fetches: HashMap<Digest, Fetch>,
    waiting: usize,
    calls: HashMap<u32, Call>,
    swept: u32,
    /// Ticks of other root contexts since the last of this one.
    pub missed_ticks: u32,
}

impl Root {
    /// Sets a configuration to work. `None`: shared data is not available.
    pub fn new(
        id: u32,
        configuration: Configuration,
        shared: &mut Shared,
        now: Moment,
    ) -> Option<Self> {
        let key = seed::agree(&shared.data, &shared.offer)?;
        let services = configuration
            .services
            .iter()
            .map(|service| AtWork::new(service, &key, shared))
            .collect();
        Some(Self {
            id,
            configuration,
            key,
            candidate: Candidate {
                id: shared.random(),
                born: now.monotonic,
            },
            services,
            fetches: HashMap::new(),
            waiting: 0,
            calls: HashMap::new(),
            swept: 0,
            missed_ticks: 0,
        })
    }

    /// The context's id.
    pub const fn id(&self) -> u32 {
        self.id
    }

    /// Number of services.
    pub const fn services(&self) -> usize {
        self.services.len()
    }

    /// Whether this root made the call.
    pub fn waits_for(&self, token: u32) -> bool {
        self.calls.contains_key(&token)
    }

    // Requests.

    /// Decides about a request: goes on, is answered here, or waits.
    pub fn on_request_headers(&mut self, stream_id: u32, shared: &mut Shared) -> Action {
        let now = clock::now();
        match self.decide(stream_id, shared, now) {
            Ok(action) => action,
            Err(reply) => {
                reply.send(now);
                Action::Pause
            }
        }
    }

    fn decide(
        &mut self,
        stream_id: u32,
        shared: &mut Shared,
        now: Moment,
    ) -> Result<Action, Reply> {
        let bytes = abi::header_map(MapType::RequestHeaders).map_err(|_| Reply::Contended)?;
        let pairs = abi::parse_pairs(&bytes);
        let headers = Headers { pairs: &pairs };
        let request = Request {
            method: headers.first(b":method").unwrap_or_default(),
            authority: headers.first(b":authority").unwrap_or_default(),
            target: headers.first(b":path").unwrap_or_default(),
            headers,
        };
        let Some((index, service)) = self.configuration.service_for(request.authority) else {
            return match self.configuration.unmatched_hosts {
                UnmatchedHosts::Pass => Ok(Action::Continue),
                UnmatchedHosts::Deny => Err(Reply::NoService),
            };
        };
        let at_work = self.services.get_mut(index).ok_or(Reply::Misconfigured)?;
        if service.is_exempt(&request) {
            at_work.stats.count(Counter::Exempt);
            return Ok(Action::Continue);
        }
        let credential = match service.credentials.find(&request) {
            Found::Credential(credential) => credential,
            Found::Missing => return Err(at_work.refused(Reply::NoCredential)),
            Found::Unusable => return Err(at_work.refused(Reply::UnusableCredential)),
        };
        shared.usage.clear();
        if !service
            .rules
            .matching(request.method, request.target, &mut shared.usage)
        {
            return Err(at_work.refused(Reply::NoRule));
        }
        let identity = at_work.identity(&credential);
        let verdict = shared.applications.decide(
            &shared.data,
            &identity,
            &shared.usage,
            &service.metrics,
            now,
        );
        match verdict {
            Ok(Verdict::Admitted { stale }) => {
                at_work.admitted(stale);
                Ok(Action::Continue)
            }
            Ok(Verdict::Refused(refusal)) => Err(at_work.refused(refusal.into())),
            Err(_) => Err(at_work.refused(Reply::Contended)),
            Ok(Verdict::Unknown) => {
                let fetch = Fetch {
                    service: index,
                    kind: identity.kind,
                    value: identity.value.to_vec(),
                    waiting: Vec::new(),
                };
                let digest = identity.digest;
                self.wait(stream_id, digest, fetch, shared, now)
            }
        }
    }

    /// Pauses the request until its application is known, and asks unless that has
    /// been done for another request.
    fn wait(
        &mut self,
        stream_id: u32,
        digest: Digest,
        mut fetch: Fetch,
        shared: &mut Shared,
        now: Moment,
    ) -> Result<Action, Reply> {
        let service = fetch.service;
        if self.waiting >= MOST_WAITING {
            return Err(self.refused(service, Reply::Overloaded));
        }
        let waiting = Waiting {
            stream_id,
            usage: shared.usage.clone(),
        };
        if let Some(fetch) = self.fetches.get_mut(&digest) {
            fetch.waiting.push(waiting);
            self.waiting = self.waiting.saturating_add(1);
            return Ok(Action::Pause);
        }
        fetch.waiting.push(waiting);
        // Envoy makes every call from the root context: others wait for the answer when
        // this stream has ended.
        let Some(token) = self.ask(service, fetch.kind, &fetch.value) else {
            return self.unasked(fetch, digest, shared, now);
        };
        self.count(service, Counter::AuthorizeCalls);
        self.calls.insert(token, Call::Authorize(digest));
        self.fetches.insert(digest, fetch);
        self.waiting = self.waiting.saturating_add(1);
        Ok(Action::Pause)
    }

    /// The call could not even be made. Decided at once, for the request whose callback
    /// is running can be let go on only by its own return.
    fn unasked(
        &mut self,
        fetch: Fetch,
        digest: Digest,
        shared: &mut Shared,
        now: Moment,
    ) -> Result<Action, Reply> {
        let (Some(service), Some(at_work)) = (
            self.configuration.services.get(fetch.service),
            self.services.get_mut(fetch.service),
        ) else {
            return Err(Reply::Misconfigured);
        };
        at_work.stats.count(Counter::AuthorizeFailures);
        at_work.failed(service, "the call could not be made", now);
        if self.configuration.authorization.unknown == Unknown::Deny {
            return Err(at_work.refused(Reply::BackendFailed));
        }
        let identity = at_work.identity_of(digest, &fetch);
        let negative_ttl = lifetimes(&self.configuration).negative_ttl;
        let usage = fetch.waiting.first().map(|waiting| &waiting.usage);
        let verdict = shared
            .applications
            .let_in_unheard(&shared.data, &identity, now, negative_ttl)
            .and_then(|_| {
                shared.applications.decide(
                    &shared.data,
                    &identity,
                    usage.unwrap_or(&Usage::new()),
                    &service.metrics,
                    now,
                )
            });
        match verdict {
            Ok(Verdict::Admitted { .. }) => {
                at_work.stats.count(Counter::AdmittedUnknown);
                at_work.admitted(false);
                Ok(Action::Continue)
            }
            Ok(Verdict::Refused(refusal)) => Err(at_work.refused(refusal.into())),
            Ok(Verdict::Unknown) | Err(_) => Err(at_work.refused(Reply::Contended)),
        }
    }

    fn ask(&self, service: usize, kind: Kind, value: &[u8]) -> Option<u32> {
        let service = self.configuration.services.get(service)?;
        calls::authorize(
            &self.configuration.service_management,
            &access(service),
            &application(kind, value),
        )
    }

    // Answers.

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
            } => {
                let answer = answered.to_authorize(identification(kind));
                self.answered_refresh(service, slot, digest, &answer, shared, now);
            }
            Call::Report { service, batch } => {
                self.answered_report(service, batch, &answered.to_report(), shared, now);
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
        let (Some(service), Some(at_work)) = (
            self.configuration.services.get(fetch.service),
            self.services.get_mut(fetch.service),
        ) else {
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
                    &service.metrics,
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
                at_work.misconfigured(service, *what, now);
                Err(Reply::Misconfigured)
            }
            AuthorizeAnswer::Failed(failure) => {
                at_work.stats.count(Counter::AuthorizeFailures);
                at_work.failed(service, failure.as_str(), now);
                if allow_unknown {
                    at_work
                        .stats
                        .add(Counter::AdmittedUnknown, fetch.waiting.len() as u64);
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
                at_work.uncached(service, now);
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
                    .admit(&waiting.usage, &service.metrics, now)
                    .map(|()| Verdict::Admitted { stale: false })
                    .map_err(Reply::from),
                (Ok(()), None) => shared
                    .applications
                    .decide(
                        &shared.data,
                        &identity,
                        &waiting.usage,
                        &service.metrics,
                        now,
                    )
                    .map_err(|_| Reply::Contended),
            };
            let reply = match verdict {
                Ok(Verdict::Admitted { stale }) => {
                    at_work.admitted(stale);
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
        let Some(service) = self.configuration.services.get(index) else {
            return;
        };
        let batch = shared.random();
        let transactions = record.dispatch(batch, 0, usize::MAX, &service.metrics);
        let units = transactions
            .iter()
            .flat_map(|transaction| &transaction.usage)
            .fold(0_u64, |sum, (_, delta)| sum.saturating_add(*delta));
        if units == 0 {
            return;
        }
        let mut body = ReportBody::new(&access(service));
        push(&mut body, record.kind, &record.identity, &transactions);
        let sent = calls::report(
            &self.configuration.service_management,
            self.configuration.reporting.timeout,
            &body.into_bytes(),
        );
        self.count(index, Counter::ReportCalls);
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
        let (Some(service), Some(at_work)) = (
            self.configuration.services.get(index),
            self.services.get_mut(index),
        ) else {
            return;
        };
        if acknowledged {
            at_work.stats.add(Counter::UsageAcknowledged, units);
        } else {
            at_work.stats.add(Counter::UsageLostUncached, units);
            at_work.lost(service, units, "its application had no record", now);
        }
    }

    fn answered_refresh(
        &mut self,
        index: usize,
        slot: Slot,
        digest: Digest,
        answer: &AuthorizeAnswer,
        shared: &mut Shared,
        now: Moment,
    ) {
        let lifetimes = lifetimes(&self.configuration);
        let (Some(service), Some(at_work)) = (
            self.configuration.services.get(index),
            self.services.get_mut(index),
        ) else {
            return;
        };
        let known = match answer {
            AuthorizeAnswer::Known(authorization) => Ok(authorization),
            AuthorizeAnswer::Denied(denial) => Err(*denial),
            AuthorizeAnswer::Misconfigured(what) => {
                at_work.misconfigured(service, *what, now);
                at_work.refresher.failed(slot, now, shared.random());
                return;
            }
            AuthorizeAnswer::Failed(failure) => {
                at_work.stats.count(Counter::AuthorizeFailures);
                at_work.failed(service, failure.as_str(), now);
                at_work.refresher.failed(slot, now, shared.random());
                return;
            }
        };
        let taken = shared.applications.refresh(
            &shared.data,
            (slot, digest),
            known,
            &service.metrics,
            now,
            &lifetimes,
        );
        if taken.is_ok() {
            at_work.refresher.answered(slot);
        } else {
            at_work.refresher.failed(slot, now, shared.random());
        }
    }

    fn answered_report(
        &mut self,
        index: usize,
        batch: u64,
        answer: &ReportAnswer,
        shared: &mut Shared,
        now: Moment,
    ) {
        let settings = settings(&self.configuration);
        let jitter = shared.random();
        let (Some(service), Some(at_work)) = (
            self.configuration.services.get(index),
            self.services.get_mut(index),
        ) else {
            return;
        };
        match answer {
            ReportAnswer::Acknowledged => {}
            ReportAnswer::Refused { .. } => at_work.stats.count(Counter::ReportsRefused),
            ReportAnswer::NotDelivered(_) => at_work.stats.count(Counter::ReportsNotDelivered),
            ReportAnswer::Uncertain(_) => at_work.stats.count(Counter::ReportsUncertain),
        }
        if !matches!(answer, ReportAnswer::Acknowledged)
            && let Some(withheld) = at_work.quiet.report.due(now.monotonic)
        {
            warn!(
                "service {}: a report was not acknowledged ({answer:?}); its usage is kept and \
                 sent again ({withheld} such lines withheld)",
                service.id
            );
        }
        let settled = at_work.flusher.answered(
            &shared.data,
            &mut shared.applications,
            batch,
            answer,
            &Terms {
                metrics: &service.metrics,
                settings,
                now,
            },
            jitter,
        );
        at_work.settled(service, settled, now);
    }

    // Ticks.

    /// Leads where this VM may: flushes, refreshes, sweeps.
    pub fn on_tick(&mut self, shared: &mut Shared) {
        let now = clock::now();
        self.agree_on_key(shared);
        for index in 0..self.services.len() {
            let Some(at_work) = self.services.get_mut(index) else {
                break;
            };
            let leads = lead(
                &shared.data,
                at_work.scope,
                self.candidate,
                now,
                LEASE_MILLISECONDS,
            );
            if leads && !at_work.leads {
                info!("leading service index {index}: this VM flushes and refreshes");
            }
            at_work.leads = leads;
            if leads {
                self.flush(index, shared, now);
                self.refresh(index, shared, now);
            }
        }
        self.sweep(shared, now);
    }

    /// Goes by the key that the process agreed on, should it be another one now.
    fn agree_on_key(&mut self, shared: &Shared) {
        if let Some(key) = seed::agree(&shared.data, &shared.offer)
            && key != self.key
        {
            self.key = key;
            for (service, at_work) in self.configuration.services.iter().zip(&mut self.services) {
                at_work.identities = Identities::new(&key, &service.scope);
            }
        }
    }

    fn flush(&mut self, index: usize, shared: &mut Shared, now: Moment) {
        let settings = settings(&self.configuration);
        let (Some(service), Some(at_work)) = (
            self.configuration.services.get(index),
            self.services.get_mut(index),
        ) else {
            return;
        };
        let (reports, settled) = at_work.flusher.tick(
            &shared.data,
            &mut shared.applications,
            &access(service),
            &Terms {
                metrics: &service.metrics,
                settings,
                now,
            },
        );
        at_work.settled(service, settled, now);
        for slot in at_work.flusher.take_due() {
            at_work.refresher.add(slot);
        }
        for report in reports {
            self.count(index, Counter::ReportCalls);
            let sent = calls::report(
                &self.configuration.service_management,
                self.configuration.reporting.timeout,
                &report.body,
            );
            match sent {
                Some(token) => {
                    self.calls.insert(
                        token,
                        Call::Report {
                            service: index,
                            batch: report.batch,
                        },
                    );
                }
                None => {
                    let answer = ReportAnswer::NotDelivered(Failure::NotConnected);
                    self.answered_report(index, report.batch, &answer, shared, now);
                }
            }
        }
    }

    fn refresh(&mut self, index: usize, shared: &mut Shared, now: Moment) {
        let Some(at_work) = self.services.get_mut(index) else {
            return;
        };
        let questions = at_work
            .refresher
            .tick(&shared.data, &mut shared.applications, now);
        for Question {
            slot,
            digest,
            kind,
            value,
        } in questions
        {
            self.count(index, Counter::RefreshCalls);
            match self.ask(index, kind, &value) {
                Some(token) => {
                    self.calls.insert(
                        token,
                        Call::Refresh {
                            service: index,
                            slot,
                            digest,
                            kind,
                        },
                    );
                }
                None => {
                    self.warn_failed(index, "the call could not be made", now);
                    let jitter = shared.random();
                    if let Some(at_work) = self.services.get_mut(index) {
                        at_work.refresher.failed(slot, now, jitter);
                    }
                }
            }
        }
    }

    /// Looks at some of the slots, so that what no mark names is found all the same:
    /// usage in flight of a VM that went away, marks that were lost with one.
    fn sweep(&mut self, shared: &mut Shared, now: Moment) {
        if !self.services.iter().any(|at_work| at_work.leads) {
            return;
        }
        let slots = shared.applications.slots();
        let ahead = refresh_ahead(&self.configuration);
        for _ in 0..slots.div_ceil(TICKS_OF_A_SWEEP).min(MOST_SWEPT) {
            let slot = Slot(self.swept);
            self.swept = self.swept.saturating_add(1);
            if self.swept >= slots {
                self.swept = 0;
            }
            let services = &mut self.services;
            let found = shared
                .applications
                .table()
                .change_slot(&shared.data, slot, |record| {
                    let at_work = services
                        .iter_mut()
                        .find(|at_work| at_work.leads && at_work.scope == record.scope)?;
                    if record.wants_refresh(now, ahead) {
                        at_work.refresher.add(slot);
                    }
                    Some(Change::Keep(
                        wants_flush(record, now).then_some(at_work.scope),
                    ))
                });
            // Marked, not flushed: usage that only waits for its round is sent in it.
            if let Ok(Some(Some(scope))) = found {
                shared
                    .applications
                    .marks(Mark::Dirty, scope)
                    .set(&shared.data, slot);
            }
        }
    }

    fn count(&self, service: usize, counter: Counter) {
        if let Some(at_work) = self.services.get(service) {
            at_work.stats.count(counter);
        }
    }

    fn refused(&self, service: usize, reply: Reply) -> Reply {
        match self.services.get(service) {
            Some(at_work) => at_work.refused(reply),
            None => reply,
        }
    }

    fn warn_failed(&mut self, index: usize, why: &str, now: Moment) {
        if let (Some(service), Some(at_work)) = (
            self.configuration.services.get(index),
            self.services.get_mut(index),
        ) {
            at_work.failed(service, why, now);
        }
    }
}

impl AtWork {
    fn new(service: &Service, key: &[u8; 16], shared: &mut Shared) -> Self {
        let scope = service.scope.number(key);
        Self {
            scope,
            identities: Identities::new(key, &service.scope),
            flusher: Flusher::new(scope, shared.random()),
            refresher: Refresher::new(scope),
            leads: false,
            stats: Stats::define(&service.id),
            quiet: Quiet::default(),
        }
    }

    fn identity<'a>(&self, credential: &'a Credential<'_>) -> Identity<'a> {
        Identity {
            digest: self.identities.digest(credential),
            scope: self.scope,
            kind: credential.kind(),
            value: credential.expose().as_bytes(),
        }
    }

    const fn identity_of<'a>(&self, digest: Digest, fetch: &'a Fetch) -> Identity<'a> {
        Identity {
            digest,
            scope: self.scope,
            kind: fetch.kind,
            value: fetch.value.as_slice(),
        }
    }

    fn admitted(&self, stale: bool) {
        self.stats.count(Counter::Admitted);
        if stale {
            self.stats.count(Counter::AdmittedStale);
        }
    }

    /// Counts a refusal and hands it on.
    fn refused(&self, reply: Reply) -> Reply {
        self.stats.count(match reply {
            Reply::NoCredential => Counter::NoCredential,
            Reply::UnusableCredential | Reply::Denied(_) => Counter::Denied,
            Reply::NoRule => Counter::NoRule,
            Reply::Limited { .. } | Reply::Disabled => Counter::Limited,
            Reply::NoService
            | Reply::BackendFailed
            | Reply::Misconfigured
            | Reply::Contended
            | Reply::Overloaded => Counter::Unavailable,
        });
        reply
    }

    fn settled(&mut self, service: &Service, settled: Settled, now: Moment) {
        self.stats
            .add(Counter::UsageAcknowledged, settled.acknowledged);
        self.stats.add(Counter::UsageResent, settled.resent);
        self.stats.add(Counter::UsageLostUncertain, settled.dropped);
        self.stats.add(Counter::UsageLostTooOld, settled.too_old);
        if settled.dropped > 0 {
            self.lost(
                service,
                settled.dropped,
                "its report had no certain answer",
                now,
            );
        }
        if settled.too_old > 0 {
            self.lost(
                service,
                settled.too_old,
                "it is too old to be reported",
                now,
            );
        }
    }

    fn lost(&mut self, service: &Service, units: u64, why: &str, now: Moment) {
        if let Some(withheld) = self.quiet.lost.due(now.monotonic) {
            error!(
                "service {}: {units} units of usage are lost: {why} ({withheld} such lines \
                 withheld; the counters usage_lost_* have the sum)",
                service.id
            );
        }
    }

    fn misconfigured(&mut self, service: &Service, what: Misconfiguration, now: Moment) {
        self.stats.count(Counter::Misconfigured);
        if let Some(withheld) = self.quiet.misconfigured.due(now.monotonic) {
            error!(
                "service {}: service management refuses this gateway: {}. Callers get 503, known \
                 applications go on ({withheld} such lines withheld)",
                service.id,
                what.as_str()
            );
        }
    }

    fn failed(&mut self, service: &Service, why: &str, now: Moment) {
        if let Some(withheld) = self.quiet.failed.due(now.monotonic) {
            warn!(
                "service {}: service management did not answer: {why} ({withheld} such lines \
                 withheld)",
                service.id
            );
        }
    }

    fn uncached(&mut self, service: &Service, now: Moment) {
        self.stats.count(Counter::Uncached);
        if let Some(withheld) = self.quiet.uncached.due(now.monotonic) {
            warn!(
                "service {}: no room for another application; limits are not exact for those \
                 without a record. Raise authorization.capacity ({withheld} such lines withheld)",
                service.id
            );
        }
    }
}

fn access(service: &Service) -> ServiceAccess<'_> {
    ServiceAccess {
        id: &service.id,
        token: service.token.expose(),
    }
}

const fn identification(kind: Kind) -> Identification {
    match kind {
        Kind::UserKey => Identification::UserKey,
    }
}

fn milliseconds(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn lifetimes(configuration: &Configuration) -> Lifetimes {
    let settings = &configuration.authorization;
    Lifetimes {
        ttl: milliseconds(settings.ttl),
        negative_ttl: milliseconds(settings.negative_ttl),
        stale_if_error: milliseconds(settings.stale_if_error),
    }
}

fn settings(configuration: &Configuration) -> Settings {
    let reporting = &configuration.reporting;
    Settings {
        interval: milliseconds(reporting.interval),
        timeout: milliseconds(reporting.timeout),
        batch: usize::try_from(reporting.batch).unwrap_or(usize::MAX),
        uncertain: reporting.uncertain,
        refresh_ahead: refresh_ahead(configuration),
    }
}

/// How long before its end an answer in use is asked for again: so that the flush, which
/// sees the records in use, comes by in time; never more than half the lifetime.
fn refresh_ahead(configuration: &Configuration) -> u64 {
    let ttl = milliseconds(configuration.authorization.ttl);
    let interval = milliseconds(configuration.reporting.interval);
    (ttl / 4).max(interval.saturating_mul(2)).min(ttl / 2)
}
