//! A metric that the mapping rules name and service management does not have costs nobody
//! else's usage, and its own waits.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use super::support::*;
use serde_json::json;
use tollgate_fake_host::{
    Answer, Call, Failure, FakeEnvoy, LogLevel, Report, Worker, accepted, authorized, denied,
    metrics_of, with_usage,
};

/// Service management with some metrics, whose worker drops a report with any other, after
/// its 202.
#[derive(Clone)]
struct Metered(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    metrics: BTreeSet<String>,
    taken: Vec<Report>,
    dropped: usize,
    probes: Vec<Vec<String>>,
    /// The answer to every question about metrics, if not the true one.
    instead: Option<Answer>,
}

impl Metered {
    fn with(envoy: &FakeEnvoy, metrics: &[&str]) -> Self {
        let metrics = metrics.iter().map(|metric| (*metric).to_owned()).collect();
        let this = Self(Arc::new(Mutex::new(Inner {
            metrics,
            ..Inner::default()
        })));
        let metered = this.clone();
        envoy.answer_with(move |call| metered.answer(call));
        this
    }

    fn change<R>(&self, change: impl FnOnce(&mut Inner) -> R) -> R {
        change(&mut self.0.lock().unwrap())
    }

    fn answer(&self, call: &Call) -> Option<Answer> {
        self.change(|inner| {
            if is_report(call) {
                let report = Report::parse(&call.body);
                if report
                    .usage()
                    .keys()
                    .all(|name| inner.metrics.contains(name))
                {
                    inner.taken.push(report);
                } else {
                    inner.dropped += 1;
                }
                return Some(accepted());
            }
            let has = |metric: &str| inner.metrics.contains(metric);
            let answer = with_usage(call, has, FakeEnvoy::START_MS)?;
            inner.probes.push(metrics_of(call));
            Some(inner.instead.clone().unwrap_or(answer))
        })
    }

    fn units(&self, metric: &str) -> u64 {
        self.change(|inner| usage_of(&inner.taken, metric))
    }

    fn dropped(&self) -> usize {
        self.change(|inner| inner.dropped)
    }

    fn probes(&self) -> Vec<Vec<String>> {
        self.change(|inner| inner.probes.clone())
    }
}

/// Every request is a hit, and under /search one of a metric with a slip in its name.
fn slipped() -> String {
    let rules_of = json!([
        { "pattern": "/", "usage": { "hits": 1 } },
        { "pattern": "/search", "usage": { "serches": 1 } },
    ]);
    rules(rules_of, json!({}))
}

fn search(worker: &Worker, key: &str) -> bool {
    let request = worker.request().get(format!("/search?user_key={key}"));
    request.send().continued()
}

fn wait(envoy: &FakeEnvoy, workers: &[Worker], time: u64) {
    pass_time(envoy, workers, seconds(time), |_| None);
}

#[test]
fn a_metric_that_does_not_exist_costs_nobody_elses_usage() {
    let (envoy, worker) = gateway(&slipped());
    let backend = Metered::with(&envoy, &["hits"]);
    introduce(&envoy, &worker, "alice", authorized());
    introduce(&envoy, &worker, "bob", authorized());
    assert!(search(&worker, "alice"));
    wait(&envoy, &[worker], 30);
    assert_eq!((backend.units("hits"), backend.dropped()), (3, 0));
    let all = vec!["hits".to_owned(), "serches".to_owned()];
    assert_eq!(backend.probes()[..2], [all, vec!["hits".to_owned()]]);
    assert_eq!(books(&envoy, "serches").pending, 1);
    assert_eq!(stat(&envoy, "metric.serches.units_pending"), 1);
    assert_eq!(stat(&envoy, "metrics_unknown"), 1);
    assert_eq!(stat(&envoy, "authorize_calls"), 2);
    assert!(envoy.logged(
        LogLevel::Error,
        r#"does not have these metrics: ["serches"]"#
    ));
    behaved(&envoy);
}

