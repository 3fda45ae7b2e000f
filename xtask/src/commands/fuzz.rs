//! `cargo xtask fuzz`: libFuzzer looks for bytes that break what must hold for any bytes.
//!
//! The targets are functions of `fuzz/src`, and their corpora are replayed by the ordinary
//! tests; this is for finding what nobody has thought of.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::process;
use crate::tools::cargo_fuzz::cargo_fuzz_path;
use crate::workspace;

/// The longest input that is made.
const LONGEST: u32 = 4_096;
/// The longest input that is kept in the repository.
const LONGEST_KEPT: u32 = 1_024;
/// About so many bytes of a corpus are kept in the repository.
const LARGEST_CORPUS: u64 = 45_000;

/// Arguments of the command.
#[derive(clap::Args)]
pub struct Arguments {
    /// Run only this target.
    target: Option<String>,
    /// How long each target runs.
    #[arg(long, default_value_t = 300)]
    seconds: u32,
    /// Then put what was found into fuzz/corpus: a small set that reaches as much.
    #[arg(long)]
    keep: bool,
}

/// Runs the targets one after the other; fails if one found something.
pub fn run(arguments: &Arguments) -> Result<()> {
    let targets: Vec<String> = targets()?
        .into_iter()
        .filter(|target| arguments.target.as_ref().is_none_or(|only| only == target))
        .collect();
    if targets.is_empty() {
        bail!(
            "there is no such target; there are: {}",
            self::targets()?.join(", ")
        );
    }
    let programs = build()?;
    let mut broken = Vec::new();
    println!("target         executions   a second     inputs");
    for target in targets {
        let (found, success) = fuzz(&programs, &target, arguments.seconds)?;
        println!(
            "{target:<14} {:>10} {:>10} {:>10}",
            found.executions, found.per_second, found.inputs
        );
        if !success {
            broken.push(target);
        } else if arguments.keep {
            keep(&programs, &target)?;
        }
    }
    if !broken.is_empty() {
        bail!(
            "{} broke: the input is in {}, and its program runs it again with that file as its argument",
            broken.join(" and "),
            workspace::display(&folder("artifacts")),
        );
    }
    Ok(())
}

/// What a run of a target did.
#[derive(Debug, Default, PartialEq, Eq)]
struct Found {
    executions: u64,
    per_second: u64,
    /// Inputs that reached something new.
    inputs: u64,
}

impl Found {
    /// Takes in a line such as `stat::number_of_executed_units: 25224`.
    fn take(&mut self, line: &str) {
        let Some((name, value)) = line
            .strip_prefix("stat::")
            .and_then(|stat| stat.split_once(':'))
        else {
            return;
        };
        let value = value.trim().parse().unwrap_or(0);
        match name {
            "number_of_executed_units" => self.executions = value,
            "average_exec_per_sec" => self.per_second = value,
            "new_units_added" => self.inputs = value,
            _ => {}
        }
    }
}

/// Where runs keep what they find, below `target/`.
fn folder(what: &str) -> PathBuf {
    workspace::target().join("fuzz").join(what)
}

fn corpus(target: &str) -> PathBuf {
    workspace::root().join("fuzz/corpus").join(target)
}

/// The names of the targets: each is a program.
fn targets() -> Result<Vec<String>> {
    let folder = workspace::root().join("fuzz/libfuzzer/targets");
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
        let name = entry?.file_name();
        let name = Path::new(&name).file_stem().and_then(|stem| stem.to_str());
        names.extend(name.map(str::to_owned));
    }
    names.sort();
    Ok(names)
}

/// Builds the programs and returns the folder they are in.
fn build() -> Result<PathBuf> {
    let tool = cargo_fuzz_path()?;
    let build = folder("build");
    process::run(
        Command::new(tool)
            .args(["fuzz", "build", "--sanitizer", "none", "--fuzz-dir"])
            .arg(workspace::root().join("fuzz/libfuzzer"))
            .arg("--target-dir")
            .arg(&build)
            // It runs cargo at the folder it is called in.
            .current_dir(workspace::root().join("fuzz/libfuzzer"))
            .env("RUSTC_BOOTSTRAP", "1"),
    )?;
    // Below the name of the machine's own target.
    let machines = std::fs::read_dir(&build).context("what was built")?;
    machines
        .filter_map(|entry| Some(entry.ok()?.path().join("release")))
        .find(|folder| folder.join("record").is_file())
        .context("cargo-fuzz built no program")
}

