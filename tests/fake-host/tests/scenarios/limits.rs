//! Limits are exact on one gateway: whatever the number of workers, whichever limits
//! a request counts for, and wherever the clock stands.

use std::slice::from_ref;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::json;
use tollgate_fake_host::{Failure, FakeEnvoy, Worker, accepted, authorized, run_at_once};

use crate::support::*;

/// Lets eight workers send so many requests each, all at once. Returns how many were
/// admitted; everybody else got `status`.
fn storm(workers: &[Worker], requests: usize, path: &'static str, status: &'static [u32]) -> usize {
    let admitted = run_at_once(workers, move |worker| {
        (0..requests)
            .map(|_| worker.request().get(path).send())
            .filter(|outcome| match outcome.status() {
                None => outcome.continued() || panic!("{outcome:?}"),
                Some(got) => {
                    assert!(status.contains(&got), "{outcome:?}");
                    false
                }
            })
            .count()
    });
    admitted.iter().sum()
}

#[test]
fn eight_workers_admit_exactly_what_a_limit_allows() {
    for round in 0..3 {
        let (envoy, workers) = gateway_of(8, &plain());
        envoy.collide();
        introduce(
            &envoy,
            &workers[0],
            "alice",
            authorized().limit("hits", "day", 1_000, 0),
        );
        let admitted = storm(&workers, 2_000, "/?user_key=alice", &[429]);
        assert_eq!(1 + admitted, 1_000, "round {round}");
        assert_eq!(stat(&envoy, "requests_limited"), 15_001);
        let books = books(&envoy, "hits");
        assert_eq!((books.admitted, books.pending), (1_000, 1_000));
        behaved(&envoy);
    }
}

#[test]
fn eight_workers_lose_count_of_nothing_where_there_is_no_limit() {
    let (envoy, workers) = gateway_of(8, &plain());
    envoy.collide();
    introduce(&envoy, &workers[0], "alice", authorized());
    assert_eq!(storm(&workers, 1_000, "/?user_key=alice", &[]), 8_000);
    assert_eq!(books(&envoy, "hits").admitted, 8_001);
}

#[test]
fn lost_races_admit_nobody_twice() {
    let (envoy, workers) = gateway_of(8, &plain());
    introduce(
        &envoy,
        &workers[0],
        "alice",
        authorized().limit("hits", "day", 500, 0),
    );
    // Some requests lose so often that they are given up, which must not admit them.
    let given_up = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&given_up);
    let faulty = envoy.clone();
    let admitted: usize = run_at_once(&workers, move |worker| {
        (0..500)
            .filter(|round| {
                if round % 50 == 7 {
                    faulty.fail_next_compare_and_sets(300);
                }
                let outcome = get(worker, "alice");
                seen.fetch_add(usize::from(outcome.status() == Some(503)), Ordering::SeqCst);
                outcome.continued()
            })
            .count()
    })
    .iter()
    .sum();
    assert_eq!(1 + admitted, 500);
    assert_eq!(books(&envoy, "hits").admitted, 500);
    assert_eq!(
        stat(&envoy, "requests_unavailable"),
        given_up.load(Ordering::SeqCst) as u64
    );
}

#[test]
fn a_flush_in_the_middle_of_the_storm_changes_no_count() {
    let (envoy, workers) = gateway_of(8, &plain());
    envoy.collide();
    introduce(
        &envoy,
        &workers[0],
        "alice",
        authorized().limit("hits", "day", 3_000, 0),
    );
    let clock = envoy.clone();
    let sent = run_at_once(&workers, move |worker| {
        let (mut admitted, mut reported) = (0, 0);
        for round in 0..600 {
            admitted += u64::from(get(worker, "alice").continued());
            if round % 20 == 0 {
                clock.advance(SECOND);
                worker.tick();
                for call in worker.calls() {
                    if is_report(&call) && round % 40 == 0 {
                        worker.answer(call.token, Failure::ConnectionRefused);
                    } else if is_report(&call) {
                        reported += reports(from_ref(&call))[0].usage()["hits"];
                        worker.answer(call.token, accepted());
                    } else {
                        let known = authorized().limit("hits", "day", 3_000, 0);
                        worker.answer(call.token, known.at(clock.wall_ms()));
                    }
                }
            }
        }
        (admitted, reported)
    });
    let admitted: u64 = sent.iter().map(|(admitted, _)| admitted).sum();
    // A thread that stood still for ten seconds of the others' left a batch to be sent again.
    let late = pass_time(&envoy, &workers, seconds(60), |call| {
        let known = authorized().limit("hits", "day", 3_000, 0);
        Some(match is_report(call) {
            true => accepted(),
            false => known.at(envoy.wall_ms()),
        })
    });
    let reported: u64 = sent.iter().map(|(_, reported)| reported).sum();
    let reported = reported + usage_of(&reports(&late), "hits");
    assert_eq!(1 + admitted, 3_000);
    let books = books(&envoy, "hits");
    assert_eq!((books.admitted, books.acknowledged), (3_000, 3_000));
    let resent = stat(&envoy, "usage_resent");
    assert!((3_000..=3_000 + resent).contains(&reported), "{reported}");
    assert_eq!(books.lost, 0);
    behaved(&envoy);
}

