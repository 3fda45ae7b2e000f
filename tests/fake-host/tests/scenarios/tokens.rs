//! Tokens and the keys of their issuers over several workers, in virtual time: who fetches keys and
//! how often, who waits for them, and what becomes of those when the issuer is down.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use p256::ecdsa::signature::Signer;
use p256::ecdsa::{Signature, SigningKey};
use serde_json::{Value, json};
use tollgate_fake_host::{Answer, Call, Failure, FakeEnvoy, Outcome, StreamId, Worker, authorized};

use crate::support::*;

const ISSUER: &str = "https://id.example.com";

/// An issuer of tokens, with as many keys as are published.
struct Issuer {
    published: Vec<u8>,
}

impl Issuer {
    fn of(published: &[u8]) -> Self {
        Self {
            published: published.to_vec(),
        }
    }

    /// What it answers to a call.
    fn answer(&self, call: &Call) -> Answer {
        let body = match call.path() {
            "/.well-known/openid-configuration" => {
                json!({ "issuer": ISSUER, "jwks_uri": format!("{ISSUER}/jwks") })
            }
            "/jwks" => {
                json!({ "keys": self.published.iter().map(|key| jwk(*key)).collect::<Vec<_>>() })
            }
            other => panic!("{other} is asked for"),
        };
        Answer::status(200).body(body.to_string())
    }
}

fn key(number: u8) -> SigningKey {
    SigningKey::from_slice(&[number; 32]).expect("a key")
}

fn jwk(number: u8) -> Value {
    let point = key(number).verifying_key().to_encoded_point(false);
    let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    json!({
        "kty": "EC", "crv": "P-256", "kid": number.to_string(),
        "x": text(point.x().expect("x")), "y": text(point.y().expect("y")),
    })
}

/// A token of this application, signed with that key, that lasts so many seconds.
fn token(envoy: &FakeEnvoy, number: u8, application: &str, lasts: u64) -> String {
    let now = envoy.wall_ms() / 1_000;
    let header = json!({ "alg": "ES256", "kid": number.to_string() });
    let claims = json!({
        "iss": ISSUER, "aud": "api", "azp": application, "exp": now + lasts, "iat": now,
        "scope": "read", "roles": ["a", "b"],
    });
    let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", part(header), part(claims));
    let signature: Signature = key(number).sign(signed.as_bytes());
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.to_bytes()))
}

fn configured(keys: Value) -> String {
    let mut issuer = json!({ "issuer": ISSUER, "audiences": ["api"], "leeway": "0s" });
    for (name, value) in keys.as_object().expect("fields") {
        issuer[name] = value.clone();
    }
    let mut service = service("1001", "api.example.com");
    service["credentials"] = json!({
        "token": {
            "issuers": [issuer],
            "claims_to_headers": { "x-roles": "roles", "x-none": "none" },
            "verifications_per_second": 10,
        },
        "strip": true,
    });
    service["mapping_rules"] = json!([
        { "method": "POST", "pattern": "/", "usage": { "hits": 1 }, "require": { "scopes": ["write"] }, "last": true },
        { "pattern": "/", "usage": { "hits": 1 } },
    ]);
    configuration(json!({ "services": [service] }))
}

fn inline() -> String {
    configured(json!({ "jwks": { "keys": [jwk(1)] } }))
}

fn by_discovery() -> String {
    configured(json!({ "discovery": { "cluster": "id" } }))
}

fn gateway_of(workers: usize, configuration: &str) -> (FakeEnvoy, Vec<Worker>) {
    let envoy = envoy().cluster("id");
    let workers = (0..workers)
        .map(|_| envoy.configured_worker(configuration))
        .collect();
    (envoy, workers)
}

fn send(worker: &Worker, token: &str) -> Outcome {
    let bearer = format!("Bearer {token}");
    worker
        .request()
        .get("/")
        .header("authorization", bearer)
        .send()
}

fn about_keys(call: &Call) -> bool {
    matches!(call.path(), "/jwks" | "/.well-known/openid-configuration")
}

/// Answers all calls of a worker until there are none: the issuer's, and that every application is
/// authorized. Returns how many sets of keys were fetched.
fn settle(envoy: &FakeEnvoy, worker: &Worker, issuer: &Issuer) -> usize {
    let mut fetched = 0;
    while !worker.calls().is_empty() {
        let answered = worker.answer_all(|call| {
            if about_keys(call) {
                issuer.answer(call)
            } else {
                authorized().at(envoy.wall_ms())
            }
        });
        fetched += answered
            .iter()
            .filter(|call| call.path() == "/jwks")
            .count();
    }
    fetched
}

#[track_caller]
fn admitted(envoy: &FakeEnvoy, worker: &Worker, issuer: &Issuer, outcome: Outcome) {
    if outcome.continued() {
        return;
    }
    let stream: StreamId = outcome.paused();
    settle(envoy, worker, issuer);
    worker.poll(stream).forwarded();
}