fn fuzz(programs: &Path, target: &str, seconds: u32) -> Result<(Found, bool)> {
    let (work, artifacts) = (
        folder("corpus").join(target),
        folder("artifacts").join(target),
    );
    for folder in [&work, &artifacts] {
        std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    let mut child = Command::new(programs.join(target))
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-max_len={LONGEST}"))
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .args(["-timeout=10", "-rss_limit_mb=2048", "-print_final_stats=1"])
        .arg(&work)
        .arg(corpus(target))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {target}"))?;
    let lines = BufReader::new(child.stderr.take().context("stderr was piped")?).lines();
    let mut found = Found::default();
    let mut said = Vec::new();
    for line in lines.map_while(Result::ok) {
        found.take(&line);
        // Its progress is nobody's business, and what it says last is only if it fails.
        if !line.starts_with('#') && !line.starts_with("\tNEW_") {
            said.push(line);
        }
    }
    let success = child.wait()?.success();
    if !success {
        eprintln!("{}", said.join("\n"));
    }
    Ok((found, success))
}

/// Replaces the corpus in the repository by a small one that reaches what all inputs reach.
fn keep(programs: &Path, target: &str) -> Result<()> {
    let (kept, least) = (corpus(target), folder("least").join(target));
    if least.exists() {
        std::fs::remove_dir_all(&least).context("the last small corpus")?;
    }
    std::fs::create_dir_all(&least)?;
    process::capture(
        Command::new(programs.join(target))
            .args(["-set_cover_merge=1", "-rss_limit_mb=2048"])
            .arg(format!("-max_len={LONGEST_KEPT}"))
            .arg(&least)
            .arg(&kept)
            .arg(folder("corpus").join(target)),
    )?;
    let mut inputs = Vec::new();
    for entry in std::fs::read_dir(&least)? {
        let entry = entry?;
        inputs.push((entry.metadata()?.len(), entry.path()));
    }
    // Small and large ones.
    inputs.sort();
    let all: u64 = inputs.iter().map(|(length, _)| length).sum();
    let step = usize::try_from(all.div_ceil(LARGEST_CORPUS))?.max(1);
    for entry in std::fs::read_dir(&kept)? {
        let entry = entry?;
        // What has a name was put there by somebody.
        if is_found(&entry.file_name().to_string_lossy()) {
            std::fs::remove_file(entry.path())?;
        }
    }
    let (mut bytes, mut count) = (0, 0);
    for (length, path) in inputs.iter().step_by(step) {
        std::fs::copy(path, kept.join(path.file_name().context("a file")?))?;
        bytes += length;
        count += 1;
    }
    println!("{target:<14} keeps {count} inputs of {bytes} bytes");
    Ok(())
}

/// Whether a file has a name that libFuzzer gives: the SHA-1 of the input.
fn is_found(name: &str) -> bool {
    name.len() == 40 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_of_libfuzzer_say_what_it_did() {
        let mut found = Found::default();
        for line in [
            "#25224\tDONE   cov: 5678 ft: 20000 corp: 900/300Kb lim: 4096 exec/s: 84",
            "Done 25224 runs in 301 second(s)",
            "stat::number_of_executed_units: 25224",
            "stat::average_exec_per_sec:     83",
            "stat::new_units_added:          900",
        ] {
            found.take(line);
        }
        let expected = Found {
            executions: 25_224,
            per_second: 83,
            inputs: 900,
        };
        assert_eq!(found, expected);
    }

    #[test]
    fn every_target_has_a_corpus() {
        let targets = targets().unwrap();
        assert!(targets.len() >= 6, "{targets:?}");
        for target in targets {
            assert!(corpus(&target).is_dir(), "{target}");
        }
    }
}
