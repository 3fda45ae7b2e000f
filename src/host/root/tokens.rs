//! Requests that come with a token, and the keys with which tokens are verified.
//!
//! Apart from the other requests because a service without tokens must not pay for them: what
//! is here runs, and is kept, only where tokens are configured. A request whose token was verified
//! before costs a digest of its bytes and a look into a map. One that may be signed with a key that
//! is not known yet is paused while keys are fetched, and then decided from its beginning.

use super::at_work::AtWork;
use super::introspection::{IntrospectionAtWork, ToAsk};
use super::under_way::UnderWay;
use super::{Call, Root, milliseconds};
use crate::authorization::{Joined, Landing};
use crate::config::Service;
use crate::credentials::{Body, Digest};
use crate::host::abi::{self, Action, HostResult, MapType, MetricType};
use crate::host::calls::{self, Answered};
use crate::host::local_reply::{Reply, wants_grpc};
use crate::host::logger::Seldom;
use crate::host::shared_data::HostSharedData;
use crate::host::stats::plain;
use crate::host::vm::Shared;
use crate::moment::Moment;
use crate::request::{Headers, Request};
use crate::tokens::{
    Cache, Discovery, Flaw, KeySet, KeySource, Keyring, Pace, Policy, Remembered, Standing, Start,
    Turn, Unverified, Url, Verified, Wanted,
};
use log::{info, warn};
use std::rc::Rc;

/// Requests that may wait for keys in one VM.
const MOST_WAITING: usize = 1_000;
/// How long a refused token is remembered, in milliseconds.
const REFUSED_MILLISECONDS: u64 = 10_000;
/// The same where time or another fetch may change it.
const REFUSED_BRIEFLY_MILLISECONDS: u64 = 1_000;

/// What a service needs where it has tokens.
pub(super) struct TokensAtWork {
    cache: Cache,
    pace: Pace,
    stats: TokenStats,
    /// Of each issuer, the number among [`Issuers::sources`] of where its keys are fetched.
    sources: Vec<Option<usize>>,
    /// Of each issuer, the edition of the keys that the cache goes by.
    editions: Vec<u64>,
    /// Where it has opaque tokens.
    pub(super) introspection: Option<Box<IntrospectionAtWork>>,
}

/// Where keys are fetched, and who waits for them.
#[derive(Default)]
pub(super) struct Issuers {
    sources: Vec<Source>,
    waiting: Vec<KeyWait>,
    /// A request is decided that has waited: true, if it is not to wait again.
    resumed: Option<bool>,
}

/// The keys of one issuer, as this VM has them.
struct Source {
    keyring: Keyring,
    issuer: Box<str>,
    discovery: Discovery,
    /// The services that go by it; never empty.
    services: Vec<usize>,
    standing: Standing,
    edition: u64,
    keys: Option<Rc<KeySet>>,
    quiet: Seldom,
}

/// A request that waits for keys.
struct KeyWait {
    stream_id: u32,
    service: usize,
    source: usize,
    /// How many fetches had failed, and which edition there was, when it began to wait.
    seen: (u64, u64),
    /// The fetch that it waits for may have asked before the issuer had the key.
    again: bool,
    /// Until when it waits at most (monotonic milliseconds).
    until: u64,
}

/// What a token has come to.
pub(super) enum Checked {
    /// It is valid.
    Good(Rc<Verified>),
    /// It is refused.
    Refused(Reply),
    /// It may be of a key of that source which is not known yet.
    Await(usize),
    /// Its key manager is to be asked.
    Ask(ToAsk),
}

/// What is counted of tokens: `wasmcustom.tollgate.<service id>.<counter>`.
struct TokenStats([Option<u32>; 5]);

/// The counters, by their place.
#[derive(Clone, Copy)]
#[repr(usize)]
enum TokenCounter {
    /// Signatures looked at.
    Verifications,
    /// Requests with a token that is not valid.
    Invalid,
    /// Requests that a worker had no time left for.
    OverPace,
    /// Fetches of keys.
    KeyFetches,
    /// Fetches that brought none.
    KeyFetchFailures,
}

