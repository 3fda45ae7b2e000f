//! A request, from its headers to its decision or its pause.

use super::gate::Shut;
use super::{Call, Fetch, Root, Waiting, access, lifetimes};
use crate::authorization::{Joined, Landing, Verdict, application};
use crate::config::{NotAHost, Unknown, UnmatchedHosts};
use crate::credentials::{Digest, Found, Kind};
use crate::host::abi::{self, Action, MapType};
use crate::host::local_reply::Reply;
use crate::host::stats::Counter;
use crate::host::vm::Shared;
use crate::host::{calls, clock};
use crate::mapping::Usage;
use crate::moment::Moment;
use crate::request::{Headers, Request};

/// Requests that may wait for answers in one VM: each holds a connection, and some
/// hundred bytes here.
const MOST_WAITING: usize = 10_000;

impl Root {
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
        let (index, service) = match self.configuration.service_for(request.authority) {
            Ok(Some(found)) => found,
            Ok(None) if self.configuration.unmatched_hosts == UnmatchedHosts::Pass => {
                self.unmatched.count();
                return Ok(Action::Continue);
            }
            Ok(None) | Err(NotAHost) => {
                self.unmatched.count();
                return Err(Reply::NoService);
            }
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
            &at_work.service.metrics,
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
                    waits_until: None,
                    again: false,
                };
                let digest = identity.digest;
                self.wait(stream_id, digest, fetch, shared, now)
            }
        }
    }

    /// Pauses the request until its application is known, and asks unless that has
    /// been done for another request, of this worker or of another.
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
        if let Err(shut) = self.look_through_gate(shared, now) {
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
        // Envoy makes every call from the root context: others wait for the answer when
        // this stream has ended.
        let asked = self.pass_gate(shared, now).and_then(|()| {
            self.ask(service, fetch.kind, &fetch.value)
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
            &at_work.identity_of(digest, fetch),
            &shared.usage,
            &at_work.service.metrics,
            now,
        );
        Some(match verdict {
            Ok(Verdict::Unknown) => return None,
            Ok(Verdict::Admitted { stale }) => {
                at_work.admitted(stale);
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
        let deny = self.configuration.authorization.unknown == Unknown::Deny;
        // Whoever is let in takes a slot: no more of them than could be asked about.
        let shut = match shut {
            Shut::BreakerOpen if !deny => self.spend(shared, now).err().unwrap_or(shut),
            _ => shut,
        };
        let Some(at_work) = self.services.get_mut(fetch.service) else {
            return Err(Reply::Misconfigured);
        };
        match shut {
            Shut::NoCall => {
                at_work.stats.count(Counter::AuthorizeFailures);
                at_work.failed("the call could not be made", now);
            }
            Shut::BreakerOpen => at_work.stats.count(Counter::BreakerOpen),
            Shut::OverBudget => return Err(at_work.refused(Reply::OverBudget)),
            Shut::Contended => return Err(at_work.refused(Reply::Contended)),
        }
        if deny {
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
