//! One question for all workers: nobody asks what another worker is asking, everybody who
//! waits is woken, and nobody waits for ever, whoever dies.

use std::time::{Duration, Instant};

use serde_json::json;
use tollgate::authorization::{Landing, Message};
use tollgate::credentials::Digest;
use tollgate_fake_host::{
    Answer, Failure, FakeEnvoy, Outcome, StreamId, Worker, authorized, error, run_at_once,
};

use crate::support::*;

/// What a question may take by default, and how much longer others wait for it.
const DEADLINE: Duration = seconds(2);

/// The worker whose question is under way.
#[track_caller]
fn asker(workers: &[Worker]) -> usize {
    let asking: Vec<usize> = (0..workers.len())
        .filter(|worker| workers[*worker].calls().iter().any(is_question))
        .collect();
    assert_eq!(asking.len(), 1, "workers that ask: {asking:?}");
    asking[0]
}

/// The first request of each worker, in order: the first worker asks.
fn one_each(workers: &[Worker], key: &str) -> Vec<StreamId> {
    workers
        .iter()
        .map(|worker| get(worker, key).paused())
        .collect()
}

/// The status of each worker's request; `None`: it went on.
fn outcomes(workers: &[Worker], streams: &[StreamId]) -> Vec<Option<u32>> {
    workers
        .iter()
        .zip(streams)
        .map(|(worker, stream)| match worker.poll(*stream) {
            Outcome::Paused(_) => panic!("worker {} still waits", worker.number()),
            decided => decided.status(),
        })
        .collect()
}

fn tick(envoy: &FakeEnvoy, workers: &[Worker], time: Duration) {
    for _ in 0..time.as_secs() {
        envoy.advance(SECOND);
        for worker in workers {
            worker.tick();
        }
    }
}

#[test]
fn ten_thousand_first_requests_over_all_workers_are_one_question() {
    for count in [4, 16] {
        let (envoy, workers) = gateway_of(count, &plain());
        let each = 10_000 / count;
        let streams = run_at_once(&workers, move |worker| {
            (0..each)
                .map(|_| get(worker, "alice").paused())
                .collect::<Vec<_>>()
        });
        let asker = &workers[asker(&workers)];
        let replied = Instant::now();
        asker.answer(asker.only_call().token, authorized().at(envoy.wall_ms()));
        assert_eq!(envoy.queued(), count - 1, "a message to each other worker");
        // Each takes its message out of its queue, and lets everybody go on who waits.
        let took = run_at_once(&workers, move |worker| {
            worker.deliver();
            replied.elapsed()
        });
        for (worker, streams) in workers.iter().zip(&streams) {
            assert_eq!(statuses(worker, streams), vec![None; each]);
            assert_eq!(worker.waiting(), 0);
        }
        println!(
            "10,000 first requests over {count} threads: 1 question, the slowest {:?} after the reply",
            took.iter().max().expect("workers"),
        );
        assert_eq!(stat(&envoy, "authorize_calls"), 1);
        assert_eq!(stat(&envoy, "authorize_shared"), count as u64 - 1);
        let all = (each * count) as u64;
        assert_eq!(stat(&envoy, "requests_admitted"), all);
        assert_eq!(books(&envoy, "hits").admitted, all);
        assert_eq!(envoy.queued(), 0);
        behaved(&envoy);
    }
}

/// Answers come while others still find out who asks.
#[test]
fn however_questions_and_answers_meet_there_is_one_question() {
    for seed in 0..30 {
        let envoy = envoy().seed(seed);
        envoy.collide();
        let workers: Vec<Worker> = (0..6).map(|_| envoy.configured_worker(&plain())).collect();
        let clock = envoy.clone();
        let limited = seed % 2 == 0;
        let admitted = run_at_once(&workers, move |worker| {
            let mut streams = Vec::new();
            let mut admitted = 0;
            let mut patience = 1_000_000;
            for _ in 0..20 {
                for key in ["alice", "bob", "carol"] {
                    match get(worker, key) {
                        Outcome::Paused(stream) => streams.push(stream),
                        decided => admitted += usize::from(decided.continued()),
                    }
                }
            }
            while !streams.is_empty() {
                for call in worker.calls() {
                    let answer = match limited {
                        true => authorized().limit("hits", "day", 50, 0),
                        false => authorized(),
                    };
                    worker.answer(call.token, answer.at(clock.wall_ms()));
                }
                streams.retain(|stream| match worker.poll(*stream) {
                    Outcome::Paused(_) => true,
                    decided => {
                        admitted += usize::from(decided.continued());
                        false
                    }
                });
                patience -= 1;
                assert!(patience > 0, "nobody wakes worker {}", worker.number());
                std::thread::yield_now();
            }
            admitted
        });
        let admitted: usize = admitted.iter().sum();
        assert_eq!(admitted, if limited { 150 } else { 360 }, "seed {seed}");
        assert_eq!(stat(&envoy, "authorize_calls"), 3, "seed {seed}");
        assert_eq!(recorded(&envoy).len(), 3);
        behaved(&envoy);
    }
}

