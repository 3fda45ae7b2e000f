//! A request, from its headers to its decision or its pause.

use super::behind::Behind;
use super::gate::Shut;
use super::tokens::{Checked, tell_claims};
use super::{Call, Fetch, Root, Waiting, access, bodies, milliseconds};
use crate::authorization::{Asked, Identity, Joined, Landing, Verdict, application};
use crate::config::{NoService, Tokens, Unknown, UnmatchedHosts};
use crate::credentials::{Body, Credential, Digest, Found, Kind, Stripped};
use crate::host::abi::{self, Action, HostResult, MapType};
use crate::host::local_reply::{Reply, tell, wants_grpc};
use crate::host::stats::Counter;
#[cfg(feature = "trap-for-tests")]
use crate::host::trap;
use crate::host::vm::Shared;
use crate::host::{calls, clock};
use crate::moment::Moment;
use crate::request::{Headers, Request};
use crate::service_management::Denial;
use crate::tokens::{Requirements, Verified};
use std::rc::Rc;

/// Requests that may wait for answers in one VM: each holds a connection, and some
/// hundred bytes here.
const MOST_WAITING: usize = 10_000;
/// Of them, requests that may wait for one application: nobody takes all the places with one key.
const MOST_WAITING_FOR_ONE: usize = 5_000;
/// The longest authority that is remembered: a host name of the DNS with a port.
const LONGEST_AUTHORITY: usize = 260;
/// The path of the property that has the name of Envoy's route.
const ROUTE_NAME: &[u8] = b"xds\0route_name";

impl Root {
    /// Decides about a request, by its headers and what there is of its body: goes on, is
    /// answered here, or waits.
    pub fn on_request(&mut self, stream_id: u32, body: Body<'_>, shared: &mut Shared) -> Action {
        let now = clock::now_by_one();
        let Ok(bytes) = abi::header_map(MapType::RequestHeaders) else {
            Reply::Contended.send(&self.configuration.replies, false, None, now);
            return Action::Pause;
        };
        let pairs = abi::parse_pairs(&bytes);
        let headers = Headers { pairs: &pairs };
        #[cfg(feature = "trap-for-tests")]
        trap::asked(&headers, trap::Point::Request);
        let request = Request {
            method: headers.first(b":method").unwrap_or_default(),
            authority: headers.first(b":authority").unwrap_or_default(),
            target: headers.first(b":path").unwrap_or_default(),
            headers,
        };
        let service = match self.service_for(&request) {
            Ok(Some(service)) => service,
            Ok(None) => return Action::Continue,
            Err(reply) => {
                let grpc = wants_grpc(&headers);
                reply.send(&self.configuration.replies, grpc, None, now);
                return Action::Pause;
            }
        };
        match self.decide(stream_id, service, &request, body, shared, now) {
            Ok(action) => action,
            Err(reply) => {
                let quota = shared.applications.take_quota();
                reply.send(self.replies(service), wants_grpc(&headers), quota, now);
                Action::Pause
            }
        }
    }

    /// The index of the request's service. `None`: it passes, for its host is nobody's.
    fn service_for(&mut self, request: &Request<'_>) -> Result<Option<usize>, Reply> {
        if let Some((authority, index)) = &self.last_host
            && authority == request.authority
        {
            return Ok(Some(*index));
        }
        let route = || abi::property(ROUTE_NAME).ok();
        let found = self
            .configuration
            .service_for(request.authority, request.target, route);
        match found {
            Ok(chosen) => {
                if chosen.by_host_alone && request.authority.len() <= LONGEST_AUTHORITY {
                    let (authority, index) = self.last_host.get_or_insert_default();
                    authority.clear();
                    authority.extend_from_slice(request.authority);
                    *index = chosen.index;
                }
                Ok(Some(chosen.index))
            }
            Err(why) => {
                self.unmatched.count();
                let pass = self.configuration.unmatched_hosts == UnmatchedHosts::Pass;
                if pass && why == NoService::Host {
                    Ok(None)
                } else {
                    Err(Reply::NoService)
                }
            }
        }
    }

