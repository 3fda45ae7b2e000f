//! No limit is overrun, and none denies for longer than its window.

use anyhow::{Context, Result, ensure};
use tokio::task::JoinSet;
use tollgate_end_to_end::{Gateway, Setup, wall_milliseconds};

const MINUTE: u64 = 60_000;

/// Waits until the minute has at least so many milliseconds left, and returns its end
/// (Unix milliseconds).
async fn within_a_minute(left: u64) -> u64 {
    let remaining = MINUTE - wall_milliseconds() % MINUTE;
    if remaining < left {
        tokio::time::sleep(std::time::Duration::from_millis(remaining + 1)).await;
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
