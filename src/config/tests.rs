//! What a configuration may say, and what is said about one that may not stand.

use serde_json::{Value, json};

use super::*;
use crate::authorization::Accuracy;
use crate::credentials::{HeaderName, ParameterName, Source, Sources};
use crate::mapping::Usage;
use crate::request::{Headers, Request};
use std::time::Duration;
#[cfg(all(target_family = "wasm", target_os = "unknown"))]
use wasm_bindgen_test::wasm_bindgen_test as test;

/// The variables that tests may name.
fn environment(name: &str) -> Option<String> {
    match name {
        "TG_SERVICE_TOKEN" => Some("from-the-environment".to_owned()),
        "TG_EMPTY" => Some(String::new()),
        "TG_LINE" => Some("s3cr3t\n".to_owned()),
        _ => None,
    }
}

fn token_of(service: &Service) -> &str {
    match &service.right {
        Right::ServiceToken(token) => token.expose(),
        Right::ProviderKey(_) => panic!("a provider key"),
    }
}

/// The shortest configuration that can stand.
fn shortest() -> Value {
    json!({
        "service_management": { "cluster": "service-management", "authority": "su1.3scale.net" },
        "services": [{
            "id": "1001",
            "token": "s3cr3t",
            "hosts": ["api.example.com"],
            "mapping_rules": [{ "pattern": "/", "usage": { "hits": 1 } }],
        }],
    })
}

/// The shortest configuration with the value at this JSON pointer replaced or added.
fn with(pointer: &str, value: Value) -> Value {
    let mut configuration = shortest();
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    match configuration.pointer_mut(parent).unwrap() {
        Value::Object(fields) => {
            fields.insert(name.to_owned(), value);
        }
        Value::Array(items) => items.push(value),
        _ => panic!("{pointer}"),
    }
    configuration
}

fn without(pointer: &str) -> Value {
    let mut configuration = shortest();
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    let parent = configuration.pointer_mut(parent).unwrap();
    parent.as_object_mut().unwrap().remove(name).unwrap();
    configuration
}

fn parse(configuration: &Value) -> Result<Configuration, ConfigurationError> {
    Configuration::parse(configuration.to_string().as_bytes(), &environment)
}

fn error(configuration: &Value) -> String {
    parse(configuration).unwrap_err().to_string()
}

#[test]
fn what_is_left_out_has_its_default() {
    let configuration = parse(&shortest()).unwrap();
    assert_eq!(
        configuration.service_management,
        ServiceManagement {
            cluster: "service-management".to_owned(),
            authority: "su1.3scale.net".to_owned(),
            timeout: Duration::from_secs(1),
        }
    );
    assert_eq!(
        configuration.authorization,
        AuthorizationSettings {
            trust: Trust {
                ttl: Duration::from_secs(60),
                negative_ttl: Duration::from_secs(10),
                stale_if_error: Duration::from_secs(600),
                unknown: Unknown::Deny,
            },
            capacity: 16_384,
            unknown_calls_per_second: 100,
            refreshes_per_second: 100,
            accuracy: Accuracy::Exact,
        }
    );
    assert_eq!(
        configuration.reporting,
        ReportingSettings {
            interval: Duration::from_secs(10),
            timeout: Duration::from_secs(5),
            uncertain: Uncertain::Resend,
            batch: 100,
        }
    );
    assert_eq!(configuration.unmatched_hosts, UnmatchedHosts::Deny);
    let service = &configuration.services[0];
    assert_eq!(
        *service.credentials.sources(),
        Sources::UserKey(vec![Source::Query(ParameterName::new("user_key").unwrap())])
    );
    assert!(service.exemptions.is_empty());
    assert_eq!(service.share, Share::default());
    assert_eq!(service.replies, Replies::default());
    assert_eq!(configuration.replies, Replies::default());
    assert!(!service.rate_limit_headers);
}

#[test]
fn a_service_relies_on_answers_as_it_says_and_otherwise_as_all_do() {
    let mut configuration = shortest();
    let service = configuration["services"][0].clone();
    let own = |id: &str, host: &str, authorization: Value| {
        let mut service = service.clone();
        service["id"] = json!(id);
        service["hosts"] = json!([host]);
        service["authorization"] = authorization;
        service
    };
    configuration["services"] = json!([
        own("1", "a.example.com", json!({})),
        own(
            "2",
            "b.example.com",
            json!({ "unknown": "deny", "stale_if_error": "0s" })
        ),
        own(
            "3",
            "c.example.com",
            json!({ "ttl": "5s", "negative_ttl": "2s" })
        ),
    ]);
    configuration["authorization"] =
        json!({ "ttl": "9s", "negative_ttl": "8s", "stale_if_error": "7s", "unknown": "allow" });
    let configuration = parse(&configuration).unwrap();
    let general = Trust {
        ttl: Duration::from_secs(9),
        negative_ttl: Duration::from_secs(8),
        stale_if_error: Duration::from_secs(7),
        unknown: Unknown::Allow,
    };
    let trust: Vec<Trust> = configuration.services.iter().map(|it| it.trust).collect();
    assert_eq!(configuration.authorization.trust, general);
    assert_eq!(trust[0], general);
    assert_eq!(
        trust[1],
        Trust {
            unknown: Unknown::Deny,
            stale_if_error: Duration::ZERO,
            ..general
        }
    );
    assert_eq!(
        trust[2],
        Trust {
            ttl: Duration::from_secs(5),
            negative_ttl: Duration::from_secs(2),
            ..general
        }
    );
}

