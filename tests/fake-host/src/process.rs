//! One Envoy process: what all its workers share. Apart from the workers because it
//! outlives their VMs, and because a test process runs many such processes at once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::answers::Answer;
use crate::guest::Guest;
use crate::hostcalls;
use crate::queues::Queues;
use crate::shared_data::{CompareAndSets, SharedData, SharedDataAccess};
use crate::stats::Stats;
use crate::vm::Call;
use crate::worker::Worker;

/// What is answered without a test's doing.
type Answering = dyn Fn(&Call) -> Option<Answer> + Send + Sync;

/// Severity of a log line; the number is the ABI's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, reason = "the names say it")]
pub enum LogLevel {
    Trace,
    Debug,
    Info,
    Warn,
    Error,
    Critical,
}

impl LogLevel {
    pub(crate) fn from_number(number: u32) -> Option<Self> {
        use LogLevel::{Critical, Debug, Error, Info, Trace, Warn};
        let number = usize::try_from(number).ok()?;
        [Trace, Debug, Info, Warn, Error, Critical]
            .get(number)
            .copied()
    }
}

/// A line that the filter logged.
#[derive(Clone, Debug)]
pub struct LogLine {
    /// The worker whose VM wrote it.
    pub worker: usize,
    /// Its severity.
    pub level: LogLevel,
    /// The text; what is not UTF-8 is replaced.
    pub message: String,
}

/// Everything that the VMs of one process share. No lock is ever held while the
/// guest runs.
pub(crate) struct Process {
    pub(crate) guest: Guest,
    pub(crate) shared_data: SharedData,
    pub(crate) queues: Queues,
    pub(crate) stats: Stats,
    pub(crate) faults: Faults,
    wall_nanoseconds: AtomicU64,
    monotonic_nanoseconds: AtomicU64,
    seed: AtomicU64,
    vms: AtomicU64,
    workers: AtomicUsize,
    clusters: Mutex<BTreeSet<String>>,
    shows_bodies: AtomicBool,
    answering: Mutex<Option<Arc<Answering>>>,
    log_level: Mutex<LogLevel>,
    logs: Mutex<Vec<LogLine>>,
    misuses: Mutex<Vec<String>>,
}

impl Process {
    pub(crate) fn wall_nanoseconds(&self) -> u64 {
        self.wall_nanoseconds.load(Ordering::SeqCst)
    }

    pub(crate) fn monotonic_nanoseconds(&self) -> u64 {
        self.monotonic_nanoseconds.load(Ordering::SeqCst)
    }

    /// The seed of a new VM's random numbers: another for each VM, the same in each run.
    pub(crate) fn next_vm_seed(&self) -> u64 {
        let vm = self.vms.fetch_add(1, Ordering::SeqCst);
        self.seed.load(Ordering::SeqCst) ^ vm.wrapping_mul(0xa076_1d64_78bd_642f)
    }

    pub(crate) fn has_cluster(&self, name: &str) -> bool {
        lock(&self.clusters).contains(name)
    }

    pub(crate) fn shows_bodies(&self) -> bool {
        self.shows_bodies.load(Ordering::SeqCst)
    }

    /// The answer that a call has without a test's doing.
    pub(crate) fn answer(&self, call: &Call) -> Option<Answer> {
        let answering = lock(&self.answering).clone();
        answering.and_then(|answer| answer(call))
    }

    pub(crate) fn log_level(&self) -> LogLevel {
        *lock(&self.log_level)
    }

    /// Keeps a line, if it is of the level that the process logs.
    pub(crate) fn log(&self, worker: usize, level: LogLevel, message: &[u8]) {
        if level >= self.log_level() {
            lock(&self.logs).push(LogLine {
                worker,
                level,
                message: String::from_utf8_lossy(message).into_owned(),
            });
        }
    }

