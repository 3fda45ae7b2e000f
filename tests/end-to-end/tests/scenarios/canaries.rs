//! Secrets that can be told from everything else are put wherever secrets can be, every
//! path is gone, and then they are looked for in everything that comes out.
//!
//! Envoy itself prints requests at `trace`, downstream ones and those that filters make, with
//! all their headers; and when it takes a listener, what stands in it. That is Envoy's own
//! doing and cannot be helped from inside. So of Envoy's log, the lines are left out that its
//! components `http`, `router` and `jwt` (its own filter for tokens) wrote, and of `config` what stands in the configuration itself;
//! all others are searched, above all those of `wasm`, where everything stands that the
//! filter writes and that is said about it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Result;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use p256::ecdsa::signature::Signer;
use p256::ecdsa::{Signature, SigningKey};
use serde_json::{Value, json};
use service_management::{Fault, FaultRule, FaultScope};
use tollgate_end_to_end::{Gateway, KeyManager, PATIENCE, Said, Setup, merge, wall_milliseconds};
use tollgate_harness::{
    Base, Client, EnvoyOptions, ListenerPatch, ListenerUpdate, Reply, connection_manager,
    eventually,
};

/// In each of them, and in nothing else.
const MARK: &str = "zorilla";
const TOKEN: &str = "zorilla-of-the-service";
const PROVIDER: &str = "zorilla-of-the-provider";
const ANYBODY: &str = "zorilla-of-anybody";
const KEY: &str = "zorilla-of-a-consumer";
const ID: &str = "zorilla-of-an-application";
const APP_KEY: &str = "zorilla-of-its-key";
const STRANGER: &str = "zorilla-of-a-stranger";
/// In the claims of tokens: whom they speak for, and one of the issuer's own.
const CLIENT: &str = "zorilla-of-a-client";
const SUBJECT: &str = "zorilla-of-a-person";
const CLAIM: &str = "zorilla-of-a-claim";
/// How the gateway shows itself to a key manager, and an opaque token.
const CLIENT_SECRET: &str = "zorilla-of-the-gateway";
const OPAQUE: &str = "zorilla-of-nobody-knows-whom";
/// Whose tokens are taken.
const ISSUER: &str = "https://id.example";
/// Services whose tokens a key manager judges, by the path at which it is asked, and what becomes
/// of a question there: a counter of theirs that rises.
const JUDGED: [(&str, &str, &str); 8] = [
    ("1010", "/truth", "calls"),
    ("1011", "/tired", "stale"),
    ("1012", "/error", "server_error"),
    ("1013", "/odd", "unexpected_status"),
    ("1014", "/garbled", "malformed"),
    ("1015", "/refusal", "misconfigured"),
    ("1016", "/silence", "timeout"),
    ("1017", "/down", "not_connected"),
];
/// Stands in configurations themselves, where secrets from the environment do not.
const LITERAL: &str = "zorilla-in-the-file";

fn dataset() -> String {
    let mut dataset = format!(
        r#"
service_token: {TOKEN}
provider_key: {PROVIDER}
metrics: {{ hits: null }}
plans: {{ none: {{ hits: {{ day: 0 }} }}, free: {{}}, few: {{ hits: {{ eternity: 3 }} }} }}
services:
  "1001":
    backend_version: "1"
    applications:
      a: {{ plan: free, user_key: {KEY} }}
      b: {{ plan: none, user_key: {KEY}-none }}
      c: {{ plan: free, user_key: {KEY}-suspended, state: suspended }}
      d: {{ plan: few, user_key: {KEY}-few }}
      e: {{ plan: free, user_key: {ANYBODY} }}
  "1002":
    backend_version: "2"
    referrer_filters_required: true
    applications:
      {ID}: {{ plan: free, app_keys: [{APP_KEY}, {APP_KEY}-2] }}
      {ID}-referred: {{ plan: free, app_keys: [{APP_KEY}], referrer_filters: ["*.example.org"] }}
  "1003":
    backend_version: oauth
    applications:
      {ID}-oauth: {{ plan: free, app_keys: [{APP_KEY}] }}
  "1004":
    backend_version: oauth
    applications:
      {CLIENT}: {{ plan: free, app_keys: [{APP_KEY}] }}
      {CLIENT}-none: {{ plan: none, app_keys: [{APP_KEY}] }}
  "1005":
    backend_version: oauth
    applications:
      {CLIENT}: {{ plan: free, app_keys: [{APP_KEY}] }}
"#
    );
    for (id, ..) in JUDGED {
        dataset += &format!(
            r#"
  "{id}":
    backend_version: oauth
    applications:
      {CLIENT}: {{ plan: free, app_keys: [{APP_KEY}] }}
"#
        );
    }
    dataset
}