#[test]
fn every_field_is_read() {
    let configuration = json!({
        "service_management": {
            "cluster": "backend", "authority": "backend.local:3000", "timeout": "250ms",
        },
        "services": [
            {
                "id": "1001",
                "token": { "env": "TG_SERVICE_TOKEN" },
                "hosts": ["api.example.com", "*.partners.example.com"],
                "path_prefix": "/v1",
                "route": "orders",
                "credentials": { "user_key": [{ "header": "X-Api-Key" }, { "query": "key" }] },
                "mapping_rules": [
                    { "method": "GET", "pattern": "/v1/orders/{id}$", "usage": { "orders": 2 }, "last": true },
                    { "method": "ANY", "pattern": "/", "query": { "kind": "full" }, "usage": { "hits": 1 } },
                ],
                "metrics": { "orders": { "parent": "hits" }, "unused": {} },
                "exempt": [{ "method": "OPTIONS" }, { "path": "/healthz" }, { "method": "GET", "path": "/public/*" }],
            },
            {
                "id": "1002",
                "token": "s3cr3t",
                "hosts": ["*"],
                "mapping_rules": [{ "pattern": "/", "usage": { "hits": 1 } }],
            },
        ],
        "authorization": {
            "ttl": "1d", "negative_ttl": "1s", "stale_if_error": "0s", "capacity": 1_000_000, "unknown": "allow",
            "unknown_calls_per_second": 5,
            "refreshes_per_second": 6,
            "gateways": 4, "accuracy": "eager",
        },
        "reporting": { "interval": "100ms", "timeout": "60s", "uncertain": "drop", "batch": 1 },
        "unmatched_hosts": "pass",
    });
    let configuration = parse(&configuration).unwrap();
    assert_eq!(
        configuration.service_management,
        ServiceManagement {
            cluster: "backend".to_owned(),
            authority: "backend.local:3000".to_owned(),
            timeout: Duration::from_millis(250),
        }
    );
    assert_eq!(
        configuration.authorization,
        AuthorizationSettings {
            trust: Trust {
                ttl: Duration::from_secs(86_400),
                negative_ttl: Duration::from_secs(1),
                stale_if_error: Duration::ZERO,
                unknown: Unknown::Allow,
            },
            capacity: 1_000_000,
            unknown_calls_per_second: 5,
            refreshes_per_second: 6,
            accuracy: Accuracy::Eager { gateways: 4 },
        }
    );
    assert_eq!(
        configuration.reporting,
        ReportingSettings {
            interval: Duration::from_millis(100),
            timeout: Duration::from_secs(60),
            uncertain: Uncertain::Drop,
            batch: 1,
        }
    );
    assert_eq!(configuration.unmatched_hosts, UnmatchedHosts::Pass);

    let chosen = configuration
        .service_for(b"a.partners.example.com:443", b"/v1/x", || {
            Some(b"orders".to_vec())
        })
        .unwrap();
    assert_eq!((chosen.index, chosen.by_host_alone), (0, false));
    let service = &configuration.services[0];
    assert_eq!(service.id, "1001");
    assert_eq!(token_of(service), "from-the-environment");
    assert_eq!(service.scope.cluster, "backend");
    assert_eq!(service.scope.authority, "backend.local:3000");
    assert_eq!(service.scope.service, "1001");
    assert_eq!(
        *service.credentials.sources(),
        Sources::UserKey(vec![
            Source::Header(HeaderName::new("x-api-key").unwrap()),
            Source::Query(ParameterName::new("key").unwrap()),
        ])
    );
    let orders = service.metrics.id("orders").unwrap();
    let hits = service.metrics.id("hits").unwrap();
    assert_eq!(service.metrics.ancestors(orders), [hits]);
    assert!(service.metrics.id("unused").is_some());
    let usage = |method: &[u8], target: &[u8]| {
        let mut usage = Usage::default();
        let matched = service.rules.matching(method, target, &mut usage);
        matched.then(|| usage.iter().collect::<Vec<_>>())
    };
    assert_eq!(
        usage(b"GET", b"/v1/orders/7?kind=full"),
        Some(vec![(orders, 2)])
    );
    assert_eq!(
        usage(b"PUT", b"/v1/orders/7?kind=full"),
        Some(vec![(hits, 1)])
    );
    assert_eq!(usage(b"PUT", b"/v1/orders/7"), None);
    let exempt = |method: &[u8], target: &[u8]| {
        service.is_exempt(&Request {
            method,
            authority: b"api.example.com",
            target,
            headers: Headers { pairs: &[] },
        })
    };
    assert!(exempt(b"OPTIONS", b"/v1"));
    assert!(exempt(b"POST", b"/healthz"));
    assert!(exempt(b"GET", b"/public/a"));
    assert!(!exempt(b"POST", b"/public/a"));

    let anything = configuration.service_for(b"anything", b"/", || None);
    let chosen = anything.unwrap();
    assert_eq!((chosen.index, chosen.by_host_alone), (1, true));
    assert_eq!(configuration.services[1].id, "1002");
}

#[test]
fn the_bounds_are_included() {
    for (pointer, value) in [
        (
            "/authorization",
            json!({ "ttl": "1s", "negative_ttl": "24h", "stale_if_error": "7d" }),
        ),
        ("/authorization", json!({ "capacity": 8 })),
        ("/authorization", json!({ "capacity": 1_048_576 })),
        ("/authorization", json!({ "unknown_calls_per_second": 1 })),
        ("/authorization", json!({ "refreshes_per_second": 1 })),
        (
            "/authorization",
            json!({ "unknown_calls_per_second": 1_000_000 }),
        ),
        (
            "/reporting",
            json!({ "interval": "1m", "timeout": "1ms", "batch": 1_000 }),
        ),
        ("/service_management/timeout", json!("1ms")),
        ("/service_management/timeout", json!("60s")),
        (
            "/services/0/mapping_rules/0/usage/hits",
            json!(1_000_000_000_000_u64),
        ),
    ] {
        parse(&with(pointer, value.clone())).unwrap_or_else(|error| panic!("{value}: {error}"));
    }
}

#[test]
fn white_space_and_a_byte_order_mark_around_a_configuration_do_not_matter() {
    let text = format!("\u{feff} \r\n{}\n\n", shortest());
    assert!(Configuration::parse(text.as_bytes(), &environment).is_ok());
}

#[test]
fn bytes_that_are_no_object_are_refused() {
    for (bytes, message) in [
        (
            &b""[..],
            "configuration: is empty: put Tollgate's settings, an object, into the configuration of the plugin",
        ),
        (
            b" \n",
            "configuration: is empty: put Tollgate's settings, an object, into the configuration of the plugin",
        ),
        (
            b"\xef\xbb\xbf",
            "configuration: is empty: put Tollgate's settings, an object, into the configuration of the plugin",
        ),
        (
            b"services:\n",
            "configuration: is not JSON: expected value at line 1 column 1",
        ),
        (
            b"{",
            "configuration: is not JSON: EOF while parsing an object at line 1 column 1",
        ),
        (
            b"{\"services\": [{\"id\": \"\xff\"}]}",
            "configuration: is not JSON: invalid unicode code point at line 1 column 23",
        ),
        (b"[]", "configuration: is a list, must be an object"),
        (
            b"null",
            "configuration: is empty: put Tollgate's settings, an object, into the configuration of the plugin",
        ),
    ] {
        let error = Configuration::parse(bytes, &environment).unwrap_err();
        assert_eq!(error.to_string(), message);
    }
    let twice = format!("{}{}", shortest(), shortest());
    let error = Configuration::parse(twice.as_bytes(), &environment).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("configuration: is not JSON: trailing characters at line 1"),
        "{error}"
    );
}