    /// Notes something that Envoy lets pass (or dies of) but that no filter should do.
    pub(crate) fn misuse(&self, what: String) {
        lock(&self.misuses).push(what);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What goes wrong on purpose.
#[derive(Default)]
pub(crate) struct Faults {
    /// Spares every host call a lock while nothing is to fail.
    armed: AtomicBool,
    statuses: Mutex<BTreeMap<&'static str, (u32, usize)>>,
    mismatches: AtomicUsize,
    yields: AtomicBool,
    turns: AtomicU64,
    interleave: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl Faults {
    /// The status that the host function `name` returns this time without doing anything.
    pub(crate) fn status(&self, name: &str) -> Option<u32> {
        if !self.armed.load(Ordering::SeqCst) {
            return None;
        }
        let mut statuses = lock(&self.statuses);
        let (status, left) = statuses.get_mut(name)?;
        *left = left.checked_sub(1)?;
        Some(*status)
    }

    /// Called before a compare-and-set, without any lock; true if it is to mismatch.
    pub(crate) fn before_compare_and_set(&self) -> bool {
        let interleaved = lock(&self.interleave).take();
        if let Some(other) = interleaved {
            other();
        }
        if self.yields.load(Ordering::SeqCst) {
            // Not before each: threads that take turns strictly have one winner for ever.
            let turn = self
                .turns
                .fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::SeqCst);
            if (turn ^ (turn >> 29)).is_multiple_of(3) {
                std::thread::yield_now();
            }
        }
        let one_less = |left: usize| left.checked_sub(1);
        let order = Ordering::SeqCst;
        self.mismatches.fetch_update(order, order, one_less).is_ok()
    }
}

/// An Envoy process without Envoy: its clock, shared data, queues, stats, clusters and
/// faults. Clones are the same process. Several live beside each other in one test
/// process and share nothing, except environment variables.
#[derive(Clone)]
pub struct FakeEnvoy(pub(crate) Arc<Process>);

impl FakeEnvoy {
    /// 2027-01-15 08:00:00 UTC, the full hour at which the calendar clock starts, in
    /// milliseconds since 1970.
    pub const START_MS: u64 = 1_800_000_000_000;

    /// A process whose VMs run Tollgate.
    #[allow(
        clippy::new_without_default,
        reason = "a process is started, not assumed"
    )]
    pub fn new() -> Self {
        Self::with_guest(crate::filter::tollgate())
    }

    /// A process whose VMs run `guest`.
    pub fn with_guest(guest: Guest) -> Self {
        hostcalls::install();
        Self(Arc::new(Process {
            guest,
            shared_data: SharedData::new(),
            queues: Queues::default(),
            stats: Stats::default(),
            faults: Faults::default(),
            wall_nanoseconds: AtomicU64::new(Self::START_MS * 1_000_000),
            monotonic_nanoseconds: AtomicU64::new(1_000_000_000_000),
            seed: AtomicU64::new(0x5eed),
            vms: AtomicU64::new(1),
            workers: AtomicUsize::new(0),
            clusters: Mutex::default(),
            shows_bodies: AtomicBool::new(false),
            answering: Mutex::default(),
            log_level: Mutex::new(LogLevel::Trace),
            logs: Mutex::default(),
            misuses: Mutex::default(),
        }))
    }

    /// Adds a cluster that calls can be made to.
    #[must_use]
    pub fn cluster(self, name: &str) -> Self {
        lock(&self.0.clusters).insert(name.to_owned());
        self
    }

    /// Other random numbers than the usual ones, for VMs that start from now on.
    #[must_use]
    pub fn seed(self, seed: u64) -> Self {
        self.0.seed.store(seed, Ordering::SeqCst);
        self
    }

    /// The level below which Envoy drops log lines; everything is kept otherwise.
    #[must_use]
    pub fn log_level(self, level: LogLevel) -> Self {
        *lock(&self.0.log_level) = level;
        self
    }

