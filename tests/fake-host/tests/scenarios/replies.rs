//! What consumers are told: status, `Retry-After`, body, and the details of the access log.

use serde_json::json;
use tollgate_fake_host::{FakeEnvoy, Outcome, Reply, authorized, denied, error};

use crate::support::*;

#[test]
fn no_credential_is_401_and_nobody_is_asked() {
    let (envoy, worker) = gateway(&plain());
    let reply = worker.request().get("/").send().reply();
    assert_eq!(reply.status, 401);
    assert_eq!(reply.details, "tollgate_no_credential");
    assert!(reply.header("www-authenticate").is_some());
    assert!(reply.header("content-type").is_some());
    assert_eq!(worker.calls().len(), 0);
    assert_eq!(stat(&envoy, "requests_no_credential"), 1);
    behaved(&envoy);
}

#[test]
fn a_credential_that_nobody_can_have_is_403_and_nobody_is_asked() {
    let (envoy, worker) = gateway(&plain());
    for key in ["%ff%fe", "a%00", "a%0ab", &"x".repeat(257)] {
        let reply = get(&worker, key).reply();
        assert_eq!(reply.status, 403, "{key}");
        assert_eq!(reply.details, "tollgate_credential_unusable");
    }
    assert_eq!(worker.calls().len(), 0);
    assert_eq!(stat(&envoy, "requests_denied"), 4);
}

#[test]
fn a_denied_credential_is_403_with_the_reason_in_the_access_log_only() {
    let cases = [
        (error(403, "user_key_invalid"), "user_key_invalid"),
        (
            denied("application_not_active").at(FakeEnvoy::START_MS),
            "application_not_active",
        ),
        (
            denied("service_not_active").at(FakeEnvoy::START_MS),
            "service_not_active",
        ),
        (denied("something_new").at(FakeEnvoy::START_MS), "denied"),
    ];
    for (answer, reason) in cases {
        let (envoy, worker) = gateway(&plain());
        let stream = get(&worker, "mallory").paused();
        worker.answer(worker.only_call().token, answer);
        let reply = worker.poll(stream).reply();
        assert_eq!(reply.status, 403);
        assert_eq!(reply.details, format!("tollgate_{reason}"));
        assert!(!reply.text().contains(reason));
        assert_eq!(reply.header("retry-after"), None);
        assert_eq!(
            get(&worker, "mallory").reply(),
            reply,
            "the same when remembered"
        );
        behaved(&envoy);
    }
}

#[test]
fn a_request_that_no_rule_matches_is_404_and_nobody_is_asked() {
    let rules = rules(
        json!([{ "pattern": "/v1", "usage": { "hits": 1 } }]),
        json!({}),
    );
    let (envoy, worker) = gateway(&rules);
    let reply = worker.request().get("/v2?user_key=alice").send().reply();
    assert_eq!(reply.status, 404);
    assert_eq!(reply.details, "tollgate_no_mapping_rule");
    assert_eq!(worker.calls().len(), 0);
    assert_eq!(stat(&envoy, "requests_no_mapping_rule"), 1);
}

#[test]
fn a_host_of_no_service_is_404_unless_it_may_pass() {
    let (_, worker) = gateway(&plain());
    let reply = worker.request().host("other.example.com").send().reply();
    assert_eq!(reply.status, 404);
    assert_eq!(reply.details, "tollgate_no_service");

    let (envoy, worker) = gateway(&configuration(json!({ "unmatched_hosts": "pass" })));
    worker
        .request()
        .host("other.example.com")
        .send()
        .forwarded();
    assert_eq!(
        worker.request().send().status(),
        Some(401),
        "the service is guarded"
    );
    behaved(&envoy);
}