#[test]
fn a_missing_field_is_named_with_what_it_is_for() {
    for (pointer, message) in [
        (
            "/service_management",
            "service_management: is missing: it names the cluster to ask, like { cluster: service-management, authority: su1.3scale.net }",
        ),
        (
            "/service_management/cluster",
            "service_management.cluster: is missing: the name of the Envoy cluster of service management",
        ),
        (
            "/service_management/authority",
            "service_management.authority: is missing: the host of service management, like su1.3scale.net",
        ),
        (
            "/services",
            "services: is missing: the list of services that this gateway guards",
        ),
        (
            "/services/0/id",
            "services[0].id: is missing: the service's id at service management, like \"1001\"",
        ),
        (
            "/services/0/token",
            "services[0].token: is missing: the service token, like { env: TG_SERVICE_TOKEN }, or provider_key in its place",
        ),
        (
            "/services/0/hosts",
            "services[0].hosts: is missing: the hosts of the service's requests, like [api.example.com]",
        ),
        (
            "/services/0/mapping_rules",
            "services[0].mapping_rules: is missing: what requests count as, like [{ pattern: \"/\", usage: { hits: 1 } }]",
        ),
        (
            "/services/0/mapping_rules/0/pattern",
            "services[0].mapping_rules[0].pattern: is missing: the paths that the rule is for, like \"/v1/orders/{id}$\"",
        ),
        (
            "/services/0/mapping_rules/0/usage",
            "services[0].mapping_rules[0].usage: is missing: what a request counts as, like { hits: 1 }",
        ),
    ] {
        assert_eq!(error(&without(pointer)), message);
    }
    assert_eq!(
        error(&with("/services/0/credentials", json!({}))),
        "services[0].credentials.user_key: is missing: where the key is, like [{ header: x-api-key }]; or app_id and app_key"
    );
}

#[test]
fn an_unknown_field_is_named_with_what_there_is() {
    for (pointer, message) in [
        (
            "/service",
            "service: is unknown; the fields here are service_management, services, authorization, reporting, unmatched_hosts, replies",
        ),
        (
            "/service_management/path",
            "service_management.path: is unknown; the fields here are cluster, authority, timeout",
        ),
        (
            "/services/0/host",
            "services[0].host: is unknown; the fields here are id, token, provider_key, oauth, hosts, path_prefix, route, credentials, mapping_rules, metrics, exempt, replies, rate_limit_headers, authorization",
        ),
        (
            "/services/0/authorization",
            "services[0].authorization: is a number, must be an object",
        ),
        (
            "/services/0/mapping_rules/0/verb",
            "services[0].mapping_rules[0].verb: is unknown; the fields here are method, pattern, query, usage, last, require",
        ),
        (
            "/services/0/mapping_rules/0/a b",
            "services[0].mapping_rules[0][\"a b\"]: is unknown; the fields here are method, pattern, query, usage, last, require",
        ),
    ] {
        assert_eq!(error(&with(pointer, json!(1))), message);
    }
    for (pointer, value, message) in [
        (
            "/authorization",
            json!({ "TTL": "1s" }),
            "authorization.TTL: is unknown; the fields here are ttl, negative_ttl, stale_if_error, capacity, unknown, unknown_calls_per_second, refreshes_per_second, gateways, accuracy",
        ),
        (
            "/reporting",
            json!({ "size": 1 }),
            "reporting.size: is unknown; the fields here are interval, timeout, uncertain, batch",
        ),
        (
            "/services/0/credentials",
            json!({ "tokens": [] }),
            "services[0].credentials.tokens: is unknown; the fields here are user_key, app_id, app_key, token, strip, referrer, anonymous",
        ),
        (
            "/services/0/credentials",
            json!({ "user_key": [{ "path": "a" }] }),
            "services[0].credentials.user_key[0].path: is unknown; the fields here are query, header, cookie, basic, bearer, body",
        ),
        (
            "/services/0/metrics",
            json!({ "a": { "parents": "b" } }),
            "services[0].metrics.a.parents: is unknown; the fields here are parent",
        ),
        (
            "/services/0/exempt",
            json!([{ "paths": "/" }]),
            "services[0].exempt[0].paths: is unknown; the fields here are method, path",
        ),
    ] {
        assert_eq!(error(&with(pointer, value)), message);
    }
}

#[test]
fn a_field_that_stands_there_twice_is_refused() {
    let text = shortest().to_string();
    for (once, twice, path) in [
        (
            r#""id":"1001""#,
            r#""id":"1001","id":"1002""#,
            "services[0].id",
        ),
        (
            r#""hits":1"#,
            r#""hits":1,"hits":2"#,
            "services[0].mapping_rules[0].usage.hits",
        ),
    ] {
        assert!(text.contains(once));
        let text = text.replace(once, twice);
        let error = Configuration::parse(text.as_bytes(), &environment).unwrap_err();
        assert_eq!(error.to_string(), format!("{path}: stands here twice"));
    }
}

#[test]
fn a_value_of_another_type_is_refused_and_not_repeated() {
    for (pointer, value, message) in [
        (
            "/services",
            json!({}),
            "services: is an object, must be a list",
        ),
        (
            "/services/0",
            json!("x"),
            "services[1]: is a string, must be an object",
        ),
        (
            "/services/0",
            json!(["1001", "s3cr3t", ["h"], []]),
            "services[1]: is a list, must be an object",
        ),
        (
            "/services/0/id",
            json!(1001),
            "services[0].id: is a number, must be a string: put it in quotes",
        ),
        (
            "/services/0/token",
            json!(31337),
            "services[0].token: is a number, must be a string or { env: NAME }: put it in quotes",
        ),
        (
            "/services/0/token",
            json!({ "s3cr3t": null }),
            "services[0].token: must be a string or { env: NAME }",
        ),
        (
            "/services/0/token",
            json!({}),
            "services[0].token: must be a string or { env: NAME }",
        ),
        (
            "/services/0/token",
            json!({ "env": 31337 }),
            "services[0].token.env: is a number, must be a string: put it in quotes",
        ),
        (
            "/services/0/hosts",
            json!("api.example.com"),
            "services[0].hosts: is a string, must be a list",
        ),
        (
            "/services/0/hosts",
            json!([1.5]),
            "services[0].hosts[0]: is a number, must be a string: put it in quotes",
        ),
        (
            "/services/0/credentials",
            json!(null),
            "services[0].credentials: is null, must be an object: fill it in, or leave the field out if it is optional",
        ),
        (
            "/services/0/exempt",
            json!(true),
            "services[0].exempt: is true or false, must be a list",
        ),
        (
            "/services/0/metrics",
            json!([]),
            "services[0].metrics: is a list, must be an object",
        ),
        (
            "/services/0/metrics",
            json!({ "a": "hits" }),
            "services[0].metrics.a: is a string, must be an object",
        ),
        (
            "/services/0/mapping_rules/0/last",
            json!("yes"),
            "services[0].mapping_rules[0].last: is a string, must be true or false",
        ),
        (
            "/services/0/mapping_rules/0/query",
            json!({ "page": 1 }),
            "services[0].mapping_rules[0].query.page: is a number, must be a string: put it in quotes",
        ),
        (
            "/services/0/mapping_rules/0/usage",
            json!(1),
            "services[0].mapping_rules[0].usage: is a number, must be an object",
        ),
        (
            "/authorization",
            json!("60s"),
            "authorization: is a string, must be an object",
        ),
    ] {
        assert_eq!(error(&with(pointer, value)), message);
    }
}

