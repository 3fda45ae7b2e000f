//! Bytes outside UTF-8 in each place that the filter reads, and a service management that
//! answers anything: nobody is left without an answer, and no VM is made anew.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tollgate_end_to_end::{PATIENCE, Recorder};
use tollgate_harness::{
    Echo, Envoy, EnvoyOptions, ListenerPatch, Plugin, connection_manager, eventually,
};

/// Not UTF-8, whatever stands around it: a lone continuation, a start without one, what no
/// text has, an overlong slash, half of a pair.
const BYTES: [&[u8]; 5] = [b"\x80", b"\xc3", b"\xff\xfe", b"\xc0\xaf", b"\xed\xa0\x80"];

/// Three services, each by its host, with every place in which one can look.
fn services() -> Value {
    let service = |name: &str, credentials: Value| {
        json!({
            "id": name,
            "token": "svc-token",
            "hosts": [format!("{name}.example.com")],
            "credentials": credentials,
            "mapping_rules": [
                { "pattern": "/v1/{id}/x$", "usage": { "hits": 1 } },
                { "pattern": "/v1/?kind={x}", "usage": { "hits": 1 } },
                { "pattern": "/", "usage": { "hits": 1 } },
            ],
        })
    };
    json!([
        service(
            "keys",
            json!({ "user_key": [
            { "header": "x-api-key" }, { "query": "user_key" }, { "cookie": "user_key" },
            { "bearer": {} }, { "basic": "username" },
        ] })
        ),
        service(
            "apps",
            json!({
                "app_id": [{ "header": "app-id" }, { "query": "app_id" }, { "cookie": "app_id" }, { "basic": "username" }],
                "app_key": [{ "header": "app-key" }, { "query": "app_key" }, { "basic": "password" }],
                "referrer": true,
            })
        ),
        service("body", json!({ "user_key": [{ "body": "user_key" }] })),
    ])
}

/// One worker, so that the next request is the same VM's.
async fn envoy(service_management: SocketAddr, upstream: SocketAddr) -> Result<Envoy> {
    let listener: ListenerPatch = Arc::new(|listener: &mut Value| {
        connection_manager(listener)["http_filters"][0]["typed_config"]["config"]["allow_on_headers_stop_iteration"] =
            json!(true);
    });
    Envoy::start(EnvoyOptions {
        plugin: Plugin::Replace(json!({
            "service_management": { "cluster": "service-management", "authority": "backend", "timeout": "2s" },
            "services": services(),
            "reporting": { "interval": "200ms", "timeout": "1s" },
            "authorization": { "ttl": "1h", "unknown_calls_per_second": 1_000_000 },
        })),
        upstream: Some(upstream),
        service_management: Some(service_management),
        concurrency: 1,
        listener: Some(listener),
        ..EnvoyOptions::default()
    })
    .await
}

/// Sends these bytes on a connection of their own and returns the status of the answer.
async fn status_of(address: SocketAddr, request: &[u8]) -> Result<u16> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(request).await?;
    let mut start = [0; b"HTTP/1.1 200".len()];
    tokio::time::timeout(Duration::from_secs(30), stream.read_exact(&mut start)).await??;
    let start = std::str::from_utf8(&start)?;
    Ok(start
        .strip_prefix("HTTP/1.1 ")
        .context("no answer")?
        .parse()?)
}

/// A request of these parts.
fn request(method: &[u8], target: &[u8], host: &[u8], headers: &[&[u8]], body: &[u8]) -> Vec<u8> {
    let mut request = [method, b" ", target, b" HTTP/1.1\r\nhost: ", host, b"\r\n"].concat();
    for header in headers {
        request.extend([*header, b"\r\n"].concat());
    }
    if !body.is_empty() {
        request.extend(format!("content-length: {}\r\n", body.len()).as_bytes());
    }
    request.extend(b"\r\n");
    request.extend(body);
    request
}

