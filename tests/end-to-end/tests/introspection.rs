//! Opaque tokens of a real OpenID provider, in a real Envoy: active, revoked, expired, and what
//! becomes of requests while the provider is down; and how many requests an introspection serves.
//!
//! A binary of its own because it needs a provider beside everything else.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::{Value, json};
use tollgate_end_to_end::{
    Gateway, INVALID_TOKEN, PATIENCE, Provider, TokenService, challenge, get, merge, order,
};
use tollgate_harness::eventually;

const SECRET: &str = "gateway-secret";
/// Where the provider introspects.
const ENDPOINT: &str = "/token/introspection";

/// A gateway whose service asks this provider about tokens.
async fn start(provider: &Provider, introspection: Value) -> Result<Gateway> {
    let mut asked = json!({
        "cluster": "id",
        "url": format!("{}{ENDPOINT}", provider.issuer),
        "client_id": "gateway",
        "client_secret": SECRET,
        "issuer": provider.issuer,
        "audiences": ["orders"],
        "calls_per_second": 1000,
    });
    merge(&mut asked, &introspection);
    let credentials = json!({ "token": { "introspection": asked }, "strip": true });
    TokenService::new(credentials).start(provider).await
}

async fn opaque(provider: &Provider, client: &str, scope: &str, like: &str) -> Result<String> {
    let like = format!("format=opaque&{like}");
    let token = provider.token(client, scope, &like).await?;
    assert!(!token.contains('.'), "it is opaque");
    Ok(token)
}

