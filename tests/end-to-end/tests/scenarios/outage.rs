//! Service management may go away: known applications do not notice, and what they
//! used arrives when it is back.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::json;
use service_management::{Fault, FaultRule, FaultScope};
use tollgate_end_to_end::{Gateway, Load, PATIENCE, Sample, Setup, percentile};
use tollgate_harness::eventually;

/// So long that a request which waited for service management stands out.
const TIMEOUT: Duration = Duration::from_secs(4);

fn setup() -> Setup {
    Setup {
        plugin: json!({
            // Answers go stale while service management is away.
            "authorization": { "ttl": "1s", "stale_if_error": "10m" },
            "service_management": { "timeout": format!("{}s", TIMEOUT.as_secs()) },
            "reporting": { "interval": "500ms", "timeout": "1s" },
        }),
        ..Setup::default()
    }
}

fn split(samples: Vec<Sample>, from: Instant, to: Instant) -> [Vec<Sample>; 3] {
    let mut phases = [const { Vec::new() }; 3];
    for sample in samples {
        let phase = usize::from(sample.at >= from) + usize::from(sample.at >= to);
        phases[phase].push(sample);
    }
    phases
}

fn assert_unnoticed(what: &str, [before, during, after]: &[Vec<Sample>; 3]) {
    for (phase, samples) in [("before", before), ("during", during), ("after", after)] {
        println!(
            "{what}, {phase}: {} requests, p50 {:.1?}, p99 {:.1?}, longest {:.1?}",
            samples.len(),
            percentile(samples, 50),
            percentile(samples, 99),
            percentile(samples, 100),
        );
        for sample in samples {
            assert_eq!(sample.outcome, Ok(200), "{what}, {phase}");
            assert!(sample.took < TIMEOUT / 2, "{what}, {phase}: {sample:?}");
        }
    }
    // Machines are busy, so no narrower than this.
    assert!(percentile(during, 99) < TIMEOUT / 8, "{what}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Envoy and the module: run cargo xtask test"]
async fn known_applications_do_not_notice_that_service_management_is_gone() -> Result<()> {
    let mut gateway = Gateway::start(setup()).await?;
    let pause = Duration::from_millis(5);
    let load = Load::start(&gateway.client()?, 4, pause, "/v1/items", "free-key");
    load.go_on_for(400).await?;

    gateway.backend.stop().await;
    let from = Instant::now();
    load.go_on_for(200).await?;
    eventually("requests on stale answers", PATIENCE, async || {
        (gateway.counter("requests_admitted_stale").await.ok()? >= 400).then_some(())
    })
    .await?;
    gateway.backend.restart().await?;
    let to = Instant::now();
    load.go_on_for(200).await?;
    let samples = load.finish().await?;

    let requests = samples.len() as u64;
    gateway.flushed(requests).await?;
    println!(
        "service management gone for {:.1?}: {requests} requests, usage {}, {} decided on stale \
         answers, {} units sent twice for want of an answer",
        to - from,
        gateway.usage("free", "hits"),
        gateway.counter("requests_admitted_stale").await?,
        gateway.counter("usage_resent").await?,
    );
    assert_unnoticed("gone", &split(samples, from, to));
    assert_eq!(gateway.usage("free", "hits"), requests);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Envoy and the module: run cargo xtask test"]
async fn known_applications_do_not_wait_for_a_service_management_that_hangs() -> Result<()> {
    let gateway = Gateway::start(setup()).await?;
    let pause = Duration::from_millis(5);
    let load = Load::start(&gateway.client()?, 4, pause, "/v1/items", "free-key");
    load.go_on_for(200).await?;

    let hang = FaultRule::always(FaultScope::Any, Fault::Hang);
    gateway.backend.set_faults(vec![hang]);
    let from = Instant::now();
    eventually("requests on stale answers", PATIENCE, async || {
        (gateway.counter("requests_admitted_stale").await.ok()? >= 400).then_some(())
    })
    .await?;
    gateway.backend.clear_faults();
    let to = Instant::now();
    load.go_on_for(200).await?;
    let samples = load.finish().await?;

    // A report that hung was not counted, so sending it again makes it exact.
    let requests = samples.len() as u64;
    gateway.flushed(requests).await?;
    assert_unnoticed("hanging", &split(samples, from, to));
    assert_eq!(gateway.usage("free", "hits"), requests);
    Ok(())
}

/// Sends requests, then reports that meet with a fault, and returns the gateway when all
/// is acknowledged that ever will be.
async fn reported_through(fault: Fault, uncertain: &str) -> Result<Gateway> {
    let gateway = Gateway::start(Setup {
        plugin: json!({ "reporting": { "timeout": "500ms", "uncertain": uncertain } }),
        ..Setup::default()
    })
    .await?;
    let rule = FaultRule::times(FaultScope::Report, fault, 1);
    gateway.backend.set_faults(vec![rule]);
    let client = gateway.client()?;
    let headers = [("x-api-key", "free-key")];
    assert_eq!(client.get("/v1/items", &headers).await?.status, 200);
    eventually("the report that goes wrong", PATIENCE, async || {
        (gateway.counter("reports_uncertain").await.ok()? == 1).then_some(())
    })
    .await?;
    assert_eq!(client.get("/v1/items", &headers).await?.status, 200);
    let settled = async || {
        let acknowledged = gateway.counter("usage_acknowledged").await.ok()?;
        let lost = gateway.counter("usage_lost_uncertain").await.ok()?;
        (acknowledged + lost == 2 && gateway.backend.queued() == 0).then_some(())
    };
    eventually("all usage to be settled", PATIENCE, settled).await?;
    Ok(gateway)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Envoy and the module: run cargo xtask test"]
async fn a_report_without_an_answer_is_sent_again_and_counted_as_such() -> Result<()> {
    // It had not arrived: what is counted is exact.
    let gateway = reported_through(Fault::Hang, "resend").await?;
    assert_eq!(gateway.counter("usage_resent").await?, 1);
    assert_eq!(gateway.usage("free", "hits"), 2);
    // It had: what is counted twice is known.
    let gateway = reported_through(Fault::ResetAfter, "resend").await?;
    assert_eq!(gateway.counter("usage_resent").await?, 1);
    assert_eq!(gateway.usage("free", "hits"), 3);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Envoy and the module: run cargo xtask test"]
async fn where_nothing_may_count_twice_a_report_without_an_answer_is_lost_and_counted_as_such()
-> Result<()> {
    let gateway = reported_through(Fault::Hang, "drop").await?;
    assert_eq!(gateway.counter("usage_lost_uncertain").await?, 1);
    assert_eq!(gateway.counter("usage_resent").await?, 0);
    assert_eq!(gateway.usage("free", "hits"), 1);
    assert!(gateway.envoy.log().contains("1 units of usage are lost"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Envoy and the module: run cargo xtask test"]
async fn where_the_operator_wants_it_unknown_applications_pass_and_are_reported_later() -> Result<()>
{
    let mut gateway = Gateway::start(Setup {
        plugin: json!({ "authorization": { "unknown": "allow" } }),
        ..Setup::default()
    })
    .await?;
    gateway.backend.stop().await;
    let statuses = gateway
        .client()?
        .get_many(50, 10, "/v1/items", &[("x-api-key", "free-key")])
        .await?;
    assert_eq!(statuses.into_iter().collect::<Vec<_>>(), [(200, 50)]);
    gateway.backend.restart().await?;
    gateway.flushed(50).await?;
    assert_eq!(gateway.usage("free", "hits"), 50);
    Ok(())
}
