//! Access tokens of a real OpenID provider, in a real Envoy: whom they let in and as whom, what
//! is refused, and what becomes of it all when keys change and when the provider is down.
//!
//! A binary of its own because it needs a provider beside everything else.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tollgate_end_to_end::{
    Gateway, INSUFFICIENT_SCOPE, INVALID_TOKEN, PATIENCE, Provider, TokenService, challenge, get,
    merge, order,
};
use tollgate_harness::eventually;

/// A gateway whose service takes this provider's tokens.
async fn start(provider: &Provider, token: Value, discovery: Value) -> Result<Gateway> {
    let mut keys = json!({ "cluster": "id" });
    merge(&mut keys, &discovery);
    let mut tokens = json!({
        "issuers": [{
            "issuer": provider.issuer, "audiences": ["orders"], "leeway": "0s", "discovery": keys,
        }],
        "verifications_per_second": 1000,
    });
    merge(&mut tokens, &token);
    let credentials = json!({ "token": tokens, "strip": true });
    TokenService::new(credentials).start(provider).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Envoy, the module and the provider: run cargo xtask test"]
async fn a_token_of_every_algorithm_lets_its_application_in_and_counts_for_it() -> Result<()> {
    let provider = Provider::start().await?;
    let headers = json!({ "claims_to_headers": { "x-client": "client_id" } });
    let gateway = start(&provider, headers, json!({})).await?;
    let client = gateway.client()?;
    for algorithm in ["RS256", "PS256", "ES256", "ES384", "EdDSA"] {
        let like = format!("alg={algorithm}");
        let token = provider.token("free", "orders.read", &like).await?;
        for _ in 0..3 {
            assert_eq!(get(&client, &token).await?.status, 200, "{algorithm}");
        }
    }
    // Once for each token and worker at most.
    let verifications = gateway.counter("token_verifications").await?;
    assert!((5..=10).contains(&verifications), "{verifications}");

    let limited = provider.token("limited", "", "").await?;
    let mut statuses = Vec::new();
    for _ in 0..7 {
        statuses.push(get(&client, &limited).await?.status);
    }
    assert_eq!(statuses, [200, 200, 200, 200, 200, 429, 429]);
    let another = provider.token("limited", "", "alg=ES256").await?;
    assert_eq!(get(&client, &another).await?.status, 429);

    gateway.flushed(20).await?;
    assert_eq!(gateway.usage("free", "hits"), 15);
    assert_eq!(gateway.usage("limited", "hits"), 5);
    assert_eq!(gateway.usage("other", "hits"), 0);
    // Service management does not know it; whoever has it is not let in.
    let unknown = provider.token("unknown", "", "").await?;
    assert_eq!(get(&client, &unknown).await?.status, 403);
    // One fetch for the gateway.
    assert_eq!(provider.count("/jwks").await?, 1);
    assert_eq!(gateway.counter("key_fetches").await?, 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Envoy, the module and the provider: run cargo xtask test"]
async fn what_is_no_valid_token_is_refused_as_rfc_6750_says() -> Result<()> {
    let provider = Provider::start().await?;
    let elsewhere = Provider::start().await?;
    let gateway = start(&provider, json!({}), json!({})).await?;
    let client = gateway.client()?;
    let good = provider.token("free", "orders.read", "").await?;
    assert_eq!(get(&client, &good).await?.status, 200);

    let nothing = client.get("/", &[]).await?;
    assert_eq!(challenge(&nothing), (401, "Bearer realm=\"api\""));

    let expired = provider.token("free", "", "ttl=1").await?;
    assert_eq!(get(&client, &expired).await?.status, 200);
    tokio::time::sleep(Duration::from_millis(2_100)).await;
    let (signed, signature) = good.rsplit_once('.').context("three parts")?;
    let (header, payload) = signed.split_once('.').context("three parts")?;
    let middle = payload.len() / 2;
    let other = if payload.as_bytes()[middle] == b'A' {
        "B"
    } else {
        "A"
    };
    let changed = format!("{}{other}{}", &payload[..middle], &payload[middle + 1..]);
    for (what, token, detail) in [
        ("expired", expired, "token_expired"),
        (
            "for another audience",
            provider.token("free", "", "aud=search").await?,
            "token_audience",
        ),
        (
            "of another issuer",
            elsewhere.token("free", "", "").await?,
            "token_issuer",
        ),
        (
            "signed with another key",
            provider.forged("other-key").await?,
            "token_signature",
        ),
        (
            "with another payload",
            format!("{header}.{changed}.{signature}"),
            "token_",
        ),
        (
            "without a signature",
            format!("{signed}."),
            "token_signature",
        ),
        (
            "of algorithm none",
            provider.forged("none").await?,
            "token_algorithm",
        ),
        (
            "of HS256 with the public key",
            provider.forged("hs256").await?,
            "token_algorithm",
        ),
        (
            "opaque",
            provider.token("free", "", "format=opaque").await?,
            "token_malformed",
        ),
        ("no token at all", "x".to_owned(), "token_malformed"),
    ] {
        for _ in 0..2 {
            let reply = get(&client, &token).await?;
            assert_eq!(challenge(&reply), INVALID_TOKEN, "{what}");
            assert!(!reply.body.contains(&token), "{what}");
        }
        let wanted = format!("tollgate_{detail}");
        let is = |line: &Value| {
            line["details"]
                .as_str()
                .is_some_and(|it| it.starts_with(&wanted))
        };
        let line = gateway.envoy.wait_for_access_log(is).await;
        line.with_context(|| format!("{what}: {wanted}"))?;
        println!("a token {what}: 401, {wanted}");
    }
    // The good one is good all the while.
    assert_eq!(get(&client, &good).await?.status, 200);
    assert!(!gateway.envoy.log().contains(&good));

    let ordered = order(&client, &good).await?;
    assert_eq!(challenge(&ordered), INSUFFICIENT_SCOPE);
    let writes = provider
        .token("free", "orders.read orders.write", "")
        .await?;
    assert_eq!(order(&client, &writes).await?.status, 200);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Envoy, the module and the provider: run cargo xtask test"]
async fn keys_change_under_load_and_nobody_is_refused() -> Result<()> {
    let provider = Arc::new(Provider::start().await?);
    let interval = json!({ "unknown_key_interval": "1s" });
    let gateway = start(&provider, json!({}), interval).await?;
    let (stop, refused, answered) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicUsize::new(0)),
        Arc::new(AtomicUsize::new(0)),
    );
    let mut consumers = Vec::new();
    for consumer in 0..8 {
        let (stop, refused, answered) = (stop.clone(), refused.clone(), answered.clone());
        let (provider, client) = (provider.clone(), gateway.client()?);
        consumers.push(tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                let algorithm = ["RS256", "ES256", "EdDSA", "PS256"][consumer % 4];
                let like = format!("alg={algorithm}");
                let token = provider.token("free", "orders.read", &like).await?;
                for _ in 0..20 {
                    let reply = get(&client, &token).await?;
                    if reply.status != 200 {
                        println!("{} {:?}", reply.status, reply.body);
                        refused.fetch_add(1, Ordering::Relaxed);
                    }
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            }
            anyhow::Ok(())
        }));
    }
    let start = Instant::now();
    const ROTATIONS: usize = 6;
    for _ in 0..ROTATIONS {
        tokio::time::sleep(Duration::from_millis(1_700)).await;
        // The old keys stay, as is the rule: tokens signed with them have not expired.
        provider.rotate(true).await?;
    }
    tokio::time::sleep(Duration::from_millis(1_700)).await;
    stop.store(true, Ordering::Relaxed);
    for consumer in consumers {
        consumer.await??;
    }
    let answered = answered.load(Ordering::Relaxed);
    let fetches = gateway.counter("key_fetches").await?;
    println!(
        "{answered} requests in {:.1} s over {ROTATIONS} rotations, {} refused, {fetches} fetches of keys",
        start.elapsed().as_secs_f64(),
        refused.load(Ordering::Relaxed)
    );
    assert_eq!(refused.load(Ordering::Relaxed), 0);
    assert!(answered > 1_000, "{answered}");
    // No more than one in each interval.
    assert!(fetches <= start.elapsed().as_secs() + 2, "{fetches}");
    let answered = u64::try_from(answered)?;
    gateway.flushed(answered).await?;
    assert_eq!(gateway.usage("free", "hits"), answered);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Envoy, the module and the provider: run cargo xtask test"]
async fn a_key_that_is_withdrawn_verifies_nothing_any_more() -> Result<()> {
    let provider = Provider::start().await?;
    let discovery = json!({ "refresh": "1s", "unknown_key_interval": "1s" });
    let gateway = start(&provider, json!({}), discovery).await?;
    let client = gateway.client()?;
    let old = provider.token("free", "", "").await?;
    assert_eq!(get(&client, &old).await?.status, 200);
    provider.rotate(false).await?;
    eventually("the old key to be forgotten", PATIENCE, async || {
        (get(&client, &old).await.ok()?.status == 401).then_some(())
    })
    .await?;
    let new = provider.token("free", "", "").await?;
    assert_eq!(get(&client, &new).await?.status, 200);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Envoy, the module and the provider: run cargo xtask test"]
async fn known_keys_serve_while_the_provider_is_down() -> Result<()> {
    let provider = Provider::start().await?;
    let discovery = json!({ "refresh": "1s", "unknown_key_interval": "1s" });
    let gateway = start(&provider, json!({}), discovery).await?;
    let client = gateway.client()?;
    let seen = provider.token("free", "", "").await?;
    assert_eq!(get(&client, &seen).await?.status, 200);
    let unseen = provider.token("other", "", "alg=ES256").await?;
    let (port, issuer) = (provider.address.port(), provider.issuer.clone());
    provider.stop().await?;
    eventually("a fetch to fail", PATIENCE, async || {
        let failures = gateway.counter("key_fetch_failures").await.ok()?;
        (failures > 0).then_some(())
    })
    .await?;
    assert_eq!(get(&client, &seen).await?.status, 200);
    assert_eq!(get(&client, &unseen).await?.status, 200);

    // Back, with other keys: a token of these cannot be judged until they are here.
    let provider = Provider::start_at(port).await?;
    assert_eq!(provider.issuer, issuer);
    let new = provider.token("free", "", "").await?;
    eventually("the new keys", PATIENCE, async || {
        let status = get(&client, &new).await.ok()?.status;
        assert!(matches!(status, 200 | 503), "{status}");
        (status == 200).then_some(())
    })
    .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Envoy, the module and the provider: run cargo xtask test"]
async fn without_any_keys_a_token_is_not_called_invalid() -> Result<()> {
    let provider = Provider::start().await?;
    let token = provider.token("free", "", "").await?;
    // Where nobody listens.
    let gone = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let mut unreachable = provider;
    unreachable.address = gone;
    let gateway = start(&unreachable, json!({}), json!({})).await?;
    let client = gateway.client()?;
    let reply = get(&client, &token).await?;
    assert_eq!(
        (reply.status, reply.header("retry-after")),
        (503, Some("1"))
    );
    let unavailable = |line: &Value| line["details"] == "tollgate_keys_unavailable";
    gateway.envoy.wait_for_access_log(unavailable).await?;
    Ok(())
}

/// Prints what a first verification costs Envoy in WebAssembly: its CPU time for requests with
/// tokens that are new, less that for the same requests again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Envoy, the module and the provider: run cargo xtask test"]
async fn what_a_first_verification_costs() -> Result<()> {
    const TOKENS: u32 = 200;
    let provider = Provider::start().await?;
    let pace = json!({ "verifications_per_second": 100_000 });
    let gateway = start(&provider, pace, json!({})).await?;
    let client = gateway.client()?;
    println!("first verification, in us of Envoy's CPU");
    for algorithm in ["RS256", "PS256", "ES256", "ES384", "EdDSA"] {
        let like = format!("alg={algorithm}");
        let mut tokens = Vec::new();
        for _ in 0..TOKENS {
            tokens.push(provider.token("free", "", &like).await?);
        }
        let mut times = Vec::new();
        let before = gateway.counter("token_verifications").await?;
        for _ in 0..2 {
            let start = gateway.envoy.cpu_time()?;
            for token in &tokens {
                assert_eq!(get(&client, token).await?.status, 200);
            }
            times.push(gateway.envoy.cpu_time()?.saturating_sub(start));
        }
        // Where both workers see a token, each looks at it once.
        let verified = gateway.counter("token_verifications").await? - before;
        assert!((200..=400).contains(&verified), "{verified}");
        let first = times[0].saturating_sub(times[1]) / TOKENS;
        println!("{algorithm} {:>8}", first.as_micros());
    }
    Ok(())
}
