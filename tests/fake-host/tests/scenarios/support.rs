//! What scenarios are told with: a gateway of some workers, a service-management
//! backend as far as the story needs one, and the books in shared data.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::{Value, json};
use tollgate::authorization::{Change, Record, Slot, Table};
use tollgate::shared_data::{SetError, SharedData, Token};
use tollgate_fake_host::{
    Answer, Authorization, Call, FakeEnvoy, Outcome, Report, SharedDataAccess, Status, StreamId,
    Worker, accepted, authorized, error, with_usage,
};

pub const SECOND: Duration = Duration::from_secs(1);

pub const fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// One service at api.example.com whose every request costs one `hits`, a small table, as
/// many questions as anybody likes, and the defaults of everything else.
pub fn plain() -> String {
    configuration(json!({}))
}

/// The plain configuration with changes to it: a JSON merge patch (RFC 7396).
pub fn configuration(changes: Value) -> String {
    let mut whole = json!({
        "service_management": { "cluster": "service-management", "authority": "su1.3scale.net" },
        "services": [service("1001", "api.example.com")],
        "authorization": { "capacity": 64, "unknown_calls_per_second": 1_000_000 },
    });
    merge(&mut whole, changes);
    whole.to_string()
}

/// A service whose every request costs one `hits`.
pub fn service(id: &str, host: &str) -> Value {
    json!({
        "id": id,
        "token": format!("token-of-{id}"),
        "hosts": [host],
        "mapping_rules": [{ "pattern": "/", "usage": { "hits": 1 } }],
    })
}

/// A configuration of one service with these mapping rules and this hierarchy.
pub fn rules(mapping_rules: Value, metrics: Value) -> String {
    let mut service = service("1001", "api.example.com");
    service["mapping_rules"] = mapping_rules;
    service["metrics"] = metrics;
    configuration(json!({ "services": [service] }))
}

fn merge(target: &mut Value, changes: Value) {
    match (target, changes) {
        (Value::Object(target), Value::Object(changes)) => {
            for (name, change) in changes {
                merge(target.entry(name).or_insert(Value::Null), change);
            }
        }
        (target, changes) => *target = changes,
    }
}

/// A process with the cluster of service management, whose services have whatever metric
/// is asked about: questions about metrics are answered without a story's doing.
pub fn envoy() -> FakeEnvoy {
    let envoy = FakeEnvoy::new().cluster("service-management");
    envoy.answer_with(|call| with_usage(call, |_| true, FakeEnvoy::START_MS));
    envoy
}

/// A process with one worker.
pub fn gateway(configuration: &str) -> (FakeEnvoy, Worker) {
    let envoy = envoy();
    let worker = envoy.configured_worker(configuration);
    (envoy, worker)
}

/// A process with several workers.
pub fn gateway_of(workers: usize, configuration: &str) -> (FakeEnvoy, Vec<Worker>) {
    let envoy = envoy();
    let workers = (0..workers)
        .map(|_| envoy.configured_worker(configuration))
        .collect();
    (envoy, workers)
}

/// Workers cannot wake each other from now on, so each asks for itself.
pub fn without_queues(envoy: &FakeEnvoy) {
    envoy.fail_next("proxy_register_shared_queue", 10, usize::MAX);
}

/// A request with a user key in its query.
pub fn get(worker: &Worker, key: &str) -> Outcome {
    worker.request().get(format!("/?user_key={key}")).send()
}

/// Makes the application known: its first request asks, and is admitted.
#[track_caller]
pub fn introduce(envoy: &FakeEnvoy, worker: &Worker, key: &str, authorization: Authorization) {
    let stream = get(worker, key).paused();
    let call = worker.only_call();
    assert!(is_question(&call), "{call:?}");
    worker.answer(call.token, authorization.at(envoy.wall_ms()));
    worker.poll(stream).forwarded();
}

pub fn is_question(call: &Call) -> bool {
    call.path().starts_with("/transactions/authorize.xml?")
}