fn services() -> Value {
    let rules = json!([{ "pattern": "/v1/", "usage": { "hits": 1 } }, { "pattern": "/echo", "usage": { "hits": 1 } }]);
    let application = json!({
        "app_id": [{ "header": "app-id" }, { "query": "app_id" }, { "basic": "username" }],
        "app_key": [{ "header": "app-key" }, { "query": "app_key" }, { "basic": "password" }],
    });
    let mut referred = application.clone();
    referred["referrer"] = json!(true);
    let places = json!([{ "header": "x-api-key" }, { "query": "user_key" }, { "cookie": "key" }, { "bearer": {} }]);
    let token = json!({ "env": "TG_SERVICE_TOKEN" });
    let tokens = json!({
        "issuers": [{ "issuer": ISSUER, "audiences": ["api"], "jwks": jwks() }],
        "claims_to_headers": { "x-subject": "sub", "x-claim": ["https://example.com/claim"] },
    });
    let scoped = json!([
        { "pattern": "/v1/orders", "usage": { "hits": 1 }, "last": true, "require": { "scopes": ["orders"] } },
        { "pattern": "/", "usage": { "hits": 1 } },
    ]);
    let behind = json!({
        "issuers": [{ "issuer": ISSUER, "audiences": ["api"] }],
        "jwt_authn": { "payload_in_metadata": "jwt" },
        "claims_to_headers": tokens["claims_to_headers"],
    });
    let mut services = json!([
        { "id": "1001", "token": token, "hosts": ["keys"], "mapping_rules": rules, "rate_limit_headers": true,
          "credentials": { "user_key": places, "strip": true, "anonymous": { "user_key": { "env": "TG_ANYBODY" } } } },
        { "id": "1002", "provider_key": { "env": "TG_PROVIDER_KEY" }, "hosts": ["apps"], "mapping_rules": rules,
          "credentials": referred },
        { "id": "1003", "token": token, "oauth": true, "hosts": ["oauth"], "mapping_rules": rules,
          "credentials": application },
        { "id": "1004", "token": token, "hosts": ["tokens"], "mapping_rules": scoped,
          "credentials": { "token": tokens, "strip": true } },
        { "id": "1005", "token": token, "hosts": ["behind"], "mapping_rules": scoped,
          "credentials": { "token": behind } },
    ]);
    let judged = JUDGED.map(|(id, path, _)| {
        let introspection = introspection(json!({
            "cluster": if path == "/down" { "nobody" } else { "id" },
            "url": format!("http://id.example{path}"),
        }));
        json!({
            "id": id, "token": token, "hosts": [format!("at{}", path.replace('/', "-"))],
            "mapping_rules": scoped,
            "credentials": { "token": {
                "introspection": introspection, "claims_to_headers": tokens["claims_to_headers"],
            } },
        })
    });
    services.as_array_mut().expect("a list").extend(judged);
    services
}

/// How a key manager is asked, with changes to it.
fn introspection(patch: Value) -> Value {
    let mut introspection = json!({
        "cluster": "id",
        "url": "http://id.example/truth",
        "client_id": LITERAL,
        "client_secret": { "env": "TG_CLIENT_SECRET" },
        "timeout": "300ms",
        "ttl": "1s",
        "negative_ttl": "1s",
        "stale_if_error": "1h",
        "calls_per_second": 10_000,
    });
    merge(&mut introspection, &patch);
    introspection
}

