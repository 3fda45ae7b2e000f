//! One question for all workers: who asks about an unknown application, how those who wait
//! on other workers are woken, and what they do when nobody wakes them.
//!
//! Apart from the requests and the answers because it is about the other VMs of the
//! process. Nobody waits for ever: a question has a deadline, and after it, on a tick,
//! whoever waits takes it over or gives up.

use super::gate::Shut;
use super::{Call, Fetch, Root, Waiting, milliseconds};
use crate::authorization::{
    Joined, Landing, Learned, Mailbox, Message, Record, Verdict, mailboxes,
};
use crate::config::Unknown;
use crate::credentials::Digest;
use crate::host::abi;
use crate::host::local_reply::Reply;
use crate::host::stats::Counter;
use crate::host::vm::Shared;
use crate::moment::Moment;

/// How much longer than a question may take another VM waits before it takes it over: its
/// answer may be late when its worker is busy.
const SLACK_MILLISECONDS: u64 = 1_000;
/// Messages that are taken out of the queue in one callback: more than a VM waits for.
const MOST_MESSAGES: usize = 20_000;
/// The pause after a mailbox could not be had.
const MAILBOX_PAUSE_MILLISECONDS: u64 = 10_000;

/// The mailbox of a root context, which it gets when it first waits: Envoy tries each
/// configuration out in a VM that never does.
#[derive(Debug, Default)]
pub(super) struct Listening {
    number: Option<u32>,
    queue: Option<u32>,
    not_before: u64,
}

impl Root {
    /// Whether messages in this queue are for this root.
    pub fn listens_to(&self, queue: u32) -> bool {
        self.listening.queue == Some(queue)
    }

    /// Somebody's question has landed.
    pub fn on_queue_ready(&mut self, queue: u32, shared: &mut Shared) {
        let now = crate::host::clock::now();
        for _ in 0..MOST_MESSAGES {
            let Ok(bytes) = abi::dequeue(queue) else {
                break;
            };
            // Whoever listened to this queue before has gone, with its streams.
            if let Some(message) = Message::decode(&bytes)
                && message.owner == self.candidate.id
            {
                self.landed(message.digest, message.landing, shared, now);
            }
        }
    }

    /// Who asks about this application.
    pub(super) fn join(&mut self, digest: Digest, shared: &mut Shared, now: Moment) -> Joined {
        let mailbox = self.mailbox(shared, now);
        let asker = self.candidate.id;
        let joined = shared
            .flights
            .join(&shared.data, digest, asker, mailbox, now, self.longest());
        match (joined, mailbox) {
            // Nobody would wake this VM.
            (Joined::Waits { .. }, None) => Joined::Alone,
            _ => joined,
        }
    }

    /// Whether this VM is to refresh what is known of an application: nobody else does.
    pub(super) fn may_refresh(&self, digest: Digest, shared: &mut Shared, now: Moment) -> bool {
        let asker = self.candidate.id;
        let joined = shared
            .flights
            .join(&shared.data, digest, asker, None, now, self.longest());
        !matches!(joined, Joined::Waits { .. })
    }

    /// How long a question may be under way, in milliseconds.
    pub(super) fn longest(&self) -> u64 {
        milliseconds(self.configuration.service_management.timeout)
            .saturating_add(SLACK_MILLISECONDS)
    }

    /// The question of this VM has landed: wakes those who wait for it elsewhere. What the
    /// answer says must have been kept by now, for they look for it.
    pub(super) fn land(&self, digest: Digest, landing: Landing, shared: &mut Shared) {
        let woken = shared.flights.land(&shared.data, digest, self.candidate.id);
        for mailbox in woken {
            let message = Message {
                owner: mailbox.owner,
                digest,
                landing,
            };
            // Who is not woken looks for itself after the deadline.
            let _ = abi::enqueue(mailbox.queue, &message.encode());
        }
    }

    /// Another VM's question has landed.
    fn landed(&mut self, digest: Digest, landing: Landing, shared: &mut Shared, now: Moment) {
        let Some(fetch) = self.fetches.get_mut(&digest) else {
            return;
        };
        if fetch.waits_until.is_none() {
            // Taken over by this VM meanwhile: it has its own answer to come.
            return;
        }
        match landing {
            Landing::Remembered => self.decide_or_ask_again(digest, shared, now),
            Landing::Uncached => self.ask_for(digest, shared, now),
            Landing::Misconfigured if !fetch.again => {
                fetch.again = true;
                self.rejoin(digest, shared, now);
            }
            Landing::Misconfigured => {
                self.conclude(digest, Err(Reply::Misconfigured), false, shared, now);
            }
            Landing::Failed => self.give_up(digest, shared, now),
            Landing::Denied(denial) => {
                self.conclude(digest, Err(Reply::Denied(denial)), false, shared, now);
            }
            Landing::Contended => {
                self.conclude(digest, Err(Reply::Contended), false, shared, now);
            }
            Landing::OverBudget => {
                self.conclude(digest, Err(Reply::OverBudget), false, shared, now);
            }
        }
    }

