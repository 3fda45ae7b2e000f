//! Opaque tokens and the key manager that is asked about them, in virtual time: how often it is
//! asked, who waits, and what becomes of whom when it fails.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tollgate_fake_host::{
    Answer, Call, Failure, FakeEnvoy, LogLevel, Outcome, Reply, StreamId, Worker, authorized,
};

use crate::support::*;

fn configured(changes: Value) -> String {
    let mut introspection = json!({
        "cluster": "id", "url": "https://id.example.com/introspect",
        "client_id": "gate way", "client_secret": "the-secret", "calls_per_second": 10,
    });
    for (name, value) in changes.as_object().expect("fields") {
        introspection[name] = value.clone();
    }
    let mut service = service("1001", "api.example.com");
    service["credentials"] = json!({
        "token": { "introspection": introspection, "claims_to_headers": { "x-roles": "roles" } },
        "strip": true,
    });
    service["mapping_rules"] = json!([
        { "method": "POST", "pattern": "/", "usage": { "hits": 1 }, "require": { "scopes": ["write"] }, "last": true },
        { "pattern": "/", "usage": { "hits": 1 } },
    ]);
    configuration(json!({ "services": [service], "authorization": { "ttl": "1d" } }))
}

fn gateway_with(workers: usize, changes: Value) -> (FakeEnvoy, Vec<Worker>) {
    let envoy = envoy().cluster("id");
    let configuration = configured(changes);
    let workers = (0..workers)
        .map(|_| envoy.configured_worker(&configuration))
        .collect();
    (envoy, workers)
}

fn bearer(token: &str) -> String {
    format!("Bearer {token}")
}

fn send(worker: &Worker, token: &str) -> Outcome {
    let request = worker.request().get("/");
    request.header("authorization", bearer(token)).send()
}

fn about_a_token(call: &Call) -> bool {
    call.path() == "/introspect"
}

/// The token that a question is about.
fn token_of(call: &Call) -> String {
    let token = form_urlencoded::parse(&call.body).find(|(name, _)| name == "token");
    token.expect("a token").1.into_owned()
}

fn active(rest: Value) -> Answer {
    let mut body = json!({ "active": true, "client_id": "app", "scope": "read" });
    for (name, value) in rest.as_object().expect("members") {
        body[name] = value.clone();
    }
    Answer::status(200).body(body.to_string())
}