/// A key manager that is asked in all these ways. `tired`: it answers nobody at `/tired`.
async fn key_manager(tired: Arc<AtomicBool>) -> Result<KeyManager> {
    KeyManager::start(move |path, token| {
        let truth = || {
            Said::from(match token.starts_with(OPAQUE) {
                true => json!({
                    "active": true, "client_id": CLIENT, "username": SUBJECT, "sub": SUBJECT,
                    "scope": "zorilla orders", "https://example.com/claim": CLAIM,
                }),
                false => json!({ "active": false, "zorilla": token }),
            })
        };
        let error = json!({ "error": "zorilla", "error_description": token }).to_string();
        match path {
            "/error" => Said::Answer(500, error),
            "/odd" => Said::Answer(400, error),
            "/garbled" => Said::Answer(200, format!("<p>{token}")),
            "/refusal" => Said::Answer(401, error),
            "/silence" => Said::Nothing,
            "/tired" if tired.load(Ordering::Relaxed) => Said::Answer(503, error),
            _ => truth(),
        }
    })
    .await
}

/// The public half of [`tokens`]' key.
fn jwks() -> Value {
    let point = signing_key().verifying_key().to_encoded_point(false);
    let part = |part: Option<&p256::FieldBytes>| part.map(|part| URL_SAFE_NO_PAD.encode(part));
    json!({ "keys": [
        { "kty": "EC", "crv": "P-256", "alg": "ES256", "x": part(point.x()), "y": part(point.y()) },
    ] })
}

fn signing_key() -> SigningKey {
    SigningKey::from_slice(&[7; 32]).expect("a key")
}

/// Envoy's own filter in front, for the host `behind`.
fn jwt_authn() -> Value {
    json!({
        "name": "envoy.filters.http.jwt_authn",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication",
            "providers": { "id": {
                "issuer": ISSUER,
                "payload_in_metadata": "jwt",
                "forward": true,
                "local_jwks": { "inline_string": jwks().to_string() },
            } },
            "rules": [{
                "match": {
                    "prefix": "/",
                    "headers": [{ "name": ":authority", "string_match": { "exact": "behind" } }],
                },
                "requires": { "requires_any": { "requirements": [
                    { "provider_name": "id" }, { "allow_missing_or_failed": {} },
                ] } },
            }],
        },
    })
}

/// Tokens: good ones, and one for each way to be none. Each has the mark in its claims, and so in
/// its text, in base64; the last as it is.
fn tokens(step: usize) -> Vec<String> {
    let now = wall_milliseconds() / 1_000;
    let claims = |patch: Value| {
        let mut claims = json!({
            "iss": ISSUER, "aud": "api", "exp": now + 3_600, "azp": CLIENT,
            "sub": format!("{SUBJECT}-{step}"), "https://example.com/claim": CLAIM,
        });
        merge(&mut claims, &patch);
        claims.to_string()
    };
    let token = |header: Value, claims: String| {
        let header = URL_SAFE_NO_PAD.encode(header.to_string());
        let signed = format!("{header}.{}", URL_SAFE_NO_PAD.encode(claims));
        let signature: Signature = signing_key().sign(signed.as_bytes());
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.to_bytes()))
    };
    let header = json!({ "alg": "ES256" });
    let good = token(header.clone(), claims(json!({})));
    let (signed, _) = good.rsplit_once('.').unwrap_or_default();
    let mut tokens = vec![good.clone(), format!("{signed}.{}", "A".repeat(86))];
    for patch in [
        json!({ "scope": "zorilla orders" }),
        json!({ "azp": format!("{CLIENT}-none") }),
        json!({ "azp": format!("{CLIENT}-unknown-{step}") }),
        json!({ "azp": format!("{CLIENT}\n") }),
        json!({ "azp": [CLIENT, "zorilla"] }),
        json!({ "iss": "https://zorilla.example" }),
        json!({ "aud": "zorilla" }),
        json!({ "exp": now - 3_600 }),
        json!({ "exp": "zorilla" }),
        json!({ "nbf": now + 3_600 }),
    ] {
        tokens.push(token(header.clone(), claims(patch)));
    }
    for header in [
        json!({ "alg": "zorilla" }),
        json!({ "alg": "ES256", "kid": "zorilla" }),
        json!({ "alg": "ES256", "crit": ["zorilla"] }),
    ] {
        tokens.push(token(header, claims(json!({}))));
    }
    tokens.push(token(header, format!("{{\"sub\":\"{SUBJECT}")));
    tokens.push(format!("{SUBJECT}.{CLAIM}.{CLIENT}"));
    tokens
}