#[test]
fn a_denial_is_for_those_who_wait_on_other_workers_too() {
    let (envoy, workers) = gateway_of(3, &plain());
    let streams = one_each(&workers, "mallory");
    workers[0].answer(workers[0].only_call().token, error(403, "user_key_invalid"));
    assert_eq!(outcomes(&workers, &streams), [Some(403); 3]);
    assert_eq!(stat(&envoy, "requests_denied"), 3);
    assert_eq!(stat(&envoy, "authorize_calls"), 1);
    behaved(&envoy);
}

#[test]
fn a_failure_is_for_all_who_wait_and_the_next_request_asks_once_more() {
    let (envoy, workers) = gateway_of(4, &plain());
    let streams = one_each(&workers, "alice");
    workers[0].answer(workers[0].only_call().token, Failure::ConnectionRefused);
    assert_eq!(outcomes(&workers, &streams), [Some(503); 4]);
    assert_eq!(stat(&envoy, "authorize_failures"), 1);

    let streams = one_each(&workers, "alice");
    let second = &workers[asker(&workers)];
    second.answer(second.only_call().token, authorized().at(envoy.wall_ms()));
    assert_eq!(outcomes(&workers, &streams), [None; 4]);
    assert_eq!(stat(&envoy, "authorize_calls"), 2);
    behaved(&envoy);
}

#[test]
fn whoever_is_let_in_unheard_is_so_on_all_workers() {
    let changes = json!({ "authorization": { "unknown": "allow" } });
    let (envoy, workers) = gateway_of(3, &configuration(changes));
    let streams = one_each(&workers, "alice");
    workers[0].answer(workers[0].only_call().token, Failure::Timeout);
    assert_eq!(outcomes(&workers, &streams), [None; 3]);
    assert_eq!(stat(&envoy, "authorize_calls"), 1);
    assert_eq!(books(&envoy, "hits").pending, 3);
    behaved(&envoy);
}

/// What stands before service management refuses the question, as a firewall does that takes
/// offence at a key.
#[test]
fn a_key_that_makes_the_question_fail_lets_nobody_in_on_any_worker() {
    for answer in [
        Answer::status(403).body("forbidden"),
        Answer::status(200).body("<html>blocked</html>"),
    ] {
        let changes = json!({ "authorization": { "unknown": "allow" } });
        let (envoy, workers) = gateway_of(3, &configuration(changes));
        let streams = one_each(&workers, "' OR 1=1");
        workers[0].answer(workers[0].only_call().token, answer);
        assert_eq!(outcomes(&workers, &streams), [Some(503); 3]);
        assert_eq!(stat(&envoy, "requests_admitted_unknown"), 0);
        assert_eq!(stat(&envoy, "authorize_calls"), 1);
        behaved(&envoy);
    }
}

#[test]
fn when_whoever_asked_dies_one_of_those_who_wait_takes_over() {
    let (envoy, workers) = gateway_of(4, &plain());
    let streams = one_each(&workers, "alice");
    workers[0].restart_vm();
    assert!(workers[0].configure(&plain()));
    let late = get(&workers[0], "alice").paused();
    tick(&envoy, &workers, DEADLINE);
    let taker = &workers[asker(&workers)];
    assert_eq!(stat(&envoy, "authorize_calls"), 2);
    taker.answer(taker.only_call().token, authorized().at(envoy.wall_ms()));
    assert_eq!(outcomes(&workers[1..], &streams[1..]), [None; 3]);
    workers[0].poll(late).forwarded();
    assert_eq!(books(&envoy, "hits").admitted, 4);
    behaved(&envoy);
}

