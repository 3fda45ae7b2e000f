//! `cargo xtask build`: the filter as one file that Envoy loads, with the proof
//! that it asks no more of Envoy than the lists beside this crate's manifest say.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, anyhow, ensure};

use crate::process;
use crate::tools::toolchain::{FILTER_TARGET, Toolchain};
use crate::wasm::{self, Interface};
use crate::workspace;

const IMPORTS: &str = "xtask/module-imports.txt";
const EXPORTS: &str = "xtask/module-exports.txt";
/// The feature of the filter with which a request's header can trap the VM.
const TRAP_FEATURE: &str = "trap-for-tests";
/// The profile of the module with that feature. Another one than the shipped module's,
/// because cargo would put both into the same file and take the one for the other.
const TRAP_PROFILE: &str = "measured";
/// The name of that header (`src/host/trap.rs`).
const TRAP_HEADER: &[u8] = b"x-tollgate-trap-for-tests";

/// Arguments of the command.
#[derive(clap::Args)]
pub struct Arguments {
    /// Write the module's imports and exports to the lists instead of comparing.
    #[arg(long)]
    accept: bool,
    /// Build the module of another package of the workspace, without checks.
    #[arg(long, conflicts_with = "accept")]
    package: Option<String>,
}

/// Builds the filter and checks it, or accepts it as it is.
pub fn run(arguments: &Arguments) -> Result<()> {
    match &arguments.package {
        Some(package) => build_module(package),
        None if arguments.accept => build("tollgate", accept),
        None => build_filter(),
    }
    .map(drop)
}

/// Builds the filter as `target/tollgate.wasm`, checks what it imports and
/// exports, and returns its absolute path.
pub fn build_filter() -> Result<PathBuf> {
    build("tollgate", check)
}

/// Builds the filter so that a request's header can trap its VM, for tests, and returns its
/// absolute path. It does not stand where the shipped module does.
pub fn build_filter_that_traps() -> Result<PathBuf> {
    let toolchain = Toolchain::ensure()?;
    process::run(
        toolchain
            .cargo("build", FILTER_TARGET, &without_local_paths())
            .args(["--profile", TRAP_PROFILE, "--lib", "--package", "tollgate"])
            .args(["--features", TRAP_FEATURE]),
    )?;
    let module = toolchain
        .target_folder()
        .join(FILTER_TARGET)
        .join(TRAP_PROFILE)
        .join("tollgate.wasm");
    let bytes = std::fs::read(&module)
        .with_context(|| format!("reading {}", workspace::display(&module)))?;
    ensure!(
        wasm::contains(&bytes, TRAP_HEADER),
        "{} does not know the header that traps it, so nobody can tell that the shipped module \
         does not",
        workspace::display(&module)
    );
    Ok(module)
}

/// Builds the cdylib of a package as `target/<package, with underscores>.wasm`
/// and returns its absolute path.
pub fn build_module(package: &str) -> Result<PathBuf> {
    build(package, |_| Ok(()))
}

fn build(package: &str, check: impl FnOnce(&Interface) -> Result<()>) -> Result<PathBuf> {
    let toolchain = Toolchain::ensure()?;
    let start = Instant::now();
    process::run(
        toolchain
            .cargo("build", FILTER_TARGET, &without_local_paths())
            .args(["--release", "--lib", "--package", package]),
    )?;
    let name = format!("{}.wasm", package.replace('-', "_"));
    let linked = toolchain
        .target_folder()
        .join(FILTER_TARGET)
        .join("release")
        .join(&name);
    let linked = std::fs::read(&linked).with_context(|| {
        let path = workspace::display(&linked);
        format!("reading {path}: has {package} the crate type cdylib?")
    })?;
    check(&Interface::of(&linked)?)?;
    let module = wasm::without_custom_sections(&linked)?;
    ensure!(
        !wasm::contains(&module, TRAP_HEADER),
        "the module has the feature {TRAP_FEATURE}, which is for tests only"
    );
    let path = workspace::target().join(&name);
    write_whole(&path, &module)?;
    eprintln!(
        "{}: {} KiB, built by {} in {:.1} s",
        workspace::display(&path),
        module.len().div_ceil(1024),
        toolchain.version()?,
        start.elapsed().as_secs_f64()
    );
    Ok(path)
}

fn check(interface: &Interface) -> Result<()> {
    let unused = wasm::check_imports(&interface.imports, &read_list(IMPORTS)?)
        .map_err(|error| with_way_out(&error, IMPORTS))?;
    wasm::check_exports(&interface.exports, &read_list(EXPORTS)?)
        .map_err(|error| with_way_out(&error, EXPORTS))?;
    eprintln!(
        "imports: {} of the {} that are allowed; exports: {}, as listed",
        interface.imports.len(),
        interface.imports.len() + unused.len(),
        interface.exports.len()
    );
    Ok(())
}

fn with_way_out(error: &anyhow::Error, list: &str) -> anyhow::Error {
    anyhow!("{error}if that is meant, `cargo xtask build --accept` changes {list}")
}

fn accept(interface: &Interface) -> Result<()> {
    for (list, lines) in [(IMPORTS, &interface.imports), (EXPORTS, &interface.exports)] {
        let path = workspace::root().join(list);
        let text = std::fs::read_to_string(&path).with_context(|| format!("reading {list}"))?;
        write_whole(&path, wasm::relist(&text, lines).as_bytes())?;
    }
    Ok(())
}

fn read_list(list: &str) -> Result<BTreeSet<String>> {
    let text = std::fs::read_to_string(workspace::root().join(list))
        .with_context(|| format!("reading {list}"))?;
    Ok(wasm::list(&text))
}

/// Flags that keep the paths of this machine, and the name of its mirror of
/// crates.io, out of the module's panic messages.
fn without_local_paths() -> Vec<String> {
    let home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(std::env::home_dir()?.join(".cargo")));
    let Some(home) = home else {
        return Vec::new();
    };
    let Ok(registries) = std::fs::read_dir(home.join("registry").join("src")) else {
        return Vec::new();
    };
    let mut paths: Vec<_> = registries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    paths.sort();
    paths
        .iter()
        .map(|path| format!("--remap-path-prefix={}=crates", path.display()))
        .collect()
}

/// Replaces a file in one step: Envoy may be about to read it.
fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let write = || -> Result<()> {
        let folder = path.parent().context("a file has a folder")?;
        let mut file = tempfile::Builder::new()
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
            .tempfile_in(folder)?;
        std::io::Write::write_all(&mut file, bytes)?;
        file.persist(path)?;
        Ok(())
    };
    write().with_context(|| format!("writing {}", workspace::display(path)))
}
