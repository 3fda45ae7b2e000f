//! Where a request's credential is found, shown in a real Envoy: what arrives at service
//! management is what was sent, the upstream sees no credential that is to be stripped, and
//! no body goes upstream before its request is let in.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use percent_encoding::{NON_ALPHANUMERIC, percent_encode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tollgate_end_to_end::{PATIENCE, Recorder, Seen};
use tollgate_harness::{
    Echo, Envoy, EnvoyOptions, ListenerPatch, Plugin, connection_manager, eventually,
};

/// Envoy, an API that shows what it got, and a service management that does so, too.
struct Gateway {
    envoy: Envoy,
    echo: Echo,
    backend: Recorder,
}

/// A service at `<name>.example.com` with these credentials.
fn service(name: &str, credentials: &Value) -> Value {
    json!({
        "id": name,
        "token": "svc-token",
        "hosts": [format!("{name}.example.com")],
        "credentials": credentials,
        "mapping_rules": [{ "pattern": "/", "usage": { "hits": 1 } }],
    })
}

/// What Envoy must be told, so that filters see bodies before anything goes upstream; and
/// that trailers of HTTP/1 count.
fn with_bodies() -> ListenerPatch {
    Arc::new(|listener: &mut Value| {
        let manager = connection_manager(listener);
        manager["http_filters"][0]["typed_config"]["config"]["allow_on_headers_stop_iteration"] =
            json!(true);
        manager["http_protocol_options"]["enable_trailers"] = json!(true);
    })
}

impl Gateway {
    async fn start(services: Vec<Value>, listener: Option<ListenerPatch>) -> Result<Self> {
        let (echo, backend) = (Echo::start().await?, Recorder::start().await?);
        let plugin = json!({
            "service_management": {
                "cluster": "service-management",
                "authority": "backend",
                "timeout": "30s",
            },
            "services": services,
            "reporting": { "interval": "200ms" },
            // Nobody is asked about twice, and everybody at once.
            "authorization": { "ttl": "1h", "unknown_calls_per_second": 1_000_000 },
        });
        let envoy = Envoy::start(EnvoyOptions {
            plugin: Plugin::Replace(plugin),
            upstream: Some(echo.address()),
            service_management: Some(backend.address()),
            listener,
            ..EnvoyOptions::default()
        })
        .await?;
        Ok(Self {
            envoy,
            echo,
            backend,
        })
    }

    /// Sends a request and returns the status and the whole answer.
    async fn send(&self, request: &[u8]) -> Result<(u16, String)> {
        let answer = tokio::time::timeout(PATIENCE, self.answer(request)).await?;
        let answer = answer.with_context(|| format!("sent {}", request.escape_ascii()))?;
        let status = answer
            .strip_prefix("HTTP/1.1 ")
            .and_then(|rest| rest.get(..3));
        Ok((status.context("no status")?.parse()?, answer))
    }

    /// Reads as much as the answer's head announces: Envoy lets a connection linger after
    /// some answers.
    async fn answer(&self, request: &[u8]) -> Result<String> {
        let mut stream = TcpStream::connect(self.envoy.address()).await?;
        stream.write_all(request).await?;
        let (mut answer, mut missing) = (Vec::new(), None);
        while missing != Some(0) {
            let mut chunk = [0; 4096];
            let count = stream.read(&mut chunk).await?;
            ensure!(count > 0, "cut off: {}", answer.escape_ascii());
            answer.extend_from_slice(&chunk[..count]);
            let text = String::from_utf8_lossy(&answer);
            missing = text.split_once("\r\n\r\n").and_then(|(head, body)| {
                let length = head
                    .lines()
                    .find_map(|line| line.strip_prefix("content-length: "));
                let length: usize = length.unwrap_or("0").parse().ok()?;
                length.checked_sub(body.len())
            });
        }
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }
}

/// A `GET` for a service, with these header lines.
fn get(service: &str, target: &[u8], lines: &[&[u8]]) -> Vec<u8> {
    request(b"GET", service, target, lines, b"")
}

