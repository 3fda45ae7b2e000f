//! `cargo xtask setup`: everything that any command needs, at once.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::process;
use crate::tools::envoy::{self, envoy_path};
use crate::tools::node::node_path;
use crate::tools::oidc::oidc_path;
use crate::tools::test_runner::test_runner_path;
use crate::tools::toolchain::Toolchain;
use crate::tools::wrk::wrk_path;
use crate::workspace;

/// Installs what is missing and prints what is used.
pub fn run() -> Result<()> {
    let toolchain = Toolchain::ensure()?;
    println!("wasm toolchain  {}", toolchain.version()?);
    let envoy = envoy_path()?;
    println!(
        "Envoy           {} at {}",
        envoy::version(&envoy)?,
        workspace::display(&envoy)
    );
    let node = node_path()?;
    println!(
        "Node.js         {} at {}",
        process::capture(Command::new(&node).arg("--version"))?,
        node.display()
    );
    let print = |name: &str, path: &Path| println!("{name} {}", workspace::display(path));
    print("test runner    ", &test_runner_path()?);
    print("wrk            ", &wrk_path()?);
    print("OpenID provider", &oidc_path()?);
    Ok(())
}
