//! Keys that nobody knows, faster than anybody could be asked about them, and a service
//! management that keeps failing: what it costs, and whom it does not concern.

use std::time::Duration;

use serde_json::json;
use tollgate_fake_host::{Failure, FakeEnvoy, LogLevel, Outcome, Worker, authorized, error};

use crate::support::*;

/// A gateway of some workers that asks about so many unknown credentials a second.
fn with_budget(workers: usize, per_second: u32) -> (FakeEnvoy, Vec<Worker>) {
    let changes = json!({ "authorization": { "unknown_calls_per_second": per_second } });
    gateway_of(workers, &configuration(changes))
}

/// Fails until nobody is asked any more.
fn break_down(worker: &Worker) {
    for number in 0..5 {
        let stream = get(worker, &format!("early-{number}")).paused();
        let question = worker.calls().into_iter().find(is_question);
        worker.answer(question.expect("asked").token, Failure::Timeout);
        assert_eq!(worker.poll(stream).status(), Some(503));
    }
}

#[test]
fn random_keys_cost_the_budget_and_no_more_whatever_their_number() {
    const PER_SECOND: u64 = 20;
    let (envoy, workers) = with_budget(4, 20);
    introduce(&envoy, &workers[0], "alice", authorized());
    let mut refused = 0;
    let mut number = 0;
    let seconds = 30;
    for _ in 0..seconds * 10 {
        for worker in &workers {
            for _ in 0..25 {
                number += 1;
                match get(worker, &format!("stranger-{number}")) {
                    Outcome::Paused(_) => {}
                    decided => {
                        let reply = decided.reply();
                        assert_eq!(reply.status, 503);
                        assert_eq!(reply.details, "tollgate_over_budget");
                        assert_eq!(reply.header("retry-after"), Some("1"));
                        refused += 1;
                    }
                }
            }
            get(worker, "alice").forwarded();
            for call in worker.calls().into_iter().filter(is_question) {
                let token = call.token;
                worker.answer(token, error(403, "user_key_invalid"));
            }
        }
        envoy.advance(Duration::from_millis(100));
    }
    let asked = stat(&envoy, "authorize_calls");
    // What it holds at first, and what comes in.
    assert!(asked <= PER_SECOND * (10 + seconds), "{asked} questions");
    assert!(asked >= PER_SECOND * (9 + seconds), "{asked} questions");
    assert_eq!(asked - 1 + refused, number);
    assert_eq!(stat(&envoy, "requests_over_budget"), refused);
    assert_eq!(recorded(&envoy).len(), 1, "strangers take no slot");
    // Slots, places for strangers and for questions under way, and what there is once.
    assert!(envoy.shared_keys().len() <= 128 + 64 + 256 + 12);
    behaved(&envoy);
}

#[test]
fn over_the_budget_those_who_wait_for_a_question_still_get_its_answer() {
    let (envoy, workers) = with_budget(2, 1);
    let streams: Vec<_> = (0..10)
        .map(|number| get(&workers[0], &format!("key-{number}")).paused())
        .collect();
    assert_eq!(get(&workers[0], "key-10").status(), Some(503));
    let joins = get(&workers[0], "key-3").paused();
    for call in workers[0].calls() {
        workers[0].answer(call.token, authorized().at(envoy.wall_ms()));
    }
    assert_eq!(statuses(&workers[0], &streams), [None; 10]);
    workers[0].poll(joins).forwarded();
    // A second is worth one more, on whichever worker.
    envoy.advance(SECOND);
    get(&workers[1], "key-11").paused();
    assert_eq!(get(&workers[0], "key-12").status(), Some(503));
    behaved(&envoy);
}

#[test]
fn when_it_keeps_failing_unknown_applications_are_answered_at_once_and_known_ones_as_ever() {
    let (envoy, workers) = gateway_of(2, &plain());
    introduce(&envoy, &workers[0], "alice", authorized());
    break_down(&workers[0]);
    assert!(envoy.logged(LogLevel::Warn, "keeps failing"));
    let before = stat(&envoy, "authorize_calls");
    for worker in &workers {
        for number in 0..100 {
            let reply = get(worker, &format!("late-{number}")).reply();
            assert_eq!(reply.status, 503);
            assert_eq!(reply.details, "tollgate_service_management_unavailable");
        }
        get(worker, "alice").forwarded();
    }
    assert_eq!(stat(&envoy, "authorize_calls"), before);
    assert_eq!(stat(&envoy, "requests_breaker_open"), 200);
    behaved(&envoy);
}

#[test]
fn after_a_pause_one_question_of_all_workers_finds_out_whether_it_is_back() {
    let (envoy, workers) = gateway_of(3, &plain());
    break_down(&workers[0]);
    let mut probes = 0;
    let mut back = None;
    for tenth in 0..1_500 {
        envoy.advance(Duration::from_millis(100));
        for (number, worker) in workers.iter().enumerate() {
            let outcome = get(worker, &format!("{number}-{tenth}"));
            let Outcome::Paused(stream) = outcome else {
                assert_eq!(outcome.status(), Some(503));
                continue;
            };
            probes += 1;
            assert_eq!(get(&workers[(number + 1) % 3], "other").status(), Some(503));
            let token = worker.only_call().token;
            if tenth < 1_100 {
                worker.answer(token, Failure::ConnectionRefused);
                assert_eq!(worker.poll(stream).status(), Some(503));
                continue;
            }
            worker.answer(token, authorized().at(envoy.wall_ms()));
            worker.poll(stream).forwarded();
            back = back.or(Some(tenth));
            break;
        }
        if back.is_some() {
            break;
        }
    }
    // After 1, 2, 4, 8 and then each 10 s, less what is random.
    assert!(
        (10..=30).contains(&probes),
        "{probes} probes in two minutes"
    );
    assert!(back.is_some(), "it is back, and nobody noticed");
    assert!(envoy.logged(LogLevel::Info, "answers again"));
    for worker in &workers {
        get(worker, "whoever").paused();
    }
    behaved(&envoy);
}

#[test]
fn while_it_fails_no_more_unknown_applications_are_let_in_than_could_be_asked_about() {
    let changes = json!({
        "authorization": { "unknown": "allow", "unknown_calls_per_second": 2 },
    });
    let (envoy, worker) = gateway(&configuration(changes));
    for number in 0..5 {
        let stream = get(&worker, &format!("early-{number}")).paused();
        worker.answer(worker.only_call().token, Failure::Timeout);
        worker.poll(stream).forwarded();
    }
    let mut outcomes = (0..100).map(|number| get(&worker, &format!("late-{number}")));
    let admitted = outcomes.by_ref().take_while(Outcome::continued).count();
    assert_eq!(admitted, 15, "of 20, the others were asked about");
    assert!(outcomes.all(|outcome| outcome.status() == Some(503)));
    assert_eq!(stat(&envoy, "authorize_calls"), 5);
    assert_eq!(stat(&envoy, "requests_admitted_unknown"), 20);
    get(&worker, "late-7").forwarded();
    behaved(&envoy);
}

#[test]
fn what_service_management_answers_is_no_failure_of_its() {
    for answer in [
        error(403, "user_key_invalid"),
        error(403, "service_token_invalid"),
    ] {
        let (envoy, worker) = gateway(&plain());
        for number in 0..20 {
            let stream = get(&worker, &format!("{number}")).paused();
            worker.answer(worker.only_call().token, answer.clone());
            assert!(worker.poll(stream).status().is_some());
        }
        assert_eq!(stat(&envoy, "requests_breaker_open"), 0);
    }
}
