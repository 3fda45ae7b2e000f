//! Opaque tokens: who asks the key manager about one, and who waits for its answer.
//!
//! Apart from the signed tokens because every unknown one costs a call here, and none costs this
//! worker's time. Requests that wait for an answer are decided from their beginning when it is
//! there, as those are that wait for keys. Answers stay in this VM: what shared data holds
//! would have to be believed, so each worker asks for itself.

use super::tokens::{Checked, TokensAtWork};
use super::under_way::UnderWay;
use super::{Call, Root, milliseconds};
use crate::authorization::{Breaker, Passage, Turn};
use crate::config::{Service, Tokens};
use crate::credentials::Scope;
use crate::host::abi::{self, MetricType};
use crate::host::calls::{self, Answered};
use crate::host::local_reply::Reply;
use crate::host::logger::Seldom;
use crate::host::stats::plain;
use crate::host::vm::Shared;
use crate::moment::Moment;
use crate::service_management::Failure;
use crate::tokens::{
    Answers, Flaw, Introspection, Known, Pace, TokenDigest, Verified, looks_signed,
};
use log::{error, info, warn};
use std::collections::HashMap;
use std::rc::Rc;

/// Requests of a service that may wait for answers in one VM.
const MOST_WAITING: usize = 1_000;
/// Of them, requests with one token.
const MOST_WAITING_FOR_ONE: usize = 500;
/// How much longer than its call may take an answer is waited for, in milliseconds.
const SLACK_MILLISECONDS: u64 = 1_000;

/// What a service needs where it has opaque tokens.
pub(super) struct IntrospectionAtWork {
    of: Rc<Introspection>,
    /// Signed tokens are opaque as well: there are no issuers.
    all: bool,
    answers: Answers,
    inquiries: HashMap<TokenDigest, Inquiry>,
    waiting: usize,
    /// Known tokens are asked about again at a pace of their own: strangers must not take theirs.
    strangers: Pace,
    known: Pace,
    breaker: Breaker,
    stats: Stats,
    quiet: Quiet,
    /// A request is decided that has waited: what becomes of it, if its token is still not known.
    resumed: Option<Reply>,
}

/// A question under way.
struct Inquiry {
    waiting: Vec<u32>,
    /// When it was asked (monotonic milliseconds).
    asked: u64,
}

/// A token that is to be asked about.
pub(super) struct ToAsk {
    digest: TokenDigest,
    /// What is known of it. Good, if nobody can be asked.
    known: Option<Rc<Verified>>,
    /// Whether the request is to wait for the answer.
    waits: bool,
}

/// Why nothing is known of a token after a question.
enum Trouble {
    NotCalled,
    Failed(Failure),
    Malformed,
    /// It refuses this gateway: its client credentials, or what they may do.
    Refused(u16),
}

#[derive(Default)]
struct Quiet {
    failed: Seldom,
    refused: Seldom,
}

/// What is counted: `wasmcustom.tollgate.<service id>.introspection_<name>`.
struct Stats([Option<u32>; Counter::NAMES.len()]);

#[derive(Clone, Copy)]
#[repr(usize)]
enum Counter {
    Calls,
    /// Requests decided on an answer older than its `ttl`.
    Stale,
    BreakerOpen,
    /// Questions that brought nothing; the following say why.
    Failures,
    NotCalled,
    NotConnected,
    Timeout,
    Interrupted,
    NoReply,
    ServerError,
    UnexpectedStatus,
    Malformed,
    Misconfigured,
}

impl Counter {
    const NAMES: [&'static str; 13] = [
        "calls",
        "stale",
        "breaker_open",
        "failures",
        "not_called",
        "not_connected",
        "timeout",
        "interrupted",
        "no_reply",
        "server_error",
        "unexpected_status",
        "malformed",
        "misconfigured",
    ];
}

impl Stats {
    fn define(service: &str) -> Self {
        let service = plain(service);
        Self(Counter::NAMES.map(|name| {
            let name = format!("tollgate.{service}.introspection_{name}");
            abi::define_metric(MetricType::Counter, &name).ok()
        }))
    }

    fn count(&self, counter: Counter) {
        if let Some(Some(id)) = self.0.get(counter as usize) {
            abi::increment_metric(*id, 1);
        }
    }
}

impl Trouble {
    const fn counter(&self) -> Counter {
        match self {
            Self::NotCalled => Counter::NotCalled,
            Self::Malformed | Self::Failed(Failure::Malformed(_)) => Counter::Malformed,
            Self::Refused(_) => Counter::Misconfigured,
            Self::Failed(Failure::NotConnected) => Counter::NotConnected,
            Self::Failed(Failure::Timeout) => Counter::Timeout,
            Self::Failed(Failure::Interrupted) => Counter::Interrupted,
            Self::Failed(Failure::NoReply) => Counter::NoReply,
            Self::Failed(Failure::ServerError(_)) => Counter::ServerError,
            Self::Failed(Failure::UnexpectedStatus(_)) => Counter::UnexpectedStatus,
        }
    }