impl TokenStats {
    fn define(service: &str) -> Self {
        let service = plain(service);
        let names = [
            "token_verifications",
            "requests_token_invalid",
            "requests_token_over_budget",
            "key_fetches",
            "key_fetch_failures",
        ];
        Self(names.map(|name| {
            let name = format!("tollgate.{service}.{name}");
            abi::define_metric(MetricType::Counter, &name).ok()
        }))
    }

    fn add(&self, counter: TokenCounter, by: usize) {
        if let Some(Some(id)) = self.0.get(counter as usize) {
            abi::increment_metric(*id, i64::try_from(by).unwrap_or(i64::MAX));
        }
    }
}

impl TokensAtWork {
    fn new(policy: &Policy, service: &str, sources: Vec<Option<usize>>, key: [u8; 16]) -> Self {
        Self {
            cache: Cache::new(key, policy.remembered),
            pace: Pace::new(policy.verifications_per_second),
            stats: TokenStats::define(service),
            editions: vec![0; sources.len()],
            sources,
            introspection: None,
        }
    }

    /// Finds out what a token is worth.
    pub fn check(
        &mut self,
        policy: &Policy,
        issuers: &mut Issuers,
        token: &[u8],
        data: &HostSharedData,
        now: Moment,
    ) -> Checked {
        let digest = self.cache.digest(token);
        if let Some(introspection) = &mut self.introspection
            && introspection.takes(token)
        {
            return match introspection.check(digest, now) {
                Checked::Refused(Reply::InvalidToken(flaw)) => self.invalid(flaw),
                other => other,
            };
        }
        match self.cache.look_up(digest, now.seconds(), now.monotonic) {
            Remembered::Verified(verified) => return Checked::Good(verified),
            Remembered::Refused(flaw) => return self.invalid(flaw),
            Remembered::Unknown => {}
        }
        if now.wall == 0 {
            // Nobody can say what has expired.
            return Checked::Refused(Reply::Contended);
        }
        match self.verify(policy, issuers, token, data, now) {
            Ok(verified) => {
                let verified = Rc::new(verified);
                self.cache.verified(digest, Rc::clone(&verified));
                Checked::Good(verified)
            }
            Err(Checked::Refused(Reply::InvalidToken(flaw))) => {
                let lasts = match flaw {
                    Flaw::Premature | Flaw::Key => REFUSED_BRIEFLY_MILLISECONDS,
                    _ => REFUSED_MILLISECONDS,
                };
                let until = now.monotonic.saturating_add(lasts);
                self.cache.refused(digest, flaw, until);
                self.invalid(flaw)
            }
            Err(other) => other,
        }
    }

    /// Asks about a token. `Some`: its request goes on with that; `None`: it waits.
    pub fn ask(
        &mut self,
        asked: ToAsk,
        token: &[u8],
        stream: (usize, u32),
        calls: &mut UnderWay,
        shared: &mut Shared,
        now: Moment,
    ) -> Result<Option<Rc<Verified>>, Reply> {
        let Some(introspection) = &mut self.introspection else {
            return Err(Reply::KeysUnavailable);
        };
        let known = introspection.ask(asked, token, stream, calls, shared, now);
        match known {
            Err(Reply::InvalidToken(_)) => self.stats.add(TokenCounter::Invalid, 1),
            Err(Reply::OverPace) => self.stats.add(TokenCounter::OverPace, 1),
            _ => {}
        }
        known
    }

    /// A token that is not valid.
    pub(super) fn invalid(&self, flaw: Flaw) -> Checked {
        self.stats.add(TokenCounter::Invalid, 1);
        Checked::Refused(Reply::InvalidToken(flaw))
    }

