//! Garbage in shared data, host functions that fail, bytes that are no text, and
//! configurations that are none: nobody is let in who should not be, and nothing traps. A
//! trap ends the test process, so that a test here passes at all is half of its claim.

use std::time::Duration;

use serde_json::{Value, json};
use tollgate_fake_host::{
    Answer, FakeEnvoy, LogLevel, Outcome, Worker, accepted, authorized, error,
};

use crate::support::*;

/// Every kind of key that the filter has, by the letter after the prefix.
const KINDS: &[u8] = b"rnkzdslfqb";

type Damage = fn(&mut Random, &mut Vec<u8>);

const DAMAGES: [(&str, Damage); 8] = [
    ("emptied", |_, value| value.clear()),
    ("cut short", |random, value| {
        let length = random.below(value.len() as u64 + 1);
        value.truncate(usize::try_from(length).expect("small"));
    }),
    ("made longer", |random, value| {
        value.extend((0..random.below(40)).map(|_| 0xa5));
    }),
    ("replaced", |random, value| {
        let length = random.below(700);
        *value = (0..length)
            .map(|_| random.next().to_le_bytes()[0])
            .collect();
    }),
    ("another plugin's", |_, value| {
        *value = b"{\"not\":\"ours\"}".to_vec()
    }),
    ("all ones behind the magic", |_, value| {
        value.iter_mut().skip(4).for_each(|byte| *byte = 0xff);
    }),
    ("all zeros behind the magic", |_, value| {
        value.iter_mut().skip(4).for_each(|byte| *byte = 0);
    }),
    ("some bytes changed", |random, value| {
        for _ in 0..3 {
            let length = value.len().max(1) as u64;
            let at = usize::try_from(random.below(length)).expect("small");
            if let Some(byte) = value.get_mut(at) {
                *byte = random.next().to_le_bytes()[0];
            }
        }
    }),
];

/// A gateway of two workers that has everything in shared data that it ever has: records
/// with limits, pending usage and usage in flight, strangers, marks, a lease, a question
/// under way that another worker waits for.
fn lived_in() -> (FakeEnvoy, Vec<Worker>) {
    let (envoy, workers) = gateway_of(2, &plain());
    for key in ["alice", "bob"] {
        introduce(
            &envoy,
            &workers[0],
            key,
            authorized().limit("hits", "day", 1_000, 0),
        );
    }
    let stream = get(&workers[0], "mallory").paused();
    let call = workers[0].only_call();
    workers[0].answer(call.token, error(403, "user_key_invalid"));
    assert_eq!(workers[0].poll(stream).status(), Some(403));
    workers[0].tick();
    envoy.advance(seconds(61));
    get(&workers[1], "alice").forwarded();
    for worker in &workers {
        get(worker, "dave").paused();
    }
    (envoy, workers)
}

const ROUNDS: u64 = 12;
/// What two workers admit of two applications in those rounds.
const ALL: u64 = 4 * ROUNDS;

/// Traffic, ticks and answers after an accident. Service management knows alice and bob.
/// Returns how many requests got through in the end.
fn go_on(envoy: &FakeEnvoy, workers: &[Worker], context: &str) -> u64 {
    let mut backend = Backend::knows(&["alice", "bob"]);
    let mut answer = |call: &tollgate_fake_host::Call| backend.answer(call, envoy.wall_ms());
    let mut admitted = 0;
    for _ in 0..ROUNDS {
        for worker in workers {
            for key in ["alice", "bob", "mallory"] {
                let outcome = match get(worker, key) {
                    Outcome::Paused(stream) => {
                        worker.answer_all(&mut answer);
                        worker.poll(stream)
                    }
                    decided => decided,
                };
                match outcome.status() {
                    None if key == "mallory" => panic!("{context}: mallory got in"),
                    None => admitted += u64::from(outcome.continued()),
                    Some(403 | 429 | 503) => {}
                    Some(status) => panic!("{context}: {status} for {key}"),
                }
            }
            worker.tick();
            worker.answer_all(&mut answer);
        }
        envoy.advance(SECOND);
    }
    admitted
}