/// Places by name, each with these bytes in it: what is sent, and which statuses are right.
fn places(bytes: &[u8]) -> Vec<(&'static str, Vec<u8>, &'static [u16])> {
    const KEYS: &[u8] = b"keys.example.com";
    const APPS: &[u8] = b"apps.example.com";
    const BODY: &[u8] = b"body.example.com";
    const FORM: &[u8] = b"content-type: application/x-www-form-urlencoded";
    const KEY: &[u8] = b"x-api-key: alice";
    /// Envoy refuses it, or the filter reads around it.
    const EITHER: &[u16] = &[200, 400];
    const REFUSED: &[u16] = &[403];
    let with = |start: &[u8], end: &[u8]| [start, bytes, end].concat();
    let basic = |start: &[u8], end: &[u8]| {
        format!("authorization: Basic {}", STANDARD.encode(with(start, end))).into_bytes()
    };
    let get =
        |target: &[u8], host: &[u8], headers: &[&[u8]]| request(b"GET", target, host, headers, b"");
    let escaped: String = bytes.iter().map(|byte| format!("%{byte:02x}")).collect();
    let query = |name: &str| format!("/v1/a?{name}=a{escaped}").into_bytes();
    vec![
        (
            "method",
            request(&with(b"GE", b"T"), b"/v1/a", KEYS, &[KEY], b""),
            &[400],
        ),
        ("path", get(&with(b"/v1/", b"/x"), KEYS, &[KEY]), EITHER),
        (
            "path, escaped",
            get(format!("/v1/{escaped}/x").as_bytes(), KEYS, &[KEY]),
            EITHER,
        ),
        (
            "query",
            get(&with(b"/v1/a?kind=", b"&user_key=alice"), KEYS, &[]),
            EITHER,
        ),
        (
            "name in the query",
            get(&with(b"/v1/a?", b"=1&kind=2"), KEYS, &[KEY]),
            EITHER,
        ),
        (
            "user_key in the query",
            get(&with(b"/v1/a?user_key=", b""), KEYS, &[]),
            &[400, 403],
        ),
        (
            "user_key in the query, escaped",
            get(&query("user_key"), KEYS, &[]),
            REFUSED,
        ),
        (
            "authority",
            get(b"/v1/a", &with(b"keys", b".example.com"), &[KEY]),
            &[400, 404],
        ),
        (
            "authority in the target",
            get(&with(b"http://keys", b".example.com/v1/a"), KEYS, &[KEY]),
            &[400, 404],
        ),
        (
            "user_key in a header",
            get(b"/v1/a", KEYS, &[&with(b"x-api-key: ", b"")]),
            REFUSED,
        ),
        (
            "user_key in a cookie",
            get(b"/v1/a", KEYS, &[&with(b"cookie: user_key=", b"; a=b")]),
            REFUSED,
        ),
        (
            "another cookie",
            get(b"/v1/a", KEYS, &[&with(b"cookie: ", b"=1; user_key=alice")]),
            &[200],
        ),
        (
            "bearer",
            get(b"/v1/a", KEYS, &[&with(b"authorization: Bearer ", b"")]),
            REFUSED,
        ),
        (
            "basic, encoded",
            get(b"/v1/a", KEYS, &[&basic(b"a", b":b")]),
            REFUSED,
        ),
        (
            "basic, not encoded",
            get(b"/v1/a", KEYS, &[&with(b"authorization: Basic ", b"")]),
            REFUSED,
        ),
        (
            "scheme",
            get(b"/v1/a", KEYS, &[&with(b"authorization: B", b" x")]),
            &[401],
        ),
        (
            "app_id in a header",
            get(b"/v1/a", APPS, &[&with(b"app-id: ", b"")]),
            REFUSED,
        ),
        (
            "app_id in the query",
            get(&query("app_id"), APPS, &[]),
            REFUSED,
        ),
        (
            "app_id in a cookie",
            get(b"/v1/a", APPS, &[&with(b"cookie: app_id=", b"")]),
            REFUSED,
        ),
        (
            "app_key in a header",
            get(b"/v1/a", APPS, &[b"app-id: a", &with(b"app-key: ", b"")]),
            REFUSED,
        ),
        (
            "app_key in the query",
            get(&query("app_id=a&app_key"), APPS, &[]),
            REFUSED,
        ),
        (
            "app_key of basic",
            get(b"/v1/a", APPS, &[&basic(b"a:", b"")]),
            REFUSED,
        ),
        (
            "referrer",
            get(
                b"/v1/a",
                APPS,
                &[b"app-id: a", &with(b"referer: http://", b"/")],
            ),
            &[200, 403],
        ),
        (
            "origin",
            get(b"/v1/a", KEYS, &[KEY, &with(b"origin: http://", b"/")]),
            &[200],
        ),
        (
            "content type",
            get(
                b"/v1/a",
                KEYS,
                &[KEY, &with(b"content-type: application/grpc", b"")],
            ),
            &[200],
        ),
        (
            "content type of a refusal",
            get(
                b"/v1/a",
                KEYS,
                &[&with(b"content-type: application/grpc", b"")],
            ),
            &[200, 401],
        ),
        (
            "any header",
            get(b"/v1/a", KEYS, &[KEY, &with(b"x-any: ", b"")]),
            &[200],
        ),
        (
            "name of a header",
            get(b"/v1/a", KEYS, &[KEY, &with(b"x-", b": 1")]),
            &[400],
        ),
        (
            "user_key in the body",
            request(b"POST", b"/v1/a", BODY, &[FORM], &with(b"user_key=", b"")),
            REFUSED,
        ),
        (
            "user_key in the body, escaped",
            request(
                b"POST",
                b"/v1/a",
                BODY,
                &[FORM],
                format!("user_key={escaped}").as_bytes(),
            ),
            REFUSED,
        ),
        (
            "name in the body",
            request(
                b"POST",
                b"/v1/a",
                BODY,
                &[FORM],
                &with(b"", b"=1&user_key=alice"),
            ),
            &[200],
        ),
        (
            "content type of the body",
            request(
                b"POST",
                b"/v1/a",
                BODY,
                &[&[FORM, b"; charset=", bytes].concat()],
                b"user_key=alice",
            ),
            &[200, 401],
        ),
        (
            "content length",
            get(b"/v1/a", KEYS, &[KEY, &with(b"content-length: ", b"")]),
            &[400],
        ),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Envoy and the module: run cargo xtask test"]
async fn bytes_outside_utf8_are_answered_in_each_place_and_the_same_vm_serves_the_next()
-> Result<()> {
    let (echo, backend) = (Echo::start().await?, Recorder::start().await?);
    let envoy = envoy(backend.address(), echo.address()).await?;
    let good = [
        request(
            b"GET",
            b"/v1/a",
            b"keys.example.com",
            &[b"x-api-key: alice"],
            b"",
        ),
        request(b"GET", b"/v1/a", b"apps.example.com", &[b"app-id: a"], b""),
    ];
    for good in &good {
        assert_eq!(status_of(envoy.address(), good).await?, 200);
    }
    let before = envoy.stats("wasm.").await?;
    assert!(
        before.keys().any(|name| name.contains("active")),
        "{before:?}"
    );
    let leads = |envoy: &Envoy| envoy.log().matches("leading service index").count();
    let led = 3;
    eventually("the VM to lead its services", PATIENCE, async || {
        (leads(&envoy) == led).then_some(())
    })
    .await?;
    let mut seen: BTreeMap<&str, Vec<u16>> = BTreeMap::new();
    for bytes in BYTES {
        for (place, request, right) in places(bytes) {
            let status = status_of(envoy.address(), &request).await.context(place)?;
            let shown = request.escape_ascii();
            assert!(right.contains(&status), "{place}: {status}, {shown}");
            seen.entry(place).or_default().push(status);
            for good in &good {
                let next = status_of(envoy.address(), good).await?;
                assert_eq!(next, 200, "after {place}: {shown}");
            }
        }
    }
    println!("{} places, statuses {seen:?}", seen.len());
    assert_eq!(envoy.stats("wasm.").await?, before, "no VM was made anew");
    assert_eq!(leads(&envoy), led, "and none leads again");
    let asked = backend.questions_after(0);
    let told = |call: &tollgate_end_to_end::Seen| {
        let mut names = call.parameters.iter();
        names.all(|(name, value)| !name.contains('\u{fffd}') && !value.contains('\u{fffd}'))
    };
    assert!(asked.iter().all(told), "{asked:?}");
    Ok(())
}

/// A service management that answers questions with these bytes, whatever they are, and then
/// closes the connection. It takes every report.
struct Scripted {
    address: SocketAddr,
    answer: Arc<Mutex<Vec<u8>>>,
    task: JoinHandle<()>,
}

impl Scripted {
    async fn start() -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let answer = Arc::new(Mutex::new(Vec::new()));
        let script = Arc::clone(&answer);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let answer = script
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .clone();
                // Who goes away in the middle is the proxy's business.
                tokio::spawn(async move { drop(Self::serve(stream, &answer).await) });
            }
        });
        Ok(Self {
            address,
            answer,
            task,
        })
    }

    async fn serve(mut stream: TcpStream, answer: &[u8]) -> Result<()> {
        let mut request = Vec::new();
        let mut chunk = [0; 4_096];
        while !request.windows(4).any(|window| window == b"\r\n\r\n") {
            let count = stream.read(&mut chunk).await?;
            ensure!(count > 0);
            request.extend_from_slice(&chunk[..count]);
        }
        if request.starts_with(b"POST") {
            stream
                .write_all(
                    b"HTTP/1.1 202 Accepted\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
                )
                .await?;
        } else {
            stream.write_all(answer).await?;
        }
        stream.shutdown().await?;
        Ok(())
    }

    fn answers(&self, answer: Vec<u8>) {
        *self.answer.lock().unwrap_or_else(PoisonError::into_inner) = answer;
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// An answer with this status line's end, type and body.
fn answer(status: &str, kind: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Envoy and the module: run cargo xtask test"]
async fn whatever_service_management_answers_nobody_waits_for_ever_and_the_same_vm_serves_on()
-> Result<()> {
    const XML: &str = "application/vnd.3scale-v2.0+xml";
    const GOOD: &[u8] =
        b"<?xml version=\"1.0\"?><status><authorized>true</authorized><plan>P</plan></status>";
    let (echo, backend) = (Echo::start().await?, Scripted::start().await?);
    let envoy = envoy(backend.address, echo.address()).await?;
    let get = async |key: &str| {
        let key = format!("x-api-key: {key}");
        let request = request(
            b"GET",
            b"/v1/a",
            b"keys.example.com",
            &[key.as_bytes()],
            b"",
        );
        status_of(envoy.address(), &request).await
    };
    backend.answers(answer("200 OK", XML, GOOD));
    assert_eq!(get("alice").await?, 200);
    let before = envoy.stats("wasm.").await?;

    let status = |inside: &str| {
        format!("<status><authorized>true</authorized>{inside}</status>").into_bytes()
    };
    let lol: String = (1..20)
        .map(|n| format!("<!ENTITY l{n} \"{}\">", format!("&l{};", n - 1).repeat(10)))
        .collect();
    let bomb = format!(
        "<!DOCTYPE lolz [<!ENTITY l0 \"lol\">{lol}]><status><authorized>true</authorized><plan>&l19;</plan></status>"
    );
    let children = "a b c d ".repeat(500);
    let hierarchy: String = (0..250)
        .map(|number| format!("<metric name=\"p{number}\" children=\"{children}\"/>"))
        .collect();
    let mut cut = answer("200 OK", XML, GOOD);
    cut.truncate(cut.len() - 20);
    let (ok, unavailable) = (200, 503);
    let cases: Vec<(&str, Vec<u8>, u16)> = vec![
        ("another content type", answer("200 OK", "text/html", GOOD), ok),
        ("a page", answer("200 OK", "text/html", b"<html><body>Welcome</body></html>"), unavailable),
        ("nothing", answer("200 OK", XML, b""), unavailable),
        ("a body of 900 KB", answer("200 OK", XML, &status(&" ".repeat(900_000))), ok),
        ("a body of 8 MB", answer("200 OK", XML, &status(&" ".repeat(8_000_000))), unavailable),
        ("a body that is cut off", cut, unavailable),
        ("a document that is cut off", answer("200 OK", XML, &GOOD[..GOOD.len() - 8]), unavailable),
        ("an entity bomb", answer("200 OK", XML, bomb.as_bytes()), unavailable),
        ("a hierarchy bomb", answer("200 OK", XML, &status(&format!("<hierarchy>{hierarchy}</hierarchy>"))), unavailable),
        ("an attribute bomb", answer("200 OK", XML, &status(&format!("<plan{}/>", " a=\"\"".repeat(150_000)))), ok),
        ("200,000 elements within elements", answer("200 OK", XML, &status(&"<a>".repeat(200_000))), unavailable),
        ("bytes outside UTF-8", answer("200 OK", XML, b"<status><authorized>true</authorized><plan>\xff</plan></status>"), unavailable),
        ("zeros", answer("200 OK", XML, &[0; 10_000]), unavailable),
        ("compressed", answer("200 OK", XML, b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\xb3"), unavailable),
        ("another authorization", answer("200 OK", XML, b"<status><authorized>false</authorized></status>"), unavailable),
        ("204", b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n".to_vec(), unavailable),
        ("206", answer("206 Partial Content", XML, GOOD), unavailable),
        ("302", answer("302 Found", XML, GOOD), unavailable),
        ("400 without a code", answer("400 Bad Request", XML, GOOD), unavailable),
        ("409 without a reason", answer("409 Conflict", XML, b"\xff"), 403),
        ("418", answer("418 I'm a teapot", XML, b""), unavailable),
        ("451 with a code", answer("451 x", XML, b"<error code=\"\xff\"/>"), unavailable),
        ("599", answer("599 x", XML, GOOD), unavailable),
        ("999", answer("999 x", XML, GOOD), unavailable),
        ("no status", b"HTTP/1.1 abc x\r\n\r\n".to_vec(), unavailable),
        ("another protocol", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc".to_vec(), unavailable),
        ("an end at once", Vec::new(), unavailable),
        ("a header of 100 KB", [b"HTTP/1.1 200 OK\r\nx: ".to_vec(), vec![b'x'; 100_000], b"\r\n\r\n".to_vec()].concat(), unavailable),
        ("a reason that is not UTF-8", b"HTTP/1.1 409 Conflict\r\n3scale-rejection-reason: \xff\xfe\r\nconnection: close\r\ncontent-length: 0\r\n\r\n".to_vec(), 403),
    ];
    let count = cases.len();
    for (number, (what, bytes, expected)) in cases.into_iter().enumerate() {
        // After five failures in a row nobody would be asked.
        backend.answers(answer("200 OK", XML, GOOD));
        assert_eq!(get(&format!("good-{number}")).await?, 200, "before {what}");
        backend.answers(bytes);
        let start = Instant::now();
        let told = get(&format!("key-{number}")).await.context(what)?;
        assert_eq!(told, expected, "{what}");
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "{what}: {:?}",
            start.elapsed()
        );
        assert_eq!(get("alice").await?, 200, "after {what}");
    }
    println!("{count} answers");
    assert_eq!(envoy.stats("wasm.").await?, before, "no VM was made anew");
    Ok(())
}