    fn verify(
        &mut self,
        policy: &Policy,
        issuers: &mut Issuers,
        token: &[u8],
        data: &HostSharedData,
        now: Moment,
    ) -> Result<Verified, Checked> {
        let refused = |flaw| Checked::Refused(Reply::InvalidToken(flaw));
        let candidate = policy.look(token, now.seconds()).map_err(refused)?;
        let number = candidate.issuer;
        let issuer = policy.issuers.get(number).ok_or(refused(Flaw::Issuer))?;
        let source = self.sources.get(number).copied().flatten();
        let mut fresh = false;
        loop {
            let keys = match (&issuer.keys, source) {
                (KeySource::Inline(keys), _) => Some(Rc::clone(keys)),
                (KeySource::Discovery(_), Some(source)) => issuers.keys(source, now),
                (KeySource::Discovery(_), None) | (KeySource::JwtAuthn, _) => None,
            };
            let tried = keys.map(|keys| {
                let tries = candidate.tries(&keys);
                if !self.pace.take(candidate.cost(&keys), now.monotonic) {
                    self.stats.add(TokenCounter::OverPace, 1);
                    return Err(Checked::Refused(Reply::OverPace));
                }
                self.stats.add(TokenCounter::Verifications, tries);
                Ok(candidate.verify(&keys))
            });
            match (tried.transpose()?, source) {
                (Some(Ok(key)), _) => return policy.verified(&candidate, key).map_err(refused),
                (Some(Err(Unverified::Signature)), _) => return Err(refused(Flaw::Signature)),
                (Some(Err(Unverified::NoKey)) | None, None) => return Err(refused(Flaw::Key)),
                (Some(Err(Unverified::NoKey)) | None, Some(source)) => {
                    // Another worker may have fetched since this one looked.
                    if fresh || !issuers.reload(source, data) {
                        return Err(issuers.unknown_key(source, now));
                    }
                    self.follow(issuers);
                    fresh = true;
                }
            }
        }
    }

    /// Lets the cache go by the keys that there are now.
    fn follow(&mut self, issuers: &Issuers) {
        for (issuer, source) in self.sources.iter().enumerate() {
            let source = source.and_then(|source| issuers.sources.get(source));
            let edition = self.editions.get_mut(issuer);
            if let (Some(source), Some(edition)) = (source, edition)
                && *edition != source.edition
                && let Some(keys) = &source.keys
            {
                *edition = source.edition;
                self.cache.keys_changed(issuer, keys);
            }
        }
    }
}

impl Issuers {
    /// The keys of a source, if they are good.
    fn keys(&self, source: usize, now: Moment) -> Option<Rc<KeySet>> {
        let source = self.sources.get(source)?;
        let good = source.keyring.are_good(&source.standing, now);
        source.keys.as_ref().filter(|_| good).map(Rc::clone)
    }

    /// Looks into shared data. Whether there are other keys than before.
    fn reload(&mut self, source: usize, data: &HostSharedData) -> bool {
        let Some(source) = self.sources.get_mut(source) else {
            return false;
        };
        source.standing = source.keyring.standing(data);
        if source.standing.edition == source.edition {
            return false;
        }
        let Some(loaded) = source.keyring.load(data) else {
            return false;
        };
        let changed = loaded.edition != source.edition;
        source.edition = loaded.edition;
        source.keys = Some(Rc::new(loaded.keys));
        changed
    }

    /// No key that is known has made a signature: whether to wait for another.
    fn unknown_key(&self, source: usize, now: Moment) -> Checked {
        if self.resumed != Some(true) {
            return Checked::Await(source);
        }
        let failing = self
            .sources
            .get(source)
            .is_none_or(|source| source.standing.failures > 0);
        if failing || self.keys(source, now).is_none() {
            Checked::Refused(Reply::KeysUnavailable)
        } else {
            Checked::Refused(Reply::InvalidToken(Flaw::Key))
        }
    }

    /// The number of a source, which is new or another service's as well.
    fn source(&mut self, issuer: &str, discovery: &Discovery, service: usize) -> usize {
        let keyring = Keyring::new(issuer, discovery);
        let number = keyring.number();
        let known = |source: &Source| source.keyring.number() == number;
        if let Some(index) = self.sources.iter().position(known) {
            if let Some(source) = self.sources.get_mut(index) {
                source.services.push(service);
            }
            return index;
        }
        self.sources.push(Source {
            keyring,
            issuer: issuer.into(),
            discovery: discovery.clone(),
            services: vec![service],
            standing: Standing::default(),
            edition: 0,
            keys: None,
            quiet: Seldom::default(),
        });
        self.sources.len().saturating_sub(1)
    }
}

