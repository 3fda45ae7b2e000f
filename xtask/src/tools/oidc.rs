//! The OpenID provider of the end-to-end tests: `oidc-provider` from npm, by the lock file beside
//! its script, kept in `target/tools/`.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use super::node::node_path;
use super::{announce, ensure, folder, on_path};
use crate::process;
use crate::workspace;

/// Where the script and what it is installed from stand.
const SOURCE: &str = "tests/end-to-end/oidc";
const FILES: [&str; 3] = ["package.json", "package-lock.json", "provider.mjs"];

/// The absolute path of a folder with `provider.mjs` and its packages. Both follow the
/// repository: a changed lock file installs again.
pub fn oidc_path() -> Result<PathBuf> {
    node_path()?;
    let home = folder().join("oidc-provider");
    let source = workspace::root().join(SOURCE);
    let read = |folder: &PathBuf, file: &str| std::fs::read(folder.join(file)).ok();
    let is_current = |file: &str| read(&home, file) == read(&source, file);
    let found = || {
        Ok(FILES
            .iter()
            .all(|file| is_current(file))
            .then(|| home.clone()))
    };
    ensure("the OpenID provider", found, || {
        std::fs::create_dir_all(&home)?;
        let [package, lock, script] = FILES;
        if !is_current(package) || !is_current(lock) {
            announce("installing oidc-provider from npm (12 MB)");
            for file in [package, lock] {
                std::fs::copy(source.join(file), home.join(file))?;
            }
            let npm = on_path("npm").context("npm is missing; it comes with Node.js")?;
            process::capture(
                Command::new(npm)
                    .args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"])
                    .current_dir(&home),
            )
            // What was not installed must not look as if it had been.
            .inspect_err(|_| drop(std::fs::remove_file(home.join(lock))))?;
        }
        std::fs::copy(source.join(script), home.join(script))?;
        Ok(())
    })
}