#[test]
fn garbage_under_any_key_lets_no_stranger_in_and_is_got_over() {
    for kind in KINDS {
        for (what, damage) in DAMAGES {
            for seed in 0..2 {
                let context = format!("{} {what}, seed {seed}", char::from(*kind));
                let (envoy, workers) = lived_in();
                let mut random = Random(seed);
                let mut damaged = 0;
                envoy.corrupt_shared_data(|key, value| {
                    if key.get(KIND_AT) == Some(kind) {
                        damage(&mut random, value);
                        damaged += 1;
                    }
                });
                assert!(damaged > 0, "{context}: no such key");
                // It goes on, and so do workers and configurations that start now.
                go_on(&envoy, &workers, &context);
                workers[0].restart_vm();
                assert!(
                    workers[0].configure(&plain()),
                    "{context}: {:?}",
                    envoy.logs()
                );
                assert!(workers[1].configure(&plain()), "{context}");
                envoy.advance(seconds(10));
                go_on(&envoy, &workers, &context);
                // Limits and verdicts in a record are believed; any other damage is undone.
                let late = go_on(&envoy, &workers, &context);
                if *kind != b'r' {
                    assert_eq!(late, ALL, "{context}");
                }
                // Nor is any usage forgotten, but where records are, or how many.
                if !b"rz".contains(kind) {
                    pass_time(&envoy, &workers, seconds(90), |call| {
                        is_report(call).then(accepted)
                    });
                    let books = books(&envoy, "hits");
                    assert_eq!((books.pending, books.in_flight), (0, 0), "{context}");
                }
                behaved(&envoy);
            }
        }
    }
}

#[test]
fn what_is_in_a_record_by_accident_is_refreshed_away_or_taken_for_vacant() {
    for (what, damage) in &DAMAGES[..5] {
        let (envoy, workers) = lived_in();
        let mut random = Random(1);
        envoy.corrupt_shared_data(|key, value| {
            if key.get(KIND_AT) == Some(&b'r') {
                damage(&mut random, value);
                value.push(0);
            }
        });
        assert_eq!(recorded(&envoy).len(), 0, "{what}");
        go_on(&envoy, &workers, what);
        assert_eq!(go_on(&envoy, &workers, what), ALL, "{what}");
    }
}

#[test]
fn usage_is_still_flushed_when_the_key_of_the_digests_is_another() {
    let (envoy, workers) = gateway_of(2, &plain());
    introduce(&envoy, &workers[0], "alice", authorized());
    envoy.corrupt_shared_data(|key, value| {
        if key.get(KIND_AT) == Some(&b'k') {
            value.iter_mut().skip(4).for_each(|byte| *byte ^= 0x55);
        }
    });
    for worker in &workers {
        worker.restart_vm();
        assert!(worker.configure(&plain()));
    }
    let calls = pass_time(&envoy, &workers, seconds(80), |call| {
        is_report(call).then(accepted)
    });
    assert_eq!(usage_of(&reports(&calls), "hits"), 1);
    assert_eq!(books(&envoy, "hits").acknowledged, 1);
}

#[test]
fn compare_and_set_that_never_succeeds_admits_nobody() {
    let (envoy, worker) = gateway(&plain());
    introduce(&envoy, &worker, "alice", authorized());
    envoy.fail_next_compare_and_sets(usize::MAX);
    for _ in 0..5 {
        let reply = get(&worker, "alice").reply();
        assert_eq!((reply.status, &*reply.details), (503, "tollgate_contended"));
        assert!(reply.header("retry-after").is_some());
    }
    assert_eq!(get(&worker, "bob").status(), Some(503));
    worker.tick();
    assert_eq!(
        worker.calls().len(),
        0,
        "nothing is sent that is not marked as sent"
    );

    envoy.fail_next_compare_and_sets(0);
    assert_eq!(books(&envoy, "hits").admitted, 1);
    get(&worker, "alice").forwarded();
    envoy.advance(seconds(2));
    introduce(&envoy, &worker, "bob", authorized());
    assert_eq!(stat(&envoy, "requests_unavailable"), 6);
    behaved(&envoy);
}

const FUNCTIONS: [&str; 19] = [
    "proxy_log",
    "proxy_get_log_level",
    "proxy_get_current_time_nanoseconds",
    "proxy_set_tick_period_milliseconds",
    "proxy_get_buffer_bytes",
    "proxy_get_header_map_pairs",
    "proxy_get_shared_data",
    "proxy_set_shared_data",
    "proxy_register_shared_queue",
    "proxy_enqueue_shared_queue",
    "proxy_dequeue_shared_queue",
    "proxy_http_call",
    "proxy_continue_stream",
    "proxy_send_local_response",
    "proxy_define_metric",
    "proxy_increment_metric",
    "proxy_record_metric",
    "proxy_get_metric",
    "proxy_set_effective_context",
];
const STATUSES: [u32; 5] = [1, 2, 8, 10, u32::MAX];

