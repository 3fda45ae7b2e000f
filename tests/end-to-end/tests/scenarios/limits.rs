//! No limit is overrun, and none denies for longer than its window.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use service_management::{Endpoint, Period};
use tokio::task::JoinSet;
use tollgate_end_to_end::{Gateway, PATIENCE, SERVICE, Setup, wall_milliseconds};
use tollgate_harness::eventually;

const MINUTE: u64 = 60_000;

/// Waits until the minute has at least so many milliseconds left, and returns its end
/// (Unix milliseconds).
async fn within_a_minute(left: u64) -> u64 {
    let remaining = MINUTE - wall_milliseconds() % MINUTE;
    if remaining < left {
        tokio::time::sleep(Duration::from_millis(remaining + 1)).await;
    }
    let now = wall_milliseconds();
    now - now % MINUTE + MINUTE
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Envoy and the module: run cargo xtask test"]
async fn of_a_thousand_requests_at_once_over_two_workers_the_limit_admits_exactly_its_hundred()
-> Result<()> {
    let gateway = Gateway::start(Setup::default()).await?;
    let end = within_a_minute(15_000).await;
    let client = gateway.client()?;
    let mut requests = JoinSet::new();
    for _ in 0..1_000 {
        let client = client.clone();
        requests.spawn(async move {
            let before = wall_milliseconds();
            let reply = client
                .get("/v1/items", &[("x-api-key", "minute100-key")])
                .await?;
            anyhow::Ok((before, reply, wall_milliseconds()))
        });
    }
    let (mut admitted, mut limited) = (0, 0);
    let mut told = Vec::new();
    while let Some(done) = requests.join_next().await {
        let (before, reply, after) = done??;
        ensure!(after < end, "the minute ended: the machine is too slow");
        match reply.status {
            200 => admitted += 1,
            429 => {
                limited += 1;
                let seconds: u64 = reply
                    .header("retry-after")
                    .context("no Retry-After")?
                    .parse()?;
                // Decided at some moment between `before` and `after`.
                let (least, most) = (
                    (end - after).div_ceil(1_000),
                    (end - before).div_ceil(1_000),
                );
                assert!(
                    (least..=most).contains(&seconds),
                    "Retry-After {seconds}, must be {least} to {most}"
                );
                told.push(seconds);
            }
            status => panic!("{status}: {}", reply.body),
        }
    }
    gateway.flushed(100).await?;
    let usage = gateway.usage("minute100", "hits");
    println!(
        "1,000 requests at once against 100 a minute: {admitted} admitted, {limited} limited, \
         Retry-After {:?} to {:?}, usage {usage}",
        told.iter().min(),
        told.iter().max(),
    );
    assert_eq!((admitted, limited, usage), (100, 900, 100));
    assert_eq!(gateway.counter("requests_limited").await?, 900);
    Ok(())
}

/// Reports carry the time of the usage: here none is sent until the minute is over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Envoy and the module: run cargo xtask test"]
async fn a_minute_that_ends_opens_a_new_window_and_keeps_its_usage() -> Result<()> {
    const INTERVAL: u64 = 15_000;
    let headers = [("x-api-key", "minute5-key")];
    // Again if Envoy took so long to start that the minute ended.
    let (gateway, end) = loop {
        let left = MINUTE - wall_milliseconds() % MINUTE;
        if !(INTERVAL - 3_000..INTERVAL).contains(&left) {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        }
        let end = wall_milliseconds() + left;
        let gateway = Gateway::start(Setup {
            plugin: json!({ "reporting": { "interval": format!("{INTERVAL}ms") } }),
            ..Setup::default()
        })
        .await?;
        // Whoever leads flushes at once, and next when the interval, and the minute, is over.
        eventually("somebody to lead", PATIENCE, async || {
            gateway.envoy.log().contains("leading").then_some(())
        })
        .await?;
        let before = gateway
            .client()?
            .get_many(8, 4, "/v1/items", &headers)
            .await?;
        if wall_milliseconds() < end {
            assert_eq!(before, BTreeMap::from([(200, 5), (429, 3)]));
            break (gateway, end);
        }
    };
    while wall_milliseconds() < end {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let after = gateway
        .client()?
        .get_many(3, 1, "/v1/items", &headers)
        .await?;
    assert_eq!(
        after,
        BTreeMap::from([(200, 3)]),
        "a denial does not outlive its window"
    );
    gateway.flushed(8).await?;
    let calls = gateway.backend.calls();
    let early = calls
        .calls
        .iter()
        .find(|call| call.endpoint == Endpoint::Report && call.at < end);
    assert_eq!(early, None, "a report in time would prove nothing");
    let windows = gateway
        .backend
        .usage()
        .windows(SERVICE, "minute5", "hits", Period::Minute);
    let end = i64::try_from(end / 1_000)?;
    assert_eq!(windows, [(end - 60, 5), (end, 3)]);
    Ok(())
}