#[test]
fn nobody_waits_for_ever_however_many_die() {
    let (envoy, workers) = gateway_of(4, &plain());
    let streams = one_each(&workers, "alice");
    workers[0].restart_vm();
    tick(&envoy, &workers[1..], DEADLINE);
    assert_eq!(asker(&workers[1..]), 0);
    workers[1].restart_vm();
    tick(&envoy, &workers[2..], DEADLINE);
    // They have waited twice, and it is enough.
    assert_eq!(outcomes(&workers[2..], &streams[2..]), [Some(503); 2]);
    assert_eq!(stat(&envoy, "authorize_calls"), 2);
    introduce(&envoy, &workers[2], "alice", authorized());
    behaved(&envoy);
}

#[test]
fn a_late_answer_is_good_for_whoever_took_over() {
    let (envoy, workers) = gateway_of(3, &plain());
    let streams = one_each(&workers, "alice");
    envoy.advance(DEADLINE);
    workers[1].tick();
    assert_eq!(stat(&envoy, "authorize_calls"), 2);
    workers[0].answer(
        workers[0].only_call().token,
        authorized().at(envoy.wall_ms()),
    );
    workers[0].poll(streams[0]).forwarded();
    workers[1].answer(workers[1].only_call().token, Failure::Timeout);
    // What is known is not forgotten because of it, nor those who wait.
    workers[2].poll(streams[2]);
    get(&workers[2], "alice").forwarded();
    behaved(&envoy);
}

#[test]
fn a_message_to_a_vm_that_died_is_nobodys() {
    let (envoy, workers) = gateway_of(2, &plain());
    one_each(&workers, "alice");
    workers[1].restart_vm();
    assert!(workers[1].configure(&plain()));
    // Context ids start again: this stream has the number of the one that is gone.
    let other = get(&workers[1], "bob").paused();
    workers[0].answer(
        workers[0].only_call().token,
        authorized().at(envoy.wall_ms()),
    );
    workers[1].poll(other).paused();
    let question = workers[1].only_call();
    workers[1].answer(question.token, error(403, "user_key_invalid"));
    assert_eq!(workers[1].poll(other).status(), Some(403));
    behaved(&envoy);
}

#[test]
fn what_is_no_message_to_this_vm_changes_nothing() {
    let (envoy, workers) = gateway_of(2, &plain());
    let streams = one_each(&workers, "alice");
    let mut random = Random(1);
    for length in 0..60 {
        let bytes: Vec<u8> = (0..length)
            .map(|_| random.next().to_le_bytes()[0])
            .collect();
        envoy.post(&bytes);
        envoy.post(&[b"TGw1".as_slice(), &bytes].concat());
        for worker in &workers {
            worker.deliver();
        }
    }
    // Nor does a message about this very question, to whoever listened here before.
    let keys = envoy.shared_keys();
    let value = keys
        .iter()
        .filter(|key| key.get(KIND_AT) == Some(&b'f'))
        .find_map(|key| envoy.shared_data().get(key));
    let (value, _) = value.expect("a question under way");
    let forged = Message {
        owner: 1,
        digest: Digest(value[4..20].try_into().expect("a digest")),
        landing: Landing::Failed,
    };
    envoy.post(&forged.encode());
    for worker in &workers {
        worker.deliver();
    }
    assert_eq!(envoy.queued(), 0);
    workers[1].poll(streams[1]).paused();
    workers[0].answer(
        workers[0].only_call().token,
        authorized().at(envoy.wall_ms()),
    );
    assert_eq!(outcomes(&workers, &streams), [None; 2]);
    behaved(&envoy);
}

#[test]
fn a_stream_that_ended_while_another_worker_asked_is_neither_resumed_nor_counted() {
    let (envoy, workers) = gateway_of(2, &plain());
    let asks = get(&workers[0], "alice").paused();
    let [gone, stays] = [0; 2].map(|_| get(&workers[1], "alice").paused());
    workers[1].end_stream(gone);
    workers[0].end_stream(asks);
    workers[0].answer(
        workers[0].only_call().token,
        authorized().at(envoy.wall_ms()),
    );
    workers[1].poll(stays).forwarded();
    assert_eq!(books(&envoy, "hits").admitted, 1);
    assert_eq!(stat(&envoy, "requests_admitted"), 1);
    behaved(&envoy);
}

