//! What a caller is told in every case, and what the access log says of it.

use std::time::Duration;

use anyhow::{Context, Result};
use reqwest::Method;
use serde_json::json;
use service_management::{ApplicationChange, Fault, FaultRule, FaultScope};
use tollgate_end_to_end::{Gateway, Setup};
use tollgate_harness::Reply;

const DATASET: &str = r#"
metrics: { hits: null, searches: null }
plans:
  free: {}
  minute1: { hits: { minute: 1 } }
  eternity1: { hits: { eternity: 1 } }
  none: { hits: { day: 0 } }
services:
  "1001":
    service_token: svc-token
    backend_version: "1"
    applications:
      free: { plan: free, user_key: "free key+1" }
      minute1: { plan: minute1, user_key: minute1-key }
      eternity1: { plan: eternity1, user_key: eternity1-key }
      none: { plan: none, user_key: none-key }
      suspended: { plan: free, user_key: suspended-key, state: suspended }
      new1: { plan: free, user_key: new1-key }
      new2: { plan: free, user_key: new2-key }
      new3: { plan: free, user_key: new3-key }
      new4: { plan: free, user_key: new4-key }
  "1002":
    service_token: another-token
    backend_version: "1"
    applications:
      searcher: { plan: free, user_key: search-key }
  "1003":
    service_token: svc-token
    backend_version: "1"
    state: suspended
    applications:
      closed: { plan: free, user_key: closed-key }
"#;

fn setup() -> Setup {
    Setup {
        dataset: DATASET.to_owned(),
        plugin: json!({
            "service_management": { "timeout": "300ms" },
            "services": [
                {
                    "id": "1001",
                    "token": { "env": "TG_SERVICE_TOKEN" },
                    "hosts": ["api.example.com", "*.partners.example.com"],
                    "credentials": { "user_key": [{ "query": "user_key" }, { "header": "x-api-key" }] },
                    "mapping_rules": [{ "method": "GET", "pattern": "/v1/", "usage": { "hits": 1 } }],
                    "exempt": [{ "method": "OPTIONS" }, { "path": "/healthz" }],
                },
                {
                    "id": "1002",
                    "token": "another-token",
                    "hosts": ["search.example.com"],
                    "mapping_rules": [{ "pattern": "/", "usage": { "searches": 2 } }],
                },
                {
                    "id": "1003",
                    "token": { "env": "TG_SERVICE_TOKEN" },
                    "hosts": ["closed.example.com"],
                    "mapping_rules": [{ "pattern": "/", "usage": { "hits": 1 } }],
                },
            ],
        }),
        ..Setup::default()
    }
}

/// Name and value.
type Header = (&'static str, &'static str);

/// What it is, the request's host, path and headers, and the status and details of a
/// right answer.
type Case = (
    &'static str,
    &'static str,
    &'static str,
    &'static [Header],
    u16,
    &'static str,
);

/// Sends a request to a host and returns its answer with the `details` of the access log.
/// No two requests may have the same path.
async fn ask(
    gateway: &Gateway,
    method: Method,
    host: &str,
    path: &str,
    headers: &[(&str, &str)],
) -> Result<(Reply, String)> {
    let headers: Vec<_> = [("host", host)].iter().chain(headers).copied().collect();
    let reply = gateway
        .client()?
        .send(method, path, &headers, Vec::new())
        .await?;
    let plain = path.split('?').next().unwrap_or_default();
    let line = gateway
        .envoy
        .wait_for_access_log(|line| line["path"] == plain)
        .await?;
    let details = line["details"].as_str().context("no details")?.to_owned();
    Ok((reply, details))
}

