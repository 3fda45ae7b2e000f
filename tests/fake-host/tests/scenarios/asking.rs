//! When service management is asked, what is made of its answers and of its silence,
//! and how long they last.

use std::slice::from_ref;

use serde_json::json;
use tollgate_fake_host::{
    Failure, FakeEnvoy, LogLevel, Outcome, Worker, accepted, authorized, denied, error,
};

use crate::support::*;

#[test]
fn an_unknown_application_is_asked_about_once_for_all_who_wait() {
    let (envoy, worker) = gateway(&plain());
    let streams = [0; 5].map(|_| get(&worker, "alice").paused());
    let other = get(&worker, "bob").paused();

    let calls = worker.calls();
    assert_eq!(questions(&calls), ["alice", "bob"]);
    let question = &calls[0];
    assert_eq!(question.method(), "GET");
    assert_eq!(question.header(":authority"), Some("su1.3scale.net"));
    assert!(
        !question.path().contains("usage"),
        "limits are counted here"
    );

    worker.answer(question.token, authorized().at(envoy.wall_ms()));
    for stream in streams {
        worker.poll(stream).forwarded();
    }
    worker.poll(other).paused();
    assert_eq!(stat(&envoy, "authorize_calls"), 2);
    assert_eq!(stat(&envoy, "requests_admitted"), 5);
    assert_eq!(books(&envoy, "hits").admitted, 5);
    behaved(&envoy);
}

#[test]
fn a_stream_that_ended_while_it_waited_is_neither_resumed_nor_counted() {
    let (envoy, worker) = gateway(&plain());
    let [gone, stays] = [0; 2].map(|_| get(&worker, "alice").paused());
    worker.end_stream(gone);
    worker.answer(worker.only_call().token, authorized().at(envoy.wall_ms()));

    worker.poll(stays).forwarded();
    assert_eq!(books(&envoy, "hits").admitted, 1);
    assert_eq!(stat(&envoy, "requests_admitted"), 1);
    behaved(&envoy);
}

#[test]
fn the_answer_helps_those_who_come_later_although_whoever_asked_has_gone() {
    let (envoy, worker) = gateway(&plain());
    let gone = get(&worker, "alice").paused();
    worker.end_stream(gone);
    worker.answer(worker.only_call().token, authorized().at(envoy.wall_ms()));

    get(&worker, "alice").forwarded();
    assert_eq!(worker.calls().len(), 0);
    behaved(&envoy);
}

#[test]
fn a_denial_is_for_all_who_wait_and_is_remembered_for_its_time_by_every_worker() {
    let configuration = configuration(json!({ "authorization": { "negative_ttl": "10s" } }));
    let (envoy, workers) = gateway_of(2, &configuration);
    let streams = [0; 3].map(|_| get(&workers[0], "mallory").paused());
    let call = workers[0].only_call();
    workers[0].answer(call.token, error(403, "user_key_invalid"));
    assert_eq!(statuses(&workers[0], &streams), [Some(403); 3]);

    envoy.advance(seconds(9));
    for worker in &workers {
        assert_eq!(get(worker, "mallory").status(), Some(403));
        assert_eq!(worker.calls().len(), 0);
    }
    assert_eq!(stat(&envoy, "requests_denied"), 5);
    assert_eq!(books(&envoy, "hits"), Books::default());

    envoy.advance(seconds(1));
    get(&workers[1], "mallory").paused();
    assert_eq!(questions(&workers[1].calls()), ["mallory"]);
    behaved(&envoy);
}

#[test]
fn a_key_that_was_tried_too_early_is_good_once_service_management_knows_it() {
    let (envoy, workers) = gateway_of(2, &plain());
    let early = get(&workers[0], "alice").paused();
    workers[0].answer(workers[0].only_call().token, error(403, "user_key_invalid"));
    assert_eq!(workers[0].poll(early).status(), Some(403));

    envoy.advance(seconds(10));
    introduce(&envoy, &workers[0], "alice", authorized());
    // The other worker has not seen it, and finds the record, not the denial.
    get(&workers[1], "alice").forwarded();
    behaved(&envoy);
}