/// A `POST` of a form.
fn post(service: &str, body: &[u8]) -> Vec<u8> {
    let length = format!("content-length: {}", body.len());
    let lines = [FORM.as_bytes(), length.as_bytes()];
    request(b"POST", service, b"/", &lines, body)
}

const FORM: &str = "content-type: application/x-www-form-urlencoded";

fn request(method: &[u8], service: &str, target: &[u8], lines: &[&[u8]], body: &[u8]) -> Vec<u8> {
    let host = format!("host: {service}.example.com");
    let mut request = [method, b" ", target, b" HTTP/1.1\r\n"].concat();
    for line in [host.as_bytes()].iter().chain(lines) {
        request.extend_from_slice(line);
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"\r\n");
    request.extend_from_slice(body);
    request
}

/// What somebody might send as a key who wants it to be more than that.
fn hostile() -> Vec<Vec<u8>> {
    let mut values: Vec<Vec<u8>> = [
        "plain",
        "a&usage[hits]=-1000",
        "a&user_key=b",
        "a&service_token=other&service_id=1",
        "&",
        "a=b",
        "=",
        "%",
        "%26",
        "%2526",
        "a%zzb%4",
        "100%",
        "a%00b",
        "a%0d%0aX-Injected: 1",
        "a[b]",
        "a[]",
        "usage[hits]=5",
        "a#b",
        "a?b",
        "a/../b\\c",
        "a b",
        "a  b",
        "a+b",
        "a%20b",
        "\"a\"",
        "'a'",
        "`a`$(b)",
        "<a>&lt;",
        "</reason><authorized>true</authorized>",
        "a;b",
        "a,b",
        "a:b",
        "a@b|c^d{e}~",
        "\u{e4}\u{20ac}\u{1f600}",
        "e\u{301}",
        "\u{feff}a",
        "\u{202e}a",
        "a\u{85}b",
        "a\u{a0}b",
        " a ",
        "\ta\t",
        "a\tb",
        "a\nb",
        "a\r\nX-Injected: 1",
        "a\0b",
        "a\x7fb",
        "a\x1bb",
    ]
    .iter()
    .map(|value| value.as_bytes().to_vec())
    .collect();
    values.extend([
        b"a\xff".to_vec(),
        b"\xc3\x28".to_vec(),
        b"\xed\xa0\x80".to_vec(),
        b"\xf8\x88\x80\x80\x80".to_vec(),
        vec![b'a'; 256],
        vec![b'&'; 256],
        vec![b'a'; 257],
        "\u{20ac}".repeat(85).into_bytes(),
        "\u{20ac}".repeat(86).into_bytes(),
    ]);
    // Every byte in the midst of two letters.
    values.extend((0..=u8::MAX).map(|byte| vec![b'a', byte, b'z']));
    // And alone, where that may mean something.
    values.extend(b"\0\t\r\n \"%+;=[\x7f\xff".iter().map(|byte| vec![*byte]));
    values
}

/// Makes the request of this number that has the value in a place, and says what the value
/// is once it is read as that place is read. `None`: it cannot be put there.
type Write = fn(&str, &[u8]) -> Option<(Vec<u8>, Vec<u8>)>;

/// One place for a credential.
struct Place {
    service: &'static str,
    /// What the service looks for, and where.
    credentials: Value,
    /// The parameter under which the backend is to get it, beside that of this name and its
    /// number, if there is one.
    parameter: &'static str,
    beside: Option<&'static str>,
    write: Write,
}

impl Place {
    fn user_key(service: &'static str, source: Value, write: Write) -> Self {
        Self {
            service,
            credentials: json!({ "user_key": [source] }),
            parameter: "user_key",
            beside: None,
            write,
        }
    }

