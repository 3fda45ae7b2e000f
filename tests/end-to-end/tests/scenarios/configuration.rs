//! A configuration that is wrong never comes to work, and its author is told why.

use anyhow::Result;
use serde_json::{Value, json};
use tollgate_end_to_end::{Gateway, Setup};
use tollgate_harness::{Base, EnvoyOptions, ListenerUpdate, Plugin};

/// The shipped service with some of its fields replaced.
fn service(patch: Value) -> Plugin {
    let mut service = json!({
        "id": "1001",
        "token": { "env": "TG_SERVICE_TOKEN" },
        "hosts": ["*"],
        "mapping_rules": [{ "pattern": "/v1/", "usage": { "hits": 1 } }],
    });
    if let (Some(service), Value::Object(patch)) = (service.as_object_mut(), patch) {
        service.extend(patch);
    }
    Plugin::Merge(json!({ "services": [service] }))
}

fn merge(patch: Value) -> Plugin {
    Plugin::Merge(patch)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Envoy and the module: run cargo xtask test"]
async fn every_kind_of_error_is_refused_by_its_field_while_the_old_configuration_serves()
-> Result<()> {
    let mut gateway = Gateway::start(Setup {
        envoy: EnvoyOptions {
            base: Base::Reloadable,
            ..EnvoyOptions::default()
        },
        ..Setup::default()
    })
    .await?;
    let cases = [
        (
            "syntax",
            Plugin::Text("{".into()),
            "configuration: is not JSON: ",
        ),
        (
            "nothing",
            Plugin::Text(String::new()),
            "configuration: is empty: ",
        ),
        (
            "unknown field",
            merge(json!({ "authorization": { "tll": "1s" } })),
            "authorization.tll: is unknown; the fields here are ",
        ),
        (
            "missing field",
            merge(json!({ "service_management": { "authority": null } })),
            "service_management.authority: is missing",
        ),
        (
            "wrong type",
            merge(json!({ "reporting": { "uncertain": 5 } })),
            "reporting.uncertain: ",
        ),
        (
            "bad duration",
            merge(json!({ "authorization": { "ttl": "1.5s" } })),
            "authorization.ttl: \"1.5s\": a duration is a whole number with its unit",
        ),
        (
            "duration out of bounds",
            merge(json!({ "reporting": { "interval": "10ms" } })),
            "reporting.interval: \"10ms\": must be from 100ms to ",
        ),
        (
            "number out of bounds",
            merge(json!({ "authorization": { "capacity": 7 } })),
            "authorization.capacity: 7: must be a whole number from 8 to 1048576",
        ),
        (
            "bad pattern",
            service(json!({ "mapping_rules": [{ "pattern": "v1", "usage": { "hits": 1 } }] })),
            "services[0].mapping_rules[0].pattern: ",
        ),
        (
            "unknown parent metric",
            service(json!({ "metrics": { "hits": { "parent": "nobody" } } })),
            "services[0].metrics.hits",
        ),
        (
            "duplicate host",
            service(json!({ "hosts": ["api.example.com", "api.example.com."] })),
            "services[0].hosts[1]: \"api.example.com\": belongs to service \"1001\" already",
        ),
        (
            "services that nothing tells apart",
            merge(json!({ "services": [
                { "id": "1001", "token": "a", "hosts": ["a"], "path_prefix": "/v1", "mapping_rules": [{ "pattern": "/", "usage": { "hits": 1 } }] },
                { "id": "1002", "token": "a", "hosts": ["a"], "path_prefix": "//v1/", "mapping_rules": [{ "pattern": "/", "usage": { "hits": 1 } }] },
            ] })),
            "services[1].hosts[0]: \"a\": belongs to service \"1001\" already (services[0].hosts[0]); services on one host are told apart by path_prefix or route",
        ),
        (
            "bad path prefix",
            service(json!({ "path_prefix": "/v1/*" })),
            "services[0].path_prefix: \"/v1/*\": a path prefix is plain text",
        ),
        (
            "no route",
            service(json!({ "route": "" })),
            "services[0].route: \"\": must be the name of a route in Envoy",
        ),
        (
            "a denial that looks like a success",
            service(json!({ "replies": { "denied": { "status": 200 } } })),
            "services[0].replies.denied.status: 200: must be a whole number from 400 to 599",
        ),
        (
            "bad content type",
            service(json!({ "replies": { "denied": { "content_type": "json" } } })),
            "services[0].replies.denied.content_type: \"json\": must be a media type",
        ),
        (
            "a body of a book",
            merge(json!({ "replies": { "limited": { "body": "x".repeat(20_000) } } })),
            "replies.limited.body: has 20000 bytes: must be at most 16384",
        ),
        (
            "a header within a header",
            merge(
                json!({ "replies": { "limited": { "headers": { "x": "y\r\nset-cookie: z" } } } }),
            ),
            "replies.limited.headers.x: \"y\\r\\nset-cookie: z\": a header value has",
        ),
        (
            "a header that is not free",
            merge(json!({ "replies": { "limited": { "headers": { "Retry-After": "0" } } } })),
            "replies.limited.headers.Retry-After: \"Retry-After\": the reply or the connection sets",
        ),
        (
            "unknown outcome",
            merge(json!({ "replies": { "forbidden": {} } })),
            "replies.forbidden: is unknown; the fields here are no_credential, denied, ",
        ),
        (
            "missing environment variable",
            service(json!({ "token": { "env": "TG_NOT_HANDED_ON" } })),
            "services[0].token.env: the variable is not set or empty",
        ),
        (
            "token with a line break",
            service(json!({ "token": "canary-token\n" })),
            "services[0].token: the token has white space",
        ),
        (
            "set usage",
            service(json!({ "mapping_rules": [{ "pattern": "/", "usage": { "hits": "#5" } }] })),
            "services[0].mapping_rules[0].usage.hits: \"#5\": usage can add only",
        ),
    ];
    for (what, plugin, message) in cases {
        let logged = gateway.envoy.log().len();
        let update = gateway.envoy.update_listener(plugin).await?;
        assert_eq!(update, ListenerUpdate::Rejected, "{what}");
        let log = gateway.envoy.log();
        let news = log.get(logged..).unwrap_or_default();
        let line = news
            .lines()
            .find(|line| line.contains("tollgate: configuration refused: "))
            .unwrap_or_default();
        println!(
            "{what}: {}",
            line.split("refused: ").last().unwrap_or_default()
        );
        assert!(
            line.contains(&format!("configuration refused: {message}")),
            "{what}: expected {message:?} in:\n{news}"
        );
        assert!(!news.contains("canary-token"), "{what}:\n{news}");
        let reply = gateway
            .client()?
            .get("/v1/items", &[("x-api-key", "free-key")])
            .await?;
        assert_eq!(reply.status, 200, "{what}: the old configuration serves");
    }
    // The way is open for a right one.
    let shorter = gateway.plugin_with(&json!({ "authorization": { "ttl": "30s" } }));
    let update = gateway.envoy.update_listener(shorter).await?;
    assert_eq!(update, ListenerUpdate::Accepted);
    Ok(())
}
