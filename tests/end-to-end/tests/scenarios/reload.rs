//! A new configuration or a new module comes to work under load.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use serde_json::json;
use tollgate_end_to_end::{Gateway, Load, PATIENCE, Sample, Setup};
use tollgate_harness::{Base, EnvoyOptions, ListenerUpdate, eventually};

/// How long connections may stay with what was replaced. Envoy asks clients to close them
/// and resets what is left. The time in which it loads a module counts, too, so this
/// must be far longer than that takes on a busy machine.
const DRAIN: Duration = Duration::from_secs(20);

fn setup() -> Setup {
    Setup {
        plugin: json!({ "reporting": { "timeout": "1s" } }),
        envoy: EnvoyOptions {
            base: Base::Reloadable,
            drain_time: DRAIN,
            ..EnvoyOptions::default()
        },
        ..Setup::default()
    }
}

/// Replies by status; 0 stands for none.
fn by_status(samples: &[Sample]) -> BTreeMap<u16, u64> {
    let mut counts = BTreeMap::new();
    for sample in samples {
        if let Err(error) = &sample.outcome {
            println!("no reply: {error}");
        }
        *counts
            .entry(sample.outcome.clone().unwrap_or(0))
            .or_default() += 1;
    }
    counts
}

fn count(statuses: &BTreeMap<u16, u64>, status: u16) -> u64 {
    statuses.get(&status).copied().unwrap_or_default()
}

/// Two loads, one without limits and one that runs into its limit of 3,000.
fn loads(gateway: &Gateway) -> Result<[Load; 2]> {
    let load = |key| -> Result<Load> {
        let pause = Duration::from_millis(2);
        Ok(Load::start(&gateway.client()?, 4, pause, "/v1/items", key))
    };
    Ok([load("free-key")?, load("eternity3000-key")?])
}

