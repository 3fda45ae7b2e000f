//! What was admitted leaves in reports, once, with its time, and its books balance
//! after every step.

use std::slice::from_ref;

use serde_json::json;
use tollgate_fake_host::{
    Answer, Call, Failure, FakeEnvoy, LogLevel, Report, Worker, accepted, authorized, error,
};

use crate::support::*;

/// Runs a step, and checks the books after it.
#[track_caller]
fn balanced<R>(envoy: &FakeEnvoy, step: impl FnOnce() -> R) -> R {
    let result = step();
    books(envoy, "hits");
    behaved(envoy);
    result
}

fn only_report(worker: &Worker) -> (u32, Report) {
    let call = worker.only_call();
    assert!(is_report(&call), "{call:?}");
    (call.token, Report::parse(&call.body))
}

/// Timestamps and `hits` of the transactions, in order.
fn times(report: &Report) -> Vec<(u64, u64)> {
    let mut times: Vec<(u64, u64)> = report
        .transactions
        .values()
        .map(|transaction| {
            let at = transaction.timestamp.as_deref().expect("a timestamp");
            (at.parse().expect("Unix seconds"), transaction.usage["hits"])
        })
        .collect();
    times.sort_unstable();
    times
}

const START: u64 = FakeEnvoy::START_MS / 1_000;

/// A gateway with `count` admitted hits of alice, all of the first minute.
fn gateway_that_admitted(count: u64, configuration: &str) -> (FakeEnvoy, Worker) {
    let (envoy, worker) = gateway(configuration);
    introduce(&envoy, &worker, "alice", authorized());
    for _ in 1..count {
        get(&worker, "alice").forwarded();
    }
    (envoy, worker)
}

#[test]
fn a_report_says_exactly_what_was_admitted_and_of_whom() {
    let rules = rules(
        json!([
            { "method": "POST", "pattern": "/", "usage": { "uploads": 5 } },
            { "pattern": "/", "usage": { "hits": 1 } },
        ]),
        json!({}),
    );
    let (envoy, worker) = gateway(&rules);
    for key in ["alice", "b+b%2526%5B"] {
        introduce(&envoy, &worker, key, authorized());
    }
    for _ in 0..3 {
        worker.request().post("/?user_key=alice").send().forwarded();
    }
    balanced(&envoy, || worker.tick());

    let call = worker.only_call();
    assert_eq!(call.method(), "POST");
    assert_eq!(call.path(), "/transactions.xml");
    assert_eq!(call.header(":authority"), Some("su1.3scale.net"));
    let content_type = call.header("content-type");
    assert_eq!(content_type, Some("application/x-www-form-urlencoded"));
    assert_eq!(call.timeout_ms, 5_000);
    let (token, report) = only_report(&worker);
    let service: Vec<_> = report.service.iter().collect();
    let (id, secret) = ("1001".to_owned(), "token-of-1001".to_owned());
    let keys = ["service_id".to_owned(), "service_token".to_owned()];
    assert_eq!(service, [(&keys[0], &id), (&keys[1], &secret)]);
    let used = usage(&[report]);
    let of = |key: &str, metric: &str| used.get(&(key.to_owned(), metric.to_owned())).copied();
    assert_eq!(of("alice", "hits"), Some(4));
    assert_eq!(of("alice", "uploads"), Some(15));
    assert_eq!(of("b+b%26[", "hits"), Some(1));
    assert_eq!(used.len(), 3);

    balanced(&envoy, || worker.answer(token, accepted()));
    assert_eq!(books(&envoy, "uploads").acknowledged, 15);
    assert_eq!(stat(&envoy, "usage_acknowledged"), 20);
    let calls = pass_time(&envoy, &[worker], seconds(120), |_| Some(accepted()));
    assert_eq!(reports(&calls).len(), 0, "once");
}

#[test]
fn usage_is_reported_at_the_minute_in_which_it_was_admitted() {
    let (envoy, worker) = gateway(&plain());
    let mut backend = Backend::knows(&["alice"]);
    introduce(&envoy, &worker, "alice", authorized());
    for _ in 0..17 {
        pass_time(&envoy, from_ref(&worker), seconds(10), |call| {
            Some(backend.answer(call, envoy.wall_ms()))
        });
        balanced(&envoy, || get(&worker, "alice").forwarded());
    }
    pass_time(&envoy, &[worker], seconds(11), |call| {
        Some(backend.answer(call, envoy.wall_ms()))
    });
    let mut by_minute = std::collections::BTreeMap::<u64, u64>::new();
    for (at, hits) in backend.reports.iter().flat_map(times) {
        *by_minute.entry(at - START).or_default() += hits;
    }
    let by_minute: Vec<_> = by_minute.into_iter().collect();
    assert_eq!(by_minute, [(0, 6), (60, 6), (120, 6)]);
}

