//! A record that this VM wrote last is changed without being read, if nobody else has
//! changed it: a request is then one host call less.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tollgate_fake_host::{
    FakeEnvoy, Outcome, Report, StreamId, Worker, accepted, authorized, run_at_once,
};

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
        ready(&envoy, &workers[0]);
        let other = workers[1].clone();
        envoy.interleave(move || assert!(get(&other, "alice").continued()));
        assert!(get(&workers[0], "alice").continued());
    }
    assert_eq!(books(&envoy, "hits").admitted, 3 + 3 + 20 * (3 + 2));
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

/// The token of the only record.
fn token(envoy: &FakeEnvoy) -> u32 {
    let slot = records(envoy)[0].0.0.to_le_bytes();
    let key = envoy
        .shared_keys()
        .into_iter()
        .find(|key| key.get(KIND_AT) == Some(&b'r') && key.ends_with(&slot))
        .expect("there is a record");
    envoy.shared_data().get(&key).expect("it has a value").1
}

/// Another worker is given the very token that the first one guesses, a lap later.
fn a_lap(envoy: &FakeEnvoy, workers: &[Worker]) {
    ready(envoy, &workers[0]);
    let mine = token(envoy);
    envoy.advance(Duration::from_secs(5));
    envoy.set_next_cas(mine);
    assert!(get(&workers[1], "alice").continued());
    assert_eq!(token(envoy), mine);
}

#[test]
fn a_guess_does_not_outlive_a_lap_of_the_counter() {
    let (envoy, workers) = known(2);
    a_lap(&envoy, &workers);
    assert!(get(&workers[0], "alice").continued());
    assert_eq!(books(&envoy, "hits").admitted, 3 + 3 + 2);
}

#[test]
fn without_a_clock_nothing_is_guessed() {
    let (envoy, workers) = known(2);
    a_lap(&envoy, &workers);
    envoy.fail_next("clock_time_get", 58, 8);
    let admitted = u64::from(get(&workers[0], "alice").continued());
    envoy.fail_next("clock_time_get", 58, 0);
    assert_eq!(books(&envoy, "hits").admitted, 3 + 3 + 1 + admitted);
}

#[test]
fn a_write_that_fails_counts_nothing_then_and_later() {
    let (envoy, workers) = known(1);
    ready(&envoy, &workers[0]);
    for round in 1..=10 {
        for _ in 0..20 {
            assert!(get(&workers[0], "alice").continued());
        }
        envoy.fail_next("proxy_set_shared_data", REFUSED, 1);
        assert!(!get(&workers[0], "alice").continued());
        envoy.fail_next("proxy_set_shared_data", REFUSED, 0);
        assert!(get(&workers[0], "alice").continued());
        assert_eq!(books(&envoy, "hits").admitted, 2 + 3 + round * 21);
    }
}

/// A process whose every event is drawn by lot, and what it admitted.
struct World {
    envoy: FakeEnvoy,
    workers: Vec<Worker>,
    seen: Arc<Mutex<Seen>>,
    reports: Vec<Report>,
}

#[derive(Default)]
struct Seen {
    admitted: BTreeMap<String, u64>,
    /// The worker, the stream, and whose it is.
    waiting: Vec<(usize, StreamId, String)>,
}

impl Seen {
    fn add(&mut self, worker: usize, key: String, outcome: Outcome) {
        match outcome {
            Outcome::Continued(_) => *self.admitted.entry(key).or_default() += 1,
            Outcome::Paused(stream) => self.waiting.push((worker, stream, key)),
            Outcome::Replied(_) | Outcome::Reset => {}
        }
    }
}

impl World {
    fn new(random: &mut Random) -> Self {
        let workers = 1 + usize::try_from(random.below(3)).unwrap();
        let (envoy, workers) = gateway_of(workers, &plain());
        if random.below(2) == 0 {
            envoy.set_next_cas(u32::MAX - 400);
        }
        Self {
            envoy,
            workers,
            seen: Arc::default(),
            reports: Vec::new(),
        }
    }

    fn ask(&self, number: usize, key: &str) {
        let outcome = get(&self.workers[number], key);
        lock(&self.seen).add(number, key.to_owned(), outcome);
    }

