//! Applications that are known by an `app_id`: whose key is right, when service
//! management is asked about one, and how often; and who may refer to them.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tollgate_fake_host::{
    Answer, Authorization, Call, FakeEnvoy, Outcome, StreamId, Worker, accepted, authorized,
    denied, error,
};

use crate::support::*;

/// One service of `app_id`s, with changes to it.
fn keyed(changes: Value) -> String {
    let mut service = service("1001", "api.example.com");
    service["credentials"] = json!({
        "app_id": [{ "query": "app_id" }],
        "app_key": [{ "query": "app_key" }],
    });
    for (name, value) in changes.as_object().unwrap() {
        service[name] = value.clone();
    }
    configuration(json!({ "services": [service] }))
}

/// The same, where referrers are looked at.
fn referred() -> String {
    keyed(json!({ "credentials": {
        "app_id": [{ "query": "app_id" }],
        "app_key": [{ "query": "app_key" }],
        "referrer": true,
    } }))
}

fn get_with(worker: &Worker, id: &str, key: &str) -> Outcome {
    let path = format!("/?app_id={id}&app_key={key}");
    worker.request().get(path).send()
}

fn get_from(worker: &Worker, id: &str, referrer: &str) -> Outcome {
    let request = worker.request().get(format!("/?app_id={id}"));
    request.header("referer", referrer).send()
}

/// What a request was told.
trait Told {
    /// The status; `None` if it went on. Panics if it still waits.
    fn told(&self) -> Option<u32>;
}

impl Told for Outcome {
    #[track_caller]
    fn told(&self) -> Option<u32> {
        assert!(
            !matches!(self, Outcome::Paused(_) | Outcome::Reset),
            "{self:?}"
        );
        self.status()
    }
}

/// The only call of a worker that is no report.
#[track_caller]
fn only_question(worker: &Worker) -> Call {
    let mut calls = worker.calls();
    calls.retain(|call| !is_report(call));
    assert_eq!(calls.len(), 1);
    calls.remove(0)
}

/// The parameters of a question besides the service's.
fn asked(call: &Call) -> BTreeMap<String, String> {
    let (_, query) = call.path().split_once('?').expect("a query");
    form_urlencoded::parse(query.as_bytes())
        .into_owned()
        .filter(|(name, _)| name != "service_id" && name != "service_token")
        .collect()
}

