//! One configuration at work in one VM.
//!
//! What it does stands apart by when it happens: [`requests`] as they come, [`answers`]
//! when a call ends, [`ticks`] when time has passed, [`hurry`] between them where limits are
//! shared. [`flights`] is what it has to do with the other VMs of the process, [`gate`]
//! whether anybody is asked at all, [`at_work`] is one service of it.

mod answers;
mod at_work;
mod basis;
mod behind;
pub mod bodies;
mod ended;
mod flights;
mod gate;
mod handover;
mod hurry;
mod in_vain;
mod introspection;
mod probes;
mod requests;
mod ticks;
mod tokens;
mod under_way;

use self::at_work::AtWork;
use self::flights::Listening;
use self::in_vain::InVain;
use self::ticks::Rounds;
use self::tokens::Issuers;
use self::under_way::UnderWay;
use super::local_reply::Reply;
use super::logger::Seldom;
use super::seed;
use super::stats::{Counter, UnmatchedHosts};
use super::vm::Shared;
use crate::authorization::{Accuracy, Ahead, Asked, Breaker, Budget, Lifetimes, Question, Units};
use crate::config::{self, Configuration, Replies, ReportingSettings, Service, Trust};
use crate::credentials::{Digest, Kind, Scope};
use crate::mapping::Usage;
use crate::moment::Moment;
use crate::service_management::{Identification, Right, ServiceAccess};
use crate::tokens::TokenDigest;
use crate::usage::{Candidate, Settings, Sweep, TICK_MILLISECONDS, UrgentCalls, tick};
use std::collections::HashMap;

/// A request that is paused until its application is known.
#[derive(Clone)]
struct Waiting {
    stream_id: u32,
    usage: Usage,
    /// What it shows besides the identity.
    shows: Asked,
    /// For how many answers it has waited before.
    answers: u8,
}

/// A question about an unknown application, and everybody who waits for its answer.
struct Fetch {
    service: usize,
    kind: Kind,
    value: Vec<u8>,
    /// What the question shows besides the identity.
    asked: Asked,
    /// When it was put: the answer speaks of that moment, not of when it comes.
    asked_at: Moment,
    /// How many questions led to this one.
    attempt: u8,
    waiting: Vec<Waiting>,
    /// Another VM asks, until then (monotonic milliseconds). `None`: this one does.
    waits_until: Option<u64>,
    /// It has been waited for before, in vain: not a third time.
    again: bool,
}

/// What a call was made for.
enum Call {
    Authorize(Digest),
    /// The same, but no request waits for it yet.
    Behind(Digest),
    Refresh {
        service: usize,
        question: Question,
        /// The answer speaks of this moment, not of when it comes.
        asked: Moment,
    },
    Report {
        service: usize,
        batch: u64,
    },
    /// Which of these metrics the service has.
    Probe {
        service: usize,
        kind: Kind,
        metrics: Vec<String>,
    },
    /// The keys of an issuer's tokens, or the document that says where they are.
    Keys {
        source: usize,
        document: bool,
    },
    /// What a key manager says of an opaque token.
    Introspection {
        service: usize,
        digest: TokenDigest,
    },
    /// Usage of requests that had no record.
    Uncached {
        service: usize,
        units: Units,
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
    in_vain: InVain,
    waiting: usize,
    /// When room may be looked for again (monotonic milliseconds).
    next_room: u64,
    listening: Listening,
    breaker: Breaker,
    budget: Budget,
    refreshes: Budget,
    calls: UnderWay,
    /// Where services have tokens.
    issuers: Issuers,
    unmatched: UnmatchedHosts,
    /// The authority of the last request that was for a service by its host alone, and the
    /// service: most requests are for the host that the one before was for.
    last_host: Option<(Vec<u8>, usize)>,
    sweep: Sweep,
    rounds: Rounds,
    few_refreshes: Seldom,
    urgent_calls: UrgentCalls,
    /// When more than what is urgent is due again (monotonic milliseconds).
    next_full_tick: u64,
    /// When it last ticked, or began (monotonic milliseconds).
    pub ticked_at: u64,
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
        let accuracy = configuration.authorization.accuracy;
        let mut services: Vec<AtWork> = configuration
            .services
            .iter()
            .map(|service| AtWork::new(service, &key, accuracy, shared))
            .collect();
        let issuers = tokens::set_up(&mut services, shared);
        let backend = Scope {
            cluster: configuration.service_management.cluster.clone(),
            authority: configuration.service_management.authority.clone(),
            service: String::new(),
        };
        let breaker = Breaker::new(backend.number());
        let budget = Budget::new(configuration.authorization.unknown_calls_per_second);
        let refreshes = Budget::new(configuration.authorization.refreshes_per_second);
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
            in_vain: InVain::default(),
            waiting: 0,
            next_room: 0,
            listening: Listening::default(),
            breaker,
            budget,
            refreshes,
            calls: UnderWay::default(),
            issuers,
            unmatched: UnmatchedHosts::define(),
            last_host: None,
            sweep: Sweep::default(),
            rounds: Rounds::default(),
            few_refreshes: Seldom::default(),
            urgent_calls: UrgentCalls::default(),
            next_full_tick: 0,
            ticked_at: now.monotonic,
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
        self.calls.contains(token)
    }

