//! What is measured without an Envoy: the filter's core and the fake host, in a process of
//! their own, because this one is not optimized.

use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde::Serialize;

use crate::workspace;

/// The parts that were asked for; the others are empty.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Inside {
    pub known: Vec<Known>,
    pub contention: Vec<Contention>,
    pub economy: Vec<Economy>,
}

/// What a decision costs in the filter's core, on a map in memory.
#[derive(Debug, Serialize, Deserialize)]
pub struct Known {
    pub capacity: u32,
    pub applications: u64,
    pub ns: f64,
    /// Of an application that has not been used in this minute.
    pub ns_first_of_a_minute: f64,
    /// The part of the decisions that found a record.
    pub known: f64,
    /// Of shared data, for each decision.
    pub reads: f64,
    pub writes: f64,
}

/// Workers of one process on one record.
#[derive(Debug, Serialize, Deserialize)]
pub struct Contention {
    pub workers: u32,
    /// Whether threads gave way between reading and writing on purpose.
    pub forced: bool,
    pub requests_per_second: f64,
    pub attempts_per_admitted: f64,
    pub mismatches_per_admitted: f64,
    pub refused: u64,
}

/// Calls in virtual time.
#[derive(Debug, Serialize, Deserialize)]
pub struct Economy {
    pub applications: u64,
    /// Seconds.
    pub ttl: u64,
    /// Seconds.
    pub interval: u64,
    /// Requests a second.
    pub rate: u64,
    pub seconds: u64,
    pub admitted: u64,
    pub authorize_calls: u64,
    pub refresh_calls: u64,
    pub report_calls: u64,
    pub probe_calls: u64,
}

/// Builds and runs these parts of `tests/fake-host/benches/scale.rs`, which tells its
/// progress on stderr.
pub fn measure(parts: &[&str], quick: bool) -> Result<Inside> {
    let mut command = workspace::cargo();
    command
        .args(["bench", "--quiet", "--profile", "measured"])
        .args(["--package", "tollgate-fake-host", "--bench", "scale", "--"])
        .args(parts);
    if quick {
        command.arg("--quick");
    }
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("starting cargo")?;
    ensure!(output.status.success(), "the bench of the fake host failed");
    let text = String::from_utf8(output.stdout)?;
    let line = text.lines().rfind(|line| line.starts_with('{'));
    Ok(serde_json::from_str(line.context("it printed no JSON")?)?)
}
