//! Where things are in the repository, and how cargo is called on it.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The root of the repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask lies in the workspace")
}

/// `target/`, where finished modules, installed tools and wasm builds are put.
/// It is the repository's own also where `CARGO_TARGET_DIR` sends native builds
/// elsewhere, so that its paths can be written down.
pub fn target() -> PathBuf {
    root().join("target")
}

/// A file below the root as a reader would name it: relative where it can be.
pub fn display(path: &Path) -> String {
    path.strip_prefix(root())
        .unwrap_or(path)
        .display()
        .to_string()
}

/// The cargo that runs this program, called at the root of the repository.
pub fn cargo() -> Command {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    cargo_at(Path::new(&cargo))
}

/// A certain cargo, called at the root of the repository.
pub fn cargo_at(cargo: &Path) -> Command {
    let mut command = Command::new(cargo);
    command.current_dir(root());
    // What `cargo run` tells xtask about xtask would be taken by build scripts
    // as news about their own package.
    for (name, _) in std::env::vars_os() {
        let own = name.to_str().is_some_and(|name| {
            name.starts_with("CARGO_PKG_")
                || name.starts_with("CARGO_MANIFEST_")
                || matches!(name, "CARGO_BIN_NAME" | "CARGO_CRATE_NAME" | "OUT_DIR")
        });
        if own {
            command.env_remove(name);
        }
    }
    command
}
