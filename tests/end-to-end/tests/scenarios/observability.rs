//! What operators see: counters that are right, and no secrets anywhere.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use serde_json::json;
use service_management::{Fault, FaultRule, FaultScope};
use tollgate_end_to_end::{Gateway, PATIENCE, Setup};
use tollgate_harness::{EnvoyOptions, eventually};

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

/// Envoy itself prints headers and paths at `trace`, and so prints consumers' keys and
/// the filter's calls, token and all. That is Envoy's own doing and not to be helped from
/// inside. So of Envoy's log only the filter's lines are searched.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Envoy and the module: run cargo xtask test"]
async fn no_secret_is_in_anything_that_the_filter_writes() -> Result<()> {
    const TOKEN: &str = "zorilla-of-the-service";
    const KEY: &str = "zorilla-of-a-consumer";
    const STRANGER: &str = "zorilla-of-a-stranger";
    let dataset = format!(
        r#"
service_token: {TOKEN}
metrics: {{ hits: null }}
plans: {{ none: {{ hits: {{ day: 0 }} }}, free: {{}} }}
services:
  "1001":
    backend_version: "1"
    applications:
      a: {{ plan: free, user_key: {KEY} }}
      b: {{ plan: none, user_key: {KEY}-none }}
      c: {{ plan: free, user_key: {KEY}-suspended, state: suspended }}
"#
    );
    let gateway = Gateway::start(Setup {
        dataset,
        plugin: json!({
            "authorization": { "ttl": "1s", "negative_ttl": "1s" },
            "reporting": { "timeout": "300ms" },
            "service_management": { "timeout": "300ms" },
        }),
        envoy: EnvoyOptions {
            log_level: "trace".into(),
            env: vec![("TG_SERVICE_TOKEN".into(), TOKEN.into())],
            ..EnvoyOptions::default()
        },
    })
    .await?;
    let client = gateway.client()?;
    let mut replies = String::new();
    let keys = [
        KEY.to_owned(),
        format!("{KEY}-none"),
        format!("{KEY}-suspended"),
        STRANGER.to_owned(),
    ];
    for (step, faults) in [
        vec![],
        vec![FaultRule::always(FaultScope::Any, Fault::Status(500))],
        vec![FaultRule::always(FaultScope::Any, Fault::ResetAfter)],
        vec![],
    ]
    .into_iter()
    .enumerate()
    {
        gateway.backend.set_faults(faults);
        for key in &keys {
            for (path, headers) in [
                (format!("/v1/items?user_key={key}"), vec![]),
                (format!("/v1/items?user_key=%00{key}"), vec![]),
                ("/v1/items".to_owned(), vec![("x-api-key", key.clone())]),
                (
                    "/v1/items".to_owned(),
                    vec![("x-api-key", format!("{key}-{step}"))],
                ),
            ] {
                let headers: Vec<_> = headers
                    .iter()
                    .map(|(name, value)| (*name, value.as_str()))
                    .collect();
                let reply = client.get(&path, &headers).await?;
                replies.push_str(&format!("{:?} {}\n", reply.headers, reply.body));
            }
        }
        let failures = gateway.counter("authorize_failures").await?;
        let uncertain = gateway.counter("reports_uncertain").await?;
        if step == 1 || step == 2 {
            // Also the failures that happen behind the traffic's back.
            eventually("a refresh and a report to fail", PATIENCE, async || {
                client.get("/v1/items", &[("x-api-key", KEY)]).await.ok()?;
                let refreshed = gateway.counter("authorize_failures").await.ok()? > failures;
                let reported = gateway.counter("reports_uncertain").await.ok()? > uncertain;
                (refreshed && reported).then_some(())
            })
            .await?;
        }
    }
    let refused = gateway.backend.set_service_token("1001", "another");
    assert!(refused);
    // After so many failures nobody is asked for a while.
    eventually(
        "service management to be asked again",
        PATIENCE,
        async || {
            let late = [("x-api-key", "zorilla-late")];
            let reply = client.get("/v1/items", &late).await.ok()?;
            assert_eq!(reply.status, 503);
            replies.push_str(&reply.body);
            tokio::time::sleep(Duration::from_millis(100)).await;
            let lines = gateway.envoy.access_log().ok()?;
            let mut details = lines.iter().map(|line| &line["details"]);
            details
                .any(|details| details == "tollgate_misconfigured")
                .then_some(())
        },
    )
    .await?;

    let log = gateway.envoy.log();
    let own: Vec<_> = log
        .lines()
        .filter(|line| line.contains("tollgate: "))
        .collect();
    assert!(
        own.iter()
            .any(|line| line.contains("service_token_invalid")),
        "the search finds nothing: {own:?}"
    );
    assert!(own.len() >= 4, "{own:?}");
    println!(
        "{} of {} lines are the filter's; Envoy's own have the token {} times",
        own.len(),
        log.lines().count(),
        log.matches(TOKEN).count(),
    );
    let access_log = format!("{:?}", gateway.envoy.access_log()?);
    let stats = gateway.envoy.admin("/stats").await?;
    let dump = gateway.envoy.admin("/config_dump?include_eds").await?;
    assert!(
        dump.contains("TG_SERVICE_TOKEN"),
        "the dump shows the configuration"
    );
    for (place, text) in [
        ("the filter's log", own.join("\n")),
        ("the access log", access_log),
        ("the stats", stats),
        ("a reply", replies),
        ("the configuration dump", dump),
    ] {
        assert_eq!(text.find("zorilla"), None, "a secret in {place}:\n{text}");
    }
    Ok(())
}
