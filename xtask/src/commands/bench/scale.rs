//! `cargo xtask bench --scale`: what a request costs as a gateway grows, in one respect at a
//! time. `cargo xtask curves` draws the JSON.
//!
//! In Envoy, each size is an Envoy of its own; those of one curve, and one without a filter,
//! take turns, as in the usual bench. What an Envoy is too noisy or too slow for is measured
//! [`super::inside`] of a process.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::json;
use service_management::{Dataset, Options, StandIn};
use tollgate_harness::{Envoy, EnvoyOptions, Plugin};

use super::gateway::{self, Counts, Size};
use super::inside::{self, Contention, Known};
use super::load::{Cycle, cycle};
use super::{median, variant};

/// The JSON of a run.
#[derive(Debug, Serialize, Deserialize)]
pub struct Results {
    pub quick: bool,
    pub cores: usize,
    /// In Envoy: known applications, rules, services, limits, workers.
    pub curves: Vec<Curve>,
    /// In Envoy: more applications than there is room for.
    pub beyond: Vec<Beyond>,
    /// In the core: a decision.
    pub known: Vec<Known>,
    /// On the fake host: one record.
    pub contention: Vec<Contention>,
}

/// Sizes that were measured in turns.
#[derive(Debug, Serialize, Deserialize)]
pub struct Curve {
    /// Which respect: `applications`, `rules`, `services`, `limits` or `workers`.
    pub of: String,
    /// `authorization.capacity`.
    pub capacity: u32,
    /// Without a filter.
    pub base_cpu_us: f64,
    pub points: Vec<Point>,
}

/// Medians over the rounds of one size.
#[derive(Debug, Serialize, Deserialize)]
pub struct Point {
    pub size: u64,
    /// Envoy's CPU time, all threads, per request.
    pub cpu_us_per_request: f64,
    /// The above less that of no filter in the same round.
    pub added_cpu_us: f64,
    pub requests_per_second: f64,
    /// Questions and reports, of all rounds.
    pub calls_per_request: f64,
}

/// Applications beyond what the table holds.
#[derive(Debug, Serialize, Deserialize)]
pub struct Beyond {
    pub applications: u64,
    pub capacity: u32,
    pub unknown_calls_per_second: u32,
    pub cpu_us_per_request: f64,
    pub added_cpu_us: f64,
    pub requests_per_second: f64,
    /// The part of the requests that was let through.
    pub admitted: f64,
    /// Answers for applications that found no place, for each request.
    pub uncached: f64,
    pub calls_per_request: f64,
}

/// What all of it needs.
pub struct Tools<'a> {
    pub envoy: &'a Path,
    pub wrk: &'a Path,
    pub module: PathBuf,
    pub quick: bool,
}

/// One Envoy of a curve.
struct Contender {
    size: u64,
    envoy: Envoy,
    cycle: Cycle,
    /// Questions after which everything is known; 0 without a filter.
    to_learn: u64,
    /// Whether all requests must be let through.
    all_pass: bool,
    sent: u64,
    rounds: Vec<Round>,
}

struct Round {
    cpu_us: f64,
    requests_per_second: f64,
    counts: Counts,
}

const CONNECTIONS: u32 = 16;
/// Learning everything takes seconds; nothing waits so long unless something is wrong.
const PATIENCE: Duration = Duration::from_secs(180);

