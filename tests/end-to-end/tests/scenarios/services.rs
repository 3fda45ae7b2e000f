//! Services on one host, replies in the words of their operator, gRPC, and what callers are
//! told of their limits: as a client of the real Envoy sees it.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use reqwest::Method;
use reqwest::header::HeaderMap;
use serde_json::{Value, json};
use tollgate_end_to_end::{Gateway, Setup};
use tollgate_harness::{EnvoyOptions, connection_manager, raw_request};

const DATASET: &str = r#"
service_token: svc-token
metrics: { hits: null }
plans:
  free: {}
  day2: { hits: { day: 2, year: 100 } }
  eternity1: { hits: { eternity: 1 } }
  none: { hits: { day: 0 } }
services:
  "1001":
    backend_version: "1"
    applications:
      one: { plan: free, user_key: one-key }
      day2: { plan: day2, user_key: day2-key }
      eternity1: { plan: eternity1, user_key: eternity1-key }
      none: { plan: none, user_key: none-key }
  "1002":
    backend_version: "1"
    applications:
      two: { plan: free, user_key: two-key }
  "1003":
    backend_version: "1"
    applications:
      three: { plan: free, user_key: three-key }
"#;

fn service(id: &str, fields: Value) -> Value {
    let mut service = json!({
        "id": id,
        "token": { "env": "TG_SERVICE_TOKEN" },
        "hosts": ["api.example.com"],
        "credentials": { "user_key": [{ "header": "x-api-key" }] },
        "mapping_rules": [{ "pattern": "/", "usage": { "hits": 1 } }],
    });
    if let (Some(service), Value::Object(fields)) = (service.as_object_mut(), fields) {
        service.extend(fields);
    }
    service
}

async fn start(services: &[Value], more: Value, envoy: EnvoyOptions) -> Result<Gateway> {
    let mut plugin = more;
    plugin["services"] = json!(services);
    Gateway::start(Setup {
        dataset: DATASET.to_owned(),
        plugin,
        envoy,
    })
    .await
}

