//! What a refresh makes of the backend's count, which is late: it may raise what is known
//! at any time, and lower it only when everything sent must be in it.

use std::slice::from_ref;

use serde_json::json;
use tollgate_fake_host::{Answer, Failure, FakeEnvoy, Worker, accepted, authorized};

use crate::support::*;

/// A gateway where alice has used 10 of 100 hits a day, of which `sent` as the story says.
fn ten_of_a_hundred() -> (FakeEnvoy, Worker) {
    let patient = configuration(json!({ "reporting": { "timeout": "60s" } }));
    let (envoy, worker) = gateway(&patient);
    introduce(&envoy, &worker, "alice", hundred(0));
    for _ in 0..9 {
        get(&worker, "alice").forwarded();
    }
    (envoy, worker)
}

fn hundred(current: u64) -> tollgate_fake_host::Authorization {
    authorized().limit("hits", "day", 100, current)
}

/// Lets the answer go stale and be asked for; the count that the backend gives is
/// `current`. Reports stay unanswered. The request that makes it so counts, too.
fn refresh(envoy: &FakeEnvoy, worker: &Worker, current: u64) {
    envoy.advance(seconds(61));
    get(worker, "alice").forwarded();
    worker.tick();
    let question = worker.calls().into_iter().find(is_question);
    let answer: Answer = hundred(current).at(envoy.wall_ms());
    worker.answer(question.expect("a question").token, answer);
}

/// What is known to be used: own and others'.
fn known(envoy: &FakeEnvoy) -> (u64, u64) {
    let record = record(envoy, "alice");
    let limit = record.limits().next().expect("a limit").1;
    (limit.own, limit.foreign)
}

fn report(worker: &Worker) -> u32 {
    let report = worker.calls().into_iter().find(is_report);
    report.expect("a report").token
}

#[test]
fn what_is_not_yet_sent_stays_counted() {
    let (envoy, worker) = ten_of_a_hundred();
    refresh(&envoy, &worker, 0);
    assert_eq!(known(&envoy), (11, 0));
}

#[test]
fn what_is_in_flight_is_not_counted_twice_nor_forgotten() {
    for applied in [0, 5, 10] {
        let (envoy, worker) = ten_of_a_hundred();
        worker.tick();
        refresh(&envoy, &worker, applied);
        assert_eq!(known(&envoy), (11, 0), "{applied} applied");
    }
}

#[test]
fn what_is_acknowledged_and_not_applied_is_not_forgotten() {
    for applied in [0, 5, 10] {
        let (envoy, worker) = ten_of_a_hundred();
        worker.tick();
        worker.answer(report(&worker), accepted());
        refresh(&envoy, &worker, applied);
        assert_eq!(known(&envoy), (11, 0), "{applied} applied");
    }
}

#[test]
fn what_was_perhaps_applied_is_not_taken_for_others_usage() {
    let (envoy, worker) = ten_of_a_hundred();
    worker.tick();
    worker.answer(report(&worker), Failure::Timeout);
    // Sent again with the eleventh: the backend may have 10, 11 or 21.
    refresh(&envoy, &worker, 21);
    assert_eq!(known(&envoy), (11, 0));
}

#[test]
fn everybody_elses_usage_is_taken_in() {
    // The tick of the refresh sends all eleven before it asks.
    let (envoy, worker) = ten_of_a_hundred();
    refresh(&envoy, &worker, 30);
    assert_eq!(known(&envoy), (11, 19), "at most 11 of it are ours");

    let (envoy, worker) = ten_of_a_hundred();
    worker.tick();
    refresh(&envoy, &worker, 30);
    assert_eq!(known(&envoy), (11, 20), "at most 10 of it are ours");
}

#[test]
fn a_lower_count_lowers_nothing_while_a_report_is_in_flight() {
    let (envoy, worker) = ten_of_a_hundred();
    worker.tick();
    worker.answer(report(&worker), accepted());
    refresh(&envoy, &worker, 40);
    assert_eq!(known(&envoy), (11, 29));
    // The request of that refresh left in the same tick, and is in flight.
    refresh(&envoy, &worker, 12);
    assert_eq!(known(&envoy), (12, 29));
}

#[test]
fn a_lower_count_is_believed_once_everything_sent_must_be_in_it() {
    let (envoy, worker) = ten_of_a_hundred();
    worker.tick();
    worker.answer(report(&worker), accepted());
    refresh(&envoy, &worker, 40);
    worker.answer(report(&worker), accepted());
    assert_eq!(known(&envoy), (11, 29));
    // Somebody took 25 back, with a report of less than nothing or at the portal.
    envoy.advance(seconds(61));
    get(&worker, "alice").forwarded();
    let mut answers = Vec::new();
    for _ in 0..90 {
        worker.tick();
        for call in worker.calls() {
            if is_report(&call) {
                worker.answer(call.token, accepted());
            }
        }
        if let Some(question) = worker.calls().into_iter().find(is_question) {
            if answers.is_empty() {
                // Asked before the report can have been counted, however late it is answered.
                envoy.advance(seconds(6));
            }
            worker.answer(question.token, hundred(17).at(envoy.wall_ms()));
            answers.push(known(&envoy));
        }
        envoy.advance(SECOND);
    }
    assert_eq!(answers.first(), Some(&(12, 29)));
    assert_eq!(known(&envoy), (12, 5), "17, less the 12 that were sent");
}

#[test]
fn the_count_of_an_older_window_says_nothing_about_the_open_one() {
    let (envoy, worker) = ten_of_a_hundred();
    let yesterday = envoy.wall_ms();
    envoy.advance(seconds(16 * 3_600));
    let stream = get(&worker, "alice").paused();
    let question = worker.calls().into_iter().find(is_question);
    worker.answer(question.expect("asked").token, hundred(70).at(yesterday));
    worker.poll(stream).forwarded();
    assert_eq!(known(&envoy), (1, 0));
}

#[test]
fn two_gateways_see_each_others_usage() {
    let gateways = [gateway(&plain()), gateway(&plain())];
    let mut applied = 0;
    for (envoy, worker) in &gateways {
        introduce(envoy, worker, "alice", hundred(0));
    }
    let mut admitted = 2;
    for round in 0..400 {
        for (envoy, worker) in &gateways {
            envoy.advance(SECOND);
            if round % 4 == 0 {
                admitted += u64::from(get(worker, "alice").continued());
            }
            worker.tick();
            for call in worker.calls() {
                if is_report(&call) {
                    applied += usage_of(&reports(from_ref(&call)), "hits");
                    worker.answer(call.token, accepted());
                } else {
                    worker.answer(call.token, hundred(applied).at(envoy.wall_ms()));
                }
            }
        }
    }
    assert!((100..=130).contains(&admitted), "{admitted} of 100 by both");
    for (envoy, worker) in &gateways {
        assert_eq!(get(worker, "alice").status(), Some(429));
        let (own, foreign) = known(envoy);
        assert!(own + foreign >= 100, "{own} + {foreign}");
    }
}