impl Source {
    /// What stands for it among the questions under way. Those about applications have digests
    /// under a random key.
    fn digest(&self) -> Digest {
        let mut bytes = *b"tollgate\0\0\0\0keys";
        for (byte, own) in bytes.iter_mut().zip(self.keyring.number().to_le_bytes()) {
            *byte = own;
        }
        Digest(bytes)
    }
}

/// What the services of a configuration need for their tokens.
pub(super) fn set_up(services: &mut [AtWork], shared: &mut Shared) -> Issuers {
    let mut issuers = Issuers::default();
    for (index, at_work) in services.iter_mut().enumerate() {
        let Some(tokens) = &at_work.service.tokens else {
            continue;
        };
        let mut sources = Vec::new();
        for issuer in &tokens.policy.issuers {
            sources.push(match &issuer.keys {
                KeySource::Inline(_) | KeySource::JwtAuthn => None,
                KeySource::Discovery(discovery) => {
                    Some(issuers.source(&issuer.name, discovery, index))
                }
            });
        }
        // The offer is random as well, and no other use is made of it in this way.
        let key = abi::random_bytes().unwrap_or(shared.offer);
        let id = &at_work.service.id;
        let mut at_work_tokens = TokensAtWork::new(&tokens.policy, id, sources, key);
        at_work_tokens.introspection = IntrospectionAtWork::wanted(&at_work.service, tokens);
        at_work.tokens = Some(Box::new(at_work_tokens));
    }
    issuers
}

/// Tells the upstream what a token claims, in the place of what the client says of it.
pub(super) fn tell_claims(service: &Service, verified: Option<&Verified>) -> HostResult<()> {
    let Some(tokens) = &service.tokens else {
        return Ok(());
    };
    for (number, (name, _)) in tokens.policy.headers.iter().enumerate() {
        let name = name.as_str().as_bytes();
        abi::remove_request_header(name)?;
        let value = verified.and_then(|verified| verified.headers.get(number)?.as_ref());
        if let Some(value) = value {
            abi::add_request_header(name, value.as_bytes())?;
        }
    }
    Ok(())
}

impl Root {
    /// Pauses a request until its issuer's keys have been fetched, if that may be.
    pub(super) fn await_keys(
        &mut self,
        stream_id: u32,
        service: usize,
        index: usize,
        shared: &mut Shared,
        now: Moment,
    ) -> Result<Action, Reply> {
        if self.issuers.waiting.len() >= MOST_WAITING {
            return Err(self.refused(service, Reply::Overloaded));
        }
        let unavailable = Reply::KeysUnavailable;
        let Some(source) = self.issuers.sources.get(index) else {
            return Err(self.refused(service, unavailable));
        };
        let interval = milliseconds(source.discovery.interval);
        let longest = source.keyring.longest();
        let seen = (source.standing.failures, source.standing.edition);
        let failing = source.standing.failures > 0;
        let turn = source.keyring.turn(&shared.data, Wanted::Unknown, now);
        let again = match turn {
            Ok(Turn::Fetch) => {
                if !self.fetch_keys(index, shared, now) {
                    return Err(self.refused(service, unavailable));
                }
                false
            }
            Ok(Turn::UnderWay(_)) => {
                self.listen_for_keys(index, shared, now);
                true
            }
            // Its turn comes on a tick.
            Ok(Turn::Later(_)) if !failing => false,
            Ok(Turn::Later(_)) => return Err(self.refused(service, unavailable)),
            Err(_) => return Err(self.refused(service, Reply::Contended)),
        };
        self.issuers.waiting.push(KeyWait {
            stream_id,
            service,
            source: index,
            seen,
            again: again && self.issuers.resumed.is_none(),
            until: now
                .monotonic
                .saturating_add(interval)
                .saturating_add(longest)
                .saturating_add(longest),
        });
        Ok(Action::Pause)
    }

