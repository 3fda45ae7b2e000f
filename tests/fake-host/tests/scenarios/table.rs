//! The table of records: who gets a slot, who gives way, and that an application never
//! has two.

use std::slice::from_ref;

use serde_json::json;
use tollgate_fake_host::{FakeEnvoy, Worker, accepted, authorized, error, run_at_once};

use crate::support::*;

/// A process whose table has one set of eight slots, as a process may have whose first
/// configuration was smaller. The smallest capacity that can be configured has two sets.
fn tiny() -> FakeEnvoy {
    let envoy = envoy();
    let key = tollgate::shared_data::Key::new(b'z', 0, 0);
    envoy
        .shared_data()
        .set(key.as_bytes(), b"TGz1\x01\0\0\0", 0);
    envoy
}

fn full_set(configuration: &str) -> (FakeEnvoy, Worker) {
    let envoy = tiny();
    let worker = envoy.configured_worker(configuration);
    for number in 0..8 {
        introduce(&envoy, &worker, &customer(number), authorized());
        envoy.advance(SECOND);
    }
    (envoy, worker)
}

fn customer(number: usize) -> String {
    format!("customer-{number}")
}

#[test]
fn with_no_slot_to_spare_an_application_is_asked_about_each_time_and_reported_at_once() {
    let (envoy, worker) = full_set(&plain());
    for round in 1..=3 {
        let streams = [0; 2].map(|_| get(&worker, "ninth").paused());
        let question = worker.only_call();
        worker.answer(question.token, authorized().at(envoy.wall_ms()));
        for stream in streams {
            worker.poll(stream).forwarded();
        }
        let report = worker.only_call();
        let used = usage(&reports(from_ref(&report)));
        let of_ninth = ("ninth".to_owned(), "hits".to_owned());
        assert_eq!(used.into_iter().collect::<Vec<_>>(), [(of_ninth, 2)]);
        worker.answer(report.token, accepted());
        assert_eq!(stat(&envoy, "requests_uncached"), round);
        assert_eq!(stat(&envoy, "usage_acknowledged"), 2 * round);
    }
    let eight: Vec<String> = (0..8).map(customer).collect();
    assert_eq!(recorded(&envoy).into_iter().collect::<Vec<_>>(), eight);
    assert_eq!(books(&envoy, "hits").pending, 8);
    assert_eq!(stat(&envoy, "requests_admitted"), 8 + 6);
    assert_eq!(stat(&envoy, "authorize_calls"), 8 + 3);
    behaved(&envoy);
}

#[test]
fn an_application_without_a_slot_is_held_to_its_limits_and_to_its_denial() {
    let (envoy, worker) = full_set(&plain());
    let streams = [0; 5].map(|_| get(&worker, "ninth").paused());
    let plan = authorized().limit("hits", "day", 10, 7);
    worker.answer(worker.only_call().token, plan.at(envoy.wall_ms()));
    let mut admitted = 0;
    for stream in streams {
        match worker.poll(stream).status() {
            None => admitted += 1,
            status => assert_eq!(status, Some(429)),
        }
    }
    assert_eq!(admitted, 3);
    worker.answer_all(|_| accepted());

    let stream = get(&worker, "tenth").paused();
    worker.answer(worker.only_call().token, error(403, "user_key_invalid"));
    assert_eq!(worker.poll(stream).status(), Some(403));
    assert_eq!(
        get(&worker, "tenth").status(),
        Some(403),
        "remembered, needs no slot"
    );
    behaved(&envoy);
}

#[test]
fn usage_without_a_slot_that_cannot_be_reported_is_counted_as_lost() {
    for answer in [
        error(403, "service_token_invalid"),
        tollgate_fake_host::Failure::Timeout.into(),
        tollgate_fake_host::Failure::ConnectionRefused.into(),
    ] {
        let (envoy, worker) = full_set(&plain());
        let stream = get(&worker, "ninth").paused();
        worker.answer(worker.only_call().token, authorized().at(envoy.wall_ms()));
        worker.poll(stream).forwarded();
        worker.answer(worker.only_call().token, answer);
        assert_eq!(stat(&envoy, "usage_lost_uncached"), 1);
        assert_eq!(stat(&envoy, "usage_acknowledged"), 0);
        assert!(envoy.logged(
            tollgate_fake_host::LogLevel::Error,
            "1 units of usage are lost"
        ));
    }
}