#[test]
fn requests_that_use_it_go_on_and_their_usage_arrives_within_a_minute_of_its_creation() {
    let (envoy, worker) = gateway(&slipped());
    let backend = Metered::with(&envoy, &["hits"]);
    introduce(&envoy, &worker, "alice", authorized());
    assert!(search(&worker, "alice"));
    let workers = [worker];
    wait(&envoy, &workers, 600);
    assert!(search(&workers[0], "alice"));
    assert_eq!(books(&envoy, "serches").pending, 2);
    let asked = backend.probes().len();
    assert!(asked <= 2 + 600 / 30, "{asked} questions in ten minutes");
    backend.change(|inner| inner.metrics.insert("serches".to_owned()));
    wait(&envoy, &workers, 60);
    assert_eq!((backend.units("hits"), backend.units("serches")), (3, 2));
    assert_eq!(stat(&envoy, "metrics_unknown"), 0);
    assert_eq!(books(&envoy, "serches").pending, 0);
    assert_eq!(backend.dropped(), 0);
}

#[test]
fn usage_that_waits_does_not_slow_down_the_rest_of_its_application() {
    let (envoy, worker) = gateway(&slipped());
    let backend = Metered::with(&envoy, &["hits"]);
    introduce(&envoy, &worker, "alice", authorized());
    assert!(search(&worker, "alice"));
    let workers = [worker];
    wait(&envoy, &workers, 30);
    for hits in 3..10 {
        assert!(search(&workers[0], "alice"));
        wait(&envoy, &workers, 12);
        assert_eq!(backend.units("hits"), hits);
        assert_eq!(stat(&envoy, "metric.serches.units_pending"), hits - 1);
    }
}

#[test]
fn who_leads_next_asks_before_it_reports() {
    let (envoy, workers) = gateway_of(2, &slipped());
    let backend = Metered::with(&envoy, &["hits"]);
    introduce(&envoy, &workers[0], "alice", authorized());
    assert!(search(&workers[0], "alice"));
    wait(&envoy, &workers, 30);
    let before = backend.probes().len();
    assert!(search(&workers[1], "alice"));
    // The leader goes; the other sends what is pending of both metrics.
    wait(&envoy, &workers[1..], 60);
    assert!(backend.probes().len() > before);
    assert_eq!((backend.units("hits"), backend.dropped()), (3, 0));
    assert_eq!(books(&envoy, "serches").pending, 2);
}

#[test]
fn usage_waits_out_an_outage_of_the_questions() {
    let (envoy, worker) = gateway(&slipped());
    let backend = Metered::with(&envoy, &["hits"]);
    backend.change(|inner| inner.instead = Some(Failure::ConnectionRefused.into()));
    introduce(&envoy, &worker, "alice", authorized());
    assert!(search(&worker, "alice"));
    let workers = [worker];
    wait(&envoy, &workers, 60);
    assert_eq!((backend.units("hits"), backend.dropped()), (0, 0));
    backend.change(|inner| inner.instead = None);
    wait(&envoy, &workers, 70);
    assert_eq!((backend.units("hits"), backend.dropped()), (2, 0));
}

#[test]
fn questions_that_are_refused_for_the_application_hold_nothing_up_for_long() {
    let (envoy, worker) = gateway(&plain());
    let backend = Metered::with(&envoy, &["hits"]);
    let refusal = denied("application_not_active").at(FakeEnvoy::START_MS);
    backend.change(|inner| inner.instead = Some(refusal));
    introduce(&envoy, &worker, "alice", authorized());
    wait(&envoy, &[worker], 60);
    assert_eq!(backend.units("hits"), 1);
}

#[test]
fn metrics_with_limits_are_known_without_a_question() {
    let (envoy, worker) = gateway(&plain());
    let backend = Metered::with(&envoy, &["hits"]);
    let limited = authorized().limit("hits", "day", 100, 0);
    introduce(&envoy, &worker, "alice", limited);
    wait(&envoy, &[worker], 30);
    assert_eq!((backend.units("hits"), backend.probes().len()), (1, 0));
    assert_eq!(stat(&envoy, "probe_calls"), 0);
}

#[test]
fn a_metric_that_is_in_use_is_asked_about_every_ten_minutes_and_no_more_often() {
    let (envoy, worker) = gateway(&configuration(json!({ "authorization": { "ttl": "1h" } })));
    let backend = Metered::with(&envoy, &["hits"]);
    introduce(&envoy, &worker, "alice", authorized());
    let workers = [worker];
    for _ in 0..30 {
        assert!(get(&workers[0], "alice").continued());
        wait(&envoy, &workers, 60);
    }
    let asked = backend.probes().len();
    assert!(
        (3..=4).contains(&asked),
        "{asked} questions in half an hour"
    );
    assert_eq!(stat(&envoy, "probe_calls"), u64::try_from(asked).unwrap());
    assert_eq!(backend.units("hits"), 31);
}