/// What a client is told, in one text.
fn told(reply: &Reply) -> String {
    format!("{} {:?} {}\n", reply.status, reply.headers, reply.body)
}

/// Host, path and headers of a request.
type Sent<'a> = (&'a str, &'a str, Vec<(&'a str, &'a str)>);

/// One request for each way to be let in or refused. Returns what was told.
async fn drive(client: &Client, step: usize) -> Result<(String, BTreeSet<u16>)> {
    let new = format!("{STRANGER}-{step}");
    let basic = |id: &str, key: &str| format!("Basic {}", STANDARD.encode(format!("{id}:{key}")));
    let both = basic(ID, APP_KEY);
    let wrong = basic(ID, &new);
    let bearer = format!("Bearer {KEY}");
    let cookie = format!("a=b; key={KEY}-suspended");
    let unusable = format!("{KEY}{}", "x".repeat(300));
    let oauth = format!("{ID}-oauth");
    let referred = format!("{ID}-referred");
    let none = format!("{KEY}-none");
    let few = format!("/v1/items?user_key={KEY}-few");
    let control = format!("/v1/items?user_key=%00{KEY}");
    let query = format!("/v1/items?app_id={ID}&app_key={APP_KEY}-2");
    let requests: Vec<Sent<'_>> = vec![
        ("keys", "/v1/items", vec![]),
        ("keys", "/v1/items", vec![("x-api-key", KEY)]),
        ("keys", "/v1/items", vec![("authorization", &bearer)]),
        ("keys", "/v1/items", vec![("cookie", &cookie)]),
        ("keys", "/v1/items", vec![("x-api-key", &none)]),
        ("keys", "/v1/items", vec![("x-api-key", &new)]),
        ("keys", "/v1/items", vec![("x-api-key", STRANGER)]),
        ("keys", "/v1/items", vec![("x-api-key", &unusable)]),
        ("keys", &few, vec![]),
        ("keys", &few, vec![]),
        ("keys", &control, vec![]),
        ("keys", "/nothing", vec![("x-api-key", KEY)]),
        (
            "keys",
            "/v1/items",
            vec![
                ("x-api-key", STRANGER),
                ("content-type", "application/grpc"),
            ],
        ),
        (
            "apps",
            "/v1/items",
            vec![("app-id", ID), ("app-key", APP_KEY)],
        ),
        ("apps", "/v1/items", vec![("app-id", ID)]),
        ("apps", "/v1/items", vec![("app-id", ID), ("app-key", &new)]),
        ("apps", "/v1/items", vec![("authorization", &both)]),
        ("apps", "/v1/items", vec![("authorization", &wrong)]),
        ("apps", &query, vec![]),
        (
            "apps",
            "/v1/items",
            vec![
                ("app-id", &referred),
                ("app-key", APP_KEY),
                ("referer", "https://zorilla.example.net/"),
            ],
        ),
        ("apps", "/v1/items", vec![("app-key", APP_KEY)]),
        ("oauth", "/v1/items", vec![("app-id", &oauth)]),
        (
            "oauth",
            "/v1/items",
            vec![("app-id", &oauth), ("app-key", APP_KEY)],
        ),
        (
            "oauth",
            "/v1/items",
            vec![("app-id", &oauth), ("app-key", &new)],
        ),
        (
            "oauth",
            "/v1/items",
            vec![("app-id", &oauth), ("app-key", " ")],
        ),
        ("nobody", "/v1/items", vec![("x-api-key", KEY)]),
    ];
    let tokens = tokens(step);
    let bearers = tokens.iter().map(|token| format!("Bearer {token}"));
    let bearers: Vec<_> = bearers.collect();
    let mut requests = requests;
    for bearer in &bearers {
        for host in ["tokens", "behind"] {
            for path in ["/v1/items", "/v1/orders"] {
                requests.push((host, path, vec![("authorization", bearer)]));
            }
        }
    }
    let signed = bearers.first().cloned().unwrap_or_default();
    let opaque = [
        format!("Bearer {OPAQUE}"),
        format!("Bearer {OPAQUE}-{step}"),
        format!("Bearer zorilla-{step}"),
        format!("Bearer {OPAQUE} {step}"),
        signed,
    ];
    let judging = JUDGED.map(|(_, path, _)| format!("at{}", path.replace('/', "-")));
    for host in &judging {
        for bearer in &opaque {
            for path in ["/v1/items", "/v1/orders"] {
                requests.push((host, path, vec![("authorization", bearer)]));
            }
        }
    }
    let mut all = String::new();
    let mut statuses = BTreeSet::new();
    for (host, path, mut headers) in requests {
        headers.push(("host", host));
        let reply = client.get(path, &headers).await?;
        statuses.insert(reply.status);
        all.push_str(&told(&reply));
    }
    Ok((all, statuses))
}