#[test]
fn a_record_with_usage_in_flight_does_not_give_way() {
    let (envoy, worker) = full_set(&plain());
    worker.tick();
    let report = worker.only_call();
    let stream = get(&worker, "ninth").paused();
    let question = worker
        .calls()
        .into_iter()
        .find(is_question)
        .expect("a question");
    worker.answer(question.token, authorized().at(envoy.wall_ms()));
    worker.poll(stream).forwarded();
    assert_eq!(recorded(&envoy).len(), 8);
    worker.answer(report.token, accepted());
    assert_eq!(books(&envoy, "hits").acknowledged, 8);
}

#[test]
fn the_least_recently_used_application_of_which_nothing_is_pending_gives_way() {
    let (envoy, worker) = full_set(&plain());
    worker.tick();
    worker.answer_all(|_| accepted());
    // An answer of before might still lack what was acknowledged.
    envoy.advance(seconds(6));
    for number in [0, 1, 2, 4, 5, 6, 7] {
        get(&worker, &customer(number)).forwarded();
    }
    worker.answer_all(|_| accepted());
    introduce(&envoy, &worker, "ninth", authorized());
    let records = recorded(&envoy);
    assert!(records.contains("ninth"));
    assert!(!records.contains(&customer(3)));
    assert_eq!(records.len(), 8);
    assert_eq!(stat(&envoy, "requests_uncached"), 0);
    // Who gave way is asked about again, and its old hint leads nobody astray.
    get(&worker, &customer(3)).paused();
    behaved(&envoy);
}

#[test]
fn a_used_limit_gives_way_only_after_an_answer_that_includes_the_usage() {
    let envoy = tiny();
    let worker = envoy.configured_worker(&plain());
    for number in 0..8 {
        let plan = authorized().limit("hits", "month", 10, 0);
        introduce(&envoy, &worker, &customer(number), plan);
    }
    worker.tick();
    worker.answer_all(|_| accepted());
    let stream = get(&worker, "ninth").paused();
    worker.answer(worker.only_call().token, authorized().at(envoy.wall_ms()));
    worker.poll(stream).forwarded();
    assert_eq!(
        recorded(&envoy).len(),
        8,
        "the backend may not have counted it yet"
    );
    assert_eq!(stat(&envoy, "requests_uncached"), 1);
}

#[test]
fn applications_that_nobody_uses_any_more_leave_room_for_others_in_the_end() {
    for period in ["minute", "month", "eternity"] {
        let envoy = tiny();
        let worker = envoy.configured_worker(&plain());
        let mut backend = Backend::default();
        for number in 0..8 {
            let (before, after) = (0, 1);
            let plan = |current| authorized().limit("hits", period, 10, current);
            introduce(&envoy, &worker, &customer(number), plan(before));
            backend.applications.insert(customer(number), plan(after));
        }
        pass_time(&envoy, from_ref(&worker), seconds(600), |call| {
            Some(backend.answer(call, envoy.wall_ms()))
        });
        assert_eq!(books(&envoy, "hits").acknowledged, 8);
        introduce(&envoy, &worker, "ninth", authorized());
        assert!(recorded(&envoy).contains("ninth"), "{period}");
        assert_eq!(stat(&envoy, "requests_uncached"), 0);
        assert!(
            stat(&envoy, "refresh_calls") <= 16,
            "asked about no more than needed"
        );
    }
}

