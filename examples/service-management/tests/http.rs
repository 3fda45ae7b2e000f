//! The stand-in over real connections: what is on the wire, faults, the control
//! interface, stopping and starting again.

use service_management::{
    ApplicationChange, Clock, Dataset, Endpoint, Fault, FaultRule, FaultScope, Options, StandIn,
};
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const DEMO: &str = include_str!("../demo.yaml");
/// Longer than anything takes that is expected to happen.
const PATIENCE: Duration = Duration::from_secs(20);
const AUTHREP: &str = "/transactions/authrep.xml?service_token=demo-token&service_id=1001&user_key=alice-key&usage[hits]=1";
const REPORT: &str = "service_token=demo-token&service_id=1001&transactions[0][user_key]=alice-key&transactions[0][usage][orders]=2";

async fn start() -> StandIn {
    let options = Options {
        lag: Duration::ZERO,
        ..Options::default()
    };
    let dataset = Dataset::from_yaml(DEMO).unwrap();
    StandIn::start(dataset, options).await.unwrap()
}

/// Sends bytes and reads until the other side closes, or is done with one answer.
async fn exchange(address: SocketAddr, request: &str) -> std::io::Result<String> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        Ok(String::from_utf8(answer).unwrap())
    };
    tokio::time::timeout(PATIENCE, exchange).await.unwrap()
}

