//! The programs that commands need beside cargo: each module finds one, and
//! installs it where it is missing.
//!
//! Finding is quick and silent. Installing says what it does and is done by one
//! `cargo xtask` at a time; what is not a package of the system goes to
//! `target/tools/`.

pub mod apt;
pub mod cargo_fuzz;
pub mod envoy;
pub mod node;
pub mod oidc;
pub mod test_runner;
pub mod toolchain;
pub mod valgrind;
pub mod wrk;

use std::fs::{File, TryLockError};
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::workspace;

/// The folder that installed tools are kept in; it may not exist yet.
pub fn folder() -> PathBuf {
    workspace::target().join("tools")
}

/// Finds a tool, or installs it and finds it then. `name` is for messages.
pub fn ensure<T>(
    name: &str,
    find: impl Fn() -> Result<Option<T>>,
    install: impl FnOnce() -> Result<()>,
) -> Result<T> {
    if let Some(found) = find()? {
        return Ok(found);
    }
    let _only_one = lock()?;
    // Whoever held the lock may have installed it.
    if let Some(found) = find()? {
        return Ok(found);
    }
    install().with_context(|| format!("installing {name}"))?;
    find()?.with_context(|| format!("{name}: still missing after the installation"))
}

/// Says what a step of the set-up is about to do.
pub fn announce(step: &str) {
    eprintln!("setup: {step}");
}

/// A program on `PATH`.
pub fn on_path(program: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|folder| folder.join(program))
        .find(|path| path.is_file())
}

/// Held until it is dropped, or the process ends however it ends.
fn lock() -> Result<File> {
    let folder = folder();
    std::fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    let path = folder.join("lock");
    let file = File::create(&path).with_context(|| format!("creating {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            announce("waiting for another cargo xtask that is installing");
            file.lock()
                .with_context(|| format!("locking {}", path.display()))?;
        }
        Err(TryLockError::Error(error)) => {
            return Err(error).with_context(|| format!("locking {}", path.display()));
        }
    }
    Ok(file)
}
