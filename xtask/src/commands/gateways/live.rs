//! With real Envoys and the stand-in: two sets of gateways under the same load, one that
//! shares the limit as asked for and one that reports and looks every ten seconds.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::{Value, json};
use service_management::{Dataset, Endpoint, Options, Period, StandIn};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tollgate_harness::{Client, Echo, Envoy, EnvoyOptions, Plugin, eventually};

use super::super::build::build_filter;
use super::{Accuracy, Arguments, COLUMNS, Figures};
use crate::tools::envoy::envoy_path;

const SERVICE: &str = "1001";
const KEY: &str = "shared-key";
/// How long before the first window the load begins, so that the gateways know the
/// application when it opens.
const WARM_UP: Duration = Duration::from_secs(3);
/// Requests of one gateway at a time: more than that means that the machine is too slow.
const MOST_AT_ONCE: usize = 64;
/// How long usage may take to arrive at the end: a flush, a pause after a failure.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Serialize)]
struct Results {
    accuracy: Accuracy,
    lag_ms: u128,
    rate: u32,
    seconds: u32,
    #[serde(flatten)]
    figures: Figures,
    fixed_flush: Figures,
}

/// Gateways before one backend.
struct Set {
    envoys: Vec<Envoy>,
    backend: StandIn,
}

/// Measures and prints the results.
pub fn run(arguments: &Arguments) -> Result<()> {
    let count = match arguments.count.as_slice() {
        [] => 4,
        [count] => *count,
        _ => anyhow::bail!("one --count, unless with --simulate"),
    };
    let lag = match arguments.lag.as_slice() {
        [] => Duration::from_millis(50),
        [lag] => *lag,
        _ => anyhow::bail!("one --lag, unless with --simulate"),
    };
    let envoy = envoy_path()?;
    let module = build_filter()?;
    let results = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?
        .block_on(async {
            let echo = Echo::start().await?;
            let options = EnvoyOptions {
                executable: Some(envoy),
                module: Some(module),
                upstream: Some(echo.address()),
                concurrency: 1,
                access_log: false,
                ..EnvoyOptions::default()
            };
            let accuracy = arguments.accuracy;
            let word = accuracy_word(accuracy);
            let shared = json!({
                "authorization": { "gateways": count, "accuracy": word },
                "reporting": { "interval": "10s" },
                "service_management": { "timeout": "5s" },
            });
            let fixed = json!({
                "authorization": { "ttl": "10s" },
                "reporting": { "interval": "10s" },
                "service_management": { "timeout": "5s" },
            });
            let sets = [
                Set::start(count, arguments.limit, lag, &shared, &options).await?,
                Set::start(count, arguments.limit, lag, &fixed, &options).await?,
            ];
            let [figures, fixed_flush] = measure(arguments, count, &sets).await?;
            anyhow::Ok(Results {
                accuracy,
                lag_ms: lag.as_millis(),
                rate: arguments.rate,
                seconds: arguments.seconds,
                figures,
                fixed_flush,
            })
        })?;
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&results)?);
    } else {
        let word = accuracy_word(results.accuracy);
        println!(
            "{count} gateways, {} a minute, {} requests/s for {} s, lag {lag:?}",
            arguments.limit, arguments.rate, arguments.seconds
        );
        println!("             admitted {COLUMNS}");
        for (name, of) in [
            (word, &results.figures),
            ("fixed 10 s", &results.fixed_flush),
        ] {
            println!("{name:<10} {:>10} {}", of.admitted, of.percentages());
        }
    }
    Ok(())
}

const fn accuracy_word(accuracy: Accuracy) -> &'static str {
    match accuracy {
        Accuracy::Strict => "strict",
        Accuracy::Eager => "eager",
    }
}

impl Set {
    async fn start(
        count: u16,
        limit: u64,
        lag: Duration,
        plugin: &Value,
        options: &EnvoyOptions,
    ) -> Result<Self> {
        let data = json!({
            "service_token": "svc-token",
            "metrics": { "hits": null, "orders": "hits" },
            "plans": { "shared": { "hits": { "minute": limit } } },
            "services": { SERVICE: {
                "backend_version": "1",
                "applications": { "shared": { "plan": "shared", "user_key": KEY } },
            } },
        });
        let backend = StandIn::start(
            Dataset::from_yaml(&data.to_string())?,
            Options {
                lag,
                calls_kept: 1_000_000,
                ..Options::default()
            },
        )
        .await?;
        let mut envoys = Vec::new();
        for _ in 0..count {
            let envoy = Envoy::start(EnvoyOptions {
                plugin: Plugin::Merge(plugin.clone()),
                service_management: Some(backend.address()),
                ..options.clone()
            });
            let envoy = envoy.await?;
            introduce(&envoy).await?;
            envoys.push(envoy);
        }
        Ok(Self { envoys, backend })
    }

    async fn counter(&self, name: &str) -> Result<u64> {
        let name = format!("wasmcustom.tollgate.{SERVICE}.{name}");
        let mut sum = 0;
        for envoy in &self.envoys {
            sum += envoy.stat(&name).await?;
        }
        Ok(sum)
    }
}