#[test]
fn a_fresh_application_is_decided_about_without_a_call_on_any_worker() {
    let (envoy, workers) = gateway_of(3, &plain());
    introduce(&envoy, &workers[0], "alice", authorized());
    envoy.advance(seconds(59));
    for worker in &workers {
        get(worker, "alice").forwarded();
        assert_eq!(worker.calls().len(), 0);
        worker.tick();
    }
    assert_eq!(stat(&envoy, "requests_admitted"), 4);
    assert_eq!(stat(&envoy, "requests_admitted_stale"), 0);
    behaved(&envoy);
}

#[test]
fn a_stale_application_is_let_in_at_once_and_refreshed_by_the_leaders_next_tick() {
    let (envoy, worker) = gateway(&plain());
    introduce(&envoy, &worker, "alice", authorized());
    envoy.advance(seconds(61));
    get(&worker, "alice").forwarded();
    get(&worker, "alice").forwarded();
    assert_eq!(stat(&envoy, "requests_admitted_stale"), 2);
    assert_eq!(worker.calls().len(), 0, "requests ask nobody");

    worker.tick();
    assert_eq!(questions(&worker.calls()), ["alice"], "once for both");
    worker.answer_all(|call| Backend::knows(&["alice"]).answer(call, envoy.wall_ms()));
    get(&worker, "alice").forwarded();
    assert_eq!(stat(&envoy, "requests_admitted_stale"), 2);
    assert_eq!(stat(&envoy, "authorize_calls"), 1);
    assert_eq!(stat(&envoy, "refresh_calls"), 1);
    behaved(&envoy);
}

/// A gateway that has let in alice twice, and has heard since that she is suspended.
fn suspended() -> (FakeEnvoy, Worker) {
    let (envoy, worker) = gateway(&plain());
    introduce(&envoy, &worker, "alice", authorized());
    envoy.advance(seconds(61));
    get(&worker, "alice").forwarded();
    worker.tick();
    worker.answer_all(|call| match is_question(call) {
        true => denied("application_not_active").at(envoy.wall_ms()),
        false => tollgate_fake_host::accepted(),
    });
    (envoy, worker)
}

#[test]
fn a_suspension_takes_effect_at_the_refresh() {
    let (envoy, worker) = suspended();
    let reply = get(&worker, "alice").reply();
    assert_eq!(reply.status, 403);
    assert_eq!(reply.details, "tollgate_application_not_active");
    assert_eq!(
        books(&envoy, "hits").acknowledged,
        2,
        "it is billed for what it used"
    );
    behaved(&envoy);
}

#[test]
fn a_suspended_application_is_let_in_again_after_the_end_of_its_suspension() {
    let (envoy, worker) = suspended();
    envoy.advance(seconds(11));
    assert_eq!(get(&worker, "alice").status(), Some(403));
    worker.tick();
    worker.answer_all(|call| Backend::knows(&["alice"]).answer(call, envoy.wall_ms()));
    get(&worker, "alice").forwarded();
}

#[test]
fn an_application_in_use_is_refreshed_before_its_time_is_up() {
    let (envoy, worker) = gateway(&plain());
    introduce(&envoy, &worker, "alice", authorized());
    let mut backend = Backend::knows(&["alice"]);
    for _ in 0..300 {
        pass_time(&envoy, from_ref(&worker), SECOND, |call| {
            Some(backend.answer(call, envoy.wall_ms()))
        });
        get(&worker, "alice").forwarded();
    }
    assert_eq!(stat(&envoy, "requests_admitted_stale"), 0);
    let refreshes = stat(&envoy, "refresh_calls");
    assert!((5..=12).contains(&refreshes), "{refreshes} in five minutes");
    assert_eq!(stat(&envoy, "authorize_calls"), 1);
    behaved(&envoy);
}

#[test]
fn an_application_that_nobody_uses_any_more_is_soon_not_asked_about() {
    let (envoy, worker) = gateway(&plain());
    introduce(
        &envoy,
        &worker,
        "alice",
        authorized().limit("hits", "month", 100, 0),
    );
    let workers = [worker];
    let mut backend = Backend::knows(&[]);
    let alice = authorized().limit("hits", "month", 100, 1);
    backend.applications.insert("alice".to_owned(), alice);
    pass_time(&envoy, &workers, seconds(300), |call| {
        Some(backend.answer(call, envoy.wall_ms()))
    });
    assert!(stat(&envoy, "refresh_calls") <= 2);
    let later = pass_time(&envoy, &workers, seconds(1_800), |call| {
        Some(backend.answer(call, envoy.wall_ms()))
    });
    assert_eq!(questions(&later), Vec::<String>::new());
}

