//! A service management that fails, in each way in which it can: what an operator sees of it, what
//! becomes of each service's callers, and how it is come back to.

use std::slice::from_ref;

use serde_json::{Value, json};
use tollgate_fake_host::{
    Answer, Call, FakeEnvoy, LogLevel, Outcome, Worker, accepted, authorized, error,
};

use crate::support::*;
use tollgate_fake_host::Failure;

/// The reasons, as counters name them.
const REASONS: [&str; 8] = [
    "not_called",
    "not_connected",
    "timeout",
    "interrupted",
    "no_reply",
    "server_error",
    "unexpected_status",
    "malformed",
];

fn failures() -> Vec<(&'static str, Answer)> {
    vec![
        ("not_connected", Failure::ConnectionRefused.into()),
        ("not_connected", Failure::ConnectionTimeout.into()),
        ("not_connected", Failure::NoHealthyUpstream.into()),
        ("not_connected", Failure::Overflow.into()),
        ("timeout", Failure::Timeout.into()),
        ("interrupted", Failure::ConnectionTermination.into()),
        ("no_reply", Failure::Reset.into()),
        ("server_error", Answer::status(500)),
        ("server_error", Answer::status(503).body("overloaded")),
        ("unexpected_status", Answer::status(302)),
        ("unexpected_status", Answer::status(403).body("forbidden")),
        ("unexpected_status", Answer::status(429)),
        (
            "malformed",
            Answer::status(200).body("<html>welcome</html>"),
        ),
        (
            "malformed",
            Answer::status(200).body("<status><authorized>true"),
        ),
    ]
}

fn counted(envoy: &FakeEnvoy) -> Vec<(&'static str, u64)> {
    let counts = REASONS.map(|reason| (reason, stat(envoy, &format!("failures_{reason}"))));
    counts.into_iter().filter(|(_, count)| *count > 0).collect()
}

#[test]
fn each_way_to_fail_has_its_counter_and_its_word_in_the_log() {
    for (reason, answer) in failures() {
        let (envoy, worker) = gateway(&plain());
        let stream = get(&worker, "alice").paused();
        worker.answer(worker.only_call().token, answer.clone());
        assert_eq!(worker.poll(stream).status(), Some(503), "{reason}");
        assert_eq!(counted(&envoy), [(reason, 1)]);
        assert_eq!(stat(&envoy, "authorize_failures"), 1, "{reason}");
        assert_eq!(stat(&envoy, "misconfigured"), 0, "{reason}");
        let line = format!("did not answer: {reason}");
        assert!(envoy.logged(LogLevel::Warn, &line), "{reason}");

        // A refresh fails as a question does, and a report counts beside it.
        introduce(&envoy, &worker, "alice", authorized());
        envoy.advance(seconds(61));
        get(&worker, "alice").forwarded();
        worker.tick();
        let (mut asked, mut reported) = (0, 0);
        worker.answer_all(|call| {
            if is_report(call) {
                reported += 1;
            } else {
                asked += 1;
            }
            answer.clone()
        });
        assert!(asked > 0 && reported > 0, "{reason}: {asked}, {reported}");
        assert_eq!(stat(&envoy, "authorize_failures"), 1 + asked, "{reason}");
        // A report's body is not read, so some of what fails a question is none here.
        let unfit = stat(&envoy, "reports_not_delivered") + stat(&envoy, "reports_uncertain");
        assert_eq!(
            counted(&envoy).iter().map(|it| it.1).sum::<u64>(),
            1 + asked + unfit
        );
        get(&worker, "alice").forwarded();
        behaved(&envoy);
    }
}

#[test]
fn a_gateway_without_the_cluster_says_so() {
    let envoy = FakeEnvoy::new();
    let worker = envoy.configured_worker(&plain());
    assert_eq!(get(&worker, "alice").status(), Some(503));
    assert_eq!(counted(&envoy), [("not_called", 1)]);
    assert_eq!(stat(&envoy, "authorize_failures"), 1);
    assert!(envoy.logged(LogLevel::Warn, "the call could not be made"));
}

#[test]
fn a_misconfiguration_is_no_failure_of_service_managements() {
    let (envoy, worker) = gateway(&plain());
    let stream = get(&worker, "alice").paused();
    worker.answer(
        worker.only_call().token,
        error(403, "service_token_invalid"),
    );
    assert_eq!(
        worker.poll(stream).reply().details,
        "tollgate_misconfigured"
    );
    assert_eq!(counted(&envoy), []);
    assert_eq!(stat(&envoy, "misconfigured"), 1);
    assert!(envoy.logged(
        LogLevel::Error,
        "refuses this gateway: service_token_invalid"
    ));
}

