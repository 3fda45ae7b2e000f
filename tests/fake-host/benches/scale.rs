//! What a gateway does as it grows, measured inside of this process: what a decision costs by
//! the number of applications, how often workers collide on one record, and what the backend
//! is asked and told.
//!
//! Apart from the benches of the filter because the last two need a host. Prints one
//! JSON object for each part; `cargo xtask bench` runs it and draws conclusions.
//!
//! `cargo bench --profile measured -p tollgate-fake-host --bench scale -- [--quick] [known|contention|economy]…`

#![allow(missing_docs)]

use std::borrow::Cow;
use std::cell::Cell;
use std::hint::black_box;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tollgate::authorization::{
    Accuracy, Applications, Identity, Lifetimes, Period, Shown, Verdict,
};
use tollgate::credentials::{Credential, Identities, Kind, Scope};
use tollgate::mapping::{Metrics, Usage};
use tollgate::moment::Moment;
use tollgate::service_management::{Authorization, UsageReport};
use tollgate::shared_data::{SetError, SharedData, Token};
use tollgate_fake_host::{FakeEnvoy, LogLevel, Outcome, Worker, accepted, authorized, run_at_once};
use tollgate_shared_data::Memory;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let quick = arguments.iter().any(|it| it == "--quick");
    let wanted = |part: &str| {
        let mut parts = arguments.iter().filter(|it| !it.starts_with("--"));
        arguments.iter().all(|it| it.starts_with("--")) || parts.any(|it| it == part)
    };
    let mut results = serde_json::Map::new();
    let mut part = |name: &str, measure: fn(bool) -> Vec<Value>| {
        if wanted(name) {
            results.insert(name.to_owned(), Value::Array(measure(quick)));
        }
    };
    part("known", known);
    part("contention", contention);
    part("economy", economy);
    println!("{}", Value::Object(results));
}

fn say(what: &str) {
    eprintln!("{what}");
}

// ----- What a decision costs, by the number of applications.

/// Shared data that counts.
#[derive(Default)]
struct Counted {
    memory: Memory,
    reads: Cell<u64>,
    writes: Cell<u64>,
}

impl SharedData for Counted {
    fn get(&self, key: &[u8], into: &mut Vec<u8>) -> Result<Token, SetError> {
        self.reads.set(self.reads.get() + 1);
        self.memory.get(key, into)
    }

    fn set(&self, key: &[u8], value: &[u8], token: Token) -> Result<(), SetError> {
        self.writes.set(self.writes.get() + 1);
        self.memory.set(key, value, token)
    }
}

/// A gateway's core with some applications, each with one limit.
struct Core {
    data: Counted,
    applications: Applications,
    identities: Identities,
    metrics: Metrics,
    usage: Usage,
    number: u64,
    next: u64,
}

const NOW: Moment = Moment {
    wall: 1_795_294_020_000,
    monotonic: 5_000,
};

impl Core {
    fn new(capacity: u32, number: u64) -> Self {
        let data = Counted::default();
        let applications = Applications::open(&data, capacity);
        let orders_of_hits = [
            ("hits".to_owned(), None),
            ("orders".to_owned(), Some("hits".to_owned())),
        ];
        let metrics = Metrics::new(orders_of_hits).expect("metrics");
        let mut usage = Usage::new();
        usage.add(metrics.id("orders").expect("a metric"), 1);
        let scope = Scope {
            cluster: "c".into(),
            authority: "a".into(),
            service: "1".into(),
        };
        let mut core = Self {
            data,
            applications,
            identities: Identities::new(&[7; 16], &scope),
            metrics,
            usage,
            number,
            next: 0,
        };
        core.introduce();
        core
    }