#[test]
fn a_setting_out_of_bounds_is_refused_with_the_bounds() {
    let form = "a duration is a whole number with its unit in quotes, like \"500ms\", \"10s\", \"10m\", \"1h\" or \"1d\"";
    for (pointer, value, message) in [
        (
            "/service_management/timeout",
            json!("0s"),
            "service_management.timeout: \"0s\": must be from 1ms to 1m".to_owned(),
        ),
        (
            "/service_management/timeout",
            json!("61s"),
            "service_management.timeout: \"61s\": must be from 1ms to 1m".to_owned(),
        ),
        (
            "/service_management/timeout",
            json!(1),
            format!("service_management.timeout: 1: {form}"),
        ),
        (
            "/service_management/timeout",
            json!(null),
            format!("service_management.timeout: null: {form}"),
        ),
        (
            "/authorization",
            json!({ "ttl": "999ms" }),
            "authorization.ttl: \"999ms\": must be from 1s to 1d".to_owned(),
        ),
        (
            "/authorization",
            json!({ "ttl": "1m30s" }),
            format!("authorization.ttl: \"1m30s\": {form}"),
        ),
        (
            "/authorization",
            json!({ "ttl": ["1s"] }),
            format!("authorization.ttl: a list: {form}"),
        ),
        (
            "/authorization",
            json!({ "negative_ttl": "2d" }),
            "authorization.negative_ttl: \"2d\": must be from 1s to 1d".to_owned(),
        ),
        (
            "/authorization",
            json!({ "stale_if_error": "8d" }),
            "authorization.stale_if_error: \"8d\": must be from 0s to 7d".to_owned(),
        ),
        (
            "/authorization",
            json!({ "capacity": 7 }),
            "authorization.capacity: 7: must be a whole number from 8 to 1048576".to_owned(),
        ),
        (
            "/authorization",
            json!({ "capacity": 1_048_577 }),
            "authorization.capacity: 1048577: must be a whole number from 8 to 1048576".to_owned(),
        ),
        (
            "/authorization",
            json!({ "capacity": 4_294_967_304_u64 }),
            "authorization.capacity: 4294967304: must be a whole number from 8 to 1048576"
                .to_owned(),
        ),
        (
            "/authorization",
            json!({ "capacity": "16384" }),
            "authorization.capacity: \"16384\": must be a whole number from 8 to 1048576"
                .to_owned(),
        ),
        (
            "/authorization",
            json!({ "unknown": "maybe" }),
            "authorization.unknown: \"maybe\": must be deny or allow".to_owned(),
        ),
        (
            "/services/0/authorization",
            json!({ "ttl": "999ms" }),
            "services[0].authorization.ttl: \"999ms\": must be from 1s to 1d".to_owned(),
        ),
        (
            "/services/0/authorization",
            json!({ "negative_ttl": 10 }),
            format!("services[0].authorization.negative_ttl: 10: {form}"),
        ),
        (
            "/services/0/authorization",
            json!({ "stale_if_error": "8d" }),
            "services[0].authorization.stale_if_error: \"8d\": must be from 0s to 7d".to_owned(),
        ),
        (
            "/services/0/authorization",
            json!({ "unknown": true }),
            "services[0].authorization.unknown: true: must be deny or allow".to_owned(),
        ),
        (
            "/services/0/authorization",
            json!({ "capacity": 64 }),
            "services[0].authorization.capacity: is unknown; the fields here are ttl, negative_ttl, stale_if_error, unknown".to_owned(),
        ),
        (
            "/reporting",
            json!({ "interval": "99ms" }),
            "reporting.interval: \"99ms\": must be from 100ms to 1m".to_owned(),
        ),
        (
            "/reporting",
            json!({ "timeout": "2m" }),
            "reporting.timeout: \"2m\": must be from 1ms to 1m".to_owned(),
        ),
        (
            "/reporting",
            json!({ "uncertain": true }),
            "reporting.uncertain: true: must be resend or drop".to_owned(),
        ),
        (
            "/reporting",
            json!({ "batch": 0 }),
            "reporting.batch: 0: must be a whole number from 1 to 1000".to_owned(),
        ),
        (
            "/reporting",
            json!({ "batch": 1.5 }),
            "reporting.batch: 1.5: must be a whole number from 1 to 1000".to_owned(),
        ),
        (
            "/unmatched_hosts",
            json!("allow"),
            "unmatched_hosts: \"allow\": must be deny or pass".to_owned(),
        ),
    ] {
        assert_eq!(error(&with(pointer, value)), message);
    }
}

#[test]
fn a_service_management_that_cannot_be_called_is_refused() {
    let authority = |found: &str| {
        format!(
            "service_management.authority: {found}: must be a host, perhaps with a port, and nothing else, like \"su1.3scale.net\""
        )
    };
    for (pointer, value, message) in [
        (
            "/service_management/cluster",
            "",
            "service_management.cluster: is empty: it must be the name of an Envoy cluster"
                .to_owned(),
        ),
        ("/service_management/authority", "", authority("\"\"")),
        (
            "/service_management/authority",
            "https://su1.3scale.net",
            authority("\"https://su1.3scale.net\""),
        ),
        (
            "/service_management/authority",
            "a\r\nb",
            authority("\"a\\r\\nb\""),
        ),
    ] {
        assert_eq!(error(&with(pointer, json!(value))), message);
    }
}

