//! Refreshes keep to a budget, whoever waits for it: those near a limit first, the others
//! before nobody could decide about them, and no request waits for any of it.

use std::collections::BTreeMap;

use serde_json::json;
use tollgate_fake_host::{Authorization, FakeEnvoy, LogLevel, Worker, accepted, authorized};

use crate::support::*;

/// What service management was asked in each second.
type Asked = Vec<Vec<String>>;

fn gateway_with(authorization: serde_json::Value) -> (FakeEnvoy, Worker) {
    let envoy = envoy().log_level(LogLevel::Warn);
    let configuration = configuration(json!({
        "authorization": authorization,
        "reporting": { "interval": "5s" },
    }));
    let worker = envoy.configured_worker(&configuration);
    (envoy, worker)
}

/// Every application has a request in every fifth second, which must not wait. Some time
/// goes by in which everything is answered at once.
fn traffic(
    envoy: &FakeEnvoy,
    worker: &Worker,
    time: u64,
    applications: &BTreeMap<String, Authorization>,
) -> Asked {
    let mut asked = Asked::new();
    for _ in 0..time {
        let second = envoy.wall_ms() / 1_000;
        for (number, key) in (0_u64..).zip(applications.keys()) {
            if (number + second).is_multiple_of(5) {
                get(worker, key).forwarded();
            }
        }
        envoy.advance(SECOND);
        worker.tick();
        let calls = worker.answer_all(|call| {
            if is_report(call) {
                return accepted();
            }
            let plan = applications.get(&key_of(call)).cloned();
            plan.unwrap_or_else(authorized).at(envoy.wall_ms())
        });
        asked.push(questions(&calls));
    }
    asked
}

fn known(envoy: &FakeEnvoy, worker: &Worker, applications: &BTreeMap<String, Authorization>) {
    for (key, plan) in applications {
        introduce(envoy, worker, key, plan.clone());
    }
}

fn applications(name: &str, count: u32, plan: &Authorization) -> BTreeMap<String, Authorization> {
    (0..count)
        .map(|number| (format!("{name}-{number}"), plan.clone()))
        .collect()
}

#[test]
fn refreshes_keep_to_their_budget_and_no_request_to_a_known_application_waits() {
    let (envoy, worker) = gateway_with(json!({
        "capacity": 4_096, "ttl": "20s", "stale_if_error": "100s", "refreshes_per_second": 10,
    }));
    // 10 x (20 + 100) / 2 is the most that are never forgotten.
    let near = authorized().limit("hits", "month", 1_000_000, 800_000);
    let far = authorized().limit("hits", "month", 1_000_000, 0);
    let mut all = applications("near", 20, &near);
    all.extend(applications("far", 570, &far));
    known(&envoy, &worker, &all);
    let mut idle = applications("idle", 25, &authorized());
    idle.extend(applications("limited", 25, &far));
    known(&envoy, &worker, &idle);

    let asked = traffic(&envoy, &worker, 400, &all);
    for (second, now) in asked.iter().enumerate() {
        assert!(now.len() <= 13, "{} in second {second}", now.len());
    }
    let busy: usize = asked[100..].iter().map(Vec::len).sum();
    assert!((2_950..=3_003).contains(&busy), "{busy} in 300 seconds");
    for key in idle.keys() {
        let times = asked.iter().flatten().filter(|other| *other == key).count();
        // A slot whose usage is in no answer yet could not be given to anybody.
        let most = usize::from(key.starts_with("limited"));
        assert!(times <= most, "{key} {times} times");
    }
    // Once those that became due together are through, answers of those near their limits are
    // hardly ever stale, and those of the others within bounds.
    for key in all.keys() {
        let when: Vec<_> = (150..asked.len())
            .filter(|second| asked[*second].contains(key))
            .collect();
        let longest = when.windows(2).map(|pair| pair[1] - pair[0]).max();
        let most = if key.starts_with("near") { 20 } else { 120 };
        assert!(
            longest.is_some_and(|longest| longest <= most),
            "{key}: {when:?}"
        );
    }
    assert!(stat(&envoy, "requests_admitted_stale") > 0);
    assert!(stat(&envoy, "refreshes_waiting") > 100);
    assert_eq!(stat(&envoy, "authorize_calls"), 640);
    behaved(&envoy);
}

#[test]
fn a_budget_that_is_too_small_is_told_before_anybody_has_to_wait() {
    let (envoy, worker) = gateway_with(json!({
        "capacity": 1_024, "ttl": "20s", "stale_if_error": "100s", "refreshes_per_second": 1,
    }));
    let all = applications("alice", 200, &authorized());
    known(&envoy, &worker, &all);
    let told = (0..120).find(|_| {
        traffic(&envoy, &worker, 1, &all);
        assert_eq!(stat(&envoy, "authorize_calls"), 200, "somebody had to wait");
        envoy.logged(LogLevel::Warn, "authorization.refreshes_per_second (1)")
    });
    assert!(told.is_some());
    behaved(&envoy);
}

#[test]
fn a_thousand_applications_that_became_known_at_once_are_not_asked_about_at_once() {
    let (envoy, worker) = gateway_with(json!({
        "capacity": 4_096, "ttl": "40s", "refreshes_per_second": 1_000_000,
    }));
    let all = applications("alice", 1_000, &authorized());
    known(&envoy, &worker, &all);
    let asked = traffic(&envoy, &worker, 200, &all);
    let most = asked.iter().map(Vec::len).max();
    let sum: usize = asked.iter().map(Vec::len).sum();
    println!("{:?}", asked.iter().map(Vec::len).collect::<Vec<_>>());
    // Over ten seconds of each lifetime: a hundred in each.
    assert!(most.is_some_and(|most| most <= 200), "{most:?} in a second");
    assert!((5_000..=10_000).contains(&sum), "{sum} in five lifetimes");
    assert_eq!(stat(&envoy, "requests_admitted_stale"), 0);
    behaved(&envoy);
}

#[test]
fn a_service_with_many_applications_does_not_keep_another_from_being_refreshed() {
    let envoy = envoy().log_level(LogLevel::Warn);
    let services = [("1001", "api.example.com"), ("1002", "shop.example.com")];
    let worker = envoy.configured_worker(&configuration(json!({
        "services": services.map(|(id, host)| service(id, host)),
        "authorization": {
            "capacity": 4_096, "ttl": "20s", "stale_if_error": "100s", "refreshes_per_second": 5,
        },
        "reporting": { "interval": "5s" },
    })));
    let all = applications("alice", 250, &authorized());
    known(&envoy, &worker, &all);
    let shop = || {
        let request = worker.request().get("/?user_key=bob");
        request.host("shop.example.com").send()
    };
    let stream = shop().paused();
    worker.answer(worker.only_call().token, authorized().at(envoy.wall_ms()));
    worker.poll(stream).forwarded();
    let mut both = all.clone();
    both.insert("bob".to_owned(), authorized());
    for _ in 0..300 {
        shop().forwarded();
        for (number, key) in all.keys().enumerate() {
            if number.is_multiple_of(5) {
                get(&worker, key).forwarded();
            }
        }
        envoy.advance(SECOND);
        worker.tick();
        worker.answer_all(|call| {
            if is_report(call) {
                return accepted();
            }
            both[&key_of(call)].clone().at(envoy.wall_ms())
        });
    }
    let refreshed = envoy.stat("tollgate.1002.refresh_calls");
    assert!(refreshed >= 4, "{refreshed} times in 300 s");
    behaved(&envoy);
}