#[test]
fn after_an_outage_usage_is_reported_by_the_hour_and_nothing_is_missing() {
    let changes = json!({ "authorization": { "stale_if_error": "1d" } });
    let (envoy, worker) = gateway(&configuration(changes));
    introduce(&envoy, &worker, "alice", authorized());
    let mut admitted = 1;
    for _ in 0..20 {
        for _ in 0..12 {
            pass_time(&envoy, from_ref(&worker), seconds(2), |_| {
                Some(Failure::ConnectionRefused.into())
            });
            envoy.advance(seconds(298));
            balanced(&envoy, || get(&worker, "alice").forwarded());
            admitted += 1;
        }
    }
    let sizes = records(&envoy)[0].1.accounts().count();
    assert_eq!(sizes, 1);
    let mut backend = Backend::knows(&["alice"]);
    pass_time(&envoy, &[worker], seconds(180), |call| {
        Some(backend.answer(call, envoy.wall_ms()))
    });
    assert_eq!(usage_of(&backend.reports, "hits"), admitted);
    let hours: Vec<(u64, u64)> = backend.reports.iter().flat_map(times).collect();
    assert!(hours.len() <= 26, "{hours:?}");
    for (at, _) in &hours {
        assert!((START..START + 20 * 3_600 + 300).contains(at));
    }
    let of_hour = |hour: u64| -> u64 {
        let of_hour = hours.iter().filter(|(at, _)| (at - START) / 3_600 == hour);
        of_hour.map(|(_, hits)| hits).sum()
    };
    assert_eq!(of_hour(0), 12, "that is 0, 5, … 55 minutes past");
    assert_eq!(of_hour(7), 12);
    assert_eq!(books(&envoy, "hits").acknowledged, admitted);
}

#[test]
fn usage_too_old_to_be_taken_is_given_up_counted_and_logged() {
    let changes = json!({ "authorization": { "ttl": "1d", "stale_if_error": "1d" } });
    let (envoy, worker) = gateway_that_admitted(3, &configuration(changes));
    // 23 h 50 min after the minute of the usage it is still sent; two seconds later not.
    envoy.advance(seconds(23 * 3_600 + 50 * 60));
    balanced(&envoy, || worker.tick());
    let sent = in_flight(&worker).remove(0);
    assert_eq!(times(&Report::parse(&sent.body)), [(START, 3)]);
    envoy.advance(seconds(2));
    balanced(&envoy, || {
        worker.answer(sent.token, Failure::ConnectionRefused)
    });
    get(&worker, "alice").forwarded();
    let calls = balanced(&envoy, || {
        pass_time(&envoy, &[worker], seconds(90), |call| {
            is_report(call).then(accepted)
        })
    });
    assert_eq!(usage_of(&reports(&calls), "hits"), 1);
    let books = books(&envoy, "hits");
    assert_eq!((books.acknowledged, books.lost), (1, 3));
    assert_eq!(stat(&envoy, "usage_lost_too_old"), 3);
    assert!(envoy.logged(LogLevel::Error, "too old"));
}

#[test]
fn a_refused_connection_returns_the_usage_and_the_next_try_comes_later_each_time() {
    let (envoy, worker) = gateway_that_admitted(7, &plain());
    let (mut tries, mut second) = (Vec::new(), 0);
    while second < 400 {
        let calls = balanced(&envoy, || {
            pass_time(&envoy, from_ref(&worker), SECOND, |call| {
                is_report(call).then(|| Failure::ConnectionRefused.into())
            })
        });
        second += 1;
        for report in reports(&calls) {
            assert_eq!(usage_of(&[report], "hits"), 7);
            tries.push(second);
        }
    }
    let pauses: Vec<u64> = tries.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!((6..=14).contains(&tries.len()), "{tries:?}");
    assert!(
        pauses.iter().all(|pause| (5..=61).contains(pause)),
        "{pauses:?}"
    );
    assert!(pauses.last() >= Some(&30), "{pauses:?}");
    let before = books(&envoy, "hits");
    assert_eq!((before.pending, before.in_flight, before.lost), (7, 0, 0));
    assert_eq!(stat(&envoy, "reports_not_delivered"), tries.len() as u64);
    assert_eq!(stat(&envoy, "reports_uncertain"), 0);
    assert_eq!(stat(&envoy, "usage_resent"), 0);

    let calls = pass_time(&envoy, &[worker], seconds(62), |call| {
        is_report(call).then(accepted)
    });
    assert_eq!(usage_of(&reports(&calls), "hits"), 7);
    assert_eq!(books(&envoy, "hits").acknowledged, 7);
}

#[test]
fn after_a_success_the_pauses_are_short_again() {
    let (envoy, worker) = gateway_that_admitted(1, &plain());
    let workers = [worker.clone()];
    pass_time(&envoy, &workers, seconds(300), |_| {
        Some(Failure::ConnectionRefused.into())
    });
    pass_time(&envoy, &workers, seconds(90), |call| {
        Some(Backend::knows(&["alice"]).answer(call, envoy.wall_ms()))
    });
    for _ in 0..5 {
        get(&worker, "alice").forwarded();
        let calls = pass_time(&envoy, &workers, seconds(10), |call| {
            Some(Backend::knows(&["alice"]).answer(call, envoy.wall_ms()))
        });
        assert_eq!(usage_of(&reports(&calls), "hits"), 1, "in each interval");
    }
}