    fn introduce(&mut self) {
        let period = Period::Eternity;
        let answer = Authorization {
            limits: vec![UsageReport {
                metric: "hits".to_owned(),
                period,
                window: period.window_at(NOW.seconds()),
                maximum: u64::MAX / 2,
                current: 0,
            }],
            hierarchy: Vec::new(),
            app_keys: None,
        };
        let lifetimes = Lifetimes {
            ttl: u64::MAX,
            negative_ttl: 1,
            stale_if_error: 0,
            accuracy: Accuracy::Exact,
        };
        for number in 0..self.number {
            with_identity(&self.identities, number, |identity| {
                // An error is a full set: that application stays unknown. Usage that nobody
                // has reported keeps a record in its slot.
                let (applications, data) = (&mut self.applications, &self.data);
                let learned =
                    applications.learn(data, identity, &answer, &self.metrics, NOW, &lifetimes);
                if learned.is_ok() {
                    let _ = applications.decide(data, identity, &self.usage, &self.metrics, NOW);
                }
            });
        }
    }

    /// So many decisions, each about another application; of all in turn, in no order that
    /// memory would like. Returns nanoseconds of each, and how many were about a known one.
    fn decide(&mut self, count: u64, now: Moment) -> (f64, u64) {
        let mut known = 0;
        let start = Instant::now();
        for _ in 0..count {
            self.next = (self.next + 618_033) % self.number;
            let (applications, data) = (&mut self.applications, &self.data);
            with_identity(&self.identities, self.next, |identity| {
                let identity = black_box(identity);
                match applications.decide(data, identity, &self.usage, &self.metrics, now) {
                    Ok(Verdict::Admitted { .. }) => known += 1,
                    Ok(Verdict::Unknown) => {}
                    other => panic!("{other:?}"),
                }
            });
        }
        (start.elapsed().as_nanos() as f64 / count as f64, known)
    }
}

