//! Many applications have usage pending at once, and all of it arrives.
//!
//! The full size takes a minute or two. With what `cargo xtask test` has set up and built, and `ENVOY` and
//! `TOLLGATE_WASM` set to its paths:
//! `TOLLGATE_FULL_SIZE=1 cargo test -p tollgate-end-to-end --test scenarios -- --ignored --nocapture
//! many::full_size`

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::json;
use tokio::task::JoinSet;
use tollgate_end_to_end::{Gateway, Setup};
use tollgate_harness::{EnvoyOptions, eventually};

/// Consumers at once.
const AT_ONCE: usize = 32;

fn dataset(count: usize) -> Result<String> {
    let mut dataset = String::from(
        "service_token: svc-token\nmetrics: { hits: null }\nplans:\n  free: {}\nservices:\n  \
         \"1001\":\n    backend_version: \"1\"\n    applications:\n",
    );
    for number in 0..count {
        writeln!(
            dataset,
            "      app{number}: {{ plan: free, user_key: key{number} }}"
        )?;
    }
    Ok(dataset)
}

/// Each application sends a request; then all of it is reported in one round.
async fn flushed(count: usize, interval: Duration) -> Result<()> {
    let gateway = Gateway::start(Setup {
        dataset: dataset(count)?,
        plugin: json!({
            "authorization": {
                "ttl": "1h", "capacity": count * 4, "unknown_calls_per_second": 1_000_000,
            },
            "reporting": { "interval": format!("{}s", interval.as_secs()) },
        }),
        envoy: EnvoyOptions {
            access_log: false,
            ..EnvoyOptions::default()
        },
    })
    .await?;
    let before = gateway.envoy.rss_mib()?;
    let next = Arc::new(AtomicUsize::new(0));
    let mut consumers = JoinSet::new();
    for _ in 0..AT_ONCE {
        let (client, next) = (gateway.client()?, next.clone());
        consumers.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return anyhow::Ok(());
                }
                let key = format!("key{number}");
                let reply = client.get("/v1/items", &[("x-api-key", &key)]).await?;
                anyhow::ensure!(reply.status == 200, "{} for {key}", reply.status);
            }
        });
    }
    while let Some(consumer) = consumers.join_next().await {
        consumer??;
    }
    let admitted = count as u64;
    let full = gateway.envoy.rss_mib()?;
    let early = gateway.counter("usage_acknowledged").await?;
    let reports = gateway.reports();
    let mut begun = Instant::now();
    let mut slowest = Duration::ZERO;
    let client = gateway.client()?;
    let patience = interval + Duration::from_secs(60);
    eventually("all usage to be acknowledged", patience, async || {
        let acknowledged = gateway.counter("usage_acknowledged").await.ok()?;
        if acknowledged - early <= (admitted - early) / 20 {
            begun = Instant::now();
        }
        // Neither counted nor asked about; it waits for its worker like any other.
        let sent = Instant::now();
        client.get("/v1/items", &[]).await.ok()?;
        slowest = slowest.max(sent.elapsed());
        (gateway.counter("usage_acknowledged").await.ok()? >= admitted
            && gateway.backend.queued() == 0)
            .then_some(())
    })
    .await?;
    println!(
        "{count} applications: {} units pending (and {early} reported before) flushed with {} calls in \
         {:.1} s; slowest request meanwhile {slowest:?}; memory {before:.0} MiB \
         at first, {full:.0} with all records, {:.0} after",
        admitted - early,
        gateway.reports() - reports,
        begun.elapsed().as_secs_f64(),
        gateway.envoy.rss_mib()?,
    );
    let usage = gateway.backend.usage();
    for number in 0..count {
        let application = format!("app{number}");
        assert_eq!(
            usage.total("1001", &application, "hits"),
            1,
            "{application}"
        );
    }
    assert_eq!(gateway.counter("requests_uncached").await?, 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Envoy and the module: run cargo xtask test"]
async fn a_thousand_applications_with_pending_usage_are_flushed_completely() -> Result<()> {
    flushed(1_000, Duration::from_secs(10)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a minute or two"]
async fn full_size() -> Result<()> {
    if std::env::var_os("TOLLGATE_FULL_SIZE").is_none() {
        println!("not run: set TOLLGATE_FULL_SIZE to anything");
        return Ok(());
    }
    flushed(50_000, Duration::from_secs(60)).await
}