    /// There should be a record now. If it has gone already, the question is asked again,
    /// but once.
    fn decide_or_ask_again(&mut self, digest: Digest, shared: &mut Shared, now: Moment) {
        let Some(mut fetch) = self.take_fetch(digest) else {
            return;
        };
        fetch.waiting = self.decide_about(digest, &fetch, Ok(()), None, false, shared, now);
        if fetch.waiting.is_empty() {
            return;
        }
        if fetch.again {
            self.refuse_all(&fetch, Reply::Contended, now);
            return;
        }
        fetch.again = true;
        self.put_fetch(digest, fetch);
        self.rejoin(digest, shared, now);
    }

    /// Whoever asked did not, or not for these: finds out who does now.
    fn rejoin(&mut self, digest: Digest, shared: &mut Shared, now: Moment) {
        match self.join(digest, shared, now) {
            Joined::Waits { until } => {
                if let Some(fetch) = self.fetches.get_mut(&digest) {
                    fetch.waits_until = Some(until);
                }
            }
            Joined::Asks => {
                // The answer may have come between the last look and this.
                let Some(mut fetch) = self.take_fetch(digest) else {
                    return;
                };
                fetch.waiting = self.decide_about(digest, &fetch, Ok(()), None, false, shared, now);
                if fetch.waiting.is_empty() {
                    self.land(digest, Landing::Remembered, shared);
                } else {
                    self.put_fetch(digest, fetch);
                    self.ask_for(digest, shared, now);
                }
            }
            Joined::Alone => self.ask_for(digest, shared, now),
        }
    }

    /// Asks for those who have waited for another VM so far.
    fn ask_for(&mut self, digest: Digest, shared: &mut Shared, now: Moment) {
        let Some(fetch) = self.fetches.get(&digest) else {
            return;
        };
        let service = fetch.service;
        let asked = self.pass_gate(shared, now).and_then(|()| {
            self.ask(service, fetch.kind, &fetch.value)
                .ok_or(Shut::NoCall)
        });
        let shut = match asked {
            Ok(token) => {
                if let Some(fetch) = self.fetches.get_mut(&digest) {
                    fetch.waits_until = None;
                }
                self.count(service, Counter::AuthorizeCalls);
                self.calls.insert(token, Call::Authorize(digest));
                return;
            }
            Err(shut) => shut,
        };
        self.land(digest, shut.landing(), shared);
        match shut {
            Shut::OverBudget => {
                self.conclude(digest, Err(Reply::OverBudget), false, shared, now);
            }
            Shut::Contended => {
                self.conclude(digest, Err(Reply::Contended), false, shared, now);
            }
            Shut::BreakerOpen => {
                self.count(service, Counter::BreakerOpen);
                self.give_up(digest, shared, now);
            }
            Shut::NoCall => {
                self.count(service, Counter::AuthorizeFailures);
                self.warn_failed(service, "the call could not be made", now);
                self.give_up(digest, shared, now);
            }
        }
    }

    /// Nothing can be known of an application that is waited for.
    fn give_up(&mut self, digest: Digest, shared: &mut Shared, now: Moment) {
        let Some(fetch) = self.fetches.get(&digest) else {
            return;
        };
        let Some(at_work) = self.services.get(fetch.service) else {
            return;
        };
        let identity = at_work.identity_of(digest, fetch);
        let learned = self.unheard(&identity, shared, now);
        self.conclude(digest, learned, true, shared, now);
    }

    /// On a tick: keeps the mailbox, and looks after those whom nobody woke in time.
    pub(super) fn look_after_waiting(&mut self, shared: &mut Shared, now: Moment) {
        if let Some(number) = self.listening.number
            && !mailboxes::renew(&shared.data, number, self.candidate.id, now)
        {
            self.listening = Listening::default();
        }
        let overdue: Vec<Digest> = self
            .fetches
            .iter()
            .filter(|(_, fetch)| {
                fetch
                    .waits_until
                    .is_some_and(|until| until <= now.monotonic)
            })
            .map(|(digest, _)| *digest)
            .collect();
        for digest in overdue {
            let Some(fetch) = self.fetches.get_mut(&digest) else {
                continue;
            };
            if fetch.again {
                self.give_up(digest, shared, now);
            } else {
                fetch.again = true;
                self.rejoin(digest, shared, now);
            }
        }
    }

