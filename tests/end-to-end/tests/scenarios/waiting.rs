//! Requests of an application that is not known yet wait together for one answer.

use std::collections::BTreeMap;

use anyhow::Result;
use serde_json::json;
use service_management::{Fault, FaultRule, FaultScope};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tollgate_end_to_end::{Gateway, PATIENCE, Setup};
use tollgate_harness::eventually;

fn slow(milliseconds: u64) -> Vec<FaultRule> {
    let delay = Fault::DelayMs(milliseconds);
    vec![FaultRule::always(FaultScope::Authorize, delay)]
}

/// However busy the machine is, answers are waited for.
fn patient() -> Setup {
    Setup {
        plugin: json!({ "service_management": { "timeout": "30s" } }),
        ..Setup::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Envoy and the module: run cargo xtask test"]
async fn two_hundred_first_requests_ask_once() -> Result<()> {
    let gateway = Gateway::start(patient()).await?;
    gateway.backend.set_faults(slow(500));
    let statuses = gateway
        .client()?
        .get_many(200, 200, "/v1/items", &[("x-api-key", "free-key")])
        .await?;
    assert_eq!(statuses, BTreeMap::from([(200, 200)]));
    let questions = gateway.questions();
    println!("200 first requests at once: {questions} questions");
    assert_eq!(questions, 1);
    gateway.flushed(200).await?;
    assert_eq!(gateway.usage("free", "hits"), 200);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Envoy and the module: run cargo xtask test"]
async fn a_limit_holds_for_those_who_waited_together() -> Result<()> {
    let gateway = Gateway::start(patient()).await?;
    gateway.backend.set_faults(slow(500));
    let headers = [("x-api-key", "eternity3000-key")];
    let client = gateway.client()?;
    let mut statuses = client.get_many(200, 200, "/v1/items", &headers).await?;
    for (status, count) in client.get_many(3_300, 50, "/v1/items", &headers).await? {
        *statuses.entry(status).or_default() += count;
    }
    assert_eq!(statuses, BTreeMap::from([(200, 3_000), (429, 500)]));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Envoy and the module: run cargo xtask test"]
async fn a_client_that_leaves_while_it_waits_harms_nobody_and_is_not_counted() -> Result<()> {
    const LEAVING: usize = 10;
    const STAYING: usize = 20;
    let gateway = Gateway::start(patient()).await?;
    gateway.backend.set_faults(slow(4_000));
    let active = |wanted: usize| {
        let envoy = &gateway.envoy;
        async move {
            eventually("requests to wait", PATIENCE, async || {
                let now = envoy.stat("http.ingress.downstream_rq_active").await.ok()?;
                (now == wanted as u64).then_some(())
            })
            .await
        }
    };
    // The first of each worker is among those who leave: the question is theirs.
    let mut leaving = Vec::new();
    for _ in 0..LEAVING {
        let mut stream = TcpStream::connect(gateway.envoy.address()).await?;
        let request = b"GET /v1/items HTTP/1.1\r\nhost: a\r\nx-api-key: other-key\r\n\r\n";
        stream.write_all(request).await?;
        leaving.push(stream);
    }
    active(LEAVING).await?;
    let client = gateway.client()?;
    let staying = tokio::spawn(async move {
        client
            .get_many(STAYING, STAYING, "/v1/items", &[("x-api-key", "other-key")])
            .await
    });
    active(LEAVING + STAYING).await?;
    drop(leaving);
    active(STAYING).await?;
    assert_eq!(staying.await??, BTreeMap::from([(200, STAYING)]));
    gateway.flushed(STAYING as u64).await?;
    gateway.admitted(STAYING as u64).await?;
    assert_eq!(gateway.usage("other", "hits"), STAYING as u64);
    assert_eq!(gateway.echo.requests(), STAYING as u64);

    let next = gateway
        .client()?
        .get_many(50, 10, "/v1/items", &[("x-api-key", "other-key")])
        .await?;
    assert_eq!(next, BTreeMap::from([(200, 50)]));
    Ok(())
}