    /// Decides about a request of a service.
    pub(super) fn decide(
        &mut self,
        stream_id: u32,
        index: usize,
        request: &Request<'_>,
        body: Body<'_>,
        shared: &mut Shared,
        now: Moment,
    ) -> Result<Action, Reply> {
        let at_work = self.services.get(index).ok_or(Reply::Misconfigured)?;
        let service = Rc::clone(&at_work.service);
        if service.is_exempt(request) {
            at_work.stats.count(Counter::Exempt);
            return Ok(Action::Continue);
        }
        if matches!(body, Body::Whole(body) if bodies::is_too_large(body.len())) {
            return Err(at_work.refused(Reply::LargeBody));
        }
        let found = service.credentials.find(request, body);
        // Apart, so that others do not pay for it.
        if service.tokens.is_some() {
            return self.decide_with_tokens(stream_id, index, request, found, shared, now);
        }
        match found {
            Found::Credential(credential) => {
                self.decide_for(stream_id, index, request, &credential, None, shared, now)
            }
            found => self.without_credential(index, request, &found),
        }
    }

    /// Decides about a request of a service that has tokens.
    #[inline(never)]
    fn decide_with_tokens(
        &mut self,
        stream_id: u32,
        index: usize,
        request: &Request<'_>,
        mut found: Found<'_>,
        shared: &mut Shared,
        now: Moment,
    ) -> Result<Action, Reply> {
        let at_work = self.services.get_mut(index).ok_or(Reply::Misconfigured)?;
        let service = Rc::clone(&at_work.service);
        let mut verified = None;
        if let (Some(tokens), Some(configured)) = (&mut at_work.tokens, &service.tokens) {
            let (policy, issuers) = (&configured.policy, &mut self.issuers);
            let checked = match (&policy.handover, &found) {
                (Some(handover), _) => tokens.handed_on(policy, handover, &mut found, now),
                (None, Found::Token(token)) => {
                    Some(tokens.check(policy, issuers, token, &shared.data, now))
                }
                (None, _) => None,
            };
            verified = match (checked, &found) {
                (Some(Checked::Good(verified)), _) => Some(verified),
                (Some(Checked::Refused(reply)), _) => return Err(at_work.refused(reply)),
                (Some(Checked::Await(source)), _) => {
                    return self.await_keys(stream_id, index, source, shared, now);
                }
                (Some(Checked::Ask(asked)), Found::Token(token)) => {
                    let stream = (index, stream_id);
                    match tokens.ask(asked, token, stream, &mut self.calls, shared, now) {
                        Ok(Some(verified)) => Some(verified),
                        Ok(None) => return Ok(Action::Pause),
                        Err(reply) => return Err(at_work.refused(reply)),
                    }
                }
                // Only of a token is there something to ask.
                (Some(Checked::Ask(_)), _) => return Err(at_work.refused(Reply::NoToken)),
                (None, _) => None,
            };
        }
        let verified = verified.as_deref();
        match found {
            Found::Credential(credential) => self.decide_for(
                stream_id,
                index,
                request,
                &credential,
                verified,
                shared,
                now,
            ),
            Found::Token(_) => {
                let credential = verified.and_then(|verified| {
                    let application = &verified.application;
                    service.credentials.of_token(application, request)
                });
                match credential {
                    Some(credential) => self.decide_for(
                        stream_id,
                        index,
                        request,
                        &credential,
                        verified,
                        shared,
                        now,
                    ),
                    None => Err(self.refused(index, Reply::UnusableCredential)),
                }
            }
            found => self.without_credential(index, request, &found),
        }
    }

    /// What becomes of a request that shows nobody's credential.
    #[cold]
    fn without_credential(
        &self,
        index: usize,
        request: &Request<'_>,
        found: &Found<'_>,
    ) -> Result<Action, Reply> {
        let at_work = self.services.get(index).ok_or(Reply::Misconfigured)?;
        Err(at_work.refused(match found {
            Found::InBody => return bodies::wait(request).map_err(|reply| at_work.refused(reply)),
            Found::Missing if at_work.service.tokens.is_some() => Reply::NoToken,
            Found::Missing => Reply::NoCredential,
            Found::Unusable | Found::Token(_) | Found::Credential(_) => Reply::UnusableCredential,
        }))
    }

