//! Recordings of the real backend, as `tests/data/decisions/README.md` describes them.
//!
//! Apart from those who replay them: the stand-in and the gateway read the same calls.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;
use service_management::Dataset;

/// The recordings that are in the repository.
#[must_use]
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/decisions")
}

/// A backend's data, and the calls that were made to it.
#[derive(Debug)]
pub struct Recording {
    /// Names it in messages.
    pub name: String,
    /// The data, for a stand-in.
    pub dataset: Dataset,
    /// The part of the data that a gateway's configuration would say.
    pub data: Data,
    /// The calls in their order, each with the number of its line, from 1.
    pub calls: Vec<(usize, Call)>,
}

/// What a gateway is configured with. A recording's data also has what only the backend
/// knows: plans and applications.
#[derive(Debug, Deserialize)]
pub struct Data {
    /// The token of all services.
    pub service_token: String,
    /// The services.
    pub services: Vec<Service>,
}

/// A service.
#[derive(Debug, Deserialize)]
pub struct Service {
    /// Its id.
    pub id: String,
    /// `1` user_key, `2` app_id, `oauth`.
    pub backend_version: String,
    /// All its metrics.
    pub metrics: Vec<Metric>,
}

/// A metric.
#[derive(Debug, Deserialize)]
pub struct Metric {
    /// Its system name.
    pub name: String,
    /// The metric that it is a method of.
    pub parent: Option<String>,
}

/// What was called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Operation {
    /// May it, with this usage? Counts nothing.
    Authorize,
    /// May it, and if so, count this usage.
    Authrep,
    /// Count this usage, whatever the limits.
    Report,
}

/// One call, and what the real backend answered.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Call {
    /// Unix milliseconds by the backend's clock.
    pub at: u64,
    /// The service's id.
    pub service: String,
    /// What was called.
    pub op: Operation,
    /// What was sent to tell who is meant.
    pub user_key: Option<String>,
    /// What was sent to tell who is meant.
    pub app_id: Option<String>,
    /// What was sent to prove it.
    pub app_key: Option<String>,
    /// Metric and delta, as sent.
    #[serde(default)]
    pub usage: BTreeMap<String, u64>,
    /// Whether it was sent to the `oauth_` form of the endpoint.
    #[serde(default)]
    pub oauth: bool,
    /// The HTTP status.
    pub status: u16,
    /// The `<error code>`.
    pub error: Option<String>,
    /// The reason header.
    pub reason: Option<String>,
    /// How many more such calls may follow; -1: no limit applies.
    pub limit_remaining: Option<i64>,
    /// Seconds to the end of the window of the tightest limit; -1: it has none.
    pub limit_reset: Option<i64>,
    /// The tightest limit.
    pub limit_max_value: Option<i64>,
    /// The usage reports.
    #[serde(default)]
    pub reports: Vec<UsageReport>,
    /// Metric and its children, for every metric with a limit.
    pub hierarchy: Option<BTreeMap<String, Vec<String>>>,
}

/// A limit, and what the backend has counted on it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UsageReport {
    /// The metric.
    pub metric: String,
    /// The period, as the backend names it.
    pub period: String,
    /// Where the window begins, as the backend writes times; not for eternity.
    pub start: Option<String>,
    /// Where it ends.
    pub end: Option<String>,
    /// The limit.
    pub max: u64,
    /// What is counted.
    pub current: u64,
    /// Whether the backend says that more is counted than may be.
    pub exceeded: bool,
}

impl Recording {
    /// Reads a recording from its two files.
    ///
    /// # Errors
    /// A file cannot be read, or is no such file: the message names it, and the line.
    pub fn read(data: &Path, calls: &Path) -> Result<Self> {
        let name = calls.file_stem().unwrap_or(calls.as_os_str());
        let text = read(data)?;
        let named = || data.display().to_string();
        Ok(Self {
            name: name.to_string_lossy().into_owned(),
            dataset: Dataset::from_recording(&text).with_context(named)?,
            data: serde_json::from_str(&text).with_context(named)?,
            calls: (1..)
                .zip(read(calls)?.lines())
                .map(|(line, text)| {
                    serde_json::from_str(text)
                        .map(|call| (line, call))
                        .with_context(|| format!("{}, line {line}", calls.display()))
                })
                .collect::<Result<_>>()?,
        })
    }

    /// Reads every recording in a folder: `NAME.data.json` and `NAME.jsonl`, by name.
    ///
    /// # Errors
    /// As [`Recording::read`], and if there is none.
    pub fn read_all(folder: &Path) -> Result<Vec<Self>> {
        let mut names: Vec<PathBuf> = std::fs::read_dir(folder)
            .with_context(|| folder.display().to_string())?
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<Result<_, _>>()?;
        names.retain(|path| {
            path.extension()
                .is_some_and(|extension| extension == "jsonl")
        });
        names.sort();
        anyhow::ensure!(!names.is_empty(), "{}: no recording", folder.display());
        names
            .iter()
            .map(|calls| Self::read(&calls.with_extension("data.json"), calls))
            .collect()
    }
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| path.display().to_string())
}

impl Call {
    /// What the backend named as the reason of a refusal.
    #[must_use]
    pub fn why(&self) -> Option<&str> {
        self.error.as_deref().or(self.reason.as_deref())
    }
}