/// Configurations with a secret in the wrong place, or that is wrong itself.
fn mistakes() -> Vec<(&'static str, Value)> {
    let service = |fields: Value| {
        let mut service = json!({
            "id": "1001", "hosts": ["keys"], "mapping_rules": [{ "pattern": "/", "usage": { "hits": 1 } }],
        });
        if let (Some(service), Some(fields)) = (service.as_object_mut(), fields.as_object()) {
            service.extend(fields.clone());
        }
        json!({ "services": [service] })
    };
    let env = json!({ "env": "TG_SERVICE_TOKEN" });
    let anonymous = |value: Value| {
        service(
            json!({ "token": env, "credentials": { "user_key": [{ "query": "k" }], "anonymous": value } }),
        )
    };
    let asked = |patch: Value| {
        let token = json!({ "introspection": introspection(patch) });
        service(json!({ "token": env, "credentials": { "token": token } }))
    };
    vec![
        (
            "white space in a client's",
            asked(json!({ "client_secret": format!("{LITERAL} ") })),
        ),
        (
            "a client's, a list",
            asked(json!({ "client_secret": [LITERAL] })),
        ),
        (
            "a client's as the variable's name",
            asked(json!({ "client_secret": { "env": LITERAL } })),
        ),
        (
            "a client's beside a fault elsewhere",
            asked(json!({ "client_secret": LITERAL, "ttl": "0s" })),
        ),
        (
            "a client's in a field that does not exist",
            asked(json!({ "secret": LITERAL })),
        ),
        (
            "a client's in a URL",
            asked(json!({ "url": format!("https://gateway:{LITERAL}@id.example/truth") })),
        ),
        (
            "a client's and nothing else",
            service(
                json!({ "token": env, "credentials": { "token": { "introspection": LITERAL } } }),
            ),
        ),
        (
            "white space in it",
            service(json!({ "token": format!("{LITERAL} ") })),
        ),
        ("a list", service(json!({ "token": [LITERAL] }))),
        ("a field", service(json!({ "token": { LITERAL: null } }))),
        (
            "another field beside it",
            service(json!({ "token": { "env": "TG_SERVICE_TOKEN", LITERAL: LITERAL } })),
        ),
        (
            "as the variable's name",
            service(json!({ "token": { "env": LITERAL } })),
        ),
        (
            "as the variable's name, a list",
            service(json!({ "token": { "env": [LITERAL] } })),
        ),
        (
            "a variable that is not there",
            service(json!({ "token": { "env": "zorilla_in_the_file" } })),
        ),
        (
            "two of them",
            service(json!({ "token": LITERAL, "provider_key": LITERAL })),
        ),
        (
            "a field that does not exist",
            service(json!({ "tokn": LITERAL, "token": env })),
        ),
        (
            "where none belongs",
            json!({ "service_management": { "token": LITERAL } }),
        ),
        ("in a list of services", json!({ "services": [LITERAL] })),
        ("as an object", json!({ "authorization": LITERAL })),
        (
            "as a truth",
            service(json!({ "token": env, "oauth": LITERAL })),
        ),
        (
            "a credential that is none",
            anonymous(json!({ "user_key": format!("{LITERAL}\n") })),
        ),
        (
            "a credential of the other kind",
            anonymous(json!({ "app_id": LITERAL })),
        ),
        (
            "a credential of a wrong type",
            anonymous(json!({ "user_key": [LITERAL] })),
        ),
        ("a credential and nothing else", anonymous(json!(LITERAL))),
        (
            "a fault elsewhere",
            service(json!({ "token": LITERAL, "hosts": [] })),
        ),
    ]
}