#[test]
fn a_message_that_is_lost_costs_a_deadline_and_no_question() {
    let (envoy, workers) = gateway_of(2, &plain());
    let streams = one_each(&workers, "alice");
    envoy.fail_next("proxy_enqueue_shared_queue", 1, 1);
    workers[0].answer(
        workers[0].only_call().token,
        authorized().at(envoy.wall_ms()),
    );
    workers[1].poll(streams[1]).paused();
    tick(&envoy, &workers, DEADLINE);
    workers[1].poll(streams[1]).forwarded();
    assert_eq!(stat(&envoy, "authorize_calls"), 1);
    behaved(&envoy);
}

#[test]
fn more_questions_than_the_table_holds_are_asked_by_each_worker() {
    let (envoy, workers) = gateway_of(2, &plain());
    let keys: Vec<String> = (0..4_000).map(|number| format!("key-{number}")).collect();
    let streams: Vec<[StreamId; 2]> = keys
        .iter()
        .map(|key| [0, 1].map(|worker| get(&workers[worker], key).paused()))
        .collect();
    let shared = stat(&envoy, "authorize_shared");
    assert!((1_500..2_049).contains(&shared), "{shared} shared");
    assert_eq!(stat(&envoy, "authorize_calls"), 8_000 - shared);
    for worker in &workers {
        for call in worker.calls() {
            worker.answer(call.token, error(403, "user_key_invalid"));
        }
    }
    for streams in streams {
        for (worker, stream) in workers.iter().zip(streams) {
            assert_eq!(worker.poll(stream).status(), Some(403));
        }
    }
    behaved(&envoy);
}

#[test]
fn without_queues_each_worker_asks_and_waits_for_itself() {
    let (envoy, workers) = gateway_of(3, &plain());
    without_queues(&envoy);
    let streams = one_each(&workers, "alice");
    for worker in &workers {
        worker.answer(worker.only_call().token, authorized().at(envoy.wall_ms()));
    }
    assert_eq!(outcomes(&workers, &streams), [None; 3]);
    assert_eq!(recorded(&envoy).len(), 1);
    behaved(&envoy);
}

/// A configuration whose service token was rotated is told so; one that has the new token
/// asks for itself.
#[test]
fn what_is_wrong_with_one_configuration_is_asked_again_by_another_but_once() {
    let (envoy, workers) = gateway_of(3, &plain());
    let streams = one_each(&workers, "alice");
    workers[0].answer(
        workers[0].only_call().token,
        error(403, "service_token_invalid"),
    );
    for worker in &workers {
        worker.deliver();
    }
    let second = &workers[asker(&workers)];
    second.answer(second.only_call().token, authorized().at(envoy.wall_ms()));
    assert_eq!(outcomes(&workers, &streams), [Some(503), None, None]);

    let streams = one_each(&workers, "bob");
    for _ in 0..2 {
        let asker = &workers[asker(&workers)];
        asker.answer(asker.only_call().token, error(403, "service_token_invalid"));
        for worker in &workers {
            worker.deliver();
        }
    }
    assert_eq!(outcomes(&workers, &streams), [Some(503); 3]);
    assert_eq!(stat(&envoy, "authorize_calls"), 4);
    behaved(&envoy);
}

#[test]
fn with_no_slot_to_spare_each_worker_asks_for_its_own_requests() {
    let envoy = envoy();
    let size = tollgate::shared_data::Key::new(b'z', 0, 0);
    envoy
        .shared_data()
        .set(size.as_bytes(), b"TGz1\x01\0\0\0", 0);
    let workers: Vec<Worker> = (0..3).map(|_| envoy.configured_worker(&plain())).collect();
    for number in 0..8 {
        introduce(&envoy, &workers[0], &format!("{number}"), authorized());
    }
    let streams = one_each(&workers, "ninth");
    let answer = |worker: &Worker| {
        let question = worker.calls().into_iter().find(is_question);
        let token = question.expect("each asks").token;
        worker.answer(token, authorized().at(envoy.wall_ms()));
    };
    answer(&workers[0]);
    for worker in &workers[1..] {
        worker.deliver();
    }
    workers[1..].iter().for_each(answer);
    assert_eq!(outcomes(&workers, &streams), [None; 3]);
    assert_eq!(stat(&envoy, "requests_uncached"), 3);
    behaved(&envoy);
}