    /// Decides about a request with a credential, and with a token if its service has them.
    #[expect(clippy::too_many_arguments, reason = "a request is what it is")]
    fn decide_for(
        &mut self,
        stream_id: u32,
        index: usize,
        request: &Request<'_>,
        credential: &Credential<'_>,
        verified: Option<&Verified>,
        shared: &mut Shared,
        now: Moment,
    ) -> Result<Action, Reply> {
        let at_work = self.services.get(index).ok_or(Reply::Misconfigured)?;
        let service = &*at_work.service;
        shared.usage.clear();
        if !service
            .rules
            .matching(request.method, request.target, &mut shared.usage)
        {
            return Err(at_work.refused(Reply::NoRule));
        }
        if let Some(tokens) = &service.tokens {
            meets(tokens, request, verified).map_err(|reply| at_work.refused(reply))?;
        }
        // Before it is counted or waits: afterwards there is no way back.
        if let Some(stripped) = service.credentials.strip(request)
            && strip(&stripped).is_err()
        {
            return Err(at_work.refused(Reply::Contended));
        }
        if service.tokens.is_some() && tell_claims(service, verified).is_err() {
            return Err(at_work.refused(Reply::Contended));
        }
        let identity = at_work.identity(credential);
        let verdict = shared.applications.decide(
            &shared.data,
            &identity,
            &shared.usage,
            &service.metrics,
            now,
        );
        #[cfg(feature = "trap-for-tests")]
        trap::asked(&request.headers, trap::Point::Decided);
        match verdict {
            Ok(Verdict::Admitted { stale }) => {
                at_work.admitted_at_once(stale);
                if let Some(left) = shared.applications.take_quota() {
                    tell(&left, now);
                }
                let ends = shared.applications.acceptance_ends();
                if ends != u64::MAX {
                    let life = (ends, milliseconds(at_work.service.trust.ttl));
                    if let Some(behind) = Behind::due(index, &identity, life, now) {
                        self.ask_behind(behind, shared, now);
                    }
                }
                Ok(Action::Continue)
            }
            Ok(Verdict::Refused(refusal)) => Err(at_work.refused(refusal.into())),
            Err(_) => Err(at_work.refused(Reply::Contended)),
            Ok(Verdict::Unknown) => self.wait_for(stream_id, index, &identity, shared, now),
        }
    }

    /// Pauses a request of which its application is not known.
    #[cold]
    fn wait_for(
        &mut self,
        stream_id: u32,
        service: usize,
        identity: &Identity<'_>,
        shared: &mut Shared,
        now: Moment,
    ) -> Result<Action, Reply> {
        if self.in_vain.knows(identity.digest)
            && let Some(action) = self.go_on_unanswered(service, identity, shared, now)
        {
            return Ok(action);
        }
        let waiting = Waiting {
            stream_id,
            usage: shared.usage.clone(),
            shows: identity.shown.to_asked(),
            answers: 0,
        };
        let fetch = Fetch {
            service,
            kind: identity.kind,
            value: identity.value.to_vec(),
            asked: Asked::default(),
            asked_at: now,
            attempt: 0,
            waiting: Vec::new(),
            waits_until: None,
            again: false,
        };
        self.wait(identity.digest, fetch, waiting, shared, now)
    }

    /// Lets a request go on by what was known before the last question failed, if that lets it,
    /// and has the question put again behind it.
    fn go_on_unanswered(
        &mut self,
        service: usize,
        identity: &Identity<'_>,
        shared: &mut Shared,
        now: Moment,
    ) -> Option<Action> {
        let at_work = self.services.get(service)?;
        let verdict = shared.applications.decide_unanswered(
            &shared.data,
            identity,
            &shared.usage,
            &at_work.service.metrics,
            now,
        );
        // A refusal may be for want of an answer, and is left to the question.
        let Ok(Verdict::Admitted { .. }) = verdict else {
            return None;
        };
        at_work.admitted_at_once(true);
        if let Some(left) = shared.applications.take_quota() {
            tell(&left, now);
        }
        if self.in_vain.may_ask(identity.digest, now)
            && let Some(behind) = Behind::due(service, identity, (0, 0), now)
        {
            self.ask_behind(behind, shared, now);
        }
        Some(Action::Continue)
    }

