//! Load, by `wrk`: one thread that keeps a number of connections busy for some seconds.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use tokio::process::Command;

const SCRIPT: &str = include_str!("wrk.lua");
const CYCLE: &str = include_str!("cycle.lua");

/// What the client saw of one round.
#[derive(Debug, Deserialize)]
pub struct Load {
    pub requests: u64,
    pub microseconds: u64,
    pub p50_us: u64,
    pub p99_us: u64,
    /// Connections that failed and requests that were not answered.
    pub broken: u64,
    /// Answers that were neither 2xx nor 3xx.
    pub refused: u64,
}

impl Load {
    pub fn requests_per_second(&self) -> f64 {
        self.requests as f64 * 1e6 / self.microseconds as f64
    }
}

/// Runs `wrk` against `url` with the header `x-api-key: <key>`.
pub async fn load(
    wrk: &Path,
    url: &str,
    key: &str,
    connections: u32,
    seconds: u32,
) -> Result<Load> {
    let header = format!("x-api-key: {key}");
    run(
        wrk,
        SCRIPT,
        &["--header", &header],
        url,
        &[],
        connections,
        seconds,
    )
    .await
}

/// Requests of many applications to many hosts, all in turn.
#[derive(Clone, Copy, Debug)]
pub struct Cycle {
    /// Keys, `k0000000` and so on.
    pub keys: u64,
    /// Hosts, `h0.example.com` and so on.
    pub hosts: u64,
}

/// Runs `wrk` with the requests of a cycle, from its `start`th on.
pub async fn cycle(
    wrk: &Path,
    url: &str,
    cycle: Cycle,
    start: u64,
    connections: u32,
    seconds: u32,
) -> Result<Load> {
    let numbers = [cycle.keys, cycle.hosts, start].map(|it| it.to_string());
    let numbers = numbers.each_ref().map(String::as_str);
    let script = format!("{SCRIPT}\n{CYCLE}");
    run(wrk, &script, &[], url, &numbers, connections, seconds).await
}

async fn run(
    wrk: &Path,
    script: &str,
    options: &[&str],
    url: &str,
    arguments: &[&str],
    connections: u32,
    seconds: u32,
) -> Result<Load> {
    let file = tempfile::NamedTempFile::with_suffix(".lua")?;
    std::fs::write(file.path(), script)?;
    let mut command = match super::variant::beside() {
        Some(processor) => {
            let mut taskset = Command::new("taskset");
            taskset.args(["--cpu-list", &processor.to_string()]);
            taskset.arg(wrk);
            taskset
        }
        None => Command::new(wrk),
    };
    let output = command
        .args(["--threads", "1"])
        .args(["--connections", &connections.to_string()])
        .args(["--duration", &format!("{seconds}s")])
        .args(options)
        .arg("--script")
        .arg(file.path())
        .args([url, "--"])
        .args(arguments)
        .kill_on_drop(true)
        .output()
        .await
        .with_context(|| format!("running {}", wrk.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success(),
        "wrk ended with {}: {text}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    let line = text
        .lines()
        .find(|line| line.starts_with('{'))
        .with_context(|| format!("wrk printed {text}"))?;
    let load: Load = serde_json::from_str(line)?;
    ensure!(
        load.broken == 0,
        "{} requests to {url} were not answered",
        load.broken
    );
    ensure!(
        load.requests > 0 && load.microseconds > 0,
        "no requests were made to {url}"
    );
    Ok(load)
}
