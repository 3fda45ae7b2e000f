//! Replies as they are configured, and as gRPC callers get them.

use serde_json::{Value, json};
use tollgate_fake_host::{Answer, Reply, Worker, authorized, error};

use crate::support::*;

fn service_with(replies: Value) -> Value {
    let mut service = service("1001", "api.example.com");
    service["replies"] = replies;
    service["mapping_rules"] = json!([{ "pattern": "/v1", "usage": { "hits": 1 } }]);
    service
}

/// The reply to a request that nobody has asked service management about, at once.
fn ask(worker: &Worker, target: &str, content_type: &str) -> Reply {
    let request = worker.request().header("content-type", content_type);
    request.get(target).send().reply()
}

#[test]
fn each_outcome_is_answered_as_its_service_says() {
    let custom = |status: u16, text: &str| {
        json!({
            "status": status,
            "content_type": "application/json",
            "body": format!("{{\"error\":\"{text}\"}}"),
            "headers": { "Cache-Control": "no-store" },
        })
    };
    let replies = json!({
        "no_credential": custom(400, "key?"),
        "denied": custom(404, "nothing here"),
        "no_mapping_rule": custom(405, "no such thing"),
        "limited": custom(503, "slow down"),
        "disabled": custom(402, "buy more"),
        "unavailable": custom(500, "oops"),
        "misconfigured": custom(502, "our fault"),
    });
    let configured = configuration(json!({
        "services": [service_with(replies)],
        "replies": { "no_service": custom(421, "not here"), "denied": custom(499, "overruled") },
    }));
    let (envoy, worker) = gateway(&configured);
    let answered = |key: &str, answer: Answer| {
        let stream = worker.request().get(format!("/v1?user_key={key}")).send();
        let stream = stream.paused();
        worker.answer(worker.only_call().token, answer);
        worker.poll(stream).reply()
    };
    let now = envoy.wall_ms();
    let elsewhere = worker.request().host("other.example.com").send().reply();
    let plan = |maximum| {
        authorized()
            .limit("hits", "minute", maximum, maximum)
            .at(now)
    };
    for (reply, status, text, details) in [
        (elsewhere, 421, "not here", "no_service"),
        (ask(&worker, "/v1", ""), 400, "key?", "no_credential"),
        (
            ask(&worker, "/v1?user_key=a%00", ""),
            404,
            "nothing here",
            "credential_unusable",
        ),
        (
            answered("mallory", error(403, "user_key_invalid")),
            404,
            "nothing here",
            "user_key_invalid",
        ),
        (
            ask(&worker, "/v2?user_key=a", ""),
            405,
            "no such thing",
            "no_mapping_rule",
        ),
        (
            answered("alice", plan(1)),
            503,
            "slow down",
            "limit_exceeded",
        ),
        (answered("bob", plan(0)), 402, "buy more", "metric_disabled"),
        (
            answered("carol", Answer::status(500)),
            500,
            "oops",
            "service_management_unavailable",
        ),
        (
            answered("dave", error(403, "service_token_invalid")),
            502,
            "our fault",
            "misconfigured",
        ),
    ] {
        assert_eq!(reply.status, status, "{details}");
        assert_eq!(reply.text(), format!("{{\"error\":\"{text}\"}}"));
        assert_eq!(reply.header("content-type"), Some("application/json"));
        assert_eq!(reply.header("cache-control"), Some("no-store"));
        assert_eq!(reply.details, format!("tollgate_{details}"));
        assert_eq!(reply.grpc_status, None);
        let retry = matches!(
            details,
            "limit_exceeded" | "service_management_unavailable" | "misconfigured"
        );
        assert_eq!(reply.header("retry-after").is_some(), retry, "{details}");
        let challenge = reply.header("www-authenticate").is_some();
        assert_eq!(challenge, details == "no_credential", "{details}");
    }
    behaved(&envoy);
}

#[test]
fn an_empty_body_has_no_content_type() {
    let replies = json!({ "no_credential": { "body": "" } });
    let services = [service_with(replies)];
    let (_, worker) = gateway(&configuration(json!({ "services": services })));
    let reply = ask(&worker, "/v1", "");
    assert_eq!((reply.status, reply.text().as_str()), (401, ""));
    assert_eq!(reply.header("content-type"), None);
}

#[test]
fn grpc_requests_get_grpc_statuses() {
    let replies = json!({
        "no_mapping_rule": { "body": "No such method.\n" },
        "disabled": { "status": 402, "content_type": "text/html", "body": "<p>Buy more." },
    });
    let services = [service_with(replies)];
    let (envoy, worker) = gateway(&configuration(json!({ "services": services })));
    let grpc = |target: &str| {
        let request = worker.request().header("content-type", "application/grpc");
        request
            .header("te", "trailers")
            .method("POST", target)
            .send()
    };
    let answered = |key: &str, answer: Answer| {
        let stream = grpc(&format!("/v1?user_key={key}")).paused();
        worker.answer(worker.only_call().token, answer);
        worker.poll(stream).reply()
    };
    let now = envoy.wall_ms();
    let plan = |maximum| {
        authorized()
            .limit("hits", "minute", maximum, maximum)
            .at(now)
    };
    let elsewhere = worker.request().header("content-type", "application/grpc");
    let elsewhere = elsewhere.host("other.example.com").send().reply();
    for (reply, status, grpc_status, message) in [
        (elsewhere, 404, 12, "No API is served here."),
        (grpc("/v1").reply(), 401, 16, "A credential is required."),
        (
            answered("mallory", error(403, "user_key_invalid")),
            403,
            7,
            "The credential is not accepted.",
        ),
        (grpc("/v2?user_key=a").reply(), 404, 12, "No such method."),
        (
            answered("alice", plan(1)),
            429,
            8,
            "A limit of the plan is used up.",
        ),
        (
            answered("bob", plan(0)),
            402,
            7,
            "The plan does not include this operation.",
        ),
        (
            answered("carol", Answer::status(500)),
            503,
            14,
            "The request cannot be authorized right now.",
        ),
    ] {
        assert_eq!(
            (reply.status, reply.grpc_status),
            (status, Some(grpc_status))
        );
        assert_eq!(reply.text(), message);
        assert_eq!(reply.header("content-type"), None, "Envoy sets its own");
        let retry = matches!(grpc_status, 8 | 14);
        assert_eq!(reply.header("retry-after").is_some(), retry, "{message}");
    }
    for content_type in ["application/json", "application/grpc-web", "text/plain"] {
        assert_eq!(ask(&worker, "/v1", content_type).grpc_status, None);
    }
    for content_type in ["application/grpc+proto", "application/grpc+json"] {
        assert_eq!(ask(&worker, "/v1", content_type).grpc_status, Some(16));
    }
    behaved(&envoy);
}