    /// Whether nobody more may wait for this application.
    fn is_full(&self, digest: Digest) -> bool {
        let for_it = |fetch: &Fetch| fetch.waiting.len() >= MOST_WAITING_FOR_ONE;
        self.waiting >= MOST_WAITING || self.fetches.get(&digest).is_some_and(for_it)
    }

    /// Pauses the request until its application is known, and asks unless that has
    /// been done for another request, of this worker or of another.
    fn wait(
        &mut self,
        digest: Digest,
        mut fetch: Fetch,
        waiting: Waiting,
        shared: &mut Shared,
        now: Moment,
    ) -> Result<Action, Reply> {
        let service = fetch.service;
        if self.is_full(digest) {
            self.make_room(waiting.stream_id, now);
        }
        if self.is_full(digest) {
            return Err(self.refused(service, Reply::Overloaded));
        }
        if let Some(fetch) = self.fetches.get_mut(&digest) {
            fetch.waiting.push(waiting);
            self.waiting = self.waiting.saturating_add(1);
            return Ok(Action::Pause);
        }
        fetch.waiting.push(waiting);
        if let Err(shut) = self.look_through_gate(digest, shared, now) {
            return self.unasked(fetch, digest, shut, shared, now);
        }
        match self.join(digest, shared, now) {
            Joined::Waits { until } => {
                fetch.waits_until = Some(until);
                self.count(service, Counter::AuthorizeShared);
                self.put_fetch(digest, fetch);
                return Ok(Action::Pause);
            }
            Joined::Asks => {
                if let Some(decided) = self.decide_again(digest, &fetch, shared, now) {
                    self.land(digest, Landing::Remembered, shared);
                    return decided;
                }
            }
            Joined::Alone => {}
        }
        let Some(asked) = self.question(digest, &fetch, shared, now) else {
            self.land(digest, Landing::Remembered, shared);
            let denial = Denial::ApplicationKeyInvalid;
            return Err(self.refused(service, Reply::Denied(denial)));
        };
        (fetch.asked, fetch.asked_at) = (asked, now);
        // Envoy makes every call from the root context: others wait for the answer when
        // this stream has ended.
        let asked = self.pass_gate(digest, shared, now).and_then(|()| {
            self.ask(service, fetch.kind, &fetch.value, &fetch.asked)
                .ok_or(Shut::NoCall)
        });
        let token = match asked {
            Ok(token) => token,
            Err(shut) => {
                let decided = self.unasked(fetch, digest, shut, shared, now);
                self.land(digest, shut.landing(), shared);
                return decided;
            }
        };
        self.count(service, Counter::AuthorizeCalls);
        self.calls.insert(token, Call::Authorize(digest));
        self.put_fetch(digest, fetch);
        Ok(Action::Pause)
    }

    /// What to ask for the first of those who wait. `None`: nothing, for its key is wrong.
    pub(super) fn question(
        &self,
        digest: Digest,
        fetch: &Fetch,
        shared: &mut Shared,
        now: Moment,
    ) -> Option<Asked> {
        let at_work = self.services.get(fetch.service)?;
        let identity = at_work.identity_of(digest, fetch, &fetch.waiting.first()?.shows);
        let applications = &mut shared.applications;
        applications.question(&shared.data, &identity, now)
    }

    /// Another worker may have had its answer between the first look and the question:
    /// what is decided then about the request whose callback is running.
    fn decide_again(
        &self,
        digest: Digest,
        fetch: &Fetch,
        shared: &mut Shared,
        now: Moment,
    ) -> Option<Result<Action, Reply>> {
        let at_work = self.services.get(fetch.service)?;
        let verdict = shared.applications.decide(
            &shared.data,
            &at_work.identity_of(digest, fetch, &fetch.waiting.first()?.shows),
            &shared.usage,
            &at_work.service.metrics,
            now,
        );
        Some(match verdict {
            Ok(Verdict::Unknown) => return None,
            Ok(Verdict::Admitted { stale }) => {
                at_work.admitted(stale);
                if let Some(left) = shared.applications.take_quota() {
                    tell(&left, now);
                }
                Ok(Action::Continue)
            }
            Ok(Verdict::Refused(refusal)) => Err(at_work.refused(refusal.into())),
            Err(_) => Err(at_work.refused(Reply::Contended)),
        })
    }

