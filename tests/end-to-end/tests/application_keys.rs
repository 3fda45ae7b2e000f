//! Applications known by `app_id`, shown in a real Envoy before the stand-in: what the cached
//! list of keys decides without a call, and what it does not.
//!
//! A binary of its own because it starts from another dataset and plugin configuration than the
//! scenarios.

use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};
use tollgate_end_to_end::{Gateway, Setup};
use tollgate_harness::Client;

const DATASET: &str = r#"
service_token: svc-token
metrics: { hits: null, orders: hits }
plans: { free: {}, minute5: { hits: { eternity: 5 } } }
services:
  "1001":
    backend_version: "2"
    referrer_filters_required: true
    applications:
      two: { plan: free, app_keys: [k1, k2] }
      limited: { plan: minute5, app_keys: [k1, k2] }
      none: { plan: free }
      referred: { plan: free, referrer_filters: ["*.example.org"] }
"#;

/// A gateway whose answers last longer than any test.
async fn start() -> Result<Gateway> {
    let service = json!({
        "id": "1001",
        "token": "svc-token",
        "hosts": ["*"],
        "credentials": {
            "app_id": [{ "header": "x-app-id" }],
            "app_key": [{ "header": "x-app-key" }],
            "referrer": true,
        },
        "mapping_rules": [{ "pattern": "/", "usage": { "hits": 1 } }],
    });
    Gateway::start(Setup {
        dataset: DATASET.to_owned(),
        plugin: patch(service),
        ..Setup::default()
    })
    .await
}

fn patch(service: Value) -> Value {
    json!({
        "service_management": { "timeout": "30s" },
        "services": [service],
        "authorization": { "ttl": "1h", "negative_ttl": "1h" },
    })
}

async fn get(client: &Client, id: &str, key: &str, referrer: &str) -> Result<u16> {
    let headers = [("x-app-id", id), ("x-app-key", key), ("referer", referrer)];
    Ok(client.get("/", &headers).await?.status)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Envoy and the module: run cargo xtask test"]
async fn a_wrong_key_after_a_right_one_is_403_and_a_second_right_one_200_without_a_call()
-> Result<()> {
    let gateway = start().await?;
    let client = gateway.client()?;
    assert_eq!(get(&client, "two", "k1", "a").await?, 200);
    assert_eq!(gateway.questions(), 1);
    assert_eq!(get(&client, "two", "wrong", "a").await?, 403);
    assert_eq!(get(&client, "two", "k2", "a").await?, 200);
    println!(
        "the second right key, and a wrong one: {} further questions",
        gateway.questions() - 1
    );
    assert_eq!(gateway.questions(), 1);
    assert_eq!(get(&client, "none", "whatever", "a").await?, 200);
    assert_eq!(get(&client, "none", "else", "a").await?, 200);
    assert_eq!(gateway.questions(), 2);
    gateway.flushed(4).await?;
    assert_eq!(gateway.usage("two", "hits"), 2);
    let log = gateway.envoy.log();
    assert!(!log.contains("wrong") && !log.contains("whatever"), "{log}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Envoy and the module: run cargo xtask test"]
async fn a_wrong_key_asks_again_when_the_list_is_old_and_once_for_a_flood() -> Result<()> {
    let gateway = start().await?;
    let client = gateway.client()?;
    assert_eq!(get(&client, "two", "k1", "a").await?, 200);
    tokio::time::sleep(Duration::from_millis(5_100)).await;
    for number in 0..50 {
        assert_eq!(
            get(&client, "two", &format!("wrong-{number}"), "a").await?,
            403
        );
    }
    // On a machine that takes longer than five seconds for them, a third.
    assert!(
        (2..=3).contains(&gateway.questions()),
        "{}",
        gateway.questions()
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Envoy and the module: run cargo xtask test"]
async fn all_keys_of_an_application_use_up_one_limit() -> Result<()> {
    let gateway = start().await?;
    let client = gateway.client()?;
    let mut statuses = Vec::new();
    for number in 0..8 {
        statuses.push(get(&client, "limited", ["k1", "k2"][number % 2], "a").await?);
    }
    assert_eq!(statuses, [200, 200, 200, 200, 200, 429, 429, 429]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Envoy and the module: run cargo xtask test"]
async fn a_referrer_is_let_in_or_kept_out_for_itself() -> Result<()> {
    let gateway = start().await?;
    let client = gateway.client()?;
    for _ in 0..2 {
        assert_eq!(get(&client, "referred", "", "evil.com").await?, 403);
        assert_eq!(get(&client, "referred", "", "www.example.org").await?, 200);
    }
    assert_eq!(gateway.questions(), 2);
    Ok(())
}
