//! Node.js, which runs the tests that are compiled to wasm32-unknown-unknown.

use std::path::PathBuf;

use anyhow::Result;

use super::{apt, ensure, on_path};

/// The path of `node`.
pub fn node_path() -> Result<PathBuf> {
    ensure(
        "Node.js",
        || Ok(on_path("node")),
        || apt::install(&["nodejs"]),
    )
}
