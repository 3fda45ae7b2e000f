//! Where credentials are found, what the upstream sees of them, and bodies that hold them.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tollgate_fake_host::{Call, FakeEnvoy, Forwarded, Outcome, StreamId, Worker, authorized};

use crate::support::*;

/// A gateway whose service has these credentials.
fn with(credentials: Value) -> (FakeEnvoy, Worker) {
    let mut service = service("1001", "api.example.com");
    service["credentials"] = credentials;
    gateway(&configuration(json!({ "services": [service] })))
}

/// The parameters of a question, by name; the names are all different.
fn parameters(call: &Call) -> BTreeMap<String, String> {
    let (_, query) = call.path().split_once('?').expect("a query");
    let parameters: Vec<_> = form_urlencoded::parse(query.as_bytes())
        .into_owned()
        .collect();
    let by_name: BTreeMap<_, _> = parameters.iter().cloned().collect();
    assert_eq!(parameters.len(), by_name.len(), "{query}");
    by_name
}

/// What is asked about the only request that waits, but for what is always asked.
fn asked(worker: &Worker) -> Vec<(String, String)> {
    let mut parameters = parameters(&worker.only_call());
    assert_eq!(parameters.remove("service_id").as_deref(), Some("1001"));
    assert_eq!(
        parameters.remove("service_token").as_deref(),
        Some("token-of-1001")
    );
    parameters.into_iter().collect()
}

fn pair(name: &str, value: &str) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

/// Answers the only call and returns the request that waited for it.
fn let_in(envoy: &FakeEnvoy, worker: &Worker, stream: StreamId) -> Forwarded {
    worker.answer(worker.only_call().token, authorized().at(envoy.wall_ms()));
    worker.poll(stream).forwarded()
}

fn values<'a>(forwarded: &'a Forwarded, name: &str) -> Vec<&'a str> {
    let headers = forwarded.headers.iter().filter(|(known, _)| known == name);
    headers.map(|(_, value)| value.as_str()).collect()
}

const FORM: (&str, &str) = ("content-type", "application/x-www-form-urlencoded");

#[test]
fn a_user_key_is_found_in_each_of_its_places() {
    for (source, name, value) in [
        (json!({ "header": "X-Key" }), "X-Key", "a%2b&b=c"),
        (json!({ "cookie": "k" }), "Cookie", "j=1; k=\"a%2b&b=c\""),
        (
            json!({ "basic": "username" }),
            "Authorization",
            "Basic YSUyYiZiPWM6eA==",
        ),
        (
            json!({ "basic": "password" }),
            "Authorization",
            "basic eDphJTJiJmI9Yw",
        ),
        (json!({ "bearer": {} }), "Authorization", "Bearer a%2b&b=c"),
    ] {
        let (envoy, worker) = with(json!({ "user_key": [source] }));
        let stream = worker.request().header(name, value).send().paused();
        assert_eq!(asked(&worker), [pair("user_key", "a%2b&b=c")], "{source}");
        let_in(&envoy, &worker, stream);
        // Known by that key, whatever else it says.
        assert!(
            worker
                .request()
                .get("/?a=1")
                .header(name, value)
                .send()
                .continued()
        );
        assert_eq!(
            worker.request().get("/?user_key=a").send().status(),
            Some(401)
        );
        behaved(&envoy);
    }
}

#[test]
fn an_app_id_is_asked_about_with_its_key_and_where_it_comes_from() {
    let (envoy, worker) = with(json!({
        "app_id": [{ "basic": "username" }, { "query": "app_id" }],
        "app_key": [{ "basic": "password" }, { "header": "app-key" }],
        "referrer": true,
    }));
    let request = || worker.request().get("/?app_id=i%26&user_key=u");
    let request = request()
        .header("app-key", " k&l ")
        .header("referer", "https://a.example/?b&c");
    let stream = request.send().paused();
    let expected = [
        pair("app_id", "i&"),
        pair("app_key", "k&l"),
        pair("referrer", "https://a.example/?b&c"),
    ];
    assert_eq!(asked(&worker), expected);
    let_in(&envoy, &worker, stream);
    let stream = worker
        .request()
        .header("authorization", "Basic aTpr")
        .send()
        .paused();
    assert_eq!(asked(&worker), [pair("app_id", "i"), pair("app_key", "k")]);
    let_in(&envoy, &worker, stream);
    behaved(&envoy);
}