pub fn is_report(call: &Call) -> bool {
    call.path() == "/transactions.xml"
}

/// The key that a question is about.
pub fn key_of(call: &Call) -> String {
    let (_, query) = call.path().split_once('?').expect("a query");
    let key = form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == "user_key");
    key.expect("a user_key").1.into_owned()
}

/// Where a key of shared data says of what kind it is.
pub const KIND_AT: usize = b"tollgate2".len();

/// The first value of a stat of service 1001, by the end of its name.
pub fn stat(envoy: &FakeEnvoy, name: &str) -> u64 {
    envoy.stat(&format!("tollgate.1001.{name}"))
}

/// What became of several requests that waited.
pub fn statuses(worker: &Worker, streams: &[StreamId]) -> Vec<Option<u32>> {
    let outcomes = streams.iter().map(|stream| worker.poll(*stream));
    outcomes.map(|outcome| outcome.status()).collect()
}

/// Lets time pass in steps of a second. After each, every worker ticks, and `answer` says
/// what becomes of each call: nothing, if it says `None`. Returns the calls that were made.
pub fn pass_time(
    envoy: &FakeEnvoy,
    workers: &[Worker],
    time: Duration,
    mut answer: impl FnMut(&Call) -> Option<Answer>,
) -> Vec<Call> {
    let mut calls = Vec::new();
    for _ in 0..time.as_secs() {
        envoy.advance(SECOND);
        for worker in workers {
            let before = newest_call(worker);
            worker.tick();
            loop {
                let new = worker.calls();
                let mut new = new.iter().filter(|call| call.token > before);
                let Some(call) = new.find(|call| !contains(&calls, worker, call)) else {
                    break;
                };
                calls.push((worker.number(), call.clone()));
                if let Some(answer) = answer(call) {
                    worker.answer(call.token, answer);
                }
            }
        }
    }
    calls.into_iter().map(|(_, call)| call).collect()
}

fn newest_call(worker: &Worker) -> u32 {
    worker.calls().last().map_or(0, |call| call.token)
}

fn contains(calls: &[(usize, Call)], worker: &Worker, call: &Call) -> bool {
    calls
        .iter()
        .any(|(number, known)| *number == worker.number() && known.token == call.token)
}

/// The reports among calls.
pub fn reports(calls: &[Call]) -> Vec<Report> {
    let calls = calls.iter().filter(|call| is_report(call));
    calls.map(|call| Report::parse(&call.body)).collect()
}

/// The keys that calls ask about, in order.
pub fn questions(calls: &[Call]) -> Vec<String> {
    calls
        .iter()
        .filter(|call| is_question(call))
        .map(key_of)
        .collect()
}

/// Usage by application and metric over several reports.
pub fn usage(reports: &[Report]) -> BTreeMap<(String, String), u64> {
    let mut sum = BTreeMap::new();
    for transaction in reports
        .iter()
        .flat_map(|report| report.transactions.values())
    {
        for (metric, delta) in &transaction.usage {
            let application = transaction.application["user_key"].clone();
            *sum.entry((application, metric.clone())).or_default() += delta;
        }
    }
    sum
}

/// Usage of one metric over several reports.
pub fn usage_of(reports: &[Report], metric: &str) -> u64 {
    usage(reports)
        .iter()
        .filter(|((_, name), _)| name == metric)
        .map(|(_, units)| units)
        .sum()
}

/// Service management as a story needs it: it knows some applications, and takes every
/// report at once.
#[derive(Default)]
pub struct Backend {
    pub applications: BTreeMap<String, Authorization>,
    pub reports: Vec<Report>,
}

impl Backend {
    pub fn knows(keys: &[&str]) -> Self {
        Self {
            applications: keys
                .iter()
                .map(|key| ((*key).to_owned(), authorized()))
                .collect(),
            reports: Vec::new(),
        }
    }

