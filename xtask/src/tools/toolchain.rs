//! A Rust toolchain for WebAssembly.
//!
//! The active one if it has the targets' standard library, or can get it through
//! rustup. Otherwise Debian's (`rustc-web` and friends), which has none either but
//! comes with the library's source and all that it depends on, so that cargo can
//! compile it without the network (`-Zbuild-std`, which a stable cargo takes with
//! `RUSTC_BOOTSTRAP=1`).

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::{announce, apt, ensure, on_path};
use crate::process::{self, Ending};
use crate::workspace;

/// What the filter is compiled for: Envoy has the WASI functions that it imports.
pub const FILTER_TARGET: &str = "wasm32-wasip1";
/// What the unit tests are compiled for a second time.
pub const TEST_TARGET: &str = "wasm32-unknown-unknown";

/// The packages of Debian and, in the same order, a file by which each is known.
const DEBIAN: [(&str, &str); 5] = [
    ("rustc-web", "/usr/bin/rustc"),
    ("cargo-web", "/usr/bin/cargo"),
    ("rust-web-src", "/usr/lib/rustlib/src/rust/library/vendor"),
    ("lld-22", "/usr/bin/wasm-ld-22"),
    ("wasi-libc", "/usr/lib/wasm32-wasi/libc.a"),
];

/// How long rustup may take where Debian's packages can replace it. Some networks
/// swallow its downloads without an error, and it would wait for minutes.
const RUSTUP_LIMIT: Duration = Duration::from_secs(10);
/// How long it may take where nothing can.
const RUSTUP_LIMIT_ALONE: Duration = Duration::from_secs(600);

/// Chooses between the two by hand: `active` or `debian`.
const CHOICE: &str = "TOLLGATE_WASM_TOOLCHAIN";

/// A toolchain that can build for [`FILTER_TARGET`] and [`TEST_TARGET`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Toolchain {
    /// The one that runs this program.
    Active,
    /// Debian's.
    Debian,
}

impl Toolchain {
    /// Finds a toolchain, or installs what is missing.
    pub fn ensure() -> Result<Self> {
        match std::env::var(CHOICE).as_deref() {
            Err(_) => ensure(
                "a Rust toolchain for WebAssembly",
                || {
                    Ok(if active_has_targets()? {
                        Some(Self::Active)
                    } else {
                        debian_is_complete().then_some(Self::Debian)
                    })
                },
                || {
                    // rustup may succeed for a toolchain that is not the active one.
                    if on_path("rustup").is_some() && add_targets()? && active_has_targets()? {
                        return Ok(());
                    }
                    install_debian()
                },
            ),
            Ok("active") => ensure(
                "the WebAssembly targets",
                || Ok(active_has_targets()?.then_some(Self::Active)),
                || match add_targets()? {
                    true => Ok(()),
                    false => bail!("rustup cannot add the targets, and {CHOICE} rules out others"),
                },
            ),
            Ok("debian") => ensure(
                "Debian's Rust toolchain",
                || Ok(debian_is_complete().then_some(Self::Debian)),
                install_debian,
            ),
            Ok(other) => bail!("{CHOICE} is {other:?}; it can be active or debian"),
        }
    }

    /// Its name and version, such as `rustc 1.95.0`.
    pub fn version(self) -> Result<String> {
        let text = process::capture(Command::new(self.rustc()).arg("--version"))?;
        let version: Vec<_> = text.split_whitespace().take(2).collect();
        Ok(match self {
            Self::Active => version.join(" "),
            Self::Debian => format!("{} of Debian", version.join(" ")),
        })
    }

    /// Where builds by [`Toolchain::cargo`] end up. The two keep apart what they
    /// build, as each would take the other's for outdated.
    pub fn target_folder(self) -> PathBuf {
        match self {
            Self::Active => workspace::target(),
            Self::Debian => workspace::target().join("debian"),
        }
    }

