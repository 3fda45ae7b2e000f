//! Ticks do bounded work, however much there is: they hold up their worker's requests.
//!
//! The full size takes a release build, and prints how long the longest tick was:
//! `cargo test --profile measured -p tollgate-fake-host --test scenarios -- --ignored --nocapture
//! --test-threads=1 ticks::full_size`

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tollgate_fake_host::{FakeEnvoy, LogLevel, Report, Worker, accepted, authorized};

use crate::support::*;

/// The longest of several callbacks.
#[derive(Default)]
struct Longest(Duration);

impl Longest {
    fn of<R>(&mut self, callback: impl FnOnce() -> R) -> R {
        let begun = Instant::now();
        let result = callback();
        self.0 = self.0.max(begun.elapsed());
        result
    }
}

fn quiet_gateway(configuration: &str) -> (FakeEnvoy, Worker) {
    let envoy = envoy().log_level(LogLevel::Warn);
    let worker = envoy.configured_worker(configuration);
    (envoy, worker)
}

/// What it took to report everything.
#[derive(Default)]
struct Flushed {
    units: u64,
    transactions: usize,
    reports: usize,
    ticks: u32,
    /// Of these, until the last report.
    busy_ticks: u32,
    longest_tick: Longest,
    longest_answer: Longest,
}

/// Ticks and answers every call, until nothing more is reported for some ticks.
fn flush(envoy: &FakeEnvoy, worker: &Worker) -> Flushed {
    let mut flushed = Flushed::default();
    let mut idle = Duration::ZERO;
    let period = Duration::from_millis(worker.tick_period_ms().into());
    while idle < seconds(25) {
        envoy.advance(period);
        flushed.longest_tick.of(|| worker.tick());
        flushed.ticks += 1;
        idle += period;
        while let Some(call) = worker.calls().into_iter().next() {
            let answer = if is_report(&call) {
                let report = Report::parse(&call.body);
                flushed.transactions += report.transactions.len();
                flushed.units += usage_of(&[report], "hits");
                flushed.reports += 1;
                idle = Duration::ZERO;
                flushed.busy_ticks = flushed.ticks;
                accepted()
            } else {
                authorized().at(envoy.wall_ms())
            };
            let longest = &mut flushed.longest_answer;
            longest.of(|| worker.answer(call.token, answer));
        }
    }
    flushed
}

/// So many applications with a hit each are reported, in so large a table.
fn applications(count: u64, capacity: u64) {
    let authorization = json!({ "capacity": capacity, "ttl": "1h" });
    let (envoy, worker) = quiet_gateway(&configuration(json!({ "authorization": authorization })));
    let mut direct = 0;
    for number in 0..count {
        let key = format!("key-{number}");
        let stream = get(&worker, &key).paused();
        worker.answer(worker.only_call().token, authorized().at(envoy.wall_ms()));
        worker.poll(stream).forwarded();
        // If its set was full, it is reported at once.
        direct += worker.answer_all(|_| accepted()).len();
    }
    let admitted = count - direct as u64;
    let flushed = flush(&envoy, &worker);
    println!(
        "{count} applications, capacity {capacity}: {} units in {} transactions and {} reports over \
         {} ticks; longest tick {:?}, longest answer {:?}; {direct} had no slot",
        flushed.units,
        flushed.transactions,
        flushed.reports,
        flushed.busy_ticks,
        flushed.longest_tick.0,
        flushed.longest_answer.0,
    );
    assert_eq!(flushed.units, admitted);
    let books = books(&envoy, "hits");
    assert_eq!(
        (books.acknowledged, books.pending, books.in_flight),
        (admitted, 0, 0)
    );
    behaved(&envoy);
}

#[test]
fn a_tick_that_only_hurries_looks_at_a_hundred_services_however_many_share_limits() {
    let reads_of_a_tick = |count: usize| {
        let all: Vec<Value> = (0..count)
            .map(|number| service(&number.to_string(), &format!("{number}.example.com")))
            .collect();
        let (envoy, worker) = quiet_gateway(&configuration(
            json!({ "services": all, "authorization": { "gateways": 2 } }),
        ));
        for _ in 0..100 {
            envoy.advance(Duration::from_millis(100));
            worker.tick();
        }
        // The next does not come when all is due that is done once a second.
        envoy.advance(Duration::from_millis(1));
        let before = envoy.shared_data_reads();
        worker.tick();
        envoy.shared_data_reads() - before
    };
    let of_a_hundred = reads_of_a_tick(100);
    assert!(of_a_hundred >= 100, "{of_a_hundred}");
    assert_eq!(reads_of_a_tick(400), of_a_hundred);
}

