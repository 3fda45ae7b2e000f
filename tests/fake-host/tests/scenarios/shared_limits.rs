//! A limit that other gateways use, too: what the caller sees, and what the leader asks.

use std::time::Duration;

use serde_json::json;
use tollgate_fake_host::{FakeEnvoy, Worker, accepted, authorized};

use crate::support::*;

/// A gateway of four, strict, that has spent its grant of a limit of 120 a day: about ten.
fn near_a_limit() -> (FakeEnvoy, Worker) {
    let shared = configuration(json!({ "authorization": { "gateways": 4 } }));
    let (envoy, worker) = gateway(&shared);
    let plan = authorized().limit("hits", "day", 120, 0);
    introduce(&envoy, &worker, "alice", plan);
    let admitted = (0..20).take_while(|_| get(&worker, "alice").continued());
    assert!((8..=10).contains(&admitted.count()));
    (envoy, worker)
}

#[test]
fn what_is_left_but_not_granted_is_429_and_asks_to_come_back_in_a_second() {
    let (envoy, worker) = near_a_limit();
    let reply = get(&worker, "alice").reply();
    assert_eq!(
        (reply.status, &*reply.details),
        (429, "tollgate_limit_near")
    );
    assert_eq!(reply.header("retry-after"), Some("1"));
    assert_eq!(stat(&envoy, "requests_early"), 2);
    assert_eq!(stat(&envoy, "requests_limited"), 0);
    behaved(&envoy);
}

#[test]
fn near_a_limit_usage_is_reported_at_once_and_asked_about_when_it_has_settled() {
    let (envoy, worker) = near_a_limit();
    get(&worker, "alice").reply();
    worker.tick();
    let report = worker.only_call();
    assert!(is_report(&report), "{report:?}");
    worker.answer(report.token, accepted());
    envoy.advance(Duration::from_millis(900));
    worker.tick();
    assert!(worker.calls().is_empty(), "before it has settled");
    envoy.advance(Duration::from_millis(200));
    worker.tick();
    let question = worker.only_call();
    assert!(is_question(&question), "{question:?}");
    let plan = authorized().limit("hits", "day", 120, 11);
    worker.answer(question.token, plan.at(envoy.wall_ms()));
    get(&worker, "alice").forwarded();
    behaved(&envoy);
}

#[test]
fn ticks_are_short_only_where_limits_are_shared() {
    let (_envoy, worker) = near_a_limit();
    assert_eq!(worker.tick_period_ms(), 100);
    let (_envoy, worker) = gateway(&plain());
    assert_eq!(worker.tick_period_ms(), 1_000);
}