    /// Sets an environment variable, as the `environment_variables` of a VM's
    /// configuration do. Natively these belong to the test process, so one name has one
    /// value for all: panics if it already has another.
    #[must_use]
    pub fn environment(self, name: &str, value: &str) -> Self {
        static CHANGING: Mutex<()> = Mutex::new(());
        let _changing = lock(&CHANGING);
        match std::env::var(name) {
            Ok(present) => assert!(
                present == value,
                "{name} already has another value in this test process"
            ),
            // SAFETY: Rust code reads the environment under the same lock of the standard
            // library, and no C code that runs in these tests reads it on another thread.
            Err(_) => unsafe { std::env::set_var(name, value) },
        }
        self
    }

    /// A further worker thread, without a configuration.
    pub fn worker(&self) -> Worker {
        let number = self.0.workers.fetch_add(1, Ordering::SeqCst);
        Worker::new(Arc::clone(&self.0), number)
    }

    /// A further worker thread that runs `configuration`. Panics if it refuses it.
    pub fn configured_worker(&self, configuration: &str) -> Worker {
        let worker = self.worker();
        assert!(
            worker.configure(configuration),
            "the configuration was refused: {:#?}",
            self.logs()
        );
        worker
    }

    /// What Envoy does first with a new configuration: a VM of its own that takes it and
    /// is thrown away, whose calls are cancelled and whose shared data stays. Its queues
    /// notify `main`, the worker that stands for Envoy's main thread.
    pub fn canary(&self, main: &Worker, configuration: &str) -> bool {
        Worker::new(Arc::clone(&self.0), main.number()).configure(configuration)
    }