#[test]
fn known_applications_go_on_while_service_management_fails_until_their_time_is_over() {
    let changes = json!({ "authorization": { "ttl": "60s", "stale_if_error": "10m" } });
    let (envoy, worker) = gateway(&configuration(changes));
    introduce(
        &envoy,
        &worker,
        "alice",
        authorized().limit("hits", "month", 5, 0),
    );
    let workers = [worker.clone()];
    for minute in 1..=10 {
        pass_time(&envoy, &workers, seconds(60), |_| {
            Some(Failure::Timeout.into())
        });
        let outcome = get(&worker, "alice");
        match minute {
            1..=4 => assert!(outcome.continued(), "minute {minute}"),
            _ => assert_eq!(outcome.status(), Some(429), "limits hold all the same"),
        }
    }
    // 60 s + 10 min after the last answer.
    pass_time(&envoy, &workers, seconds(60), |_| {
        Some(Failure::Timeout.into())
    });
    // Asked, unless there have been too many failures.
    let reply = match get(&worker, "alice") {
        Outcome::Paused(stream) => {
            let question = worker.calls().into_iter().rfind(is_question);
            worker.answer(question.expect("asked").token, Failure::Timeout);
            worker.poll(stream).reply()
        }
        decided => decided.reply(),
    };
    assert_eq!(reply.status, 503);
    assert_eq!(reply.details, "tollgate_service_management_unavailable");
    assert!(reply.header("retry-after").is_some());
    assert_eq!(books(&envoy, "hits").admitted, 5);
    behaved(&envoy);
}

#[test]
fn a_failing_service_management_is_asked_for_refreshes_less_and_less() {
    let (envoy, worker) = gateway(&plain());
    introduce(&envoy, &worker, "alice", authorized());
    let workers = [worker.clone()];
    envoy.advance(seconds(61));
    get(&worker, "alice").forwarded();
    let calls = pass_time(&envoy, &workers, seconds(300), |_| {
        Some(Failure::ConnectionRefused.into())
    });
    let asked = questions(&calls).len();
    assert!((5..40).contains(&asked), "{asked} questions in 300 seconds");
    assert!(stat(&envoy, "authorize_failures") > 0);
}

#[test]
fn an_unknown_application_is_refused_while_service_management_fails() {
    for failure in [
        Failure::ConnectionRefused,
        Failure::NoHealthyUpstream,
        Failure::Overflow,
        Failure::ConnectionTermination,
        Failure::Timeout,
        Failure::Reset,
    ] {
        let (envoy, worker) = gateway(&plain());
        let stream = get(&worker, "alice").paused();
        worker.answer(worker.only_call().token, failure);
        let reply = worker.poll(stream).reply();
        assert_eq!(reply.status, 503, "{failure:?}");
        assert_eq!(reply.header("retry-after"), Some("1"));
        // It is not remembered: whoever comes next asks again.
        introduce(&envoy, &worker, "alice", authorized());
        behaved(&envoy);
    }
}

#[test]
fn an_unknown_application_is_refused_if_no_call_can_be_made() {
    let envoy = tollgate_fake_host::FakeEnvoy::new();
    let worker = envoy.configured_worker(&plain());
    let reply = get(&worker, "alice").reply();
    assert_eq!(reply.status, 503);
    assert_eq!(reply.header("retry-after"), Some("1"));
    behaved(&envoy);
}

