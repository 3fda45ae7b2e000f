//! Tenants beside each other in one process: configurations that differ in little, workers and
//! root contexts that share all data. What service management says of one application of one
//! tenant is the answer to that one's requests, and to nobody else's.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use serde_json::{Value, json};
use tollgate_fake_host::{Answer, Call, FakeEnvoy, Outcome, Worker, accepted, authorized, denied};

use crate::support::*;

/// A service, as service management tells it from others, and how it is known here.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Tenant {
    cluster: &'static str,
    authority: &'static str,
    service: &'static str,
    by_id: bool,
}

/// An application: its service at service management, and its credential.
type Application = (String, String, String, String, String);

const CLUSTERS: [&str; 3] = ["a", "ab", "b"];
const AUTHORITIES: [&str; 3] = ["bc", "c", "a.bc"];
const SERVICES: [&str; 4] = ["1", "11", "d1", "/1"];
const KEYS: [&str; 6] = ["same", "same2", "2same", "1same", "sam", "SAME"];

fn configuration_of(tenants: &[Tenant]) -> String {
    let services: Vec<Value> = tenants
        .iter()
        .enumerate()
        .map(|(number, tenant)| {
            let mut service = service(tenant.service, &format!("host{number}.example.com"));
            service["token"] = json!(format!("{}-{}", tenant.cluster, tenant.authority));
            let (field, value) = if tenant.by_id {
                ("app_id", json!([{ "query": "key" }]))
            } else {
                ("user_key", json!([{ "query": "key" }]))
            };
            service["credentials"] = json!({ field: value });
            service
        })
        .collect();
    let (cluster, authority) = (tenants[0].cluster, tenants[0].authority);
    configuration(json!({
        "service_management": { "cluster": cluster, "authority": authority },
        "services": services,
    }))
}

/// The application that a call is about.
fn application_of(call: &Call) -> Application {
    let (_, query) = call.path().split_once('?').expect("a question");
    let parameters: BTreeMap<String, String> = form_urlencoded::parse(query.as_bytes())
        .into_owned()
        .collect();
    let (kind, key) = ["user_key", "app_id"]
        .into_iter()
        .find_map(|kind| Some((kind, parameters.get(kind)?)))
        .expect("a credential");
    assert_eq!(
        parameters["service_token"],
        format!("{}-{}", call.cluster, call.header(":authority").unwrap()),
        "a token of another tenant"
    );
    (
        call.cluster.clone(),
        call.header(":authority").unwrap().to_owned(),
        parameters["service_id"].clone(),
        kind.to_owned(),
        key.clone(),
    )
}

/// What service management says of an application: each its own plan, or a denial.
fn fate(application: &Application) -> u64 {
    let mut hasher = DefaultHasher::new();
    application.hash(&mut hasher);
    hasher.finish() % 4
}

fn answer(application: &Application, wall_ms: u64) -> Answer {
    match fate(application) {
        0 => denied("application_not_active").at(wall_ms),
        1 => denied("service_not_active").at(wall_ms),
        units => authorized().limit("hits", "eternity", units, 0).at(wall_ms),
    }
}

/// The details of the right answer, after so many requests that were let in.
fn right(application: &Application, used: u64) -> &'static str {
    match fate(application) {
        0 => "tollgate_application_not_active",
        1 => "tollgate_service_not_active",
        units if used < units => "",
        _ => "tollgate_limit_exceeded",
    }
}

fn details(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Continued(_) => String::new(),
        Outcome::Replied(reply) => reply.details.clone(),
        other => panic!("{other:?}"),
    }
}

/// Some tenants of one backend: a configuration has one.
fn tenants(random: &mut Random) -> Vec<Tenant> {
    let (cluster, authority) = (*random.one_of(&CLUSTERS), *random.one_of(&AUTHORITIES));
    let mut seen = BTreeSet::new();
    let mut tenants = Vec::new();
    for _ in 0..=random.below(3) {
        let service = *random.one_of(&SERVICES);
        // A backend knows a service in one way.
        if seen.insert(service) {
            tenants.push(Tenant {
                cluster,
                authority,
                service,
                by_id: (cluster.len() + authority.len() + service.len()).is_multiple_of(2),
            });
        }
    }
    tenants
}