#[test]
fn a_request_without_a_credential_has_the_anonymous_one() {
    let (envoy, worker) = with(json!({
        "user_key": [{ "query": "user_key" }, { "header": "x-key" }],
        "anonymous": { "user_key": "nobody" },
    }));
    let stream = worker.request().send().paused();
    assert_eq!(asked(&worker), [pair("user_key", "nobody")]);
    let_in(&envoy, &worker, stream);
    assert!(worker.request().get("/?user_key=").send().continued());
    assert_eq!(
        worker.request().header("x-key", b"\xff").send().status(),
        Some(403)
    );
    let stream = worker.request().header("x-key", "somebody").send().paused();
    assert_eq!(asked(&worker), [pair("user_key", "somebody")]);
    let_in(&envoy, &worker, stream);
    behaved(&envoy);
}

#[test]
fn what_is_stripped_does_not_go_upstream_at_once_or_after_waiting() {
    let (envoy, worker) = with(json!({
        "user_key": [{ "query": "key" }, { "header": "x-key" }, { "cookie": "key" }, { "bearer": {} }],
        "strip": true,
    }));
    let send = || {
        let request = worker.request().get("/a?x=%2b&key=alice&y&k%65y=2");
        let request = request.header("x-key", "1").header("x-key", "2");
        let request = request
            .header("cookie", "a=1; key=3")
            .header("cookie", "key=4");
        request
            .header("authorization", "bearer 5")
            .header("x-other", "6")
            .send()
    };
    let stream = send().paused();
    for forwarded in [let_in(&envoy, &worker, stream), send().forwarded()] {
        assert_eq!(values(&forwarded, ":path"), ["/a?x=%2b&y"]);
        assert_eq!(values(&forwarded, "cookie"), ["a=1"]);
        assert_eq!(values(&forwarded, "x-other"), ["6"]);
        for gone in ["x-key", "authorization"] {
            assert_eq!(values(&forwarded, gone), [""; 0], "{gone}");
        }
    }
    // Of another scheme it is the upstream's.
    let stream = worker
        .request()
        .header("x-key", "bob")
        .header("authorization", "Basic YQ==");
    let forwarded = let_in(&envoy, &worker, stream.send().paused());
    assert_eq!(values(&forwarded, "authorization"), ["Basic YQ=="]);
    behaved(&envoy);
}

#[test]
fn a_request_whose_credentials_cannot_be_stripped_is_not_let_through() {
    let strip = json!({ "user_key": [{ "query": "key" }, { "cookie": "key" }], "strip": true });
    for function in [
        "proxy_replace_header_map_value",
        "proxy_remove_header_map_value",
        "proxy_add_header_map_value",
    ] {
        let (envoy, worker) = with(strip.clone());
        let send = || {
            worker
                .request()
                .get("/?key=a")
                .header("cookie", "key=a; b=c")
                .send()
        };
        let_in(&envoy, &worker, send().paused());
        envoy.fail_next(function, 2, 1);
        assert_eq!(send().status(), Some(503), "{function}");
        assert_eq!(stat(&envoy, "requests_admitted"), 1, "{function}");
    }
}

/// A gateway that looks for a key in a header, then in the body, in an Envoy that shows bodies.
fn with_body() -> (FakeEnvoy, Worker) {
    let (envoy, worker) = with(json!({ "user_key": [{ "header": "x-key" }, { "body": "key" }] }));
    envoy.show_bodies();
    (envoy, worker)
}

fn post(worker: &Worker) -> tollgate_fake_host::Request<'_> {
    worker
        .request()
        .post("/")
        .header(FORM.0, FORM.1)
        .with_body()
}