    /// Whether it says something of the key manager, and not perhaps of one token only.
    const fn is_of_the_key_manager(&self) -> bool {
        match self {
            Self::Failed(failure) => !failure.may_be_of_the_consumers_making(),
            Self::NotCalled | Self::Malformed | Self::Refused(_) => false,
        }
    }
}

impl IntrospectionAtWork {
    /// Where a service has opaque tokens.
    pub fn wanted(service: &Service, tokens: &Tokens) -> Option<Box<Self>> {
        let of = tokens.introspection.as_ref()?;
        let key_manager = Scope {
            cluster: of.cluster.clone(),
            authority: format!("{}{}", of.url.authority, of.url.path),
            service: "introspection".to_owned(),
        };
        Some(Box::new(Self {
            of: Rc::clone(of),
            all: tokens.policy.issuers.is_empty(),
            answers: Answers::new(tokens.policy.remembered),
            inquiries: HashMap::new(),
            waiting: 0,
            strangers: Pace::new(of.calls_per_second),
            known: Pace::new(of.calls_per_second),
            breaker: Breaker::new(key_manager.number()),
            stats: Stats::define(&service.id),
            quiet: Quiet::default(),
            resumed: None,
        }))
    }

    /// Whether a token is for the key manager to judge.
    pub fn takes(&self, token: &[u8]) -> bool {
        self.all || !looks_signed(token)
    }

    /// Finds out what is known of a token.
    pub fn check(&mut self, digest: TokenDigest, now: Moment) -> Checked {
        if now.wall == 0 {
            // Nobody can say what has expired.
            return Checked::Refused(Reply::Contended);
        }
        let known = self.answers.look_up(digest, now.seconds(), now.monotonic);
        let (known, waits) = match known {
            Known::Active(verified) => return Checked::Good(verified),
            Known::StaleAndAsked(verified) => {
                self.stats.count(Counter::Stale);
                return Checked::Good(verified);
            }
            Known::StaleInVain(verified) => {
                self.stats.count(Counter::Stale);
                (Some(verified), false)
            }
            Known::Refused(flaw) => return Checked::Refused(Reply::InvalidToken(flaw)),
            Known::Aging(verified) => (Some(verified), false),
            Known::Stale(verified) => (Some(verified), true),
            Known::Unknown => (None, true),
        };
        match (self.resumed, known) {
            (Some(_), Some(verified)) => {
                if waits {
                    self.stats.count(Counter::Stale);
                }
                Checked::Good(verified)
            }
            (Some(reply), None) => Checked::Refused(reply),
            (None, known) => Checked::Ask(ToAsk {
                digest,
                known,
                waits,
            }),
        }
    }

    /// Asks about a token, unless that has been done for another request. `Some`: the request of
    /// this stream goes on with what is known; `None`: it waits.
    pub fn ask(
        &mut self,
        to_ask: ToAsk,
        token: &[u8],
        stream: (usize, u32),
        calls: &mut UnderWay,
        shared: &mut Shared,
        now: Moment,
    ) -> Result<Option<Rc<Verified>>, Reply> {
        let asked = self.ask_or_join(&to_ask, token, stream, calls, shared, now);
        match (asked, to_ask.known) {
            (Ok(()), _) if to_ask.waits => Ok(None),
            (Err(reply), None) => Err(reply),
            (Err(_), known) if to_ask.waits => {
                self.stats.count(Counter::Stale);
                Ok(known)
            }
            (_, known) => Ok(known),
        }
    }