#[test]
fn a_host_function_that_fails_lets_no_stranger_in() {
    for function in FUNCTIONS.iter().chain(&["clock_time_get", "random_get"]) {
        for status in STATUSES {
            for times in [1, 2, 5, 1_000_000] {
                let context = format!("{function} fails with {status}, {times} times");
                let (envoy, workers) = lived_in();
                let before = books(&envoy, "hits").admitted;
                envoy.fail_next(function, status, times);
                let mut admitted = 0;
                for key in ["alice", "mallory", "bob", "carol"] {
                    let outcome = get(&workers[0], key);
                    for call in workers[0].calls() {
                        let answer: Answer = match is_report(&call) {
                            true => accepted(),
                            false => error(403, "user_key_invalid"),
                        };
                        workers[0].answer(call.token, answer);
                    }
                    let outcome = match outcome {
                        Outcome::Paused(stream) => workers[0].poll(stream),
                        decided => decided,
                    };
                    if outcome.continued() {
                        assert!(["alice", "bob"].contains(&key), "{context}: {key}");
                        admitted += 1;
                    }
                    workers[0].tick();
                }
                envoy.fail_next(function, 0, 0);
                assert_eq!(
                    books(&envoy, "hits").admitted,
                    before + admitted,
                    "{context}"
                );
                envoy.advance(seconds(70));
                go_on(&envoy, &workers, &context);
                envoy.advance(seconds(10));
                assert_eq!(go_on(&envoy, &workers, &context), ALL, "{context}");
            }
        }
    }
}

#[test]
fn a_configuration_is_refused_or_works_whatever_fails_meanwhile() {
    for function in FUNCTIONS.iter().chain(&["clock_time_get", "random_get"]) {
        for times in [1, 2, 1_000_000] {
            let context = format!("{function} fails {times} times");
            let envoy = envoy();
            let worker = envoy.worker();
            envoy.fail_next(function, 10, times);
            let accepted = worker.configure(&plain());
            envoy.fail_next(function, 0, 0);
            if !accepted {
                assert!(worker.configure(&plain()), "{context}");
            }
            assert_eq!(worker.tick_period_ms(), 1_000, "{context}");
            assert_eq!(go_on(&envoy, &[worker], &context), ALL / 2, "{context}");
        }
    }
}

#[test]
fn a_limit_does_not_open_when_the_calendar_clock_cannot_be_read() {
    let (envoy, worker) = gateway(&plain());
    introduce(
        &envoy,
        &worker,
        "alice",
        authorized().limit("hits", "minute", 2, 0),
    );
    envoy.fail_next("proxy_get_current_time_nanoseconds", 10, 1_000);
    get(&worker, "alice").forwarded();
    assert_eq!(get(&worker, "alice").status(), Some(429));
    envoy.fail_next("proxy_get_current_time_nanoseconds", 10, 0);
    assert_eq!(get(&worker, "alice").status(), Some(429));
    envoy.advance(seconds(60));
    get(&worker, "alice").forwarded();
}

/// Byte strings that are no UTF-8, or have what paths and headers should not have.
fn odd_bytes() -> Vec<Vec<u8>> {
    let mut odd: Vec<Vec<u8>> = [
        &b"\xff"[..],
        b"\xc3\x28",
        b"\xed\xa0\x80",
        b"%",
        b"%f",
        b"%ff%fe",
        b"a\0b",
        b"",
        b"?",
        b"&&==&",
        b"[",
        b"//..//",
        b"\r\n",
    ]
    .map(<[u8]>::to_vec)
    .into();
    odd.push((0..=255).collect());
    odd.push(vec![b'a'; 70_000]);
    odd.push(b"%ff".repeat(20_000));
    odd
}

