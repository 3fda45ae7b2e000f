//! Services on one host: which of them a request belongs to.

use serde_json::{Value, json};
use tollgate_fake_host::{FakeEnvoy, Outcome, Worker, authorized};

use crate::support::*;

/// Services on one host, each told apart by these fields.
fn sharing(services: &[(&str, Value)], settings: Value) -> (FakeEnvoy, Worker) {
    let services: Vec<_> = services
        .iter()
        .map(|(id, fields)| {
            let mut service = service(id, "api.example.com");
            for (name, value) in fields.as_object().unwrap() {
                service[name] = value.clone();
            }
            service
        })
        .collect();
    let mut changes = settings;
    changes["services"] = json!(services);
    gateway(&configuration(changes))
}

/// The service whose service management is asked about a request; the request is let in.
#[track_caller]
fn asked(envoy: &FakeEnvoy, worker: &Worker, outcome: Outcome) -> String {
    let stream = outcome.paused();
    let call = worker.only_call();
    let (_, query) = call.path().split_once('?').unwrap();
    let id = form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == "service_id");
    worker.answer(call.token, authorized().at(envoy.wall_ms()));
    worker.poll(stream).forwarded();
    id.unwrap().1.into_owned()
}

#[test]
fn the_longest_prefix_of_the_path_chooses_the_service() {
    let (envoy, worker) = sharing(
        &[
            ("1001", json!({})),
            ("1002", json!({ "path_prefix": "/v1" })),
            ("1003", json!({ "path_prefix": "/v1/orders/" })),
        ],
        json!({}),
    );
    for (number, (target, service)) in [
        ("/", "1001"),
        ("/v10", "1001"),
        ("/v1", "1002"),
        ("/v1/ordersx", "1002"),
        ("/v1/orders", "1003"),
        ("/v1/orders/7", "1003"),
        // Every way to write a path is the path.
        ("/v2/../v1/orders/7", "1003"),
        ("//v1/./%6Frders", "1003"),
        ("/v1/orders/../x", "1002"),
        ("/v1/orders/%2e%2E/x", "1002"),
        ("/v1%2Forders", "1001"),
    ]
    .into_iter()
    .enumerate()
    {
        let outcome = worker
            .request()
            .get(format!("{target}?user_key=key{number}"))
            .send();
        assert_eq!(asked(&envoy, &worker, outcome), service, "{target}");
    }
    assert_eq!(envoy.stat("tollgate.1003.requests_admitted"), 4);
    behaved(&envoy);
}

#[test]
fn mapping_rules_see_the_whole_path() {
    let rules = json!([{ "pattern": "/v1/orders", "usage": { "hits": 1 } }]);
    let (envoy, worker) = sharing(
        &[(
            "1001",
            json!({ "path_prefix": "/v1", "mapping_rules": rules }),
        )],
        json!({}),
    );
    let get = |target| worker.request().get(target).send();
    asked(&envoy, &worker, get("/v1/orders?user_key=alice"));
    let reply = get("/v1/other?user_key=alice").reply();
    assert_eq!(reply.details, "tollgate_no_mapping_rule");
}

#[test]
fn the_name_of_the_route_chooses_the_service() {
    let (envoy, worker) = sharing(
        &[
            ("1001", json!({ "route": "orders" })),
            ("1002", json!({ "route": "search" })),
            ("1003", json!({ "route": "search", "path_prefix": "/v2" })),
        ],
        json!({}),
    );
    for (number, (route, target, service)) in [
        ("orders", "/", "1001"),
        ("search", "/", "1002"),
        ("search", "/v2/x", "1003"),
        ("orders", "/v2/x", "1001"),
    ]
    .into_iter()
    .enumerate()
    {
        let request = worker.request().property("xds.route_name", route);
        let outcome = request.get(format!("{target}?user_key=key{number}")).send();
        assert_eq!(asked(&envoy, &worker, outcome), service, "{route} {target}");
    }
    for route in ["", "Orders", "other"] {
        let request = worker.request().property("xds.route_name", route);
        let reply = request.get("/?user_key=alice").send().reply();
        assert_eq!(
            (reply.status, &*reply.details),
            (404, "tollgate_no_service")
        );
    }
    let reply = worker.request().get("/?user_key=alice").send().reply();
    assert_eq!(reply.details, "tollgate_no_service", "no route at all");
    behaved(&envoy);
}

#[test]
fn a_path_of_nobody_on_a_guarded_host_is_404_even_where_other_hosts_may_pass() {
    let (envoy, worker) = sharing(
        &[("1001", json!({ "path_prefix": "/v1" }))],
        json!({ "unmatched_hosts": "pass" }),
    );
    for target in ["/", "/v10", "*", "/v1/../admin", "/v1/%2e%2e/admin"] {
        let reply = worker.request().get(target).send().reply();
        assert_eq!(
            (reply.status, &*reply.details),
            (404, "tollgate_no_service")
        );
    }
    assert_eq!(envoy.stat("tollgate.requests_unmatched_host"), 5);
    let elsewhere = worker.request().host("other.example.com");
    elsewhere.send().forwarded();
    assert_eq!(worker.calls().len(), 0);
}

#[test]
fn a_key_of_one_service_on_a_host_is_not_one_of_another() {
    let (envoy, worker) = sharing(
        &[
            ("1001", json!({})),
            ("1002", json!({ "path_prefix": "/v1" })),
        ],
        json!({}),
    );
    let get = |target| worker.request().get(target).send();
    assert_eq!(asked(&envoy, &worker, get("/?user_key=same")), "1001");
    assert_eq!(asked(&envoy, &worker, get("/v1?user_key=same")), "1002");
    get("/?user_key=same").forwarded();
    get("/v1?user_key=same").forwarded();
    assert_eq!(records(&envoy).len(), 2);
}