    fn ask_or_join(
        &mut self,
        to_ask: &ToAsk,
        token: &[u8],
        (service, stream_id): (usize, u32),
        calls: &mut UnderWay,
        shared: &mut Shared,
        now: Moment,
    ) -> Result<(), Reply> {
        let digest = to_ask.digest;
        let waits = to_ask.waits.then_some(stream_id);
        let under_way = self.inquiries.get_mut(&digest);
        if waits.is_some() {
            let for_it = under_way.as_ref().map_or(0, |it| it.waiting.len());
            if self.waiting >= MOST_WAITING || for_it >= MOST_WAITING_FOR_ONE {
                return Err(Reply::Overloaded);
            }
        }
        let waiting = usize::from(waits.is_some());
        if let Some(inquiry) = under_way {
            inquiry.waiting.extend(waits);
            self.waiting = self.waiting.saturating_add(waiting);
            return Ok(());
        }
        let Some(question) = Introspection::question(token) else {
            return Err(Reply::InvalidToken(Flaw::Malformed));
        };
        if self.breaker.passage(&shared.data, now) == Passage::Open {
            return Err(self.shut(shared, now));
        }
        let pace = if to_ask.known.is_some() {
            &mut self.known
        } else {
            &mut self.strangers
        };
        if !pace.take(1, now.monotonic) {
            return Err(Reply::OverPace);
        }
        // The passage last: it may be the probe that the breaker waits for.
        if !self.breaker.pass(&shared.data, now, self.longest()) {
            return Err(self.shut(shared, now));
        }
        let of = &self.of;
        let call = calls::ask_about_token(
            &of.cluster,
            &of.url,
            of.client.authorization(),
            &question,
            of.timeout,
        );
        let Some(call) = call else {
            return Err(self.troubled(digest, &Trouble::NotCalled, shared, now));
        };
        self.stats.count(Counter::Calls);
        calls.insert(call, Call::Introspection { service, digest });
        let inquiry = Inquiry {
            waiting: waits.into_iter().collect(),
            asked: now.monotonic,
        };
        self.inquiries.insert(digest, inquiry);
        self.waiting = self.waiting.saturating_add(waiting);
        Ok(())
    }

    /// How long a question may be under way, in milliseconds.
    fn longest(&self) -> u64 {
        milliseconds(self.of.timeout).saturating_add(SLACK_MILLISECONDS)
    }

    fn shut(&self, shared: &Shared, now: Moment) -> Reply {
        self.stats.count(Counter::BreakerOpen);
        self.unavailable(shared, now)
    }

    fn unavailable(&self, shared: &Shared, now: Moment) -> Reply {
        let pause = self.breaker.pause(&shared.data, now);
        Reply::KeyManagerUnavailable {
            retry_after: pause.div_ceil(1_000).max(1),
        }
    }

    /// Counts and tells of a question in vain. What becomes of those whose token is not known.
    fn troubled(
        &mut self,
        digest: TokenDigest,
        trouble: &Trouble,
        shared: &mut Shared,
        now: Moment,
    ) -> Reply {
        self.stats.count(Counter::Failures);
        self.stats.count(trouble.counter());
        self.answers.in_vain(digest, now.monotonic);
        let cluster = &self.of.cluster;
        if trouble.is_of_the_key_manager() {
            let jitter = shared.random();
            if self.breaker.failed(&shared.data, now, jitter) == Some(Turn::Opened) {
                warn!(
                    "the key manager of cluster {cluster:?} keeps failing: unknown tokens are \
                     answered without asking it, until it answers again"
                );
            }
        } else {
            self.breaker.unjudged(&shared.data, now);
        }
        let name = Counter::NAMES
            .get(trouble.counter() as usize)
            .unwrap_or(&"");
        if let Trouble::Refused(status) = trouble {
            if let Some(withheld) = self.quiet.refused.due(now.monotonic) {
                error!(
                    "the key manager of cluster {cluster:?} refuses this gateway (status {status}): \
                     are client_id and client_secret right, and may it introspect? ({withheld} \
                     such lines withheld)"
                );
            }
            return Reply::Misconfigured;
        }
        if let Some(withheld) = self.quiet.failed.due(now.monotonic) {
            warn!(
                "the key manager of cluster {cluster:?} did not answer: {name} ({withheld} such \
                 lines withheld)"
            );
        }
        self.unavailable(shared, now)
    }

    /// Takes in an answer. What becomes of those whose token is still not known.
    fn answered(
        &mut self,
        tokens: &Tokens,
        digest: TokenDigest,
        asked: u64,
        answered: &Answered,
        shared: &mut Shared,
        now: Moment,
    ) -> Reply {
        let trouble = match (answered.failure(), answered.ok()) {
            (Some(failure), _) => Trouble::Failed(failure),
            (None, Some(body)) => match self.of.read(&tokens.policy, body, now.seconds()) {
                Ok(answer) => {
                    let times = (asked, now.monotonic);
                    self.answers.learn(digest, answer, &self.of, times);
                    if self.breaker.answered(&shared.data, now) == Some(Turn::Closed) {
                        info!(
                            "the key manager of cluster {:?} answers again",
                            self.of.cluster
                        );
                    }
                    return Reply::Contended;
                }
                Err(_) => Trouble::Malformed,
            },
            (None, None) => match answered.status() {
                status @ (401 | 403) => Trouble::Refused(status),
                status => Trouble::Failed(Failure::UnexpectedStatus(status)),
            },
        };
        self.troubled(digest, &trouble, shared, now)
    }