/// So many services, of which each has one application with a hit, in so large a table.
fn services(count: usize, capacity: u64) {
    let all: Vec<Value> = (0..count)
        .map(|number| service(&number.to_string(), &format!("{number}.example.com")))
        .collect();
    let authorization = json!({ "capacity": capacity, "ttl": "1h" });
    let (envoy, worker) = quiet_gateway(&configuration(
        json!({ "services": all, "authorization": authorization }),
    ));
    let mut idle = Longest::default();
    worker.tick();
    let period = Duration::from_millis(worker.tick_period_ms().into());
    for _ in 0..200 {
        envoy.advance(period);
        idle.of(|| worker.tick());
    }
    for number in 0..count {
        let request = worker.request().get("/?user_key=alice");
        let stream = request
            .host(format!("{number}.example.com"))
            .send()
            .paused();
        worker.answer(worker.only_call().token, authorized().at(envoy.wall_ms()));
        worker.poll(stream).forwarded();
    }
    let flushed = flush(&envoy, &worker);
    println!(
        "{count} services, capacity {capacity}, a tick every {period:?}: longest tick {:?} without \
         traffic; {} units in {} reports over {} ticks, longest tick {:?}, longest answer {:?}",
        idle.0,
        flushed.units,
        flushed.reports,
        flushed.busy_ticks,
        flushed.longest_tick.0,
        flushed.longest_answer.0,
    );
    assert_eq!(flushed.units, count as u64);
    behaved(&envoy);
}

#[test]
fn thousands_of_applications_with_pending_usage_are_flushed_completely() {
    applications(5_000, 50_000);
}

#[test]
fn many_services_are_flushed_completely() {
    services(50, 50_000);
}

#[test]
fn a_tick_looks_after_a_hundred_services_at_most_and_each_has_its_turn_once_a_second() {
    let all: Vec<Value> = (0..250)
        .map(|number| service(&number.to_string(), &format!("{number}.example.com")))
        .collect();
    let (envoy, worker) = quiet_gateway(&configuration(json!({
        "services": all, "authorization": { "capacity": 1_024 },
    })));
    assert_eq!(worker.tick_period_ms(), 333);
    let period = Duration::from_millis(333);
    for number in 0..250 {
        let request = worker.request().get("/?user_key=alice");
        let stream = request
            .host(format!("{number}.example.com"))
            .send()
            .paused();
        worker.answer(worker.only_call().token, authorized().at(envoy.wall_ms()));
        worker.poll(stream).forwarded();
    }
    let mut reported = Vec::new();
    for _ in 0..3 {
        envoy.advance(period);
        worker.tick();
        // Unanswered calls would hold the next ones back.
        let calls = worker.answer_all(|_| accepted());
        reported.push(reports(&calls).len());
    }
    assert_eq!(reported, [100, 100, 50]);
    // Nothing is done twice, and with their interval over all have their turn again.
    for number in 0..250 {
        let request = worker.request().get("/?user_key=alice");
        let request = request.host(format!("{number}.example.com"));
        request.send().forwarded();
    }
    let mut calls = Vec::new();
    for _ in 0..33 {
        envoy.advance(period);
        worker.tick();
        calls.extend(worker.answer_all(|_| accepted()));
    }
    assert_eq!(reports(&calls).len(), 250);
    behaved(&envoy);
}

#[test]
fn calls_that_nobody_waits_for_leave_room_below_envoys_circuit_breaker() {
    let all: Vec<Value> = (0..100)
        .map(|number| service(&number.to_string(), &format!("{number}.example.com")))
        .collect();
    let (envoy, worker) = quiet_gateway(&configuration(json!({
        "services": all, "authorization": { "capacity": 4_096 }, "reporting": { "batch": 1 },
    })));
    for number in 0..100 {
        for key in 0..6 {
            let request = worker.request().get(format!("/?user_key=key-{key}"));
            let host = format!("{number}.example.com");
            let stream = request.host(&host).send().paused();
            worker.answer(worker.only_call().token, authorized().at(envoy.wall_ms()));
            worker.poll(stream).forwarded();
        }
    }
    // Nobody answers.
    for _ in 0..20 {
        envoy.advance(Duration::from_millis(100));
        worker.tick();
        let calls = worker.calls().len();
        assert!((1..=164).contains(&calls), "{calls} calls");
    }
    let mut units = 0;
    for _ in 0..60 {
        let calls = worker.answer_all(|call| {
            if is_report(call) {
                return accepted();
            }
            authorized().at(envoy.wall_ms())
        });
        units += usage_of(&reports(&calls), "hits");
        envoy.advance(SECOND);
        worker.tick();
    }
    assert_eq!(units, 600);
    behaved(&envoy);
}

#[test]
#[ignore = "takes a release build"]
fn full_size() {
    applications(50_000, 100_000);
    applications(50_000, 1_000_000);
    services(1_000, 16_384);
    services(1_000, 100_000);
}