#[test]
fn an_unknown_application_that_is_allowed_in_is_reported_alone_later() {
    let changes = json!({ "authorization": { "unknown": "allow" } });
    let (envoy, worker) = gateway(&configuration(changes));
    introduce(&envoy, &worker, "alice", authorized());
    let [gone, one, two] = [0; 3].map(|_| get(&worker, "mallory").paused());
    worker.end_stream(gone);
    let streams = [one, two];
    worker.answer(worker.only_call().token, Failure::ConnectionRefused);
    for stream in streams {
        worker.poll(stream).forwarded();
    }
    get(&worker, "mallory").forwarded();
    assert_eq!(stat(&envoy, "requests_admitted_unknown"), 2);
    assert_eq!(books(&envoy, "hits").admitted, 4);

    let mut backend = Backend::knows(&["alice"]);
    let calls = pass_time(&envoy, &[worker], seconds(11), |call| {
        Some(backend.answer(call, envoy.wall_ms()))
    });
    let mut applications: Vec<Vec<String>> = reports(&calls)
        .iter()
        .map(|report| {
            let transactions = report.transactions.values();
            transactions
                .map(|transaction| transaction.application["user_key"].clone())
                .collect()
        })
        .collect();
    applications.sort();
    assert_eq!(applications, [["alice"], ["mallory"]]);
    assert_eq!(books(&envoy, "hits").acknowledged, 4);
    behaved(&envoy);
}

#[test]
fn an_unknown_application_is_allowed_in_even_if_no_call_can_be_made() {
    let changes = json!({ "authorization": { "unknown": "allow" } });
    let envoy = tollgate_fake_host::FakeEnvoy::new();
    let worker = envoy.configured_worker(&configuration(changes));
    get(&worker, "alice").forwarded();
    assert_eq!(stat(&envoy, "requests_admitted_unknown"), 1);
    assert_eq!(books(&envoy, "hits").pending, 1);
    behaved(&envoy);
}

#[test]
fn whoever_was_allowed_in_unheard_is_out_once_service_management_denies_it() {
    let changes = json!({ "authorization": { "unknown": "allow" } });
    let (envoy, worker) = gateway(&configuration(changes));
    let stream = get(&worker, "mallory").paused();
    worker.answer(worker.only_call().token, Failure::Timeout);
    worker.poll(stream).forwarded();
    let mut backend = Backend::knows(&[]);
    let workers = [worker.clone()];
    pass_time(&envoy, &workers, SECOND, |call| {
        Some(backend.answer(call, envoy.wall_ms()))
    });
    assert_eq!(get(&worker, "mallory").status(), Some(403));
    behaved(&envoy);
}

#[test]
fn a_late_answer_about_an_expired_record_tells_nothing_of_what_was_reported_meanwhile() {
    let changes = json!({
        "service_management": { "timeout": "30s" },
        "authorization": { "ttl": "1s", "stale_if_error": "0s" },
        "reporting": { "interval": "100ms" },
    });
    let (envoy, worker) = gateway(&configuration(changes));
    let plan = || authorized().limit("hits", "day", 100, 60);
    introduce(&envoy, &worker, "alice", plan());
    for _ in 1..40 {
        get(&worker, "alice").forwarded();
    }
    envoy.advance(seconds(2));
    let stream = get(&worker, "alice").paused();
    let question = worker.only_call();
    assert!(is_question(&question), "{question:?}");
    let asked = envoy.wall_ms();
    worker.tick();
    let calls = worker.calls();
    let report = calls.iter().find(|call| is_report(call)).expect("a report");
    worker.answer(report.token, accepted());
    envoy.advance(seconds(7));
    // What the backend had counted when it was asked.
    worker.answer(question.token, plan().at(asked));
    assert_eq!(worker.poll(stream).status(), Some(429));
    behaved(&envoy);
}

#[test]
fn a_misconfigured_gateway_answers_503_and_tells_its_operator_not_the_consumer() {
    for (status, code) in [
        (403, "service_token_invalid"),
        (403, "provider_key_invalid"),
        (404, "service_id_invalid"),
        (404, "application_not_found"),
        (400, "bad_request"),
    ] {
        let (envoy, worker) = gateway(&plain());
        let stream = get(&worker, "alice").paused();
        worker.answer(worker.only_call().token, error(status, code));
        let reply = worker.poll(stream).reply();
        assert_eq!(reply.status, 503, "{code}");
        assert_eq!(reply.details, "tollgate_misconfigured");
        assert!(!reply.text().contains("credential"), "{}", reply.text());
        assert!(reply.header("retry-after").is_some());
        assert!(envoy.logged(LogLevel::Error, "refuses this gateway"));
        assert_eq!(stat(&envoy, "misconfigured"), 1);
    }
}