    /// `count` workers that take `configuration` one after the other and then run `job`
    /// all at once, each on the thread of its own VM. Returns what the jobs returned.
    pub fn spawn_workers<R: Send + 'static>(
        &self,
        count: usize,
        configuration: &str,
        job: impl Fn(&Worker) -> R + Send + Sync + 'static,
    ) -> Vec<R> {
        let workers: Vec<_> = (0..count)
            .map(|_| self.configured_worker(configuration))
            .collect();
        run_at_once(&workers, job)
    }

    /// Moves both clocks forward.
    pub fn advance(&self, by: Duration) {
        let by = u64::try_from(by.as_nanos()).expect("less than 584 years");
        self.0.wall_nanoseconds.fetch_add(by, Ordering::SeqCst);
        self.0.monotonic_nanoseconds.fetch_add(by, Ordering::SeqCst);
    }

    /// The calendar clock, in milliseconds since 1970.
    pub fn wall_ms(&self) -> u64 {
        self.0.wall_nanoseconds() / 1_000_000
    }

    /// Sets the calendar clock alone, backwards too.
    pub fn set_wall_ms(&self, milliseconds: u64) {
        let nanoseconds = milliseconds * 1_000_000;
        self.0.wall_nanoseconds.store(nanoseconds, Ordering::SeqCst);
    }

    /// Sets the monotonic clock alone, in milliseconds.
    pub fn set_monotonic_ms(&self, milliseconds: u64) {
        let nanoseconds = milliseconds * 1_000_000;
        let clock = &self.0.monotonic_nanoseconds;
        clock.store(nanoseconds, Ordering::SeqCst);
    }

    /// What was logged so far.
    pub fn logs(&self) -> Vec<LogLine> {
        lock(&self.0.logs).clone()
    }

    /// Whether a line of at least this level contains `text`.
    pub fn logged(&self, level: LogLevel, text: &str) -> bool {
        let logs = lock(&self.0.logs);
        logs.iter()
            .any(|line| line.level >= level && line.message.contains(text))
    }

    /// A stat's value, 0 if it was never defined.
    pub fn stat(&self, name: &str) -> u64 {
        self.stats().get(name).copied().unwrap_or(0)
    }

    /// Every stat by name.
    pub fn stats(&self) -> BTreeMap<String, u64> {
        self.0.stats.all()
    }

    /// What the filter did that Envoy tolerates or dies of, but that is wrong: resuming
    /// twice, acting on the root context, a call without a timeout and the like.
    pub fn misuses(&self) -> Vec<String> {
        lock(&self.0.misuses).clone()
    }

    /// What `allow_on_headers_stop_iteration: true` does in the plugin's configuration:
    /// `StopIteration`, the number 1, no longer keeps the body from the filter.
    pub fn show_bodies(&self) {
        self.0.shows_bodies.store(true, Ordering::SeqCst);
    }

    /// Answers calls by themselves from now on: right after the tick or the answer in which
    /// they were made. `None`: the test answers. Replaces what was set before.
    pub fn answer_with(&self, answer: impl Fn(&Call) -> Option<Answer> + Send + Sync + 'static) {
        *lock(&self.0.answering) = Some(Arc::new(answer));
    }

    /// Puts a message into every shared queue, as another plugin of the process could.
    pub fn post(&self, message: &[u8]) {
        let mut token = 1;
        while self.0.queues.enqueue(token, message).is_ok() {
            token += 1;
        }
    }

    /// How many messages wait in shared queues.
    pub fn queued(&self) -> usize {
        self.0.queues.waiting()
    }

    /// Shared data, read and written as another VM of the process would.
    pub fn shared_data(&self) -> &dyn SharedDataAccess {
        &self.0.shared_data
    }

    /// How often VMs have tried to change a value that they had read, and how often in vain.
    pub fn compare_and_sets(&self) -> CompareAndSets {
        self.0.shared_data.compare_and_sets()
    }

    /// How often values of shared data were read.
    pub fn shared_data_reads(&self) -> u64 {
        self.0.shared_data.reads()
    }

    /// The keys that shared data has.
    pub fn shared_keys(&self) -> Vec<Vec<u8>> {
        self.0.shared_data.keys()
    }

    /// Lets the process-wide CAS counter continue from `next`.
    pub fn set_next_cas(&self, next: u32) {
        self.0.shared_data.set_next_cas(next);
    }

    /// Changes stored values where they lie, as a broken or foreign writer would, but
    /// without a trace in the CAS.
    pub fn corrupt_shared_data(&self, with: impl FnMut(&[u8], &mut Vec<u8>)) {
        self.0.shared_data.tamper(with);
    }

    /// Lets the next `times` calls of the host function `name` (`proxy_http_call`) return
    /// `status` (any number) and do nothing else. Replaces what was set for it before.
    pub fn fail_next(&self, name: &str, status: u32, times: usize) {
        let name = hostcalls::name(name);
        lock(&self.0.faults.statuses).insert(name, (status, times));
        self.0.faults.armed.store(true, Ordering::SeqCst);
    }

    /// Lets the next `times` compare-and-sets (sets whose CAS is not 0) mismatch.
    pub fn fail_next_compare_and_sets(&self, times: usize) {
        self.0.faults.mismatches.store(times, Ordering::SeqCst);
    }

    /// Gives other threads a turn before every third compare-and-set or so, so that they
    /// collide.
    pub fn collide(&self) {
        self.0.faults.yields.store(true, Ordering::SeqCst);
    }

    /// Runs `other` once, between the read and the write of the next compare-and-set.
    /// It may use other workers, not the one that writes.
    pub fn interleave(&self, other: impl FnOnce() + Send + 'static) {
        *lock(&self.0.faults.interleave) = Some(Box::new(other));
    }
}

/// Runs `job` on every worker at once, each on the thread of its own VM.
pub fn run_at_once<R: Send + 'static>(
    workers: &[Worker],
    job: impl Fn(&Worker) -> R + Send + Sync + 'static,
) -> Vec<R> {
    let job = Arc::new(job);
    let start = Arc::new(std::sync::Barrier::new(workers.len()));
    std::thread::scope(|scope| {
        let threads: Vec<_> = workers
            .iter()
            .map(|worker| {
                let (job, start) = (Arc::clone(&job), Arc::clone(&start));
                scope.spawn(move || {
                    let inside = worker.clone();
                    worker.run(move || {
                        start.wait();
                        job(&inside)
                    })
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| match thread.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            })
            .collect()
    })
}