    /// Answers all calls, and sees what becomes of those who waited.
    fn settle(&mut self) {
        for worker in self.workers.iter().cycle().take(4 * self.workers.len()) {
            worker.deliver();
            for call in worker.calls() {
                if is_report(&call) {
                    self.reports.push(Report::parse(&call.body));
                    worker.answer(call.token, accepted());
                } else if is_question(&call) {
                    let key = key_of(&call);
                    let limit = if key.ends_with('3') { 40 } else { 1_000_000 };
                    let used = usage(&self.reports);
                    let used = used.get(&(key, "hits".to_owned())).copied().unwrap_or(0);
                    let answer = authorized().limit("hits", "eternity", limit, used);
                    worker.answer(call.token, answer.at(self.envoy.wall_ms()));
                }
            }
        }
        let waiting = std::mem::take(&mut lock(&self.seen).waiting);
        for (number, stream, key) in waiting {
            let outcome = self.workers[number].poll(stream);
            lock(&self.seen).add(number, key, outcome);
        }
    }

    /// One event: mostly a request, on a worker that is in use or sometimes on another.
    fn happen(&mut self, random: &mut Random, number: usize, key: &str) {
        let worker = self.workers[number].clone();
        match random.below(60) {
            0 => self
                .envoy
                .advance(Duration::from_millis(200 + random.below(900))),
            1..=3 => drop(worker.tick()),
            4 => {
                for _ in 0..=random.below(3) {
                    self.envoy.shared_data().set(b"another filter's", b"x", 0);
                }
            }
            5 if random.below(6) == 0 => {
                self.settle();
                worker.restart_vm();
                assert!(worker.configure(&plain()));
                lock(&self.seen).waiting.retain(|(at, ..)| *at != number);
            }
            6 => {
                let races = usize::try_from(random.below(4)).unwrap();
                self.envoy.fail_next_compare_and_sets(races);
                self.ask(number, key);
                self.envoy.fail_next_compare_and_sets(0);
            }
            7 => {
                self.envoy.fail_next("proxy_set_shared_data", REFUSED, 1);
                self.ask(number, key);
                self.envoy.fail_next("proxy_set_shared_data", REFUSED, 0);
            }
            8 | 9 if self.workers.len() > 1 => {
                let at = (number + 1) % self.workers.len();
                let (other, seen) = (self.workers[at].clone(), Arc::clone(&self.seen));
                let ticks = random.below(3) == 0;
                let theirs = key.to_owned();
                self.envoy.interleave(move || {
                    let outcome = get(&other, &theirs);
                    lock(&seen).add(at, theirs, outcome);
                    if ticks {
                        other.tick();
                    }
                });
                self.ask(number, key);
                self.envoy.interleave(|| ());
            }
            10 => {
                assert!(worker.configure(&plain()));
                worker.drain();
            }
            _ => self.ask(number, key),
        }
        self.settle();
    }
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn whatever_happens_all_that_was_admitted_is_reported_and_no_limit_is_overrun() {
    for seed in 0..10 {
        let mut random = Random(seed * 7 + 1);
        let mut world = World::new(&mut random);
        let applications = if seed % 5 == 0 { 2 } else { 40 };
        let workers = world.workers.len() as u64;
        let mut busy = 0;
        for _ in 0..1_500 {
            if random.below(15) == 0 {
                busy = random.below(workers);
            }
            let number = if random.below(8) == 0 {
                random.below(workers)
            } else {
                busy
            };
            let few = if random.below(3) > 0 { 4 } else { applications };
            let key = format!("app{}", random.below(applications.min(few)));
            world.happen(&mut random, usize::try_from(number).unwrap(), &key);
        }
        for _ in 0..90 {
            world.envoy.advance(SECOND);
            for worker in &world.workers {
                worker.tick();
            }
            world.settle();
        }
        let admitted = lock(&world.seen).admitted.clone();
        assert!(
            admitted.get("app3").is_none_or(|units| *units <= 40),
            "seed {seed}"
        );
        let reported: BTreeMap<_, _> = usage(&world.reports)
            .into_iter()
            .filter(|((_, metric), _)| metric == "hits")
            .map(|((key, _), units)| (key, units))
            .collect();
        assert_eq!(reported, admitted, "seed {seed}");
        assert_eq!(books(&world.envoy, "hits").lost, 0, "seed {seed}");
        behaved(&world.envoy);
    }
}
