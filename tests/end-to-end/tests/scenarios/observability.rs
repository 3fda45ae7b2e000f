//! What operators see: counters that are right.

use std::collections::BTreeMap;

use anyhow::Result;
use service_management::{Fault, FaultRule, FaultScope};
use tollgate_end_to_end::{Gateway, Setup};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Envoy and the module: run cargo xtask test"]
async fn the_counters_say_what_the_clients_saw() -> Result<()> {
    let gateway = Gateway::start(Setup::default()).await?;
    let client = gateway.client()?;
    let mut seen = BTreeMap::<u16, usize>::new();
    for (times, path, key) in [
        (70, "/v1/items", "free-key"),
        (4, "/v1/items", "nobody"),
        (6, "/v1/items", "suspended-key"),
        (9, "/v1/items", ""),
        (7, "/nothing", "free-key"),
        (5, "/v1/items", "none-key"),
        (3, "/healthz", ""),
    ] {
        for (status, count) in client
            .get_many(times, 4, path, &[("x-api-key", key)])
            .await?
        {
            *seen.entry(status).or_default() += count;
        }
    }
    let fail = FaultRule::always(FaultScope::Authorize, Fault::Status(500));
    gateway.backend.set_faults(vec![fail]);
    let unknown = client
        .get_many(2, 1, "/v1/items", &[("x-api-key", "other-key")])
        .await?;
    assert_eq!(unknown, BTreeMap::from([(503, 2)]));
    assert_eq!(
        seen,
        BTreeMap::from([(200, 73), (401, 9), (403, 15), (404, 7)])
    );
    gateway.flushed(70).await?;
    gateway.admitted(70).await?;

    let counters = gateway.envoy.stats("wasmcustom.tollgate.1001.").await?;
    let requests: BTreeMap<_, _> = counters
        .iter()
        .filter_map(|(name, value)| {
            Some((
                name.strip_prefix("wasmcustom.tollgate.1001.requests_")?,
                *value,
            ))
        })
        .filter(|(_, value)| *value > 0)
        .collect();
    let expected = BTreeMap::from([
        ("admitted", 70),
        ("denied", 10),
        ("exempt", 3),
        ("limited", 5),
        ("no_credential", 9),
        ("no_mapping_rule", 7),
        ("unavailable", 2),
    ]);
    assert_eq!(requests, expected);
    assert_eq!(gateway.counter("usage_acknowledged").await?, 70);
    assert_eq!(gateway.counter("report_calls").await?, gateway.reports());
    let calls =
        gateway.counter("authorize_calls").await? + gateway.counter("refresh_calls").await?;
    assert_eq!(calls, gateway.questions());

    let exported = gateway.envoy.admin("/stats/prometheus").await?;
    let line = "tollgate_requests_admitted{tollgate_service=\"1001\"} 70";
    assert!(
        exported.lines().any(|candidate| candidate == line),
        "{exported}"
    );
    Ok(())
}