const UNCERTAIN: [Failure; 3] = [
    Failure::Timeout,
    Failure::Reset,
    Failure::ConnectionTermination,
];

#[test]
fn a_report_of_which_nobody_knows_is_sent_again_by_default_and_counted_apart() {
    let answers = UNCERTAIN.map(Answer::from).into_iter();
    let more = [500, 502, 200, 404, 429].map(Answer::status);
    for answer in answers.chain(more) {
        let (envoy, worker) = gateway_that_admitted(4, &plain());
        balanced(&envoy, || worker.tick());
        let (token, _) = only_report(&worker);
        balanced(&envoy, || worker.answer(token, answer));
        let after = books(&envoy, "hits");
        assert_eq!((after.pending, after.in_flight, after.lost), (4, 0, 0));
        assert_eq!(stat(&envoy, "reports_uncertain"), 1);
        assert_eq!(stat(&envoy, "usage_resent"), 4);

        let calls = pass_time(&envoy, &[worker], seconds(30), |_| Some(accepted()));
        assert_eq!(usage_of(&reports(&calls), "hits"), 4);
        assert_eq!(books(&envoy, "hits").acknowledged, 4);
        assert_eq!(stat(&envoy, "usage_lost_uncertain"), 0);
    }
}

#[test]
fn a_report_of_which_nobody_knows_is_given_up_if_the_policy_says_so() {
    let changes = json!({ "reporting": { "uncertain": "drop" } });
    for failure in UNCERTAIN {
        let (envoy, worker) = gateway_that_admitted(4, &configuration(changes.clone()));
        worker.tick();
        let (token, _) = only_report(&worker);
        balanced(&envoy, || worker.answer(token, failure));
        let after = books(&envoy, "hits");
        assert_eq!((after.lost, after.pending, after.in_flight), (4, 0, 0));
        assert_eq!(stat(&envoy, "usage_lost_uncertain"), 4);
        assert!(envoy.logged(LogLevel::Error, "4 units of usage are lost"));
        let calls = pass_time(&envoy, &[worker], seconds(120), |_| Some(accepted()));
        assert_eq!(reports(&calls).len(), 0);
    }
}

#[test]
fn a_dropped_report_is_only_what_was_in_it() {
    let changes = json!({ "reporting": { "uncertain": "drop" } });
    let (envoy, worker) = gateway_that_admitted(4, &configuration(changes));
    worker.tick();
    let (token, _) = only_report(&worker);
    for _ in 0..3 {
        get(&worker, "alice").forwarded();
    }
    balanced(&envoy, || worker.answer(token, Failure::Timeout));
    let calls = pass_time(&envoy, &[worker], seconds(30), |_| Some(accepted()));
    assert_eq!(usage_of(&reports(&calls), "hits"), 3);
    let books = books(&envoy, "hits");
    assert_eq!((books.acknowledged, books.lost), (3, 4));
}

#[test]
fn a_refused_report_is_kept_and_counted() {
    let (envoy, worker) = gateway_that_admitted(4, &plain());
    worker.tick();
    let (token, _) = only_report(&worker);
    balanced(&envoy, || {
        worker.answer(token, error(403, "service_token_invalid"))
    });
    assert_eq!(books(&envoy, "hits").pending, 4);
    assert_eq!(stat(&envoy, "reports_refused"), 1);
    assert_eq!(stat(&envoy, "usage_resent"), 0, "nothing of it was taken");
    let calls = pass_time(&envoy, &[worker], seconds(30), |_| Some(accepted()));
    assert_eq!(usage_of(&reports(&calls), "hits"), 4);
}

#[test]
fn a_report_that_cannot_even_be_sent_is_kept() {
    let (envoy, worker) = gateway_that_admitted(4, &plain());
    envoy.fail_next("proxy_http_call", 10, 1);
    balanced(&envoy, || worker.tick());
    assert_eq!(worker.calls().len(), 0);
    assert_eq!(books(&envoy, "hits").pending, 4);
    let calls = pass_time(&envoy, &[worker], seconds(30), |_| Some(accepted()));
    assert_eq!(usage_of(&reports(&calls), "hits"), 4);
}

#[test]
fn what_is_admitted_while_a_report_is_in_flight_leaves_with_the_next_round() {
    let changes = json!({ "reporting": { "timeout": "20s" } });
    let (envoy, worker) = gateway_that_admitted(4, &configuration(changes));
    worker.tick();
    let (token, _) = only_report(&worker);
    for _ in 0..3 {
        balanced(&envoy, || get(&worker, "alice").forwarded());
    }
    // The answer takes longer than it is to the next round, which can do nothing.
    let workers = [worker.clone()];
    let meanwhile = pass_time(&envoy, &workers, seconds(9), |_| None);
    assert_eq!(reports(&meanwhile).len(), 0);
    pass_time(&envoy, &workers, seconds(1), |_| None);
    balanced(&envoy, || worker.answer(token, accepted()));
    let calls = pass_time(&envoy, &workers, seconds(11), |call| {
        is_report(call).then(accepted)
    });
    assert_eq!(usage_of(&reports(&calls), "hits"), 3);
    assert_eq!(books(&envoy, "hits").acknowledged, 7);
}

