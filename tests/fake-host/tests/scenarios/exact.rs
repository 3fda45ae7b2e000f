//! A limit holds to the unit, however many threads ask for it at once and whatever else
//! is done to its record meanwhile.
//!
//! The full size takes a release build:
//! `cargo test --profile measured -p tollgate-fake-host --test scenarios -- --ignored full_size`

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::json;
use tollgate_fake_host::{
    Call, Failure, FakeEnvoy, Report, Worker, accepted, authorized, run_at_once,
};

use crate::support::*;

const THREADS: usize = 16;
const LIMIT: u64 = 1_000;
const WINDOWS: u64 = 5;

/// All threads ask for what one application may have, as often altogether as `requests` says.
fn rush(requests: usize, round: u64) {
    let envoy = envoy()
        .seed(round)
        .log_level(tollgate_fake_host::LogLevel::Warn);
    let workers: Vec<_> = (0..THREADS)
        .map(|_| envoy.configured_worker(&plain()))
        .collect();
    if round.is_multiple_of(2) {
        envoy.collide();
    }
    let plan = authorized().limit("hits", "day", LIMIT, 0);
    introduce(&envoy, &workers[0], "alice", plan);
    let each = requests / THREADS;
    let outcomes = run_at_once(&workers, move |worker| {
        let mut counts = [0_u64; 3];
        for _ in 0..each {
            let outcome = get(worker, "alice");
            let index = match outcome.status() {
                None if outcome.continued() => 0,
                Some(429) => 1,
                // Lost too many races: nobody knows, so nobody is let in.
                Some(503) => 2,
                _ => panic!("{outcome:?}"),
            };
            counts[index] += 1;
        }
        counts
    });
    let sum = |index: usize| outcomes.iter().map(|counts| counts[index]).sum::<u64>();
    println!(
        "round {round}: {} requests on {THREADS} threads, {} admitted, {} refused, {} contended",
        each * THREADS + 1,
        sum(0) + 1,
        sum(1),
        sum(2),
    );
    assert_eq!(sum(0) + 1, LIMIT, "round {round}");
    let books = books(&envoy, "hits");
    assert_eq!((books.admitted, books.pending), (LIMIT, LIMIT));
    behaved(&envoy);
}

#[test]
fn sixteen_threads_get_exactly_what_a_limit_allows() {
    for round in 0..2 {
        rush(16_000, round);
    }
}

#[test]
#[ignore = "takes a minute and a release build: see the module's text"]
fn full_size_sixteen_threads_get_exactly_what_a_limit_allows() {
    for round in 0..20 {
        rush(1_000_000, round);
    }
}

/// What service management has: usage by minute, applied as soon as it is taken.
#[derive(Default)]
struct Minutes(Mutex<BTreeMap<u64, u64>>);

impl Minutes {
    fn apply(&self, call: &Call) {
        for transaction in Report::parse(&call.body).transactions.values() {
            let at: u64 = transaction
                .timestamp
                .as_ref()
                .expect("a time")
                .parse()
                .expect("seconds");
            *self.0.lock().expect("unpoisoned").entry(at).or_default() += transaction.usage["hits"];
        }
    }

    fn of(&self, wall_ms: u64) -> u64 {
        let minute = wall_ms / 60_000 * 60;
        *self
            .0
            .lock()
            .expect("unpoisoned")
            .entry(minute)
            .or_default()
    }
}

/// The leader's and everybody else's work in the middle of the rush: a second passes,
/// everything that was asked is answered, reports also by failures.
fn work(envoy: &FakeEnvoy, worker: &Worker, minutes: &Minutes, failures: &AtomicU64) {
    worker.tick();
    for call in worker.calls() {
        if is_question(&call) {
            let now = envoy.wall_ms();
            let plan = authorized().limit("hits", "minute", LIMIT, minutes.of(now));
            worker.answer(call.token, plan.at(now));
        } else if failures.fetch_add(1, Ordering::SeqCst) % 3 == 2 {
            worker.answer(call.token, Failure::ConnectionRefused);
        } else {
            minutes.apply(&call);
            worker.answer(call.token, accepted());
        }
    }
}