#[test]
fn a_service_needs_an_id_of_its_own() {
    let form = "an id has at most 128 letters, digits and characters like \"-\", and no white space, like \"1001\"";
    for id in ["", "10 01", "\u{fc}", &"1".repeat(129)] {
        let shown = error::quoted(id);
        let message = format!("services[0].id: {shown}: {form}");
        assert_eq!(error(&with("/services/0/id", json!(id))), message);
    }
    let mut again = shortest()["services"][0].clone();
    again["hosts"] = json!(["other.example.com"]);
    assert_eq!(
        error(&with("/services/1", again)),
        "services[1].id: \"1001\": is the id of services[0], too; each service stands here once"
    );
    assert_eq!(
        error(&with("/services", json!([]))),
        "services: is empty: at least one service is needed, or all requests are denied"
    );
}

#[test]
fn a_token_that_cannot_be_one_is_refused_and_not_shown() {
    let unset = "services[0].token.env: the variable is not set or empty in the environment of the plugin's VM: hand it on with vm_config.environment_variables, like { host_env_keys: [TG_SERVICE_TOKEN] } (in Istio: vmConfig.env with valueFrom: HOST)";
    let name = "services[0].token.env: must be the name of an environment variable: letters, digits and \"_\", like TG_SERVICE_TOKEN";
    let characters = "services[0].token: the token has white space or control characters in it; is there a line break at its end?";
    for (token, message) in [
        (json!({ "env": "TG_NOT_THERE" }), unset),
        (json!({ "env": "TG_EMPTY" }), unset),
        (json!({ "env": "" }), name),
        (json!({ "env": "$s3cr3t" }), name),
        (
            json!(""),
            "services[0].token: is empty: it must be a token or key, or { env: NAME } for one from the environment",
        ),
        (json!("s3cr3t "), characters),
        (json!({ "env": "TG_LINE" }), characters),
    ] {
        let configuration = with("/services/0/token", token);
        assert_eq!(error(&configuration), message);
        let debug = format!("{:?}", parse(&configuration).unwrap_err());
        assert!(!debug.contains("s3cr3t"), "{debug}");
    }
}

#[test]
fn a_provider_key_stands_in_place_of_a_token_and_never_beside_one() {
    let both = with("/services/0/provider_key", json!("k3y"));
    assert_eq!(
        error(&both),
        "services[0].provider_key: stands here besides a token: name one of them"
    );
    let mut only = both;
    only["services"][0].as_object_mut().unwrap().remove("token");
    let configuration = parse(&only).unwrap();
    assert!(
        matches!(&configuration.services[0].right, Right::ProviderKey(key) if key.expose() == "k3y")
    );
    assert!(!format!("{configuration:?}").contains("k3y"));
}

#[test]
fn a_service_is_in_oauth_mode_only_where_it_says_so() {
    assert!(!parse(&shortest()).unwrap().services[0].oauth);
    let oauth = with("/services/0/oauth", json!(true));
    assert!(parse(&oauth).unwrap().services[0].oauth);
}

#[test]
fn debug_output_of_a_configuration_does_not_show_a_token() {
    let debug = format!("{:?}", parse(&shortest()).unwrap());
    assert!(
        debug.contains("[secret]") && !debug.contains("s3cr3t"),
        "{debug}"
    );
}

#[test]
fn a_host_that_is_none_is_refused_with_an_example() {
    let name = "a host has labels of letters, digits, \"-\" and \"_\" with dots between them, in punycode if it is international, like \"api.example.com\"";
    let place = "\"*\" stands for whole labels at the beginning, like \"*.example.com\", or alone for every host";
    for (host, explanation) in [
        ("", "a host is needed, like \"api.example.com\""),
        (
            "*.",
            "a wildcard needs a domain after \"*.\", like \"*.example.com\"",
        ),
        ("*example.com", place),
        ("api.*.com", place),
        ("*.*.com", place),
        (
            "https://api.example.com",
            "a host has no scheme and no path, like \"api.example.com\"",
        ),
        (
            "api.example.com:8080",
            "leave the port out: a host is covered on every port",
        ),
        (
            "[::1]:80",
            "leave the port out: a host is covered on every port",
        ),
        ("::1", name),
        ("[::g]", name),
        ("a..b", name),
        ("a b", name),
        ("b\u{fc}cher.example", name),
        (".", name),
    ] {
        let hosts = json!(["api.example.com", host]);
        assert_eq!(
            error(&with("/services/0/hosts", hosts)),
            format!("services[0].hosts[1]: {host:?}: {explanation}")
        );
    }
    assert_eq!(
        error(&with("/services/0/hosts", json!([]))),
        "services[0].hosts: is empty: at least one host is needed, like api.example.com, or \"*\" for every host"
    );
}

#[test]
fn a_host_cannot_have_two_services() {
    let mut other = shortest()["services"][0].clone();
    other["id"] = json!("1002");
    other["hosts"] = json!(["other.example.com", "API.example.com."]);
    assert_eq!(
        error(&with("/services/1", other)),
        "services[1].hosts[1]: \"api.example.com\": belongs to service \"1001\" already (services[0].hosts[0]); services on one host are told apart by path_prefix or route"
    );
    assert_eq!(
        error(&with(
            "/services/0/hosts",
            json!(["*.a.com", "*", "*.A.com"])
        )),
        "services[0].hosts[2]: \"*.a.com\": belongs to service \"1001\" already (services[0].hosts[0]); services on one host are told apart by path_prefix or route"
    );
}

#[test]
fn services_that_share_a_host_differ_in_path_prefix_or_route() {
    let sharing = |first: Value, second: Value| {
        let mut configuration = shortest();
        let mut other = configuration["services"][0].clone();
        other["id"] = json!("1002");
        configuration["services"][0]
            .as_object_mut()
            .unwrap()
            .extend(first.as_object().unwrap().clone());
        other
            .as_object_mut()
            .unwrap()
            .extend(second.as_object().unwrap().clone());
        configuration["services"]
            .as_array_mut()
            .unwrap()
            .push(other);
        parse(&configuration)
    };
    for (first, second) in [
        (json!({}), json!({ "path_prefix": "/v1" })),
        (
            json!({ "path_prefix": "/v1" }),
            json!({ "path_prefix": "/v1/x" }),
        ),
        (json!({ "route": "a" }), json!({ "route": "b" })),
        (json!({ "route": "a" }), json!({})),
        (
            json!({ "path_prefix": "/v1", "route": "a" }),
            json!({ "path_prefix": "/v1" }),
        ),
    ] {
        assert!(
            sharing(first.clone(), second.clone()).is_ok(),
            "{first} {second}"
        );
    }
    for (first, second) in [
        (json!({}), json!({ "path_prefix": "/" })),
        (
            json!({ "path_prefix": "/v1" }),
            json!({ "path_prefix": "/v1/" }),
        ),
        (json!({ "route": "a" }), json!({ "route": "a" })),
        (
            json!({ "path_prefix": "/v1", "route": "a" }),
            json!({ "path_prefix": "/%761", "route": "a" }),
        ),
    ] {
        assert_eq!(
            sharing(first, second).unwrap_err().to_string(),
            "services[1].hosts[0]: \"api.example.com\": belongs to service \"1001\" already (services[0].hosts[0]); services on one host are told apart by path_prefix or route"
        );
    }
    let configuration = sharing(json!({}), json!({ "path_prefix": "/v1" })).unwrap();
    let found = |authority: &str, target: &str| {
        let found = configuration.service_for(authority.as_bytes(), target.as_bytes(), || None);
        found.map(|chosen| chosen.index)
    };
    assert_eq!(found("api.example.com", "/v1/x"), Ok(1));
    assert_eq!(found("api.example.com", "/v2/x"), Ok(0));
    assert_eq!(found("elsewhere.example.com", "/"), Err(NoService::Host));
    assert_eq!(found("x:y", "/"), Err(NoService::NotAHost));
}