/// Something before service management takes offence at a key, as a firewall does.
#[test]
fn whoever_makes_a_firewall_refuse_the_question_shuts_nobody_out_and_is_not_let_in() {
    for answer in [
        Answer::status(403).body("forbidden"),
        Answer::status(414),
        Answer::status(200).body("<html>blocked</html>"),
    ] {
        let changes = json!({ "authorization": { "unknown": "allow" } });
        let (envoy, worker) = gateway(&configuration(changes));
        for number in 0..20 {
            let stream = get(&worker, &format!("' OR {number}=1")).paused();
            worker.answer(worker.only_call().token, answer.clone());
            assert_eq!(worker.poll(stream).status(), Some(503));
        }
        assert_eq!(stat(&envoy, "requests_breaker_open"), 0);
        assert_eq!(stat(&envoy, "requests_admitted_unknown"), 0);
        introduce(&envoy, &worker, "alice", authorized());
        behaved(&envoy);
    }
}

#[test]
fn a_stranger_with_a_known_key_does_not_shorten_what_is_known_of_it() {
    let mut service = service("1001", "api.example.com");
    service["credentials"] = json!({ "user_key": [{ "query": "user_key" }], "referrer": true });
    let changes = json!({ "services": [service], "authorization": { "unknown": "allow" } });
    let (envoy, worker) = gateway(&configuration(changes));
    let from = |referrer: &str| {
        let request = worker.request().get("/?user_key=alice");
        request.header("referer", referrer).send()
    };
    let stream = from("www.example.com").paused();
    worker.answer(worker.only_call().token, authorized().at(envoy.wall_ms()));
    worker.poll(stream).forwarded();

    let stream = from("made.up.example.com").paused();
    worker.answer(worker.only_call().token, Failure::Timeout);
    worker.poll(stream);
    // Longer than anybody is let in unheard, and within the time of what was said.
    envoy.advance(seconds(12));
    from("www.example.com").forwarded();
    behaved(&envoy);
}

#[test]
fn a_known_referrer_waits_for_a_failing_backend_once_and_not_with_each_request() {
    let mut service = service("1001", "api.example.com");
    service["credentials"] = json!({ "user_key": [{ "query": "user_key" }], "referrer": true });
    let ttl = json!({ "ttl": "60s", "stale_if_error": "1h" });
    let changes = json!({ "services": [service], "authorization": ttl });
    let (envoy, worker) = gateway(&configuration(changes));
    let ask = || {
        let request = worker.request().get("/?user_key=alice");
        request.header("referer", "www.example.com").send()
    };
    let stream = ask().paused();
    worker.answer(worker.only_call().token, authorized().at(envoy.wall_ms()));
    worker.poll(stream).forwarded();

    envoy.advance(seconds(70));
    let stream = ask().paused();
    worker.answer(worker.only_call().token, Failure::Timeout);
    worker.poll(stream).forwarded();
    for _ in 0..20 {
        ask().forwarded();
        assert!(worker.calls().is_empty());
    }
    // Asked again after a while, and nobody waits for that.
    envoy.advance(seconds(5));
    ask().forwarded();
    let question = worker.only_call();
    assert!(is_question(&question), "{question:?}");
    ask().forwarded();
    worker.answer(question.token, authorized().at(envoy.wall_ms()));
    ask().forwarded();
    assert!(worker.calls().is_empty());
    // It was accepted anew, so it is as if nothing had failed.
    envoy.advance(seconds(70));
    ask().paused();
    behaved(&envoy);
}

#[test]
fn a_status_that_is_about_how_much_is_asked_opens_the_breaker() {
    for status in [302, 408, 429, 503] {
        let (envoy, worker) = gateway(&plain());
        for number in 0..5 {
            let stream = get(&worker, &format!("early-{number}")).paused();
            worker.answer(worker.only_call().token, Answer::status(status));
            assert_eq!(worker.poll(stream).status(), Some(503));
        }
        assert_eq!(get(&worker, "late").status(), Some(503), "{status}");
        assert_eq!(stat(&envoy, "requests_breaker_open"), 1, "{status}");
    }
}

#[test]
fn a_probe_that_a_firewall_refuses_leaves_the_next_question_to_be_the_probe() {
    let (envoy, worker) = gateway(&plain());
    for number in 0..5 {
        let stream = get(&worker, &format!("early-{number}")).paused();
        worker.answer(worker.only_call().token, Failure::Timeout);
        worker.poll(stream);
    }
    assert_eq!(get(&worker, "late").status(), Some(503), "open");
    envoy.advance(seconds(10));
    for number in 0..3 {
        let stream = get(&worker, &format!("' OR {number}=1")).paused();
        worker.answer(
            worker.only_call().token,
            Answer::status(403).body("forbidden"),
        );
        assert_eq!(worker.poll(stream).status(), Some(503));
    }
    introduce(&envoy, &worker, "alice", authorized());
    introduce(&envoy, &worker, "bob", authorized());
    behaved(&envoy);
}

