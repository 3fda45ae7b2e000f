//! Tollgate behind Envoy's own `jwt_authn`, with tokens of a real OpenID provider: what that filter
//! has verified lets applications in, and what a client says of itself does not.
//!
//! Apart from the tokens that Tollgate verifies because another filter stands in front. It is the
//! one of `envoy/behind-jwt-authn.yaml`, changed only as far as the tests must.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use tollgate_end_to_end::{
    Gateway, INSUFFICIENT_SCOPE, INVALID_TOKEN, Provider, TokenService, challenge, get, get_at,
    merge, order,
};
use tollgate_harness::{ListenerPatch, Reply, connection_manager};

const SHIPPED: &str = include_str!("../../../envoy/behind-jwt-authn.yaml");
/// Where `jwt_authn` hands the payload on in a header as well. Nobody looks at it.
const PAYLOAD_HEADER: &str = "x-jwt-payload";
const CHALLENGE: &str = "Bearer realm=\"api\"";

/// The shipped `jwt_authn`, for this provider, with some paths on which it requires less.
fn jwt_authn(provider: &Provider, patch: &Value) -> Result<Value> {
    let shipped: Value = serde_yaml::from_str(SHIPPED)?;
    let mut filter = shipped["http_filters"][0].clone();
    let config = &mut filter["typed_config"];
    let of_provider = &mut config["providers"]["shop"];
    of_provider["issuer"] = json!(provider.issuer);
    of_provider["audiences"] = json!(["orders"]);
    of_provider["forward_payload_header"] = json!(PAYLOAD_HEADER);
    of_provider["clock_skew_seconds"] = json!(1);
    of_provider["remote_jwks"]["http_uri"]["uri"] = json!(format!("{}/jwks", provider.issuer));
    merge(of_provider, patch);
    let rules = config["rules"].as_array_mut().context("no rules")?;
    rules.splice(
        ..0,
        [
            json!({ "match": { "prefix": "/open" } }),
            json!({ "match": { "prefix": "/missing" }, "requires": { "allow_missing": {} } }),
            json!({ "match": { "prefix": "/failed" }, "requires": { "allow_missing_or_failed": {} } }),
        ],
    );
    config["bypass_cors_preflight"] = json!(true);
    Ok(filter)
}

async fn start(provider: &Provider, patch: Value, credentials: Value) -> Result<Gateway> {
    let filter = jwt_authn(provider, &patch)?;
    let behind: ListenerPatch = Arc::new(move |listener: &mut Value| {
        let manager = connection_manager(listener);
        let filters = manager["http_filters"].as_array_mut();
        filters.expect("a list").insert(0, filter.clone());
        let routes = manager.pointer_mut("/route_config/virtual_hosts/0/routes");
        let routes = routes.and_then(Value::as_array_mut).expect("routes");
        for path in ["/skipped", "/echo/skipped"] {
            let mut route = routes.last().cloned().expect("a route");
            route["match"]["prefix"] = json!(path);
            let name = "type.googleapis.com/envoy.config.route.v3.FilterConfig";
            let off = json!({ "@type": name, "disabled": true });
            route["typed_per_filter_config"] = json!({ "envoy.filters.http.jwt_authn": off });
            routes.insert(0, route);
        }
    });
    let mut all = json!({
        "token": {
            "jwt_authn": { "payload_in_metadata": "shop" },
            "issuers": [{ "issuer": provider.issuer, "audiences": ["orders"], "leeway": "1s" }],
            "claims_to_headers": { "x-client": "client_id", "x-scope": "scope" },
        },
    });
    merge(&mut all, &credentials);
    let service = TokenService {
        patch: json!({ "exempt": [{ "path": "/echo/skipped" }] }),
        listener: Some(behind),
        ..TokenService::new(all)
    };
    service.start(provider).await
}

/// The headers that the API saw.
fn upstream(reply: &Reply) -> Result<BTreeMap<String, Vec<String>>> {
    let seen: Value = serde_json::from_str(&reply.body).context(reply.body.clone())?;
    Ok(serde_json::from_value(seen["headers"].clone())?)
}