/// Waits until what was replaced is gone, with its connections.
async fn drained(gateway: &Gateway) -> Result<()> {
    eventually("what was replaced to be gone", PATIENCE, async || {
        let now = gateway.envoy.stats("listener_manager.total_").await.ok()?;
        let gone =
            |name: &str| now.get(&format!("listener_manager.total_{name}_draining")) == Some(&0);
        (gone("listeners") && gone("filter_chains")).then_some(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Envoy and the module: run cargo xtask test"]
async fn a_new_configuration_under_load_loses_no_request_no_usage_and_no_limit() -> Result<()> {
    let mut gateway = Gateway::start(setup()).await?;
    let [free, limited] = loads(&gateway)?;
    free.go_on_for(300).await?;
    for ttl in ["50s", "40s", "30s"] {
        let plugin = gateway.plugin_with(&json!({ "authorization": { "ttl": ttl } }));
        let update = gateway.envoy.update_listener(plugin).await?;
        assert_eq!(update, ListenerUpdate::Accepted);
        free.go_on_for(500).await?;
    }
    eventually("the limit to be used up", PATIENCE, async || {
        (gateway.counter("requests_limited").await.ok()? > 200).then_some(())
    })
    .await?;
    drained(&gateway).await?;
    let free = by_status(&free.finish().await?);
    let limited = by_status(&limited.finish().await?);
    let admitted = count(&free, 200) + count(&limited, 200);
    gateway.flushed(admitted).await?;
    let used = (
        gateway.usage("free", "hits"),
        gateway.usage("eternity3000", "hits"),
    );
    println!(
        "three reloads of the configuration: {free:?}, usage {}; against 3,000: {limited:?}, \
         usage {}; {} units sent twice for want of an answer",
        used.0,
        used.1,
        gateway.counter("usage_resent").await?,
    );
    assert_eq!(free.keys().collect::<Vec<_>>(), [&200], "no request fails");
    assert_eq!(limited.keys().collect::<Vec<_>>(), [&200, &429]);
    assert_eq!(count(&limited, 200), 3_000);
    assert_eq!(used, (count(&free, 200), 3_000));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Envoy and the module: run cargo xtask test"]
async fn a_new_module_under_load_loses_no_request_no_usage_and_no_limit() -> Result<()> {
    let mut gateway = Gateway::start(setup()).await?;
    let directory = tempfile::tempdir()?;
    let shipped = std::env::var("TOLLGATE_WASM")?;
    let [free, limited] = loads(&gateway)?;
    free.go_on_for(300).await?;
    for version in 0..2_u8 {
        // A custom section makes it another module to Envoy, which goes by the bytes:
        // section 0, 3 bytes long: a name of 1 byte, and 1 byte of content.
        let mut module = std::fs::read(&shipped)?;
        module.extend([0, 3, 1, b'v', version]);
        let path = directory.path().join(format!("{version}.wasm"));
        std::fs::write(&path, module)?;
        let update = gateway.envoy.update_module(&path).await?;
        assert_eq!(update, ListenerUpdate::Accepted);
        free.go_on_for(500).await?;
    }
    eventually("the limit to be used up", PATIENCE, async || {
        (gateway.counter("requests_limited").await.ok()? > 200).then_some(())
    })
    .await?;
    drained(&gateway).await?;
    let free = by_status(&free.finish().await?);
    let limited = by_status(&limited.finish().await?);
    let admitted = (count(&free, 200), count(&limited, 200));
    // A report that was on its way when its VM went is sent again after its deadline.
    gateway.flushed(admitted.0 + admitted.1).await?;
    let used = (
        gateway.usage("free", "hits"),
        gateway.usage("eternity3000", "hits"),
    );
    let resent = gateway.counter("usage_resent").await?;
    println!(
        "two reloads of the module: {free:?}, usage {}; against 3,000: {limited:?}, usage {}; \
         lost {}, double {}, {resent} units sent twice for want of an answer",
        used.0,
        used.1,
        (admitted.0 + admitted.1).saturating_sub(used.0 + used.1),
        (used.0 + used.1).saturating_sub(admitted.0 + admitted.1),
    );
    assert_eq!(free.keys().collect::<Vec<_>>(), [&200], "no request fails");
    assert_eq!(limited.keys().collect::<Vec<_>>(), [&200, &429]);
    assert_eq!(admitted.1, 3_000);
    assert!(
        used.0 >= admitted.0 && used.1 >= admitted.1,
        "usage is lost"
    );
    assert!(used.0 + used.1 <= admitted.0 + admitted.1 + resent);
    Ok(())
}

/// The service that comes in place of the removed one; nobody is known to it.
const OTHER_SERVICE: &str = r#"
  "1002":
    backend_version: "1"
    applications: {}
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Envoy and the module: run cargo xtask test"]
async fn a_service_that_is_removed_under_load_is_reported_although_its_listener_is_gone_first()
-> Result<()> {
    // The interval is longer than the drain time, so all of the last one's usage is pending
    // when the listener goes.
    let default = Setup::default();
    let mut gateway = Gateway::start(Setup {
        dataset: default.dataset + OTHER_SERVICE,
        plugin: json!({ "reporting": { "interval": "20s", "timeout": "1s" } }),
        envoy: EnvoyOptions {
            drain_time: Duration::from_secs(4),
            ..setup().envoy
        },
    })
    .await?;
    let client = gateway.client()?;
    let load = Load::start(
        &client,
        4,
        Duration::from_millis(2),
        "/v1/items",
        "free-key",
    );
    load.go_on_for(1_000).await?;
    let other = gateway.plugin_with(&json!({ "services": [{
        "id": "1002",
        "token": { "env": "TG_SERVICE_TOKEN" },
        "hosts": ["*"],
        "credentials": { "user_key": [{ "header": "x-api-key" }] },
        "mapping_rules": [{ "pattern": "/", "usage": { "hits": 1 } }],
    }] }));
    let update = gateway.envoy.update_listener(other).await?;
    assert_eq!(update, ListenerUpdate::Accepted);
    let mut others = 0;
    eventually("the service to be gone", PATIENCE, async || {
        let reply = client.get("/v1/items", &[("x-api-key", "free-key")]).await;
        let status = reply.ok()?.status;
        others += u64::from(status == 200);
        (status == 403).then_some(())
    })
    .await?;
    drained(&gateway).await?;
    let statuses = by_status(&load.finish().await?);
    let admitted = count(&statuses, 200) + others;
    let pending = admitted.saturating_sub(gateway.usage("free", "hits"));
    gateway.flushed(admitted).await?;
    let used = gateway.usage("free", "hits");
    println!(
        "a service removed with {pending} units pending: {statuses:?}, usage {used}, {} of it by \
         connections that were reset",
        used.saturating_sub(admitted)
    );
    assert!(pending > 0, "nothing was left to report");
    assert!((admitted..=admitted + count(&statuses, 0)).contains(&used));
    Ok(())
}
