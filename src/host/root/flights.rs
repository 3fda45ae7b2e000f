//! One question for all workers: who asks about an unknown application, how those who wait
//! on other workers are woken, and what they do when nobody wakes them.
//!
//! Apart from the requests and the answers because it is about the other VMs of the
//! process. Nobody waits for ever: a question has a deadline, and after it, on a tick,
//! whoever waits takes it over or gives up.

use super::basis::Basis;
use super::gate::Shut;
use super::{Call, Fetch, Root, Waiting, milliseconds};
use crate::authorization::{Joined, Landing, Mailbox, Message, Verdict, mailboxes};
use crate::config::Unknown;
use crate::credentials::Digest;
use crate::host::abi;
use crate::host::local_reply::{Reply, tell};
use crate::host::stats::Counter;
use crate::host::vm::Shared;
use crate::moment::Moment;
use crate::service_management::Denial;

/// How much longer than a question may take another VM waits before it takes it over: its
/// answer may be late when its worker is busy.
const SLACK_MILLISECONDS: u64 = 1_000;
/// Answers that a request waits for at most: the first can be about another key, and the next
/// about the key and not the referrer.
const MOST_ANSWERS: u8 = 3;
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
            self.landed_keys(digest, shared, now);
            return;
        };
        if fetch.waits_until.is_none() {
            // Taken over by this VM meanwhile: it has its own answer to come.
            return;
        }
        match landing {
            Landing::Failed | Landing::Misconfigured => self.in_vain.failed(digest, now),
            Landing::Remembered | Landing::Uncached | Landing::Denied(_) => {
                self.in_vain.answered(digest);
            }
            Landing::Doubtful | Landing::Contended | Landing::OverBudget => {}
        }
        match landing {
            Landing::Remembered => self.decide_or_ask_again(digest, shared, now),
            Landing::Uncached => self.ask_for(digest, shared, now),
            Landing::Misconfigured if !fetch.again => {
                fetch.again = true;
                self.rejoin(digest, shared, now);
            }
            Landing::Misconfigured => {
                self.conclude(digest, Basis::Known(Reply::Misconfigured), shared, now);
            }
            Landing::Failed => self.give_up(digest, shared, now),
            Landing::Doubtful => {
                let reply = self.backend_failed(shared, now);
                self.conclude(digest, Basis::Known(reply), shared, now);
            }
            Landing::Denied(denial) => {
                self.conclude(digest, Basis::Reply(Reply::Denied(denial)), shared, now);
            }
            Landing::Contended => {
                self.conclude(digest, Basis::Reply(Reply::Contended), shared, now);
            }
            Landing::OverBudget => {
                self.conclude(digest, Basis::Known(Reply::OverBudget), shared, now);
            }
        }
    }

    /// There should be a record now. Whoever it says nothing of, because it has gone already
    /// or because the answer was about another key or referrer, is asked about again, but not
    /// for ever.
    fn decide_or_ask_again(&mut self, digest: Digest, shared: &mut Shared, now: Moment) {
        self.conclude(digest, Basis::Remembered, shared, now);
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
                let mut basis = Basis::Remembered;
                fetch.waiting = self.decide_about(digest, &fetch, &mut basis, shared, now);
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

    /// Asks for those who have waited so far: what the first of them needs to know.
    fn ask_for(&mut self, digest: Digest, shared: &mut Shared, now: Moment) {
        let asked = loop {
            let Some(fetch) = self.fetches.get(&digest) else {
                return;
            };
            if fetch.waiting.is_empty() {
                self.take_fetch(digest);
                self.land(digest, Landing::Remembered, shared);
                return;
            }
            if let Some(asked) = self.question(digest, fetch, shared, now) {
                break asked;
            }
            let service = fetch.service;
            let Some(fetch) = self.fetches.get_mut(&digest) else {
                return;
            };
            let wrong = fetch.waiting.remove(0);
            self.waiting = self.waiting.saturating_sub(1);
            if abi::set_effective_context(wrong.stream_id).is_ok()
                && let Some(at_work) = self.services.get(service)
            {
                let denial = Denial::ApplicationKeyInvalid;
                at_work.refuse_waiting(Reply::Denied(denial), None, now);
            }
        };
        let Some(fetch) = self.fetches.get_mut(&digest) else {
            return;
        };
        let service = fetch.service;
        (fetch.asked, fetch.asked_at) = (asked, now);
        fetch.attempt = 0;
        let Some(fetch) = self.fetches.get(&digest) else {
            return;
        };
        let asked = self.pass_gate(digest, shared, now).and_then(|()| {
            self.ask(service, fetch.kind, &fetch.value, &fetch.asked)
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
                self.conclude(digest, Basis::Known(Reply::OverBudget), shared, now);
            }
            Shut::Contended => {
                self.conclude(digest, Basis::Known(Reply::Contended), shared, now);
            }
            Shut::BreakerOpen => {
                self.count(service, Counter::BreakerOpen);
                self.give_up(digest, shared, now);
            }
            Shut::NoCall => {
                if let Some(at_work) = self.services.get_mut(service) {
                    at_work.not_called(now);
                }
                self.give_up(digest, shared, now);
            }
        }
    }

    /// Nothing can be known of an application that is waited for.
    fn give_up(&mut self, digest: Digest, shared: &mut Shared, now: Moment) {
        let Some(fetch) = self.fetches.get(&digest) else {
            return;
        };
        let basis = self.unheard(fetch.service, shared, now);
        self.conclude(digest, basis, shared, now);
    }

    /// On a tick: keeps the mailbox, and looks after those whom nobody woke in time.
    pub(super) fn look_after_waiting(&mut self, shared: &mut Shared, now: Moment) {
        self.forget_ended(self.id);
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

    /// It is known what becomes of an application that is waited for. Who must wait for an
    /// answer of its own does, but not for ever.
    pub(super) fn conclude(
        &mut self,
        digest: Digest,
        mut basis: Basis,
        shared: &mut Shared,
        now: Moment,
    ) {
        let Some(fetch) = self.take_fetch(digest) else {
            return;
        };
        let waiting = self.decide_about(digest, &fetch, &mut basis, shared, now);
        let may_wait = |waiting: &Waiting| {
            matches!(basis, Basis::Remembered) && waiting.answers < MOST_ANSWERS
        };
        let (mut again, over): (Vec<_>, Vec<_>) = waiting.into_iter().partition(may_wait);
        // Who has waited long enough is decided on what was known before, if anything was.
        let fetch = Fetch {
            waiting: over,
            ..fetch
        };
        let mut known = Basis::Known(Reply::Contended);
        self.decide_about(digest, &fetch, &mut known, shared, now);
        if let (Basis::LetInUncached(_), Some(at_work)) =
            (&basis, self.services.get_mut(fetch.service))
        {
            at_work.uncached(now);
        }
        if let Basis::Uncached(record) | Basis::LetInUncached(record) = basis {
            self.report_uncached(fetch.service, *record, shared, now);
        }
        if again.is_empty() {
            return;
        }
        for waiting in &mut again {
            waiting.answers = waiting.answers.saturating_add(1);
        }
        let fetch = Fetch {
            waiting: again,
            waits_until: None,
            again: false,
            ..fetch
        };
        self.put_fetch(digest, fetch);
        self.rejoin(digest, shared, now);
    }

    /// Decides about everybody who waits for an application. Returns those for whom it is
    /// still, or again, unknown.
    fn decide_about(
        &self,
        digest: Digest,
        fetch: &Fetch,
        basis: &mut Basis,
        shared: &mut Shared,
        now: Moment,
    ) -> Vec<Waiting> {
        let mut unknown = Vec::new();
        let Some(at_work) = self.services.get(fetch.service) else {
            return unknown;
        };
        for waiting in &fetch.waiting {
            // A stream that has ended meanwhile is not counted.
            if abi::set_effective_context(waiting.stream_id).is_err() {
                continue;
            }
            let identity = at_work.identity_of(digest, fetch, &waiting.shows);
            let reply = match basis.decide(at_work, shared, &identity, waiting, now) {
                Ok(Verdict::Admitted { stale }) => {
                    at_work.admitted(stale);
                    if let Some(quota) = shared.applications.take_quota() {
                        tell(&quota, now);
                    }
                    if basis.is_unheard() {
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
            at_work.refuse_waiting(reply, shared.applications.take_quota(), now);
        }
        unknown
    }

    /// What becomes of an application of this service that nobody could say anything about.
    pub(super) fn unheard(&self, service: usize, shared: &Shared, now: Moment) -> Basis {
        let trust = self
            .services
            .get(service)
            .map(|at_work| &at_work.service.trust);
        match trust.filter(|trust| trust.unknown == Unknown::Allow) {
            Some(trust) => Basis::Unheard(milliseconds(trust.negative_ttl)),
            None => Basis::Known(self.backend_failed(shared, now)),
        }
    }
}