    /// Joins those who wait for a fetch, so that this VM is woken.
    fn listen_for_keys(&mut self, index: usize, shared: &mut Shared, now: Moment) {
        if let Some(source) = self.issuers.sources.get(index) {
            let digest = source.digest();
            // Not joined, it finds out on a tick. Whoever asks by mistake lands at once.
            if self.join(digest, shared, now) == Joined::Asks {
                self.land(digest, Landing::Remembered, shared);
            }
        }
    }

    /// Begins to fetch the keys of a source, whose turn this VM has. False: no call could be made.
    fn fetch_keys(&mut self, index: usize, shared: &mut Shared, now: Moment) -> bool {
        let Some(source) = self.issuers.sources.get(index) else {
            return false;
        };
        let (url, document) = match &source.discovery.start {
            Start::Document(url) => (url.clone(), true),
            Start::Keys(url) => (url.clone(), false),
        };
        let digest = source.digest();
        self.count_for_keys(index, TokenCounter::KeyFetches);
        self.join(digest, shared, now);
        if self.call_for_keys(index, &url, document) {
            return true;
        }
        self.keys_failed(
            index,
            "the call could not be made: is there such a cluster?",
            shared,
            now,
        );
        false
    }

    fn call_for_keys(&mut self, source: usize, url: &Url, document: bool) -> bool {
        let Some(at) = self.issuers.sources.get(source) else {
            return false;
        };
        match calls::get(&at.discovery.cluster, url, at.discovery.timeout) {
            Some(token) => {
                self.calls.insert(token, Call::Keys { source, document });
                true
            }
            None => false,
        }
    }

    /// Takes in an issuer's document or keys.
    pub(super) fn answered_keys(
        &mut self,
        index: usize,
        document: bool,
        answered: &Answered,
        shared: &mut Shared,
        now: Moment,
    ) {
        let Some(source) = self.issuers.sources.get(index) else {
            return;
        };
        let brought = match answered.ok() {
            None => Err(format!("it answered with status {}", answered.status())),
            Some(body) if document => match source.discovery.keys_by(&source.issuer, body) {
                Ok(url) if self.call_for_keys(index, &url, false) => return,
                Ok(_) => Err("the call could not be made".to_owned()),
                Err(error) => Err(error.to_string()),
            },
            Some(body) => match KeySet::parse(body) {
                Err(error) => Err(format!("its set of keys {error}")),
                Ok(keys) => {
                    let edition = shared.random();
                    let finished = source
                        .keyring
                        .finish(&shared.data, Some(body), edition, now);
                    finished
                        .map(|()| keys.len())
                        .map_err(|error| error.to_string())
                }
            },
        };
        match brought {
            Ok(keys) => {
                if let Some(source) = self.issuers.sources.get(index)
                    && source.edition == 0
                {
                    info!("{keys} keys of issuer {:?}", source.issuer);
                }
                self.land_keys(index, shared);
            }
            Err(why) => self.keys_failed(index, &why, shared, now),
        }
        self.look_for_keys(index, shared, now);
    }

    /// A fetch of this VM was in vain. Nobody who waits is decided about here: this may be the
    /// callback of a stream, which a reply to another one would stop.
    fn keys_failed(&mut self, index: usize, why: &str, shared: &mut Shared, now: Moment) {
        self.count_for_keys(index, TokenCounter::KeyFetchFailures);
        let Some(source) = self.issuers.sources.get_mut(index) else {
            return;
        };
        // Not remembered, it is tried again after the deadline.
        let _ = source.keyring.finish(&shared.data, None, 0, now);
        if let Some(withheld) = source.quiet.due(now.monotonic) {
            warn!(
                "issuer {:?}: its keys could not be fetched: {why}. Known ones are good for {} s \
                 after they were fetched ({withheld} such lines withheld)",
                source.issuer,
                source.discovery.kept.as_secs(),
            );
        }
        self.land_keys(index, shared);
    }

