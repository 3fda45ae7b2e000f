//! Keys that nobody knows, faster than anybody could be asked about them, and a service
//! management that keeps failing: what it costs, and whom it does not concern.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::json;
use tollgate_fake_host::{
    Call, Failure, FakeEnvoy, LogLevel, Outcome, Worker, accepted, authorized, error,
};

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

/// This process's resident memory in MiB.
fn resident_mib() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = pages
        .split(' ')
        .nth(1)
        .and_then(|it| it.parse::<u64>().ok());
    pages.unwrap_or(0) * 4_096 / 1_048_576
}

/// Random keys at 50,000 a second while customers go on, and every customer's usage waits: nobody
/// takes their reports until the flood is over.
fn random_keys_at_full_speed(keys: u64) {
    const WORKERS: u64 = 4;
    const CUSTOMERS: usize = 200;
    const PER_SECOND: u64 = 100;
    let changes = json!({
        "authorization": { "capacity": 1_024, "unknown_calls_per_second": PER_SECOND },
    });
    let envoy = envoy().log_level(LogLevel::Warn);
    let workers: Vec<_> = (0..WORKERS)
        .map(|_| envoy.configured_worker(&configuration(changes.clone())))
        .collect();
    let customers: Vec<String> = (0..CUSTOMERS).map(|it| format!("customer-{it}")).collect();
    for (number, customer) in customers.iter().enumerate() {
        introduce(
            &envoy,
            &workers[number % workers.len()],
            customer,
            authorized(),
        );
    }
    let mut random = Random(7);
    let mut used = CUSTOMERS as u64;
    let mut half = (0, 0);
    let before = resident_mib();
    let rounds = keys / (WORKERS * 2_500);
    for round in 0..rounds {
        for worker in &workers {
            let mut asked = Vec::new();
            for _ in 0..2_500 {
                match get(worker, &format!("{:x}", random.next())) {
                    Outcome::Paused(stream) => asked.push(stream),
                    outcome => assert_eq!(outcome.status(), Some(503), "a stranger"),
                }
            }
            let customer: &String = random.one_of(&customers);
            get(worker, customer).forwarded();
            used += 1;
            worker.answer_all(|call| match is_question(call) {
                true if key_of(call).starts_with("customer") => authorized().at(envoy.wall_ms()),
                true => error(403, "user_key_invalid"),
                false => Failure::ConnectionRefused.into(),
            });
            let told = statuses(worker, &asked);
            assert!(told.iter().all(|status| *status == Some(403)), "{told:?}");
        }
        envoy.advance(Duration::from_millis(200));
        if round % 5 == 4 {
            for worker in &workers {
                worker.tick();
            }
        }
        if round == rounds / 2 {
            half = (envoy.shared_keys().len(), resident_mib());
        }
    }
    let asked = stat(&envoy, "authorize_calls");
    let took = rounds / 5 + 1;
    let shared = envoy.shared_keys().len();
    println!(
        "{keys} random keys on {WORKERS} workers: {asked} questions in {took} s, memory {before} MiB before, {} half way, {} after; {} keys of shared data half way, {shared} after",
        half.1,
        resident_mib(),
        half.0,
    );
    assert!(
        asked <= CUSTOMERS as u64 + PER_SECOND * (10 + took),
        "{asked} questions"
    );
    // 2,048 slots, half as many places for strangers, those of questions, and what there is once.
    assert!(shared <= 2_048 + 1_024 + 256 + 16, "{shared} keys");
    assert_eq!(recorded(&envoy), customers.iter().cloned().collect());
    let books = books(&envoy, "hits");
    assert_eq!((books.admitted, books.lost), (used, 0));
    assert_eq!(books.pending + books.in_flight, used, "nothing was taken");
    for customer in &customers {
        get(&workers[0], customer).forwarded();
    }
    // And everything arrives.
    let mut backend = Backend::knows(&customers.iter().map(String::as_str).collect::<Vec<_>>());
    pass_time(&envoy, &workers, seconds(180), |call| {
        Some(backend.answer(call, envoy.wall_ms()))
    });
    used += CUSTOMERS as u64;
    assert_eq!(usage_of(&backend.reports, "hits"), used);
    assert_eq!(stat(&envoy, "requests_uncached"), 0);
    behaved(&envoy);
}

#[test]
fn a_flood_takes_no_memory_no_calls_beyond_the_budget_and_nobodys_usage() {
    random_keys_at_full_speed(20_000);
}

#[test]
#[ignore = "takes minutes and a release build: --profile measured -- --ignored full_size"]
fn full_size_a_flood_takes_no_memory_no_calls_beyond_the_budget_and_nobodys_usage() {
    random_keys_at_full_speed(5_000_000);
}

/// With `unknown: allow` strangers do get records while nobody answers: but not in place of
/// customers whose usage waits.
#[test]
fn whoever_is_let_in_unheard_takes_no_place_from_usage_that_waits() {
    let changes = json!({ "authorization": { "unknown": "allow", "capacity": 32 } });
    let (envoy, worker) = gateway(&configuration(changes));
    let customers: Vec<String> = (0..20).map(|it| format!("customer-{it}")).collect();
    for customer in &customers {
        introduce(&envoy, &worker, customer, authorized());
    }
    let mut let_in = 0;
    for number in 0..2_000 {
        let outcome = match get(&worker, &format!("stranger-{number}")) {
            Outcome::Paused(stream) => {
                worker.answer_all(|_| Failure::Timeout);
                worker.poll(stream)
            }
            decided => decided,
        };
        let_in += u64::from(outcome.continued());
        envoy.advance(Duration::from_millis(20));
    }
    // As many as find room: what they used waits as well.
    assert!((44..=64).contains(&let_in), "{let_in} were let in");
    let recorded = recorded(&envoy);
    for customer in &customers {
        assert!(recorded.contains(customer), "{customer} was pushed out");
    }
    let of_customers: u64 = records(&envoy)
        .iter()
        .filter(|(_, record)| record.identity.starts_with(b"customer"))
        .flat_map(|(_, record)| record.accounts())
        .map(|(_, _, pending, in_flight)| pending + in_flight)
        .sum();
    assert_eq!(of_customers, 20);
    behaved(&envoy);
}