    /// What the backend is to get of this value; `None`: nothing, the request is refused.
    fn parameters(&self, number: &str, read: Vec<u8>) -> Option<Vec<(String, String)>> {
        let read = String::from_utf8(read).ok()?;
        // What Ruby takes for white space.
        let trimmed = read.trim_matches(|c| matches!(c, '\0' | '\t'..='\r' | ' '));
        let value = match self.parameter {
            "user_key" | "app_id" => read.replace(' ', "+"),
            "app_key" => trimmed.to_owned(),
            _ => read.clone(),
        };
        let optional = self.beside.is_some();
        if value.len() > 256 || (trimmed.is_empty() && !optional) {
            return None;
        }
        if value.chars().any(char::is_control) {
            return None;
        }
        let mut parameters = vec![
            ("service_id".to_owned(), self.service.to_owned()),
            ("service_token".to_owned(), "svc-token".to_owned()),
        ];
        if let Some(beside) = self.beside {
            parameters.push((beside.to_owned(), number.to_owned()));
        }
        if !value.is_empty() {
            parameters.push((self.parameter.to_owned(), value));
        }
        parameters.sort();
        Some(parameters)
    }
}

/// Whether the bytes can be the value of a header at all: others end it.
fn fits_a_header(value: &[u8]) -> bool {
    !value.iter().any(|byte| matches!(byte, b'\r' | b'\n' | 0))
}

fn trimmed(value: &[u8]) -> Vec<u8> {
    value.trim_ascii().to_vec()
}

fn encoded(value: &[u8]) -> Vec<u8> {
    percent_encode(value, NON_ALPHANUMERIC)
        .to_string()
        .into_bytes()
}

fn places() -> Vec<Place> {
    vec![
        Place::user_key("query", json!({ "query": "user_key" }), |_, value| {
            let target = [b"/?a=1&user_key=", &*encoded(value), b"&b=2"].concat();
            Some((get("query", &target, &[]), value.to_vec()))
        }),
        Place::user_key("header", json!({ "header": "X-Api-Key" }), |_, value| {
            let line = [b"X-aPi-kEy: ", value].concat();
            fits_a_header(value).then(|| (get("header", b"/", &[&line]), trimmed(value)))
        }),
        Place::user_key("cookie", json!({ "cookie": "key" }), |_, value| {
            let line = [b"cookie: a=1; key=", value, b"; b=2"].concat();
            let read = value.split(|byte| *byte == b';').next().unwrap_or_default();
            let read = read.trim_ascii();
            let read = read
                .strip_prefix(b"\"")
                .and_then(|read| read.strip_suffix(b"\""))
                .unwrap_or(read);
            fits_a_header(value).then(|| (get("cookie", b"/", &[&line]), read.to_vec()))
        }),
        Place::user_key("username", json!({ "basic": "username" }), |_, value| {
            let basic = STANDARD.encode([value, b":b"].concat());
            let line = format!("authorization: Basic {basic}");
            let read = value.split(|byte| *byte == b':').next().unwrap_or_default();
            Some((get("username", b"/", &[line.as_bytes()]), read.to_vec()))
        }),
        Place::user_key("password", json!({ "basic": "password" }), |_, value| {
            let basic = URL_SAFE_NO_PAD.encode([b"a:", value].concat());
            let line = format!("AUTHORIZATION: bAsIc  {basic}");
            Some((get("password", b"/", &[line.as_bytes()]), value.to_vec()))
        }),
        Place::user_key("bearer", json!({ "bearer": {} }), |_, value| {
            let line = [b"authorization: Bearer ", value].concat();
            fits_a_header(value).then(|| (get("bearer", b"/", &[&line]), trimmed(value)))
        }),
        Place::user_key("body", json!({ "body": "user_key" }), |_, value| {
            let body = [b"a=1&user_key=", &*encoded(value), b"&b=2"].concat();
            Some((post("body", &body), value.to_vec()))
        }),
        Place {
            service: "app-id",
            credentials: json!({ "app_id": [{ "query": "app_id" }] }),
            parameter: "app_id",
            beside: None,
            write: |_, value| {
                let target = [b"/?app_key=1&app_id=", &*encoded(value)].concat();
                Some((get("app-id", &target, &[]), value.to_vec()))
            },
        },
        Place {
            service: "app-key",
            credentials: json!({
                "app_id": [{ "query": "app_id" }], "app_key": [{ "query": "app_key" }],
            }),
            parameter: "app_key",
            beside: Some("app_id"),
            write: |number, value| {
                let id = format!("&app_id={number}");
                let target = [b"/?app_key=", &*encoded(value), id.as_bytes()].concat();
                Some((get("app-key", &target, &[]), value.to_vec()))
            },
        },
        Place {
            service: "pair",
            credentials: json!({
                "app_id": [{ "basic": "username" }], "app_key": [{ "basic": "password" }],
            }),
            parameter: "app_key",
            beside: Some("app_id"),
            write: |number, value| {
                let basic = STANDARD.encode([number.as_bytes(), b":", value].concat());
                let line = format!("authorization: Basic {basic}");
                Some((get("pair", b"/", &[line.as_bytes()]), value.to_vec()))
            },
        },
        Place {
            service: "referrer",
            credentials: json!({ "user_key": [{ "query": "user_key" }], "referrer": true }),
            parameter: "referrer",
            beside: Some("user_key"),
            write: |number, value| {
                let target = format!("/?user_key={number}");
                let line = [b"Referer: ", value].concat();
                let request = || get("referrer", target.as_bytes(), &[&line]);
                fits_a_header(value).then(|| (request(), trimmed(value)))
            },
        },
    ]
}

