//! The filter in a real Envoy, held against the backend that it asks: the same request is
//! decided by both, on the same state.
//!
//! Apart from [`crate::decisions`], which replays recordings without Envoy: here the
//! backend is there, so that every request can be asked about directly before it is made.
//!
//! Requests are made in rounds, in each one for every application. First the backend is
//! asked about all of them, with their usage predicted; then they go through Envoy; then
//! it is waited for that the usage of those that were let in is reported and counts, all of
//! it. A phase is many rounds, after others have used something or nothing. When a minute
//! ends, windows begin anew, perhaps not at the same moment for both: the round is not
//! judged, and the phase goes on from it with a new gateway.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tollgate_harness::{Client, Echo, Envoy, EnvoyOptions, Plugin};

use crate::cases::{
    Case, Consumer, Mode, UNKNOWN_METRIC, Usage, configuration, consumers_of, host,
    rule_of_unknown_metric, strangers, usages,
};
use crate::data::{Data, Metrics};
use crate::document::Document;
use crate::replay::Answer;
use crate::server::{Server, Wire};

/// Where the filter is not the backend, by design.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ByDesign {
    /// The request costs nothing, and some limit of the plan is overrun. The backend then
    /// refuses, whatever metric is meant; to the filter, what costs nothing cannot be too much.
    NoUsage,
    /// The usage names a metric that the service does not have. The backend refuses the
    /// call; to the filter it is its own misconfiguration, which no consumer can help.
    UnknownMetric,
    /// A `user_key` and an `app_id`. The backend refuses a question with both; the filter
    /// looks for what the service knows applications by, and sends only that.
    BothIds,
    /// A request without an `app_key` for a service with OAuth, whose `oauth` is not
    /// configured. The backend wants no key then; the filter is as strict as for any
    /// other application that has keys.
    NotOauth,
}

impl fmt::Display for ByDesign {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::NoUsage => "a request without usage, when a limit is overrun",
            Self::UnknownMetric => "the usage names an unknown metric",
            Self::BothIds => "a user_key and an app_id",
            Self::NotOauth => "no app_key, for a service with OAuth that is not configured as one",
        })
    }
}

/// What became of all requests.
#[derive(Debug, Default)]
pub struct Compared {
    /// Requests that were decided by both.
    pub decisions: usize,
    /// How many of them both let in.
    pub admitted: usize,
    /// How many of them both refused, by the filter's reason.
    pub refused: BTreeMap<String, usize>,
    /// How many were decided otherwise by design.
    pub by_design: BTreeMap<ByDesign, usize>,
    /// How many usage reports of the backend were found to be what was let in, and no more.
    pub counts: usize,
    /// How often a minute's end had cut a phase in two.
    pub cuts: usize,
    /// Everything else.
    pub differences: Vec<String>,
}

/// How long usage may take from the request until it counts.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long the gateway takes an answer for fresh: whole seconds.
const FRESH: Duration = Duration::from_secs(1);
/// So many seconds of a minute must be left to begin with a phase, and to go on with it.
const ROOM: u64 = 12;
const MORE_ROOM: u64 = 45;

/// What is started for a phase.
pub struct Programs {
    /// Envoy's executable.
    pub envoy: PathBuf,
    /// The filter's module.
    pub module: PathBuf,
}

/// A part of the comparison: usage of others, then requests.
struct Phase {
    name: &'static str,
    /// Application's plan, metric, usage: what others have used before.
    before: &'static [(&'static str, &'static str, u64)],
    /// The same, in the middle of the requests.
    meanwhile: &'static [(&'static str, &'static str, u64)],
    /// Whether wrong credentials are tried.
    wrong_credentials: bool,
}

const PHASES: [Phase; 4] = [
    Phase {
        name: "no usage before",
        before: &[],
        meanwhile: &[],
        wrong_credentials: true,
    },
    Phase {
        name: "at and next to the limits",
        before: &[
            ("free", "hits", 1_000_000),
            ("lim5", "hits", 5),
            ("multi", "orders", 2),
            ("multi", "hits", 6),
            ("multi", "ads", 7),
            ("allp", "orders_vip", 999),
        ],
        meanwhile: &[],
        wrong_credentials: false,
    },
    Phase {
        name: "over the limits",
        before: &[
            ("lim5", "orders", 9),
            ("zero", "hits", 2),
            ("multi", "orders", 4),
            ("allp", "hits", 1_001),
        ],
        meanwhile: &[],
        wrong_credentials: false,
    },
    Phase {
        name: "others use the same limits meanwhile",
        before: &[("multi", "hits", 1)],
        meanwhile: &[
            ("lim5", "hits", 3),
            ("multi", "hits", 4),
            ("multi", "ads", 2),
            ("allp", "orders", 998),
        ],
        wrong_credentials: false,
    },
];

