//! The sums that operators see follow the records' ledgers: they balance whenever they are
//! looked at, and agree at rest.

use std::slice::from_ref;

use serde_json::json;
use tollgate_fake_host::{Answer, Call, Failure, FakeEnvoy, Worker, accepted, authorized, error};

use crate::support::*;

/// The sums of a metric of service 1001, as statistics. Panics if they do not balance.
#[track_caller]
fn sums(envoy: &FakeEnvoy, metric: &str) -> Books {
    let of = |name: &str| stat(envoy, &format!("metric.{metric}.units_{name}"));
    let sums = Books {
        admitted: of("admitted"),
        acknowledged: of("acknowledged"),
        lost: of("lost"),
        pending: of("pending"),
        in_flight: of("in_flight"),
    };
    let settled = sums.acknowledged + sums.lost;
    let parts = settled + sums.pending + sums.in_flight;
    assert_eq!(sums.admitted, parts, "{metric}: {sums:?}");
    sums
}

fn two_metrics() -> String {
    rules(
        json!([
            { "method": "POST", "pattern": "/", "usage": { "uploads": 5, "hits": 1 } },
            { "pattern": "/", "usage": { "hits": 1 } },
        ]),
        json!({}),
    )
}

#[test]
fn the_sums_of_each_metric_balance_at_every_step_and_agree_at_rest() {
    for seed in 0..12 {
        let policy = if seed % 2 == 0 { "resend" } else { "drop" };
        let mut whole: serde_json::Value = serde_json::from_str(&two_metrics()).expect("JSON");
        whole["reporting"] = json!({ "uncertain": policy, "batch": 3, "interval": "2s" });
        whole["authorization"]["ttl"] = json!("1d");
        let envoy = envoy().seed(seed);
        let workers = [0; 3].map(|_| envoy.configured_worker(&whole.to_string()));
        let keys = ["a", "b", "c", "d", "e"];
        for key in keys {
            introduce(&envoy, &workers[0], key, authorized());
        }
        let mut random = Random(seed + 1);
        for _ in 0..300 {
            let worker = random.one_of(&workers).clone();
            match random.below(10) {
                0..=4 => {
                    let path = format!("/?user_key={}", random.one_of(&keys));
                    match random.below(2) {
                        0 => worker.request().post(&path).send().forwarded(),
                        _ => worker.request().get(&path).send().forwarded(),
                    };
                }
                5 | 6 => {
                    envoy.advance(std::time::Duration::from_millis(random.below(3_000)));
                    worker.tick();
                }
                7..=8 => {
                    for call in worker.calls().into_iter().filter(is_report) {
                        let answer: Answer = match random.below(5) {
                            0 => Failure::ConnectionRefused.into(),
                            1 => Failure::Timeout.into(),
                            2 => Answer::status(500),
                            3 => error(400, "bad_request"),
                            _ => accepted(),
                        };
                        worker.answer(call.token, answer);
                    }
                }
                _ if random.below(20) == 0 => {
                    worker.restart_vm();
                    assert!(worker.configure(&whole.to_string()));
                }
                _ => {}
            }
            for metric in ["hits", "uploads"] {
                let (sums, books) = (sums(&envoy, metric), books(&envoy, metric));
                assert!(sums.admitted <= books.admitted, "{sums:?}, {books:?}");
                assert_eq!(sums.acknowledged, books.acknowledged, "seed {seed}");
                assert_eq!(sums.lost, books.lost, "seed {seed}");
            }
        }
        for worker in &workers {
            for call in worker.calls() {
                worker.answer(call.token, Failure::ConnectionRefused);
            }
        }
        pass_time(&envoy, &workers, seconds(300), |call| {
            is_report(call).then(accepted)
        });
        for metric in ["hits", "uploads"] {
            let books = books(&envoy, metric);
            assert_eq!((books.pending, books.in_flight), (0, 0));
            assert_eq!(sums(&envoy, metric), books, "seed {seed}");
        }
        let of = |name: &str| stat(&envoy, &format!("usage_{name}"));
        let lost = of("lost_refused") + of("lost_uncertain") + of("lost_too_old");
        assert_eq!(of("admitted"), of("acknowledged") + lost);
        assert_eq!((of("pending"), of("in_flight")), (0, 0));
        behaved(&envoy);
    }
}