#[test]
fn a_misconfiguration_never_replaces_what_is_known() {
    let (envoy, worker) = gateway(&plain());
    introduce(&envoy, &worker, "alice", authorized());
    envoy.advance(seconds(61));
    get(&worker, "alice").forwarded();
    worker.tick();
    for call in worker.calls().into_iter().filter(is_question) {
        worker.answer(call.token, error(403, "service_token_invalid"));
    }
    get(&worker, "alice").forwarded();
    assert_eq!(stat(&envoy, "misconfigured"), 1);
    worker.tick();
    assert_eq!(stat(&envoy, "requests_admitted"), 3);
}

#[test]
fn a_misconfiguration_is_logged_seldom() {
    let (envoy, worker) = gateway(&plain());
    for number in 0..500 {
        let stream = get(&worker, &format!("key-{number}")).paused();
        worker.answer(
            worker.only_call().token,
            error(403, "service_token_invalid"),
        );
        assert_eq!(worker.poll(stream).status(), Some(503));
        envoy.advance(std::time::Duration::from_millis(100));
    }
    let lines = envoy.logs().into_iter();
    let lines = lines.filter(|line| line.message.contains("service_token_invalid"));
    assert_eq!(lines.count(), 5, "once in ten seconds");
    assert_eq!(stat(&envoy, "misconfigured"), 500);
}

#[test]
fn an_answer_that_makes_no_sense_lets_nobody_in() {
    use tollgate_fake_host::Answer;
    for answer in [
        Answer::status(200),
        Answer::status(200).body("<status><authorized>false</authorized></status>"),
        Answer::status(200).body("<html>welcome to the captive portal</html>"),
        Answer::status(200).body(vec![0xff; 3_000_000]),
        Answer::status(204),
        Answer::status(302),
        Answer::status(404).body("not here"),
        Answer::status(429),
        Answer::status(500),
        Answer::status(999),
    ] {
        let (envoy, worker) = gateway(&plain());
        let stream = get(&worker, "alice").paused();
        worker.answer(worker.only_call().token, answer);
        assert_eq!(worker.poll(stream).status(), Some(503));
        assert_eq!(recorded(&envoy).len(), 0);
        behaved(&envoy);
    }
}

#[test]
fn neither_logs_nor_replies_hold_a_secret() {
    let (envoy, worker) = gateway(&plain());
    let mut replies = String::new();
    for answer in [
        error(403, "user_key_invalid"),
        error(403, "service_token_invalid"),
        Failure::Timeout.into(),
        denied("application_not_active").at(envoy.wall_ms()),
    ] {
        let stream = get(&worker, "consumers-secret").paused();
        worker.answer(worker.only_call().token, answer);
        replies += &format!("{:?}", worker.poll(stream).reply());
        envoy.advance(seconds(60));
    }
    introduce(&envoy, &worker, "consumers-secret", authorized());
    pass_time(&envoy, &[worker], seconds(60), |_| {
        Some(error(403, "service_token_invalid"))
    });
    let told = format!("{replies}{:?}", envoy.logs());
    for secret in ["consumers-secret", "token-of-1001"] {
        assert!(!told.contains(secret), "{told}");
    }
}

#[test]
fn a_refresh_that_went_with_its_leader_is_made_up_for_by_the_next() {
    let (envoy, workers) = gateway_of(2, &plain());
    introduce(&envoy, &workers[0], "alice", authorized());
    let mut suspended = |call: &tollgate_fake_host::Call| {
        Some(match is_question(call) {
            true => denied("application_not_active").at(envoy.wall_ms()),
            false => tollgate_fake_host::accepted(),
        })
    };
    envoy.advance(seconds(61));
    get(&workers[0], "alice").forwarded();
    pass_time(&envoy, &workers, SECOND, &mut suspended);
    assert_eq!(get(&workers[1], "alice").status(), Some(403));
    pass_time(&envoy, &workers, seconds(11), &mut suspended);

    // Stale: the next request wants it refreshed, the leader asks, and is gone.
    assert_eq!(get(&workers[1], "alice").status(), Some(403));
    pass_time(&envoy, &workers, SECOND, |_| None);
    assert_eq!(questions(&workers[0].calls()), ["alice"]);
    workers[0].restart_vm();
    let mut backend = Backend::knows(&["alice"]);
    let others = [workers[1].clone()];
    pass_time(&envoy, &others, seconds(70), |call| {
        Some(backend.answer(call, envoy.wall_ms()))
    });
    get(&workers[1], "alice").forwarded();
}

