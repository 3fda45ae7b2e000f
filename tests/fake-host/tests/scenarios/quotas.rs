//! What callers are told of what is left of their limits, where the service says so.

use std::time::Duration;

use serde_json::json;
use tollgate_fake_host::{Forwarded, Reply, Worker, authorized};

use crate::support::*;

fn telling() -> String {
    let mut service = service("1001", "api.example.com");
    service["rate_limit_headers"] = json!(true);
    service["mapping_rules"] = json!([
        { "pattern": "/free", "usage": {}, "last": true },
        { "pattern": "/big", "usage": { "hits": 5 }, "last": true },
        { "pattern": "/", "usage": { "hits": 1 } },
    ]);
    configuration(json!({ "services": [service] }))
}

/// Limit, remaining and reset as the filter handed them to Envoy.
fn told(forwarded: &Forwarded) -> [Option<String>; 3] {
    ["limit", "remaining", "reset"].map(|name| {
        let value = forwarded
            .filter_state
            .get(&format!("wasm.tollgate.ratelimit_{name}"))?;
        Some(String::from_utf8(value.clone()).unwrap())
    })
}

fn headers(reply: &Reply) -> [Option<&str>; 4] {
    [
        "ratelimit-limit",
        "ratelimit-remaining",
        "ratelimit-reset",
        "retry-after",
    ]
    .map(|name| reply.header(name))
}

fn some(texts: [&str; 3]) -> [Option<String>; 3] {
    texts.map(|text| Some(text.to_owned()))
}

fn get(worker: &Worker, path: &str) -> tollgate_fake_host::Outcome {
    worker
        .request()
        .get(format!("{path}?user_key=alice"))
        .send()
}

#[test]
fn an_admitted_caller_is_told_what_is_left_of_the_tightest_limit() {
    let (envoy, worker) = gateway(&telling());
    let stream = get(&worker, "/").paused();
    let plan = authorized()
        .limit("hits", "minute", 10, 2)
        .limit("hits", "hour", 9, 0);
    worker.answer(worker.only_call().token, plan.at(envoy.wall_ms()));
    let first = worker.poll(stream).forwarded();
    assert_eq!(told(&first), some(["10", "7", "60"]), "also who waited");
    envoy.advance(Duration::from_millis(1_500));
    let second = get(&worker, "/big").forwarded();
    assert_eq!(told(&second), some(["10", "2", "59"]));
    envoy.advance(seconds(60));
    // The minute is new, and of the hour 6 of 9 are used.
    let third = get(&worker, "/").forwarded();
    assert_eq!(told(&third), some(["9", "2", "3539"]));
    let free = get(&worker, "/free").forwarded();
    assert!(free.filter_state.is_empty(), "no limit is about it");
    behaved(&envoy);
}

#[test]
fn a_refused_caller_is_told_of_the_limit_that_refuses() {
    let (envoy, worker) = gateway(&telling());
    let plan = authorized()
        .limit("hits", "minute", 3, 0)
        .limit("hits", "day", 100, 99);
    let stream = get(&worker, "/").paused();
    worker.answer(worker.only_call().token, plan.at(envoy.wall_ms()));
    worker.poll(stream).forwarded();
    let day = (16 * 3_600).to_string();
    let reply = get(&worker, "/").reply();
    assert_eq!(reply.status, 429);
    let expected = [Some("100"), Some("0"), Some(&*day), Some(&*day)];
    assert_eq!(headers(&reply), expected);
}

#[test]
fn who_asks_for_too_much_at_once_is_told_what_would_fit() {
    let (envoy, worker) = gateway(&telling());
    introduce(
        &envoy,
        &worker,
        "alice",
        authorized().limit("hits", "minute", 4, 0),
    );
    let reply = get(&worker, "/big").reply();
    assert_eq!(
        headers(&reply),
        [Some("4"), Some("3"), Some("60"), Some("60")]
    );
}

#[test]
fn a_limit_for_ever_has_no_reset() {
    let (envoy, worker) = gateway(&telling());
    introduce(
        &envoy,
        &worker,
        "alice",
        authorized().limit("hits", "eternity", 2, 0),
    );
    let forwarded = get(&worker, "/").forwarded();
    let [limit, remaining, reset] = told(&forwarded);
    assert_eq!(
        (limit.as_deref(), remaining.as_deref()),
        (Some("2"), Some("0"))
    );
    assert_eq!(reset, None);
    let reply = get(&worker, "/").reply();
    assert_eq!(headers(&reply), [Some("2"), Some("0"), None, None]);
}

#[test]
fn only_limits_are_told_of() {
    let (envoy, worker) = gateway(&telling());
    introduce(&envoy, &worker, "alice", authorized());
    let forwarded = get(&worker, "/").forwarded();
    assert!(forwarded.filter_state.is_empty(), "a plan without limits");
    let reply = worker.request().get("/").send().reply();
    assert_eq!(headers(&reply), [None; 4]);

    let (envoy, worker) = gateway(&telling());
    let stream = get(&worker, "/").paused();
    let plan = authorized().limit("hits", "day", 0, 0);
    worker.answer(worker.only_call().token, plan.at(envoy.wall_ms()));
    let disabled = worker.poll(stream).reply();
    assert_eq!((disabled.status, headers(&disabled)), (403, [None; 4]));
}

#[test]
fn a_service_that_does_not_say_so_tells_nothing() {
    let (envoy, worker) = gateway(&plain());
    introduce(
        &envoy,
        &worker,
        "alice",
        authorized().limit("hits", "minute", 2, 0),
    );
    assert!(get(&worker, "/").forwarded().filter_state.is_empty());
    let reply = get(&worker, "/").reply();
    assert_eq!(headers(&reply), [None, None, None, Some("60")]);
}