#[test]
fn a_guarded_host_is_not_unmatched_where_no_service_has_the_path() {
    let mut configuration = with("/services/0/path_prefix", json!("/v1"));
    let mut any = configuration["services"][0].clone();
    any["id"] = json!("1002");
    any["hosts"] = json!(["*"]);
    any["path_prefix"] = json!("/");
    configuration["services"].as_array_mut().unwrap().push(any);
    configuration["unmatched_hosts"] = json!("pass");
    let configuration = parse(&configuration).unwrap();
    let found = configuration.service_for(b"api.example.com", b"/v2", || None);
    assert_eq!(found.map(|chosen| chosen.index), Err(NoService::Share));
}

#[test]
fn a_path_prefix_or_a_route_that_is_none_is_refused() {
    let plain = "a path prefix is plain text, like \"/v1\": it covers itself and all paths below it, without \"*\", \"{\", \"}\", \"?\", \"#\", white space or control characters";
    let long = "x".repeat(257);
    for (field, value, message) in [
        (
            "path_prefix",
            "v1",
            "\"v1\": a path prefix begins with \"/\", like \"/v1\"".to_owned(),
        ),
        ("path_prefix", "/v1/*", format!("\"/v1/*\": {plain}")),
        (
            "path_prefix",
            &format!("/{}", "x".repeat(1_024)),
            format!(
                "{}: a path prefix has at most 1024 bytes",
                error::quoted(&format!("/{long}"))
            ),
        ),
        (
            "route",
            "",
            "\"\": must be the name of a route in Envoy, of 1 to 256 bytes, like orders".to_owned(),
        ),
        (
            "route",
            &long,
            format!(
                "{}: must be the name of a route in Envoy, of 1 to 256 bytes, like orders",
                error::quoted(&long)
            ),
        ),
    ] {
        let pointer = format!("/services/0/{field}");
        assert_eq!(
            error(&with(&pointer, json!(value))),
            format!("services[0].{field}: {message}")
        );
    }
}

#[test]
fn a_usage_that_cannot_be_counted_is_refused() {
    let bounds = "must be a whole number from 1 to 1000000000000";
    let path = "services[0].mapping_rules[0].usage.hits";
    for value in [
        json!(0),
        json!(-1),
        json!(1.5),
        json!("1"),
        json!(null),
        json!(1_000_000_000_001_u64),
    ] {
        assert_eq!(
            error(&with(
                "/services/0/mapping_rules/0/usage/hits",
                value.clone()
            )),
            format!("{path}: {value}: {bounds}")
        );
    }
    assert_eq!(
        error(&with("/services/0/mapping_rules/0/usage/hits", json!("#5"))),
        format!(
            "{path}: \"#5\": usage can add only: setting a counter would overwrite what other gateways have counted; must be a whole number, like 1"
        )
    );
}

#[test]
fn a_mapping_rule_that_is_none_is_refused() {
    let path = "services[0].mapping_rules[0]";
    for (field, value, message) in [
        (
            "method",
            json!("get"),
            format!("{path}.method: \"get\": a method is a word in capitals, like GET, or ANY"),
        ),
        (
            "method",
            json!("G T"),
            format!(
                "{path}.method: method \"G T\" is not an HTTP method (RFC 9110, section 9.1), nor ANY"
            ),
        ),
        (
            "pattern",
            json!("v1"),
            format!("{path}.pattern: pattern \"v1\" does not start with /"),
        ),
        (
            "pattern",
            json!("/{a"),
            format!(
                "{path}.pattern: pattern \"/{{a\": each {{ needs its }} in the same segment, and no other brace between; a literal brace is written %7B or %7D"
            ),
        ),
        (
            "pattern",
            json!("/?a=1$"),
            format!(
                "{path}.pattern: pattern \"/?a=1$\": $ ends the path, so it stands before the ?; a literal $ at the end is written %24"
            ),
        ),
        (
            "pattern",
            json!("/?a=1&a=2"),
            format!(
                "{path}.pattern: pattern \"/?a=1&a=2\": query parameter \"a\" is constrained twice"
            ),
        ),
        (
            "usage",
            json!({}),
            format!(
                "{path}.usage: pattern \"/\": a rule that counts nothing must be `last`, to say that these requests are free"
            ),
        ),
    ] {
        let pointer = format!("/services/0/mapping_rules/0/{field}");
        assert_eq!(error(&with(&pointer, value)), message);
    }
    assert_eq!(
        error(&with("/services/0/mapping_rules", json!([]))),
        "services[0].mapping_rules: is empty: without a rule that matches, every request is denied; this one matches all: { pattern: \"/\", usage: { hits: 1 } }"
    );
}

#[test]
fn a_hierarchy_that_is_none_is_refused() {
    let orders = |parent: &str| json!({ "orders": { "parent": parent } });
    assert_eq!(
        error(&with("/services/0/metrics", orders("hist"))),
        "services[0].metrics.orders.parent: metric \"orders\": its parent \"hist\" is not a known metric: count it in a mapping rule, or declare it in metrics, like { hist: {} }"
    );
    assert_eq!(
        error(&with("/services/0/metrics", orders("orders"))),
        "services[0].metrics.orders.parent: metric \"orders\" is its own ancestor"
    );
    assert_eq!(
        error(&with("/services/0/metrics", json!({ "a b": {} }))),
        "services[0].metrics[\"a b\"]: metric \"a b\": a system name has only visible ASCII characters, no spaces and no square brackets"
    );
    let many: serde_json::Map<_, _> = (0..65).map(|n| (format!("m{n:02}"), json!(1))).collect();
    assert_eq!(
        error(&with(
            "/services/0/mapping_rules/0/usage",
            Value::Object(many)
        )),
        "services[0].mapping_rules[0].usage.m64: metric \"m64\" is one too many: a service has at most 64, because an application's record counts usage per metric and its size is bounded"
    );
    assert_eq!(
        error(&with("/services/0/mapping_rules/0/usage", json!({ "": 1 }))),
        "services[0].mapping_rules[0].usage[\"\"]: a metric has an empty name"
    );
}