/// Whether it is the filter's own question, whether the metrics exist. A credential that
/// brought such a parameter along would leave its request without the question that is expected.
fn is_about_metrics(question: &Seen) -> bool {
    let usage = ("usage[hits]".to_owned(), "0".to_owned());
    question.parameters.contains(&usage)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Envoy and the module: run cargo xtask test"]
async fn a_key_reaches_the_backend_as_itself_or_is_refused_and_is_never_another_parameter()
-> Result<()> {
    let services = places()
        .iter()
        .map(|place| service(place.service, &place.credentials))
        .collect();
    let gateway = Gateway::start(services, Some(with_bodies())).await?;
    let machines = gateway.envoy.stats("wasm.").await?;
    let (mut asked, mut refused) = (0, 0);
    let mut admitted = Vec::new();
    for place in places() {
        for (number, value) in hostile().iter().enumerate() {
            let number = format!("n{number}");
            let Some((request, read)) = (place.write)(&number, value) else {
                continue;
            };
            let before = gateway.backend.count();
            let (status, answer) = gateway.send(&request).await?;
            let what = format!("{} as {}: {status}", value.escape_ascii(), place.service);
            ensure!(!answer.contains("X-Injected"), "{what}: {answer}");
            let mut questions = gateway.backend.questions_after(before);
            questions.retain(|question| !is_about_metrics(question));
            let expected = place.parameters(&number, read);
            match (status, expected) {
                // Envoy itself takes away a Referer that is no URL.
                (200, _)
                    if place.parameter == "referrer"
                        && questions
                            .iter()
                            .all(|asked| asked.all("referrer").is_empty()) =>
                {
                    ensure!(questions.len() == 1, "{what}: {questions:?}");
                }
                (200, Some(expected)) => {
                    let [question] = questions.as_slice() else {
                        ensure!(admitted.contains(&expected), "{what}: {questions:?}");
                        continue;
                    };
                    let mut parameters = question.parameters.clone();
                    parameters.sort();
                    ensure!(parameters == expected, "{what}: {question:?}");
                    admitted.push(expected);
                    asked += 1;
                }
                (401 | 403, None) => {
                    ensure!(questions.is_empty(), "{what}: {questions:?}");
                    refused += 1;
                }
                // Envoy's own answer to what cannot stand in a header.
                (400, _) => {
                    ensure!(questions.is_empty(), "{what}: {questions:?}");
                    ensure!(value.iter().any(u8::is_ascii_control), "{what}");
                    refused += 1;
                }
                (_, expected) => anyhow::bail!("{what}, expected {expected:?}"),
            }
        }
    }
    // Usage is reported under the same names, and under no others.
    let identities = |name: &str| -> BTreeSet<String> {
        let all = admitted.iter().flatten();
        let named = all.filter(|(known, _)| known == name);
        named.map(|(_, value)| value.clone()).collect()
    };
    let (keys, ids) = (identities("user_key"), identities("app_id"));
    let mut reported = BTreeSet::new();
    eventually("usage of all keys to be reported", PATIENCE, async || {
        let calls = gateway.backend.seen();
        let reports = calls.iter().filter(|call| call.path == "/transactions.xml");
        reported = reports
            .flat_map(|report| report.parameters.clone())
            .collect();
        let has = |name: &str, value: &String| {
            let mut reported = reported.iter();
            reported.any(|(known, reported)| known.ends_with(name) && reported == value)
        };
        let all = keys.iter().all(|key| has("[user_key]", key));
        (all && ids.iter().all(|id| has("[app_id]", id))).then_some(())
    })
    .await?;
    for (name, value) in reported {
        let (_, field) = name.split_once(']').unwrap_or(("", &name));
        let known = match field {
            "service_token" => value == "svc-token",
            "service_id" => places().iter().any(|place| place.service == value),
            "[user_key]" => keys.contains(&value) || value.starts_with('n'),
            "[app_id]" => ids.contains(&value),
            "[timestamp]" => true,
            "[usage][hits]" => value.parse::<u32>().is_ok(),
            _ => false,
        };
        ensure!(known, "reported: {name}={value}");
    }
    ensure!(
        asked > 1_000 && refused > 1_000,
        "{asked} asked, {refused} refused"
    );
    println!("{asked} keys arrived as they were sent, {refused} were refused unasked");
    assert_eq!(gateway.envoy.stats("wasm.").await?, machines);
    Ok(())
}

/// A connection on which a request is sent piece by piece.
struct Slow(TcpStream);

impl Slow {
    async fn connect(gateway: &Gateway) -> Result<Self> {
        let stream = TcpStream::connect(gateway.envoy.address()).await?;
        stream.set_nodelay(true)?;
        Ok(Self(stream))
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.0.write_all(bytes).await?)
    }

    async fn status(&mut self) -> Result<u16> {
        let mut start = [0; b"HTTP/1.1 200".len()];
        tokio::time::timeout(PATIENCE, self.0.read_exact(&mut start)).await??;
        let start = std::str::from_utf8(&start)?;
        Ok(start
            .strip_prefix("HTTP/1.1 ")
            .context("no answer")?
            .parse()?)
    }
}