/// The configuration with answers that last for a day.
fn lasting(configuration: &str) -> String {
    let mut configuration: serde_json::Value = serde_json::from_str(configuration).expect("JSON");
    configuration["authorization"]["ttl"] = json!("1d");
    configuration.to_string()
}

/// A worker to which alice is known by this plan, with an upload that costs 5 uploads and
/// 1 hits, and everything else 1 hits.
fn two_metrics(plan: tollgate_fake_host::Authorization) -> (FakeEnvoy, Worker) {
    let rules = rules(
        json!([
            { "method": "POST", "pattern": "/upload", "usage": { "uploads": 5 } },
            { "pattern": "/", "usage": { "hits": 1 } },
        ]),
        json!({}),
    );
    let (envoy, worker) = gateway(&lasting(&rules));
    introduce(&envoy, &worker, "alice", plan);
    (envoy, worker)
}

fn upload(worker: &Worker) -> tollgate_fake_host::Outcome {
    worker.request().post("/upload?user_key=alice").send()
}

#[test]
fn a_request_is_counted_on_all_its_metrics_or_on_none() {
    let plan = authorized()
        .limit("hits", "hour", 10, 0)
        .limit("uploads", "hour", 12, 0);
    let (envoy, worker) = two_metrics(plan);
    upload(&worker).forwarded();
    upload(&worker).forwarded();
    for _ in 0..3 {
        assert_eq!(upload(&worker).status(), Some(429), "2 of 12 are left");
    }
    assert_eq!(books(&envoy, "uploads").admitted, 10);
    assert_eq!(books(&envoy, "hits").admitted, 3);
    for _ in 0..7 {
        get(&worker, "alice").forwarded();
    }
    assert_eq!(get(&worker, "alice").status(), Some(429));
    assert_eq!(books(&envoy, "hits").admitted, 10);
}

#[test]
fn of_several_limits_on_a_metric_all_must_allow() {
    let plan = authorized()
        .limit("hits", "minute", 3, 0)
        .limit("hits", "hour", 5, 0);
    let (envoy, worker) = two_metrics(plan);
    let admitted_in_a_minute = || {
        (0..10)
            .filter(|_| get(&worker, "alice").continued())
            .count()
    };
    assert_eq!(1 + admitted_in_a_minute(), 3);
    envoy.advance(seconds(60));
    assert_eq!(admitted_in_a_minute(), 2);
    envoy.advance(seconds(60));
    assert_eq!(admitted_in_a_minute(), 0);
    envoy.advance(seconds(3_480));
    assert_eq!(admitted_in_a_minute(), 3);
}

#[test]
fn a_cost_that_no_window_could_hold_is_refused_and_takes_nothing() {
    let plan = authorized().limit("uploads", "hour", 4, 0);
    let (envoy, worker) = two_metrics(plan);
    assert_eq!(upload(&worker).status(), Some(429));
    assert_eq!(books(&envoy, "uploads").admitted, 0);
    get(&worker, "alice").forwarded();
}

#[test]
fn what_others_used_before_counts_from_the_first_request() {
    let (_, worker) = two_metrics(authorized().limit("hits", "hour", 10, 8));
    get(&worker, "alice").forwarded();
    assert_eq!(get(&worker, "alice").status(), Some(429));
}

#[test]
fn a_plan_that_is_used_up_elsewhere_refuses_the_first_request() {
    for current in [10, 11, u64::MAX] {
        let (envoy, worker) = gateway(&plain());
        let stream = get(&worker, "alice").paused();
        let plan = authorized().limit("hits", "hour", 10, current);
        worker.answer(worker.only_call().token, plan.at(envoy.wall_ms()));
        assert_eq!(worker.poll(stream).status(), Some(429), "{current}");
    }
}