#[test]
fn a_request_that_waits_while_the_configuration_changes_is_decided_by_its_own() {
    let (envoy, worker) = gateway(&plain());
    let stream = get(&worker, "alice").paused();
    let newer = rules(
        json!([{ "pattern": "/", "usage": { "calls": 3 } }]),
        json!({}),
    );
    assert!(worker.configure(&newer));
    worker.answer(worker.only_call().token, authorized().at(envoy.wall_ms()));
    worker.poll(stream).forwarded();
    get(&worker, "alice").forwarded();
    assert_eq!(books(&envoy, "hits").admitted, 1);
    assert_eq!(books(&envoy, "calls").admitted, 3);
    behaved(&envoy);
}

#[test]
fn whoever_went_away_while_it_waited_holds_no_place() {
    let (envoy, worker) = gateway(&plain());
    let [alice, carol] = ["alice", "carol"].map(|key| {
        let waiting = (0..5_000).map(|_| get(&worker, key).paused());
        waiting.collect::<Vec<_>>()
    });
    for key in ["alice", "bob"] {
        assert_eq!(get(&worker, key).reply().details, "tollgate_overloaded");
    }
    for stream in alice[100..].iter().chain(&carol) {
        worker.end_stream(*stream);
    }
    envoy.advance(std::time::Duration::from_millis(200));
    let late = ["alice", "bob"].map(|key| get(&worker, key).paused());
    for call in worker.calls() {
        worker.answer(call.token, authorized().at(envoy.wall_ms()));
    }
    for stream in late {
        worker.poll(stream).forwarded();
    }
    assert_eq!(statuses(&worker, &alice[..100]), vec![None; 100]);
    assert_eq!(stat(&envoy, "requests_admitted"), 102);
    assert_eq!(books(&envoy, "hits").admitted, 102);
    behaved(&envoy);
}

#[test]
fn no_more_requests_wait_than_a_worker_holds() {
    let (envoy, worker) = gateway(&plain());
    let mut streams = Vec::new();
    let overloaded = loop {
        match get(&worker, &format!("key-{}", streams.len() % 7)) {
            tollgate_fake_host::Outcome::Paused(stream) => streams.push(stream),
            other => break other.reply(),
        }
    };
    assert_eq!(streams.len(), 10_000);
    assert_eq!(
        (overloaded.status, &*overloaded.details),
        (503, "tollgate_overloaded")
    );
    assert_eq!(worker.calls().len(), 7);
    for call in worker.calls() {
        worker.answer(call.token, authorized().at(envoy.wall_ms()));
    }
    assert!(statuses(&worker, &streams).iter().all(Option::is_none));
    assert_eq!(books(&envoy, "hits").admitted, 10_000);
    get(&worker, "somebody").paused();
}

#[test]
fn a_plan_of_more_limits_than_a_record_holds_costs_nobody_their_usage() {
    let (envoy, worker) = gateway(&plain());
    introduce(&envoy, &worker, "alice", authorized());
    let periods = ["minute", "hour", "day", "week"];
    let mut plan = authorized();
    for metric in 0..64 {
        let metric = if metric == 0 {
            "hits".to_owned()
        } else {
            format!("m{metric}")
        };
        for period in periods {
            plan = plan.limit(&metric, period, 100, 0);
        }
    }
    let answer = plan.at(envoy.wall_ms());
    envoy.advance(seconds(61));
    get(&worker, "alice").forwarded();
    worker.tick();
    for call in worker.calls().into_iter().filter(is_question) {
        worker.answer(call.token, answer.clone());
    }
    assert_eq!(books(&envoy, "hits").admitted, 2);

    let stream = get(&worker, "bob").paused();
    let call = worker
        .calls()
        .into_iter()
        .find(is_question)
        .expect("a question");
    worker.answer(call.token, answer);
    assert_eq!(worker.poll(stream).status(), Some(503), "said, not guessed");
}