#[test]
fn a_key_in_a_form_is_looked_at_when_all_of_it_is_here() {
    let (envoy, worker) = with_body();
    let stream = post(&worker).send().paused();
    assert_eq!(
        worker.body(stream, "a=1&ke", false),
        Outcome::Paused(stream)
    );
    assert_eq!(worker.calls().len(), 0);
    assert_eq!(
        worker.body(stream, "y=a%26b+c", true),
        Outcome::Paused(stream)
    );
    assert_eq!(asked(&worker), [pair("user_key", "a&b+c")]);
    let_in(&envoy, &worker, stream);

    let stream = post(&worker).send().paused();
    assert!(worker.body(stream, "key=a%26b+c", true).continued());
    let stream = post(&worker).send().paused();
    assert_eq!(
        worker.body(stream, "key=a%26b+c", false),
        Outcome::Paused(stream)
    );
    assert!(worker.trailers(stream).continued());
    worker.tick();
    assert_eq!(stat(&envoy, "requests_admitted"), 3);
    behaved(&envoy);
}

#[test]
fn a_request_is_refused_at_the_end_of_its_body_as_by_its_headers() {
    let (envoy, worker) = with_body();
    for (body, status) in [("", 401), ("key=", 401), ("x=key", 401), ("key=%ff", 403)] {
        let stream = post(&worker).send().paused();
        assert_eq!(
            worker.body(stream, body, true).status(),
            Some(status),
            "{body}"
        );
    }
    let stream = post(&worker).send().paused();
    assert_eq!(worker.trailers(stream).status(), Some(401));
    // There is nothing to wait for.
    assert_eq!(
        worker.request().post("/").with_body().send().status(),
        Some(401)
    );
    let without = worker.request().post("/").header(FORM.0, FORM.1);
    assert_eq!(without.send().status(), Some(401));
    assert_eq!(worker.calls().len(), 0);
    behaved(&envoy);
}

#[test]
fn a_body_larger_than_any_form_with_a_key_is_413() {
    let (envoy, worker) = with_body();
    let announced = |length: &str| post(&worker).header("content-length", length).send();
    for length in ["65537", "4294967296"] {
        assert_eq!(announced(length).status(), Some(413), "{length}");
    }
    let stream = announced("65536").paused();
    let most = format!("key=a&b={}", "b".repeat(65_536 - 8));
    assert_eq!(worker.body(stream, &most, true), Outcome::Paused(stream));
    let_in(&envoy, &worker, stream);
    let stream = announced("99999999999999999999").paused();
    assert_eq!(worker.body(stream, &most, false), Outcome::Paused(stream));
    assert_eq!(worker.body(stream, "b", false).status(), Some(413));
    behaved(&envoy);
}

#[test]
fn a_body_that_does_not_come_is_408() {
    let (envoy, worker) = with_body();
    let (gone, late) = (post(&worker).send().paused(), post(&worker).send().paused());
    envoy.advance(seconds(5));
    let later = post(&worker).send().paused();
    worker.end_stream(gone);
    worker.tick();
    assert_eq!(worker.poll(late), Outcome::Paused(late));
    envoy.advance(seconds(5));
    worker.tick();
    assert_eq!(worker.poll(late).status(), Some(408));
    assert!(worker.body(later, "key=", true).status() == Some(401));
    assert!(
        envoy
            .logs()
            .iter()
            .any(|line| line.message.contains("allow_on_headers_stop_iteration"))
    );
    envoy.advance(seconds(60));
    worker.tick();
    behaved(&envoy);
}

#[test]
fn a_request_that_waits_for_an_answer_keeps_its_body() {
    let (envoy, worker) = with_body();
    let stream = post(&worker).header("x-key", "alice").send().paused();
    assert_eq!(worker.body(stream, "a=1", false), Outcome::Paused(stream));
    assert_eq!(worker.body(stream, "&b=2", true), Outcome::Paused(stream));
    assert_eq!(worker.trailers(stream), Outcome::Paused(stream));
    let_in(&envoy, &worker, stream);
    behaved(&envoy);
}

#[test]
fn a_body_that_envoy_does_not_show_is_not_let_through() {
    let (envoy, worker) = with(json!({ "user_key": [{ "body": "key" }] }));
    let stream = post(&worker).send().paused();
    assert_eq!(worker.body(stream, "key=a", true), Outcome::Paused(stream));
    envoy.advance(seconds(10));
    worker.tick();
    assert_eq!(worker.poll(stream).status(), Some(408));
    behaved(&envoy);
}
