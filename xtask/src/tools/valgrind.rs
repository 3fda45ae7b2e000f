//! Valgrind, which counts what Envoy executes.

use std::path::PathBuf;

use anyhow::Result;

use super::{apt, ensure, on_path};

/// The path of `valgrind`; `callgrind_control` stands beside it.
pub fn valgrind_path() -> Result<PathBuf> {
    ensure(
        "valgrind",
        || Ok(on_path("valgrind")),
        || apt::install(&["valgrind"]),
    )
}