fn inactive() -> Answer {
    Answer::status(200).body(r#"{"active":false}"#)
}

/// Answers all calls of a worker: what is said about tokens, and that every application is
/// authorized. Returns how often tokens were asked about.
fn settle(envoy: &FakeEnvoy, worker: &Worker, mut about: impl FnMut(&Call) -> Answer) -> usize {
    let answered = worker.answer_all(|call| {
        if about_a_token(call) {
            about(call)
        } else {
            authorized().at(envoy.wall_ms())
        }
    });
    answered.iter().filter(|call| about_a_token(call)).count()
}

/// Makes a token known.
#[track_caller]
fn introduced(envoy: &FakeEnvoy, worker: &Worker, token: &str, rest: Value) {
    let stream = send(worker, token).paused();
    assert_eq!(settle(envoy, worker, |_| active(rest.clone())), 1);
    worker.poll(stream).forwarded();
}

fn told(reply: &Reply) -> (u32, &str, Option<&str>) {
    let header = reply.headers.iter().find(|(name, _)| name == "retry-after");
    let value = header.map(|(_, value)| value.as_str());
    (reply.status, &reply.details, value)
}

const UNAVAILABLE: (u32, &str, Option<&str>) =
    (503, "tollgate_introspection_unavailable", Some("1"));

/// Second by second, with a tick in each.
fn pass(envoy: &FakeEnvoy, worker: &Worker, count: u64) {
    for _ in 0..count {
        envoy.advance(SECOND);
        worker.tick();
        for call in worker.calls() {
            if !about_a_token(&call) {
                worker.answer(call.token, tollgate_fake_host::accepted());
            }
        }
    }
}

#[test]
fn an_active_token_is_the_app_id_that_its_answer_names() {
    let (envoy, workers) = gateway_with(1, json!({}));
    let worker = &workers[0];
    let request = worker.request().get("/").header("x-roles", "forged");
    let stream = request
        .header("authorization", bearer("a/token~1=="))
        .send()
        .paused();
    let call = worker.only_call();
    assert_eq!(
        (call.cluster.as_str(), call.method(), call.path()),
        ("id", "POST", "/introspect")
    );
    assert_eq!(call.header(":authority"), Some("id.example.com"));
    assert_eq!(call.header("accept"), Some("application/json"));
    assert_eq!(
        call.header("content-type"),
        Some("application/x-www-form-urlencoded")
    );
    assert_eq!(
        call.header("content-length"),
        Some(call.body.len().to_string().as_str())
    );
    let client = call
        .header("authorization")
        .and_then(|it| it.strip_prefix("Basic "));
    let client = STANDARD.decode(client.expect("basic")).expect("base64");
    assert_eq!(client, b"gate+way:the-secret");
    assert_eq!(
        call.text(),
        "token=a%2Ftoken%7E1%3D%3D&token_type_hint=access_token"
    );
    assert_eq!(token_of(&call), "a/token~1==");

    worker.answer(call.token, active(json!({ "roles": ["a", "b"] })));
    let question = worker.only_call();
    assert!(
        question
            .path()
            .starts_with("/transactions/oauth_authorize.xml?"),
        "{question:?}"
    );
    assert!(question.path().contains("&app_id=app"), "{question:?}");
    worker.answer(question.token, authorized().at(envoy.wall_ms()));
    let forwarded = worker.poll(stream).forwarded();
    let values = |name: &str| {
        let of_name = forwarded.headers.iter().filter(|(known, _)| known == name);
        of_name.map(|(_, value)| value.as_str()).collect::<Vec<_>>()
    };
    assert_eq!(values("x-roles"), ["a,b"]);
    assert_eq!(values("authorization"), [""; 0]);

    // Known from now on, and what it may not do is refused.
    for _ in 0..10 {
        assert!(send(worker, "a/token~1==").continued());
    }
    let post = worker
        .request()
        .post("/")
        .header("authorization", bearer("a/token~1=="));
    assert_eq!(told(&post.send().reply()).1, "tollgate_insufficient_scope");
    assert_eq!(stat(&envoy, "introspection_calls"), 1);
    behaved(&envoy);
}

#[test]
fn an_inactive_token_is_401_and_asked_about_again_after_negative_ttl() {
    let (envoy, workers) = gateway_with(1, json!({ "negative_ttl": "5s" }));
    let worker = &workers[0];
    let stream = send(worker, "gone").paused();
    worker.answer(worker.only_call().token, inactive());
    let inactive = (401, "tollgate_token_inactive", None);
    assert_eq!(told(&worker.poll(stream).reply()), inactive);
    pass(&envoy, worker, 4);
    assert_eq!(told(&send(worker, "gone").reply()), inactive);
    assert!(worker.calls().is_empty());
    pass(&envoy, worker, 1);
    let stream = send(worker, "gone").paused();
    // It may have become active: nothing is remembered for longer than it was said to be.
    assert_eq!(settle(&envoy, worker, |_| active(json!({}))), 1);
    worker.poll(stream).forwarded();
    assert_eq!(stat(&envoy, "requests_token_invalid"), 2);
    behaved(&envoy);
}

#[test]
fn who_waits_for_one_token_waits_for_one_call_and_is_decided_by_itself() {
    let (envoy, workers) = gateway_with(2, json!({}));
    let worker = &workers[0];
    let mut streams: Vec<StreamId> = (0..50).map(|_| send(worker, "one").paused()).collect();
    let post = worker
        .request()
        .post("/")
        .header("authorization", bearer("one"));
    let post = post.send().paused();
    let ended = streams.remove(7);
    worker.end_stream(ended);
    assert_eq!(token_of(&worker.only_call()), "one");
    assert_eq!(settle(&envoy, worker, |_| active(json!({}))), 1);
    for stream in streams {
        worker.poll(stream).forwarded();
    }
    assert_eq!(worker.poll(post).reply().status, 403);
    // Each worker asks for itself.
    introduced(&envoy, &workers[1], "one", json!({}));
    assert_eq!(stat(&envoy, "introspection_calls"), 2);
    for worker in &workers {
        worker.tick();
    }
    assert_eq!(stat(&envoy, "requests_admitted"), 50);
    behaved(&envoy);
}

#[test]
fn no_more_than_so_many_wait() {
    let (envoy, workers) = gateway_with(1, json!({ "calls_per_second": 1000 }));
    let worker = &workers[0];
    let mut streams: Vec<StreamId> = (0..500).map(|_| send(worker, "one").paused()).collect();
    let full = (503, "tollgate_overloaded", Some("1"));
    assert_eq!(told(&send(worker, "one").reply()), full);
    for number in 0..500 {
        streams.push(send(worker, &format!("t{number}")).paused());
    }
    assert_eq!(told(&send(worker, "other").reply()), full);
    // Whose client has gone holds no place for longer than a tick.
    worker.end_stream(streams.pop().expect("one"));
    worker.tick();
    streams.push(send(worker, "other").paused());
    settle(&envoy, worker, |_| inactive());
    for stream in streams {
        assert_eq!(worker.poll(stream).reply().status, 401);
    }
    // All places are free again.
    send(worker, "next").paused();
    behaved(&envoy);
}

#[test]
fn a_token_in_steady_use_never_waits_again() {
    let (envoy, workers) = gateway_with(1, json!({ "ttl": "60s" }));
    let worker = &workers[0];
    introduced(&envoy, worker, "steady", json!({}));
    let mut calls = 0;
    for second in 0..600 {
        pass(&envoy, worker, 1);
        assert!(send(worker, "steady").continued(), "{second}");
        calls += settle(&envoy, worker, |_| active(json!({})));
    }
    // Each three quarters of a ttl.
    assert!((10..=14).contains(&calls), "{calls}");
    // One that is not in use is not asked about, and its next request waits.
    pass(&envoy, worker, 60);
    assert!(worker.calls().is_empty());
    send(worker, "steady").paused();
    assert_eq!(stat(&envoy, "introspection_stale"), 0);
    behaved(&envoy);
}

#[test]
fn a_revoked_token_is_refused_after_its_ttl_at_the_latest() {
    let (envoy, workers) = gateway_with(1, json!({ "ttl": "60s" }));
    let worker = &workers[0];
    introduced(&envoy, worker, "token", json!({}));
    pass(&envoy, worker, 44);
    assert!(send(worker, "token").continued());
    pass(&envoy, worker, 1);
    // It was revoked meanwhile. This one asks, and goes on with what is believed.
    assert!(send(worker, "token").continued());
    worker.answer(worker.only_call().token, inactive());
    assert_eq!(
        told(&send(worker, "token").reply()).1,
        "tollgate_token_inactive"
    );

    introduced(&envoy, worker, "idle", json!({}));
    pass(&envoy, worker, 60);
    let stream = send(worker, "idle").paused();
    worker.answer(worker.only_call().token, inactive());
    assert_eq!(
        told(&worker.poll(stream).reply()).1,
        "tollgate_token_inactive"
    );
    behaved(&envoy);
}

#[test]
fn nothing_is_good_beyond_exp_neither_fresh_nor_stale_nor_in_an_outage() {
    let (envoy, workers) = gateway_with(1, json!({ "ttl": "60s", "stale_if_error": "1h" }));
    let worker = &workers[0];
    let in_seconds =
        |envoy: &FakeEnvoy, count: u64| json!({ "exp": envoy.wall_ms() / 1_000 + count });
    introduced(&envoy, worker, "short", in_seconds(&envoy, 30));
    introduced(&envoy, worker, "longer", in_seconds(&envoy, 90));
    pass(&envoy, worker, 29);
    assert!(send(worker, "short").continued());
    pass(&envoy, worker, 1);
    let expired = (401, "tollgate_token_expired", None);
    assert_eq!(told(&send(worker, "short").reply()), expired);

    pass(&envoy, worker, 59);
    // 89 s: stale, and nobody answers.
    let stream = send(worker, "longer").paused();
    worker.answer(worker.only_call().token, Failure::Timeout);
    worker.poll(stream).forwarded();
    pass(&envoy, worker, 1);
    assert_eq!(told(&send(worker, "longer").reply()), expired);
    assert!(worker.calls().is_empty());
    // Neither is what is said to be active when it is not any more.
    let past = in_seconds(&envoy, 0);
    let stream = send(worker, "past").paused();
    worker.answer(worker.only_call().token, active(past));
    assert_eq!(told(&worker.poll(stream).reply()), expired);
    behaved(&envoy);
}

#[test]
fn in_an_outage_known_tokens_go_on_for_stale_if_error_and_others_get_503() {
    let (envoy, workers) = gateway_with(1, json!({ "ttl": "60s", "stale_if_error": "10m" }));
    let worker = &workers[0];
    introduced(&envoy, worker, "known", json!({}));
    let mut calls = 0;
    let mut open = 0;
    for second in 0..=660_u64 {
        let outcome = send(worker, "known");
        let unknown = send(worker, &format!("unknown-{second}"));
        for call in worker.calls() {
            if about_a_token(&call) {
                calls += 1;
                worker.answer(call.token, Failure::ConnectionRefused);
            }
        }
        let forwarded = match outcome.status() {
            None if outcome.continued() => true,
            None => {
                let outcome = worker.poll(outcome.paused());
                outcome.continued()
            }
            Some(_) => false,
        };
        assert_eq!(forwarded, second < 660, "{second}");
        let reply = match unknown.status() {
            None => worker.poll(unknown.paused()).reply(),
            Some(_) => {
                open += 1;
                unknown.reply()
            }
        };
        let (status, details, retry) = told(&reply);
        assert_eq!((status, details), (503, UNAVAILABLE.1), "{second}");
        let retry: u64 = retry.and_then(|it| it.parse().ok()).expect("seconds");
        assert!((1..=10).contains(&retry), "{retry}");
        pass(&envoy, worker, 1);
    }
    // The breaker spares it: about one in ten seconds.
    assert!((60..=150).contains(&calls), "{calls}");
    assert!(open > 500, "{open}");
    assert_eq!(stat(&envoy, "introspection_failures"), calls);
    assert_eq!(stat(&envoy, "introspection_not_connected"), calls);
    assert!(stat(&envoy, "introspection_stale") >= 590);
    assert!(stat(&envoy, "introspection_breaker_open") > 400);
    assert!(envoy.logged(LogLevel::Warn, "keeps failing"));

    // It is back.
    pass(&envoy, worker, 12);
    introduced(&envoy, worker, "known", json!({}));
    introduced(&envoy, worker, "unknown", json!({}));
    assert!(envoy.logged(LogLevel::Info, "answers again"));
    behaved(&envoy);
}

#[test]
fn every_failure_is_503_and_counted_by_its_reason_and_a_refusal_of_ours_as_such() {
    for (answer, counter) in [
        (Failure::ConnectionRefused.into(), "not_connected"),
        (Failure::Timeout.into(), "timeout"),
        (Failure::ConnectionTermination.into(), "interrupted"),
        (Failure::Reset.into(), "no_reply"),
        (Answer::status(500), "server_error"),
        (Answer::status(302), "unexpected_status"),
        (
            Answer::status(400).body(r#"{"error":"invalid_request"}"#),
            "unexpected_status",
        ),
        (Answer::status(200).body("<html>"), "malformed"),
        (
            Answer::status(200).body(r#"{"active":"true","client_id":"app"}"#),
            "malformed",
        ),
        (Answer::status(200), "malformed"),
    ] {
        let (envoy, workers) = gateway_with(1, json!({}));
        let worker = &workers[0];
        let stream = send(worker, "token").paused();
        worker.answer(worker.only_call().token, answer);
        assert_eq!(told(&worker.poll(stream).reply()), UNAVAILABLE, "{counter}");
        assert_eq!(
            stat(&envoy, &format!("introspection_{counter}")),
            1,
            "{counter}"
        );
        assert_eq!(stat(&envoy, "introspection_failures"), 1);
        assert_eq!(stat(&envoy, "requests_token_invalid"), 0);
        // The next one asks again.
        introduced(&envoy, worker, "token", json!({}));
        behaved(&envoy);
    }
    for status in [401, 403] {
        let (envoy, workers) = gateway_with(1, json!({ "ttl": "60s" }));
        let worker = &workers[0];
        introduced(&envoy, worker, "known", json!({}));
        let stream = send(worker, "token").paused();
        let refusal = Answer::status(status).body(r#"{"error":"invalid_client"}"#);
        worker.answer(worker.only_call().token, refusal.clone());
        let misconfigured = (503, "tollgate_misconfigured", Some("1"));
        assert_eq!(told(&worker.poll(stream).reply()), misconfigured);
        assert_eq!(stat(&envoy, "introspection_misconfigured"), 1);
        assert!(envoy.logged(LogLevel::Error, "refuses this gateway"));
        // Whoever is known goes on.
        pass(&envoy, worker, 60);
        let stream = send(worker, "known").paused();
        worker.answer(worker.only_call().token, refusal);
        worker.poll(stream).forwarded();
        assert!(send(worker, "known").continued());
        behaved(&envoy);
    }
}

#[test]
fn a_cluster_that_is_not_there_is_503_and_no_accident() {
    let envoy = envoy();
    let worker = envoy.configured_worker(&configured(json!({})));
    assert_eq!(told(&send(&worker, "token").reply()), UNAVAILABLE);
    assert_eq!(stat(&envoy, "introspection_not_called"), 1);
    assert_eq!(stat(&envoy, "introspection_calls"), 0);
}

#[test]
fn an_answer_that_envoy_forgets_is_not_waited_for() {
    let (envoy, workers) = gateway_with(1, json!({ "timeout": "2s" }));
    let worker = &workers[0];
    let stream = send(worker, "token").paused();
    let call = worker.only_call();
    pass(&envoy, worker, 2);
    assert!(worker.waits(stream));
    pass(&envoy, worker, 1);
    assert_eq!(told(&worker.poll(stream).reply()), UNAVAILABLE);
    // Late, it is of no use, and no harm.
    worker.answer(call.token, active(json!({})));
    send(worker, "token").paused();
    behaved(&envoy);
}

#[test]
fn a_flood_of_made_up_tokens_stays_within_its_budget_and_known_ones_go_on() {
    let (envoy, workers) = gateway_with(1, json!({ "calls_per_second": 10, "ttl": "20s" }));
    let worker = &workers[0];
    introduced(&envoy, worker, "known", json!({}));
    pass(&envoy, worker, 10);
    let (mut calls, mut refused, mut over) = (0, 0, 0);
    for second in 0..60 {
        for number in 0..100 {
            let outcome = send(worker, &format!("made-up-{second}-{number}"));
            match outcome.status() {
                None => {
                    let stream = outcome.paused();
                    calls += settle(&envoy, worker, |call| {
                        if token_of(call) == "known" {
                            active(json!({}))
                        } else {
                            inactive()
                        }
                    });
                    assert_eq!(worker.poll(stream).reply().status, 401);
                    refused += 1;
                }
                Some(_) => {
                    let reply = outcome.reply();
                    assert_eq!(told(&reply), (503, "tollgate_token_over_budget", Some("1")));
                    over += 1;
                }
            }
        }
        assert!(send(worker, "known").continued(), "{second}");
        settle(&envoy, worker, |_| active(json!({})));
        pass(&envoy, worker, 1);
    }
    assert_eq!(refused + over, 6_000);
    assert!((590..=615).contains(&calls), "{calls}");
    assert_eq!(stat(&envoy, "requests_token_over_budget"), over);
    assert_eq!(stat(&envoy, "introspection_stale"), 0);
    behaved(&envoy);
}

#[test]
fn what_nobody_can_have_as_a_token_is_not_asked_about() {
    let (envoy, workers) = gateway_with(1, json!({}));
    let worker = &workers[0];
    for token in ["with space", "caf\u{e9}", &"a".repeat(16_385)] {
        let reply = send(worker, token).reply();
        assert_eq!(told(&reply).1, "tollgate_token_malformed");
    }
    assert!(worker.calls().is_empty());
    behaved(&envoy);
}

#[test]
fn beside_issuers_only_what_is_not_signed_is_asked_about() {
    let mut whole: Value = serde_json::from_str(&configured(json!({}))).expect("JSON");
    whole["services"][0]["credentials"]["token"]["issuers"] = json!([{
        "issuer": "joe", "audiences": ["api"], "jwks": { "keys": [{
            "kty": "EC", "crv": "P-256", "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
            "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0",
        }] },
    }]);
    let envoy = envoy().cluster("id");
    let worker = envoy.configured_worker(&whole.to_string());
    let signed = "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UifQ.AA";
    assert_eq!(
        told(&send(&worker, signed).reply()).1,
        "tollgate_token_audience"
    );
    for opaque in ["opaque", "a.b.c", "eyJhbGciOiJkaXIifQ..a.b.c"] {
        let stream = send(&worker, opaque).paused();
        assert_eq!(settle(&envoy, &worker, |_| inactive()), 1);
        assert_eq!(
            told(&worker.poll(stream).reply()).1,
            "tollgate_token_inactive"
        );
    }
    // Where there are no issuers, signed ones are asked about as well.
    let (envoy, workers) = gateway_with(1, json!({}));
    introduced(&envoy, &workers[0], signed, json!({}));
    behaved(&envoy);
}

#[test]
fn neither_tokens_nor_the_secret_are_ever_logged() {
    let envoy = envoy().cluster("id").log_level(LogLevel::Trace);
    let worker = envoy.configured_worker(&configured(json!({})));
    let answers: [Answer; 4] = [
        active(json!({})),
        inactive(),
        Answer::status(401).body("s3cr3t-token"),
        Failure::Timeout.into(),
    ];
    for (number, answer) in answers.into_iter().enumerate() {
        let stream = send(&worker, &format!("s3cr3t-token-{number}")).paused();
        settle(&envoy, &worker, |_| answer.clone());
        let outcome = worker.poll(stream);
        assert!(outcome.continued() || outcome.status().is_some());
    }
    let encoded = STANDARD.encode("gate+way:the-secret");
    for line in envoy.logs() {
        let text = format!("{line:?}");
        for secret in ["s3cr3t", "the-secret", &encoded] {
            assert!(!text.contains(secret), "{text}");
        }
    }
    let keys = envoy.shared_keys();
    assert!(
        keys.iter()
            .all(|key| !key.windows(6).any(|part| part == b"s3cr3t"))
    );
    behaved(&envoy);
}