#[test]
fn a_token_is_the_app_id_that_it_names_and_the_upstream_sees_its_claims_only() {
    let (envoy, workers) = gateway_of(1, &inline());
    let worker = &workers[0];
    let token = token(&envoy, 1, "app", 60);
    let request = worker
        .request()
        .get("/")
        .header("authorization", format!("Bearer {token}"));
    let stream = request
        .header("x-roles", "admin")
        .header("x-none", "forged")
        .send()
        .paused();
    let call = worker.only_call();
    assert!(
        call.path()
            .starts_with("/transactions/oauth_authorize.xml?"),
        "{call:?}"
    );
    assert!(call.path().contains("&app_id=app"), "{call:?}");
    assert!(!call.path().contains("user_key"), "{call:?}");
    worker.answer(call.token, authorized().at(envoy.wall_ms()));
    let forwarded = worker.poll(stream).forwarded();
    let values = |name: &str| {
        let of_name = forwarded.headers.iter().filter(|(known, _)| known == name);
        of_name.map(|(_, value)| value.as_str()).collect::<Vec<_>>()
    };
    assert_eq!(values("x-roles"), ["a,b"]);
    assert_eq!(values("x-none"), [""; 0]);
    assert_eq!(values("authorization"), [""; 0]);
    assert!(send(worker, &token).continued());
    assert_eq!(stat(&envoy, "token_verifications"), 1);
    behaved(&envoy);
}

#[test]
fn a_token_ends_with_its_exp_also_where_its_application_is_known_for_longer() {
    let (envoy, workers) = gateway_of(1, &inline());
    let (worker, issuer) = (&workers[0], Issuer::of(&[1]));
    let short = token(&envoy, 1, "app", 5);
    admitted(&envoy, worker, &issuer, send(worker, &short));
    let long = token(&envoy, 1, "app", 3_600);
    assert!(send(worker, &long).continued());
    envoy.advance(seconds(5));
    worker.tick();
    let reply = send(worker, &short).reply();
    assert_eq!(
        (reply.status, &*reply.details),
        (401, "tollgate_token_expired")
    );
    assert!(send(worker, &long).continued());
    behaved(&envoy);
}

#[test]
fn refusals_are_those_of_rfc_6750() {
    let (envoy, workers) = gateway_of(1, &inline());
    let worker = &workers[0];
    let challenge = |outcome: Outcome| {
        let reply = outcome.reply();
        let header = reply
            .headers
            .iter()
            .find(|(name, _)| name == "www-authenticate");
        (
            reply.status,
            header.map(|(_, value)| value.clone()).unwrap_or_default(),
            reply.details,
        )
    };
    let expected = |status, challenge: &str, details: &str| {
        (
            status,
            format!("Bearer realm=\"api\"{challenge}"),
            details.to_owned(),
        )
    };
    let invalid = |details| expected(401, ", error=\"invalid_token\"", details);
    let nothing = worker.request().get("/").send();
    assert_eq!(
        challenge(nothing),
        expected(401, "", "tollgate_no_credential")
    );
    assert_eq!(
        challenge(send(worker, "x")),
        invalid("tollgate_token_malformed")
    );
    let other = token(&envoy, 2, "app", 60);
    assert_eq!(
        challenge(send(worker, &other)),
        invalid("tollgate_token_key")
    );
    let good = token(&envoy, 1, "app", 60);
    let bearer = format!("Bearer {good}");
    let post = worker
        .request()
        .post("/")
        .header("authorization", bearer)
        .send();
    let scope = expected(
        403,
        ", error=\"insufficient_scope\"",
        "tollgate_insufficient_scope",
    );
    assert_eq!(challenge(post), scope);
    assert!(worker.calls().is_empty());
    behaved(&envoy);
}

#[test]
fn keys_are_fetched_once_for_all_workers_and_all_who_wait() {
    let (envoy, workers) = gateway_of(3, &by_discovery());
    let issuer = Issuer::of(&[1]);
    let streams: Vec<_> = workers
        .iter()
        .flat_map(|worker| (0..4).map(move |number| (worker, number)))
        .map(|(worker, number)| {
            let token = token(&envoy, 1, &format!("app-{number}"), 60);
            (worker, send(worker, &token).paused())
        })
        .collect();
    assert_eq!(
        workers[0].only_call().path(),
        "/.well-known/openid-configuration"
    );
    assert!(workers[1].calls().is_empty() && workers[2].calls().is_empty());
    assert_eq!(settle(&envoy, &workers[0], &issuer), 1);
    for worker in &workers {
        worker.deliver();
        assert_eq!(settle(&envoy, worker, &issuer), 0);
    }
    for worker in &workers {
        worker.deliver();
    }
    for (worker, stream) in streams {
        worker.poll(stream).forwarded();
    }
    assert_eq!(stat(&envoy, "key_fetches"), 1);
    behaved(&envoy);
}

