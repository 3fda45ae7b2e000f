//! Packages of Debian, as root or through `sudo` without a password.

use std::process::Command;

use anyhow::{Context, Result, bail};

use super::{announce, on_path};
use crate::process;

/// Whether this machine has apt at all.
pub fn is_there() -> bool {
    on_path("apt-get").is_some()
}

/// Installs packages. Nothing that is installed is removed for them.
pub fn install(packages: &[&str]) -> Result<()> {
    let by_hand = format!("install by hand: {}", packages.join(" "));
    if !is_there() {
        bail!("this machine has no apt-get; {by_hand}");
    }
    let root = rustix::process::geteuid().is_root();
    if !root && process::capture(Command::new("sudo").args(["-n", "true"])).is_err() {
        bail!("neither root nor sudo without a password; {by_hand}");
    }
    announce(&format!("apt-get install {}", packages.join(" ")));
    process::capture(apt_get(root).arg("update"))
        .with_context(|| format!("the package lists cannot be renewed; {by_hand}"))?;
    process::capture(
        apt_get(root)
            .args(["install", "--yes", "--no-install-recommends", "--no-remove"])
            .args(packages),
    )
    .with_context(|| format!("apt-get cannot install; {by_hand}"))?;
    Ok(())
}

fn apt_get(root: bool) -> Command {
    let mut command = if root {
        Command::new("env")
    } else {
        let mut sudo = Command::new("sudo");
        sudo.args(["-n", "env"]);
        sudo
    };
    command.args([
        "DEBIAN_FRONTEND=noninteractive",
        "apt-get",
        "--quiet",
        // Someone else's apt is waited for; a mirror that does not answer is not.
        "--option=DPkg::Lock::Timeout=600",
        "--option=Acquire::http::Timeout=30",
        "--option=Acquire::https::Timeout=30",
        "--option=Acquire::Retries=2",
    ]);
    command
}