/// A name, the service, the header lines, and the body in two pieces.
type Pieces<'a> = (&'a str, &'a str, &'a [&'a [u8]], [&'a [u8]; 2]);

/// Long enough for a request to have gone upstream, if it could.
async fn a_while() {
    tokio::time::sleep(Duration::from_millis(300)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Envoy and the module: run cargo xtask test"]
async fn no_body_goes_upstream_before_its_request_is_let_in() -> Result<()> {
    let in_body = json!({ "user_key": [{ "header": "x-key" }, { "body": "key" }] });
    let in_header = json!({ "user_key": [{ "header": "x-key" }] });
    let services = vec![service("form", &in_body), service("plain", &in_header)];
    let gateway = Gateway::start(services, Some(with_bodies())).await?;
    let upstream = || gateway.echo.requests();
    let held = gateway.backend.hold().await?;

    // Piece by piece, with a length and without, and with trailers behind it.
    let chunked: &[&[u8]] = &[FORM.as_bytes(), b"transfer-encoding: chunked"];
    let length: &[&[u8]] = &[FORM.as_bytes(), b"content-length: 10"];
    let key: &[&[u8]] = &[b"x-key: d", FORM.as_bytes(), b"content-length: 10"];
    let cases: [Pieces<'_>; 5] = [
        ("a", "form", length, [b"x=1&", b"key=aa"]),
        (
            "b",
            "form",
            chunked,
            [b"4\r\nx=1&\r\n", b"6\r\nkey=bb\r\n0\r\n\r\n"],
        ),
        (
            "c",
            "form",
            chunked,
            [b"4\r\nx=1&\r\n", b"6\r\nkey=cc\r\n0\r\nt: 1\r\n\r\n"],
        ),
        ("d", "form", key, [b"x=1&", b"key=zz"]),
        ("e", "plain", key, [b"x=1&", b"key=zz"]),
    ];
    let mut waiting = Vec::new();
    for (name, service, lines, [first, rest]) in cases {
        let asked = gateway.backend.count();
        let mut slow = Slow::connect(&gateway).await?;
        slow.send(&request(b"POST", service, b"/", lines, first))
            .await?;
        a_while().await;
        let questions = gateway.backend.questions_after(asked);
        let by_header = lines.iter().any(|line| line.starts_with(b"x-key"));
        ensure!(
            questions.len() == usize::from(by_header),
            "{name}: {questions:?}"
        );
        ensure!(upstream() == 0, "{name} went upstream in pieces");
        slow.send(rest).await?;
        a_while().await;
        ensure!(
            gateway.backend.questions_after(asked).len() == 1,
            "{name} was not asked about"
        );
        ensure!(upstream() == 0, "{name} went upstream unanswered");
        waiting.push((name, slow));
    }
    drop(held);
    for (name, slow) in &mut waiting {
        ensure!(slow.status().await? == 200, "{name}");
    }
    ensure!(upstream() == 5);

    // Known now, and let in at the end of the body, which arrives whole.
    let (status, answer) = gateway
        .send(&request(b"POST", "form", b"/echo", length, b"x=1&key=aa"))
        .await?;
    ensure!(
        status == 200 && answer.contains("\"content-length\":[\"10\"]"),
        "{answer}"
    );

    // Refused at the end of the body, or before.
    let before = upstream();
    let large = vec![b'a'; 100_000];
    let too_long = [b"key=".to_vec(), vec![b'a'; 257]].concat();
    let long_length: &[&[u8]] = &[FORM.as_bytes(), b"content-length: 100000"];
    let large_chunk = [
        b"186a0\r\n".to_vec(),
        large.clone(),
        b"\r\n0\r\n\r\n".to_vec(),
    ]
    .concat();
    for (what, request, expected) in [
        ("no key", post("form", b"x=1"), 401),
        ("an empty body", post("form", b""), 401),
        (
            "no key, with trailers",
            request(
                b"POST",
                "form",
                b"/",
                chunked,
                b"1\r\nx\r\n0\r\nt: 1\r\n\r\n",
            ),
            401,
        ),
        ("a key that is none", post("form", &too_long), 403),
        (
            "another type",
            request(
                b"POST",
                "form",
                b"/",
                &[b"content-type: text/plain", b"content-length: 6"],
                b"key=aa",
            ),
            401,
        ),
        (
            "a length over the bound",
            request(b"POST", "form", b"/", long_length, &large),
            413,
        ),
        (
            "more than the bound",
            request(b"POST", "form", b"/", chunked, &large_chunk),
            413,
        ),
    ] {
        let (status, answer) = gateway.send(&request).await?;
        ensure!(status == expected, "{what}: {answer}");
        ensure!(upstream() == before, "{what} went upstream");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Envoy and the module: run cargo xtask test"]
async fn a_request_that_waits_for_an_answer_keeps_its_body_however_envoy_shows_bodies() -> Result<()>
{
    let in_header = json!({ "user_key": [{ "header": "x-key" }] });
    for listener in [None, Some(with_bodies())] {
        let shown = listener.is_some();
        let gateway = Gateway::start(vec![service("plain", &in_header)], listener).await?;
        let held = gateway.backend.hold().await?;
        let lines: &[&[u8]] = &[b"x-key: a", b"content-length: 5"];
        let mut slow = Slow::connect(&gateway).await?;
        slow.send(&request(b"POST", "plain", b"/", lines, b""))
            .await?;
        a_while().await;
        slow.send(b"12345").await?;
        a_while().await;
        assert_eq!(gateway.echo.requests(), 0, "bodies are shown: {shown}");
        drop(held);
        assert_eq!(slow.status().await?, 200, "bodies are shown: {shown}");
        assert_eq!(gateway.echo.requests(), 1, "bodies are shown: {shown}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Envoy and the module: run cargo xtask test"]
async fn where_envoy_shows_no_bodies_they_are_not_let_through() -> Result<()> {
    let in_body = json!({ "user_key": [{ "header": "x-key" }, { "body": "key" }] });
    let gateway = Gateway::start(vec![service("form", &in_body)], None).await?;
    let mut slow = Slow::connect(&gateway).await?;
    slow.send(&post("form", b"key=a")).await?;
    // What needs no body is served meanwhile, and waits with its body for the answer.
    let key: &[&[u8]] = &[b"x-key: a", FORM.as_bytes(), b"content-length: 5"];
    let (status, _) = gateway
        .send(&request(b"POST", "form", b"/", key, b"key=b"))
        .await?;
    assert_eq!(status, 200);
    assert_eq!(slow.status().await?, 408);
    assert_eq!(gateway.echo.requests(), 1);
    let log = gateway.envoy.log();
    assert!(log.contains("allow_on_headers_stop_iteration"), "{log}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Envoy and the module: run cargo xtask test"]
async fn the_upstream_does_not_see_what_is_stripped() -> Result<()> {
    let sources = json!([
        { "query": "key" }, { "header": "x-key" }, { "cookie": "key" }, { "basic": "password" },
    ]);
    let credentials = json!({ "user_key": sources, "strip": true });
    let gateway = Gateway::start(vec![service("strip", &credentials)], None).await?;
    let everywhere = get(
        "strip",
        b"/echo?a=%2b&key=s3cr3t&b=+&k%65y=s3cr3t&&c",
        &[
            b"x-key: s3cr3t",
            b"X-KEY: s3cr3t",
            b"cookie: a=1; key=s3cr3t; b=\"2\"",
            b"authorization: Basic czNjcjN0OnMzY3IzdA==",
            b"x-other: 3",
        ],
    );
    let alone = get("strip", b"/echo?key=s3cr3t", &[b"cookie: key=s3cr3t"]);
    let foreign = get(
        "strip",
        b"/echo?keys=1",
        &[
            b"x-key: s3cr3t",
            b"authorization: Bearer upstreams",
            b"cookie: a=key",
        ],
    );
    // The first waits for an answer, the others and the same again do not.
    for request in [&everywhere, &everywhere, &alone, &foreign] {
        let (status, answer) = gateway.send(request).await?;
        assert_eq!(status, 200, "{answer}");
        let secrets = ["s3cr3t", "czNjcjN0"].map(|secret| answer.contains(secret));
        assert_eq!(secrets, [false, false], "{answer}");
        let (_, seen) = answer.split_once("\r\n\r\n").context("no body")?;
        let (start, end) = (seen.find('{'), seen.rfind('}'));
        let seen = seen.get(start.context("no JSON")?..=end.context("no JSON")?);
        let seen: Value = serde_json::from_str(seen.context("no JSON")?)?;
        let header = |name: &str| seen["headers"][name].clone();
        let found = [header("x-key"), header("cookie"), header("authorization")];
        if *request == everywhere {
            assert_eq!(seen["path"], "/echo?a=%2b&b=+&&c");
            assert_eq!(found, [Value::Null, json!(["a=1; b=\"2\""]), Value::Null]);
            assert_eq!(header("x-other"), json!(["3"]));
        } else if *request == alone {
            assert_eq!(seen["path"], "/echo");
            assert_eq!(found, [Value::Null, Value::Null, Value::Null]);
        } else {
            assert_eq!(seen["path"], "/echo?keys=1");
            let expected = [Value::Null, json!(["a=key"]), json!(["Bearer upstreams"])];
            assert_eq!(found, expected);
        }
    }
    assert_eq!(gateway.backend.questions_after(0).len(), 1);
    Ok(())
}

/// The filter sets nothing for the upstream but what is left of what it strips, and for Envoy
/// what is left of limits, which no request can claim.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Envoy and the module: run cargo xtask test"]
async fn what_is_left_of_a_header_replaces_it_and_no_request_sets_what_the_filter_sets()
-> Result<()> {
    let quota: ListenerPatch = Arc::new(|listener: &mut Value| {
        let shown = |name: &str| {
            let value = format!("%FILTER_STATE(wasm.tollgate.ratelimit_{name}:PLAIN)%");
            json!({ "header": { "key": format!("ratelimit-{name}"), "value": value } })
        };
        connection_manager(listener)["route_config"]["response_headers_to_add"] =
            json!([shown("limit"), shown("remaining"), shown("reset")]);
    });
    let credentials = json!({ "user_key": [{ "cookie": "key" }, { "bearer": {} }], "strip": true });
    let mut limited = service("strip", &credentials);
    limited["rate_limit_headers"] = json!(true);
    let gateway = Gateway::start(vec![limited], Some(quota)).await?;
    let request = get(
        "strip",
        b"/echo",
        &[
            b"cookie: a=1; key=s3cr3t",
            b"cookie: key=s3cr3t; b=2",
            b"cookie: c=3",
            b"authorization: Bearer s3cr3t",
            b"authorization: Basic YTpi",
            b"authorization: bearer s3cr3t",
            b"ratelimit-limit: 1000000",
            b"wasm.tollgate.ratelimit-limit: 1000000",
        ],
    );
    for _ in 0..2 {
        let (status, answer) = gateway.send(&request).await?;
        assert_eq!(status, 200, "{answer}");
        assert!(!answer.contains("s3cr3t"), "{answer}");
        let (head, seen) = answer.split_once("\r\n\r\n").context("no body")?;
        assert!(!head.to_ascii_lowercase().contains("ratelimit"), "{head}");
        assert!(seen.contains(r#""cookie":["a=1","b=2","c=3"]"#), "{seen}");
        // Envoy makes one header of these, which begins with the credential.
        assert!(!seen.contains("authorization"), "{seen}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Envoy and the module: run cargo xtask test"]
async fn envoy_chooses_the_route_again_without_what_was_stripped() -> Result<()> {
    let routes: ListenerPatch = Arc::new(|listener: &mut Value| {
        let host = &mut connection_manager(listener)["route_config"]["virtual_hosts"][0];
        let route = host["routes"][0].clone();
        let named = |name: &str| {
            let mut route = route.clone();
            route["request_headers_to_add"] =
                json!([{ "header": { "key": "x-route", "value": name } }]);
            route
        };
        let (mut with, without) = (named("with a key"), named("without"));
        with["match"]["query_parameters"] = json!([{ "name": "key", "present_match": true }]);
        host["routes"] = json!([with, without]);
    });
    let credentials = json!({ "user_key": [{ "query": "key" }], "strip": true });
    let gateway = Gateway::start(vec![service("strip", &credentials)], Some(routes)).await?;
    for _ in 0..2 {
        let (status, answer) = gateway.send(&get("strip", b"/echo?key=a", &[])).await?;
        assert_eq!(status, 200);
        assert!(answer.contains("\"x-route\":[\"without\"]"), "{answer}");
    }
    Ok(())
}