#[test]
fn bytes_that_are_no_text_are_decided_about_wherever_they_stand() {
    let mut guarded = service("1001", "api.example.com");
    guarded["credentials"] =
        json!({ "user_key": [{ "header": "x-api-key" }, { "query": "user_key" }] });
    guarded["exempt"] = json!([{ "path": "/free/*" }]);
    guarded["mapping_rules"] = json!([
        { "method": "GET", "pattern": "/v1/{id}/x$", "query": { "a": "b" }, "usage": { "hits": 1 } },
        { "pattern": "/", "usage": { "hits": 1 } },
    ]);
    let (envoy, worker) = gateway(&configuration(json!({ "services": [guarded] })));
    let refused = |outcome: Outcome, what: &str| {
        let status = match outcome {
            Outcome::Paused(stream) => {
                for call in worker.calls() {
                    worker.answer(call.token, error(403, "user_key_invalid"));
                }
                worker.poll(stream).status()
            }
            decided => decided.status(),
        };
        assert!(
            matches!(status, Some(401 | 403 | 404)),
            "{what}: {status:?}"
        );
    };
    for odd in odd_bytes() {
        let what = odd.escape_ascii().to_string();
        let what = &what[..what.len().min(60)];
        refused(worker.request().header("x-api-key", &odd).send(), what);
        refused(worker.request().header("x-other", &odd).send(), what);
        refused(worker.request().get(&odd).send(), what);
        for prefix in [
            "/",
            "/v1/",
            "/?user_key=",
            "/?",
            "/?a=b&",
            "/v1/7/x?a=b&user_key=",
        ] {
            let path = [prefix.as_bytes(), &odd].concat();
            refused(worker.request().get(path).send(), what);
        }
        let text = String::from_utf8_lossy(&odd).into_owned();
        refused(worker.request().host(&text).send(), what);
        refused(worker.request().method(&text, "/").send(), what);
    }
    assert_eq!(books(&envoy, "hits"), Books::default());
    behaved(&envoy);
}

#[test]
fn a_known_key_beside_odd_bytes_is_still_known() {
    let (envoy, worker) = gateway(&plain());
    introduce(&envoy, &worker, "alice", authorized());
    for odd in odd_bytes() {
        let path = [b"/?user_key=alice&x=".as_slice(), &odd].concat();
        let request = worker.request().get(path);
        request.header("x-odd", &odd).send().forwarded();
    }
    behaved(&envoy);
}

#[test]
fn odd_answers_to_calls_are_answers_all_the_same() {
    let (envoy, workers) = lived_in();
    let workers = &workers[..1];
    for odd in odd_bytes() {
        let text = String::from_utf8_lossy(&odd).into_owned();
        for answer in [
            Answer::status(200).body(odd.clone()),
            Answer::status(409)
                .header("3scale-rejection-reason", &text)
                .body(odd.clone()),
            Answer::status(403).header(&text, &text).body(odd.clone()),
            Answer::from(tollgate_fake_host::Failure::Reset)
                .body(odd.clone())
                .header(":status", &text),
        ] {
            envoy.advance(seconds(61));
            let stream = get(&workers[0], "mallory").paused();
            workers[0].tick();
            for call in workers[0].calls() {
                workers[0].answer(call.token, answer.clone());
            }
            let status = workers[0].poll(stream).status();
            assert!(matches!(status, Some(403 | 503)), "{status:?}");
        }
    }
    behaved(&envoy);
}

#[test]
fn a_wrong_configuration_is_refused_by_name_and_the_old_one_goes_on() {
    let wrong: [(Value, &str); 14] = [
        (json!({ "services": [] }), "services"),
        (json!({ "services": null }), "services"),
        (json!({ "surprise": 1 }), "surprise"),
        (
            json!({ "service_management": { "cluster": "" } }),
            "service_management.cluster",
        ),
        (
            json!({ "service_management": { "authority": "http://x/" } }),
            "authority",
        ),
        (
            json!({ "service_management": { "timeout": "0s" } }),
            "timeout",
        ),
        (
            json!({ "authorization": { "ttl": 60 } }),
            "authorization.ttl",
        ),
        (
            json!({ "authorization": { "capacity": 7 } }),
            "authorization.capacity",
        ),
        (
            json!({ "authorization": { "unknown": "maybe" } }),
            "authorization.unknown",
        ),
        (
            json!({ "reporting": { "interval": "1ms" } }),
            "reporting.interval",
        ),
        (
            json!({ "reporting": { "batch": 100_000 } }),
            "reporting.batch",
        ),
        (json!({ "unmatched_hosts": "perhaps" }), "unmatched_hosts"),
        (service_with("hosts", json!(["*."])), "services[0].hosts[0]"),
        (
            service_with("token", json!({ "env": "TG_NOT_SET_ANYWHERE" })),
            "services[0].token",
        ),
    ];
    for (changes, field) in wrong {
        let (envoy, worker) = gateway(&plain());
        introduce(&envoy, &worker, "alice", authorized());
        assert!(!worker.configure(&configuration(changes)), "{field}");
        let named = envoy.logs().iter().any(|line| {
            line.level >= LogLevel::Error
                && line.message.contains("configuration refused")
                && line.message.contains(field)
        });
        assert!(named, "{field}: {:?}", envoy.logs());
        get(&worker, "alice").forwarded();
        assert_eq!(worker.tick(), 1, "one root ticks");
    }
}