/// Measures all curves. Progress goes to stderr.
pub async fn measure(tools: &Tools<'_>) -> Result<Results> {
    let pick = |all: &[u64], quick: &[u64]| {
        if tools.quick {
            quick.to_vec()
        } else {
            all.to_vec()
        }
    };
    let upstream = variant::upstream(tools.envoy).await?;
    let service_management = gateway::service_management(tools.envoy).await?;
    let stand = Stand {
        tools,
        upstream: &upstream,
        service_management: &service_management,
    };
    let mut curves = Vec::new();
    for (capacity, sizes) in [
        (16_384, pick(&[10, 100, 1_000, 10_000], &[10, 10_000])),
        (131_072, pick(&[10, 1_000, 10_000, 100_000], &[10, 10_000])),
    ] {
        let mut contenders = Vec::new();
        for size in sizes {
            let gateway = Size {
                capacity,
                ..Size::default()
            };
            contenders.push(stand.gateway(size, gateway, size).await?);
        }
        curves.push(stand.curve("applications", capacity, contenders).await?);
    }
    let mut contenders = Vec::new();
    for rules in pick(&[1, 10, 100, 1_000, 10_000], &[1, 1_000, 10_000]) {
        let gateway = Size {
            rules,
            ..Size::default()
        };
        contenders.push(stand.gateway(rules, gateway, 1).await?);
    }
    curves.push(stand.curve("rules", 16_384, contenders).await?);
    let mut contenders = Vec::new();
    for services in pick(&[1, 10, 100, 1_000], &[1, 1_000]) {
        let gateway = Size {
            services,
            ..Size::default()
        };
        contenders.push(stand.gateway(services, gateway, 1).await?);
    }
    curves.push(stand.curve("services", 16_384, contenders).await?);

    let limited = with_limits().await?;
    let mut contenders = Vec::new();
    for limits in pick(&[0, 1, 5, 10, 20], &[0, 20]) {
        contenders.push(stand.limited(limits, &limited).await?);
    }
    curves.push(stand.curve("limits", 16_384, contenders).await?);

    curves.push(stand.workers(1).await?);
    curves.push(stand.workers(2).await?);
    let beyond = stand.beyond().await?;
    drop((upstream, service_management));
    let parts = ["known", "contention"];
    let quick = tools.quick;
    let inside = tokio::task::spawn_blocking(move || inside::measure(&parts, quick)).await??;
    Ok(Results {
        quick: tools.quick,
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        curves,
        beyond,
        known: inside.known,
        contention: inside.contention,
    })
}

/// What stands around the Envoys that are measured.
struct Stand<'a> {
    tools: &'a Tools<'a>,
    upstream: &'a Envoy,
    service_management: &'a Envoy,
}

