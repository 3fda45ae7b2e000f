//! Keys that nobody knows, at a steady rate: what they cost the gateway, service management and a
//! good client, beside as many requests that Envoy refuses before the filter sees them.
//!
//! 200,000 of each with `TOLLGATE_FULL_SIZE=1`; else some thousand.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};
use tollgate_end_to_end::{Gateway, Load, Sample, Setup, full_size, percentile};
use tollgate_harness::{EnvoyOptions, connection_manager};

const PER_SECOND: u32 = 2_000;
const CONNECTIONS: u32 = 8;
/// Questions about unknown credentials: the default of the configuration.
const BUDGET: u64 = 100;

/// How long a body is, by the head of its answer.
fn length_of(head: &str) -> Option<usize> {
    let lines = head.lines().filter_map(|line| line.split_once(": "));
    let mut lengths = lines.filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    lengths.next()?.1.trim().parse().ok()
}

/// Reads one answer, and returns its status.
async fn answer(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Result<u16> {
    loop {
        let end = buffer.windows(4).position(|bytes| bytes == b"\r\n\r\n");
        if let Some(end) = end {
            let head = std::str::from_utf8(&buffer[..end])?;
            let status = head.get(9..12).context("a status line")?.parse()?;
            let whole = end + 4 + length_of(head).context("no length")?;
            if buffer.len() >= whole {
                buffer.drain(..whole);
                return Ok(status);
            }
        }
        ensure!(
            stream.read_buf(buffer).await? > 0,
            "the connection was closed"
        );
    }
}

/// Sends so many requests for `path`, each with another key, and returns how often each status was
/// answered.
async fn flood(address: SocketAddr, path: &str, total: u32) -> Result<BTreeMap<u16, u64>> {
    let mut senders = JoinSet::new();
    for sender in 0..CONNECTIONS {
        let path = path.to_owned();
        senders.spawn(async move {
            let mut stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            let mut buffer = Vec::new();
            let mut statuses = BTreeMap::new();
            let mut ticks = interval(Duration::from_secs(1) * CONNECTIONS / PER_SECOND);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
            for number in 0..total / CONNECTIONS {
                ticks.tick().await;
                let request = format!(
                    "GET {path} HTTP/1.1\r\nhost: a\r\nx-api-key: {sender}-{number}-stranger\r\n\r\n"
                );
                stream.write_all(request.as_bytes()).await?;
                let status = answer(&mut stream, &mut buffer).await?;
                *statuses.entry(status).or_insert(0_u64) += 1;
            }
            anyhow::Ok(statuses)
        });
    }
    let mut all = BTreeMap::new();
    while let Some(statuses) = senders.join_next().await {
        for (status, count) in statuses?? {
            *all.entry(status).or_insert(0) += count;
        }
    }
    Ok(all)
}

fn setup() -> Setup {
    Setup {
        envoy: EnvoyOptions {
            access_log: false,
            listener: Some(Arc::new(|listener| {
                let routes =
                    &mut connection_manager(listener)["route_config"]["virtual_hosts"][0]["routes"];
                let refused = json!({
                    "match": { "prefix": "/refused" },
                    "direct_response": { "status": 403, "body": { "inline_string": "no\n" } },
                    "typed_per_filter_config": { "tollgate": {
                        "@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig",
                        "disabled": true,
                    } },
                });
                if let Some(routes) = routes.as_array_mut() {
                    routes.insert(0, refused);
                }
            })),
            ..EnvoyOptions::default()
        },
        plugin: json!({ "authorization": { "unknown_calls_per_second": BUDGET } }),
        ..Setup::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Envoy and the module: run cargo xtask test"]
async fn a_flood_of_random_keys_costs_the_budget_and_a_good_client_what_any_flood_costs()
-> Result<()> {
    let total = if full_size() { 200_000 } else { 6_000 };
    let gateway = Gateway::start(setup()).await?;
    let client = gateway.client()?;
    let good = |client| Load::start(client, 2, Duration::from_millis(5), "/v1/items", "free-key");
    let load = good(&client);
    load.go_on_for(200).await?;
    let mut phases: Vec<(&str, Vec<Sample>)> = vec![("alone", load.finish().await?)];
    let address = gateway.envoy.address();
    let mut memory = vec![gateway.envoy.rss_mib()?];
    let mut asked = gateway.counter("authorize_calls").await?;
    let mut told = Vec::new();
    for (what, path) in [
        ("as many that Envoy refuses", "/refused"),
        ("random keys", "/v1/items"),
    ] {
        let load = good(&client);
        let begun = Instant::now();
        let statuses = flood(address, path, total).await?;
        let took = begun.elapsed();
        phases.push((what, load.finish().await?));
        memory.push(gateway.envoy.rss_mib()?);
        let now = gateway.counter("authorize_calls").await?;
        told.push((what, statuses, took, now - asked));
        asked = now;
    }
    let requests: u64 = phases.iter().map(|(_, samples)| samples.len() as u64).sum();
    gateway.flushed(requests).await?;

    for (what, samples) in &phases {
        println!(
            "good client, {what}: {} requests, p50 {:.2?}, p99 {:.2?}",
            samples.len(),
            percentile(samples, 50),
            percentile(samples, 99),
        );
    }
    for (what, statuses, took, calls) in &told {
        println!(
            "{what}: {total} in {took:.1?}, {statuses:?}, {calls} questions about unknown ones"
        );
    }
    println!(
        "memory: {:.1} MiB before, {:.1} after those of Envoy, {:.1} after the random keys; usage {} of \
         {requests}",
        memory[0],
        memory[1],
        memory[2],
        gateway.usage("free", "hits"),
    );

    for (what, samples) in &phases {
        for sample in samples {
            assert_eq!(sample.outcome, Ok(200), "{what}");
        }
    }
    let (_, statuses, took, calls) = &told[1];
    let most = BUDGET * (10 + 1 + took.as_secs());
    assert!(*calls <= most, "{calls} questions, {most} allowed");
    assert_eq!(
        statuses
            .keys()
            .filter(|status| !matches!(status, 403 | 503))
            .count(),
        0
    );
    assert_eq!(statuses.get(&403).copied().unwrap_or(0), *calls);
    assert_eq!(told[0].1.keys().collect::<Vec<_>>(), [&403]);
    assert_eq!(told[0].3, 0, "what Envoy refuses comes to nobody");
    assert_eq!(gateway.usage("free", "hits"), requests);
    for lost in ["uncertain", "too_old", "uncached", "refused"] {
        assert_eq!(gateway.counter(&format!("usage_lost_{lost}")).await?, 0);
    }
    assert_eq!(gateway.counter("requests_uncached").await?, 0);
    // Tables and V8's slack; a key for each stranger would be ten times that.
    let most = if full_size() { 64.0 } else { 40.0 };
    assert!(memory[2] - memory[1] < most, "memory: {memory:?} MiB");
    Ok(())
}