#[test]
fn an_authority_that_is_no_host_is_404_even_where_every_host_has_a_service_or_may_pass() {
    let narrow = service("1001", "*.example.com");
    let any = service("1002", "*");
    for settings in [
        json!({ "services": [narrow, any] }),
        json!({ "services": [narrow], "unmatched_hosts": "pass" }),
    ] {
        let (envoy, worker) = gateway(&configuration(settings));
        let long = format!("{}.example.com", "a".repeat(250));
        let odd = [
            "x:y.example.com",
            "[x].example.com",
            "a.example.com:http",
            &long,
        ];
        for authority in odd {
            let request = worker.request().host(authority);
            let reply = request.get("/?user_key=alice").send().reply();
            assert_eq!(reply.status, 404, "{authority}");
            assert_eq!(reply.details, "tollgate_no_service");
        }
        assert_eq!(worker.calls().len(), 0);
        assert_eq!(envoy.stat("tollgate.requests_unmatched_host"), 4);
        for authority in ["a.example.com", "a.example.com:", "a.example.com:80"] {
            let request = worker.request().host(authority);
            assert_eq!(request.send().status(), Some(401), "{authority}");
        }
        behaved(&envoy);
    }
}

#[test]
fn an_exempt_request_passes_untouched() {
    let mut guarded = service("1001", "api.example.com");
    guarded["exempt"] = json!([{ "method": "OPTIONS" }, { "path": "/healthz" }]);
    let (envoy, worker) = gateway(&configuration(json!({ "services": [guarded] })));
    worker.request().method("OPTIONS", "/v1").send().forwarded();
    worker.request().get("/healthz").send().forwarded();
    assert_eq!(worker.request().get("/healthz2").send().status(), Some(401));
    assert_eq!(worker.calls().len(), 0);
    assert_eq!(stat(&envoy, "requests_exempt"), 2);
    assert_eq!(stat(&envoy, "requests_admitted"), 0);
    behaved(&envoy);
}

/// The reply to the request after the only one that the plan allows.
fn over_the_limit(period: &str, after_ms: u64) -> (FakeEnvoy, Reply) {
    let (envoy, worker) = gateway(&plain());
    introduce(
        &envoy,
        &worker,
        "alice",
        authorized().limit("hits", period, 1, 0),
    );
    envoy.advance(std::time::Duration::from_millis(after_ms));
    let reply = get(&worker, "alice").reply();
    (envoy, reply)
}

#[test]
fn over_a_limit_is_429_with_the_seconds_to_the_end_of_its_window() {
    // It is 2027-01-15 08:00:00, a Friday.
    const DAY: u64 = 86_400;
    for (period, window_ends_in) in [
        ("minute", 60),
        ("hour", 3_600),
        ("day", 16 * 3_600),
        ("week", 2 * DAY + 16 * 3_600),
        ("month", 16 * DAY + 16 * 3_600),
        ("year", 350 * DAY + 16 * 3_600),
    ] {
        for (after_ms, seconds) in [
            (0, window_ends_in),
            (1, window_ends_in),
            (1_000, window_ends_in - 1),
            (1_001, window_ends_in - 1),
            (59_999, window_ends_in - 59),
        ] {
            let (envoy, reply) = over_the_limit(period, after_ms);
            assert_eq!(reply.status, 429, "{period} after {after_ms} ms");
            assert_eq!(reply.details, "tollgate_limit_exceeded");
            let retry_after = reply.header("retry-after");
            assert_eq!(
                retry_after,
                Some(&*seconds.to_string()),
                "{period} after {after_ms} ms"
            );
            assert_eq!(stat(&envoy, "requests_limited"), 1);
            behaved(&envoy);
        }
    }
}

#[test]
fn an_eternal_limit_does_not_ask_to_come_back() {
    let (_, reply) = over_the_limit("eternity", 0);
    assert_eq!(reply.status, 429);
    assert_eq!(reply.header("retry-after"), None);
}

#[test]
fn of_two_limits_that_deny_the_later_end_counts() {
    let (envoy, worker) = gateway(&plain());
    let plan = authorized()
        .limit("hits", "hour", 1, 0)
        .limit("hits", "minute", 1, 0);
    introduce(&envoy, &worker, "alice", plan);
    assert_eq!(
        get(&worker, "alice").reply().header("retry-after"),
        Some("3600")
    );
}

