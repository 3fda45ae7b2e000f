//! `cargo-fuzz`, which builds programs of libFuzzer, and the C++ compiler that libFuzzer
//! itself needs. It asks for a nightly toolchain; a stable one does with
//! `RUSTC_BOOTSTRAP=1`, as long as no sanitizer is wanted.

use std::path::PathBuf;

use anyhow::{Context, Result};

use super::{announce, apt, ensure, folder, on_path};
use crate::{process, workspace};

const VERSION: &str = "0.13.2";

/// The path of `cargo-fuzz`.
pub fn cargo_fuzz_path() -> Result<PathBuf> {
    let compilers = ["c++", "g++", "clang++"];
    ensure(
        "a C++ compiler",
        || Ok(compilers.into_iter().find_map(on_path)),
        || apt::install(&["g++"]),
    )?;
    let home = folder().join(format!("cargo-fuzz-{VERSION}"));
    let program = home.join("bin").join("cargo-fuzz");
    ensure(
        "cargo-fuzz",
        || Ok(program.is_file().then(|| program.clone())),
        || {
            announce(&format!("compiling cargo-fuzz {VERSION} (a minute, once)"));
            let install = |locked: bool| {
                let mut command = workspace::cargo();
                command
                    .args(["install", "--quiet", "cargo-fuzz", "--version"])
                    .arg(format!("={VERSION}"))
                    .args(locked.then_some("--locked"))
                    .arg("--root")
                    .arg(&home)
                    .env("CARGO_TARGET_DIR", folder().join("build"))
                    .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "0");
                process::capture(&mut command)
            };
            // Its lock file can name versions that a mirror of crates.io does not have yet.
            install(true).or_else(|_| install(false))?;
            std::fs::remove_dir_all(folder().join("build"))
                .context("removing the build's leftovers")
        },
    )
}