#[test]
fn a_limit_that_service_management_says_is_exceeded_is_no_verdict() {
    let (envoy, worker) = gateway(&plain());
    let stream = get(&worker, "alice").paused();
    let exceeded = tollgate_fake_host::denied("limits_exceeded").limit("hits", "minute", 5, 5);
    worker.answer(worker.only_call().token, exceeded.at(envoy.wall_ms()));
    let reply = worker.poll(stream).reply();
    assert_eq!(
        (reply.status, reply.header("retry-after")),
        (429, Some("60"))
    );

    envoy.advance(seconds(59));
    assert_eq!(get(&worker, "alice").status(), Some(429));
    envoy.advance(SECOND);
    get(&worker, "alice").forwarded();
    assert_eq!(
        stat(&envoy, "authorize_calls"),
        1,
        "the window opened without a call"
    );
    behaved(&envoy);
}

#[test]
fn a_method_counts_for_its_parents_by_the_backends_hierarchy() {
    let rules = rules(
        json!([{ "pattern": "/", "usage": { "orders": 1 } }]),
        json!({}),
    );
    let (envoy, worker) = gateway(&rules);
    let plan = authorized()
        .limit("hits", "hour", 3, 0)
        .hierarchy("hits", "orders");
    introduce(&envoy, &worker, "alice", plan);
    let admitted = (0..10)
        .filter(|_| get(&worker, "alice").continued())
        .count();
    assert_eq!(1 + admitted, 3);
    // What is reported is the method: service management adds to the parents itself.
    let calls = pass_time(&envoy, &[worker], seconds(11), |_| Some(accepted()));
    assert_eq!(usage_of(&reports(&calls), "orders"), 3);
    assert_eq!(usage_of(&reports(&calls), "hits"), 0);
}

#[test]
fn a_method_counts_for_its_parents_by_the_configuration() {
    let rules = rules(
        json!([{ "pattern": "/", "usage": { "create_order": 1 } }]),
        json!({ "create_order": { "parent": "orders" }, "orders": { "parent": "hits" }, "hits": {} }),
    );
    let (envoy, worker) = gateway(&rules);
    introduce(
        &envoy,
        &worker,
        "alice",
        authorized().limit("hits", "hour", 3, 0),
    );
    let admitted = (0..10)
        .filter(|_| get(&worker, "alice").continued())
        .count();
    assert_eq!(1 + admitted, 3);
}

#[test]
fn a_hierarchy_known_half_here_and_half_there_is_one() {
    let rules = rules(
        json!([{ "pattern": "/", "usage": { "create_order": 1 } }]),
        json!({ "create_order": { "parent": "orders" }, "orders": {} }),
    );
    let (envoy, worker) = gateway(&rules);
    let plan = authorized()
        .limit("hits", "hour", 3, 0)
        .hierarchy("hits", "orders");
    introduce(&envoy, &worker, "alice", plan);
    let admitted = (0..10)
        .filter(|_| get(&worker, "alice").continued())
        .count();
    assert_eq!(1 + admitted, 3);
}

#[test]
fn a_window_ends_at_its_last_millisecond_and_not_before() {
    for (period, length) in [("minute", 60), ("hour", 3_600), ("day", 16 * 3_600)] {
        let (envoy, worker) = gateway(&lasting(&plain()));
        introduce(
            &envoy,
            &worker,
            "alice",
            authorized().limit("hits", period, 2, 0),
        );
        get(&worker, "alice").forwarded();
        envoy.advance(seconds(length) - Duration::from_millis(1));
        assert_eq!(get(&worker, "alice").status(), Some(429), "{period}");
        envoy.advance(Duration::from_millis(1));
        get(&worker, "alice").forwarded();
        get(&worker, "alice").forwarded();
        assert_eq!(get(&worker, "alice").status(), Some(429), "{period}");
        assert_eq!(worker.calls().len(), 0);
    }
}

#[test]
fn a_calendar_clock_that_jumps_back_does_not_reopen_a_window() {
    let (envoy, worker) = gateway(&plain());
    introduce(
        &envoy,
        &worker,
        "alice",
        authorized().limit("hits", "minute", 3, 0),
    );
    envoy.advance(seconds(30));
    get(&worker, "alice").forwarded();
    // A calendar that is set anew is noticed at the next tick.
    let set = |milliseconds| {
        envoy.set_wall_ms(milliseconds);
        worker.tick();
    };
    set(FakeEnvoy::START_MS - 45_000);
    get(&worker, "alice").forwarded();
    for back in [1_000, 60_000, 3_600_000] {
        set(FakeEnvoy::START_MS - back);
        assert_eq!(get(&worker, "alice").status(), Some(429), "{back} ms back");
    }
    set(FakeEnvoy::START_MS + 59_999);
    assert_eq!(get(&worker, "alice").status(), Some(429));
    set(FakeEnvoy::START_MS + 60_000);
    get(&worker, "alice").forwarded();
}