#[test]
fn a_metric_with_a_maximum_of_0_is_403_whatever_else_is_used_up() {
    let (envoy, worker) = gateway(&plain());
    let stream = get(&worker, "alice").paused();
    let plan = authorized()
        .limit("hits", "hour", 0, 0)
        .limit("hits", "minute", 0, 0);
    worker.answer(worker.only_call().token, plan.at(envoy.wall_ms()));
    let reply = worker.poll(stream).reply();
    assert_eq!(reply.status, 403);
    assert_eq!(reply.details, "tollgate_metric_disabled");
    assert_eq!(reply.header("retry-after"), None);
    assert_eq!(get(&worker, "alice").status(), Some(403));
    assert_eq!(books(&envoy, "hits"), Books::default());
}

#[test]
fn credentials_are_taken_from_where_the_service_says_and_decoded() {
    let mut guarded = service("1001", "api.example.com");
    guarded["credentials"] = json!({ "user_key": [{ "header": "X-Api-Key" }, { "query": "key" }] });
    let (_, worker) = gateway(&configuration(json!({ "services": [guarded] })));
    let request = worker.request().get("/?key=in+the%20query");
    request
        .header("x-api-key", "in the header&usage[hits]=5")
        .send()
        .paused();
    worker.request().get("/?key=in+the%20query").send().paused();
    let asked = questions(&worker.calls());
    // 3scale takes a space in a user_key for a plus.
    assert_eq!(asked, ["in+the+header&usage[hits]=5", "in+the+query"]);
    assert!(!worker.calls()[0].path().contains("&usage"));
}

#[test]
fn two_services_do_not_share_an_application_that_has_the_same_key() {
    let services = [
        service("1001", "one.example.com"),
        service("2002", "two.example.com"),
    ];
    let (envoy, worker) = gateway(&configuration(json!({ "services": services })));
    let at = |host: &str| -> Outcome {
        let request = worker.request().host(host);
        request.get("/?user_key=same").send()
    };
    let stream = at("one.example.com").paused();
    let call = worker.only_call();
    assert!(call.path().contains("service_id=1001"), "{}", call.path());
    worker.answer(
        call.token,
        authorized().limit("hits", "day", 1, 0).at(envoy.wall_ms()),
    );
    worker.poll(stream).forwarded();
    assert_eq!(at("one.example.com").status(), Some(429));

    let stream = at("two.example.com").paused();
    let call = worker.only_call();
    assert!(call.path().contains("service_id=2002"), "{}", call.path());
    worker.answer(call.token, error(403, "user_key_invalid"));
    assert_eq!(worker.poll(stream).status(), Some(403));
    assert_eq!(at("two.example.com").status(), Some(403));
    assert_eq!(at("one.example.com").status(), Some(429));

    let calls = pass_time(&envoy, &[worker], seconds(11), |_| None);
    let reports = reports(&calls);
    assert_eq!(reports.len(), 1);
    assert_eq!(reports[0].service["service_id"], "1001");
    assert_eq!(reports[0].service["service_token"], "token-of-1001");
    assert_eq!(usage_of(&reports, "hits"), 1);
    assert_eq!(envoy.stat("tollgate.1001.requests_admitted"), 1);
    assert_eq!(envoy.stat("tollgate.2002.requests_admitted"), 0);
}

#[test]
fn the_same_service_at_another_authority_is_another_service() {
    let (envoy, worker) = gateway(&plain());
    introduce(&envoy, &worker, "alice", authorized());
    let elsewhere =
        configuration(json!({ "service_management": { "authority": "other.example" } }));
    assert!(worker.configure(&elsewhere));
    get(&worker, "alice").paused();
    let call = worker.only_call();
    assert_eq!(call.header(":authority"), Some("other.example"));
    worker.answer(call.token, authorized().at(envoy.wall_ms()));
    assert_eq!(records(&envoy).len(), 2);
}