#[test]
fn more_applications_than_fit_into_a_report_take_several() {
    let changes = json!({ "reporting": { "batch": 10 } });
    let (envoy, worker) = gateway(&configuration(changes));
    for number in 0..35 {
        introduce(&envoy, &worker, &format!("key-{number}"), authorized());
        get(&worker, &format!("key-{number}")).forwarded();
    }
    let mut backend = Backend::default();
    pass_time(&envoy, &[worker], seconds(3), |call| {
        Some(backend.answer(call, envoy.wall_ms()))
    });
    let sizes: Vec<usize> = backend
        .reports
        .iter()
        .map(|r| r.transactions.len())
        .collect();
    assert_eq!(sizes, [10, 10, 10, 5]);
    let used = usage(&backend.reports);
    assert_eq!(used.len(), 35);
    assert!(used.values().all(|hits| *hits == 2));
    assert_eq!(books(&envoy, "hits").acknowledged, 70);
}

#[test]
fn the_minutes_of_an_application_that_do_not_fit_into_a_report_follow_in_the_next() {
    let changes = json!({ "reporting": { "batch": 2 } });
    let (envoy, worker) = gateway(&configuration(changes));
    introduce(&envoy, &worker, "alice", authorized());
    for _ in 0..3 {
        envoy.advance(seconds(60));
        get(&worker, "alice").forwarded();
    }
    let mut backend = Backend::knows(&["alice"]);
    pass_time(&envoy, &[worker], seconds(13), |call| {
        Some(backend.answer(call, envoy.wall_ms()))
    });
    assert_eq!(usage_of(&backend.reports, "hits"), 4);
    assert!(
        backend
            .reports
            .iter()
            .all(|report| report.transactions.len() <= 2)
    );
    assert_eq!(books(&envoy, "hits").acknowledged, 4);
}

#[test]
fn only_the_leader_reports() {
    let (envoy, workers) = gateway_of(4, &plain());
    introduce(&envoy, &workers[0], "alice", authorized());
    let mut backend = Backend::knows(&["alice"]);
    let mut admitted = 1;
    for _ in 0..60 {
        for worker in &workers {
            get(worker, "alice").forwarded();
            admitted += 1;
        }
        pass_time(&envoy, &workers, SECOND, |call| {
            Some(backend.answer(call, envoy.wall_ms()))
        });
    }
    pass_time(&envoy, &workers, seconds(11), |call| {
        Some(backend.answer(call, envoy.wall_ms()))
    });
    assert_eq!(usage_of(&backend.reports, "hits"), admitted);
    assert!(
        (6..=9).contains(&backend.reports.len()),
        "{} reports",
        backend.reports.len()
    );
    let leading = envoy.logs().into_iter();
    let leading = leading.filter(|line| line.message.contains("leading service"));
    assert_eq!(leading.count(), 1);
    behaved(&envoy);
}

/// The calls of a worker that are reports.
fn in_flight(worker: &Worker) -> Vec<Call> {
    worker.calls().into_iter().filter(is_report).collect()
}

#[test]
fn a_leader_that_goes_is_replaced_and_what_it_had_not_sent_is_sent() {
    let (envoy, workers) = gateway_of(2, &plain());
    workers.iter().for_each(|worker| {
        worker.tick();
    });
    introduce(&envoy, &workers[1], "alice", authorized());
    workers[0].restart_vm();
    let others = [workers[1].clone()];
    let calls = balanced(&envoy, || {
        pass_time(&envoy, &others, seconds(15), |call| {
            is_report(call).then(accepted)
        })
    });
    assert_eq!(usage_of(&reports(&calls), "hits"), 1);
    assert_eq!(books(&envoy, "hits").acknowledged, 1);
}

/// A leader of applications with a hit each goes away when it has sent four reports of one and taken the marks of
/// all others. Returns after how many seconds those others, and all, have been reported.
fn seconds_until_reported(capacity: u32, replaced: bool) -> (u64, u64) {
    const APPLICATIONS: u64 = 40;
    let changes = json!({
        "authorization": { "capacity": capacity, "ttl": "1h" }, "reporting": { "batch": 1 },
    });
    let (envoy, workers) = gateway_of(2, &configuration(changes.clone()));
    pass_time(&envoy, &workers, seconds(8), |_| None);
    for number in 0..APPLICATIONS {
        introduce(&envoy, &workers[1], &format!("key-{number}"), authorized());
    }
    while in_flight(&workers[0]).is_empty() {
        pass_time(&envoy, &workers, SECOND, |_| None);
    }
    assert_eq!(in_flight(&workers[0]).len(), 4);
    workers[0].restart_vm();
    if replaced {
        assert!(workers[0].configure(&configuration(changes)));
    }
    let left = &workers[usize::from(!replaced)..];
    let after = |units| {
        (1..).find(|_| {
            pass_time(&envoy, left, SECOND, |call| is_report(call).then(accepted));
            stat(&envoy, "usage_acknowledged") >= units
        })
    };
    let taken: u64 = after(APPLICATIONS - 4).expect("they are reported");
    let rest: u64 = after(APPLICATIONS).expect("they are reported");
    behaved(&envoy);
    (taken, taken + rest)
}