#[test]
fn tenants_beside_each_other_get_their_own_answers() {
    let mut random = Random(0x0007_e4a4);
    let (mut requests, mut asked) = (0, 0);
    for _ in 0..60 {
        let envoy = CLUSTERS
            .iter()
            .fold(FakeEnvoy::new(), |envoy, cluster| envoy.cluster(cluster));
        // Two workers with a configuration each, and sometimes a newer one beside it.
        let mut workers: Vec<(Worker, Vec<Tenant>)> = Vec::new();
        for _ in 0..3 {
            let tenants = tenants(&mut random);
            workers.push((
                envoy.configured_worker(&configuration_of(&tenants)),
                tenants,
            ));
        }
        let mut used: BTreeMap<Application, u64> = BTreeMap::new();
        for _ in 0..120 {
            if random.below(20) == 0 {
                let newer = tenants(&mut random);
                let worker = random.below(3);
                let (worker, tenants) = &mut workers[usize::try_from(worker).unwrap()];
                assert!(worker.configure(&configuration_of(&newer)));
                *tenants = newer;
            }
            let (worker, tenants) = random.one_of(&workers);
            let number = usize::try_from(random.below(tenants.len() as u64)).unwrap();
            let (tenant, key) = (&tenants[number], *random.one_of(&KEYS));
            let application: Application = (
                tenant.cluster.into(),
                tenant.authority.into(),
                tenant.service.into(),
                if tenant.by_id { "app_id" } else { "user_key" }.into(),
                key.into(),
            );
            let request = worker.request().host(format!("host{number}.example.com"));
            let mut outcome = request.get(format!("/?key={key}")).send();
            if let Outcome::Paused(stream) = outcome {
                let call = worker
                    .calls()
                    .into_iter()
                    .find(|call| call.method() == "GET")
                    .expect("a question");
                let about = application_of(&call);
                assert_eq!(about, application);
                worker.answer(call.token, answer(&about, envoy.wall_ms()));
                outcome = worker.poll(stream);
                asked += 1;
            }
            let used = used.entry(application.clone()).or_default();
            assert_eq!(
                details(&outcome),
                right(&application, *used),
                "{application:?} {used}"
            );
            *used += u64::from(outcome.continued());
            requests += 1;
        }
        // What was used is reported to whom it belongs.
        for _ in 0..3 {
            envoy.advance(seconds(20));
            for (worker, _) in &workers {
                worker.tick();
                for call in worker.calls() {
                    if is_report(&call) {
                        for ((application, metric), units) in reported(&call) {
                            assert_eq!(metric, "hits");
                            let used = used.get_mut(&application).expect("a known application");
                            *used = used.checked_sub(units).expect("no more than was used");
                        }
                        worker.answer(call.token, accepted());
                    } else if let Some(answer) = known_metrics(&call, envoy.wall_ms()) {
                        worker.answer(call.token, answer);
                    }
                }
            }
        }
        assert!(
            used.values().all(|left| *left == 0),
            "not reported: {used:?}"
        );
        behaved(&envoy);
    }
    println!("{requests} requests, {asked} questions");
    assert!(asked * 2 < requests, "records were hardly used");
}

fn known_metrics(call: &Call, wall_ms: u64) -> Option<Answer> {
    tollgate_fake_host::with_usage(call, |_| true, wall_ms)
}

/// What a report says of each application, and of which.
fn reported(call: &Call) -> Vec<((Application, String), u64)> {
    let report = tollgate_fake_host::Report::parse(&call.body);
    let authority = call.header(":authority").unwrap();
    assert_eq!(
        report.service["service_token"],
        format!("{}-{authority}", call.cluster)
    );
    let mut all = Vec::new();
    for transaction in report.transactions.values() {
        let (kind, key) = transaction.application.iter().next().unwrap();
        for (metric, units) in &transaction.usage {
            let application = (
                call.cluster.clone(),
                authority.to_owned(),
                report.service["service_id"].clone(),
                kind.clone(),
                key.clone(),
            );
            all.push(((application, metric.clone()), *units));
        }
    }
    all
}
