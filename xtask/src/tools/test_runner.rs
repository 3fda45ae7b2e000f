//! `wasm-bindgen-test-runner`, which runs test binaries for wasm32-unknown-unknown
//! in Node.js. It must have exactly the version of `wasm-bindgen` in `Cargo.lock`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::{announce, ensure, folder};
use crate::{process, workspace};

/// The path of the runner that fits `Cargo.lock`.
pub fn test_runner_path() -> Result<PathBuf> {
    let lock = workspace::root().join("Cargo.lock");
    let text = std::fs::read_to_string(&lock)
        .with_context(|| format!("reading {}", workspace::display(&lock)))?;
    let version = locked_version(&text, "wasm-bindgen")
        .context("Cargo.lock has no wasm-bindgen, which wasm-bindgen-test brings")?;
    let home = folder().join(format!("wasm-bindgen-{version}"));
    let runner = home.join("bin").join("wasm-bindgen-test-runner");
    ensure(
        "wasm-bindgen-test-runner",
        || Ok(runner.is_file().then(|| runner.clone())),
        || install(&version, &home),
    )
}

fn install(version: &str, home: &Path) -> Result<()> {
    announce(&format!(
        "compiling wasm-bindgen-cli {version} for its test runner (a few minutes, once)"
    ));
    let install = |locked: bool| {
        let mut command = workspace::cargo();
        command
            .args([
                "install",
                "--quiet",
                "wasm-bindgen-cli",
                "--bin",
                "wasm-bindgen-test-runner",
                "--no-default-features",
                "--version",
            ])
            .arg(format!("={version}"))
            .args(locked.then_some("--locked"))
            .arg("--root")
            .arg(home)
            .env("CARGO_TARGET_DIR", folder().join("build"))
            // It transforms a few megabytes at a time: compiling it is what takes
            // long, not running it.
            .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1");
        process::capture(&mut command)
    };
    // Its lock file can name versions that a mirror of crates.io does not have yet.
    install(true).or_else(|_| install(false))?;
    std::fs::remove_dir_all(folder().join("build")).context("removing the build's leftovers")
}

/// The version of a package in the text of a `Cargo.lock`, if it is there.
fn locked_version(lock: &str, package: &str) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Lock {
        package: Vec<Package>,
    }
    #[derive(serde::Deserialize)]
    struct Package {
        name: String,
        version: String,
    }
    let lock: Lock = toml::from_str(lock).ok()?;
    lock.package
        .into_iter()
        .find(|candidate| candidate.name == package)
        .map(|found| found.version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_read_from_the_package_of_that_very_name() {
        let lock = "version = 4\n\n[[package]]\nname = \"wasm-bindgen-test\"\nversion = \"0.3.1\"\n\n\
                    [[package]]\nname = \"wasm-bindgen\"\nversion = \"0.2.130\"\n";
        assert_eq!(
            locked_version(lock, "wasm-bindgen").as_deref(),
            Some("0.2.130")
        );
        assert_eq!(locked_version(lock, "wasm"), None);
    }
}