/// A lease, a tick that takes it over, and one that sends what was found.
const TAKE_OVER: u64 = 4 + 1 + 1;

#[test]
fn what_a_leader_that_went_had_taken_is_reported_soon_and_what_it_had_sent_when_it_is_overdue() {
    for replaced in [false, true] {
        // 32,768 slots, 4,096 of them on a tick.
        let (taken, all) = seconds_until_reported(16_384, replaced);
        assert!(taken <= TAKE_OVER + 8, "{taken} s");
        assert!(all <= TAKE_OVER + 5 + 5 + 8, "{all} s");
    }
}

#[test]
fn in_a_large_table_what_a_leader_that_went_had_taken_takes_as_many_ticks_more() {
    let (taken, all) = seconds_until_reported(65_536, false);
    assert!(taken <= TAKE_OVER + 32, "{taken} s");
    assert!(all <= TAKE_OVER + 5 + 5 + 32, "{all} s");
}

#[test]
fn what_was_in_flight_of_a_leader_that_went_is_settled_by_the_next_after_its_deadline() {
    for (policy, resent, lost) in [("resend", 5, 0), ("drop", 0, 5)] {
        let changes = json!({ "reporting": { "uncertain": policy } });
        let (envoy, workers) = gateway_of(2, &configuration(changes));
        introduce(&envoy, &workers[0], "alice", authorized());
        for _ in 0..4 {
            get(&workers[1], "alice").forwarded();
        }
        balanced(&envoy, || workers[0].tick());
        assert_eq!(in_flight(&workers[0]).len(), 1);
        assert_eq!(books(&envoy, "hits").in_flight, 5);
        workers[0].restart_vm();
        for _ in 0..2 {
            get(&workers[1], "alice").forwarded();
        }

        let others = [workers[1].clone()];
        let early = balanced(&envoy, || {
            pass_time(&envoy, &others, seconds(9), |call| {
                is_report(call).then(accepted)
            })
        });
        assert_eq!(
            reports(&early).len(),
            0,
            "the answer could still come: {policy}"
        );
        let calls = balanced(&envoy, || {
            pass_time(&envoy, &others, seconds(120), |call| {
                is_report(call).then(accepted)
            })
        });
        assert_eq!(usage_of(&reports(&calls), "hits"), 2 + resent);
        let books = books(&envoy, "hits");
        assert_eq!((books.acknowledged, books.lost), (2 + resent, lost));
        assert_eq!(stat(&envoy, "usage_resent"), resent);
        assert_eq!(stat(&envoy, "usage_lost_uncertain"), lost);
    }
}

#[test]
fn an_answer_after_the_deadline_counts_nothing_twice() {
    let (envoy, workers) = gateway_of(2, &plain());
    introduce(&envoy, &workers[0], "alice", authorized());
    workers[0].tick();
    let (late, _) = only_report(&workers[0]);
    // The leader's thread is held up; the other leads and applies the policy.
    let others = [workers[1].clone()];
    let calls = pass_time(&envoy, &others, seconds(80), |call| {
        is_report(call).then(accepted)
    });
    assert_eq!(usage_of(&reports(&calls), "hits"), 1);
    let before = books(&envoy, "hits");
    assert_eq!(before.acknowledged, 1);
    balanced(&envoy, || workers[0].answer(late, accepted()));
    assert_eq!(books(&envoy, "hits"), before);
    assert_eq!(stat(&envoy, "usage_acknowledged"), 1);
}

#[test]
fn a_newer_configuration_takes_the_lead_and_the_older_one_stops() {
    let (envoy, workers) = gateway_of(2, &plain());
    let taken = |call: &Call| is_report(call).then(accepted);
    introduce(&envoy, &workers[0], "alice", authorized());
    pass_time(&envoy, &workers, seconds(60), taken);
    assert_eq!(books(&envoy, "hits").acknowledged, 1);
    get(&workers[0], "alice").forwarded();
    let mut sent = Vec::new();
    while sent.is_empty() {
        sent = reports(&pass_time(&envoy, &workers, SECOND, |_| None));
    }
    let newer = configuration(json!({ "reporting": { "timeout": "7s" } }));
    for worker in &workers {
        assert!(worker.configure(&newer));
    }
    balanced(&envoy, || get(&workers[1], "alice").forwarded());
    // The older root still takes in the answer to what it sent.
    balanced(&envoy, || {
        workers[0].answer(in_flight(&workers[0])[0].token, accepted())
    });
    assert_eq!(books(&envoy, "hits").acknowledged, 2);
    let calls = pass_time(&envoy, &workers, seconds(30), taken);
    let calls: Vec<Call> = calls.into_iter().filter(is_report).collect();
    assert_eq!(usage_of(&reports(&calls), "hits"), 1);
    assert!(calls.iter().all(|call| call.timeout_ms == 7_000));
    assert_eq!(books(&envoy, "hits").acknowledged, 3);
}