#[test]
fn whoever_gave_way_comes_back_with_its_limit_as_it_was() {
    let envoy = tiny();
    let worker = envoy.configured_worker(&plain());
    let mut used = std::collections::BTreeMap::<String, u64>::new();
    let mut admitted = std::collections::BTreeMap::<String, u64>::new();
    let mut random = Random(7);
    for _ in 0..3_000 {
        let key = customer(usize::try_from(random.below(14)).expect("small"));
        envoy.advance(SECOND);
        let before = worker.calls().len();
        assert_eq!(before, 0);
        let outcome = get(&worker, &key);
        // The backend counts what it is told at once.
        let mut answer_all = || {
            worker.answer_all(|call| {
                if is_report(call) {
                    for ((key, _), units) in usage(&reports(from_ref(call))) {
                        *used.entry(key).or_default() += units;
                    }
                    return accepted();
                }
                let current = used.get(&key_of(call)).copied().unwrap_or(0);
                authorized()
                    .limit("hits", "day", 60, current)
                    .at(envoy.wall_ms())
            })
        };
        answer_all();
        let outcome = match outcome {
            tollgate_fake_host::Outcome::Paused(stream) => worker.poll(stream),
            decided => decided,
        };
        *admitted.entry(key).or_default() += u64::from(outcome.continued());
        worker.tick();
        answer_all();
        recorded(&envoy);
    }
    assert!(stat(&envoy, "authorize_calls") > 20, "many gave way");
    for (key, admitted) in admitted {
        assert_eq!(admitted, 60, "{key}");
    }
}

#[test]
fn strangers_push_out_no_customer_and_take_no_room_without_end() {
    let changes = json!({ "authorization": { "capacity": 32 } });
    let (envoy, worker) = gateway(&configuration(changes));
    for number in 0..20 {
        introduce(&envoy, &worker, &customer(number), authorized());
    }
    worker.tick();
    worker.answer_all(|_| accepted());
    let customers = recorded(&envoy);
    let mut most = 0;
    for number in 0..5_000 {
        let stream = get(&worker, &format!("stranger-{number}")).paused();
        worker.answer(worker.only_call().token, error(403, "user_key_invalid"));
        assert_eq!(worker.poll(stream).status(), Some(403));
        most = most.max(envoy.shared_keys().len());
    }
    assert_eq!(recorded(&envoy), customers);
    // 64 slots, 32 places for strangers, 256 for questions under way, and what the process
    // has one of.
    assert!(most <= 64 + 32 + 256 + 8, "{most} keys");
    for number in 0..20 {
        get(&worker, &customer(number)).forwarded();
    }
    behaved(&envoy);
}

#[test]
fn applications_that_come_and_go_take_no_keys_without_end() {
    let changes = json!({ "authorization": { "capacity": 8 } });
    let (envoy, worker) = gateway(&configuration(changes));
    for number in 0..1_000 {
        introduce(&envoy, &worker, &customer(number), authorized());
        worker.answer_all(|_| accepted());
        envoy.advance(seconds(11));
        worker.tick();
        worker.answer_all(|call| match is_question(call) {
            true => authorized().at(envoy.wall_ms()),
            false => accepted(),
        });
    }
    // Slots, places of questions under way, and what there is once.
    assert!(envoy.shared_keys().len() <= 16 + 256 + 8 + 8);
    assert_eq!(stat(&envoy, "requests_uncached"), 0);
    assert_eq!(stat(&envoy, "usage_acknowledged"), 1_000);
}

/// Runs `other` before the compare-and-set after `skipped` others.
fn before_compare_and_set(
    envoy: &FakeEnvoy,
    skipped: usize,
    other: impl FnOnce() + Send + 'static,
) {
    let again = envoy.clone();
    envoy.interleave(move || match skipped.checked_sub(1) {
        None => other(),
        Some(skipped) => before_compare_and_set(&again, skipped, other),
    });
}