    fn leads(&self, service: usize) -> bool {
        self.services
            .get(service)
            .is_some_and(|at_work| at_work.leads)
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

    /// The replies to requests of no service.
    pub const fn general_replies(&self) -> &Replies {
        &self.configuration.replies
    }

    /// What callers of a service are told.
    fn replies(&self, service: usize) -> &Replies {
        match self.configuration.services.get(service) {
            Some(service) => &service.replies,
            None => &self.configuration.replies,
        }
    }
}

fn access(service: &Service) -> ServiceAccess<'_> {
    ServiceAccess {
        id: &service.id,
        right: match &service.right {
            config::Right::ServiceToken(token) => Right::ServiceToken(token.expose()),
            config::Right::ProviderKey(key) => Right::ProviderKey(key.expose()),
        },
    }
}

const fn identification(kind: Kind) -> Identification {
    match kind {
        Kind::UserKey => Identification::UserKey,
        Kind::AppId => Identification::AppId,
    }
}

fn milliseconds(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Between the ticks that do what there is to do: a flush is never late by more than a
/// tenth of its interval, nor a refresh by more than a second. Shorter where there are more
/// services than one tick looks after.
fn tick_milliseconds(configuration: &Configuration) -> u32 {
    let interval = milliseconds(configuration.reporting.interval);
    let period = u32::try_from(tick(interval)).unwrap_or(u32::MAX);
    period.min(ticks::period(configuration.services.len()))
}

/// Between ticks: shorter where limits are shared with other gateways. In between is then only
/// what is urgent.
pub(in crate::host) fn tick_period(configuration: &Configuration) -> u32 {
    let period = tick_milliseconds(configuration);
    match configuration.authorization.accuracy {
        Accuracy::Exact => period,
        Accuracy::Eager { .. } | Accuracy::Strict { .. } => period.min(TICK_MILLISECONDS),
    }
}

fn lifetimes(trust: &Trust, accuracy: Accuracy) -> Lifetimes {
    Lifetimes {
        ttl: milliseconds(trust.ttl),
        negative_ttl: milliseconds(trust.negative_ttl),
        stale_if_error: milliseconds(trust.stale_if_error),
        accuracy,
    }
}

fn settings(reporting: &ReportingSettings, trust: &Trust) -> Settings {
    Settings {
        interval: milliseconds(reporting.interval),
        timeout: milliseconds(reporting.timeout),
        batch: usize::try_from(reporting.batch).unwrap_or(usize::MAX),
        uncertain: reporting.uncertain,
        ahead: ahead(reporting, trust),
    }
}

/// How long before its end an answer in use is asked for again: so that the flush, which
/// sees the records in use, comes by in time; never more than half the lifetime.
fn ahead(reporting: &ReportingSettings, trust: &Trust) -> Ahead {
    let ttl = milliseconds(trust.ttl);
    let interval = milliseconds(reporting.interval);
    Ahead {
        least: (ttl / 4).max(interval.saturating_mul(2)).min(ttl / 2),
        round: interval,
    }
}