#[test]
fn a_503_says_when_somebody_is_asked_again() {
    let (envoy, workers) = gateway_of(2, &plain());
    let retry_after = |worker: &Worker, key: &str| -> u64 {
        let reply = match get(worker, key) {
            Outcome::Paused(stream) => {
                worker.answer(worker.only_call().token, Failure::Timeout);
                worker.poll(stream).reply()
            }
            decided => decided.reply(),
        };
        assert_eq!(reply.status, 503);
        let seconds = reply.header("retry-after").expect("a time");
        seconds.parse().expect("seconds")
    };
    for number in 0..5 {
        assert_eq!(retry_after(&workers[0], &format!("{number}")), 1);
    }
    // Open. Whoever comes back when told to, on any worker, is asked about: that is the probe.
    let mut longest = 0;
    for round in 0..8 {
        let before = stat(&envoy, "authorize_calls");
        let told = retry_after(&workers[1], "early");
        assert_eq!(stat(&envoy, "authorize_calls"), before, "round {round}");
        assert!((1..=10).contains(&told), "{told} s");
        longest = longest.max(told);
        envoy.advance(seconds(told));
        let worker = &workers[round % 2];
        let next = retry_after(worker, "in-time");
        assert_eq!(stat(&envoy, "authorize_calls"), before + 1, "round {round}");
        assert!(
            next >= told.min(5),
            "round {round}: {next} s after {told} s"
        );
    }
    assert!(
        longest >= 5,
        "pauses grow, and callers are told: {longest} s"
    );
    behaved(&envoy);
}

/// Two services that rely on answers differently, and one worker.
fn two_services(careful: Value, open: Value) -> (FakeEnvoy, Worker) {
    let of = |id: &str, host: &str, authorization: Value| {
        let mut service = service(id, host);
        service["authorization"] = authorization;
        service
    };
    gateway(&configuration(json!({
        "services": [
            of("1001", "careful.example.com", careful),
            of("1002", "open.example.com", open),
        ],
    })))
}

fn get_at(worker: &Worker, host: &str, key: &str) -> Outcome {
    let path = format!("/?user_key={key}");
    worker.request().host(host).get(path).send()
}

fn is_about(call: &Call, service: &str) -> bool {
    call.path().contains(&format!("service_id={service}&"))
}

#[test]
fn each_service_lets_in_or_refuses_as_it_is_configured_while_nobody_answers() {
    let (envoy, worker) = two_services(json!({}), json!({ "unknown": "allow" }));
    for (round, [careful, open]) in [[503, 200]; 8].into_iter().enumerate() {
        for (host, status) in [("careful.example.com", careful), ("open.example.com", open)] {
            let outcome = match get_at(&worker, host, &format!("key-{round}")) {
                Outcome::Paused(stream) => {
                    worker.answer(worker.only_call().token, Failure::Timeout);
                    worker.poll(stream)
                }
                decided => decided,
            };
            let got = if outcome.continued() {
                Some(200)
            } else {
                outcome.status()
            };
            assert_eq!(got, Some(status), "{host} in round {round}");
        }
    }
    assert!(
        stat(&envoy, "requests_breaker_open") > 0,
        "with the breaker open, too"
    );
    assert_eq!(stat(&envoy, "requests_admitted_unknown"), 0);
    assert_eq!(envoy.stat("tollgate.1002.requests_admitted_unknown"), 8);
    behaved(&envoy);
}

#[test]
fn each_service_keeps_answers_for_its_own_time() {
    let (envoy, worker) = two_services(
        json!({ "ttl": "10s", "stale_if_error": "0s", "negative_ttl": "2s" }),
        json!({ "ttl": "30s", "stale_if_error": "5m" }),
    );
    let hosts = ["careful.example.com", "open.example.com"];
    for host in hosts {
        let stream = get_at(&worker, host, "alice").paused();
        worker.answer(worker.only_call().token, authorized().at(envoy.wall_ms()));
        worker.poll(stream).forwarded();
        let stream = get_at(&worker, host, "nobody").paused();
        worker.answer(worker.only_call().token, error(403, "user_key_invalid"));
        assert_eq!(worker.poll(stream).status(), Some(403));
    }
    envoy.advance(seconds(3));
    get_at(&worker, hosts[0], "nobody").paused();
    assert_eq!(get_at(&worker, hosts[1], "nobody").status(), Some(403));
    envoy.advance(seconds(8));
    get_at(&worker, hosts[0], "alice").paused();
    get_at(&worker, hosts[1], "alice").forwarded();
    assert_eq!(envoy.stat("tollgate.1002.requests_admitted_stale"), 0);
    envoy.advance(seconds(200));
    get_at(&worker, hosts[1], "alice").forwarded();
    assert_eq!(envoy.stat("tollgate.1002.requests_admitted_stale"), 1);
}