/// Compares decisions. `progress` is told what is going on.
///
/// # Errors
/// Something does not start or does not answer, or the backend does not hold the data.
pub async fn compare(
    wire: &mut Wire,
    programs: &Programs,
    mut progress: impl FnMut(&str),
) -> Result<Compared> {
    let data = Data::read()?;
    let mut compared = Compared::default();
    let echo = Echo::start().await?;
    let rightly: Vec<_> = data
        .services
        .iter()
        .map(|(id, service)| {
            configuration(&data, id, service, Mode::of(service), &data.service_token)
        })
        .collect();
    let mut parts = Vec::new();
    for phase in &PHASES {
        parts.push(Part {
            phase,
            services: rightly.clone(),
            rounds: rounds(&data, phase),
        });
    }
    for wrongs in WRONGS {
        parts.push(misconfigured(&data, wrongs)?);
    }
    for mut part in parts {
        progress(part.phase.name);
        let mut room = ROOM;
        loop {
            wire.room_in_the_minute(room).await;
            room = MORE_ROOM;
            let left = part.rounds.len();
            let mut run = Run::start(wire, programs, &echo, &data, &part.services).await?;
            run.part(&mut part).await.with_context(|| part.phase.name)?;
            compared.add(run.compared);
            if part.rounds.is_empty() {
                break;
            }
            compared.cuts += 1;
            ensure!(part.rounds.len() < left, "no round lies within a minute");
        }
    }
    Ok(compared)
}

/// Requests for a gateway with these services.
struct Part {
    phase: &'static Phase,
    services: Vec<Value>,
    rounds: VecDeque<Round>,
}

/// Requests that do not depend on each other.
struct Round {
    /// The gateway's token for their services.
    token: String,
    cases: Vec<Case>,
}

/// A gateway that knows nobody yet, and what it has let in.
struct Run<'a> {
    wire: &'a mut Wire,
    envoy: Envoy,
    /// Several, so that several of Envoy's workers see requests.
    clients: Vec<Client>,
    data: &'a Data,
    began: Duration,
    requests: usize,
    /// What must count: service, application, metric, with all that counts for it.
    used: BTreeMap<(String, String), BTreeMap<String, u64>>,
    compared: Compared,
}

impl<'a> Run<'a> {
    /// Takes all usage away and starts a gateway with these services.
    async fn start(
        wire: &'a mut Wire,
        programs: &Programs,
        echo: &Echo,
        data: &'a Data,
        services: &[Value],
    ) -> Result<Self> {
        wire.reset().await?;
        let began = wire.clock().unwrap_or_default();
        let authority = wire.authority().to_owned();
        let addresses = tokio::net::lookup_host(&authority).await?;
        let addresses: Vec<SocketAddr> = addresses.collect();
        let address = addresses.iter().find(|address| address.is_ipv4());
        let address = address.or(addresses.first()).context("no address")?;
        let envoy = Envoy::start(EnvoyOptions {
            executable: Some(programs.envoy.clone()),
            module: Some(programs.module.clone()),
            plugin: Plugin::Replace(json!({
                "service_management": {
                    "cluster": "service-management",
                    "authority": authority,
                    "timeout": "30s",
                },
                "services": services,
                "authorization": { "ttl": format!("{}s", FRESH.as_secs()) },
                "reporting": { "interval": "100ms", "timeout": "30s" },
            })),
            upstream: Some(echo.address()),
            service_management: Some(*address),
            ..EnvoyOptions::default()
        })
        .await?;
        let clients = vec![envoy.client()?, envoy.client()?, envoy.client()?];
        Ok(Self {
            wire,
            envoy,
            clients,
            data,
            began,
            requests: 0,
            used: BTreeMap::new(),
            compared: Compared::default(),
        })
    }