/// The same with windows that end, refreshes and reports in the middle of it: so many requests, and
/// as many more as it takes until all windows are over. A second passes after each so many
/// requests, unless a thread stands still, so every window but the last, which is over when its
/// first second has begun, has many times the requests that it admits, however slow the machine is.
fn rush_over_windows(requests: u64, round: u64) {
    let envoy = envoy()
        .seed(round)
        .log_level(tollgate_fake_host::LogLevel::Warn);
    let changes = json!({
        "authorization": { "ttl": "3s", "stale_if_error": "1h" },
        // A thread that stands still with a report must not have it taken for lost.
        "reporting": { "interval": "1s", "timeout": "60s" },
    });
    let configuration = configuration(changes);
    let workers: Vec<_> = (0..THREADS)
        .map(|_| envoy.configured_worker(&configuration))
        .collect();
    if round.is_multiple_of(2) {
        envoy.collide();
    }
    introduce(
        &envoy,
        &workers[0],
        "alice",
        authorized().limit("hits", "minute", LIMIT, 0),
    );
    let minutes = Arc::new(Minutes::default());
    let (clock, applied) = (envoy.clone(), Arc::clone(&minutes));
    let failures = AtomicU64::new(0);
    // With a tick of somebody in each second of the windows.
    let every = (requests / (WINDOWS * 60)).max(1);
    assert!(every * 60 > 2 * LIMIT, "a window must be used up");
    let end = (envoy.wall_ms() / 60_000 + WINDOWS) * 60_000;
    let sent = AtomicU64::new(0);
    // When each thread began its request: time does not fly while one stands still.
    let begun: Vec<_> = (0..THREADS)
        .map(|_| AtomicU64::new(clock.wall_ms()))
        .collect();
    let admitted: u64 = run_at_once(&workers, move |worker| {
        let mut admitted = 0;
        loop {
            let number = sent.fetch_add(1, Ordering::SeqCst);
            if number >= requests && clock.wall_ms() >= end {
                break;
            }
            begun[worker.number()].store(clock.wall_ms(), Ordering::SeqCst);
            admitted += u64::from(get(worker, "alice").continued());
            if number.is_multiple_of(every) {
                let oldest = begun.iter().map(|at| at.load(Ordering::SeqCst)).min();
                let now = clock.wall_ms();
                if now < end && oldest.is_none_or(|at| at.saturating_add(30_000) > now) {
                    clock.advance(SECOND);
                }
                work(&clock, worker, &applied, &failures);
            } else if worker.calls().len() > 1 {
                work(&clock, worker, &applied, &failures);
            }
        }
        begun[worker.number()].store(u64::MAX, Ordering::SeqCst);
        work(&clock, worker, &applied, &failures);
        admitted
    })
    .iter()
    .sum();
    // Then everything is delivered.
    pass_time(&envoy, &workers, seconds(200), |call| {
        if is_report(call) {
            minutes.apply(call);
            return Some(accepted());
        }
        let now = envoy.wall_ms();
        Some(
            authorized()
                .limit("hits", "minute", LIMIT, minutes.of(now))
                .at(now),
        )
    });
    let books = books(&envoy, "hits");
    let by_minute = minutes.0.lock().expect("unpoisoned");
    println!(
        "round {round}: {admitted} admitted; by minute {:?}",
        by_minute.values()
    );
    assert_eq!((books.admitted, books.lost), (admitted + 1, 0));
    assert_eq!(books.acknowledged, admitted + 1);
    assert_eq!(by_minute.values().sum::<u64>(), admitted + 1);
    assert!(
        by_minute.values().all(|units| *units <= LIMIT),
        "over: {by_minute:?}"
    );
    let full: Vec<_> = by_minute.values().take(WINDOWS as usize).collect();
    assert_eq!(full, [&LIMIT; WINDOWS as usize], "{by_minute:?}");
    behaved(&envoy);
}

#[test]
fn no_window_is_overrun_while_windows_end_and_reports_and_answers_come() {
    for round in 0..2 {
        rush_over_windows(24_000, round);
    }
}

#[test]
#[ignore = "takes a minute and a release build: see the module's text"]
fn full_size_no_window_is_overrun_while_windows_end_and_reports_and_answers_come() {
    for round in 0..20 {
        rush_over_windows(1_000_000, round);
    }
}