    /// A fetch of this VM has ended: those who wait elsewhere look.
    fn land_keys(&self, index: usize, shared: &mut Shared) {
        if let Some(source) = self.issuers.sources.get(index) {
            self.land(source.digest(), Landing::Remembered, shared);
        }
    }

    /// A question has landed that may be one for keys.
    pub(super) fn landed_keys(&mut self, digest: Digest, shared: &mut Shared, now: Moment) {
        let source = self.issuers.sources.iter();
        if let Some(index) = source.map(Source::digest).position(|own| own == digest) {
            self.look_for_keys(index, shared, now);
        }
    }

    /// Looks how the keys of a source stand, and decides about those whose wait is over.
    fn look_for_keys(&mut self, index: usize, shared: &mut Shared, now: Moment) {
        if self.issuers.reload(index, &shared.data) {
            for at_work in &mut self.services {
                if let Some(tokens) = &mut at_work.tokens {
                    tokens.follow(&self.issuers);
                }
            }
        }
        let Some(source) = self.issuers.sources.get(index) else {
            return;
        };
        let stands = (source.standing.failures, source.standing.edition);
        let over = |wait: &mut KeyWait| {
            wait.source == index && (wait.seen != stands || wait.until <= now.monotonic)
        };
        let over: Vec<KeyWait> = self.issuers.waiting.extract_if(.., over).collect();
        let any = !over.is_empty();
        for wait in over {
            // A stream that has ended meanwhile is decided by nobody.
            if abi::set_effective_context(wait.stream_id).is_err() {
                continue;
            }
            self.issuers.resumed = Some(!wait.again || wait.until <= now.monotonic);
            self.resume(wait.stream_id, wait.service, shared, now);
            self.issuers.resumed = None;
        }
        if any {
            let _ = abi::set_effective_context(self.id);
        }
    }

    /// Decides about the request of the effective context, which has waited, from its beginning.
    pub(super) fn resume(
        &mut self,
        stream_id: u32,
        service: usize,
        shared: &mut Shared,
        now: Moment,
    ) {
        let Ok(bytes) = abi::header_map(MapType::RequestHeaders) else {
            Reply::Contended.send(self.replies(service), false, None, now);
            return;
        };
        let pairs = abi::parse_pairs(&bytes);
        let headers = Headers { pairs: &pairs };
        let request = Request {
            method: headers.first(b":method").unwrap_or_default(),
            authority: headers.first(b":authority").unwrap_or_default(),
            target: headers.first(b":path").unwrap_or_default(),
            headers,
        };
        match self.decide(stream_id, service, &request, Body::None, shared, now) {
            Ok(Action::Continue) => {
                let _ = abi::continue_request();
            }
            Ok(Action::Pause | Action::AwaitBody) => {}
            Err(reply) => {
                let quota = shared.applications.take_quota();
                reply.send(self.replies(service), wants_grpc(&headers), quota, now);
            }
        }
    }

    /// On a tick: fetches keys that have become old or are waited for, and looks after those who
    /// wait.
    pub(super) fn look_after_keys(&mut self, shared: &mut Shared, now: Moment) {
        for index in 0..self.issuers.sources.len() {
            self.look_for_keys(index, shared, now);
            let Some(source) = self.issuers.sources.get(index) else {
                continue;
            };
            let waited_for = self.issuers.waiting.iter().any(|wait| wait.source == index);
            let leads = source.services.iter().any(|service| self.leads(*service));
            let wanted = if waited_for || source.standing.edition == 0 {
                Wanted::Unknown
            } else {
                Wanted::Refresh
            };
            if (leads || waited_for)
                && source.keyring.turn(&shared.data, wanted, now) == Ok(Turn::Fetch)
            {
                self.fetch_keys(index, shared, now);
            }
        }
    }

    fn count_for_keys(&self, source: usize, counter: TokenCounter) {
        let source = self.issuers.sources.get(source);
        let service = source.and_then(|source| source.services.first());
        let at_work = service.and_then(|service| self.services.get(*service));
        if let Some(tokens) = at_work.and_then(|at_work| at_work.tokens.as_ref()) {
            tokens.stats.add(counter, 1);
        }
    }
}