#[test]
fn wherever_two_workers_meet_while_they_put_an_application_it_gets_one_record() {
    for skipped in 0..12 {
        for others in 0..3 {
            let (envoy, workers) = gateway_of(2, &plain());
            without_queues(&envoy);
            // So that the first free slot is another one each time.
            for number in 0..others * 20 {
                introduce(&envoy, &workers[0], &customer(number), authorized());
            }
            let plan = authorized().limit("hits", "day", 5, 0);
            let streams = [0, 1].map(|worker| {
                let worker: &Worker = &workers[worker];
                [0; 3].map(|_| get(worker, "alice").paused())
            });
            let answer = plan.clone().at(envoy.wall_ms());
            let (other, same) = (workers[1].clone(), answer.clone());
            before_compare_and_set(&envoy, skipped, move || {
                other.answer(other.only_call().token, same);
            });
            workers[0].answer(workers[0].only_call().token, answer.clone());
            // If they did not meet, the other comes after.
            envoy.interleave(|| {});
            for call in workers[1].calls() {
                workers[1].answer(call.token, answer.clone());
            }
            let mut admitted = 0;
            for (worker, streams) in workers.iter().zip(streams) {
                for stream in streams {
                    match worker.poll(stream).status() {
                        None => admitted += 1,
                        status => assert_eq!(status, Some(429), "{skipped}, {others}"),
                    }
                }
            }
            assert_eq!(admitted, 5, "{skipped}, {others}");
            assert_eq!(
                record(&envoy, "alice")
                    .limits()
                    .next()
                    .expect("a limit")
                    .1
                    .own,
                5
            );
            behaved(&envoy);
        }
    }
}

#[test]
fn however_many_workers_put_the_same_applications_at_once_each_gets_one_record() {
    for seed in 0..40 {
        let envoy = envoy().seed(seed);
        without_queues(&envoy);
        envoy.collide();
        let configuration = configuration(json!({ "authorization": { "capacity": 8 } }));
        let workers: Vec<Worker> = (0..6)
            .map(|_| envoy.configured_worker(&configuration))
            .collect();
        let clock = envoy.clone();
        let admitted = run_at_once(&workers, move |worker| {
            let mut admitted = [0; 4];
            for _ in 0..12 {
                for (number, admitted) in admitted.iter_mut().enumerate() {
                    let outcome = match get(worker, &customer(number)) {
                        tollgate_fake_host::Outcome::Paused(stream) => {
                            let plan = authorized().limit("hits", "day", 25, 0);
                            worker.answer(worker.only_call().token, plan.at(clock.wall_ms()));
                            worker.poll(stream)
                        }
                        decided => decided,
                    };
                    match outcome.status() {
                        None => *admitted += 1,
                        // 503 where two withdrew from each other again and again.
                        status => assert!(matches!(status, Some(429 | 503)), "{outcome:?}"),
                    }
                }
            }
            admitted
        });
        assert_eq!(recorded(&envoy).len(), 4, "seed {seed}");
        for number in 0..4 {
            let sum: u64 = admitted.iter().map(|admitted| admitted[number]).sum();
            let own = record(&envoy, &customer(number))
                .limits()
                .next()
                .expect("a limit")
                .1
                .own;
            assert_eq!(own, sum, "seed {seed}");
            assert_eq!(sum, 25, "seed {seed}");
        }
        assert_eq!(books(&envoy, "hits").admitted, 100);
        behaved(&envoy);
    }
}

#[test]
fn a_worker_that_dies_while_it_puts_an_application_is_in_nobodys_way_for_long() {
    let (envoy, workers) = gateway_of(2, &plain());
    let stream = get(&workers[0], "alice").paused();
    let dying = envoy.clone();
    // The slot is claimed, and what should follow does not.
    envoy.interleave(move || dying.fail_next("proxy_set_shared_data", 10, 1));
    let token = workers[0].only_call().token;
    workers[0].answer(token, authorized().at(envoy.wall_ms()));
    assert_eq!(workers[0].poll(stream).status(), Some(503));
    assert_eq!(recorded(&envoy).len(), 0);
    workers[0].restart_vm();

    envoy.advance(seconds(2));
    introduce(&envoy, &workers[1], "alice", authorized());
    assert_eq!(recorded(&envoy).len(), 1);
}

#[test]
fn the_first_capacity_of_a_process_stays() {
    let (envoy, worker) = gateway(&plain());
    introduce(
        &envoy,
        &worker,
        "alice",
        authorized().limit("hits", "day", 2, 0),
    );
    let larger = configuration(json!({ "authorization": { "capacity": 1_024 } }));
    let second = envoy.configured_worker(&larger);
    assert!(envoy.logged(
        tollgate_fake_host::LogLevel::Warn,
        "authorization.capacity is 1024"
    ));
    get(&second, "alice").forwarded();
    assert_eq!(
        get(&worker, "alice").status(),
        Some(429),
        "one record for both"
    );
}