impl Stand<'_> {
    async fn start(&self, options: EnvoyOptions) -> Result<Envoy> {
        Envoy::start(EnvoyOptions {
            executable: Some(self.tools.envoy.to_owned()),
            ..options
        })
        .await
    }

    async fn gateway(&self, size: u64, gateway: Size, keys: u64) -> Result<Contender> {
        let options = gateway::options(
            self.tools.module.clone(),
            gateway.plugin(),
            self.upstream.address(),
            self.service_management.address(),
        );
        let hosts = gateway.services;
        Ok(Contender {
            size,
            envoy: self.start(options).await?,
            cycle: Cycle { keys, hosts },
            to_learn: keys.max(hosts),
            all_pass: true,
            sent: 0,
            rounds: Vec::new(),
        })
    }

    /// One application with so many limits.
    async fn limited(&self, limits: u64, service_management: &StandIn) -> Result<Contender> {
        let service = json!({
            "id": format!("limits-{limits}"),
            "token": { "env": "TG_SERVICE_TOKEN" },
            "hosts": ["*"],
            "credentials": { "user_key": [{ "header": "x-api-key" }] },
            "metrics": { "orders": { "parent": "hits" }, "hits": { "parent": "all" }, "all": {} },
            "mapping_rules": [{ "pattern": "/v1/orders", "usage": { "orders": 1 }, "last": true }],
        });
        let plugin = Plugin::Replace(json!({
            "service_management": { "cluster": "service-management", "authority": "backend" },
            "services": [service],
            "authorization": { "ttl": "1d" },
            "reporting": { "interval": "60s" },
        }));
        let options = gateway::options(
            self.tools.module.clone(),
            plugin,
            self.upstream.address(),
            service_management.address(),
        );
        Ok(Contender {
            size: limits,
            envoy: self.start(options).await?,
            cycle: Cycle { keys: 1, hosts: 1 },
            to_learn: 1,
            all_pass: true,
            sent: 0,
            rounds: Vec::new(),
        })
    }

    async fn without_filter(&self, workers: u32, cycle: Cycle) -> Result<Contender> {
        let options = EnvoyOptions {
            filters: Some(Vec::new()),
            upstream: Some(self.upstream.address()),
            concurrency: workers,
            ..variant::quiet()
        };
        Ok(Contender {
            size: 0,
            envoy: self.start(options).await?,
            cycle,
            to_learn: 0,
            all_pass: true,
            sent: 0,
            rounds: Vec::new(),
        })
    }

    /// All workers of an Envoy on one record.
    async fn workers(&self, workers: u32) -> Result<Curve> {
        let options = EnvoyOptions {
            concurrency: workers,
            ..gateway::options(
                self.tools.module.clone(),
                Size::default().plugin(),
                self.upstream.address(),
                self.service_management.address(),
            )
        };
        let contender = Contender {
            size: workers.into(),
            envoy: self.start(options).await?,
            cycle: Cycle { keys: 1, hosts: 1 },
            to_learn: 1,
            all_pass: true,
            sent: 0,
            rounds: Vec::new(),
        };
        let base = self.without_filter(workers, contender.cycle).await?;
        let contenders = self.take_turns("workers", base, vec![contender]).await?;
        curve("workers", 16_384, &contenders)
    }

    async fn curve(&self, of: &str, capacity: u32, contenders: Vec<Contender>) -> Result<Curve> {
        let largest = contenders.last().context("a curve has a point")?.cycle;
        let base = self.without_filter(1, largest).await?;
        let contenders = self.take_turns(of, base, contenders).await?;
        curve(of, capacity, &contenders)
    }

    async fn beyond(&self) -> Result<Vec<Beyond>> {
        let all: &[(u64, u32)] = if self.tools.quick {
            &[(1_000_000, 100)]
        } else {
            &[(100_000, 100), (1_000_000, 100), (1_000_000, 1_000_000)]
        };
        let mut contenders = Vec::new();
        for (keys, unknown_calls) in all {
            let gateway = Size {
                unknown_calls: *unknown_calls,
                ..Size::default()
            };
            let mut contender = self.gateway(*keys, gateway, *keys).await?;
            // Until every slot is taken, where the budget lets that happen.
            contender.to_learn = if *unknown_calls > 100 { 40_000 } else { 1 };
            contender.all_pass = false;
            contenders.push(contender);
        }
        let base = self.without_filter(1, contenders[0].cycle).await?;
        let contenders = self
            .take_turns("applications beyond capacity", base, contenders)
            .await?;
        let curve = curve("beyond", 16_384, &contenders)?;
        let rows = all.iter().zip(&contenders[1..]).zip(curve.points);
        Ok(rows
            .map(|(((applications, unknown_calls), contender), point)| {
                let total = contender.total();
                let requests = total.completed.max(1) as f64;
                Beyond {
                    applications: *applications,
                    capacity: 16_384,
                    unknown_calls_per_second: *unknown_calls,
                    cpu_us_per_request: point.cpu_us_per_request,
                    added_cpu_us: point.added_cpu_us,
                    requests_per_second: point.requests_per_second,
                    admitted: total.ok as f64 / requests,
                    uncached: total.uncached as f64 / requests,
                    calls_per_request: point.calls_per_request,
                }
            })
            .collect())
    }

    /// Makes everything known, then measures in turns. The first of what is returned is `base`.
    async fn take_turns(
        &self,
        of: &str,
        base: Contender,
        mut contenders: Vec<Contender>,
    ) -> Result<Vec<Contender>> {
        contenders.insert(0, base);
        for contender in &mut contenders {
            contender.learn(self.tools.wrk).await?;
        }
        let rounds = if self.tools.quick { 3 } else { 7 };
        for round in 0..rounds {
            let mut line = format!("{of}, round {}/{rounds}:", round + 1);
            for turn in 0..contenders.len() {
                // Each has each place in the order equally often.
                let place = (turn + round) % contenders.len();
                let contender = &mut contenders[place];
                let figures = contender.round(self.tools.wrk, 1).await?;
                let name = match place {
                    0 => "none".to_owned(),
                    _ => contender.size.to_string(),
                };
                line.push_str(&format!("  {name} {:.1}", figures.cpu_us));
                contender.rounds.push(figures);
            }
            eprintln!("{line} µs");
        }
        // Workers tell what they admitted on their ticks.
        tokio::time::sleep(Duration::from_secs(2)).await;
        for contender in &contenders {
            let admitted = Counts::read(&contender.envoy).await?.admitted;
            ensure!(
                contender.to_learn == 0 || !contender.all_pass || admitted >= contender.sent,
                "{} requests were let through, {admitted} by the filter (size {})",
                contender.sent,
                contender.size
            );
        }
        Ok(contenders)
    }
}

