//! A mapping rule with a metric that service management does not have.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde_json::json;
use tollgate_end_to_end::{Gateway, SERVICE, Setup};
use tollgate_harness::eventually;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Envoy and the module: run cargo xtask test"]
async fn an_unknown_metric_waits_and_the_usage_of_all_others_arrives() -> Result<()> {
    let with_slip = json!({ "services": [{
        "id": SERVICE,
        "token": "svc-token",
        "hosts": ["*"],
        "credentials": { "user_key": [{ "header": "x-api-key" }] },
        "mapping_rules": [
            { "pattern": "/", "usage": { "hits": 1 } },
            { "pattern": "/v1/search", "usage": { "serches": 1 } },
        ],
    }]});
    let gateway = Gateway::start(Setup {
        plugin: with_slip,
        ..Setup::default()
    })
    .await?;
    let client = gateway.client()?;
    for key in ["free-key", "other-key", "minute100-key"] {
        let replies = client
            .get_many(10, 4, "/v1/search", &[("x-api-key", key)])
            .await?;
        assert_eq!(replies, BTreeMap::from([(200, 10)]), "{key}");
    }
    gateway.flushed(30).await?;
    for application in ["free", "other", "minute100"] {
        assert_eq!(gateway.usage(application, "hits"), 10, "{application}");
    }
    eventually(
        "what waits to be shown",
        tollgate_end_to_end::PATIENCE,
        async || (gateway.counter("metric.serches.units_pending").await.ok()? == 30).then_some(()),
    )
    .await
    .context("usage of the unknown metric is pending")?;
    assert_eq!(gateway.counter("metrics_unknown").await?, 1);
    assert!(gateway.counter("probe_calls").await? >= 1);
    let log = gateway.envoy.log();
    let line = r#"service management does not have these metrics: ["serches"]"#;
    assert!(log.contains(line), "{log}");
    Ok(())
}