/// Which service takes this key in a request with these headers: the others do not know it.
async fn owner(gateway: &Gateway, path: &str, headers: &[(&str, &str)]) -> Result<Vec<u32>> {
    let client = gateway.client()?;
    let mut owners = Vec::new();
    for (service, key) in [(1001, "one-key"), (1002, "two-key"), (1003, "three-key")] {
        let own = [("host", "api.example.com"), ("x-api-key", key)];
        let headers: Vec<_> = own.iter().chain(headers).copied().collect();
        if client.get(path, &headers).await?.status == 200 {
            owners.push(service);
        }
    }
    Ok(owners)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Envoy and the module: run cargo xtask test"]
async fn a_path_prefix_chooses_the_service_however_the_path_is_written() -> Result<()> {
    let services = [
        service("1001", json!({})),
        service("1002", json!({ "path_prefix": "/v1" })),
        service("1003", json!({ "path_prefix": "/v1/orders" })),
    ];
    // As if Envoy were not told to normalize paths: the filter alone decides.
    let listener = Arc::new(|listener: &mut Value| {
        let manager = connection_manager(listener);
        manager["normalize_path"] = json!(false);
        manager["merge_slashes"] = json!(false);
        manager["path_with_escaped_slashes_action"] = json!("KEEP_UNCHANGED");
    });
    for options in [
        EnvoyOptions::default(),
        EnvoyOptions {
            listener: Some(listener),
            ..EnvoyOptions::default()
        },
    ] {
        let gateway = start(&services, json!({}), options).await?;
        for (path, service) in [
            ("/", 1001),
            ("/v10", 1001),
            ("/v1", 1002),
            ("/v1?x=/orders", 1002),
            ("/v1/ordersx", 1002),
            ("/v1/orders", 1003),
            ("/v1/orders/7", 1003),
        ] {
            assert_eq!(owner(&gateway, path, &[]).await?, [service], "{path}");
        }
        // A client that does not tidy paths up.
        for path in [
            "/v2/../v1/orders/7",
            "/v2/%2e%2E/v1/orders",
            "//v1//orders",
            "/v1/./orders/x/..",
            "/%76%31/orders",
        ] {
            for (key, status) in [("one-key", 403), ("two-key", 403), ("three-key", 200)] {
                let request = format!(
                    "GET {path} HTTP/1.1\r\nhost: api.example.com\r\nx-api-key: {key}\r\n\
                     connection: close\r\n\r\n"
                );
                let address = gateway.envoy.address();
                let (answer, _) = raw_request(address, request.as_bytes()).await?;
                assert_eq!(answer, Some(status), "{path} {key}");
            }
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Envoy and the module: run cargo xtask test"]
async fn the_name_of_envoys_route_chooses_the_service() -> Result<()> {
    let services = [
        service("1001", json!({ "route": "orders" })),
        service("1002", json!({ "route": "search" })),
        service("1003", json!({ "path_prefix": "/v1", "route": "search" })),
    ];
    let listener = Arc::new(|listener: &mut Value| {
        let team = |name: &str| {
            json!({
                "name": name,
                "match": { "prefix": "/", "headers": [{ "name": "x-team", "string_match": { "exact": name } }] },
                "route": { "cluster": "upstream" },
            })
        };
        let mut nameless = team("nobody");
        if let Some(route) = nameless.as_object_mut() {
            route.remove("name");
        }
        let routes = json!([team("orders"), team("search"), team("other"), nameless]);
        connection_manager(listener)["route_config"]["virtual_hosts"][0]["routes"] = routes;
    });
    let options = EnvoyOptions {
        listener: Some(listener),
        ..EnvoyOptions::default()
    };
    let gateway = start(&services, json!({}), options).await?;
    for (team, path, owners) in [
        ("orders", "/", &[1001][..]),
        ("search", "/", &[1002]),
        ("search", "/v1/x", &[1003]),
        ("orders", "/v1/x", &[1001]),
        ("other", "/", &[]),
        ("nobody", "/", &[]),
        ("none-at-all", "/", &[]),
    ] {
        let headers = [("x-team", team)];
        assert_eq!(
            owner(&gateway, path, &headers).await?,
            owners,
            "{team} {path}"
        );
    }
    let line = gateway
        .envoy
        .wait_for_access_log(|line| line["status"] == 404)
        .await?;
    assert_eq!(line["details"], "tollgate_no_service");
    Ok(())
}

/// The services and settings for the tests of replies.
fn worded() -> (Vec<Value>, Value) {
    let own = json!({
        "no_credential": {
            "status": 400,
            "content_type": "application/json",
            "body": "{\"error\":\"no key\"}",
            "headers": { "Cache-Control": "no-store", "x-help": "https://help.example.com/#keys" },
        },
        "disabled": { "body": "" },
        "limited": { "body": "Langsam, schön langsam.\n" },
    });
    let services = vec![
        service(
            "1001",
            json!({ "replies": own, "rate_limit_headers": true }),
        ),
        service("1002", json!({ "hosts": ["two.example.com"] })),
    ];
    let all = json!({
        "denied": { "status": 404, "body": "Not found.\n" },
        "no_service": { "status": 421, "content_type": "text/html", "body": "<h1>421</h1>" },
    });
    (services, json!({ "replies": all }))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Envoy and the module: run cargo xtask test"]
async fn replies_are_those_that_are_configured() -> Result<()> {
    let (services, more) = worded();
    let gateway = start(&services, more, EnvoyOptions::default()).await?;
    let plain = Some("text/plain; charset=utf-8");
    for (host, path, key, status, content_type, body, details) in [
        (
            "api.example.com",
            "/a1",
            "",
            400,
            Some("application/json"),
            "{\"error\":\"no key\"}",
            "tollgate_no_credential",
        ),
        (
            "two.example.com",
            "/a2",
            "",
            401,
            plain,
            "A credential is required.\n",
            "tollgate_no_credential",
        ),
        (
            "api.example.com",
            "/a3",
            "nobody",
            404,
            plain,
            "Not found.\n",
            "tollgate_user_key_invalid",
        ),
        (
            "api.example.com",
            "/a4",
            "none-key",
            403,
            None,
            "",
            "tollgate_metric_disabled",
        ),
        (
            "elsewhere.example.com",
            "/a5",
            "",
            421,
            Some("text/html"),
            "<h1>421</h1>",
            "tollgate_no_service",
        ),
    ] {
        let reply = gateway
            .client()?
            .get(path, &[("host", host), ("x-api-key", key)])
            .await?;
        assert_eq!(
            (reply.status, reply.body.as_str()),
            (status, body),
            "{path}"
        );
        assert_eq!(reply.header("content-type"), content_type, "{path}");
        let custom = status == 400;
        assert_eq!(
            (reply.header("cache-control"), reply.header("x-help")),
            if custom {
                (Some("no-store"), Some("https://help.example.com/#keys"))
            } else {
                (None, None)
            },
            "{path}"
        );
        let line = gateway
            .envoy
            .wait_for_access_log(|line| line["path"] == path)
            .await?;
        assert_eq!(line["details"], details, "{path}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Envoy and the module: run cargo xtask test"]
async fn a_grpc_client_gets_a_grpc_status_over_http_2_and_http_1() -> Result<()> {
    let (services, _) = worded();
    let gateway = start(&services, json!({}), EnvoyOptions::default()).await?;
    let address = gateway.envoy.address();
    // By name, for in HTTP/2 the authority is the URL's, whatever a host header says.
    let hosts = [
        "api.example.com",
        "two.example.com",
        "elsewhere.example.com",
    ];
    let builder = || {
        hosts
            .iter()
            .fold(reqwest::Client::builder().no_proxy(), |builder, host| {
                builder.resolve(host, address)
            })
    };
    for client in [
        builder().http2_prior_knowledge().build()?,
        builder().build()?,
    ] {
        let call = async |host: &str, key: &str, content_type: &str| -> Result<_> {
            let url = format!("http://{host}:{}/pkg.Service/Method", address.port());
            let request = client
                .request(Method::POST, url)
                .header("content-type", content_type)
                .header("te", "trailers")
                .header("x-api-key", key)
                .body(&b"\0\0\0\0\0"[..]);
            let response = request.send().await?;
            let (status, headers) = (response.status().as_u16(), response.headers().clone());
            Ok((status, headers, response.text().await?))
        };
        for _ in 0..2 {
            call("api.example.com", "day2-key", "application/json").await?;
        }
        for (host, key, grpc_status, message) in [
            ("api.example.com", "", "16", "A credential is required."),
            ("two.example.com", "", "16", "A credential is required."),
            (
                "api.example.com",
                "nobody",
                "7",
                "The credential is not accepted.",
            ),
            (
                "api.example.com",
                "none-key",
                "7",
                "The plan does not include this operation.",
            ),
            (
                "api.example.com",
                "day2-key",
                "8",
                "Langsam, sch%C3%B6n langsam.",
            ),
            ("elsewhere.example.com", "", "12", "No API is served here."),
        ] {
            let (status, headers, body) = call(host, key, "application/grpc+proto").await?;
            let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
            assert_eq!((status, body.as_str()), (200, ""), "{host} {key}");
            assert_eq!(header("content-type"), Some("application/grpc"));
            assert_eq!(header("grpc-status"), Some(grpc_status), "{host} {key}");
            assert_eq!(header("grpc-message"), Some(message));
            assert_eq!(header("retry-after").is_some(), grpc_status == "8");
        }
        let (status, headers, _) = call("two.example.com", "", "application/grpc-web").await?;
        assert_eq!(status, 401, "{headers:?}");
        assert_eq!(headers.get("grpc-status"), None);
    }
    Ok(())
}

/// The fields of a route configuration that the documentation has for these headers.
fn shipped_headers() -> Result<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../envoy/rate-limit-headers.yaml");
    Ok(serde_yaml::from_str(&std::fs::read_to_string(path)?)?)
}

fn told(headers: &HeaderMap) -> Result<[Option<u64>; 4]> {
    let number = |name: &str| -> Result<Option<u64>> {
        let mut values = headers.get_all(name).iter();
        let value = values.next().map(|value| value.to_str()).transpose()?;
        assert_eq!(values.next(), None, "{name} stands there twice");
        value
            .map(|value| value.parse().with_context(|| format!("{name}: {value}")))
            .transpose()
    };
    Ok([
        number("ratelimit-limit")?,
        number("ratelimit-remaining")?,
        number("ratelimit-reset")?,
        number("retry-after")?,
    ])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Envoy and the module: run cargo xtask test"]
async fn callers_are_told_what_is_left_on_answers_of_the_api_and_on_refusals() -> Result<()> {
    let (services, more) = worded();
    let fields = shipped_headers()?;
    let listener = Arc::new(move |listener: &mut Value| {
        let routes = &mut connection_manager(listener)["route_config"];
        if let (Some(routes), Some(fields)) = (routes.as_object_mut(), fields.as_object()) {
            routes.extend(fields.clone());
        }
    });
    let options = EnvoyOptions {
        listener: Some(listener),
        ..EnvoyOptions::default()
    };
    let gateway = start(&services, more, options).await?;
    let client = gateway.client()?;
    let get = async |host: &str, key: &str| {
        client
            .get("/v1", &[("host", host), ("x-api-key", key)])
            .await
    };
    let mut day = Vec::new();
    for _ in 0..3 {
        let reply = get("api.example.com", "day2-key").await?;
        day.push((reply.status, told(&reply.headers)?));
    }
    let [(200, first), (200, second), (429, third)] = day[..] else {
        anyhow::bail!("{day:?}");
    };
    for ([limit, remaining, reset, _], left) in [(first, 1), (second, 0), (third, 0)] {
        assert_eq!((limit, remaining), (Some(2), Some(left)));
        let reset = reset.context("no reset")?;
        assert!((1..=86_400).contains(&reset), "{reset}");
    }
    assert_eq!((first[3], second[3], third[3]), (None, None, third[2]));

    for (key, status) in [("eternity1-key", 200), ("eternity1-key", 429)] {
        let reply = get("api.example.com", key).await?;
        assert_eq!(reply.status, status);
        assert_eq!(told(&reply.headers)?, [Some(1), Some(0), None, None]);
    }
    // No limits, a refusal for another reason, and a service that does not tell.
    for (host, key, status) in [
        ("api.example.com", "one-key", 200),
        ("api.example.com", "none-key", 403),
        ("two.example.com", "two-key", 200),
    ] {
        let reply = get(host, key).await?;
        assert_eq!(reply.status, status, "{key}");
        assert_eq!(told(&reply.headers)?, [None; 4], "{key}");
    }
    Ok(())
}