async fn measure(arguments: &Arguments, count: u16, sets: &[Set; 2]) -> Result<[Figures; 2]> {
    let seconds = u64::from(arguments.seconds);
    let now = wall()?;
    let minute = Duration::from_secs((now + WARM_UP).as_secs() / 60 * 60 + 60);
    eprintln!(
        "waiting {} s for a minute to begin, then {seconds} s of load",
        (minute - now).as_secs()
    );
    tokio::time::sleep(minute - WARM_UP - now).await;
    let (offered, behind) = load(arguments, sets, minute).await?;
    if behind > 0 {
        eprintln!("{behind} of the requests could not be sent in time: this machine is too slow");
    }
    let mut figures = Vec::new();
    for set in sets {
        let until = minute + Duration::from_secs(seconds);
        let calls = set.backend.calls();
        let called = calls.calls.iter().filter(|call| {
            let at = Duration::from_millis(call.at);
            call.endpoint != Endpoint::Probe && minute <= at && at < until
        });
        let called = called.count();
        // Workers tell what they admitted on their ticks.
        tokio::time::sleep(Duration::from_secs(2)).await;
        let early = set.counter("requests_early").await?;
        let admitted = set.counter("requests_admitted").await?;
        eventually("usage to arrive", PATIENCE, async || {
            let arrived = set.backend.usage().total(SERVICE, "shared", "hits");
            (arrived >= admitted && set.backend.queued() == 0).then_some(())
        })
        .await?;
        let first = i64::try_from(minute.as_secs())?;
        let windows = seconds.div_ceil(60);
        let usage = set.backend.usage();
        let admitted: Vec<u64> = (0..windows)
            .map(|window| {
                let at = first + 60 * i64::try_from(window).unwrap_or_default();
                usage.value(SERVICE, "shared", "hits", Period::Minute, at)
            })
            .collect();
        let over: Vec<f64> = admitted
            .iter()
            .map(|of| (*of as f64 / arguments.limit as f64 - 1.0).max(0.0))
            .collect();
        // A last window that is not over could have had less.
        let most = |window: u64| {
            let length = (seconds - window * 60).min(60);
            arguments.limit.min(u64::from(arguments.rate) * length)
        };
        let most: u64 = (0..windows).map(most).sum();
        let used: u64 = admitted.iter().map(|of| arguments.limit.min(*of)).sum();
        figures.push(Figures {
            gateways: count,
            limit: arguments.limit,
            admitted: admitted.iter().sum(),
            windows: admitted.len(),
            overrun: over.iter().sum::<f64>() / over.len() as f64,
            worst_overrun: over.iter().copied().fold(0.0, f64::max),
            calls_per_second_per_gateway: called as f64 / seconds as f64 / f64::from(count),
            early: early as f64 / offered.max(1) as f64,
            unused: most.saturating_sub(used) as f64 / most as f64,
        });
    }
    <[Figures; 2]>::try_from(figures)
        .ok()
        .context("two sets, two figures")
}

/// Sends a request until the gateway knows the application.
async fn introduce(envoy: &Envoy) -> Result<()> {
    let client = envoy.client()?;
    eventually("a gateway to know the application", PATIENCE, async || {
        let reply = client.get("/v1/items", &[("x-api-key", KEY)]).await.ok()?;
        matches!(reply.status, 200 | 429).then_some(())
    })
    .await
}

/// Sends the same load to both sets, evenly over their gateways. Returns how many requests
/// each was offered, and how many were given up because too many were not answered.
async fn load(arguments: &Arguments, sets: &[Set; 2], minute: Duration) -> Result<(u64, u64)> {
    let mut lanes: Vec<(Client, Arc<Semaphore>)> = Vec::new();
    for set in sets {
        for envoy in &set.envoys {
            lanes.push((envoy.client()?, Arc::new(Semaphore::new(MOST_AT_ONCE))));
        }
    }
    let count = sets[0].envoys.len();
    let length = WARM_UP + Duration::from_secs(u64::from(arguments.seconds));
    let start = Instant::now() + (minute.saturating_sub(WARM_UP)).saturating_sub(wall()?);
    let pause = Duration::from_secs(1) / arguments.rate;
    let (mut offered, mut behind) = (0, 0);
    let mut statuses = BTreeMap::<u16, u64>::new();
    let mut count_status = |status: u16| *statuses.entry(status).or_default() += 1;
    let mut requests = JoinSet::new();
    for number in 0_u32.. {
        let at = pause * number;
        if at >= length {
            break;
        }
        tokio::time::sleep_until(start + at).await;
        offered += 1;
        let gateway = usize::try_from(number)? % count;
        for lane in [gateway, count + gateway] {
            let (client, room) = &lanes[lane];
            let Ok(room) = room.clone().try_acquire_owned() else {
                behind += 1;
                continue;
            };
            let client = client.clone();
            requests.spawn(async move {
                let reply = client.get("/v1/items", &[("x-api-key", KEY)]).await;
                drop(room);
                reply.map(|reply| reply.status)
            });
        }
        while let Some(done) = requests.try_join_next() {
            count_status(done??);
        }
    }
    while let Some(done) = requests.join_next().await {
        count_status(done??);
    }
    statuses.retain(|status, _| !matches!(status, 200 | 429));
    if !statuses.is_empty() {
        eprintln!("neither 200 nor 429, by status: {statuses:?}");
    }
    Ok((offered, behind))
}

fn wall() -> Result<Duration> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?)
}
