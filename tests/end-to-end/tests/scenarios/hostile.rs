//! Bytes that no well-behaved client sends never take a worker down.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tollgate_end_to_end::{Gateway, Setup};

/// What it is, the request's target, its headers, and the status of a right answer.
type Case = (&'static str, Vec<u8>, Vec<Vec<u8>>, u16);

/// Sends these bytes and returns the status of the answer, without waiting for its end:
/// Envoy lets a connection linger after it refused something.
async fn status_of(address: SocketAddr, request: &[u8]) -> Result<u16> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(request).await?;
    let mut start = [0; b"HTTP/1.1 200".len()];
    tokio::time::timeout(Duration::from_secs(20), stream.read_exact(&mut start)).await??;
    let start = std::str::from_utf8(&start)?;
    let status = start.strip_prefix("HTTP/1.1 ").context("no answer")?;
    Ok(status.parse()?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Envoy and the module: run cargo xtask test"]
async fn whatever_the_bytes_are_they_are_answered_and_the_same_vm_serves_the_next() -> Result<()> {
    let gateway = Gateway::start(Setup::default()).await?;
    let virtual_machines = async || gateway.envoy.stats("wasm.").await;
    let ready = gateway
        .client()?
        .get_many(20, 4, "/v1/items", &[("x-api-key", "free-key")])
        .await?;
    assert_eq!(ready, BTreeMap::from([(200, 20)]));
    let before = virtual_machines().await?;
    assert!(!before.is_empty());

    let long = |length: usize| "x".repeat(length).into_bytes();
    let key = b"x-api-key: free-key".to_vec();
    let many: Vec<Vec<u8>> = (0..90)
        .map(|number| format!("x-{number}: \u{fffd}").into_bytes())
        .chain([key.clone()])
        .collect();
    let cases: Vec<Case> = vec![
        (
            "key not UTF-8",
            b"/v1/a".to_vec(),
            vec![b"x-api-key: \xff\xfe\x80".to_vec()],
            403,
        ),
        (
            "other header not UTF-8",
            b"/v1/a".to_vec(),
            vec![key.clone(), b"x-other: \xc3\x28\xa0\xa1".to_vec()],
            200,
        ),
        (
            "key of nothing but separators",
            b"/v1/a?user_key=%26%3D%25".to_vec(),
            vec![],
            403,
        ),
        (
            "broken escapes in the key",
            b"/v1/a?user_key=%zz%4".to_vec(),
            vec![],
            403,
        ),
        (
            "key not UTF-8 once decoded",
            b"/v1/a?user_key=%ff%fe".to_vec(),
            vec![],
            403,
        ),
        (
            "broken escapes beside the key",
            b"/v1/a?%=%&&=%z&user_key=free-key&%e2%82".to_vec(),
            vec![],
            200,
        ),
        (
            "broken escapes in the path",
            b"/v1/%zz%4?user_key=free-key".to_vec(),
            vec![],
            200,
        ),
        (
            "a path not UTF-8 once decoded",
            b"/v1/%ff%fe?user_key=free-key".to_vec(),
            vec![],
            200,
        ),
        (
            "zero in the path",
            b"/v1/%00?user_key=free-key".to_vec(),
            vec![],
            400,
        ),
        (
            "a header of 55 KB",
            b"/v1/a".to_vec(),
            vec![key.clone(), [b"x-long: ".to_vec(), long(55_000)].concat()],
            200,
        ),
        (
            "a header of 70 KB",
            b"/v1/a".to_vec(),
            vec![key.clone(), [b"x-long: ".to_vec(), long(70_000)].concat()],
            431,
        ),
        (
            "a key of 50 KB",
            b"/v1/a".to_vec(),
            vec![[b"x-api-key: ".to_vec(), long(50_000)].concat()],
            403,
        ),
        (
            "a path of 50 KB",
            [b"/v1/".to_vec(), long(50_000)].concat(),
            vec![key.clone()],
            200,
        ),
        (
            "a path of 16,000 segments",
            [b"/v1".to_vec(), b"/a/".repeat(16_000)].concat(),
            vec![key.clone()],
            200,
        ),
        (
            "a query of 10,000 parameters",
            [b"/v1/a?".to_vec(), b"a=b&".repeat(10_000)].concat(),
            vec![key.clone()],
            200,
        ),
        (
            "dots over the root",
            b"/v1/../../../v1/a".to_vec(),
            vec![key.clone()],
            200,
        ),
        ("90 headers", b"/v1/a".to_vec(), many, 200),
        (
            "a host of dots",
            b"http://.../v1/a".to_vec(),
            vec![key.clone()],
            404,
        ),
    ];
    for (what, target, headers, status) in cases {
        let mut request = [b"GET ".to_vec(), target, b" HTTP/1.1\r\n".to_vec()].concat();
        request.extend(b"host: api.example.com\r\n");
        for header in headers {
            request.extend(header);
            request.extend(b"\r\n");
        }
        request.extend(b"\r\n");
        // Often enough that every worker has had it.
        for _ in 0..6 {
            let told = status_of(gateway.envoy.address(), &request)
                .await
                .context(what)?;
            assert_eq!(told, status, "{what}");
        }
    }
    let after = gateway
        .client()?
        .get_many(100, 20, "/v1/items", &[("x-api-key", "free-key")])
        .await?;
    assert_eq!(after, BTreeMap::from([(200, 100)]));
    assert_eq!(virtual_machines().await?, before, "no VM was made anew");
    let log = gateway.envoy.log();
    assert!(!log.contains("Function: proxy_on"), "a trap:\n{log}");
    assert!(!log.contains("[critical]"), "{log}");
    Ok(())
}