async fn detail(gateway: &Gateway, path: &str) -> Result<String> {
    let line = gateway
        .envoy
        .wait_for_access_log(|line| line["path"] == path)
        .await?;
    Ok(line["details"].as_str().unwrap_or_default().to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Envoy, the module and the provider: run cargo xtask test"]
async fn what_jwt_authn_has_verified_lets_its_application_in_and_counts_for_it() -> Result<()> {
    let provider = Provider::start().await?;
    let gateway = start(&provider, json!({}), json!({})).await?;
    let client = gateway.client()?;
    for algorithm in ["RS256", "PS256", "ES256", "EdDSA"] {
        let like = format!("alg={algorithm}");
        let token = provider.token("free", "orders.read", &like).await?;
        for _ in 0..3 {
            assert_eq!(get(&client, &token).await?.status, 200, "{algorithm}");
        }
    }
    let limited = provider.token("limited", "", "").await?;
    let mut statuses = Vec::new();
    for _ in 0..7 {
        statuses.push(get(&client, &limited).await?.status);
    }
    assert_eq!(statuses, [200, 200, 200, 200, 200, 429, 429]);

    let reads = provider.token("other", "orders.read", "").await?;
    let reply = order(&client, &reads).await?;
    assert_eq!(challenge(&reply), INSUFFICIENT_SCOPE);
    let writes = provider
        .token("other", "orders.read orders.write", "")
        .await?;
    assert_eq!(order(&client, &writes).await?.status, 200);
    let seen = upstream(&get_at(&client, "/echo", &writes).await?)?;
    assert_eq!(seen["x-client"], ["other"]);
    assert_eq!(seen["x-scope"], ["orders.read orders.write"]);
    assert!(!seen.contains_key("authorization"), "{seen:?}");

    // Service management does not know it; whoever has it is not let in.
    let unknown = provider.token("unknown", "", "").await?;
    assert_eq!(get(&client, &unknown).await?.status, 403);
    gateway.flushed(19).await?;
    assert_eq!(gateway.usage("free", "hits"), 12);
    assert_eq!(gateway.usage("limited", "hits"), 5);
    assert_eq!(gateway.usage("other", "hits"), 2);
    assert_eq!(gateway.usage("other", "orders"), 1);
    // No signature was looked at here.
    assert_eq!(gateway.counter("token_verifications").await?, 0);
    assert_eq!(gateway.counter("key_fetches").await?, 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Envoy, the module and the provider: run cargo xtask test"]
async fn what_jwt_authn_refuses_does_not_get_to_service_management() -> Result<()> {
    let provider = Provider::start().await?;
    let elsewhere = Provider::start().await?;
    let gateway = start(&provider, json!({}), json!({})).await?;
    let client = gateway.client()?;
    for (what, token, status) in [
        (
            "for another audience",
            provider.token("free", "", "aud=search").await?,
            403,
        ),
        (
            "of another issuer",
            elsewhere.token("free", "", "").await?,
            401,
        ),
        (
            "signed with another key",
            provider.forged("other-key").await?,
            401,
        ),
        ("of algorithm none", provider.forged("none").await?, 401),
        (
            "of HS256 with the public key",
            provider.forged("hs256").await?,
            401,
        ),
    ] {
        let path = format!("/{}", what.replace(' ', "-"));
        let reply = get_at(&client, &path, &token).await?;
        assert_eq!(reply.status, status, "{what}");
        let detail = detail(&gateway, &path).await?;
        assert!(
            detail.starts_with("jwt_authn_access_denied"),
            "{what}: {detail}"
        );
        println!("a token {what}: {status}, {detail}");
    }
    assert_eq!(client.get("/", &[]).await?.status, 401);
    assert_eq!(gateway.questions(), 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Envoy, the module and the provider: run cargo xtask test"]
async fn a_hand_over_that_the_client_wrote_counts_for_nothing() -> Result<()> {
    let provider = Provider::start().await?;
    let gateway = start(&provider, json!({}), json!({})).await?;
    let client = gateway.client()?;
    let good = provider.token("free", "orders.write", "").await?;
    let payload = good.split('.').nth(1).context("three parts")?;
    let claims = String::from_utf8(URL_SAFE_NO_PAD.decode(payload)?)?;
    let metadata = json!({ "envoy.filters.http.jwt_authn": { "shop": claims } }).to_string();
    let bearer = format!("Bearer {good}");
    let forged = [
        (PAYLOAD_HEADER, payload),
        ("shop", claims.as_str()),
        ("jwt", payload),
        ("metadata", metadata.as_str()),
        ("filter-metadata", metadata.as_str()),
        ("envoy.filters.http.jwt-authn", claims.as_str()),
        ("x-envoy-metadata", metadata.as_str()),
        ("x-client", "free"),
        ("x-client-id", "free"),
        ("app-id", "free"),
        // Nobody has verified it where jwt_authn requires nothing.
        ("authorization", bearer.as_str()),
    ];
    let get = reqwest::Method::GET;
    let options = reqwest::Method::OPTIONS;
    // Each alone and all together, where jwt_authn requires nothing or accepts less.
    for path in ["/open", "/missing", "/failed", "/skipped"] {
        let mut attempts: Vec<Vec<(&str, &str)>> = forged.iter().map(|one| vec![*one]).collect();
        attempts.push(forged.to_vec());
        attempts.push(Vec::new());
        for headers in &attempts {
            // Where it looks for tokens, a good one is good.
            let verified = ["/missing", "/failed"].contains(&path)
                && headers.iter().any(|(name, _)| *name == "authorization");
            let reply = client.send(get.clone(), path, headers, Vec::new()).await?;
            if verified {
                assert_eq!(reply.status, 200, "{path} {headers:?}");
            } else {
                assert_eq!(challenge(&reply), (401, CHALLENGE), "{path} {headers:?}");
            }
        }
    }
    println!("refused: {} forged hand-overs on 4 paths", forged.len());
    assert_eq!(detail(&gateway, "/open").await?, "tollgate_no_credential");
    // A token that failed is let through there, and is nobody's.
    let failed = provider.forged("other-key").await?;
    let reply = get_at(&client, "/failed", &failed).await?;
    assert_eq!(challenge(&reply), (401, CHALLENGE));
    // A preflight passes jwt_authn unseen.
    let mut preflight = forged.to_vec();
    preflight.extend([
        ("origin", "https://a.example"),
        ("access-control-request-method", "GET"),
    ]);
    let reply = client.send(options, "/", &preflight, Vec::new()).await?;
    assert_eq!(challenge(&reply), (401, CHALLENGE));

    // Beside a good token, what the client says of itself changes nothing.
    let other = provider.token("other", "orders.read", "").await?;
    let bearer = format!("Bearer {other}");
    let mut headers = forged[..forged.len() - 1].to_vec();
    headers.push(("x-scope", "orders.write"));
    headers.push(("authorization", &bearer));
    let seen = upstream(&client.get("/echo", &headers).await?)?;
    assert_eq!(seen["x-client"], ["other"]);
    assert_eq!(seen["x-scope"], ["orders.read"]);
    let post = reqwest::Method::POST;
    let reply = client.send(post, "/orders", &headers, Vec::new()).await?;
    assert_eq!(reply.status, 403);

    // Why the header is not looked at: where a route has switched jwt_authn off, it passes.
    let header = [(PAYLOAD_HEADER, payload)];
    let reply = client.get("/echo/skipped", &header).await?;
    assert_eq!(upstream(&reply)?[PAYLOAD_HEADER], [payload]);
    println!("a client's {PAYLOAD_HEADER} reaches the API where a route switches jwt_authn off");

    gateway.flushed(5).await?;
    // The good token where it was verified, and nothing else.
    assert_eq!(gateway.usage("free", "hits"), 4);
    assert_eq!(gateway.usage("other", "hits"), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Envoy, the module and the provider: run cargo xtask test"]
async fn what_jwt_authn_forgot_to_ask_is_asked_nevertheless() -> Result<()> {
    let provider = Provider::start().await?;
    // It takes tokens of any audience, and for a minute longer.
    let careless = json!({ "audiences": [], "clock_skew_seconds": 60 });
    let gateway = start(&provider, careless, json!({})).await?;
    let client = gateway.client()?;
    let search = provider.token("free", "", "aud=search").await?;
    let reply = get_at(&client, "/audience", &search).await?;
    assert_eq!(challenge(&reply), INVALID_TOKEN);
    assert_eq!(
        detail(&gateway, "/audience").await?,
        "tollgate_token_audience"
    );
    let expired = provider.token("free", "", "ttl=1").await?;
    assert_eq!(get(&client, &expired).await?.status, 200);
    tokio::time::sleep(Duration::from_millis(3_100)).await;
    let reply = get_at(&client, "/expired", &expired).await?;
    assert_eq!(challenge(&reply), INVALID_TOKEN);
    assert_eq!(
        detail(&gateway, "/expired").await?,
        "tollgate_token_expired"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Envoy, the module and the provider: run cargo xtask test"]
async fn who_has_no_token_is_anonymous_but_not_who_has_an_unverified_one() -> Result<()> {
    let provider = Provider::start().await?;
    let anonymous = json!({ "anonymous": { "app_id": "other" } });
    let gateway = start(&provider, json!({}), anonymous).await?;
    let client = gateway.client()?;
    let token = provider.token("free", "", "").await?;
    assert_eq!(client.get("/open", &[]).await?.status, 200);
    assert_eq!(get_at(&client, "/missing", &token).await?.status, 200);
    assert_eq!(get_at(&client, "/open", &token).await?.status, 401);
    // It has no scopes.
    let post = reqwest::Method::POST;
    let reply = client.send(post, "/orders", &[], Vec::new()).await?;
    assert_eq!(reply.status, 401);
    gateway.flushed(2).await?;
    assert_eq!(gateway.usage("other", "hits"), 1);
    assert_eq!(gateway.usage("free", "hits"), 1);
    Ok(())
}
