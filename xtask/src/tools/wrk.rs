//! wrk, which makes the load of the benchmarks.

use std::path::PathBuf;

use anyhow::Result;

use super::{apt, ensure, on_path};

/// The path of `wrk`.
pub fn wrk_path() -> Result<PathBuf> {
    ensure("wrk", || Ok(on_path("wrk")), || apt::install(&["wrk"]))
}
