//! `cargo xtask lint`: what can be said of the code without running it.

mod dependencies;
mod no_panics;

use anyhow::{Result, bail};

use crate::process;
use crate::tools::toolchain::{FILTER_TARGET, Toolchain, active_has};
use crate::workspace;

/// Runs every check, also after one has failed, and fails if any did.
pub fn run() -> Result<()> {
    type Check = fn() -> Result<()>;
    let checks: [(&str, Check); 6] = [
        ("format", format),
        ("clippy", clippy),
        ("clippy for wasm32", clippy_for_the_filter),
        ("documentation", documentation),
        ("ban on panics", no_panics::check),
        ("dependencies", dependencies::check),
    ];
    let mut failed = Vec::new();
    for (name, check) in checks {
        println!("=== {name} ===");
        if let Err(error) = check() {
            println!("{name} failed: {error:#}");
            failed.push(name);
        }
    }
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    println!("all checks passed");
    Ok(())
}

fn format() -> Result<()> {
    process::run(workspace::cargo().args(["fmt", "--all", "--check"]))
}

fn clippy() -> Result<()> {
    process::run(
        workspace::cargo()
            .args(["clippy", "--workspace", "--all-targets"])
            .args(["--", "-D", "warnings"]),
    )
}

/// The filter has code that exists on its own target only.
fn clippy_for_the_filter() -> Result<()> {
    if !active_has(FILTER_TARGET)? {
        println!("NOT CHECKED, as the active toolchain has no {FILTER_TARGET}");
        return Ok(());
    }
    process::run(
        Toolchain::Active
            .cargo("clippy", FILTER_TARGET, &[])
            .args(["--package", "tollgate", "--lib"])
            .args(["--", "-D", "warnings"]),
    )
}

/// Private items too: most of what is written here is for those who work on it.
fn documentation() -> Result<()> {
    process::run(
        workspace::cargo()
            .args(["doc", "--workspace", "--no-deps"])
            .arg("--document-private-items")
            .env("RUSTDOCFLAGS", "-D warnings"),
    )
}