fn with_identity<R>(
    identities: &Identities,
    number: u64,
    with: impl FnOnce(&Identity<'_>) -> R,
) -> R {
    let key = key(number);
    let credential = Credential::new(Kind::UserKey, Cow::Borrowed(key.as_slice())).expect("a key");
    with(&Identity {
        digest: identities.digest(&credential),
        scope: 1,
        kind: Kind::UserKey,
        value: &key,
        tells: false,
        shown: Shown::default(),
    })
}

/// A key of 16 bytes; `format!` would cost as much as the decision.
fn key(number: u64) -> [u8; 16] {
    let mut key = *b"application-0000";
    let (mut rest, mut place) = (number, key.len());
    while rest > 0 {
        place -= 1;
        key[place] = b"0123456789abcdef"[(rest % 16) as usize];
        rest /= 16;
    }
    key
}

fn known(quick: bool) -> Vec<Value> {
    const DECISIONS: u64 = 20_000;
    let rounds = if quick { 5 } else { 15 };
    let (numbers, capacities): (&[u64], &[u32]) = if quick {
        (&[10, 1_000, 100_000], &[16_384, 131_072])
    } else {
        (
            &[10, 100, 1_000, 10_000, 100_000, 1_000_000],
            &[16_384, 131_072, 1_048_576],
        )
    };
    let mut rows = Vec::new();
    for capacity in capacities {
        say(&format!("decisions through a table of {capacity}"));
        let mut cores: Vec<_> = numbers.iter().map(|it| Core::new(*capacity, *it)).collect();
        let mut times = vec![Vec::new(); cores.len()];
        let mut known = vec![0; cores.len()];
        for core in &cores {
            core.data.reads.set(0);
            core.data.writes.set(0);
        }
        for _ in 0..rounds {
            for (turn, core) in cores.iter_mut().enumerate() {
                let (nanoseconds, admitted) = core.decide(DECISIONS, NOW);
                times[turn].push(nanoseconds);
                known[turn] += admitted;
            }
        }
        for (turn, core) in cores.iter_mut().enumerate() {
            let decisions = (DECISIONS * rounds) as f64;
            let (reads, writes) = (core.data.reads.get(), core.data.writes.get());
            // Each application's first request of a minute.
            let next_minute = Moment {
                wall: NOW.wall + 60_000,
                monotonic: NOW.monotonic + 60_000,
            };
            let (first, _) = core.decide(core.number.min(DECISIONS), next_minute);
            rows.push(json!({
                "capacity": capacity,
                "applications": core.number,
                "ns": median(&mut times[turn]),
                "ns_first_of_a_minute": first,
                "known": known[turn] as f64 / decisions,
                "reads": reads as f64 / decisions,
                "writes": writes as f64 / decisions,
            }));
        }
    }
    rows
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

// ----- How often workers collide on one record.

fn configuration(changes: &Value) -> String {
    let service = json!({
        "id": "1001",
        "token": "token",
        "hosts": ["*"],
        "mapping_rules": [{ "pattern": "/", "usage": { "hits": 1 } }],
    });
    let mut whole = json!({
        "service_management": { "cluster": "service-management", "authority": "backend" },
        "services": [service],
        "authorization": { "unknown_calls_per_second": 1_000_000 },
        "reporting": {},
    });
    for (part, fields) in changes.as_object().into_iter().flatten() {
        for (name, value) in fields.as_object().into_iter().flatten() {
            whole[part][name] = value.clone();
        }
    }
    whole.to_string()
}

/// A process whose service management knows every application, with a limit that nobody
/// reaches, and takes every report.
fn envoy() -> FakeEnvoy {
    let envoy = FakeEnvoy::new()
        .cluster("service-management")
        .log_level(LogLevel::Critical);
    let clock = envoy.clone();
    envoy.answer_with(move |call| {
        Some(match call.path() {
            "/transactions.xml" => accepted(),
            _ => authorized()
                .limit("hits", "eternity", 1_000_000_000_000, 0)
                .at(clock.wall_ms()),
        })
    });
    envoy
}

fn stat(envoy: &FakeEnvoy, name: &str) -> u64 {
    envoy.stat(&format!("tollgate.1001.{name}"))
}

/// Asks for an application's first time and lets the answer come; then it is known.
fn introduce(worker: &Worker, path: &str) {
    if let Outcome::Paused(stream) = worker.request().get(path).send() {
        worker.answer_all(|_| {
            authorized()
                .limit("hits", "eternity", 1_000_000_000_000, 0)
                .at(FakeEnvoy::START_MS)
        });
        assert!(worker.poll(stream).continued(), "not admitted");
    }
}

fn contention(quick: bool) -> Vec<Value> {
    let requests: u32 = if quick { 20_000 } else { 100_000 };
    let rounds = if quick { 3 } else { 5 };
    let mut rows = Vec::new();
    for forced in [false, true] {
        for workers in [1_u32, 2, 4, 8, 16] {
            say(&format!(
                "{workers} workers on one record{}",
                if forced { ", made to collide" } else { "" }
            ));
            let mut per_second = Vec::new();
            let (mut admitted, mut refused, mut attempts, mut mismatches) = (0, 0, 0, 0);
            for _ in 0..rounds {
                let envoy = envoy();
                let all: Vec<Worker> = (0..workers)
                    .map(|_| envoy.configured_worker(&configuration(&Value::Null)))
                    .collect();
                introduce(&all[0], "/?user_key=hot");
                if forced {
                    envoy.collide();
                }
                let before = envoy.compare_and_sets();
                let start = Instant::now();
                let outcomes = run_at_once(&all, move |worker| {
                    let mut admitted = 0_u64;
                    for _ in 0..requests / workers {
                        let outcome = worker.request().get("/?user_key=hot").send();
                        admitted += u64::from(outcome.continued());
                    }
                    admitted
                });
                let elapsed = start.elapsed().as_secs_f64();
                let after = envoy.compare_and_sets();
                let all = u64::from(requests / workers * workers);
                let round: u64 = outcomes.iter().sum();
                admitted += round;
                refused += all - round;
                attempts += after.attempts - before.attempts;
                mismatches += after.mismatches - before.mismatches;
                per_second.push(all as f64 / elapsed);
            }
            rows.push(json!({
                "workers": workers,
                "forced": forced,
                "requests_per_second": median(&mut per_second),
                "attempts_per_admitted": attempts as f64 / admitted as f64,
                "mismatches_per_admitted": mismatches as f64 / admitted as f64,
                "refused": refused,
            }));
        }
    }
    rows
}

// ----- What the backend is asked and told.

/// Requests a second.
const RATE: u64 = 1_000;

#[derive(Clone, Copy)]
struct Setting {
    applications: u64,
    ttl: u64,
    interval: u64,
}

fn economy(quick: bool) -> Vec<Value> {
    let usual = Setting {
        applications: 1_000,
        ttl: 60,
        interval: 10,
    };
    let mut settings = Vec::new();
    for applications in [10, 100, 1_000, 10_000] {
        settings.push(Setting {
            applications,
            ..usual
        });
    }
    for ttl in [10, 300, 600] {
        settings.push(Setting { ttl, ..usual });
    }
    for interval in [1, 30, 60] {
        settings.push(Setting { interval, ..usual });
    }
    if quick {
        settings.retain(|it| it.ttl <= 60 && it.applications <= 1_000);
    }
    let queue = Mutex::new(settings.iter().enumerate());
    let rows = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().expect("no panic").next();
                    let Some((number, setting)) = next else { break };
                    let row = economy_of(*setting, if quick { 200 } else { 1_000 });
                    rows.lock().expect("no panic").push((number, row));
                }
            });
        }
    });
    let mut rows = rows.into_inner().expect("no panic");
    rows.sort_by_key(|(number, _)| *number);
    rows.into_iter().map(|(_, row)| row).collect()
}