#[test]
fn a_new_key_is_waited_for_and_nobody_is_refused_for_it() {
    let (envoy, workers) = gateway_of(2, &by_discovery());
    let mut issuer = Issuer::of(&[1]);
    admitted(
        &envoy,
        &workers[0],
        &issuer,
        send(&workers[0], &token(&envoy, 1, "app", 600)),
    );
    for round in 2..6 {
        // The second rotation comes before the interval is over, and waits for it.
        issuer.published.insert(0, round);
        let token = token(&envoy, round, "app", 600);
        let streams: Vec<_> = workers
            .iter()
            .map(|worker| send(worker, &token).paused())
            .collect();
        let mut waited = 0;
        while workers
            .iter()
            .zip(&streams)
            .any(|(worker, stream)| !worker.poll(*stream).continued())
        {
            envoy.advance(SECOND);
            for worker in &workers {
                worker.tick();
                settle(&envoy, worker, &issuer);
                worker.deliver();
            }
            waited += 1;
            assert!(waited <= 6, "round {round}");
        }
    }
    let fetches = stat(&envoy, "key_fetches");
    assert!(fetches <= 5, "{fetches}");
    assert_eq!(stat(&envoy, "requests_token_invalid"), 0);
    behaved(&envoy);
}

#[test]
fn made_up_keys_lead_to_one_fetch_in_an_interval_and_to_401() {
    let (envoy, workers) = gateway_of(1, &by_discovery());
    let (worker, issuer) = (&workers[0], Issuer::of(&[1]));
    admitted(
        &envoy,
        worker,
        &issuer,
        send(worker, &token(&envoy, 1, "app", 600)),
    );
    let mut streams = Vec::new();
    let mut fetched = 0;
    for second in 0..20_u64 {
        for number in 0..5 {
            let made_up = token(&envoy, 200, &format!("app-{second}-{number}"), 600);
            streams.push(send(worker, &made_up).paused());
        }
        // Whoever is known goes on.
        assert!(send(worker, &token(&envoy, 1, "app", 600 + second)).continued());
        envoy.advance(SECOND);
        worker.tick();
        fetched += settle(&envoy, worker, &issuer);
    }
    assert!((3..=5).contains(&fetched), "{fetched}");
    for _ in 0..6 {
        envoy.advance(SECOND);
        worker.tick();
        settle(&envoy, worker, &issuer);
    }
    for stream in streams {
        let reply = worker.poll(stream).reply();
        assert_eq!((reply.status, &*reply.details), (401, "tollgate_token_key"));
    }
    behaved(&envoy);
}

#[test]
fn an_issuer_that_is_down_costs_nobody_who_is_known_anything() {
    let (envoy, workers) = gateway_of(1, &by_discovery());
    let (worker, issuer) = (&workers[0], Issuer::of(&[1]));
    admitted(
        &envoy,
        worker,
        &issuer,
        send(worker, &token(&envoy, 1, "app", 600_000)),
    );
    let known = token(&envoy, 1, "app", 600_000);
    let mut calls = 0;
    for second in 0..3_600_u64 {
        envoy.advance(SECOND);
        worker.tick();
        while let Some(call) = worker.calls().into_iter().next() {
            if about_keys(&call) {
                calls += 1;
                worker.answer(call.token, Failure::ConnectionRefused);
            } else {
                worker.answer(call.token, authorized().at(envoy.wall_ms()));
            }
        }
        if second % 60 == 0 {
            assert!(send(worker, &known).continued(), "{second}");
        }
    }
    // From the end of the first ten minutes on, ever more seldom.
    assert!((100..=120).contains(&calls), "{calls}");
    let unknown = send(worker, &token(&envoy, 2, "app", 600));
    let reply = match unknown.status() {
        Some(_) => unknown.reply(),
        None => {
            let stream = unknown.paused();
            worker.answer(worker.only_call().token, Failure::ConnectionRefused);
            worker.poll(stream).reply()
        }
    };
    assert_eq!(
        (reply.status, &*reply.details),
        (503, "tollgate_keys_unavailable")
    );
    // A day after they were fetched, the keys are good no more.
    for _ in 0..86_400 {
        envoy.advance(SECOND);
    }
    let reply = send(worker, &token(&envoy, 1, "other", 600));
    assert!(!reply.continued());
    behaved(&envoy);
}

#[test]
fn a_flood_of_bad_signatures_takes_no_more_than_its_share_and_no_known_token_with_it() {
    let (envoy, workers) = gateway_of(1, &inline());
    let (worker, issuer) = (&workers[0], Issuer::of(&[1]));
    let good = token(&envoy, 1, "app", 600);
    admitted(&envoy, worker, &issuer, send(worker, &good));
    envoy.advance(seconds(10));
    let (mut invalid, mut over) = (0, 0);
    for number in 0..200_u64 {
        let bad = token(&envoy, 1, &format!("app-{number}"), 600);
        let (signed, _) = bad.rsplit_once('.').expect("three parts");
        let reply = send(worker, &format!("{signed}.{}", "A".repeat(86))).reply();
        match (reply.status, &*reply.details) {
            (401, "tollgate_token_signature") => invalid += 1,
            (503, "tollgate_token_over_budget") => over += 1,
            other => panic!("{other:?}"),
        }
        assert!(send(worker, &good).continued());
    }
    assert_eq!((invalid, over), (10, 190));
    behaved(&envoy);
}
