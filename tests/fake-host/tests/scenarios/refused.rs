//! What service management does not take is told apart from what it takes: the good is
//! acknowledged, the bad is counted as lost, and nothing else is.

use std::slice::from_ref;

use serde_json::json;
use tollgate_fake_host::{
    Answer, Call, FakeEnvoy, LogLevel, Report, Worker, accepted, authorized, error,
};

use crate::support::*;

/// A gateway that admitted two hits of each of these.
fn gateway_that_admitted(keys: &[&str]) -> (FakeEnvoy, Worker) {
    let (envoy, worker) = gateway(&plain());
    for key in keys {
        introduce(&envoy, &worker, key, authorized());
        get(&worker, key).forwarded();
    }
    (envoy, worker)
}

const KEYS: [&str; 8] = ["a", "b", "bad", "c", "d", "e", "f", "g"];

/// What a service says that does not take `bad`.
fn picky(call: &Call, refusal: &Answer) -> Answer {
    let report = Report::parse(&call.body);
    let mut transactions = report.transactions.values();
    if transactions.any(|it| it.application["user_key"] == "bad") {
        refusal.clone()
    } else {
        accepted()
    }
}

/// As [`pass_time`], with the books checked in each second.
fn pass_time_in_balance(
    envoy: &FakeEnvoy,
    worker: &Worker,
    time: u64,
    mut answer: impl FnMut(&Call) -> Option<Answer>,
) -> Vec<Call> {
    let mut calls = Vec::new();
    for _ in 0..time {
        let workers = [worker.clone()];
        calls.extend(pass_time(envoy, &workers, SECOND, &mut answer));
        books(envoy, "hits");
        behaved(envoy);
    }
    calls
}

#[test]
fn of_a_refused_report_only_the_bad_transaction_is_lost() {
    let (envoy, worker) = gateway_that_admitted(&KEYS);
    let refusal = error(400, "bad_request");
    let calls = pass_time_in_balance(&envoy, &worker, 12, |call| {
        is_report(call).then(|| picky(call, &refusal))
    });
    let after = books(&envoy, "hits");
    assert_eq!((after.acknowledged, after.lost, after.pending), (14, 2, 0));
    assert_eq!(stat(&envoy, "usage_lost_refused"), 2);
    assert_eq!(stat(&envoy, "usage_acknowledged"), 14);
    assert!(envoy.logged(
        LogLevel::Error,
        "2 units of usage are lost: service management refuses"
    ));
    // 8, two halves, of the bad half two, of that two.
    let sizes: Vec<_> = reports(&calls)
        .iter()
        .map(|report| report.transactions.len())
        .collect();
    assert_eq!(sizes.iter().sum::<usize>(), 8 + 8 + 4 + 2, "{sizes:?}");
}

#[test]
fn an_application_that_was_refused_is_reported_again_with_the_others() {
    let (envoy, worker) = gateway_that_admitted(&KEYS);
    let refusal = error(400, "bad_request");
    pass_time(&envoy, from_ref(&worker), seconds(12), |call| {
        is_report(call).then(|| picky(call, &refusal))
    });
    for key in KEYS {
        get(&worker, key).forwarded();
    }
    let calls = pass_time(&envoy, &[worker], seconds(12), |call| {
        is_report(call).then(accepted)
    });
    assert_eq!(reports(&calls).len(), 1);
    assert_eq!(books(&envoy, "hits").acknowledged, 14 + 8);
}

#[test]
fn of_an_application_only_the_minute_that_is_refused_is_lost() {
    for bad in 0..3_u64 {
        let (envoy, worker) = gateway(&configuration(json!({ "authorization": { "ttl": "1d" } })));
        introduce(&envoy, &worker, "alice", authorized());
        let minute = |number: u64| (FakeEnvoy::START_MS / 1_000 + number * 60).to_string();
        for _ in 1..3 {
            envoy.advance(seconds(60));
            get(&worker, "alice").forwarded();
        }
        let calls = pass_time_in_balance(&envoy, &worker, 100, |call| {
            let report = Report::parse(&call.body);
            let mut transactions = report.transactions.values();
            let refused = transactions.any(|it| it.timestamp.as_ref() == Some(&minute(bad)));
            Some(if refused {
                error(422, "not_valid_data")
            } else {
                accepted()
            })
        });
        let after = books(&envoy, "hits");
        assert_eq!((after.acknowledged, after.lost), (2, 1), "minute {bad}");
        assert!(reports(&calls).len() <= 6, "{}", reports(&calls).len());
    }
}

#[test]
fn alone_in_the_service_a_refused_transaction_is_given_up_after_three_tries() {
    let (envoy, worker) = gateway_that_admitted(&["bad"]);
    let refusal = error(400, "bad_request");
    let calls = pass_time_in_balance(&envoy, &worker, 200, |call| Some(picky(call, &refusal)));
    assert_eq!(reports(&calls).len(), 3);
    assert_eq!(books(&envoy, "hits").lost, 2);
    assert_eq!(stat(&envoy, "usage_lost_refused"), 2);
}

