//! A record that this VM wrote last is changed without being read, if nobody else has
//! changed it: a request is then one host call less.

use std::time::Duration;

use tollgate_fake_host::{FakeEnvoy, Worker, authorized, run_at_once};

use crate::support::*;

/// Any status that is not one of those that mean something for a read.
const REFUSED: u32 = 10;

/// A worker that knows where the counter of tokens stands, and wrote alice's record last.
fn ready(envoy: &FakeEnvoy, worker: &Worker) {
    for _ in 0..2 {
        assert!(get(worker, "alice").continued());
        envoy.advance(Duration::from_secs(1));
        worker.tick();
    }
    assert!(get(worker, "alice").continued());
}

fn known(workers: usize) -> (FakeEnvoy, Vec<Worker>) {
    let (envoy, workers) = gateway_of(workers, &plain());
    introduce(
        &envoy,
        &workers[0],
        "alice",
        authorized().limit("hits", "day", 1_000, 0),
    );
    for worker in &workers {
        assert!(get(worker, "alice").continued());
    }
    (envoy, workers)
}

fn without_reads(envoy: &FakeEnvoy, times: usize) {
    envoy.fail_next("proxy_get_shared_data", REFUSED, times);
}

#[test]
fn a_worker_alone_admits_what_it_wrote_last_without_reading_it() {
    let (envoy, workers) = known(1);
    ready(&envoy, &workers[0]);
    without_reads(&envoy, usize::MAX);
    for _ in 0..100 {
        assert!(get(&workers[0], "alice").continued());
    }
    without_reads(&envoy, 0);
    assert_eq!(books(&envoy, "hits").admitted, 105);
    behaved(&envoy);
}

#[test]
fn what_another_worker_has_changed_is_read_again() {
    let (envoy, workers) = known(2);
    ready(&envoy, &workers[0]);
    for round in 0..50 {
        assert!(get(&workers[round % 2], "alice").continued());
        assert!(get(&workers[0], "alice").continued());
    }
    assert_eq!(books(&envoy, "hits").admitted, 3 + 3 + 100);
    behaved(&envoy);
}

#[test]
fn a_change_between_look_and_write_is_never_overwritten() {
    let (envoy, workers) = known(2);
    ready(&envoy, &workers[0]);
    for _ in 0..20 {
        let other = workers[1].clone();
        envoy.interleave(move || assert!(get(&other, "alice").continued()));
        assert!(get(&workers[0], "alice").continued());
    }
    assert_eq!(books(&envoy, "hits").admitted, 3 + 3 + 40);
}

#[test]
fn the_counter_of_tokens_may_come_around() {
    let (envoy, workers) = known(2);
    for start in [u32::MAX - 7, u32::MAX - 2, u32::MAX] {
        envoy.set_next_cas(start);
        ready(&envoy, &workers[0]);
        for worker in [0, 0, 0, 1, 0, 1, 1, 0] {
            assert!(get(&workers[worker], "alice").continued());
        }
    }
    assert_eq!(books(&envoy, "hits").admitted, 3 + 3 * (3 + 8));
}

#[test]
fn workers_that_guess_admit_exactly_what_a_limit_allows() {
    let (envoy, workers) = known(8);
    envoy.collide();
    for worker in &workers {
        ready(&envoy, worker);
    }
    let admitted = run_at_once(&workers, |worker| {
        (0..400)
            .filter(|round| {
                if round % 40 == 0 {
                    worker.tick();
                }
                get(worker, "alice").continued()
            })
            .count()
    });
    assert_eq!(1 + 8 + 8 * 3 + admitted.iter().sum::<usize>(), 1_000);
    assert_eq!(books(&envoy, "hits").admitted, 1_000);
    behaved(&envoy);
}
