//! The Docker Compose example answers as its README says, without the containers: its plugin
//! configuration in a real Envoy, its data in the stand-in, and the README's own requests.
//! (That the rest of its `envoy.yaml` is the shipped one, `tests/manifests` compares.)

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use service_management::{Dataset, Options, StandIn};
use tollgate_harness::{Echo, Envoy, EnvoyOptions, Plugin, eventually};

fn text(path: &str) -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .join(path);
    std::fs::read_to_string(&path).with_context(|| path.display().to_string())
}

/// A row of the README's table: a curl command, and the first status behind it.
struct Row {
    command: String,
    path: String,
    headers: Vec<(String, String)>,
    status: u16,
}

fn rows() -> Result<Vec<Row>> {
    text("examples/docker-compose/README.md")?
        .lines()
        .filter_map(|line| line.strip_prefix("| `curl -i "))
        .map(|row| {
            let (command, rest) = row.split_once("` | ").context("a command ends with `")?;
            // None of the arguments has a quote inside.
            let command = command.to_owned();
            let (request, header) = match command.split_once(" -H ") {
                Some((request, header)) => (request, Some(header)),
                None => (command.as_str(), None),
            };
            let path = request.trim_matches('\'').strip_prefix("localhost:10000");
            let header = header.and_then(|header| header.trim_matches('\'').split_once(": "));
            Ok(Row {
                path: path.context("not the gateway's port")?.to_owned(),
                headers: header
                    .map(|(name, value)| (name.to_owned(), value.to_owned()))
                    .into_iter()
                    .collect(),
                status: rest.get(..3).context("no status")?.parse()?,
                command,
            })
        })
        .collect()
}

#[tokio::test]
#[ignore = "needs Envoy and the module: run cargo xtask test"]
async fn the_compose_examples_readme_says_what_happens() -> Result<()> {
    let dataset = Dataset::from_yaml(&text("examples/service-management/demo.yaml")?)?;
    let stand_in = StandIn::start(dataset, Options::default()).await?;
    let echo = Echo::start().await?;
    let bootstrap: Value = serde_yaml::from_str(&text("examples/docker-compose/envoy.yaml")?)?;
    let configuration = bootstrap
        .pointer(
            "/static_resources/listeners/0/filter_chains/0/filters/0/typed_config/http_filters/0/\
             typed_config/config/configuration/value",
        )
        .and_then(Value::as_str)
        .context("no configuration")?;
    let envoy = Envoy::start(EnvoyOptions {
        plugin: Plugin::Text(configuration.to_owned()),
        upstream: Some(echo.address()),
        service_management: Some(stand_in.address()),
        env: vec![("TG_SERVICE_TOKEN".into(), "demo-token".into())],
        ..Default::default()
    })
    .await?;
    let client = envoy.client()?;

    let rows = rows()?;
    assert!(rows.len() >= 8, "only {} rows found", rows.len());
    for row in &rows {
        let headers: Vec<_> = row
            .headers
            .iter()
            .map(|(name, value)| (&**name, &**value))
            .collect();
        let reply = client.get(&row.path, &headers).await?;
        assert_eq!(reply.status, row.status, "{}: {}", row.command, reply.body);
    }

    // bob: five in a minute. At the turn of a minute he has five more, so ask for longer.
    let bob = rows
        .iter()
        .find(|row| row.path.contains("bob-key"))
        .context("bob")?;
    let mut last = client.get(&bob.path, &[]).await?;
    for _ in 0..10 {
        if last.status == 429 {
            break;
        }
        last = client.get(&bob.path, &[]).await?;
    }
    assert_eq!(last.status, 429);
    let retry_after: u64 = last
        .header("retry-after")
        .context("no Retry-After")?
        .parse()?;
    assert!((1..=60).contains(&retry_after), "{retry_after}");

    let usage = "usage of alice at service management";
    eventually(usage, Duration::from_secs(30), async || {
        (stand_in.usage().total("1001", "alice", "hits") == 1).then_some(())
    })
    .await?;
    Ok(())
}