    /// Does rounds and takes them out of the part, until it is done or the minute ends.
    async fn part(&mut self, part: &mut Part) -> Result<()> {
        if !self.others_use(part.phase.before).await? {
            return Ok(());
        }
        let half = part.rounds.len() / 2;
        let mut done = 0;
        while let Some(round) = part.rounds.front() {
            if done == half && !part.phase.meanwhile.is_empty() {
                let within = self.others_use(part.phase.meanwhile).await? && self.refresh().await?;
                if !within {
                    return Ok(());
                }
            }
            let Some(concerned) = self.round(round).await? else {
                return Ok(());
            };
            part.rounds.pop_front();
            done += 1;
            if !self.settle(&concerned).await? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// One request for each case, decided by both. Returns the applications that were let in;
    /// none, and nothing is judged, if the minute has ended.
    async fn round(&mut self, round: &Round) -> Result<Option<BTreeSet<(String, String)>>> {
        let Round { token, cases } = round;
        let metrics = &self.data.metrics;
        let mut asked = Vec::new();
        for case in cases {
            let answer = self.wire.ask(&case.question(token)).await?;
            let understood = match case.understood() {
                Some(understood) => {
                    let answer = self.wire.ask(&understood.question(token)).await?;
                    Some((understood, answer))
                }
                None => None,
            };
            asked.push((answer, understood));
        }
        let mut replies = Vec::new();
        for case in cases {
            let number = self.requests;
            self.requests += 1;
            replies.push((number, self.request(case, number).await?));
        }
        let details = self.details(cases, &replies).await?;
        if !self.is_within() {
            return Ok(None);
        }
        let mut concerned = BTreeSet::new();
        for (case, (((answer, understood), (number, status)), details)) in
            cases.iter().zip(asked.iter().zip(&replies).zip(&details))
        {
            if *status == 200
                && let Some(application) = &case.application
            {
                let who = (case.service.clone(), application.clone());
                self.count(&who, &case.usage);
                concerned.insert(who);
            }
            let named = || format!("{}: {:?}", case.path(*number), case.consumer);
            let mut judgement =
                judge(metrics, case, answer, *status, details).with_context(named)?;
            if let Judgement::Differs(_) = &judgement
                && let Some(class) = otherwise_understood(answer)
                && let Some((case, answer)) = understood
            {
                let as_understood =
                    judge(metrics, case, answer, *status, details).with_context(named)?;
                judgement = match as_understood {
                    Judgement::Differs(_) => judgement,
                    _ => Judgement::ByDesign(class),
                };
            }
            self.compared.note(case, judgement);
        }
        Ok(Some(concerned))
    }

    async fn request(&self, case: &Case, number: usize) -> Result<u16> {
        let client = self.clients.get(number % self.clients.len());
        let host = host(&case.service);
        let mut headers = vec![("host", host.as_str())];
        if let Some(referrer) = &case.consumer.referrer {
            headers.push(("referer", referrer));
        }
        let reply = client
            .context("no client")?
            .get(&case.target(number), &headers)
            .await?;
        Ok(reply.status)
    }

    /// What Envoy's access log says of these requests.
    async fn details(&self, cases: &[Case], replies: &[(usize, u16)]) -> Result<Vec<String>> {
        let paths: Vec<_> = cases
            .iter()
            .zip(replies)
            .map(|(case, (number, _))| case.path(*number))
            .collect();
        let all = tollgate_harness::eventually("the access log", PATIENCE, async || {
            let log = self.envoy.access_log().ok()?;
            let by_path: BTreeMap<_, _> = log
                .iter()
                .filter_map(|line| Some((line["path"].as_str()?, line["details"].as_str()?)))
                .collect();
            let found = paths.iter().map(|path| by_path.get(path.as_str()));
            found
                .map(|details| details.map(|details| (*details).to_owned()))
                .collect::<Option<Vec<_>>>()
        });
        all.await
    }

    /// Notes that usage must count for an application, and for all ancestors.
    fn count(&mut self, who: &(String, String), usage: &Usage) {
        let used = self.used.entry(who.clone()).or_default();
        for (metric, charge) in charges(&self.data.metrics, usage) {
            *used.entry(metric).or_default() += charge;
        }
    }

    /// Waits until everything that was used counts, and nothing else does. Says whether it is
    /// still the same minute.
    async fn settle(&mut self, concerned: &BTreeSet<(String, String)>) -> Result<bool> {
        for who in concerned {
            let until = Instant::now() + PATIENCE;
            loop {
                let reports = self.reports(who).await?;
                if !self.is_within() {
                    return Ok(false);
                }
                let used = self.used.get(who).cloned().unwrap_or_default();
                let expected = |metric: &String| used.get(metric).copied().unwrap_or_default();
                if reports
                    .iter()
                    .all(|(metric, count)| *count == expected(metric))
                {
                    self.compared.counts += reports.len();
                    break;
                }
                if Instant::now() > until {
                    let (service, application) = who;
                    let resent = format!("wasmcustom.tollgate.{service}.usage_resent");
                    let resent = self.envoy.stat(&resent).await?;
                    self.compared.differences.push(format!(
                        "service {service}, {application}: {reports:?} counts at the backend, \
                         where {used:?} was let in ({resent} units were sent again)"
                    ));
                    // What follows is held against what the backend has.
                    self.used.insert(who.clone(), reports.into_iter().collect());
                    break;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        Ok(true)
    }

    /// The backend's usage reports for an application: metric and usage, one for each period.
    async fn reports(
        &mut self,
        (service, application): &(String, String),
    ) -> Result<Vec<(String, u64)>> {
        let data = self.data.services.get(service).context("no service")?;
        let consumers = data
            .applications
            .get(application)
            .map(|known| consumers_of(data, application, known));
        let consumer = consumers.and_then(|consumers| consumers.into_iter().next());
        let case = Case {
            service: service.clone(),
            mode: Mode::of(data),
            application: None,
            consumer: consumer.context("no consumer")?,
            usage: Usage::new(),
        };
        let question = case.question(&self.data.service_token);
        let answer = self.wire.ask(&question).await?;
        let document = Document::read(&answer.body)?;
        let reports = document.reports.into_iter();
        Ok(reports
            .map(|report| (report.metric, report.current))
            .collect())
    }

    /// Others use limits: all applications of a plan. Waits until it counts.
    async fn others_use(&mut self, usages: &[(&str, &str, u64)]) -> Result<bool> {
        let mut concerned = BTreeSet::new();
        for (id, service) in &self.data.services {
            let mut reports = Vec::new();
            for (name, application) in &service.applications {
                let who = (id.clone(), name.clone());
                for (_, metric, used) in
                    usages.iter().filter(|(plan, ..)| *plan == application.plan)
                {
                    reports.push((name.as_str(), *metric, used.to_string()));
                    self.count(&who, &Usage::from([((*metric).to_owned(), *used)]));
                    if !consumers_of(service, name, application).is_empty() {
                        concerned.insert(who.clone());
                    }
                }
            }
            if !reports.is_empty() {
                self.wire.report(id, &reports).await?;
            }
        }
        self.settle(&concerned).await
    }

    /// Makes the gateway ask again about all applications that it has records of. Says whether
    /// it is still the same minute.
    async fn refresh(&mut self) -> Result<bool> {
        // Past the time for which answers are fresh, the last of them as well.
        let mut before = self.questions().await?;
        loop {
            tokio::time::sleep(FRESH + Duration::from_millis(200)).await;
            let calls = self.questions().await?;
            if !self.is_within() {
                return Ok(false);
            }
            if calls == before {
                break;
            }
            before = calls;
        }
        let mut poked: u64 = 0;
        for (id, service) in &self.data.services {
            for (name, application) in &service.applications {
                let Some(consumer) = consumers_of(service, name, application).into_iter().next()
                else {
                    continue;
                };
                let case = Case {
                    service: id.clone(),
                    mode: Mode::of(service),
                    application: None,
                    consumer,
                    usage: Usage::new(),
                };
                let number = self.requests;
                self.requests += 1;
                // Only whoever is let in keeps a record in use.
                poked += u64::from(self.request(&case, number).await? == 200);
            }
        }
        let until = Instant::now() + PATIENCE;
        while self.questions().await? < before + poked {
            if !self.is_within() {
                return Ok(false);
            }
            ensure!(Instant::now() < until, "the gateway does not ask again");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // The last of the answers.
        tokio::time::sleep(Duration::from_millis(200)).await;
        Ok(self.is_within())
    }

    async fn questions(&self) -> Result<u64> {
        let stats = self.envoy.stats("wasmcustom.tollgate.").await?;
        // Whoever shows a key that no list tells of is asked about at once, not behind its back.
        let calls = stats.iter().filter(|(name, _)| {
            name.ends_with(".refresh_calls") || name.ends_with(".authorize_calls")
        });
        Ok(calls.map(|(_, count)| count).sum())
    }

    fn is_within(&self) -> bool {
        Wire::within_a_minute(self.began)
    }
}

/// In each round a request for each application, and for nobody.
fn rounds(data: &Data, phase: &Phase) -> VecDeque<Round> {
    let mut queues: Vec<VecDeque<Case>> = Vec::new();
    for (shift, (id, service)) in data.services.iter().enumerate() {
        for (offset, (name, application)) in service.applications.iter().enumerate() {
            let mut consumers = consumers_of(service, name, application);
            if consumers.is_empty() {
                continue;
            }
            if !phase.wrong_credentials {
                consumers.truncate(1);
            }
            let mut usages = usages();
            // Not all begin with the same.
            let middle = (offset + 3 * shift) % usages.len();
            usages.rotate_left(middle);
            let mut queue: VecDeque<_> = VecDeque::new();
            let mut next = (0..consumers.len()).cycle();
            for usage in &usages {
                // Everybody in turn, and the right one in between.
                for consumer in [next.next().unwrap_or_default(), 0] {
                    queue.extend(consumers.get(consumer).map(|consumer| Case {
                        service: id.clone(),
                        mode: Mode::of(service),
                        application: Some(name.clone()),
                        consumer: consumer.clone(),
                        usage: usage.clone(),
                    }));
                    if consumers.len() == 1 {
                        break;
                    }
                }
            }
            queues.push(queue);
        }
        if phase.wrong_credentials {
            let usages = usages();
            let queue = strangers(service).into_iter().zip(usages.iter().cycle());
            queues.push(
                queue
                    .map(|(consumer, usage)| Case {
                        service: id.clone(),
                        mode: Mode::of(service),
                        application: None,
                        consumer,
                        usage: usage.clone(),
                    })
                    .collect(),
            );
        }
    }
    let mut rounds = VecDeque::new();
    loop {
        let cases: Vec<_> = queues.iter_mut().filter_map(VecDeque::pop_front).collect();
        if cases.is_empty() {
            return rounds;
        }
        rounds.push_back(Round {
            token: data.service_token.clone(),
            cases,
        });
    }
}

const MISCONFIGURED: Phase = Phase {
    name: "the gateway is misconfigured",
    before: &[],
    meanwhile: &[],
    wrong_credentials: false,
};

/// A gateway that is wrongly configured for each service.
fn misconfigured(data: &Data, wrongs: &[Wrong]) -> Result<Part> {
    let mut services = Vec::new();
    let mut rounds = VecDeque::new();
    for wrong in wrongs {
        let id = wrong.service;
        let service = data.services.get(id).with_context(|| id.to_owned())?;
        let token = wrong.token.unwrap_or(&data.service_token);
        let mut service = configuration(data, id, service, wrong.mode, token);
        if let Some(rules) = service["mapping_rules"].as_array_mut() {
            rules.push(rule_of_unknown_metric());
        }
        services.push(service);
        for id in wrong.ids {
            let case = Case {
                service: wrong.service.to_owned(),
                mode: wrong.mode,
                application: None,
                consumer: Consumer {
                    label: format!("{} {id}", wrong.mode.id()),
                    credentials: vec![(wrong.mode.id(), (*id).to_owned())],
                    referrer: None,
                },
                usage: Usage::from([(wrong.metric.to_owned(), 1)]),
            };
            rounds.push_back(Round {
                token: token.to_owned(),
                cases: vec![case],
            });
        }
    }
    Ok(Part {
        phase: &MISCONFIGURED,
        services,
        rounds,
    })
}

/// What is wrong about a service's configuration: an unknown metric, the mode or the token.
struct Wrong {
    service: &'static str,
    mode: Mode,
    token: Option<&'static str>,
    metric: &'static str,
    /// Who makes requests.
    ids: &'static [&'static str],
}

/// The service of the data that has OAuth.
const OAUTH_SERVICE: &str = "1003";

const RIGHT: Wrong = Wrong {
    service: "",
    mode: Mode::UserKey,
    token: None,
    metric: "hits",
    ids: &[],
};

const WRONGS: [&[Wrong]; 2] = [
    &[
        Wrong {
            service: "1001",
            metric: UNKNOWN_METRIC,
            ids: &["suspendedkey", "nobody", "key1"],
            ..RIGHT
        },
        Wrong {
            service: "1002",
            ids: &["key1002", "nobody"],
            ..RIGHT
        },
        Wrong {
            service: "1003",
            ids: &["app3"],
            ..RIGHT
        },
        Wrong {
            service: "1004",
            token: Some("not-the-token"),
            ids: &["key4", "nobody"],
            ..RIGHT
        },
    ],
    &[
        Wrong {
            service: "1001",
            mode: Mode::AppId,
            ids: &["app1", "nobody"],
            ..RIGHT
        },
        Wrong {
            service: "1002",
            mode: Mode::Oauth,
            ids: &["app2nokey", "nobody"],
            ..RIGHT
        },
        // Right, but not asked in the way of OAuth.
        Wrong {
            service: OAUTH_SERVICE,
            mode: Mode::AppId,
            ids: &["app3", "nobody"],
            ..RIGHT
        },
        Wrong {
            service: "1004",
            mode: Mode::Oauth,
            ids: &["app4", "nobody"],
            ..RIGHT
        },
    ],
];

/// What there is to say about a request that both have decided.
#[derive(Debug, PartialEq, Eq)]
enum Judgement {
    Admitted,
    Refused(&'static str),
    ByDesign(ByDesign),
    Differs(String),
}

impl Compared {
    fn add(&mut self, more: Self) {
        self.decisions += more.decisions;
        self.admitted += more.admitted;
        self.counts += more.counts;
        for (reason, count) in more.refused {
            *self.refused.entry(reason).or_default() += count;
        }
        for (class, count) in more.by_design {
            *self.by_design.entry(class).or_default() += count;
        }
        self.differences.extend(more.differences);
    }

    fn note(&mut self, case: &Case, judgement: Judgement) {
        self.decisions += 1;
        match judgement {
            Judgement::Admitted => self.admitted += 1,
            Judgement::Refused(reason) => {
                *self.refused.entry(reason.to_owned()).or_default() += 1;
            }
            Judgement::ByDesign(class) => *self.by_design.entry(class).or_default() += 1,
            Judgement::Differs(what) => self.differences.push(format!(
                "service {}, {}, usage {:?}: {what}",
                case.service, case.consumer.label, case.usage
            )),
        }
    }
}

/// Holds the filter's reply (status, and details of the access log) against the backend's.
fn judge(
    metrics: &Metrics,
    case: &Case,
    answer: &Answer,
    status: u16,
    details: &str,
) -> Result<Judgement> {
    let document = Document::read(&answer.body).unwrap_or_default();
    let reason = answer
        .header("3scale-rejection-reason")
        .or(document.error.as_deref());
    let replied = format!("the filter replied {status} ({details})");
    if answer.status == 200 {
        return Ok(match status {
            200 => Judgement::Admitted,
            403 if is_oauth_unknown_to_the_gateway(case)
                && details == "tollgate_application_key_invalid" =>
            {
                Judgement::ByDesign(ByDesign::NotOauth)
            }
            _ => Judgement::Differs(format!("{replied}; the backend allows it")),
        });
    }
    let Some(reason) = reason else {
        bail!(
            "the backend gives no reason: {} {}",
            answer.status,
            answer.body
        );
    };
    if status == 200 {
        let overrun = document.reports.iter().any(|report| report.exceeded);
        return Ok(match reason {
            "limits_exceeded" if case.usage.is_empty() && overrun => {
                Judgement::ByDesign(ByDesign::NoUsage)
            }
            "metric_invalid" if case.usage.contains_key(UNKNOWN_METRIC) => {
                Judgement::ByDesign(ByDesign::UnknownMetric)
            }
            _ => Judgement::Differs(format!("{replied}; the backend refuses: {reason}")),
        });
    }
    let expected = expected(metrics, case, reason, &document);
    let found = expected
        .iter()
        .find(|(expected, name)| status == *expected && details == format!("tollgate_{name}"));
    Ok(match found {
        Some((_, name)) => Judgement::Refused(name),
        None => Judgement::Differs(format!(
            "{replied}; by the backend's reason, {reason}, one of {expected:?}"
        )),
    })
}

fn is_oauth_unknown_to_the_gateway(case: &Case) -> bool {
    case.mode == Mode::AppId && case.service == OAUTH_SERVICE
}

/// Why the backend refuses what the gateway understands in another way.
fn otherwise_understood(answer: &Answer) -> Option<ByDesign> {
    let document = Document::read(&answer.body).unwrap_or_default();
    (document.error.as_deref() == Some("authentication_error")).then_some(ByDesign::BothIds)
}

/// The replies of the filter that say the same as the backend's reason: status and name.
fn expected(
    metrics: &Metrics,
    case: &Case,
    reason: &str,
    document: &Document,
) -> Vec<(u16, &'static str)> {
    match reason {
        "limits_exceeded" => {
            let charges = charges(metrics, &case.usage);
            let disabled = document
                .reports
                .iter()
                .any(|report| report.max == 0 && charges.contains_key(&report.metric));
            // Which of several limits is told is open.
            if disabled {
                vec![(403, "metric_disabled"), (429, "limit_exceeded")]
            } else {
                vec![(429, "limit_exceeded")]
            }
        }
        "user_key_invalid" | "application_not_found" if !case.has_credential() => {
            vec![(401, "no_credential")]
        }
        "user_key_invalid" if case.mode == Mode::UserKey => {
            vec![(403, "user_key_invalid"), (403, "credential_unusable")]
        }
        "application_not_found" if case.mode != Mode::UserKey => {
            vec![(403, "application_not_found"), (403, "credential_unusable")]
        }
        // The service looks for what the gateway does not send.
        "user_key_invalid" | "application_not_found" => vec![(503, "misconfigured")],
        "application_key_invalid" if case.has_blank_key() => vec![(403, "credential_unusable")],
        "application_key_invalid" => vec![(403, "application_key_invalid")],
        "application_not_active" => vec![(403, "application_not_active")],
        "service_not_active" => vec![(403, "service_not_active")],
        "referrer_not_allowed" => vec![(403, "referrer_not_allowed")],
        "not_valid_data" => vec![(403, "credential_unusable")],
        "metric_invalid" | "service_token_invalid" | "oauth_not_enabled" => {
            vec![(503, "misconfigured")]
        }
        _ => Vec::new(),
    }
}

/// What a usage counts on each metric, ancestors included.
fn charges(metrics: &Metrics, usage: &Usage) -> Usage {
    let mut charges = Usage::new();
    for (metric, delta) in usage {
        let mut next = Some(metric);
        while let Some(metric) = next {
            *charges.entry(metric.clone()).or_default() += delta;
            next = metrics.get(metric).and_then(Option::as_ref);
        }
    }
    charges
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(mode: Mode, credentials: &[(&'static str, &str)], usage: &[(&str, u64)]) -> Case {
        let owned = |(name, value): &(&'static str, &str)| (*name, (*value).to_owned());
        let usage = usage.iter();
        Case {
            service: "1001".to_owned(),
            mode,
            application: None,
            consumer: Consumer {
                label: String::new(),
                credentials: credentials.iter().map(owned).collect(),
                referrer: None,
            },
            usage: usage
                .map(|(metric, delta)| ((*metric).to_owned(), *delta))
                .collect(),
        }
    }

    fn metrics() -> Metrics {
        Data::read().unwrap().metrics
    }

    fn hit() -> Case {
        case(Mode::UserKey, &[("user_key", "k")], &[("hits", 1)])
    }

    fn allowed() -> Answer {
        Answer {
            status: 200,
            headers: Vec::new(),
            body: String::new(),
        }
    }

    fn denied(reason: &str, body: &str) -> Answer {
        Answer {
            status: 409,
            headers: vec![("3scale-rejection-reason".to_owned(), reason.to_owned())],
            body: body.to_owned(),
        }
    }

    fn error(code: &str) -> Answer {
        Answer {
            status: 403,
            headers: Vec::new(),
            body: format!("<error code=\"{code}\"/>"),
        }
    }

    fn differs(case: &Case, answer: &Answer, status: u16, details: &str) -> bool {
        let judgement = judge(
            &metrics(),
            case,
            answer,
            status,
            &format!("tollgate_{details}"),
        )
        .unwrap();
        matches!(judgement, Judgement::Differs(_))
    }

    #[test]
    fn both_let_in_or_both_refuse() {
        assert_eq!(
            judge(&metrics(), &hit(), &allowed(), 200, "via_upstream").unwrap(),
            Judgement::Admitted
        );
        assert!(differs(&hit(), &allowed(), 429, "limit_exceeded"));
        assert!(differs(
            &hit(),
            &denied("limits_exceeded", ""),
            200,
            "via_upstream"
        ));
        assert!(!differs(
            &hit(),
            &denied("limits_exceeded", ""),
            429,
            "limit_exceeded"
        ));
    }

    #[test]
    fn the_reason_of_a_refusal_is_compared() {
        let suspended = denied("application_not_active", "");
        assert!(!differs(&hit(), &suspended, 403, "application_not_active"));
        assert!(differs(&hit(), &suspended, 403, "user_key_invalid"));
        assert!(differs(&hit(), &suspended, 429, "limit_exceeded"));
        assert!(differs(&hit(), &suspended, 503, "misconfigured"));
        // A consumer must not be told of our own misconfiguration as an invalid key.
        assert!(differs(
            &hit(),
            &error("service_token_invalid"),
            403,
            "user_key_invalid"
        ));
        assert!(!differs(
            &hit(),
            &error("service_token_invalid"),
            503,
            "misconfigured"
        ));
        assert!(!differs(
            &hit(),
            &error("user_key_invalid"),
            403,
            "user_key_invalid"
        ));
        assert!(differs(
            &hit(),
            &error("user_key_invalid"),
            401,
            "no_credential"
        ));
    }

    #[test]
    fn a_credential_of_the_other_kind_is_none_and_the_other_mode_is_our_fault() {
        let nobody = case(Mode::UserKey, &[("app_id", "a")], &[]);
        assert!(!differs(
            &nobody,
            &error("user_key_invalid"),
            401,
            "no_credential"
        ));
        let wrong_mode = error("application_not_found");
        assert!(!differs(&hit(), &wrong_mode, 503, "misconfigured"));
        assert!(differs(&hit(), &wrong_mode, 403, "application_not_found"));
    }

    #[test]
    fn a_maximum_of_0_may_be_told_as_such_and_no_other_may() {
        let report = |max, current| {
            format!(
                "<status><usage_reports><usage_report metric=\"hits\" period=\"day\">\
                 <max_value>{max}</max_value><current_value>{current}</current_value>\
                 </usage_report></usage_reports></status>"
            )
        };
        let method = case(Mode::UserKey, &[("user_key", "k")], &[("orders_vip", 1)]);
        let off = denied("limits_exceeded", &report(0, 0));
        assert!(!differs(&method, &off, 403, "metric_disabled"));
        let full = denied("limits_exceeded", &report(5, 5));
        assert!(differs(&method, &full, 403, "metric_disabled"));
    }

    #[test]
    fn no_class_excuses_anything_else() {
        let overrun = "<status><usage_reports><usage_report metric=\"hits\" period=\"day\" \
                       exceeded=\"true\"></usage_report></usage_reports></status>";
        let free = case(Mode::UserKey, &[("user_key", "k")], &[]);
        let answer = denied("limits_exceeded", overrun);
        assert_eq!(
            judge(&metrics(), &free, &answer, 200, "via_upstream").unwrap(),
            Judgement::ByDesign(ByDesign::NoUsage)
        );
        assert!(differs(&hit(), &answer, 200, "via_upstream"));
        assert!(differs(
            &hit(),
            &error("metric_invalid"),
            200,
            "via_upstream"
        ));
        let denied = denied("application_key_invalid", "");
        let pair = |mode, key| case(mode, &[("app_id", "a"), ("app_key", key)], &[]);
        let unusable = "credential_unusable";
        assert!(!differs(&pair(Mode::Oauth, " "), &denied, 403, unusable));
        assert!(differs(&pair(Mode::Oauth, "k"), &denied, 403, unusable));
        assert!(differs(&pair(Mode::AppId, " "), &denied, 403, unusable));
    }

    #[test]
    fn every_application_and_every_stranger_has_its_turn() {
        let data = Data::read().unwrap();
        let rounds = rounds(&data, &PHASES[0]);
        let mut who: BTreeMap<(String, String), usize> = BTreeMap::new();
        for round in &rounds {
            let mut applications = BTreeSet::new();
            for case in &round.cases {
                let label = (case.service.clone(), case.consumer.label.clone());
                *who.entry(label).or_default() += 1;
                if let Some(application) = &case.application {
                    let one = applications.insert((case.service.clone(), application.clone()));
                    assert!(one, "requests of a round do not depend on each other");
                }
            }
        }
        for (id, service) in &data.services {
            for (name, application) in &service.applications {
                for consumer in consumers_of(service, name, application) {
                    assert!(
                        who.contains_key(&(id.clone(), consumer.label.clone())),
                        "{consumer:?}"
                    );
                }
            }
            for stranger in strangers(service) {
                assert!(
                    who.contains_key(&(id.clone(), stranger.label.clone())),
                    "{stranger:?}"
                );
            }
        }
    }
}