#[test]
fn what_is_pending_and_what_is_in_flight_shows() {
    let (envoy, worker) = gateway(&two_metrics());
    introduce(&envoy, &worker, "alice", authorized());
    worker.request().post("/?user_key=alice").send().forwarded();
    worker.tick();
    // Two hits by the one that posted, by both rules, and one by the one before.
    let seen = sums(&envoy, "uploads");
    assert_eq!((seen.admitted, seen.in_flight, seen.pending), (5, 5, 0));
    assert_eq!(stat(&envoy, "usage_in_flight"), 8);
    worker.answer(worker.only_call().token, Failure::ConnectionRefused);
    let seen = sums(&envoy, "uploads");
    assert_eq!((seen.in_flight, seen.pending), (0, 5));
    assert_eq!(stat(&envoy, "usage_pending"), 8);
    pass_time(&envoy, from_ref(&worker), seconds(30), |call| {
        is_report(call).then(accepted)
    });
    assert_eq!(sums(&envoy, "uploads").acknowledged, 5);
    assert_eq!(stat(&envoy, "usage_pending"), 0);
}

#[test]
fn what_a_leader_that_went_had_in_flight_is_pending_until_it_is_settled() {
    let (envoy, workers) = gateway_of(2, &two_metrics());
    introduce(&envoy, &workers[0], "alice", authorized());
    workers[0].tick();
    assert_eq!(sums(&envoy, "hits").in_flight, 1);
    workers[0].restart_vm();
    let others = from_ref(&workers[1]);
    let taken = |call: &Call| is_report(call).then(accepted);
    pass_time(&envoy, others, seconds(8), taken);
    let seen = sums(&envoy, "hits");
    assert_eq!((seen.in_flight, seen.pending), (0, 1));
    pass_time(&envoy, others, seconds(120), taken);
    let seen = sums(&envoy, "hits");
    assert_eq!((seen.acknowledged, seen.pending), (1, 0));
}

#[test]
fn usage_of_an_application_without_a_place_is_in_the_sums() {
    let envoy = envoy();
    let capacity = json!({ "authorization": { "capacity": 8, "ttl": "1d" } });
    let worker = envoy.configured_worker(&configuration(capacity));
    let mut uncached = 0;
    for number in 0..40 {
        let stream = get(&worker, &format!("key-{number}")).paused();
        let question = worker.calls().into_iter().find(is_question).expect("one");
        worker.answer(question.token, authorized().at(envoy.wall_ms()));
        worker.poll(stream).forwarded();
        for call in worker.calls() {
            uncached += 1;
            let answer: Answer = match uncached % 2 {
                0 => accepted(),
                _ => Failure::Timeout.into(),
            };
            worker.answer(call.token, answer);
        }
    }
    assert!(uncached > 2);
    let seen = sums(&envoy, "hits");
    assert_eq!(seen.lost, stat(&envoy, "usage_lost_uncached"));
    assert_eq!(seen.acknowledged + seen.lost, uncached);
    pass_time(&envoy, from_ref(&worker), seconds(20), |call| {
        is_report(call).then(accepted)
    });
    let seen = sums(&envoy, "hits");
    assert_eq!((seen.admitted, seen.pending, seen.in_flight), (40, 0, 0));
}

#[test]
fn admitted_requests_are_counted_by_64_and_on_the_next_tick_at_the_latest() {
    let (envoy, workers) = gateway_of(2, &plain());
    introduce(&envoy, &workers[0], "alice", authorized());
    let admitted = || stat(&envoy, "requests_admitted");
    let requests = |worker: &Worker, count: usize| {
        for _ in 0..count {
            get(worker, "alice").forwarded();
        }
    };
    assert_eq!(admitted(), 1);
    requests(&workers[0], 63);
    requests(&workers[1], 63);
    assert_eq!(admitted(), 1);
    requests(&workers[0], 1);
    assert_eq!(admitted(), 1 + 64);
    workers[1].tick();
    assert_eq!(admitted(), 1 + 64 + 63);
    // Under an old configuration, too.
    requests(&workers[0], 3);
    assert!(workers[0].configure(&plain()));
    workers[0].tick();
    assert_eq!(admitted(), 1 + 64 + 63 + 3);
    behaved(&envoy);
}