    fn mailbox(&mut self, shared: &Shared, now: Moment) -> Option<Mailbox> {
        let owner = self.candidate.id;
        if let Some(queue) = self.listening.queue {
            return Some(Mailbox { queue, owner });
        }
        if now.monotonic < self.listening.not_before {
            return None;
        }
        self.listening.not_before = now.monotonic.saturating_add(MAILBOX_PAUSE_MILLISECONDS);
        if self.listening.number.is_none() {
            self.listening.number = mailboxes::claim(&shared.data, owner, now);
        }
        let name = mailboxes::name(self.listening.number?);
        let queue = abi::register_queue(name.as_bytes()).ok()?;
        self.listening.queue = Some(queue);
        Some(Mailbox { queue, owner })
    }

    /// Takes out those who wait for an application.
    pub(super) fn take_fetch(&mut self, digest: Digest) -> Option<Fetch> {
        let fetch = self.fetches.remove(&digest)?;
        self.waiting = self.waiting.saturating_sub(fetch.waiting.len());
        Some(fetch)
    }

    pub(super) fn put_fetch(&mut self, digest: Digest, fetch: Fetch) {
        self.waiting = self.waiting.saturating_add(fetch.waiting.len());
        self.fetches.insert(digest, fetch);
    }

    /// It is known what becomes of an application that is waited for.
    pub(super) fn conclude(
        &mut self,
        digest: Digest,
        learned: Result<Learned, Reply>,
        unheard: bool,
        shared: &mut Shared,
        now: Moment,
    ) {
        let Some(fetch) = self.take_fetch(digest) else {
            return;
        };
        let mut uncached = None;
        let learned = match learned {
            Ok(Learned::Remembered) => Ok(()),
            Ok(Learned::Uncached(record)) => {
                if let Some(at_work) = self.services.get_mut(fetch.service) {
                    at_work.uncached(now);
                }
                uncached = Some(record);
                Ok(())
            }
            Ok(Learned::TooManyMetrics) => {
                self.count(fetch.service, Counter::Misconfigured);
                Err(Reply::Misconfigured)
            }
            Err(reply) => Err(reply),
        };
        let waiting = self.decide_about(
            digest,
            &fetch,
            learned,
            uncached.as_deref_mut(),
            unheard,
            shared,
            now,
        );
        // It went between the answer and now: the caller may try again.
        self.refuse_all(&Fetch { waiting, ..fetch }, Reply::Contended, now);
        if let Some(record) = uncached {
            self.report_uncached(fetch.service, *record, shared, now);
        }
    }

    /// Decides about everybody who waits for an application. Returns those for whom it is
    /// still, or again, unknown.
    #[allow(clippy::too_many_arguments)]
    fn decide_about(
        &self,
        digest: Digest,
        fetch: &Fetch,
        learned: Result<(), Reply>,
        mut uncached: Option<&mut Record>,
        unheard: bool,
        shared: &mut Shared,
        now: Moment,
    ) -> Vec<Waiting> {
        let mut unknown = Vec::new();
        let Some(at_work) = self.services.get(fetch.service) else {
            return unknown;
        };
        let identity = at_work.identity_of(digest, fetch);
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
                    if unheard {
                        at_work.stats.count(Counter::AdmittedUnknown);
                    }
                    let _ = abi::continue_request();
                    continue;
                }
                Ok(Verdict::Refused(refusal)) => refusal.into(),
                Ok(Verdict::Unknown) => {
                    unknown.push(waiting.clone());
                    continue;
                }
                Err(reply) => reply,
            };
            at_work.refused(reply).send(now);
        }
        unknown
    }

    fn refuse_all(&self, fetch: &Fetch, reply: Reply, now: Moment) {
        for waiting in &fetch.waiting {
            if abi::set_effective_context(waiting.stream_id).is_ok() {
                self.refused(fetch.service, reply).send(now);
            }
        }
    }

    /// What becomes of an application that nobody could say anything about.
    pub(super) fn unheard(
        &self,
        identity: &crate::authorization::Identity<'_>,
        shared: &mut Shared,
        now: Moment,
    ) -> Result<Learned, Reply> {
        if self.configuration.authorization.unknown == Unknown::Deny {
            return Err(Reply::BackendFailed);
        }
        let negative_ttl = milliseconds(self.configuration.authorization.negative_ttl);
        shared
            .applications
            .let_in_unheard(&shared.data, identity, now, negative_ttl)
            .map_err(|_| Reply::Contended)
    }
}

/// What those who wait elsewhere are told.
pub(super) const fn landing(learned: &Result<Learned, Reply>) -> Landing {
    match learned {
        Ok(Learned::Remembered) => Landing::Remembered,
        Ok(Learned::Uncached(_)) => Landing::Uncached,
        Ok(Learned::TooManyMetrics) | Err(Reply::Misconfigured) => Landing::Misconfigured,
        Err(Reply::Denied(denial)) => Landing::Denied(*denial),
        Err(Reply::BackendFailed) => Landing::Failed,
        Err(_) => Landing::Contended,
    }
}