fn service_with(field: &str, value: Value) -> Value {
    let mut service = service("1001", "api.example.com");
    service[field] = value;
    json!({ "services": [service] })
}

#[test]
fn what_is_no_configuration_at_all_is_refused() {
    for text in [
        "",
        " ",
        "{",
        "null",
        "[]",
        "42",
        "\u{feff}",
        "{}",
        "{\"a\":1}{",
    ] {
        let (envoy, worker) = gateway(&plain());
        assert!(!worker.configure(text), "{text}");
        assert!(
            envoy.logged(LogLevel::Error, "configuration refused"),
            "{text}"
        );
        introduce(&envoy, &worker, "alice", authorized());
    }
}

#[test]
fn a_token_from_the_environment_is_sent_and_never_logged() {
    let changes = service_with("token", json!({ "env": "TG_SCENARIO_TOKEN" }));
    let envoy = envoy().environment("TG_SCENARIO_TOKEN", "from-the-environment");
    let worker = envoy.configured_worker(&configuration(changes));
    get(&worker, "alice").paused();
    assert!(
        worker
            .only_call()
            .path()
            .contains("service_token=from-the-environment")
    );
    assert!(!format!("{:?}", envoy.logs()).contains("from-the-environment"));
}

/// A worker whose old configuration, which has not drained, does not have the new one's
/// host: new.example.com.
fn reconfigured() -> (FakeEnvoy, Worker) {
    let (envoy, worker) = gateway(&plain());
    let services = json!([service("1001", "new.example.com")]);
    assert!(worker.configure(&configuration(json!({ "services": services }))));
    (envoy, worker)
}

/// Its listener is gone, so its calls are made in the ticks of the other one.
#[test]
fn a_newer_configuration_without_ticks_hears_what_becomes_of_its_reports() {
    let (envoy, worker) = gateway(&plain());
    let services = json!([service("1002", "new.example.com")]);
    assert!(worker.configure(&configuration(json!({ "services": services }))));
    let ask = || {
        let request = worker.request().host("new.example.com");
        request.get("/?user_key=alice").send()
    };
    let stream = ask().paused();
    worker.answer(worker.only_call().token, authorized().at(envoy.wall_ms()));
    worker.poll(stream).forwarded();
    ask().forwarded();
    envoy.answer_with(|_| Some(accepted()));
    for _ in 0..120 {
        envoy.advance(Duration::from_secs(1));
        worker.tick_oldest();
    }
    let of_it = |name: &str| envoy.stat(&format!("tollgate.1002.{name}"));
    assert_eq!(of_it("usage_acknowledged"), 2);
    assert_eq!(of_it("usage_resent"), 0);
    assert_eq!(of_it("report_calls"), 1);
    behaved(&envoy);
}

#[test]
fn a_configuration_is_kept_however_often_another_one_ticks() {
    let (envoy, worker) = reconfigured();
    for _ in 0..1_000 {
        envoy.advance(Duration::from_millis(100));
        worker.tick_oldest();
    }
    assert_eq!(
        worker.request().host("new.example.com").send().status(),
        Some(401)
    );
    behaved(&envoy);
}

#[test]
fn a_worker_that_stood_still_for_long_keeps_its_configurations() {
    let (envoy, worker) = reconfigured();
    envoy.advance(Duration::from_secs(3_600));
    worker.tick_oldest();
    assert_eq!(
        worker.request().host("new.example.com").send().status(),
        Some(401)
    );
    behaved(&envoy);
}

#[test]
fn a_request_to_a_configuration_that_has_gone_is_answered_and_not_left_waiting() {
    let (envoy, worker) = reconfigured();
    for _ in 0..610 {
        envoy.advance(Duration::from_secs(1));
        worker.tick_oldest();
    }
    let reply = worker.request().host("new.example.com").send().reply();
    assert_eq!(reply.status, 503);
    assert_eq!(reply.details, "tollgate_misconfigured");
    behaved(&envoy);
}
