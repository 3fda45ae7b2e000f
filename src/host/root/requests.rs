//! A request, from its headers to its decision or its pause.

use super::{Call, Fetch, Root, Waiting, access, lifetimes};
use crate::authorization::{Quota, Verdict, application};
use crate::config::{NoService, Unknown, UnmatchedHosts};
use crate::credentials::{Digest, Found, Kind};
use crate::host::abi::{self, Action, MapType};
use crate::host::local_reply::{Reply, tell, wants_grpc};
use crate::host::stats::Counter;
use crate::host::vm::Shared;
use crate::host::{calls, clock};
use crate::mapping::Usage;
use crate::moment::Moment;
use crate::request::{Headers, Request};

/// Requests that may wait for answers in one VM: each holds a connection, and some
/// hundred bytes here.
const MOST_WAITING: usize = 10_000;
/// The path of the property that has the name of Envoy's route.
const ROUTE_NAME: &[u8] = b"xds\0route_name";

impl Root {
    /// Decides about a request: goes on, is answered here, or waits.
    pub fn on_request_headers(&mut self, stream_id: u32, shared: &mut Shared) -> Action {
        let now = clock::now();
        let Ok(bytes) = abi::header_map(MapType::RequestHeaders) else {
            Reply::Contended.send(&self.configuration.replies, false, None, now);
            return Action::Pause;
        };
        let pairs = abi::parse_pairs(&bytes);
        let headers = Headers { pairs: &pairs };
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
        let mut quota = None;
        match self.decide(stream_id, service, &request, &mut quota, shared, now) {
            Ok(action) => action,
            Err(reply) => {
                reply.send(self.replies(service), wants_grpc(&headers), quota, now);
                Action::Pause
            }
        }
    }

    /// The index of the request's service. `None`: it passes, for its host is nobody's.
    fn service_for(&self, request: &Request<'_>) -> Result<Option<usize>, Reply> {
        let route = || abi::property(ROUTE_NAME).ok();
        let found = self
            .configuration
            .service_for(request.authority, request.target, route);
        match found {
            Ok((index, _)) => Ok(Some(index)),
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

    /// Decides about a request of a service. `quota` is what the caller is to be told of
    /// the limit that refuses it, if anything.
    fn decide(
        &mut self,
        stream_id: u32,
        index: usize,
        request: &Request<'_>,
        quota: &mut Option<Quota>,
        shared: &mut Shared,
        now: Moment,
    ) -> Result<Action, Reply> {
        let at_work = self.services.get_mut(index).ok_or(Reply::Misconfigured)?;
        let service = self
            .configuration
            .services
            .get(index)
            .ok_or(Reply::Misconfigured)?;
        if service.is_exempt(request) {
            at_work.stats.count(Counter::Exempt);
            return Ok(Action::Continue);
        }
        let credential = match service.credentials.find(request) {
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
        let decided = shared.applications.decide_and_tell(
            &shared.data,
            &identity,
            &shared.usage,
            &at_work.service.metrics,
            now,
            service.rate_limit_headers,
        );
        match decided {
            Ok((Verdict::Admitted { stale }, left)) => {
                at_work.admitted(stale);
                if let Some(left) = left {
                    tell(&left, now);
                }
                Ok(Action::Continue)
            }
            Ok((Verdict::Refused(refusal), left)) => {
                *quota = left;
                Err(at_work.refused(refusal.into()))
            }
            Err(_) => Err(at_work.refused(Reply::Contended)),
            Ok((Verdict::Unknown, _)) => {
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
        let Some(at_work) = self.services.get_mut(fetch.service) else {
            return Err(Reply::Misconfigured);
        };
        at_work.stats.count(Counter::AuthorizeFailures);
        at_work.failed("the call could not be made", now);
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
                    &at_work.service.metrics,
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

    /// Asks about an application. The call's token; `None` if it could not be made.
    pub(super) fn ask(&self, service: usize, kind: Kind, value: &[u8]) -> Option<u32> {
        let at_work = self.services.get(service)?;
        calls::authorize(
            &self.configuration.service_management,
            &access(&at_work.service),
            &application(kind, value),
        )
    }
}