    /// `cargo <subcommand> --target <target>` with what this toolchain needs for
    /// it, at the root of the repository. `flags` go to rustc.
    pub fn cargo(self, subcommand: &str, target: &str, flags: &[String]) -> Command {
        let mut flags = flags.to_vec();
        let mut command = match self {
            Self::Active => {
                let mut cargo = workspace::cargo();
                cargo.arg(subcommand);
                cargo
            }
            Self::Debian => {
                let mut cargo = workspace::cargo_at(Path::new("/usr/bin/cargo"));
                cargo
                    .arg(subcommand)
                    .arg(if subcommand == "test" {
                        "-Zbuild-std=std,panic_abort,test"
                    } else {
                        "-Zbuild-std=std,panic_abort"
                    })
                    .env("RUSTC_BOOTSTRAP", "1")
                    .env("RUSTC", self.rustc())
                    .env("RUSTDOC", "/usr/bin/rustdoc")
                    // The libraries of the toolchain that runs xtask.
                    .env_remove("LD_LIBRARY_PATH")
                    .env_remove("RUSTUP_TOOLCHAIN");
                flags.push("-Clinker=wasm-ld-22".to_owned());
                if target == FILTER_TARGET {
                    flags.push("-Clink-self-contained=no".to_owned());
                    flags.push("-L/usr/lib/wasm32-wasi".to_owned());
                }
                cargo
            }
        };
        command
            .args(["--target", target])
            .env("CARGO_TARGET_DIR", self.target_folder())
            // This variable goes before all the others that set flags, so that
            // flags for native code do not get in.
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"));
        command
    }

    fn rustc(self) -> PathBuf {
        match self {
            Self::Active => std::env::var_os("RUSTC").map_or("rustc".into(), PathBuf::from),
            Self::Debian => "/usr/bin/rustc".into(),
        }
    }
}

/// Whether the active toolchain has a standard library for both targets.
fn active_has_targets() -> Result<bool> {
    Ok(active_has(FILTER_TARGET)? && active_has(TEST_TARGET)?)
}

/// Whether the active toolchain has a standard library for a target.
pub fn active_has(target: &str) -> Result<bool> {
    let folder = process::capture(Command::new(Toolchain::Active.rustc()).args([
        "--print",
        "target-libdir",
        "--target",
        target,
    ]))?;
    // The folder alone can be left over from an interrupted download.
    let is_std = |name: &OsStr| name.as_encoded_bytes().starts_with(b"libstd-");
    Ok(std::fs::read_dir(folder).is_ok_and(|mut entries| {
        entries.any(|entry| entry.is_ok_and(|entry| is_std(&entry.file_name())))
    }))
}

/// Whether rustup could add the targets.
fn add_targets() -> Result<bool> {
    announce("rustup target add wasm32-wasip1 wasm32-unknown-unknown");
    let limit = if apt::is_there() {
        RUSTUP_LIMIT
    } else {
        RUSTUP_LIMIT_ALONE
    };
    let mut rustup = Command::new("rustup");
    rustup
        .args(["target", "add", FILTER_TARGET, TEST_TARGET])
        .current_dir(workspace::root());
    let ending = process::run_within(&mut rustup, limit)?;
    match ending {
        Ending::Success => return Ok(true),
        Ending::Failure => announce("rustup cannot download the targets here"),
        Ending::TimedOut => announce(&format!(
            "rustup did not finish within {} s and was stopped",
            limit.as_secs()
        )),
    }
    Ok(false)
}

fn debian_is_complete() -> bool {
    DEBIAN.iter().all(|(_, file)| Path::new(file).exists())
}

fn install_debian() -> Result<()> {
    apt::install(&DEBIAN.map(|(package, _)| package)).context(
        "no toolchain for WebAssembly: `rustup target add wasm32-wasip1 wasm32-unknown-unknown` \
         failed, and Debian's packages cannot be installed either",
    )
}