/// The sets of eight slots that these applications' records stand in, in a process of its own.
fn sets_of(seed: u64, keys: &[String]) -> Vec<(u32, String)> {
    let envoy = envoy().seed(seed);
    let changes = json!({ "authorization": { "capacity": 1_024 } });
    let worker = envoy.configured_worker(&configuration(changes));
    for key in keys {
        introduce(&envoy, &worker, key, authorized());
    }
    let records = records(&envoy).into_iter();
    records
        .map(|(slot, record)| {
            (
                slot.0 / 8,
                String::from_utf8(record.identity).expect("text"),
            )
        })
        .collect()
}

/// Whoever knows the code, the scope and all credentials, and could try as many as he likes in a
/// process of his own, finds credentials that fill sets there, and nowhere else: the key of the
/// digests is drawn by each process, and leaves it in no form.
#[test]
fn credentials_that_share_a_set_in_one_process_share_none_in_another() {
    let keys: Vec<String> = (0..700).map(|number| format!("key-{number}")).collect();
    let mut by_set: BTreeMap<u32, Vec<String>> = BTreeMap::new();
    for (set, key) in sets_of(1, &keys) {
        by_set.entry(set).or_default().push(key);
    }
    let full = by_set.into_values().filter(|keys| keys.len() >= 5).take(12);
    let chosen: Vec<String> = full.flatten().collect();
    assert!(chosen.len() >= 60, "twelve sets with five or more");
    let distinct = |seed| {
        let sets: BTreeSet<u32> = sets_of(seed, &chosen).iter().map(|(set, _)| *set).collect();
        sets.len()
    };
    assert_eq!(distinct(1), 12, "with the same key they collide again");
    for seed in 2..6 {
        // At random 64 fall on some 57 of 256 sets.
        let sets = distinct(seed);
        assert!(sets >= 45, "{sets} sets with another key");
    }
}

/// Applications that were away for long are asked about as those are whom nobody knows.
#[test]
fn a_flood_does_not_keep_out_customers_who_come_back() {
    let (envoy, workers) = with_budget(2, 10);
    let customers: Vec<String> = (0..15).map(|it| format!("customer-{it}")).collect();
    for customer in &customers {
        introduce(&envoy, &workers[0], customer, authorized());
    }
    let backend = |call: &Call| match is_question(call) {
        true if key_of(call).starts_with("customer") => authorized().at(FakeEnvoy::START_MS),
        true => error(403, "user_key_invalid"),
        false => accepted(),
    };
    pass_time(&envoy, &workers, seconds(60), |call| Some(backend(call)));
    // Longer than `ttl` and `stale_if_error`.
    envoy.advance(seconds(1_000));
    for second in 0..10 {
        for worker in &workers {
            for number in 0..200 {
                get(worker, &format!("stranger-{second}-{number}"));
            }
        }
        assert_eq!(
            get(&workers[0], "stranger").status(),
            Some(503),
            "the flood has taken all"
        );
        for (number, customer) in customers.iter().enumerate() {
            // Some come each second, and later once more, known by then.
            if number % 10 <= second {
                let worker = &workers[number % 2];
                let outcome = match get(worker, customer) {
                    Outcome::Paused(stream) => {
                        worker.answer_all(backend);
                        worker.poll(stream)
                    }
                    decided => decided,
                };
                assert!(outcome.continued(), "{customer}: {:?}", outcome.status());
            }
        }
        for worker in &workers {
            worker.answer_all(backend);
        }
        envoy.advance(SECOND);
    }
    let asked = stat(&envoy, "authorize_calls");
    assert!(asked <= 15 + 10 * (12 + 10), "{asked} questions");
    behaved(&envoy);
}

/// Whoever was let in unheard, or denied, was never known.
#[test]
fn what_is_kept_for_customers_is_not_for_strangers_with_a_record() {
    let changes = json!({
        "authorization": { "unknown": "allow", "unknown_calls_per_second": 1, "negative_ttl": "1s" },
    });
    let (envoy, worker) = gateway(&configuration(changes));
    for number in 0..10 {
        let outcome = match get(&worker, &format!("unheard-{number}")) {
            Outcome::Paused(stream) => {
                worker.answer_all(|_| Failure::Timeout);
                worker.poll(stream)
            }
            decided => decided,
        };
        assert!(outcome.continued());
    }
    envoy.advance(seconds(30));
    let probe = get(&worker, "unheard-0").paused();
    worker.answer_all(|_| error(403, "user_key_invalid"));
    assert_eq!(worker.poll(probe).status(), Some(403));
    // Service management is back, and the bucket has ten.
    let mut refused = 0;
    for number in 0..20 {
        get(&worker, &format!("stranger-{number}"));
    }
    for number in 1..10 {
        let outcome = get(&worker, &format!("unheard-{number}"));
        refused += u64::from(outcome.status() == Some(503));
    }
    assert_eq!(refused, 9);
    behaved(&envoy);
}