impl Contender {
    /// Makes all requests of the cycle until everything that they need is known.
    async fn learn(&mut self, wrk: &Path) -> Result<()> {
        let until = Instant::now() + PATIENCE;
        let mut told = Instant::now();
        loop {
            self.round(wrk, 1).await?;
            let counts = Counts::read(&self.envoy).await?;
            if counts.questions >= self.to_learn && self.sent >= self.to_learn {
                // Once more, now that nothing is to be asked.
                self.round(wrk, 1).await?;
                return Ok(());
            }
            if told.elapsed() > Duration::from_secs(10) {
                told = Instant::now();
                eprintln!("{} of {} are known", counts.questions, self.to_learn);
            }
            ensure!(
                Instant::now() < until,
                "after {PATIENCE:?} {} of {} are known",
                counts.questions,
                self.to_learn
            );
        }
    }

    async fn round(&mut self, wrk: &Path, seconds: u32) -> Result<Round> {
        let before = Counts::read(&self.envoy).await?;
        let cpu_before = self.envoy.cpu_time()?;
        let url = self.envoy.url();
        let load = cycle(wrk, &url, self.cycle, self.sent, CONNECTIONS, seconds).await?;
        let cpu = self.envoy.cpu_time()?.saturating_sub(cpu_before);
        let counts = Counts::read(&self.envoy).await?.since(before);
        self.sent += load.requests;
        // wrk leaves out what is under way when it stops.
        let most = load.requests + u64::from(CONNECTIONS);
        ensure!(
            (load.requests..=most).contains(&counts.completed),
            "of {} requests, Envoy knows {}",
            load.requests,
            counts.completed
        );
        ensure!(
            !self.all_pass || (load.refused == 0 && counts.ok == counts.completed),
            "{} of {} requests were refused (size {}): {:?}",
            load.refused,
            counts.completed,
            self.size,
            counts,
        );
        Ok(Round {
            cpu_us: cpu.as_secs_f64() * 1e6 / counts.completed as f64,
            requests_per_second: load.requests_per_second(),
            counts,
        })
    }

    fn total(&self) -> Counts {
        let mut sum = Counts::default();
        for round in &self.rounds {
            let counts = round.counts;
            sum.completed += counts.completed;
            sum.ok += counts.ok;
            sum.admitted += counts.admitted;
            sum.questions += counts.questions;
            sum.reports += counts.reports;
            sum.uncached += counts.uncached;
        }
        sum
    }

    fn over(&self, figure: impl Fn(&Round) -> f64) -> f64 {
        median(self.rounds.iter().map(figure).collect())
    }
}

/// The medians; the first contender is the one without a filter.
fn curve(of: &str, capacity: u32, contenders: &[Contender]) -> Result<Curve> {
    let (base, others) = contenders.split_first().context("nothing was measured")?;
    let points = others.iter().map(|contender| {
        let added = contender.rounds.iter().zip(&base.rounds);
        let total = contender.total();
        Point {
            size: contender.size,
            cpu_us_per_request: contender.over(|it| it.cpu_us),
            added_cpu_us: median(added.map(|(it, base)| it.cpu_us - base.cpu_us).collect()),
            requests_per_second: contender.over(|it| it.requests_per_second),
            calls_per_request: (total.questions + total.reports) as f64
                / total.completed.max(1) as f64,
        }
    });
    Ok(Curve {
        of: of.to_owned(),
        capacity,
        base_cpu_us: base.over(|it| it.cpu_us),
        points: points.collect(),
    })
}

