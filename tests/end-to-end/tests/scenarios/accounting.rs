//! Every admitted unit of usage arrives, and service management is seldom asked.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::json;
use tollgate_end_to_end::{Gateway, Setup};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Envoy and the module: run cargo xtask test"]
async fn ten_thousand_requests_cost_a_question_and_a_report_per_interval() -> Result<()> {
    const REQUESTS: u64 = 10_000;
    const INTERVAL: Duration = Duration::from_secs(1);
    // Longer than this takes on any machine: an application in use is asked about again
    // before its answer is stale, so the last quarter of a `ttl` may see one more question.
    const TTL: Duration = Duration::from_secs(600);
    let gateway = Gateway::start(Setup {
        plugin: json!({
            "authorization": { "ttl": format!("{}s", TTL.as_secs()) },
            "reporting": { "interval": format!("{}s", INTERVAL.as_secs()) },
        }),
        ..Setup::default()
    })
    .await?;
    let begun = Instant::now();
    let statuses = gateway
        .client()?
        .get_many(10_000, 64, "/v1/items", &[("x-api-key", "free-key")])
        .await?;
    let sent = begun.elapsed();
    gateway.flushed(REQUESTS).await?;
    let took = begun.elapsed();

    let connections: Vec<u64> = gateway
        .envoy
        .stats("listener.")
        .await?
        .into_iter()
        .filter(|(name, _)| name.contains(".worker_") && name.ends_with(".downstream_cx_total"))
        .filter(|(name, _)| !name.contains(".admin."))
        .map(|(_, value)| value)
        .collect();
    let (questions, reports) = (gateway.questions(), gateway.reports());
    println!(
        "10,000 requests in {sent:.1?}, flushed after {took:.1?}: {statuses:?}; \
         {questions} questions, {reports} reports, usage {}; connections by worker {connections:?}",
        gateway.usage("free", "hits"),
    );
    assert_eq!(statuses, BTreeMap::from([(200, 10_000)]));
    assert!(
        connections.len() == 2 && connections.iter().all(|count| *count > 0),
        "both workers must have served: {connections:?}"
    );
    assert!(took < TTL * 3 / 4, "the machine is too slow");
    assert_eq!(questions, 1);
    assert_eq!(gateway.usage("free", "hits"), REQUESTS);
    let intervals = took.as_millis().div_ceil(INTERVAL.as_millis());
    assert!(u128::from(reports) <= intervals + 2, "{reports} reports");
    Ok(())
}