async fn call(
    stand_in: &StandIn,
    method: &str,
    target: &str,
    body: &str,
) -> std::io::Result<String> {
    let length = body.len();
    let request = format!(
        "{method} {target} HTTP/1.1\r\nhost: backend\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    exchange(stand_in.address(), &request).await
}

fn status(answer: &str) -> u16 {
    answer.split(' ').nth(1).unwrap().parse().unwrap()
}

fn hits(stand_in: &StandIn) -> u64 {
    stand_in.usage().total("1001", "alice", "hits")
}

#[tokio::test]
async fn an_answer_on_the_wire_is_that_of_the_backend() {
    let stand_in = start().await;
    let answer = call(&stand_in, "GET", AUTHREP, "").await.unwrap();
    let body = r#"<?xml version="1.0" encoding="UTF-8"?><status><authorized>true</authorized><plan>Plan unlimited &amp; &lt;co&gt;</plan></status>"#;
    let length = body.len();
    let head = "HTTP/1.1 200 OK\r\n\
        content-type: application/vnd.3scale-v2.0+xml\r\n\
        access-control-allow-origin: *\r\n\
        access-control-expose-headers: ETag, Link, 3scale-rejection-reason\r\n\
        content-security-policy: default-src 'self'\r\n\
        x-content-type-options: nosniff\r\n";
    assert_eq!(
        answer,
        format!("{head}content-length: {length}\r\nconnection: close\r\n\r\n{body}")
    );
    let answer = call(&stand_in, "HEAD", AUTHREP, "").await.unwrap();
    assert!(answer.contains(&format!("content-length: {length}\r\n")));
    assert!(answer.ends_with("\r\n\r\n"));
    assert_eq!(hits(&stand_in), 2, "a HEAD authrep reports too");
}

#[tokio::test]
async fn reports_are_applied_after_the_lag() {
    let clock = Clock::settable(1_000_000_000_000);
    let options = Options {
        clock: clock.clone(),
        lag: Duration::from_secs(10),
        ..Options::default()
    };
    let dataset = Dataset::from_yaml(DEMO).unwrap();
    let stand_in = StandIn::start(dataset, options).await.unwrap();
    let answer = call(&stand_in, "POST", "/transactions.xml", REPORT)
        .await
        .unwrap();
    assert_eq!(status(&answer), 202);
    assert_eq!((hits(&stand_in), stand_in.queued()), (0, 1));
    clock.set(1_000_000_009_999);
    assert_eq!(hits(&stand_in), 0);
    clock.set(1_000_000_010_000);
    assert_eq!((hits(&stand_in), stand_in.queued()), (2, 0));
    call(&stand_in, "POST", "/transactions.xml", REPORT)
        .await
        .unwrap();
    stand_in.catch_up();
    assert_eq!(hits(&stand_in), 4);
}

#[tokio::test]
async fn a_reset_before_applies_nothing_and_a_reset_after_everything() {
    let stand_in = start().await;
    for (fault, expected) in [(Fault::ResetBefore, 0), (Fault::ResetAfter, 2)] {
        stand_in.set_faults(vec![FaultRule::times(FaultScope::Report, fault, 1)]);
        let answer = call(&stand_in, "POST", "/transactions.xml", REPORT).await;
        let error = answer.expect_err("the connection was to be reset");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        assert_eq!(hits(&stand_in), expected, "{fault:?}");
    }
    let answer = call(&stand_in, "POST", "/transactions.xml", REPORT)
        .await
        .unwrap();
    assert_eq!(status(&answer), 202, "both faults are used up");
    assert_eq!(stand_in.calls().count(Endpoint::Report), 3);
}

#[tokio::test]
async fn faults_befall_only_the_calls_they_name() {
    let stand_in = start().await;
    stand_in.set_faults(vec![
        FaultRule::always(FaultScope::Authorize, Fault::Status(503)),
        FaultRule::times(FaultScope::Report, Fault::StatusAfter(500), 1),
        FaultRule::times(FaultScope::Report, Fault::LagMs(3_600_000), 1),
    ]);
    let answer = call(&stand_in, "GET", AUTHREP, "").await.unwrap();
    assert_eq!((status(&answer), hits(&stand_in)), (503, 0));
    let answer = call(&stand_in, "POST", "/transactions.xml", REPORT)
        .await
        .unwrap();
    assert_eq!((status(&answer), hits(&stand_in)), (500, 2));
    let answer = call(&stand_in, "POST", "/transactions.xml", REPORT)
        .await
        .unwrap();
    assert_eq!((status(&answer), hits(&stand_in)), (202, 2));
    assert_eq!(stand_in.queued(), 1);
    stand_in.clear_faults();
    let answer = call(&stand_in, "GET", AUTHREP, "").await.unwrap();
    assert_eq!(status(&answer), 200);
    assert_eq!(stand_in.queued(), 2, "jobs are applied in their order");
}

#[tokio::test]
async fn a_delayed_answer_comes_late_and_a_hanging_one_never() {
    let mut stand_in = start().await;
    let delay = Duration::from_millis(100);
    stand_in.set_faults(vec![FaultRule::times(
        FaultScope::Any,
        Fault::DelayMs(100),
        1,
    )]);
    let start = Instant::now();
    let answer = call(&stand_in, "GET", "/status", "").await.unwrap();
    assert!(answer.ends_with(r#"{"status":"ok","version":{"backend":"3.4.3"}}"#));
    assert!(start.elapsed() >= delay);

    stand_in.set_faults(vec![FaultRule::always(FaultScope::Any, Fault::Hang)]);
    let address = stand_in.address();
    let request = format!("GET {AUTHREP} HTTP/1.1\r\nhost: backend\r\n\r\n");
    let hanging = tokio::spawn(async move { exchange(address, &request).await });
    let called = || stand_in.calls().count(Endpoint::Authrep) == 1;
    tokio::time::timeout(PATIENCE, async {
        while !called() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    assert!(!hanging.is_finished());
    stand_in.stop().await;
    let end = hanging.await.unwrap();
    assert!(
        !end.is_ok_and(|answer| !answer.is_empty()),
        "there is no answer"
    );
    assert_eq!(hits(&stand_in), 0);
}

#[tokio::test]
async fn a_stopped_stand_in_refuses_connections_and_a_restarted_one_remembers() {
    let mut stand_in = start().await;
    let address = stand_in.address();
    let mut idle = TcpStream::connect(address).await.unwrap();
    call(&stand_in, "GET", AUTHREP, "").await.unwrap();
    stand_in.stop().await;
    let error = TcpStream::connect(address).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    let mut rest = Vec::new();
    // Closed or reset, the connection has ended.
    let ended = tokio::time::timeout(PATIENCE, idle.read_to_end(&mut rest)).await;
    assert!(ended.is_ok() && rest.is_empty());
    stand_in.restart().await.unwrap();
    assert_eq!(stand_in.address(), address);
    let answer = call(&stand_in, "GET", AUTHREP, "").await.unwrap();
    assert_eq!((status(&answer), hits(&stand_in)), (200, 2));
}

#[tokio::test]
async fn dropping_a_stand_in_closes_its_port() {
    let stand_in = start().await;
    let address = stand_in.address();
    drop(stand_in);
    tokio::time::timeout(PATIENCE, async {
        while TcpStream::connect(address).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn an_application_can_be_changed_while_it_is_used() {
    let stand_in = start().await;
    let suspend = ApplicationChange::suspended(true);
    stand_in.put_application("1001", "alice", suspend).unwrap();
    assert_eq!(
        status(&call(&stand_in, "GET", AUTHREP, "").await.unwrap()),
        409
    );

    let target = "/stand-in/applications/1001/alice";
    let change = r#"{"state":"active","plan":"small"}"#;
    let answer = call(&stand_in, "PUT", target, change).await.unwrap();
    assert_eq!(status(&answer), 204);
    let answer = call(&stand_in, "GET", AUTHREP, "").await.unwrap();
    assert!(answer.contains("<max_value>5</max_value>"), "{answer}");

    let answer = call(&stand_in, "PUT", target, r#"{"plan":"gold"}"#)
        .await
        .unwrap();
    assert_eq!(status(&answer), 400);
    assert!(answer.ends_with("services.1001.applications.alice.plan: there is no plan gold\n"));
    let answer = call(&stand_in, "PUT", target, r#"{"state":7}"#)
        .await
        .unwrap();
    assert_eq!(status(&answer), 400);
    assert!(answer.contains("\r\n\r\nstate: "), "{answer}");

    assert_eq!(
        status(&call(&stand_in, "DELETE", target, "").await.unwrap()),
        204
    );
    assert_eq!(
        status(&call(&stand_in, "DELETE", target, "").await.unwrap()),
        404
    );
    assert_eq!(
        status(&call(&stand_in, "GET", AUTHREP, "").await.unwrap()),
        403
    );

    assert!(stand_in.set_service_token("1001", "rotated"));
    let answer = call(&stand_in, "GET", AUTHREP, "").await.unwrap();
    assert!(answer.contains("service_token_invalid"), "{answer}");
}

#[tokio::test]
async fn the_control_interface_tells_all_but_secrets() {
    let stand_in = start().await;
    call(&stand_in, "POST", "/transactions.xml", REPORT)
        .await
        .unwrap();
    call(&stand_in, "GET", AUTHREP, "").await.unwrap();
    let unknown = AUTHREP.replace("alice-key", "stolen-key");
    call(&stand_in, "GET", &unknown, "").await.unwrap();

    let usage = call(&stand_in, "GET", "/stand-in/usage", "").await.unwrap();
    let total = r#""total":{"1001":{"alice":{"hits":3,"orders":2}}}"#;
    assert!(usage.contains(total), "{usage}");
    assert!(
        usage.contains(r#""eternity":{"1970-01-01T00:00:00Z":3}"#),
        "{usage}"
    );

    let calls = call(&stand_in, "GET", "/stand-in/calls", "").await.unwrap();
    let counts = r#""counts":{"authrep":2,"report":1},"predictions":0,"transactions":1,"#;
    assert!(calls.contains(counts), "{calls}");
    assert!(calls.contains(r#""application":"alice""#), "{calls}");
    assert!(calls.contains(r#""usage[hits]":"1""#), "{calls}");

    let errors = call(&stand_in, "GET", "/stand-in/errors", "")
        .await
        .unwrap();
    assert!(errors.contains(r#""code":"user_key_invalid""#), "{errors}");
    let lines: String = stand_in
        .calls()
        .calls
        .iter()
        .map(ToString::to_string)
        .collect();
    for secret in ["demo-token", "alice-key", "stolen-key"] {
        for text in [&usage, &calls, &errors, &lines] {
            assert!(!text.contains(secret), "{secret}: {text}");
        }
    }

    let faults = r#"[{"endpoint":"any","fault":{"status":502},"times":1}]"#;
    let answer = call(&stand_in, "PUT", "/stand-in/faults", faults)
        .await
        .unwrap();
    assert_eq!(status(&answer), 204);
    let answer = call(&stand_in, "GET", "/stand-in/faults", "")
        .await
        .unwrap();
    assert!(answer.ends_with(faults), "{answer}");
    assert_eq!(
        status(&call(&stand_in, "GET", AUTHREP, "").await.unwrap()),
        502
    );
    let answer = call(&stand_in, "DELETE", "/stand-in/faults", "")
        .await
        .unwrap();
    assert_eq!(status(&answer), 204);
    let answer = call(&stand_in, "PUT", "/stand-in/faults", "[{}]")
        .await
        .unwrap();
    assert_eq!(status(&answer), 400);

    let answer = call(&stand_in, "POST", "/stand-in/reset", "")
        .await
        .unwrap();
    assert_eq!(status(&answer), 204);
    assert_eq!((hits(&stand_in), stand_in.calls().calls.len()), (0, 0));
}

#[tokio::test]
async fn hostile_input_gets_an_answer_or_a_closed_connection() {
    let stand_in = start().await;
    let base =
        "/transactions/authrep.xml?service_token=demo-token&service_id=1001&user_key=alice-key";
    for target in [
        format!("{base}&usage[hits]={}", "9".repeat(5_000)),
        format!("{base}&usage[hits]=%23{}", "9".repeat(5_000)),
        format!("{base}&usage{}=1", "[a]".repeat(500)),
        format!("{base}&usage[]=1&usage[][]=2"),
        format!("{base}&usage[%00]=%00"),
        format!("{base}&x={}", "y".repeat(20_000)),
        format!("{base}&%FF=%FE"),
        format!("{base}&=&&&[]=1&[=2&]=3"),
        "/transactions/authorize.xml?provider_key[]=1&service_id=-".to_owned(),
        "/../..//%2e%2e/transactions/authorize.xml".to_owned(),
    ] {
        let answer = call(&stand_in, "GET", &target, "").await.unwrap();
        assert!((200..=500).contains(&status(&answer)), "{target}");
    }
    for body in [
        "transactions[0][usage][hits]=1",
        "provider_key[]=1&service_id[]=2&transactions[a][usage]=1",
        "service_token=demo-token&service_id=1001&transactions[0][usage][]=1",
        "service_token=demo-token&service_id=1001&transactions[0][user_key][]=1&transactions[0][usage][hits]=1",
        "service_token=demo-token&service_id=1001&transactions[0][user_key]=alice-key&transactions[0][usage][hits]=1&transactions[0][timestamp]=-99999999999999999999",
        "%",
    ] {
        let answer = call(&stand_in, "POST", "/transactions.xml", body)
            .await
            .unwrap();
        assert!((200..=500).contains(&status(&answer)), "{body}");
    }
    exchange(stand_in.address(), "nonsense\r\n\r\n")
        .await
        .unwrap();
    let answer = call(&stand_in, "OPTIONS", "*", "").await.unwrap();
    assert_eq!(status(&answer), 204);
    let answer = call(&stand_in, "GET", AUTHREP, "").await.unwrap();
    assert_eq!(status(&answer), 200);
}