    pub fn answer(&mut self, call: &Call, wall_ms: u64) -> Answer {
        if is_report(call) {
            self.reports.push(Report::parse(&call.body));
            return accepted();
        }
        match self.applications.get(&key_of(call)) {
            Some(authorization) => authorization.clone().at(wall_ms),
            None => error(403, "user_key_invalid"),
        }
    }
}

/// The process's shared data as Tollgate's own tables take it.
pub struct Store<'a>(pub &'a dyn SharedDataAccess);

impl SharedData for Store<'_> {
    fn get(&self, key: &[u8], into: &mut Vec<u8>) -> Result<Token, SetError> {
        into.clear();
        Ok(self.0.get(key).map_or(Token::ABSENT, |(value, cas)| {
            into.extend(value);
            Token(cas)
        }))
    }

    fn set(&self, key: &[u8], value: &[u8], token: Token) -> Result<(), SetError> {
        match self.0.set(key, value, token.0) {
            Status::Ok => Ok(()),
            Status::CasMismatch => Err(SetError::Mismatch),
            _ => Err(SetError::Unavailable),
        }
    }
}

/// Every live record of the process.
pub fn records(envoy: &FakeEnvoy) -> Vec<(Slot, Record)> {
    let store = Store(envoy.shared_data());
    let mut table = Table::open(&store, 8);
    (0..table.slots())
        .map(Slot)
        .filter_map(|slot| {
            let record =
                table.change_slot(&store, slot, |record| Some(Change::Keep(record.clone())));
            Some((slot, record.expect("shared data")?))
        })
        .collect()
}

/// The record of an application.
#[track_caller]
pub fn record(envoy: &FakeEnvoy, key: &str) -> Record {
    let mut found: Vec<Record> = records(envoy)
        .into_iter()
        .map(|(_, record)| record)
        .filter(|record| record.identity == key.as_bytes())
        .collect();
    assert_eq!(found.len(), 1, "records of {key}");
    found.remove(0)
}

/// Keys of applications that have a record; panics if one has two.
#[track_caller]
pub fn recorded(envoy: &FakeEnvoy) -> BTreeSet<String> {
    let mut keys = BTreeSet::new();
    for (slot, record) in records(envoy) {
        let key = String::from_utf8(record.identity).expect("a key of these tests");
        let scope = record.scope;
        assert!(
            keys.insert(format!("{key}@{scope:x}")),
            "a second record of {key}, in {slot:?}"
        );
    }
    keys.iter()
        .filter_map(|key| Some(key.rsplit_once('@')?.0.to_owned()))
        .collect()
}

/// The totals of one metric over all records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Books {
    pub admitted: u64,
    pub acknowledged: u64,
    pub lost: u64,
    pub pending: u64,
    pub in_flight: u64,
}

/// Reads the books of a metric. Panics if those of any record do not balance.
#[track_caller]
pub fn books(envoy: &FakeEnvoy, metric: &str) -> Books {
    let mut sum = Books::default();
    for (slot, record) in records(envoy) {
        for (name, ledger, pending, in_flight) in record.accounts() {
            assert_eq!(
                ledger.admitted,
                ledger.acknowledged + ledger.lost + pending + in_flight,
                "{name} in {slot:?}: {ledger:?}, {pending} pending, {in_flight} in flight"
            );
            if name == metric {
                sum.admitted += ledger.admitted;
                sum.acknowledged += ledger.acknowledged;
                sum.lost += ledger.lost;
                sum.pending += pending;
                sum.in_flight += in_flight;
            }
        }
    }
    sum
}

/// Checks that the filter did nothing that Envoy tolerates or dies of.
#[track_caller]
pub fn behaved(envoy: &FakeEnvoy) {
    assert_eq!(envoy.misuses(), Vec::<String>::new());
}

/// Random numbers that are the same in each run (SplitMix64).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub fn one_of<'a, T>(&mut self, things: &'a [T]) -> &'a T {
        let index = self.below(things.len() as u64);
        &things[usize::try_from(index).expect("an index")]
    }
}
