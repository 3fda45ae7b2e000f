//! Service management is down, hangs, and answers 500, one after the other and under load. What known
//! applications notice of it is nothing; how long unknown ones wait for their 503 is printed.
//!
//! Two minutes of each, as in production, with `TOLLGATE_FULL_SIZE=1`; else some seconds.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::json;
use service_management::{Fault, FaultRule, FaultScope};
use tollgate_end_to_end::{Gateway, Load, Sample, Setup, full_size, percentile};
use tollgate_harness::Client;

const PAUSE: Duration = Duration::from_millis(150);

/// What became of unknown applications' requests while service management failed.
#[derive(Default)]
struct Unknown {
    /// Nobody was asked about these, because the circuit breaker was open.
    open: Vec<Sample>,
    closed: Vec<Sample>,
    /// The longest `Retry-After`.
    longest: u64,
}

/// Sends requests of unknown applications for so long.
async fn ask(gateway: &Gateway, client: &Client, time: Duration, name: &str) -> Result<Unknown> {
    let mut unknown = Unknown::default();
    let begun = Instant::now();
    let mut number = 0;
    while begun.elapsed() < time {
        number += 1;
        let key = format!("nobody-{name}-{number}");
        let before = gateway.counter("requests_breaker_open").await?;
        let at = Instant::now();
        let reply = client.get("/v1/items", &[("x-api-key", &key)]).await?;
        let sample = Sample {
            at,
            took: at.elapsed(),
            outcome: Ok(reply.status),
        };
        let open = gateway.counter("requests_breaker_open").await? > before;
        let retry_after = reply.header("retry-after").unwrap_or("0").parse()?;
        unknown.longest = unknown.longest.max(retry_after);
        match open {
            true => unknown.open.push(sample),
            false => unknown.closed.push(sample),
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(unknown)
}

fn print(what: &str, samples: &[Sample]) {
    println!(
        "  {what}: {} requests, p50 {:.1?}, p99 {:.1?}, longest {:.1?}",
        samples.len(),
        percentile(samples, 50),
        percentile(samples, 99),
        percentile(samples, 100),
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Envoy and the module: run cargo xtask test"]
async fn who_is_known_has_no_bad_day_and_who_is_not_is_told_soon() -> Result<()> {
    let (calm, phase) = match full_size() {
        true => (Duration::from_secs(30), Duration::from_secs(120)),
        false => (Duration::from_secs(2), Duration::from_secs(4)),
    };
    let mut gateway = Gateway::start(Setup {
        plugin: json!({
            "authorization": { "ttl": "2s", "stale_if_error": "30m" },
            "service_management": { "timeout": "1s" },
            "reporting": { "interval": "500ms", "timeout": "1s" },
        }),
        ..Setup::default()
    })
    .await?;
    let client = gateway.client()?;
    let pause = Duration::from_millis(5);
    let loads =
        ["free-key", "other-key"].map(|key| Load::start(&client, 2, pause, "/v1/items", key));
    for load in &loads {
        load.go_on_for(20).await?;
    }

    let mut phases = vec![("before", Instant::now())];
    tokio::time::sleep(calm).await;
    let mut told = Vec::new();
    for name in ["down", "hanging", "failing"] {
        match name {
            "down" => gateway.backend.stop().await,
            _ => {
                let fault = if name == "hanging" {
                    Fault::Hang
                } else {
                    Fault::Status(500)
                };
                let rule = FaultRule::always(FaultScope::Any, fault);
                gateway.backend.set_faults(vec![rule]);
            }
        }
        phases.push((name, Instant::now()));
        told.push((name, ask(&gateway, &client, phase, name).await?));
        phases.push(("after", Instant::now()));
        if name == "down" {
            gateway.backend.restart().await?;
        }
        gateway.backend.clear_faults();
        // The breaker closes with the next answer; nobody asks for that but who is asked about.
        tokio::time::sleep(calm).await;
        let back = Instant::now();
        let mut patience = 600;
        loop {
            let key = format!("back-{name}-{patience}");
            let reply = client.get("/v1/items", &[("x-api-key", &key)]).await?;
            if reply.status == 403 {
                break;
            }
            assert_eq!(reply.status, 503);
            patience -= 1;
            assert!(patience > 0, "{name}: nobody noticed that it is back");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        println!(
            "{name}: unknown applications are asked about {:.1?} after {calm:?} of calm",
            back.elapsed()
        );
    }
    let mut samples = Vec::new();
    for load in loads {
        samples.extend(load.finish().await?);
    }
    let requests = samples.len() as u64;
    gateway.flushed(requests).await?;

    println!("known applications:");
    for (index, (name, from)) in phases.iter().enumerate() {
        let to = phases.get(index + 1).map(|next| next.1);
        let of: Vec<Sample> = samples
            .iter()
            .filter(|it| it.at >= *from && to.is_none_or(|to| it.at < to))
            .cloned()
            .collect();
        print(name, &of);
        assert!(!of.is_empty(), "{name}");
    }
    let errors = samples.iter().filter(|it| it.outcome != Ok(200)).count();
    println!("  {requests} requests in all, {errors} errors");
    for (name, unknown) in &told {
        println!(
            "unknown applications, {name}: Retry-After up to {} s",
            unknown.longest
        );
        print("breaker closed", &unknown.closed);
        print("breaker open", &unknown.open);
    }
    let used = gateway.usage("free", "hits") + gateway.usage("other", "hits");
    let stale = gateway.counter("requests_admitted_stale").await?;
    let resent = gateway.counter("usage_resent").await?;
    println!("usage {used} of {requests}, {stale} on stale answers, {resent} units sent again");

    assert_eq!(errors, 0, "known applications noticed");
    // What was stopped had perhaps taken a report whose answer was lost.
    assert!(
        (requests..=requests + resent).contains(&used),
        "{used} of {requests}"
    );
    assert!(stale > 0, "answers never went stale");
    for (name, unknown) in told {
        for sample in unknown.open.iter().chain(&unknown.closed) {
            assert_eq!(sample.outcome, Ok(503), "{name}");
        }
        assert!(!unknown.open.is_empty(), "{name}: the breaker never opened");
        assert!(
            (1..=10).contains(&unknown.longest),
            "{name}: {}",
            unknown.longest
        );
    }
    Ok(())
}
