//! Questions about keys and referrers in use that were accepted, and of which the record does
//! not tell, before the time of the acceptance is over.
//!
//! Apart from the refresh, which the leader makes on ticks by what stands in shared data: no key
//! stands there but one of each application, so such a question can only be made while a
//! request shows the key. Nobody waits for it; what comes of it is taken in as if somebody did.

use super::gate::Shut;
use super::{Call, Fetch, Root};
use crate::authorization::Identity;
use crate::credentials::Digest;
use crate::host::stats::Counter;
use crate::host::vm::Shared;
use crate::moment::Moment;

/// In the last part of the acceptance's lifetime: one in so many.
const AHEAD: u64 = 4;

/// What a request showed that is to be asked about once it has gone on.
pub(super) struct Behind {
    digest: Digest,
    fetch: Fetch,
}

impl Behind {
    /// `None`: what this identity shows may be relied on for long enough, until `ends`, of
    /// `ttl` milliseconds in all; or it is not asked about by itself.
    pub fn due(
        service: usize,
        identity: &Identity<'_>,
        (ends, ttl): (u64, u64),
        now: Moment,
    ) -> Option<Self> {
        let left = ends.saturating_sub(now.monotonic);
        (left <= ttl / AHEAD).then(|| Self {
            digest: identity.digest,
            fetch: Fetch {
                service,
                kind: identity.kind,
                value: identity.value.to_vec(),
                asked: identity.shown.to_asked(),
                asked_at: now,
                attempt: 0,
                waiting: Vec::new(),
                waits_until: None,
                again: false,
            },
        })
    }
}

impl Root {
    /// Asks, unless somebody asks about the application already or too much is asked.
    pub(super) fn ask_behind(&mut self, behind: Behind, shared: &mut Shared, now: Moment) {
        let Behind { digest, fetch } = behind;
        if !self.calls.has_room()
            || self.fetches.contains_key(&digest)
            || self.look_through_gate(digest, shared, now).is_err()
            || !self.may_refresh(digest, shared, now)
        {
            return;
        }
        let service = fetch.service;
        let asked = self.pass_gate(digest, shared, now).and_then(|()| {
            self.ask(service, fetch.kind, &fetch.value, &fetch.asked)
                .ok_or(Shut::NoCall)
        });
        match asked {
            Ok(token) => {
                self.count(service, Counter::RefreshCalls);
                self.calls.insert(token, Call::Behind(digest));
                self.put_fetch(digest, fetch);
            }
            Err(shut) => self.land(digest, shut.landing(), shared),
        }
    }
}