#[test]
fn a_limit_goes_on_counting_what_was_refused_and_nothing_else() {
    let (envoy, worker) = gateway(&plain());
    let plan = |current| authorized().limit("hits", "day", 5, current);
    introduce(&envoy, &worker, "bad", plan(0));
    get(&worker, "bad").forwarded();
    let refusal = error(400, "bad_request");
    pass_time(&envoy, from_ref(&worker), seconds(300), |call| {
        Some(if is_report(call) {
            picky(call, &refusal)
        } else {
            plan(0).at(envoy.wall_ms())
        })
    });
    assert_eq!(books(&envoy, "hits").lost, 2);
    let admitted = (0..5).filter(|_| {
        let outcome = get(&worker, "bad");
        if let tollgate_fake_host::Outcome::Paused(stream) = outcome {
            worker.answer(worker.only_call().token, plan(0).at(envoy.wall_ms()));
            return worker.poll(stream).status().is_none();
        }
        outcome.continued()
    });
    assert_eq!(admitted.count(), 3);
}

#[test]
fn a_service_that_refuses_this_gateway_loses_nothing_and_is_not_asked_in_pieces() {
    let (envoy, worker) = gateway_that_admitted(&KEYS);
    let calls = pass_time_in_balance(&envoy, &worker, 600, |call| {
        is_report(call).then(|| error(403, "service_token_invalid"))
    });
    let sent = reports(&calls);
    assert!(sent.iter().all(|report| report.transactions.len() == 8));
    assert!((5..20).contains(&sent.len()), "{} reports", sent.len());
    assert_eq!(stat(&envoy, "misconfigured"), sent.len() as u64);
    assert!(envoy.logged(
        LogLevel::Error,
        "refuses this gateway: service_token_invalid"
    ));
    let calls = pass_time_in_balance(&envoy, &worker, 70, |call| is_report(call).then(accepted));
    assert_eq!(reports(&calls).len(), 1);
    let after = books(&envoy, "hits");
    assert_eq!((after.acknowledged, after.lost), (16, 0));
}

#[test]
fn what_makes_service_management_fail_each_time_is_given_up_while_others_are_taken() {
    let (envoy, worker) = gateway_that_admitted(&KEYS);
    let failure = Answer::status(500);
    let calls = pass_time_in_balance(&envoy, &worker, 600, |call| {
        // Others go on.
        (is_report(call)).then(|| picky(call, &failure))
    });
    let first = books(&envoy, "hits");
    assert_eq!(
        (first.acknowledged, first.pending),
        (14, 2),
        "{} reports",
        reports(&calls).len()
    );
    assert_eq!(first.lost, 0, "nothing shows that others are taken now");
    let (mut admitted, mut tries) = (16, 0);
    for _ in 0..30 {
        get(&worker, "a").forwarded();
        admitted += 1;
        let calls = pass_time_in_balance(&envoy, &worker, 10, |call| {
            if is_question(call) {
                Some(authorized().at(envoy.wall_ms()))
            } else {
                Some(picky(call, &failure))
            }
        });
        tries += reports(&calls).len();
    }
    let after = books(&envoy, "hits");
    assert_eq!(
        (after.lost, after.acknowledged),
        (2, admitted - 2),
        "{tries} reports"
    );
    assert_eq!(stat(&envoy, "usage_lost_uncertain"), 2);
}

#[test]
fn an_outage_with_answers_of_500_loses_nothing_and_ends_in_few_reports() {
    let (envoy, worker) = gateway_that_admitted(&KEYS);
    let calls = pass_time_in_balance(&envoy, &worker, 1_800, |call| {
        is_report(call).then(|| Answer::status(500))
    });
    assert!(
        reports(&calls).len() < 150,
        "{} reports",
        reports(&calls).len()
    );
    assert_eq!(books(&envoy, "hits").lost, 0);
    let calls = pass_time_in_balance(&envoy, &worker, 130, |call| is_report(call).then(accepted));
    assert!(reports(&calls).len() <= 8);
    let after = books(&envoy, "hits");
    assert_eq!((after.acknowledged, after.lost, after.pending), (16, 0, 0));
}

#[test]
fn suspects_of_a_leader_that_goes_are_sent_by_the_next() {
    let (envoy, workers) = gateway_of(2, &plain());
    for key in KEYS {
        introduce(&envoy, &workers[0], key, authorized());
    }
    let refusal = error(400, "bad_request");
    workers[0].tick();
    let call = workers[0].only_call();
    worker_answers(&workers[0], &call, &refusal);
    // Its halves are in flight now, and a trial waits.
    workers[0].restart_vm();
    let others = [workers[1].clone()];
    pass_time(&envoy, &others, seconds(120), |call| {
        is_report(call).then(|| picky(call, &refusal))
    });
    let after = books(&envoy, "hits");
    assert_eq!((after.acknowledged, after.lost, after.pending), (7, 1, 0));
}

fn worker_answers(worker: &Worker, call: &Call, refusal: &Answer) {
    assert!(is_report(call));
    worker.answer(call.token, picky(call, refusal));
}