/// Applications with 0 to 20 limits, each in a service of its own. All limits concern each
/// request: it is an order, orders are hits, and hits are part of all.
async fn with_limits() -> Result<StandIn> {
    let mut yaml = String::from("service_token: svc-token\n");
    yaml.push_str("metrics: { all: null, hits: all, orders: hits }\nplans:\n");
    let mut services = String::from("services:\n");
    for limits in [0, 1, 5, 10, 20] {
        yaml.push_str(&format!("  of-{limits}:\n{}", plan(limits)));
        services.push_str(&format!(
            "  limits-{limits}:\n    backend_version: \"1\"\n    applications:\n      one: {{ plan: of-{limits}, user_key: k0000000 }}\n"
        ));
    }
    yaml.push_str(&services);
    Ok(StandIn::start(Dataset::from_yaml(&yaml)?, Options::default()).await?)
}

/// A plan with so many limits that nobody reaches.
fn plan(limits: usize) -> String {
    const PERIODS: [&str; 7] = ["eternity", "year", "month", "week", "day", "hour", "minute"];
    let mut plan = String::new();
    for (number, metric) in ["orders", "hits", "all"].into_iter().enumerate() {
        let limits = limits.saturating_sub(number * PERIODS.len());
        let periods: Vec<String> = PERIODS
            .iter()
            .take(limits)
            .map(|period| format!("{period}: 1000000000000"))
            .collect();
        if !periods.is_empty() {
            plan.push_str(&format!("    {metric}: {{ {} }}\n", periods.join(", ")));
        }
    }
    if plan.is_empty() {
        plan.push_str("    {}\n");
    }
    plan
}

/// Prints the figures as tables.
pub fn print(results: &Results) {
    for curve in &results.curves {
        println!(
            "\nIn Envoy, by {} (capacity {}); without a filter {:.1} µs",
            curve.of, curve.capacity, curve.base_cpu_us
        );
        println!(
            "{:>10} {:>10} {:>9} {:>11} {:>13}",
            "size", "CPU µs/req", "added µs", "requests/s", "calls/request"
        );
        for p in &curve.points {
            println!(
                "{:>10} {:>10.2} {:>9.2} {:>11.0} {:>13.4}",
                p.size,
                p.cpu_us_per_request,
                p.added_cpu_us,
                p.requests_per_second,
                p.calls_per_request
            );
        }
    }
    println!("\nIn Envoy, more applications than a capacity of 16,384 has room for");
    println!(
        "{:>12} {:>12} {:>9} {:>11} {:>9} {:>9} {:>13}",
        "applications",
        "questions/s",
        "added µs",
        "requests/s",
        "admitted",
        "uncached",
        "calls/request"
    );
    for b in &results.beyond {
        println!(
            "{:>12} {:>12} {:>9.2} {:>11.0} {:>9.3} {:>9.3} {:>13.4}",
            b.applications,
            b.unknown_calls_per_second,
            b.added_cpu_us,
            b.requests_per_second,
            b.admitted,
            b.uncached,
            b.calls_per_request
        );
    }
    println!("\nA decision in the core, natively");
    println!(
        "{:>10} {:>12} {:>8} {:>14} {:>7} {:>6} {:>7}",
        "capacity", "applications", "ns", "first of a min", "known", "reads", "writes"
    );
    for k in &results.known {
        println!(
            "{:>10} {:>12} {:>8.0} {:>14.0} {:>7.3} {:>6.2} {:>7.2}",
            k.capacity, k.applications, k.ns, k.ns_first_of_a_minute, k.known, k.reads, k.writes
        );
    }
    println!("\nWorkers of the fake host on one record");
    println!(
        "{:>8} {:>7} {:>11} {:>18} {:>8}",
        "workers", "forced", "requests/s", "attempts/admitted", "refused"
    );
    for c in &results.contention {
        println!(
            "{:>8} {:>7} {:>11.0} {:>18.4} {:>8}",
            c.workers, c.forced, c.requests_per_second, c.attempts_per_admitted, c.refused
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_has_as_many_limits_as_it_says() {
        for limits in [0, 1, 5, 10, 20] {
            assert_eq!(plan(limits).matches("1000000000000").count(), limits);
        }
    }
}