/// So many seconds of traffic, after as many as it takes until nothing of the beginning is left.
fn economy_of(setting: Setting, seconds: u64) -> Value {
    let Setting {
        applications,
        ttl,
        interval,
    } = setting;
    say(&format!(
        "{applications} applications, ttl {ttl} s, interval {interval} s"
    ));
    let envoy = envoy();
    let worker = envoy.configured_worker(&configuration(&json!({
        "authorization": { "ttl": format!("{ttl}s") },
        "reporting": { "interval": format!("{interval}s") },
    })));
    let on_its_thread = worker.clone();
    worker.run(move || {
        let worker = on_its_thread;
        let paths: Vec<String> = (0..applications)
            .map(|it| format!("/?user_key=k{it}"))
            .collect();
        // Minutes of the calendar begin between ticks, as anywhere.
        envoy.advance(Duration::from_millis(300));
        for path in &paths {
            introduce(&worker, path);
        }
        let mut next = 0;
        let mut pass = |seconds: u64| {
            for _ in 0..seconds {
                for _ in 0..4 {
                    for _ in 0..RATE / 4 {
                        next = (next + 618_033) % applications;
                        let path = &paths[next as usize];
                        if let Outcome::Paused(stream) = worker.request().get(path).send() {
                            worker.answer_all(|_| authorized().at(envoy.wall_ms()));
                            worker.poll(stream);
                        }
                    }
                    envoy.advance(Duration::from_millis(250));
                }
                worker.tick();
            }
        };
        pass(2 * ttl.max(interval));
        let counters = [
            "requests_admitted",
            "authorize_calls",
            "refresh_calls",
            "report_calls",
            "probe_calls",
        ];
        let read = || counters.map(|name| stat(&envoy, name));
        let before = read();
        pass(seconds);
        let after = read();
        let [admitted, authorize, refresh, report, probe] =
            std::array::from_fn(|it| after[it] - before[it]);
        json!({
            "applications": applications,
            "ttl": ttl,
            "interval": interval,
            "rate": RATE,
            "seconds": seconds,
            "admitted": admitted,
            "authorize_calls": authorize,
            "refresh_calls": refresh,
            "report_calls": report,
            "probe_calls": probe,
        })
    })
}
