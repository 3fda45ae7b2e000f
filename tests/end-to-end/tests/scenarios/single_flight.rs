//! One question for all workers, no more than two in any `ttl`, and no more about unknown
//! keys than the budget has.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::json;
use service_management::{Endpoint, Fault, FaultRule, FaultScope};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tollgate_end_to_end::{Gateway, Load, Setup, wall_milliseconds};
use tollgate_harness::EnvoyOptions;

/// Whoever is not woken by a message waits for the next tick, and a worker that nobody wakes
/// at all for longer than a question may take, which is longer than this test.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Envoy and the module: run cargo xtask test"]
async fn a_thousand_first_requests_over_four_workers_are_one_question() -> Result<()> {
    const REQUESTS: usize = 1_000;
    const DELAY: Duration = Duration::from_secs(3);
    let gateway = Gateway::start(Setup {
        plugin: json!({ "service_management": { "timeout": "30s" } }),
        envoy: EnvoyOptions {
            concurrency: 4,
            ..EnvoyOptions::default()
        },
        ..Setup::default()
    })
    .await?;
    let delay = Fault::DelayMs(u64::try_from(DELAY.as_millis())?);
    gateway
        .backend
        .set_faults(vec![FaultRule::always(FaultScope::Authorize, delay)]);
    let client = gateway.client()?;
    let begun = Instant::now();
    let mut requests = JoinSet::new();
    for _ in 0..REQUESTS {
        let client = client.clone();
        requests.spawn(async move {
            let reply = client
                .get("/v1/items", &[("x-api-key", "free-key")])
                .await?;
            anyhow::Ok((reply, Instant::now()))
        });
    }
    let mut answered = Vec::new();
    while let Some(done) = requests.join_next().await {
        let (reply, at) = done??;
        assert_eq!(reply.status, 200, "{}", reply.body);
        answered.push(at);
    }
    answered.sort_unstable();
    let first = answered[0];
    let after = |percent: usize| answered[(answered.len() - 1) * percent / 100] - first;
    let shared = gateway.counter("authorize_shared").await?;
    println!(
        "{REQUESTS} first requests over 4 workers: {} questions, {shared} workers waited; answered \
         {:?} after the first was sent, the median {:?} after that, p99 {:?}, the last {:?}",
        gateway.questions(),
        first - begun,
        after(50),
        after(99),
        after(100),
    );
    assert_eq!(gateway.questions(), 1);
    assert!(shared >= 1, "one worker got all connections");
    assert!(after(100) < Duration::from_secs(15), "nobody woke a worker");
    gateway.flushed(REQUESTS as u64).await?;
    assert_eq!(gateway.usage("free", "hits"), REQUESTS as u64);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Envoy and the module: run cargo xtask test"]
async fn an_application_in_use_is_asked_about_at_most_twice_in_any_ttl() -> Result<()> {
    const TTL: Duration = Duration::from_secs(4);
    let gateway = Gateway::start(Setup {
        plugin: json!({ "authorization": { "ttl": format!("{}s", TTL.as_secs()) } }),
        ..Setup::default()
    })
    .await?;
    let load = Load::start(
        &gateway.client()?,
        16,
        Duration::from_millis(20),
        "/v1/items",
        "free-key",
    );
    tokio::time::sleep(TTL * 4).await;
    let samples = load.finish().await?;
    assert!(samples.iter().all(|sample| sample.outcome == Ok(200)));
    let calls = gateway.backend.calls();
    let asked: Vec<u64> = calls
        .calls
        .iter()
        .filter(|call| call.endpoint == Endpoint::Authorize && !call.has_usage())
        .map(|call| call.at)
        .collect();
    let first = *asked.first().context("no question")?;
    let times: Vec<u64> = asked.iter().map(|at| at - first).collect();
    println!(
        "{} requests in {:?} with a ttl of {TTL:?}: asked at {times:?} ms",
        samples.len(),
        TTL * 4
    );
    assert!(asked.len() >= 3, "it must have been refreshed: {times:?}");
    let ttl = u64::try_from(TTL.as_millis())?;
    for window in asked.windows(3) {
        assert!(window[2] - window[0] >= ttl, "asked at {times:?} ms");
    }
    Ok(())
}

/// Five hundred who wait at two workers, as light on this side as can be: how long after the
/// reply of service management they are answered says how long a worker takes to be woken.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Envoy and the module: run cargo xtask test"]
async fn a_denial_is_for_all_who_wait_on_every_worker_at_once() -> Result<()> {
    const REQUESTS: usize = 500;
    const DELAY_MS: u64 = 3_000;
    let gateway = Gateway::start(Setup {
        plugin: json!({ "service_management": { "timeout": "30s" } }),
        ..Setup::default()
    })
    .await?;
    let delay = FaultRule::always(FaultScope::Authorize, Fault::DelayMs(DELAY_MS));
    gateway.backend.set_faults(vec![delay]);
    let mut requests = JoinSet::new();
    for _ in 0..REQUESTS {
        let mut stream = TcpStream::connect(gateway.envoy.address()).await?;
        let request = b"GET /v1/items HTTP/1.1\r\nhost: a\r\nx-api-key: nobodys-key\r\n\r\n";
        stream.write_all(request).await?;
        requests.spawn(async move {
            let mut answer = [0; 12];
            stream.read_exact(&mut answer).await?;
            anyhow::Ok((answer, wall_milliseconds()))
        });
    }
    // All wait by now; from here on Envoy's time goes into the answers.
    tokio::time::sleep(Duration::from_millis(DELAY_MS / 2)).await;
    let busy = gateway.envoy.cpu_time()?;
    let mut answered = Vec::new();
    while let Some(done) = requests.join_next().await {
        let (answer, at) = done??;
        assert_eq!(&answer, b"HTTP/1.1 403");
        answered.push(at);
    }
    let busy = gateway.envoy.cpu_time()?.saturating_sub(busy);
    answered.sort_unstable();
    assert_eq!(gateway.questions(), 1);
    let calls = gateway.backend.calls();
    let question = calls
        .calls
        .iter()
        .find(|call| call.endpoint == Endpoint::Authorize && !call.has_usage());
    let replied = question.context("no question")?.at + DELAY_MS;
    let after =
        |percent: usize| answered[(answered.len() - 1) * percent / 100].saturating_sub(replied);
    println!(
        "{REQUESTS} denied over 2 workers, one question: the first {} ms after the reply, the median {}, p99 {}, the last {}; {busy:.1?} of CPU time",
        after(0),
        after(50),
        after(99),
        after(100),
    );
    assert!(after(100) < 15_000, "nobody woke a worker");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Envoy and the module: run cargo xtask test"]
async fn random_keys_cost_no_more_than_the_budget_and_a_known_application_nothing() -> Result<()> {
    const PER_SECOND: u64 = 5;
    let gateway = Gateway::start(Setup {
        plugin: json!({ "authorization": { "unknown_calls_per_second": PER_SECOND } }),
        ..Setup::default()
    })
    .await?;
    let client = gateway.client()?;
    let known = [("x-api-key", "free-key")];
    assert_eq!(client.get("/v1/items", &known).await?.status, 200);
    let begun = Instant::now();
    let load = Load::start(
        &client,
        4,
        Duration::from_millis(5),
        "/v1/items",
        "free-key",
    );
    let mut strangers = JoinSet::new();
    for stranger in 0..16 {
        let client = client.clone();
        strangers.spawn(async move {
            let mut statuses = BTreeMap::new();
            for number in 0..200 {
                let key = format!("stranger-{stranger}-{number}");
                let reply = client.get("/v1/items", &[("x-api-key", &key)]).await?;
                *statuses.entry(reply.status).or_insert(0_u64) += 1;
            }
            anyhow::Ok(statuses)
        });
    }
    let mut statuses = BTreeMap::new();
    while let Some(some) = strangers.join_next().await {
        for (status, count) in some?? {
            *statuses.entry(status).or_insert(0) += count;
        }
    }
    let took = begun.elapsed();
    let samples = load.finish().await?;
    assert!(samples.iter().all(|sample| sample.outcome == Ok(200)));
    let asked = gateway.counter("authorize_calls").await?;
    println!("3,200 random keys in {took:.1?}: {statuses:?}, {asked} questions");
    // What the bucket holds at first, and what comes in.
    let most = PER_SECOND * (10 + 1 + took.as_secs());
    assert!(asked <= most, "{asked} questions, {most} allowed");
    assert_eq!(statuses.values().sum::<u64>(), 3_200);
    assert_eq!(statuses.get(&403).copied().unwrap_or(0) + 1, asked);
    assert_eq!(
        statuses.get(&503).copied(),
        Some(gateway.counter("requests_over_budget").await?)
    );
    Ok(())
}