async fn get(gateway: &Gateway, path: &str, headers: &[(&str, &str)]) -> Result<(Reply, String)> {
    ask(gateway, Method::GET, "api.example.com", path, headers).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Envoy and the module: run cargo xtask test"]
async fn every_case_has_its_status_and_its_name_in_the_access_log() -> Result<()> {
    let gateway = Gateway::start(setup()).await?;
    let api = "api.example.com";
    let search = "search.example.com";
    let cases: [Case; 21] = [
        (
            "no credential",
            api,
            "/v1/a1",
            &[],
            401,
            "tollgate_no_credential",
        ),
        (
            "empty credential",
            api,
            "/v1/a2?user_key=",
            &[("x-api-key", " ")],
            401,
            "tollgate_no_credential",
        ),
        (
            "unknown key",
            api,
            "/v1/a3?user_key=nobody",
            &[],
            403,
            "tollgate_user_key_invalid",
        ),
        (
            "suspended",
            api,
            "/v1/a4?user_key=suspended-key",
            &[],
            403,
            "tollgate_application_not_active",
        ),
        (
            "impossible key",
            api,
            "/v1/a5?user_key=a%00",
            &[],
            403,
            "tollgate_credential_unusable",
        ),
        (
            "no rule",
            api,
            "/v2/a6?user_key=minute1-key",
            &[],
            404,
            "tollgate_no_mapping_rule",
        ),
        (
            "unknown host",
            "elsewhere.example.com",
            "/v1/a7?user_key=x",
            &[],
            404,
            "tollgate_no_service",
        ),
        (
            "wildcards do not cover their domain",
            "partners.example.com",
            "/v1/a8",
            &[],
            404,
            "tollgate_no_service",
        ),
        (
            "disabled",
            api,
            "/v1/a9?user_key=none-key",
            &[],
            403,
            "tollgate_metric_disabled",
        ),
        (
            "last unit",
            api,
            "/v1/b1?user_key=eternity1-key",
            &[],
            200,
            "via_upstream",
        ),
        (
            "over for ever",
            api,
            "/v1/b2?user_key=eternity1-key",
            &[],
            429,
            "tollgate_limit_exceeded",
        ),
        ("exempt path", api, "/healthz", &[], 200, "via_upstream"),
        (
            "key in the query",
            api,
            "/v1/b3?a=b&user_key=free+key%2B1",
            &[],
            200,
            "via_upstream",
        ),
        (
            "key in the header",
            api,
            "/v1/b4",
            &[("X-Api-Key", "free key+1")],
            200,
            "via_upstream",
        ),
        (
            "the first place decides",
            api,
            "/v1/b5?user_key=nobody",
            &[("x-api-key", "free key+1")],
            403,
            "tollgate_user_key_invalid",
        ),
        (
            "host with port and case",
            "API.example.com:80",
            "/v1/b6",
            &[("x-api-key", "free key+1")],
            200,
            "via_upstream",
        ),
        (
            "wildcard",
            "a.b.partners.example.com",
            "/v1/b7",
            &[("x-api-key", "free key+1")],
            200,
            "via_upstream",
        ),
        (
            "another service",
            search,
            "/b8?user_key=search-key",
            &[],
            200,
            "via_upstream",
        ),
        (
            "a key of another service",
            search,
            "/b9?user_key=minute1-key",
            &[],
            403,
            "tollgate_user_key_invalid",
        ),
        (
            "a place of another service",
            search,
            "/c1",
            &[("x-api-key", "search-key")],
            401,
            "tollgate_no_credential",
        ),
        (
            "suspended service",
            "closed.example.com",
            "/c2?user_key=closed-key",
            &[],
            403,
            "tollgate_service_not_active",
        ),
    ];
    for (what, host, path, headers, status, details) in cases {
        let (reply, told) = ask(&gateway, Method::GET, host, path, headers).await?;
        assert_eq!(
            (reply.status, told.as_str()),
            (status, details),
            "{what}: {}",
            reply.body
        );
        let challenge = reply.header("www-authenticate").is_some();
        assert_eq!(challenge, status == 401, "{what}");
        // Nothing helps against an eternal limit, so nothing is promised.
        assert_eq!(reply.header("retry-after"), None, "{what}");
        if status != 200 {
            assert_eq!(
                reply.header("content-type"),
                Some("text/plain; charset=utf-8"),
                "{what}"
            );
            assert!(
                !reply.body.is_empty() && !reply.body.contains("key"),
                "{what}: {}",
                reply.body
            );
        }
    }
    let (preflight, _) = ask(&gateway, Method::OPTIONS, api, "/v1/c3", &[]).await?;
    assert_eq!(preflight.status, 200);
    let (post, details) = ask(
        &gateway,
        Method::POST,
        api,
        "/v1/c4?user_key=minute1-key",
        &[],
    )
    .await?;
    assert_eq!(
        (post.status, details.as_str()),
        (404, "tollgate_no_mapping_rule")
    );

    // Two in the same minute: should it end in between, the third is in the minute of the second.
    let mut limited = None;
    for path in ["/v1/d1", "/v1/d2", "/v1/d3"] {
        let (reply, details) = get(&gateway, path, &[("x-api-key", "minute1-key")]).await?;
        if reply.status == 429 {
            limited = Some((reply, details));
            break;
        }
    }
    let (reply, details) = limited.context("a limit of 1 a minute let three pass")?;
    assert_eq!(details, "tollgate_limit_exceeded");
    let seconds: u64 = reply
        .header("retry-after")
        .context("no Retry-After")?
        .parse()?;
    assert!((1..=60).contains(&seconds), "{seconds}");

    // The right services have been told.
    gateway.flushed(1).await?;
    tollgate_harness::eventually(
        "usage of the other service",
        tollgate_end_to_end::PATIENCE,
        async || {
            (gateway
                .backend
                .usage()
                .total("1002", "searcher", "searches")
                == 2)
                .then_some(())
        },
    )
    .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Envoy and the module: run cargo xtask test"]
async fn what_cannot_be_known_is_told_as_503_and_never_as_a_wrong_key() -> Result<()> {
    let mut gateway = Gateway::start(setup()).await?;
    let known = [("x-api-key", "free key+1")];
    let (first, _) = get(&gateway, "/v1/known", &known).await?;
    assert_eq!(first.status, 200);
    let unavailable = "tollgate_service_management_unavailable";
    for (case, what, details) in [
        (1, "refuses connections", unavailable),
        (2, "hangs", unavailable),
        (3, "answers 500", unavailable),
        (4, "refuses our token", "tollgate_misconfigured"),
    ] {
        let authorize = |fault| vec![FaultRule::always(FaultScope::Authorize, fault)];
        match case {
            1 => gateway.backend.stop().await,
            2 => gateway.backend.set_faults(authorize(Fault::Hang)),
            3 => gateway.backend.set_faults(authorize(Fault::Status(500))),
            _ => assert!(gateway.backend.set_service_token("1001", "rotated")),
        }
        let key = format!("new{case}-key");
        let (reply, told) = get(
            &gateway,
            &format!("/v1/{case}-before"),
            &[("x-api-key", &key)],
        )
        .await?;
        assert_eq!((reply.status, told.as_str()), (503, details), "it {what}");
        assert_eq!(reply.header("retry-after"), Some("1"), "it {what}");
        assert!(
            !reply.body.contains("credential"),
            "it {what}: {}",
            reply.body
        );
        // Nor is a key that is wrong told so.
        let wrong = [("x-api-key", "nobody")];
        let (reply, _) = get(&gateway, &format!("/v1/{case}-wrong"), &wrong).await?;
        assert_eq!(reply.status, 503, "it {what}");
        let (reply, _) = get(&gateway, &format!("/v1/{case}-known"), &known).await?;
        assert_eq!(reply.status, 200, "it {what}: known applications go on");

        match case {
            1 => gateway.backend.restart().await?,
            2 | 3 => gateway.backend.clear_faults(),
            _ => assert!(gateway.backend.set_service_token("1001", "svc-token")),
        }
        let (reply, _) = get(
            &gateway,
            &format!("/v1/{case}-after"),
            &[("x-api-key", &key)],
        )
        .await?;
        assert_eq!(
            reply.status, 200,
            "it {what} no more: nothing of that is remembered"
        );
    }
    assert!(
        gateway.envoy.log().contains("service_token_invalid"),
        "the operator is told"
    );
    // One known request and, in each case, one known and one new.
    gateway.flushed(9).await?;
    assert_eq!(gateway.usage("free", "hits"), 5);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Envoy and the module: run cargo xtask test"]
async fn a_suspension_takes_effect_within_the_ttl_and_a_new_key_within_the_negative_ttl()
-> Result<()> {
    let mut setup = setup();
    setup.plugin["authorization"] = json!({ "ttl": "1s", "negative_ttl": "1s" });
    let gateway = Gateway::start(setup).await?;
    let client = gateway.client()?;
    let becomes = async |key: &str, status: u16| {
        let headers = [("host", "api.example.com"), ("x-api-key", key)];
        tollgate_harness::eventually("the change", Duration::from_secs(20), async || {
            let reply = client.get("/v1/x", &headers).await.ok()?;
            (reply.status == status).then_some(())
        })
        .await
    };
    becomes("new1-key", 200).await?;
    gateway
        .backend
        .put_application("1001", "new1", ApplicationChange::suspended(true))?;
    becomes("new1-key", 403).await?;
    gateway
        .backend
        .put_application("1001", "new1", ApplicationChange::suspended(false))?;
    becomes("new1-key", 200).await?;

    becomes("later-key", 403).await?;
    let mut later = ApplicationChange::plan("free");
    later.user_key = Some("later-key".into());
    gateway.backend.put_application("1001", "later", later)?;
    becomes("later-key", 200).await?;
    Ok(())
}