fn pairs(of: &[(&str, &str)]) -> BTreeMap<String, String> {
    of.iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

/// Service management with one application `app`, as the backend decides: the key, the
/// referrer, then whether it is suspended.
#[derive(Default)]
struct Application {
    keys: Vec<String>,
    referrers: Vec<String>,
    suspended: bool,
    limit: Option<u64>,
    questions: usize,
}

impl Application {
    fn with(keys: &[&str]) -> Self {
        Self {
            keys: keys.iter().map(|key| (*key).to_owned()).collect(),
            ..Self::default()
        }
    }

    fn answer(&mut self, call: &Call, wall_ms: u64) -> Answer {
        if is_report(call) {
            return accepted();
        }
        self.questions += 1;
        let asked = asked(call);
        if asked["app_id"] != "app" {
            return error(404, "application_not_found");
        }
        let oauth = call.path().starts_with("/transactions/oauth_");
        let key = asked.get("app_key");
        let listed = |key| self.keys.contains(key);
        let key_is_good = match oauth {
            true => key.is_none_or(listed),
            false => self.keys.is_empty() || key.is_some_and(listed),
        };
        let referrer_is_good = self.referrers.is_empty()
            || asked
                .get("referrer")
                .is_some_and(|referrer| referrer == "*" || self.referrers.contains(referrer));
        let mut answer = match (key_is_good, referrer_is_good, self.suspended) {
            (false, _, _) => denied("application_key_invalid"),
            (_, false, _) => denied("referrer_not_allowed"),
            (_, _, true) => denied("application_not_active"),
            _ => authorized(),
        };
        if let Some(limit) = self.limit {
            answer = answer.limit("hits", "minute", limit, 0);
        }
        self.list(answer).at(wall_ms)
    }

    fn list(&self, answer: Authorization) -> Authorization {
        let keys = self.keys.iter().take(256);
        keys.fold(answer.list_keys(), |answer, key| answer.key(key))
    }

    /// Answers whatever a worker asks, and what that leads to.
    fn serve(&mut self, envoy: &FakeEnvoy, worker: &Worker) {
        while !worker.calls().is_empty() {
            worker.answer_all(|call| self.answer(call, envoy.wall_ms()));
        }
    }

    /// A request with this key, served: its status, `None` if it goes on.
    fn get(&mut self, envoy: &FakeEnvoy, worker: &Worker, key: &str) -> Option<u32> {
        let outcome = get_with(worker, "app", key);
        self.settle(envoy, worker, outcome)
    }

    fn get_from(&mut self, envoy: &FakeEnvoy, worker: &Worker, referrer: &str) -> Option<u32> {
        let outcome = get_from(worker, "app", referrer);
        self.settle(envoy, worker, outcome)
    }

    /// A request with this key that must not wait, whatever it has asked behind it.
    fn get_behind(&mut self, envoy: &FakeEnvoy, worker: &Worker, key: &str) -> Option<u32> {
        let told = get_with(worker, "app", key).told();
        self.serve(envoy, worker);
        told
    }

    fn settle(&mut self, envoy: &FakeEnvoy, worker: &Worker, outcome: Outcome) -> Option<u32> {
        if worker.calls().is_empty() {
            return outcome.told();
        }
        let stream = outcome.paused();
        self.serve(envoy, worker);
        worker.poll(stream).told()
    }
}

/// A gateway of two workers, of which the first has let the application in by `k1`.
#[track_caller]
fn known_to_two(keys: &[&str]) -> (FakeEnvoy, Vec<Worker>, Application) {
    let (envoy, workers) = gateway_of(2, &keyed(json!({})));
    let mut backend = Application::with(keys);
    assert_eq!(backend.get(&envoy, &workers[0], "k1"), None);
    (envoy, workers, backend)
}

/// A gateway that has let the application in by `k1`.
#[track_caller]
fn known(keys: &[&str]) -> (FakeEnvoy, Worker, Application) {
    let (envoy, worker) = gateway(&keyed(json!({})));
    let mut backend = Application::with(keys);
    assert_eq!(backend.get(&envoy, &worker, "k1"), None);
    (envoy, worker, backend)
}

/// A gateway that has let an application in by two of its keys, which are `k0` to `k299`: more
/// than service management lists.
#[track_caller]
fn full_list(used: [&str; 2]) -> (FakeEnvoy, Worker, Application) {
    let (envoy, worker) = gateway(&keyed(json!({})));
    let mut backend = Application {
        keys: (0..300).map(|number| format!("k{number}")).collect(),
        ..Application::default()
    };
    for key in used {
        assert_eq!(backend.get(&envoy, &worker, key), None, "{key}");
    }
    (envoy, worker, backend)
}

#[test]
fn a_wrong_key_after_a_right_one_is_refused_and_a_second_right_one_let_in_without_a_call() {
    let (envoy, workers, backend) = known_to_two(&["k1", "k2"]);
    for worker in &workers {
        for (key, status) in [("k2", None), ("wrong", Some(403)), ("k1", None)] {
            assert_eq!(get_with(worker, "app", key).told(), status, "{key}");
        }
        let bare = worker.request().get("/?app_id=app").send();
        assert_eq!(bare.told(), Some(403), "no key at all");
        assert_eq!(worker.calls().len(), 0);
    }
    assert_eq!(backend.questions, 1);
    assert_eq!(books(&envoy, "hits").admitted, 5);
    assert_eq!(recorded(&envoy).len(), 1, "one record for all keys");
    behaved(&envoy);
}

#[test]
fn a_wrong_key_is_said_in_the_access_log_only_and_stands_nowhere_in_shared_data() {
    let (envoy, worker, mut backend) = known(&["k1"]);
    let reply = get_with(&worker, "app", "canary").reply();
    assert_eq!(reply.details, "tollgate_application_key_invalid");
    envoy.advance(seconds(6));
    backend.get(&envoy, &worker, "canary");
    let holds = |text: &[u8]| {
        let values = envoy.shared_keys().into_iter();
        values
            .filter_map(|key| envoy.shared_data().get(&key))
            .any(|(value, _)| value.windows(text.len()).any(|bytes| bytes == text))
    };
    assert!(!holds(b"canary"));
    behaved(&envoy);
}

#[test]
fn limits_are_exact_over_all_keys_of_an_application() {
    let (envoy, workers) = gateway_of(2, &keyed(json!({})));
    let mut backend = Application::with(&["k1", "k2"]);
    backend.limit = Some(5);
    assert_eq!(backend.get(&envoy, &workers[0], "k1"), None);
    let mut let_in = 1;
    for round in 0..10 {
        let key = ["k1", "k2"][round % 2];
        let status = get_with(&workers[round / 2 % 2], "app", key).told();
        assert!(matches!(status, None | Some(429)));
        let_in += usize::from(status.is_none());
    }
    assert_eq!(let_in, 5);
    behaved(&envoy);
}

#[test]
fn an_application_without_keys_takes_any_key_and_none() {
    let (envoy, worker) = gateway(&keyed(json!({})));
    let mut backend = Application::default();
    assert_eq!(backend.get(&envoy, &worker, "whatever"), None);
    get_with(&worker, "app", "else").forwarded();
    worker.request().get("/?app_id=app").send().forwarded();
    assert_eq!(backend.questions, 1);
    behaved(&envoy);
}

#[test]
fn a_new_key_works_as_soon_as_the_list_is_not_brand_new() {
    let (envoy, workers, mut backend) = known_to_two(&["k1"]);
    backend.keys.push("new".to_owned());
    assert_eq!(backend.get(&envoy, &workers[0], "new"), Some(403));
    envoy.advance(seconds(5));
    let stream = get_with(&workers[1], "app", "new").paused();
    assert_eq!(
        asked(&workers[1].only_call()),
        pairs(&[("app_id", "app"), ("app_key", "k1")]),
        "asked by a key that is known to be good"
    );
    backend.serve(&envoy, &workers[1]);
    workers[1].poll(stream).forwarded();
    get_with(&workers[0], "app", "new").forwarded();
    behaved(&envoy);
}

#[test]
fn a_flood_of_wrong_keys_asks_once_in_five_seconds_and_keeps_no_new_key_out() {
    let (envoy, workers, mut backend) = known_to_two(&["k1"]);
    backend.keys.push("new".to_owned());
    let mut worked = None;
    for second in 0..30 {
        for number in 0..50 {
            for worker in &workers {
                let key = format!("wrong-{second}-{number}");
                assert_eq!(backend.get(&envoy, worker, &key), Some(403));
            }
        }
        if get_with(&workers[1], "app", "new").told().is_none() {
            worked = worked.or(Some(second));
        }
        envoy.advance(seconds(1));
    }
    assert!(backend.questions <= 1 + 30 / 5, "{}", backend.questions);
    assert_eq!(worked, Some(5));
    assert_eq!(books(&envoy, "hits").admitted, 1 + 25);
    behaved(&envoy);
}

#[test]
fn one_wrong_key_again_and_again_asks_once_in_each_negative_ttl() {
    let (envoy, worker, mut backend) = known(&["k1"]);
    for _ in 0..40 {
        assert_eq!(backend.get(&envoy, &worker, "wrong"), Some(403));
        envoy.advance(seconds(1));
    }
    assert!(backend.questions <= 1 + 40 / 5, "{}", backend.questions);
    behaved(&envoy);
}

#[test]
fn a_denial_of_a_key_denies_neither_the_application_nor_its_other_keys() {
    let (envoy, workers) = gateway_of(2, &keyed(json!({})));
    let mut backend = Application::with(&["k1"]);
    assert_eq!(backend.get(&envoy, &workers[0], "wrong"), Some(403));
    assert_eq!(get_with(&workers[1], "app", "wrong").told(), Some(403));
    assert_eq!(backend.questions, 1, "remembered for every worker");
    assert_eq!(recorded(&envoy).len(), 0);
    assert_eq!(backend.get(&envoy, &workers[1], "k1"), None);
    assert_eq!(get_with(&workers[0], "app", "wrong").told(), Some(403));
    get_with(&workers[0], "app", "k1").forwarded();
    behaved(&envoy);
}

#[test]
fn those_who_wait_with_other_keys_are_decided_by_the_list() {
    for wrong_first in [false, true] {
        let (envoy, workers) = gateway_of(2, &keyed(json!({})));
        let mut backend = Application::with(&["k1", "k2"]);
        let mut keys = ["k1", "k2", "wrong", "other", "third", "fourth"];
        if wrong_first {
            keys.reverse();
        }
        let streams: Vec<(&str, &Worker, StreamId)> = keys
            .iter()
            .flat_map(|key| workers.iter().map(move |worker| (*key, worker)))
            .map(|(key, worker)| (key, worker, get_with(worker, "app", key).paused()))
            .collect();
        for _ in 0..4 {
            for worker in &workers {
                backend.serve(&envoy, worker);
                worker.deliver();
            }
        }
        for (key, worker, stream) in streams {
            let expected = (!key.starts_with('k')).then_some(403);
            assert_eq!(worker.poll(stream).told(), expected, "{key}");
        }
        let expected = if wrong_first { 3 } else { 1 };
        assert_eq!(backend.questions, expected);
        behaved(&envoy);
    }
}

#[test]
fn a_full_list_is_not_believed_to_be_whole_and_each_key_is_asked_about() {
    let (envoy, worker, mut backend) = full_list(["k0", "k299"]);
    assert_eq!(backend.get(&envoy, &worker, "wrong"), Some(403));
    assert_eq!(backend.questions, 3);
    for (key, status) in [("k0", None), ("k299", None), ("wrong", Some(403))] {
        assert_eq!(get_with(&worker, "app", key).told(), status);
    }
    assert_eq!(backend.questions, 3);
    assert_eq!(recorded(&envoy).len(), 1);
    behaved(&envoy);
}

#[test]
fn keys_in_use_that_no_list_tells_of_are_asked_about_behind_their_traffic() {
    let (envoy, worker, mut backend) = full_list(["k0", "k299"]);
    for _ in 0..60 {
        envoy.advance(seconds(5));
        for key in ["k0", "k299"] {
            get_with(&worker, "app", key).forwarded();
            backend.serve(&envoy, &worker);
        }
        worker.tick();
        backend.serve(&envoy, &worker);
    }
    // Five minutes: a question for each in 45 seconds, and one for the record.
    assert!(backend.questions <= 3 * 7, "{}", backend.questions);
    assert_eq!(backend.get(&envoy, &worker, "wrong"), Some(403));
    behaved(&envoy);
}

#[test]
fn a_key_that_was_revoked_is_refused_within_the_ttl_however_much_it_is_used() {
    let (envoy, worker, mut backend) = full_list(["k299", "k0"]);
    backend.keys.pop();
    let mut refused_after = None;
    for second in 1..=60 {
        envoy.advance(seconds(1));
        if refused_after.is_none() && backend.get_behind(&envoy, &worker, "k299").is_some() {
            refused_after = Some(second);
        }
        // The other key, which is good, is asked about meanwhile.
        assert_eq!(backend.get_behind(&envoy, &worker, "k0"), None);
        worker.tick();
        backend.serve(&envoy, &worker);
    }
    assert!(refused_after.is_some());
    assert_eq!(backend.get(&envoy, &worker, "k299"), Some(403));
    assert_eq!(backend.get_behind(&envoy, &worker, "k0"), None);
    behaved(&envoy);
}

#[test]
fn a_key_that_is_asked_about_behind_serves_no_other_key() {
    let (envoy, worker, mut backend) = full_list(["k0", "k299"]);
    envoy.advance(seconds(50));
    get_with(&worker, "app", "k0").forwarded();
    assert_eq!(
        asked(&only_question(&worker)),
        pairs(&[("app_id", "app"), ("app_key", "k0")])
    );
    // It comes while the right one is asked about, and waits for an answer of its own.
    let wrong = get_with(&worker, "app", "wrong").paused();
    backend.serve(&envoy, &worker);
    assert_eq!(worker.poll(wrong).told(), Some(403));
    assert_eq!(get_with(&worker, "app", "wrong").told(), Some(403));
    behaved(&envoy);
}

#[test]
fn while_nobody_answers_a_key_in_use_is_asked_about_behind_and_still_goes_on() {
    let (envoy, worker, _) = full_list(["k0", "k299"]);
    envoy.advance(seconds(50));
    for _ in 0..3 {
        get_with(&worker, "app", "k0").forwarded();
        assert!(
            worker
                .calls()
                .iter()
                .filter(|call| !is_report(call))
                .count()
                <= 1
        );
    }
    worker.answer_all(|_| error(500, ""));
    get_with(&worker, "app", "k0").forwarded();
    behaved(&envoy);
}

#[test]
fn a_referrer_in_use_is_asked_about_behind_its_traffic() {
    let (envoy, worker) = gateway(&referred());
    let mut backend = Application {
        referrers: vec!["a.example".to_owned()],
        ..Application::default()
    };
    assert_eq!(backend.get_from(&envoy, &worker, "a.example"), None);
    for _ in 0..60 {
        envoy.advance(seconds(5));
        get_from(&worker, "app", "a.example").forwarded();
        backend.serve(&envoy, &worker);
    }
    assert!(backend.questions <= 1 + 7, "{}", backend.questions);
    behaved(&envoy);
}

#[test]
fn an_application_with_keys_is_refreshed_by_one_of_them_behind_the_traffic() {
    let (envoy, worker, mut backend) = known(&["k1", "k2"]);
    envoy.advance(seconds(61));
    get_with(&worker, "app", "k2").forwarded();
    worker.tick();
    assert_eq!(
        asked(&only_question(&worker)),
        pairs(&[("app_id", "app"), ("app_key", "k1")])
    );
    backend.suspended = true;
    backend.serve(&envoy, &worker);
    assert_eq!(get_with(&worker, "app", "k2").told(), Some(403));
    behaved(&envoy);
}

#[test]
fn when_the_key_of_the_refreshes_has_gone_another_is_found_out() {
    let (envoy, worker, mut backend) = known(&["k1", "k2"]);
    backend.keys.remove(0);
    envoy.advance(seconds(61));
    get_with(&worker, "app", "k2").forwarded();
    worker.tick();
    let mut shown = Vec::new();
    while let Some(call) = worker.calls().into_iter().find(|call| !is_report(call)) {
        shown.push(asked(&call).get("app_key").cloned());
        worker.answer(call.token, backend.answer(&call, envoy.wall_ms()));
    }
    assert_eq!(shown, [Some("k1".to_owned()), None, Some("k2".to_owned())]);
    get_with(&worker, "app", "k2").forwarded();
    assert_eq!(get_with(&worker, "app", "k1").told(), Some(403));
    assert_eq!(stat(&envoy, "requests_admitted_stale"), 1);
    behaved(&envoy);
}

#[test]
fn a_listed_key_is_good_and_another_wrong_while_nobody_answers() {
    let (envoy, worker, _) = known(&["k1", "k2"]);
    envoy.advance(seconds(120));
    get_with(&worker, "app", "k2").forwarded();
    let stream = get_with(&worker, "app", "wrong").paused();
    worker.answer_all(|_| error(500, ""));
    assert_eq!(worker.poll(stream).told(), Some(403));
    behaved(&envoy);
}

#[test]
fn a_list_that_somebody_spoiled_is_asked_for_again() {
    let (envoy, workers, mut backend) = known_to_two(&["k1"]);
    let key = envoy.shared_keys().into_iter();
    let key = key
        .clone()
        .find(|key| key.get(KIND_AT) == Some(&b'a'))
        .unwrap();
    let (mut value, cas) = envoy.shared_data().get(&key).unwrap();
    let last = value.len() - 1;
    value[last] ^= 1;
    envoy.shared_data().set(&key, &value, cas);
    assert_eq!(backend.get(&envoy, &workers[1], "k1"), None);
    assert_eq!(backend.questions, 2);
    get_with(&workers[1], "app", "k1").forwarded();
    behaved(&envoy);
}

#[test]
fn an_unknown_app_id_is_remembered_whatever_its_key() {
    let (envoy, worker) = gateway(&keyed(json!({})));
    let mut backend = Application::default();
    let stream = get_with(&worker, "nobody", "k").paused();
    backend.serve(&envoy, &worker);
    assert_eq!(worker.poll(stream).told(), Some(403));
    assert_eq!(get_with(&worker, "nobody", "k2").told(), Some(403));
    behaved(&envoy);
}

#[test]
fn usage_is_reported_by_app_id_and_never_with_a_key() {
    let (envoy, worker, mut backend) = known(&["k1", "k2"]);
    get_with(&worker, "app", "k2").forwarded();
    let calls = pass_time(&envoy, std::slice::from_ref(&worker), seconds(11), |call| {
        Some(backend.answer(call, envoy.wall_ms()))
    });
    let reports = reports(&calls);
    let [transaction] = reports
        .iter()
        .flat_map(|report| report.transactions.values())
        .collect::<Vec<_>>()[..]
    else {
        panic!("one transaction");
    };
    assert_eq!(transaction.application, pairs(&[("app_id", "app")]));
    assert_eq!(transaction.usage["hits"], 2);
    behaved(&envoy);
}

#[test]
fn a_service_in_oauth_mode_is_asked_at_its_endpoint_and_needs_no_key() {
    let (envoy, worker) = gateway(&keyed(json!({ "oauth": true })));
    let mut backend = Application::with(&["k1"]);
    let stream = worker.request().get("/?app_id=app").send().paused();
    let call = worker.only_call();
    assert!(
        call.path()
            .starts_with("/transactions/oauth_authorize.xml?")
    );
    assert_eq!(asked(&call), pairs(&[("app_id", "app")]));
    backend.serve(&envoy, &worker);
    worker.poll(stream).forwarded();
    get_with(&worker, "app", "k1").forwarded();
    assert_eq!(get_with(&worker, "app", "wrong").told(), Some(403));
    assert_eq!(backend.questions, 1);

    envoy.advance(seconds(61));
    get_with(&worker, "app", "k1").forwarded();
    worker.tick();
    assert_eq!(asked(&only_question(&worker)), pairs(&[("app_id", "app")]));
    behaved(&envoy);
}

#[test]
fn oauth_that_is_not_enabled_is_our_misconfiguration() {
    let (envoy, worker) = gateway(&keyed(json!({ "oauth": true })));
    let stream = get_with(&worker, "app", "k").paused();
    let call = worker.only_call();
    worker.answer(call.token, denied("oauth_not_enabled").at(envoy.wall_ms()));
    assert_eq!(worker.poll(stream).told(), Some(503));
    assert_eq!(stat(&envoy, "misconfigured"), 1);
    behaved(&envoy);
}

#[test]
fn a_provider_key_is_sent_in_place_of_a_token() {
    let mut whole: Value = serde_json::from_str(&plain()).unwrap();
    let service = whole["services"][0].as_object_mut().unwrap();
    service.remove("token");
    service.insert("provider_key".to_owned(), json!("pr0vider"));
    let (envoy, worker) = gateway(&whole.to_string());
    introduce(&envoy, &worker, "alice", authorized());
    let calls = pass_time(&envoy, std::slice::from_ref(&worker), seconds(11), |_| {
        Some(accepted())
    });
    let report = String::from_utf8(calls[0].body.clone()).unwrap();
    assert!(report.starts_with("provider_key=pr0vider&service_id=1001&"));
    assert!(!report.contains("token"));
    behaved(&envoy);
}

#[test]
fn each_referrer_is_asked_about_once_and_all_use_up_one_limit() {
    let (envoy, workers) = gateway_of(2, &referred());
    let mut backend = Application {
        referrers: vec!["a.example".to_owned(), "b.example".to_owned()],
        limit: Some(5),
        ..Application::default()
    };
    assert_eq!(
        backend.get_from(&envoy, &workers[0], "evil.example"),
        Some(403)
    );
    assert_eq!(backend.get_from(&envoy, &workers[0], "a.example"), None);
    assert_eq!(backend.get_from(&envoy, &workers[0], "b.example"), None);
    assert_eq!(backend.questions, 3);
    let bare = workers[0].request().get("/?app_id=app").send();
    assert_eq!(backend.settle(&envoy, &workers[0], bare), Some(403));
    assert_eq!(backend.questions, 4);
    for worker in &workers {
        get_from(worker, "app", "a.example").forwarded();
        assert_eq!(get_from(worker, "app", "evil.example").told(), Some(403));
    }
    assert_eq!(get_from(&workers[1], "app", "b.example").told(), None);
    assert_eq!(get_from(&workers[1], "app", "b.example").told(), Some(429));
    assert_eq!(recorded(&envoy).len(), 1);
    behaved(&envoy);
}

#[test]
fn an_application_with_referrers_is_refreshed_whoever_refers_to_it() {
    let (envoy, worker) = gateway(&referred());
    let mut backend = Application {
        referrers: vec!["a.example".to_owned()],
        ..Application::with(&["k1"])
    };
    let shown = |worker: &Worker| {
        let request = worker.request().get("/?app_id=app&app_key=k1");
        request.header("referer", "a.example").send()
    };
    let outcome = shown(&worker);
    assert_eq!(backend.settle(&envoy, &worker, outcome), None);
    envoy.advance(seconds(44));
    shown(&worker).forwarded();
    worker.tick();
    assert_eq!(
        asked(&only_question(&worker)),
        pairs(&[("app_id", "app"), ("app_key", "k1"), ("referrer", "*")])
    );
    backend.serve(&envoy, &worker);
    shown(&worker).forwarded();

    // The referrer itself is asked about again when its time is over; unanswered, it holds.
    envoy.advance(seconds(17));
    let stream = shown(&worker).paused();
    worker.answer_all(|_| error(500, ""));
    worker.poll(stream).forwarded();
    behaved(&envoy);
}

#[test]
fn a_referrer_of_a_user_key_is_looked_at_where_the_service_does() {
    let configuration = keyed(json!({ "credentials": {
        "user_key": [{ "query": "user_key" }],
        "referrer": true,
    } }));
    let (envoy, worker) = gateway(&configuration);
    let from = |referrer: &str| {
        let request = worker.request().get("/?user_key=alice");
        request.header("referer", referrer).send()
    };
    let stream = from("a.example").paused();
    let call = worker.only_call();
    assert_eq!(
        asked(&call),
        pairs(&[("user_key", "alice"), ("referrer", "a.example")])
    );
    worker.answer(call.token, authorized().at(envoy.wall_ms()));
    worker.poll(stream).forwarded();
    let stream = from("evil.example").paused();
    let call = worker.only_call();
    worker.answer(
        call.token,
        denied("referrer_not_allowed").at(envoy.wall_ms()),
    );
    assert_eq!(worker.poll(stream).told(), Some(403));
    from("a.example").forwarded();
    assert_eq!(from("evil.example").told(), Some(403));
    behaved(&envoy);
}