#[test]
fn workers_that_come_and_go_leave_no_queues_and_no_keys_behind() {
    let (envoy, workers) = gateway_of(2, &plain());
    let mut known = 0;
    for number in 0..200 {
        let key = format!("key-{number}");
        one_each(&workers, &key);
        workers[0].answer(workers[0].only_call().token, error(403, "user_key_invalid"));
        workers[1].deliver();
        workers[1].restart_vm();
        assert!(workers[1].configure(&plain()));
        envoy.canary(&workers[0], &plain());
        tick(&envoy, &workers, seconds(30));
        let mailboxes = envoy.shared_keys();
        let mailboxes = mailboxes
            .iter()
            .filter(|key| key.get(KIND_AT) == Some(&b'q'));
        known = mailboxes.count();
    }
    assert!((2..10).contains(&known), "{known} names of queues");
    assert_eq!(envoy.queued(), 0);
    behaved(&envoy);
}

#[test]
fn a_refresh_is_asked_for_once_whoever_leads() {
    // Both configurations are at work, and the newer one takes over while the older asks.
    let (envoy, workers) = gateway_of(2, &plain());
    introduce(&envoy, &workers[0], "alice", authorized());
    workers[0].tick();
    workers[0].answer_all(|_| tollgate_fake_host::accepted());
    envoy.advance(seconds(61));
    get(&workers[0], "alice").forwarded();
    workers[0].tick();
    assert_eq!(questions(&workers[0].calls()), ["alice"]);
    assert!(workers[1].configure(&plain()));
    for _ in 0..60 {
        workers[1].tick();
    }
    get(&workers[1], "alice").forwarded();
    workers[1].tick();
    assert_eq!(questions(&workers[1].calls()), Vec::<String>::new());

    for call in workers[0].calls().into_iter().filter(is_question) {
        workers[0].answer(call.token, authorized().at(envoy.wall_ms()));
    }
    for _ in 0..60 {
        workers[1].tick();
    }
    assert_eq!(stat(&envoy, "refresh_calls"), 1);
    behaved(&envoy);
}

#[test]
fn whoever_comes_while_a_refresh_is_under_way_waits_for_it() {
    let changes = json!({ "authorization": { "ttl": "60s", "stale_if_error": "10s" } });
    let (envoy, workers) = gateway_of(2, &configuration(changes));
    introduce(&envoy, &workers[0], "alice", authorized());
    workers[0].tick();
    envoy.advance(seconds(69));
    get(&workers[0], "alice").forwarded();
    workers[0].tick();
    let question = workers[0].calls().into_iter().find(is_question);
    envoy.advance(SECOND);
    let streams = one_each(&workers, "alice");
    let token = question.expect("a refresh").token;
    workers[0].answer(token, authorized().at(envoy.wall_ms()));
    assert_eq!(outcomes(&workers, &streams), [None; 2]);
    assert_eq!(stat(&envoy, "authorize_calls"), 1);
    assert_eq!(stat(&envoy, "refresh_calls"), 1);
    behaved(&envoy);
}

/// An application in use: its first question, and then one for each three quarters of `ttl`.
#[test]
fn an_application_in_use_on_all_workers_is_asked_about_at_most_twice_in_any_ttl() {
    let (envoy, workers) = gateway_of(4, &plain());
    let mut backend = Backend::knows(&["alice"]);
    let mut asked = Vec::new();
    for second in 0..600 {
        for worker in &workers {
            if let Outcome::Paused(stream) = get(worker, "alice") {
                for call in worker.calls() {
                    asked.push(second);
                    worker.answer(call.token, backend.answer(&call, envoy.wall_ms()));
                }
                worker.poll(stream).forwarded();
            }
        }
        // Whoever leads dies now and then.
        if second % 100 == 43 {
            let worker = &workers[second / 100 % 4];
            worker.restart_vm();
            assert!(worker.configure(&plain()));
        }
        let calls = pass_time(&envoy, &workers, SECOND, |call| {
            Some(backend.answer(call, envoy.wall_ms()))
        });
        asked.extend(questions(&calls).iter().map(|_| second));
    }
    for window in asked.windows(3) {
        assert!(window[2] - window[0] >= 60, "asked at {asked:?}");
    }
    assert!(asked.len() >= 10, "{asked:?}");
    assert_eq!(stat(&envoy, "requests_admitted_stale"), 0);
    behaved(&envoy);
}