/// Two services with a hit each, of which the second is then removed.
fn a_removed_service(reporting: serde_json::Value) -> (FakeEnvoy, Worker) {
    let services = [
        service("1001", "api.example.com"),
        service("2002", "two.example.com"),
    ];
    let changes = json!({ "services": services, "reporting": reporting });
    let (envoy, worker) = gateway(&configuration(changes));
    introduce(&envoy, &worker, "alice", authorized());
    let request = worker.request().host("two.example.com");
    let stream = request.get("/?user_key=bob").send().paused();
    worker.answer(worker.only_call().token, authorized().at(envoy.wall_ms()));
    worker.poll(stream).forwarded();
    envoy.advance(seconds(6));
    assert!(worker.configure(&plain()));
    (envoy, worker)
}

#[test]
fn a_removed_service_is_reported_although_its_listener_drains_before_the_interval_is_over() {
    let (envoy, worker) = a_removed_service(json!({ "interval": "60s" }));
    worker.drain();
    let workers = [worker];
    let calls = pass_time(&envoy, &workers, seconds(120), |call| {
        is_report(call).then(accepted)
    });
    assert_eq!(usage_of(&reports(&calls), "hits"), 2);
    let both = books(&envoy, "hits");
    assert_eq!((both.acknowledged, both.pending, both.in_flight), (2, 0, 0));
    // Ten minutes later its memory is given back, and nothing of it happens any more.
    let calls = pass_time(&envoy, &workers, seconds(1_200), |call| {
        is_report(call).then(accepted)
    });
    assert_eq!(reports(&calls).len(), 0);
    behaved(&envoy);
}

#[test]
fn usage_of_a_removed_service_whose_vm_has_gone_waits_until_a_configuration_has_it_again() {
    let (envoy, worker) = a_removed_service(json!({}));
    worker.drain();
    worker.restart_vm();
    assert!(worker.configure(&plain()));
    let workers = [worker];
    let go_on = |time| {
        pass_time(&envoy, &workers, time, |call| {
            is_report(call).then(accepted)
        })
    };
    assert_eq!(usage_of(&reports(&go_on(seconds(1_200))), "hits"), 1);
    let both = books(&envoy, "hits");
    assert_eq!((both.acknowledged, both.pending), (1, 1), "not lost yet");
    let services = [
        service("1001", "api.example.com"),
        service("2002", "two.example.com"),
    ];
    assert!(workers[0].configure(&configuration(json!({ "services": services }))));
    assert_eq!(usage_of(&reports(&go_on(seconds(90))), "hits"), 1);
    assert_eq!(books(&envoy, "hits").acknowledged, 2);
    behaved(&envoy);
}

#[test]
fn an_older_configuration_reports_what_only_it_can() {
    let services = [
        service("1001", "api.example.com"),
        service("2002", "two.example.com"),
    ];
    let (envoy, worker) = gateway(&configuration(json!({ "services": services })));
    introduce(&envoy, &worker, "alice", authorized());
    let two = worker
        .request()
        .host("two.example.com")
        .get("/?user_key=bob");
    let stream = two.send().paused();
    worker.answer(worker.only_call().token, authorized().at(envoy.wall_ms()));
    worker.poll(stream).forwarded();
    envoy.advance(seconds(60));
    assert!(worker.configure(&plain()));
    let calls = pass_time(&envoy, &[worker], seconds(30), |call| {
        is_report(call).then(accepted)
    });
    let services = reports(&calls)
        .into_iter()
        .map(|report| report.service["service_id"].clone());
    let mut services: Vec<String> = services.collect();
    services.sort();
    assert_eq!(services, ["1001", "2002"]);
    let books = books(&envoy, "hits");
    assert_eq!((books.acknowledged, books.pending), (2, 0));
}

#[test]
fn a_canary_sends_nothing_and_leads_nothing() {
    let envoy = envoy();
    let main = envoy.worker();
    assert!(envoy.canary(&main, &plain()));
    let worker = envoy.configured_worker(&plain());
    introduce(&envoy, &worker, "alice", authorized());
    worker.tick();
    only_report(&worker);
}