#[test]
fn a_refresh_with_the_clock_set_back_does_not_reopen_a_window_either() {
    let (envoy, worker) = gateway(&plain());
    introduce(
        &envoy,
        &worker,
        "alice",
        authorized().limit("hits", "minute", 1, 0),
    );
    let before = FakeEnvoy::START_MS - 30_000;
    envoy.set_monotonic_ms(1_000_000 + 61_000);
    envoy.set_wall_ms(before);
    worker.tick();
    assert_eq!(get(&worker, "alice").status(), Some(429));
    worker.answer_all(|call| match is_question(call) {
        true => authorized().limit("hits", "minute", 1, 0).at(before),
        false => accepted(),
    });
    assert_eq!(get(&worker, "alice").status(), Some(429));
    envoy.set_wall_ms(FakeEnvoy::START_MS + 60_000);
    worker.tick();
    get(&worker, "alice").forwarded();
}

#[test]
fn lifetimes_do_not_follow_the_calendar_clock() {
    let (envoy, worker) = gateway(&plain());
    introduce(&envoy, &worker, "alice", authorized());
    envoy.set_wall_ms(FakeEnvoy::START_MS + 365 * 86_400_000);
    get(&worker, "alice").forwarded();
    envoy.set_wall_ms(FakeEnvoy::START_MS - 365 * 86_400_000);
    get(&worker, "alice").forwarded();
    assert_eq!(stat(&envoy, "requests_admitted_stale"), 0);
    assert_eq!(worker.calls().len(), 0);
}

#[test]
fn an_eternal_limit_never_opens_again() {
    let changes = json!({ "authorization": { "ttl": "1d", "stale_if_error": "7d" } });
    let (envoy, worker) = gateway(&configuration(changes));
    introduce(
        &envoy,
        &worker,
        "alice",
        authorized().limit("hits", "eternity", 2, 0),
    );
    get(&worker, "alice").forwarded();
    envoy.set_wall_ms(FakeEnvoy::START_MS + 3 * 365 * 86_400_000);
    assert_eq!(get(&worker, "alice").status(), Some(429));
}

#[test]
fn a_plan_that_changes_keeps_what_was_used() {
    let (envoy, worker) = gateway(&plain());
    introduce(
        &envoy,
        &worker,
        "alice",
        authorized().limit("hits", "day", 3, 0),
    );
    let mut backend = Backend::knows(&[]);
    let mut plan = |maximum: u64| {
        let alice = authorized().limit("hits", "day", maximum, 0);
        backend.applications.insert("alice".to_owned(), alice);
        envoy.advance(seconds(61));
        get(&worker, "alice");
        worker.tick();
        for call in worker.calls() {
            if is_question(&call) {
                worker.answer(call.token, backend.answer(&call, envoy.wall_ms()));
            }
        }
    };
    plan(5); // and 2 used
    let admitted = (0..10)
        .filter(|_| get(&worker, "alice").continued())
        .count();
    assert_eq!(2 + admitted, 5);
    plan(4);
    assert_eq!(get(&worker, "alice").status(), Some(429));
    plan(7);
    let admitted = (0..10)
        .filter(|_| get(&worker, "alice").continued())
        .count();
    assert_eq!(admitted, 2);
}

#[test]
fn a_limit_that_a_plan_gains_counts_what_is_not_yet_reported() {
    let (envoy, worker) = gateway(&plain());
    introduce(&envoy, &worker, "alice", authorized());
    for _ in 0..4 {
        get(&worker, "alice").forwarded();
    }
    envoy.advance(seconds(61));
    get(&worker, "alice").forwarded();
    worker.tick();
    for call in worker.calls() {
        if is_question(&call) {
            let plan = authorized().limit("hits", "day", 8, 0);
            worker.answer(call.token, plan.at(envoy.wall_ms()));
        }
    }
    let admitted = (0..10)
        .filter(|_| get(&worker, "alice").continued())
        .count();
    assert_eq!(6 + admitted, 8);
}