#[test]
fn each_service_is_refreshed_in_time_for_its_own_ttl() {
    let (envoy, worker) = two_services(json!({ "ttl": "20s" }), json!({ "ttl": "10m" }));
    let mut asked = [0, 0];
    for host in ["careful.example.com", "open.example.com"] {
        let stream = get_at(&worker, host, "alice").paused();
        worker.answer(worker.only_call().token, authorized().at(envoy.wall_ms()));
        worker.poll(stream).forwarded();
    }
    for _ in 0..400 {
        let calls = pass_time(&envoy, from_ref(&worker), SECOND, |call| {
            Some(match is_report(call) {
                true => accepted(),
                false => authorized().at(envoy.wall_ms()),
            })
        });
        for call in calls.iter().filter(|call| is_question(call)) {
            asked[usize::from(is_about(call, "1002"))] += 1;
        }
        get_at(&worker, "careful.example.com", "alice").forwarded();
        get_at(&worker, "open.example.com", "alice").forwarded();
    }
    assert_eq!(stat(&envoy, "requests_admitted_stale"), 0);
    assert_eq!(envoy.stat("tollgate.1002.requests_admitted_stale"), 0);
    assert!((20..=45).contains(&asked[0]), "{asked:?} in 400 seconds");
    assert!(asked[1] <= 2, "{asked:?} in 400 seconds");
}

/// Many gateways that have all waited for the same service management come back one after
/// another, and each of them with a few questions at a time.
#[test]
fn when_it_is_back_gateways_do_not_come_all_at_once() {
    const GATEWAYS: u64 = 12;
    const APPLICATIONS: usize = 40;
    let gateways: Vec<(FakeEnvoy, Worker)> = (0..GATEWAYS)
        .map(|number| {
            let envoy = envoy().seed(1_000 + number);
            let changes = json!({ "authorization": { "ttl": "20s", "capacity": 1024 } });
            let worker = envoy.configured_worker(&configuration(changes));
            for application in 0..APPLICATIONS {
                introduce(&envoy, &worker, &format!("app-{application}"), authorized());
            }
            (envoy, worker)
        })
        .collect();
    let use_all = |worker: &Worker| {
        for application in 0..APPLICATIONS {
            get(worker, &format!("app-{application}")).forwarded();
        }
    };
    // Two minutes in which nobody answers.
    for second in 0..120 {
        for (envoy, worker) in &gateways {
            pass_time(envoy, from_ref(worker), SECOND, |_| {
                Some(Failure::Timeout.into())
            });
            if second % 5 == 0 {
                use_all(worker);
            }
        }
    }
    // Then everybody is answered, a second later: what is in flight shows.
    let mut first = Vec::new();
    let mut most = 0;
    for (envoy, worker) in &gateways {
        let mut came = None;
        for second in 0..60 {
            envoy.advance(SECOND);
            let questions = worker
                .calls()
                .iter()
                .filter(|call| is_question(call))
                .count();
            most = most.max(questions);
            worker.answer_all(|call| match is_report(call) {
                true => accepted(),
                false => authorized().at(envoy.wall_ms()),
            });
            worker.tick();
            if came.is_none() && worker.calls().iter().any(is_question) {
                came = Some(second);
            }
            if second % 5 == 0 {
                use_all(worker);
            }
        }
        first.push(came.expect("it is asked again"));
        let stale = stat(envoy, "requests_admitted_stale");
        use_all(worker);
        assert_eq!(
            stat(envoy, "requests_admitted_stale"),
            stale,
            "all are fresh again"
        );
    }
    let busiest = first
        .iter()
        .map(|second| first.iter().filter(|it| *it == second).count());
    let busiest = busiest.max().expect("gateways");
    assert!(
        busiest <= 5,
        "{busiest} of {GATEWAYS} came in one second: {first:?}"
    );
    let span = first.iter().max().expect("some") - first.iter().min().expect("some");
    assert!(span >= 5, "{first:?}");
    assert!(
        (1..=16).contains(&most),
        "{most} questions of one gateway at a time"
    );
}