#[test]
fn replies_are_changed_field_by_field_first_for_all_services_then_for_one() {
    let mut configuration = with(
        "/replies",
        json!({
            "denied": { "status": 404, "body": "", "headers": { "Cache-Control": "no-store" } },
            "limited": { "content_type": "application/json", "body": "{}" },
            "no_service": { "status": 421 },
        }),
    );
    let mut other = configuration["services"][0].clone();
    other["id"] = json!("1002");
    other["hosts"] = json!(["*"]);
    other["replies"] = json!({
        "denied": { "body": "Nein.\n" },
        "limited": { "status": 503, "headers": {} },
        "unavailable": { "status": 500, "content_type": "text/plain", "body": "x".repeat(1_025) },
    });
    other["rate_limit_headers"] = json!(true);
    configuration["services"]
        .as_array_mut()
        .unwrap()
        .push(other);
    let configuration = parse(&configuration).unwrap();
    let built_in = Replies::default();
    let [first, second] = [0, 1].map(|service: usize| &configuration.services[service]);
    assert!(!first.rate_limit_headers && second.rate_limit_headers);

    assert_eq!(configuration.replies.to(Outcome::NoService).status, 421);
    assert_eq!(first.replies, configuration.replies);
    let denied = first.replies.to(Outcome::Denied);
    assert_eq!((denied.status, &*denied.body), (404, ""));
    assert_eq!(
        *denied.headers,
        [("cache-control".into(), "no-store".into())]
    );
    assert_eq!(
        denied.content_type,
        built_in.to(Outcome::Denied).content_type
    );
    assert_eq!(&*denied.grpc_message, "The credential is not accepted.");
    let limited = first.replies.to(Outcome::Limited);
    assert_eq!((limited.status, &*limited.body), (429, "{}"));
    assert_eq!(
        &*limited.grpc_message, "A limit of the plan is used up.",
        "JSON is no message"
    );

    let denied = second.replies.to(Outcome::Denied);
    assert_eq!((denied.status, &*denied.body), (404, "Nein.\n"));
    assert_eq!(
        *denied.headers,
        [("cache-control".into(), "no-store".into())]
    );
    assert_eq!(&*denied.grpc_message, "Nein.");
    let limited = second.replies.to(Outcome::Limited);
    assert_eq!(
        (limited.status, &*limited.content_type),
        (503, "application/json")
    );
    let unavailable = second.replies.to(Outcome::Unavailable);
    assert_eq!(unavailable.status, 500);
    assert_eq!(
        &*unavailable.grpc_message, "The request cannot be authorized right now.",
        "too long for a header"
    );
    for outcome in [
        Outcome::NoCredential,
        Outcome::NoMappingRule,
        Outcome::Disabled,
        Outcome::Misconfigured,
    ] {
        assert_eq!(second.replies.to(outcome), built_in.to(outcome));
    }
}

#[test]
fn a_reply_that_cannot_be_sent_is_refused() {
    let status = "must be a whole number from 400 to 599: a refusal never looks like a success";
    let media_type = "must be a media type, like application/json";
    let value = "a header value has 1 to 1024 visible ASCII characters, with spaces between them only, like no-store";
    let reserved = "the reply or the connection sets this header itself; the content type is content_type, beside headers";
    let many: serde_json::Map<_, _> = (0..17).map(|n| (format!("x-{n}"), json!("y"))).collect();
    for (outcome, reply, message) in [
        ("denied", json!({ "status": 200 }), format!(".status: 200: {status}")),
        ("denied", json!({ "status": 399 }), format!(".status: 399: {status}")),
        ("denied", json!({ "status": 600 }), format!(".status: 600: {status}")),
        ("denied", json!({ "status": 65_940 }), format!(".status: 65940: {status}")),
        ("denied", json!({ "status": "403" }), format!(".status: \"403\": {status}")),
        ("denied", json!({ "status": null }), format!(".status: null: {status}")),
        ("limited", json!({ "content_type": "json" }), format!(".content_type: \"json\": {media_type}")),
        ("limited", json!({ "content_type": "text/plain\r\nx: y" }), format!(".content_type: \"text/plain\\r\\nx: y\": {media_type}")),
        ("limited", json!({ "body": "x".repeat(16_385) }), ".body: has 16385 bytes: must be at most 16384".to_owned()),
        ("limited", json!({ "body": { "error": 1 } }), ".body: is an object, must be a string".to_owned()),
        ("disabled", json!({ "headers": { "x y": "z" } }), "[\"x y\"]: \"x y\": a header name has letters, digits, and characters like \"-\", like cache-control".to_owned()),
        ("disabled", json!({ "headers": { ":status": "200" } }), "[\":status\"]: \":status\": a header name has letters, digits, and characters like \"-\", like cache-control".to_owned()),
        ("disabled", json!({ "headers": { "x": "y\r\nset-cookie: z" } }), format!(".x: \"y\\r\\nset-cookie: z\": {value}")),
        ("disabled", json!({ "headers": { "x": " y" } }), format!(".x: \" y\": {value}")),
        ("disabled", json!({ "headers": { "x": "" } }), format!(".x: \"\": {value}")),
        ("disabled", json!({ "headers": { "Content-Type": "text/html" } }), format!(".Content-Type: \"Content-Type\": {reserved}")),
        ("disabled", json!({ "headers": { "retry-after": "1" } }), format!(".retry-after: \"retry-after\": {reserved}")),
        ("disabled", json!({ "headers": { "X": "1", "x": "2" } }), ".x: stands here twice".to_owned()),
        ("disabled", json!({ "headers": many }), ": names too many headers: must be at most 16".to_owned()),
        ("unavailable", json!({ "code": 500 }), ".code: is unknown; the fields here are status, content_type, body, headers".to_owned()),
        ("unavailable", json!(503), ": is a number, must be an object".to_owned()),
    ] {
        let headers = if outcome == "disabled" { ".headers" } else { "" };
        for (pointer, place) in [("/replies", "replies"), ("/services/0/replies", "services[0].replies")] {
            let replies = json!({ outcome: reply });
            assert_eq!(error(&with(pointer, replies)), format!("{place}.{outcome}{headers}{message}"));
        }
    }
    let outcomes = "no_credential, denied, no_mapping_rule, limited, disabled, unavailable, misconfigured, invalid_token, insufficient_scope, large_body";
    let unknown = json!({ "not_found": {} });
    assert_eq!(
        error(&with("/replies", unknown)),
        format!(
            "replies.not_found: is unknown; the fields here are {outcomes}, late_body, no_service"
        )
    );
    let of_none = json!({ "no_service": {} });
    assert_eq!(
        error(&with("/services/0/replies", of_none)),
        format!("services[0].replies.no_service: is unknown; the fields here are {outcomes}")
    );
    assert_eq!(
        error(&with("/services/0/rate_limit_headers", json!("yes"))),
        "services[0].rate_limit_headers: is a string, must be true or false"
    );
    for bound in [
        json!({ "status": 400 }),
        json!({ "status": 599 }),
        json!({ "body": "x".repeat(16_384) }),
    ] {
        assert!(parse(&with("/replies", json!({ "denied": bound }))).is_ok());
    }
}