#[test]
fn the_books_balance_whatever_happens() {
    for seed in 0..20_u64 {
        let policy = if seed % 2 == 0 { "resend" } else { "drop" };
        let changes = json!({
            "authorization": { "stale_if_error": "1d", "ttl": "1d" },
            "reporting": { "uncertain": policy, "batch": 3, "interval": "2s" },
        });
        let configuration = configuration(changes);
        let envoy = envoy().seed(seed);
        let workers = [0; 3].map(|_| envoy.configured_worker(&configuration));
        let keys: Vec<String> = (0..8).map(|number| format!("key-{number}")).collect();
        for key in &keys {
            introduce(
                &envoy,
                &workers[0],
                key,
                authorized().limit("hits", "day", 200, 0),
            );
        }
        let (mut admitted, mut acknowledged, mut delivered) = (8, 0, 0);
        let mut random = Random(seed + 1);
        for _ in 0..400 {
            let worker = random.one_of(&workers).clone();
            match random.below(12) {
                0..=5 => {
                    let key = random.one_of(&keys).clone();
                    admitted += u64::from(get(&worker, &key).continued());
                }
                6 | 7 => {
                    envoy.advance(std::time::Duration::from_millis(random.below(3_000)));
                    worker.tick();
                }
                8..=10 => {
                    let calls = in_flight(&worker);
                    if calls.is_empty() {
                        continue;
                    }
                    let call = random.one_of(&calls);
                    let units = usage_of(&reports(from_ref(call)), "hits");
                    let before = books(&envoy, "hits").acknowledged;
                    match random.below(5) {
                        0 => worker.answer(call.token, Failure::ConnectionRefused),
                        1 => {
                            delivered += units;
                            worker.answer(call.token, Failure::Timeout);
                        }
                        2 => worker.answer(call.token, error(400, "bad_request")),
                        _ => {
                            delivered += units;
                            worker.answer(call.token, accepted());
                        }
                    }
                    acknowledged += books(&envoy, "hits").acknowledged - before;
                }
                _ if random.below(8) == 0 => {
                    worker.restart_vm();
                    assert!(worker.configure(&configuration));
                }
                _ => {}
            }
            let books = books(&envoy, "hits");
            assert_eq!(books.admitted, admitted, "seed {seed}");
            assert_eq!(books.acknowledged, acknowledged, "seed {seed}");
        }
        // In the end everything comes to rest. Every call has an end, as with Envoy.
        for worker in &workers {
            for call in in_flight(worker) {
                worker.answer(call.token, Failure::ConnectionRefused);
            }
        }
        pass_time(&envoy, &workers, seconds(200), |call| {
            delivered += usage_of(&reports(from_ref(call)), "hits");
            Some(accepted())
        });
        let books = books(&envoy, "hits");
        assert_eq!(
            (books.pending, books.in_flight),
            (0, 0),
            "seed {seed}: {books:?}"
        );
        assert_eq!(books.admitted, admitted);
        let refused = stat(&envoy, "usage_lost_refused");
        if policy == "resend" {
            assert_eq!(books.lost, refused, "seed {seed}");
            assert!(
                delivered + refused >= admitted,
                "seed {seed}: {delivered} of {admitted}"
            );
        } else {
            assert_eq!(stat(&envoy, "usage_lost_uncertain") + refused, books.lost);
            assert!(
                delivered <= admitted,
                "seed {seed}: {delivered} of {admitted}"
            );
        }
        assert_eq!(stat(&envoy, "usage_acknowledged"), books.acknowledged);
        behaved(&envoy);
    }
}

#[test]
fn usage_stamped_further_ahead_than_the_backend_takes_is_reported_as_of_now() {
    let (envoy, worker) = gateway(&plain());
    envoy.set_wall_ms(FakeEnvoy::START_MS + 2 * 3_600_000);
    worker.tick();
    introduce(&envoy, &worker, "alice", authorized());
    get(&worker, "alice").forwarded();
    envoy.set_wall_ms(FakeEnvoy::START_MS + 61_000);
    get(&worker, "alice").forwarded();
    let calls = balanced(&envoy, || {
        pass_time(&envoy, &[worker], seconds(10), |call| {
            is_report(call).then(accepted)
        })
    });
    let reports = reports(&calls);
    let sent: Vec<_> = reports.iter().flat_map(times).collect();
    assert!(sent.iter().all(|(at, _)| *at == START + 60), "{sent:?}");
    assert_eq!(usage_of(&reports, "hits"), 3);
    assert_eq!(books(&envoy, "hits").acknowledged, 3);
}

#[test]
fn a_clock_set_back_puts_no_metric_twice_into_a_transaction() {
    let (envoy, worker) = gateway_that_admitted(2, &plain());
    // Old enough to be kept by the hour, which is named after its latest minute.
    envoy.advance(seconds(200));
    get(&worker, "alice").forwarded();
    envoy.set_wall_ms(FakeEnvoy::START_MS);
    get(&worker, "alice").forwarded();
    balanced(&envoy, || worker.tick());
    let sent = in_flight(&worker).remove(0);
    let sent = Report::parse(&sent.body);
    assert_eq!(usage_of(&[sent], "hits"), 4);
}