async fn seen_in_access_log(gateway: &Gateway, details: &str) -> Result<()> {
    let is = |line: &Value| line["details"] == details;
    gateway.envoy.wait_for_access_log(is).await.map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Envoy, the module and the provider: run cargo xtask test"]
async fn an_active_opaque_token_lets_its_application_in_and_counts_for_it() -> Result<()> {
    let provider = Provider::start().await?;
    let gateway = start(&provider, json!({})).await?;
    let client = gateway.client()?;
    let reads = opaque(&provider, "free", "orders.read", "").await?;
    let writes = opaque(&provider, "other", "orders.read orders.write", "").await?;
    for _ in 0..10 {
        assert_eq!(get(&client, &reads).await?.status, 200);
    }
    assert_eq!(order(&client, &reads).await?.status, 403);
    assert_eq!(order(&client, &writes).await?.status, 200);
    let limited = opaque(&provider, "limited", "", "").await?;
    let mut statuses = Vec::new();
    for _ in 0..7 {
        statuses.push(get(&client, &limited).await?.status);
    }
    assert_eq!(statuses, [200, 200, 200, 200, 200, 429, 429]);
    // A signed one is asked about as well, for there are no issuers.
    let signed = provider.token("free", "", "").await?;
    let reply = get(&client, &signed).await?;
    println!(
        "a signed token, which oidc-provider does not introspect: {}",
        reply.status
    );
    assert_eq!(reply.status, 401);

    gateway.flushed(16).await?;
    assert_eq!(gateway.usage("free", "hits"), 10);
    assert_eq!(gateway.usage("other", "orders"), 1);
    assert_eq!(gateway.usage("limited", "hits"), 5);

    // For another audience, or of no application that service management has, or nobody's.
    let elsewhere = opaque(&provider, "free", "", "aud=search").await?;
    assert_eq!(get(&client, &elsewhere).await?.status, 401);
    seen_in_access_log(&gateway, "tollgate_token_audience").await?;
    let unknown = opaque(&provider, "unknown", "", "").await?;
    assert_eq!(get(&client, &unknown).await?.status, 403);
    let reply = get(&client, "made-up").await?;
    assert_eq!(challenge(&reply), INVALID_TOKEN);
    seen_in_access_log(&gateway, "tollgate_token_inactive").await?;

    // Once for each token and worker at most: there were seven tokens.
    let calls = gateway.counter("introspection_calls").await?;
    assert!((7..=14).contains(&calls), "{calls}");
    assert_eq!(provider.count(ENDPOINT).await?, calls);
    assert_eq!(gateway.counter("introspection_failures").await?, 0);
    for secret in [reads.as_str(), &writes, SECRET] {
        assert!(!gateway.envoy.log().contains(secret));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Envoy, the module and the provider: run cargo xtask test"]
async fn a_revoked_token_is_refused_once_its_answer_is_old() -> Result<()> {
    let provider = Provider::start().await?;
    let gateway = start(&provider, json!({ "ttl": "3s" })).await?;
    let client = gateway.client()?;
    let token = opaque(&provider, "free", "", "").await?;
    let kept = opaque(&provider, "free", "", "").await?;
    let asked = Instant::now();
    assert_eq!(get(&client, &token).await?.status, 200);
    provider.revoke("free", &token).await?;
    let revoked = Instant::now();
    // In use all the time, on both workers: each believes what it was told for a ttl at most.
    let mut last_good = asked;
    let mut refused = None;
    while revoked.elapsed() < Duration::from_secs(8) {
        match get(&client, &token).await?.status {
            200 => last_good = Instant::now(),
            401 => refused = refused.or(Some(Instant::now())),
            status => panic!("{status}"),
        }
        assert_eq!(get(&client, &kept).await?.status, 200);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let good_for = last_good.saturating_duration_since(revoked);
    println!(
        "ttl 3 s: a revoked token was last let in {:.1} s after it was revoked",
        good_for.as_secs_f64()
    );
    assert!(refused.is_some(), "it was let in to the end");
    assert_eq!(get(&client, &token).await?.status, 401);
    seen_in_access_log(&gateway, "tollgate_token_inactive").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Envoy, the module and the provider: run cargo xtask test"]
async fn an_expired_token_is_refused_although_its_answer_is_not_old() -> Result<()> {
    let provider = Provider::start().await?;
    let long = json!({ "ttl": "1h", "stale_if_error": "1h" });
    let gateway = start(&provider, long).await?;
    let client = gateway.client()?;
    let token = opaque(&provider, "free", "", "ttl=2").await?;
    assert_eq!(get(&client, &token).await?.status, 200);
    tokio::time::sleep(Duration::from_millis(3_100)).await;
    for _ in 0..4 {
        assert_eq!(get(&client, &token).await?.status, 401);
    }
    // On a worker that knew it, and on one that did not.
    let line = |line: &Value| {
        let details = &line["details"];
        details == "tollgate_token_expired" || details == "tollgate_token_inactive"
    };
    gateway.envoy.wait_for_access_log(line).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Envoy, the module and the provider: run cargo xtask test"]
async fn known_tokens_serve_while_the_provider_is_down_and_others_are_503() -> Result<()> {
    let provider = Provider::start().await?;
    let gateway = start(&provider, json!({ "ttl": "1s", "stale_if_error": "1h" })).await?;
    let client = gateway.client()?;
    let known = opaque(&provider, "free", "", "").await?;
    let unseen = opaque(&provider, "other", "", "").await?;
    // Until both workers know it.
    eventually("both workers to know the token", PATIENCE, async || {
        let status = get(&gateway.client().ok()?, &known).await.ok()?.status;
        assert_eq!(status, 200);
        let calls = gateway.counter("introspection_calls").await.ok()?;
        (calls >= 4).then_some(())
    })
    .await?;
    let port = provider.address.port();
    provider.stop().await?;
    let down = Instant::now();
    let (mut stale, mut unavailable) = (0, 0);
    while down.elapsed() < Duration::from_secs(5) {
        match get(&client, &known).await?.status {
            200 => stale += 1,
            status => panic!("a known token: {status}"),
        }
        let reply = get(&client, &unseen).await?;
        assert_eq!(reply.status, 503);
        let retry: u64 = reply.header("retry-after").unwrap_or("-").parse()?;
        assert!((1..=10).contains(&retry), "{retry}");
        unavailable += 1;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    seen_in_access_log(&gateway, "tollgate_introspection_unavailable").await?;
    let failures = gateway.counter("introspection_failures").await?;
    println!(
        "provider down for 5 s: {stale} requests with a known token: 200; {unavailable} with an \
         unknown one: 503; {failures} questions in vain"
    );
    assert!(gateway.counter("introspection_stale").await? > 0);
    assert!((1..=40).contains(&failures), "{failures}");

    // Back, with nothing that it knew before: now it can be asked, and says no.
    let provider = Provider::start_at(port).await?;
    let new = opaque(&provider, "other", "", "").await?;
    eventually("the provider to be asked again", PATIENCE, async || {
        let status = get(&client, &new).await.ok()?.status;
        assert!(matches!(status, 200 | 503), "{status}");
        (status == 200).then_some(())
    })
    .await?;
    eventually("the old token to be refused", PATIENCE, async || {
        (get(&client, &known).await.ok()?.status == 401).then_some(())
    })
    .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Envoy, the module and the provider: run cargo xtask test"]
async fn a_provider_that_refuses_the_gateway_is_no_fault_of_the_token() -> Result<()> {
    let provider = Provider::start().await?;
    let wrong = json!({ "client_secret": "not-the-secret" });
    let gateway = start(&provider, wrong).await?;
    let token = opaque(&provider, "free", "", "").await?;
    let reply = get(&gateway.client()?, &token).await?;
    assert_eq!(
        (reply.status, reply.header("retry-after")),
        (503, Some("1"))
    );
    seen_in_access_log(&gateway, "tollgate_misconfigured").await?;
    assert_eq!(gateway.counter("introspection_misconfigured").await?, 1);
    assert!(gateway.envoy.log().contains("refuses this gateway"));
    assert!(!gateway.envoy.log().contains("not-the-secret"));
    Ok(())
}

/// Prints how many requests an introspection serves, and how many the provider could answer by
/// itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Envoy, the module and the provider: run cargo xtask test"]
async fn requests_per_introspection_under_load() -> Result<()> {
    const TOKENS: usize = 20;
    const CONSUMERS: usize = 16;
    const TIME: Duration = Duration::from_secs(6);
    let provider = Arc::new(Provider::start().await?);
    let gateway = start(&provider, json!({ "ttl": "2s" })).await?;
    let mut tokens = Vec::new();
    for _ in 0..TOKENS {
        tokens.push(opaque(&provider, "free", "", "").await?);
    }
    let tokens = Arc::new(tokens);

    let stop = Arc::new(AtomicBool::new(false));
    let mut consumers = Vec::new();
    let asked = Arc::new(AtomicU64::new(0));
    for consumer in 0..CONSUMERS {
        let (provider, tokens) = (provider.clone(), tokens.clone());
        let (stop, asked) = (stop.clone(), asked.clone());
        consumers.push(tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                assert!(provider.introspect(&tokens[consumer]).await?);
                asked.fetch_add(1, Ordering::Relaxed);
            }
            anyhow::Ok(())
        }));
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    stop.store(true, Ordering::Relaxed);
    for consumer in consumers {
        consumer.await??;
    }
    let alone = asked.load(Ordering::Relaxed) / 2;

    let before = provider.count(ENDPOINT).await?;
    let start = Instant::now();
    let mut consumers = Vec::new();
    for consumer in 0..CONSUMERS {
        let (tokens, client) = (tokens.clone(), gateway.client()?);
        consumers.push(tokio::spawn(async move {
            let mut answered = 0_u64;
            while start.elapsed() < TIME {
                let token = &tokens[(usize::try_from(answered)? + consumer) % TOKENS];
                assert_eq!(get(&client, token).await?.status, 200);
                answered += 1;
            }
            anyhow::Ok(answered)
        }));
    }
    let mut answered = 0;
    for consumer in consumers {
        answered += consumer.await??;
    }
    let seconds = start.elapsed().as_secs();
    let calls = provider.count(ENDPOINT).await? - before;
    println!(
        "{TOKENS} tokens, ttl 2 s, 2 workers: {answered} requests in {seconds} s \
         ({} a second), {calls} introspections ({} a second): {} requests per introspection; the \
         provider by itself answered {alone} introspections a second",
        answered / seconds,
        calls / seconds,
        answered / calls.max(1)
    );
    assert_eq!(gateway.counter("introspection_calls").await?, calls);
    // Each token, on each worker, at most once in three quarters of its ttl.
    let rounds = u64::try_from(start.elapsed().as_millis())? / 1_500 + 1;
    let most = 2 * u64::try_from(TOKENS)? * rounds;
    assert!(calls <= most, "{calls} of {most}");
    gateway.flushed(answered).await?;
    assert_eq!(gateway.usage("free", "hits"), answered);
    Ok(())
}