    /// Takes out a question: who waits, and when it was asked.
    fn take(&mut self, digest: TokenDigest) -> Option<Inquiry> {
        let inquiry = self.inquiries.remove(&digest)?;
        self.waiting = self.waiting.saturating_sub(inquiry.waiting.len());
        Some(inquiry)
    }
}

impl Root {
    fn introspection(&mut self, service: usize) -> Option<&mut IntrospectionAtWork> {
        let tokens: &mut TokensAtWork = self.services.get_mut(service)?.tokens.as_mut()?;
        tokens.introspection.as_deref_mut()
    }

    /// The key manager has answered, or not.
    pub(super) fn answered_introspection(
        &mut self,
        service: usize,
        digest: TokenDigest,
        answered: &Answered,
        shared: &mut Shared,
        now: Moment,
    ) {
        let configured = self.configuration.services.get(service).map(Rc::clone);
        let Some(tokens) = configured.as_ref().and_then(|it| it.tokens.as_ref()) else {
            return;
        };
        let Some(introspection) = self.introspection(service) else {
            return;
        };
        let Some(inquiry) = introspection.take(digest) else {
            return;
        };
        let asked = inquiry.asked;
        let reply = introspection.answered(tokens, digest, asked, answered, shared, now);
        self.conclude_inquiry(service, &inquiry.waiting, reply, shared, now);
    }

    /// Decides about those who have waited; `reply` is for those whose token is still not known.
    fn conclude_inquiry(
        &mut self,
        service: usize,
        waiting: &[u32],
        reply: Reply,
        shared: &mut Shared,
        now: Moment,
    ) {
        if waiting.is_empty() {
            return;
        }
        if let Some(introspection) = self.introspection(service) {
            introspection.resumed = Some(reply);
        }
        for stream_id in waiting {
            // A stream that has ended meanwhile is decided by nobody.
            if abi::set_effective_context(*stream_id).is_ok() {
                self.resume(*stream_id, service, shared, now);
            }
        }
        if let Some(introspection) = self.introspection(service) {
            introspection.resumed = None;
        }
        let _ = abi::set_effective_context(self.id);
    }

    /// On a tick: forgets requests that have ended, and decides about those whom Envoy has
    /// forgotten.
    pub(super) fn look_after_inquiries(&mut self, shared: &mut Shared, now: Moment) {
        for service in 0..self.services.len() {
            let Some(introspection) = self.introspection(service) else {
                continue;
            };
            let longest = introspection.longest();
            let mut overdue = Vec::new();
            let mut left: usize = 0;
            let any = introspection.waiting > 0;
            for (digest, inquiry) in &mut introspection.inquiries {
                let waiting = &mut inquiry.waiting;
                waiting.retain(|stream_id| abi::set_effective_context(*stream_id).is_ok());
                left = left.saturating_add(waiting.len());
                if inquiry.asked.saturating_add(longest) <= now.monotonic {
                    overdue.push(*digest);
                }
            }
            introspection.waiting = left;
            if any {
                let _ = abi::set_effective_context(self.id);
            }
            for digest in overdue {
                let Some(introspection) = self.introspection(service) else {
                    continue;
                };
                let Some(inquiry) = introspection.take(digest) else {
                    continue;
                };
                let trouble = Trouble::Failed(Failure::NoReply);
                let reply = introspection.troubled(digest, &trouble, shared, now);
                self.conclude_inquiry(service, &inquiry.waiting, reply, shared, now);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_counter_has_its_name() {
        assert_eq!(Counter::NAMES[Counter::Calls as usize], "calls");
        assert_eq!(
            Counter::NAMES[Counter::Misconfigured as usize],
            "misconfigured"
        );
        assert_eq!(Counter::NAMES.len(), Counter::Misconfigured as usize + 1);
        for failure in [
            Failure::NotConnected,
            Failure::Timeout,
            Failure::Interrupted,
            Failure::NoReply,
            Failure::ServerError(500),
            Failure::UnexpectedStatus(302),
        ] {
            let counter = Trouble::Failed(failure).counter();
            assert_eq!(Counter::NAMES[counter as usize], failure.as_str());
        }
    }

    #[test]
    fn what_one_token_may_bring_about_is_not_held_against_the_key_manager() {
        for (trouble, is) in [
            (Trouble::Failed(Failure::ServerError(500)), true),
            (Trouble::Failed(Failure::Timeout), true),
            (Trouble::Failed(Failure::UnexpectedStatus(429)), true),
            (Trouble::Failed(Failure::UnexpectedStatus(400)), false),
            (Trouble::NotCalled, false),
            (Trouble::Malformed, false),
            (Trouble::Refused(403), false),
        ] {
            assert_eq!(trouble.is_of_the_key_manager(), is);
        }
    }
}
