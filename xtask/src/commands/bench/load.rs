//! Load, by `wrk`: one thread that keeps a number of connections busy for some seconds.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use tokio::process::Command;

const SCRIPT: &str = include_str!("wrk.lua");

/// What the client saw of one round.
#[derive(Debug, Deserialize)]
pub struct Load {
    pub requests: u64,
    pub microseconds: u64,
    pub p50_us: u64,
    pub p99_us: u64,
    /// Connections that failed and requests that were not answered.
    pub broken: u64,
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
    let script = tempfile::NamedTempFile::with_suffix(".lua")?;
    std::fs::write(script.path(), SCRIPT)?;
    let output = Command::new(wrk)
        .args(["--threads", "1"])
        .args(["--connections", &connections.to_string()])
        .args(["--duration", &format!("{seconds}s")])
        .args(["--header", &format!("x-api-key: {key}")])
        .arg("--script")
        .arg(script.path())
        .arg(url)
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