    /// Nobody is asked. Decided at once, for the request whose callback is running can be
    /// let go on only by its own return.
    fn unasked(
        &mut self,
        fetch: Fetch,
        digest: Digest,
        shut: Shut,
        shared: &mut Shared,
        now: Moment,
    ) -> Result<Action, Reply> {
        let trust = self
            .services
            .get(fetch.service)
            .map(|at_work| at_work.service.trust);
        let Some(trust) = trust else {
            return Err(Reply::Misconfigured);
        };
        let deny = trust.unknown == Unknown::Deny;
        // Whoever is let in takes a slot: no more of them than could be asked about.
        let shut = match shut {
            Shut::BreakerOpen if !deny => self.spend(digest, shared, now).err().unwrap_or(shut),
            _ => shut,
        };
        let unknown = match shut {
            Shut::NoCall | Shut::BreakerOpen => self.backend_failed(shared, now),
            Shut::OverBudget => Reply::OverBudget,
            Shut::Contended => Reply::Contended,
        };
        let Some(at_work) = self.services.get_mut(fetch.service) else {
            return Err(Reply::Misconfigured);
        };
        match shut {
            Shut::NoCall => at_work.not_called(now),
            Shut::BreakerOpen => at_work.stats.count(Counter::BreakerOpen),
            Shut::OverBudget | Shut::Contended => {}
        }
        let negative_ttl = milliseconds(trust.negative_ttl);
        let Some(waiting) = fetch.waiting.first() else {
            return Err(at_work.refused(unknown));
        };
        let identity = at_work.identity_of(digest, &fetch, &waiting.shows);
        let decide = |shared: &mut Shared| {
            shared.applications.decide_unanswered(
                &shared.data,
                &identity,
                &waiting.usage,
                &at_work.service.metrics,
                now,
            )
        };
        let mut verdict = decide(shared);
        let fails = matches!(unknown, Reply::BackendFailed { .. });
        let let_in = verdict == Ok(Verdict::Unknown) && !deny && fails;
        if let_in {
            verdict = shared
                .applications
                .let_in_unheard(&shared.data, &identity, now, negative_ttl)
                .and_then(|_| decide(shared));
        }
        match verdict {
            Ok(Verdict::Admitted { stale }) => {
                if let_in {
                    at_work.stats.count(Counter::AdmittedUnknown);
                }
                at_work.admitted(stale && !let_in);
                if let Some(left) = shared.applications.take_quota() {
                    tell(&left, now);
                }
                Ok(Action::Continue)
            }
            Ok(Verdict::Refused(refusal)) => Err(at_work.refused(refusal.into())),
            Ok(Verdict::Unknown) if let_in => Err(at_work.refused(Reply::Contended)),
            Ok(Verdict::Unknown) => Err(at_work.refused(unknown)),
            Err(_) => Err(at_work.refused(Reply::Contended)),
        }
    }

    /// Asks about an application. The call's token; `None` if it could not be made.
    pub(super) fn ask(
        &self,
        service: usize,
        kind: Kind,
        value: &[u8],
        asked: &Asked,
    ) -> Option<u32> {
        let at_work = self.services.get(service)?;
        calls::authorize(
            &self.configuration.service_management,
            &access(&at_work.service),
            at_work.endpoint(),
            &application(kind, value, asked.app_key.as_deref()),
            asked.referrer.as_deref(),
        )
    }
}

/// Whether a request's token allows what the request does.
fn meets(tokens: &Tokens, request: &Request<'_>, verified: Option<&Verified>) -> Result<(), Reply> {
    let required = tokens.required(request.method, request.target);
    match verified {
        Some(verified) if verified.meets.has_all(required) => Ok(()),
        Some(_) => Err(Reply::InsufficientScope),
        None if required == Requirements::default() => Ok(()),
        None => Err(Reply::NoToken),
    }
}

/// Takes the credentials out of the current request. Envoy 1.40 forgets the route that it chose
/// when a filter changes a header, and chooses again without them.
fn strip(stripped: &Stripped<'_>) -> HostResult<()> {
    if let Some(target) = &stripped.target {
        abi::replace_request_header(b":path", target)?;
    }
    for header in &stripped.headers {
        abi::remove_request_header(header.name)?;
        for value in &header.values {
            abi::add_request_header(header.name, value)?;
        }
    }
    Ok(())
}