/// Envoy's components that print requests, tokens, or the configuration of a listener.
const DUMPS: [&str; 4] = ["http", "router", "config", "jwt"];

/// How the mark may look in a text.
fn forms() -> [String; 6] {
    let numbers: Vec<_> = MARK.bytes().map(|byte| byte.to_string()).collect();
    let hexadecimal: String = MARK.bytes().map(|byte| format!("{byte:02x}")).collect();
    // In base64 by where it begins, without the characters that its neighbours have a part of.
    let shifted = |shift: usize| {
        let text = STANDARD.encode(format!("{}{MARK}", "x".repeat(shift)));
        let (from, until) = ((shift * 8).div_ceil(6), (shift + MARK.len()) * 8 / 6);
        text[from..until].to_owned()
    };
    [
        MARK.to_owned(),
        numbers.join(", "),
        hexadecimal,
        shifted(0),
        shifted(1),
        shifted(2),
    ]
}

/// The lines in which a mark is.
fn found(text: &str) -> Vec<&str> {
    let forms = forms();
    text.lines()
        .filter(|line| {
            let small = line.to_ascii_lowercase();
            small.contains(MARK) || forms.iter().any(|form| line.contains(form.as_str()))
        })
        .collect()
}

/// Envoy's log in two: what those of its own components wrote, and everything else.
fn split(log: &str) -> (BTreeMap<&str, String>, String) {
    let (mut own, mut rest) = (BTreeMap::<&str, String>::new(), String::new());
    let mut writer = None;
    for line in log.lines() {
        // [time][thread][level][component] [file:line] text; further lines belong to it.
        let mut parts = line
            .strip_prefix('[')
            .into_iter()
            .flat_map(|line| line.split("]["));
        if let (Some(time), Some(_), Some(_), Some(component)) =
            (parts.next(), parts.next(), parts.next(), parts.next())
            && time.starts_with("20")
        {
            let component = component.split(']').next().unwrap_or_default();
            let source = line.split("] [").nth(1).unwrap_or_default();
            let source = source.split(']').next().unwrap_or_default();
            let envoys = DUMPS.contains(&component)
                && source.trim_start_matches("./").starts_with("source/")
                && !source.contains("wasm");
            writer = envoys.then_some(component);
        }
        let into = match writer {
            Some(component) => own.entry(component).or_default(),
            None => &mut rest,
        };
        into.push_str(line);
        into.push('\n');
    }
    (own, rest)
}

/// Everything that comes out, by its name, except of what is Envoy's own.
async fn places(gateway: &Gateway, replies: &str) -> Result<BTreeMap<&'static str, String>> {
    let mut places = BTreeMap::from([("replies", replies.to_owned())]);
    places.insert("the log", split(&gateway.envoy.log()).1);
    places.insert(
        "the access log",
        std::fs::read_to_string(gateway.envoy.access_log_path())?,
    );
    for path in [
        "/stats",
        "/stats?format=json",
        "/stats/prometheus",
        "/config_dump?include_eds",
        "/clusters",
        "/listeners",
        "/server_info",
        "/runtime",
        "/init_dump",
    ] {
        places.insert(path, gateway.envoy.admin(path).await?);
    }
    Ok(places)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Envoy and the module: run cargo xtask test"]