#[test]
fn an_exemption_that_is_none_is_refused() {
    let plain = "an exempt path has letters, digits and plain punctuation, without \"%\", \";\", \"?\", \"//\", \"/./\" and \"/../\": servers read those in several ways";
    let method =
        "a method is a word in capitals, like OPTIONS; without one, every method is exempt";
    for (exemption, message) in [
        (json!({}), "services[0].exempt[0]: names neither a method nor a path, like { method: OPTIONS } or { path: /healthz }".to_owned()),
        (json!({ "method": "options" }), format!("services[0].exempt[0].method: \"options\": {method}")),
        (json!({ "method": "ANY", "path": "/" }), format!("services[0].exempt[0].method: \"ANY\": {method}")),
        (json!({ "path": "healthz" }), "services[0].exempt[0].path: \"healthz\": a path begins with \"/\", like \"/healthz\"".to_owned()),
        (json!({ "path": "*" }), "services[0].exempt[0].path: \"*\": a path begins with \"/\", like \"/healthz\"".to_owned()),
        (json!({ "path": "/*/a" }), "services[0].exempt[0].path: \"/*/a\": \"*\" may stand at the end only, like \"/public/*\"".to_owned()),
        (json!({ "path": "/a%20b" }), format!("services[0].exempt[0].path: \"/a%20b\": {plain}")),
        (json!({ "path": "/a/../b" }), format!("services[0].exempt[0].path: \"/a/../b\": {plain}")),
        (json!({ "path": "/a?b" }), format!("services[0].exempt[0].path: \"/a?b\": {plain}")),
        (json!({ "path": "//*" }), format!("services[0].exempt[0].path: \"//*\": {plain}")),
    ] {
        assert_eq!(error(&with("/services/0/exempt", json!([exemption]))), message);
    }
}

#[cfg(not(target_family = "wasm"))]
mod properties {
    use super::*;
    use proptest::prelude::*;

    /// Any JSON, with values that mean something here among the others.
    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            ".{0,20}".prop_map(Value::from),
            "[/*.:\\[\\]a-z0-9{}$?#%]{0,12}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 24, 6, |inner| {
            let name = prop_oneof![
                "[a-z_]{0,8}",
                Just("env".to_owned()),
                Just("hits".to_owned())
            ];
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                proptest::collection::vec((name, inner), 0..6)
                    .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    /// Every place of a configuration that names all fields.
    fn pointers(value: &Value, at: &str, into: &mut Vec<String>) {
        into.push(at.to_owned());
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    pointers(
                        value,
                        &format!("{at}/{}", name.replace('~', "~0").replace('/', "~1")),
                        into,
                    );
                }
            }
            Value::Array(items) => {
                for (index, value) in items.iter().enumerate() {
                    pointers(value, &format!("{at}/{index}"), into);
                }
            }
            _ => {}
        }
    }

    fn full() -> Value {
        let mut full = with(
            "/authorization",
            json!({ "ttl": "60s", "negative_ttl": "10s", "stale_if_error": "10m", "capacity": 8, "unknown": "deny", "gateways": 2, "accuracy": "strict" }),
        );
        full["reporting"] =
            json!({ "interval": "10s", "uncertain": "drop", "timeout": "5s", "batch": 10 });
        full["unmatched_hosts"] = json!("pass");
        full["service_management"]["timeout"] = json!("1s");
        let service = &mut full["services"][0];
        service["token"] = json!({ "env": "TG_SERVICE_TOKEN" });
        service["credentials"] = json!({
            "user_key": [
                { "query": "a" }, { "header": "b" }, { "cookie": "c" }, { "bearer": {} },
                { "basic": "username" },
            ],
            "strip": true, "referrer": true, "anonymous": { "user_key": { "env": "TG_SERVICE_TOKEN" } },
        });
        service["metrics"] = json!({ "orders": { "parent": "hits" } });
        service["exempt"] = json!([{ "method": "GET", "path": "/a/*" }]);
        service["path_prefix"] = json!("/v1");
        service["route"] = json!("orders");
        service["rate_limit_headers"] = json!(true);
        let reply = json!({ "status": 404, "content_type": "text/html", "body": "x", "headers": { "a": "b" } });
        service["replies"] = json!({ "denied": reply });
        service["mapping_rules"][0]["query"] = json!({ "a": "b" });
        service["mapping_rules"][0]["method"] = json!("GET");
        service["mapping_rules"][0]["last"] = json!(true);
        full["replies"] = json!({ "no_service": reply });
        full
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_strange(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Configuration::parse(&bytes, &environment);
        }

        #[test]
        fn no_json_in_any_place_is_too_strange_and_every_error_names_the_place(
            value in any_json(),
            choice: proptest::sample::Index,
        ) {
            let mut configuration = full();
            prop_assert!(parse(&configuration).is_ok());
            let mut places = Vec::new();
            pointers(&configuration, "", &mut places);
            let place = choice.get(&places);
            *configuration.pointer_mut(place).unwrap() = value;
            if let Err(error) = parse(&configuration) {
                let known = ["configuration", "service_management", "services", "authorization", "reporting", "unmatched_hosts", "replies"];
                prop_assert!(
                    place.is_empty() || known.iter().any(|start| error.path.starts_with(start)),
                    "{}", error
                );
                prop_assert!(!error.problem.to_string().is_empty());
            }
        }
    }
}