#[test]
fn books_balance_and_limits_hold_while_clocks_jump_and_configurations_change() {
    for seed in 100..120_u64 {
        let mut random = Random(seed);
        let settings = |number: u64| {
            configuration(json!({
                "authorization": { "stale_if_error": "7d", "ttl": "30s" },
                "reporting": { "batch": 2 + number % 3, "interval": "1s" },
            }))
        };
        let envoy = envoy().seed(seed);
        let workers = [0; 3].map(|_| envoy.configured_worker(&settings(0)));
        // What the backend has applied, and what it has taken and applies later.
        let (mut applied, mut queue) = (0_u64, Vec::<(u64, u64)>::new());
        let plan = |current| authorized().limit("hits", "eternity", 150, current);
        introduce(&envoy, &workers[0], "alice", plan(0));
        let (mut admitted, mut clock, mut acknowledged) = (1_u64, 0_u64, 0_u64);
        for step in 0..600 {
            let worker = random.one_of(&workers).clone();
            match random.below(10) {
                0..=4 => match get(&worker, "alice") {
                    tollgate_fake_host::Outcome::Paused(stream) => worker.end_stream(stream),
                    outcome => admitted += u64::from(outcome.continued()),
                },
                5 | 6 => {
                    let by = random.below(3_000);
                    clock += by;
                    envoy.advance(std::time::Duration::from_millis(by));
                    worker.tick();
                }
                7 | 8 => {
                    queue.retain(|(due, units)| {
                        applied += if *due <= clock { *units } else { 0 };
                        *due > clock
                    });
                    for call in worker.calls() {
                        if is_question(&call) {
                            worker.answer(call.token, plan(applied).at(envoy.wall_ms()));
                        } else if random.below(4) == 0 {
                            worker.answer(call.token, Failure::ConnectionRefused);
                        } else {
                            let units = usage_of(&reports(from_ref(&call)), "hits");
                            queue.push((clock + random.below(4_500), units));
                            worker.answer(call.token, accepted());
                        }
                    }
                }
                _ => match random.below(30) {
                    0 => envoy.set_wall_ms(envoy.wall_ms() + random.below(4 * 3_600_000)),
                    1 => envoy.set_wall_ms(envoy.wall_ms() - random.below(4 * 3_600_000)),
                    2 => assert!(worker.configure(&settings(step))),
                    3 => worker.drain(),
                    _ => {}
                },
            }
            let books = books(&envoy, "hits");
            assert_eq!(books.admitted, admitted, "seed {seed}");
            assert!(books.acknowledged >= acknowledged, "seed {seed}");
            acknowledged = books.acknowledged;
            assert!(admitted <= 150, "seed {seed}");
        }
        let left = (0..200)
            .filter(|_| get(&workers[1], "alice").continued())
            .count() as u64;
        assert_eq!(admitted + left, 150, "seed {seed}: exact, also downwards");
        behaved(&envoy);
    }
}

#[test]
fn reports_stay_below_what_the_backend_takes_whatever_the_names_and_keys() {
    // Every character is three in a form.
    let metrics: Vec<String> = (0..64)
        .map(|number| format!("{}{number:02}", "%".repeat(126)))
        .collect();
    let usage: serde_json::Map<_, _> = metrics
        .iter()
        .map(|name| (name.clone(), json!(1)))
        .collect();
    let mut service = service("1001", "api.example.com");
    service["mapping_rules"] = json!([{ "pattern": "/", "usage": usage }]);
    service["credentials"] = json!({ "user_key": [{ "header": "x-key" }] });
    let (envoy, worker) = gateway(&configuration(json!({
        "services": [service],
        "authorization": { "capacity": 512 },
        "reporting": { "batch": 1_000 },
    })));
    let count = 150;
    for number in 0..count {
        let key = format!("{}{number:03}", "&".repeat(253));
        let stream = worker
            .request()
            .get("/")
            .header("x-key", key)
            .send()
            .paused();
        worker.answer(worker.only_call().token, authorized().at(envoy.wall_ms()));
        worker.poll(stream).forwarded();
    }
    let calls = pass_time(&envoy, &[worker], seconds(60), |call| {
        is_report(call).then(accepted)
    });
    let bodies: Vec<_> = calls.iter().filter(|call| is_report(call)).collect();
    let mut transactions = 0;
    for call in &bodies {
        assert!(
            call.body.len() <= 4 * 1_024 * 1_024,
            "{} bytes",
            call.body.len()
        );
        let parameters = form_urlencoded::parse(&call.body).count();
        assert!(parameters <= 4_096, "{parameters} parameters");
        transactions += Report::parse(&call.body).transactions.len();
    }
    // Metrics that are known earlier than others leave in transactions of their own.
    assert!(bodies.len() >= 3 && transactions >= count, "{transactions}");
    for metric in &metrics {
        let books = books(&envoy, metric);
        assert_eq!((books.acknowledged, books.lost), (count as u64, 0));
    }
    behaved(&envoy);
}