async fn no_secret_is_in_anything_that_comes_out() -> Result<()> {
    let env = [
        ("TG_SERVICE_TOKEN", TOKEN),
        ("TG_PROVIDER_KEY", PROVIDER),
        ("TG_ANYBODY", ANYBODY),
        ("TG_CLIENT_SECRET", CLIENT_SECRET),
    ];
    let tired = Arc::new(AtomicBool::new(false));
    let key_manager = key_manager(Arc::clone(&tired)).await?;
    let nobody = std::net::SocketAddr::from(([127, 0, 0, 1], 9));
    let variables: ListenerPatch = Arc::new(move |listener: &mut Value| {
        let config = &mut connection_manager(listener)["http_filters"][0]["typed_config"]["config"];
        config["vm_config"]["environment_variables"]["host_env_keys"] =
            json!(env.map(|(name, _)| name));
        let filters = connection_manager(listener)["http_filters"].as_array_mut();
        filters.expect("a list").insert(0, jwt_authn());
    });
    let mut gateway = Gateway::start(Setup {
        dataset: dataset(),
        plugin: json!({
            "services": services(),
            "authorization": { "ttl": "1s", "negative_ttl": "1s", "unknown_calls_per_second": 10_000 },
            "reporting": { "timeout": "300ms" },
            "service_management": { "timeout": "300ms" },
        }),
        envoy: EnvoyOptions {
            base: Base::Reloadable,
            log_level: "trace".into(),
            clusters: vec![
                ("id".into(), key_manager.address),
                ("nobody".into(), nobody),
            ],
            env: env.map(|(name, value)| (name.into(), value.into())).into(),
            listener: Some(variables),
            ..EnvoyOptions::default()
        },
    })
    .await?;
    let mut replies = String::new();
    let mut statuses = BTreeSet::new();
    let faults = |fault| vec![FaultRule::always(FaultScope::Any, fault)];
    for (step, faults) in [
        vec![],
        faults(Fault::Status(500)),
        faults(Fault::ResetAfter),
        faults(Fault::Hang),
        faults(Fault::Status(422)),
        vec![],
    ]
    .into_iter()
    .enumerate()
    {
        let client = gateway.client()?;
        gateway.backend.set_faults(faults);
        tired.store(step > 0, Ordering::Relaxed);
        let before = gateway.envoy.stats("wasmcustom.tollgate.1001.").await?;
        let (told, seen) = drive(&client, step).await?;
        replies.push_str(&told);
        statuses.extend(seen);
        if (1..=3).contains(&step) {
            // Also the failures that happen behind the traffic's back.
            eventually("a refresh and a report to fail", PATIENCE, async || {
                let key = [("x-api-key", KEY), ("host", "keys")];
                client.get("/v1/items", &key).await.ok()?;
                let now = gateway
                    .envoy
                    .stats("wasmcustom.tollgate.1001.")
                    .await
                    .ok()?;
                let rose = |name: &str| {
                    let name = format!("wasmcustom.tollgate.1001.{name}");
                    now.get(&name) > before.get(&name)
                };
                (rose("authorize_failures") && rose("reports_uncertain")).then_some(())
            })
            .await?;
        }
    }
    // A newer configuration, and those that are wrong.
    let newer = gateway.plugin_with(&json!({ "authorization": { "ttl": "2s" } }));
    assert_eq!(
        gateway.envoy.update_listener(newer).await?,
        ListenerUpdate::Accepted
    );
    replies.push_str(&drive(&gateway.client()?, 6).await?.0);
    let mistakes = mistakes();
    for (what, patch) in &mistakes {
        let update = gateway
            .envoy
            .update_listener(gateway.plugin_with(patch))
            .await?;
        assert_eq!(update, ListenerUpdate::Rejected, "{what}");
    }
    // A token that was rotated.
    assert!(gateway.backend.set_service_token("1001", "another"));
    eventually(
        "service management to refuse the gateway",
        PATIENCE,
        async || {
            let late = [("x-api-key", "zorilla-late"), ("host", "keys")];
            replies.push_str(&told(
                &gateway.client().ok()?.get("/v1/items", &late).await.ok()?,
            ));
            tokio::time::sleep(Duration::from_millis(100)).await;
            let log = gateway.envoy.access_log().ok()?;
            let misconfigured = |line: &Value| line["details"] == "tollgate_misconfigured";
            log.iter().any(misconfigured).then_some(())
        },
    )
    .await?;
    assert_eq!(statuses, BTreeSet::from([200, 401, 403, 404, 429, 503]));
    let shown = format!(
        "Basic {}",
        STANDARD.encode(format!("{LITERAL}:{CLIENT_SECRET}"))
    );
    assert!(key_manager.shown().contains(&shown));
    for (id, path, counter) in JUDGED {
        let name = format!("wasmcustom.tollgate.{id}.introspection_{counter}");
        let count = gateway.envoy.stat(&name).await?;
        assert!(count > 0, "{path}: no {counter}");
    }

    let mut searched = places(&gateway, &replies).await?;
    // What stands in a configuration is shown by Envoy's dump, refused ones included.
    let dump = searched.entry("/config_dump?include_eds").or_default();
    assert!(
        dump.contains("TG_SERVICE_TOKEN"),
        "the dump shows the configuration"
    );
    let without = |text: &str| {
        let text = text.replace(LITERAL, "");
        text.replace("zorilla_in_the_file", "")
    };
    *dump = without(dump);
    let log = &searched["the log"];
    for expected in [
        "configuration refused: ",
        "service_token_invalid",
        "server_error",
    ] {
        assert!(
            log.contains(expected),
            "{expected} is not in the filter's log:\n{log}"
        );
    }
    assert!(log.matches("configuration refused: ").count() >= mistakes.len());
    for (place, text) in &searched {
        assert_eq!(found(text), [""; 0], "a secret in {place}");
        println!("{place}: {} lines, nothing found", text.lines().count());
    }
    let whole = gateway.envoy.log();
    let (own, _) = split(&whole);
    assert_eq!(
        found(&without(&own["config"])),
        [""; 0],
        "in Envoy's own lines"
    );
    for (component, text) in &own {
        println!(
            "Envoy's own {component}: {} lines of {}",
            found(text).len(),
            text.lines().count()
        );
    }
    // That the search finds what is there: in each place, in each form.
    for (place, text) in &searched {
        let lines = forms().map(|form| format!("a line with x{form}x in it"));
        let planted = format!("{text}\n{}\n", lines.join("\n"));
        assert_eq!(found(&planted), lines, "planted in {place}");
    }
    // And put in for real: the API shows a header, an operator a secret in a field that is
    // none, a consumer a key in the path.
    let planted = gateway.client()?;
    let header = [("app-id", ID), ("app-key", APP_KEY), ("host", "apps")];
    let reply = told(&planted.get("/echo", &header).await?);
    planted
        .get(&format!("/v1/{KEY}"), &[("host", "keys")])
        .await?;
    let patch = json!({ "services": [{ "id": "zorilla in a field", "token": "a", "hosts": ["a"], "mapping_rules": [] }] });
    let update = gateway
        .envoy
        .update_listener(gateway.plugin_with(&patch))
        .await?;
    assert_eq!(update, ListenerUpdate::Rejected);
    gateway
        .envoy
        .wait_for_access_log(|line| line["path"].to_string().contains(KEY))
        .await?;
    let searched = places(&gateway, &reply).await?;
    for place in ["replies", "the log", "the access log"] {
        assert_ne!(found(&searched[place]), [""; 0], "not found in {place}");
    }
    Ok(())
}
