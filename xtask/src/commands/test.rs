//! `cargo xtask test`: every test there is, in stages from the cheapest to the
//! most expensive. A stage that fails does not keep the later ones from running,
//! unless they need what it makes.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use super::build::{build_filter, build_filter_that_traps};
use super::conformance;
use crate::process;
use crate::tools::envoy::{self, envoy_path};
use crate::tools::node::node_path;
use crate::tools::oidc::oidc_path;
use crate::tools::test_runner::test_runner_path;
use crate::tools::toolchain::{TEST_TARGET, Toolchain};
use crate::workspace;

/// Arguments of the command.
#[derive(clap::Args)]
pub struct Arguments {
    /// Run only tests whose name contains this.
    filter: Option<String>,
    /// Run only this stage; can be given several times.
    #[arg(long, value_enum)]
    only: Vec<Stage>,
}

/// A stage, in the order of running.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Stage {
    /// Unit, property and fake-host tests on this machine.
    Native,
    /// The filter's unit tests compiled to wasm32, in Node.js.
    Wasm32,
    /// Build the module and check what it imports and exports.
    Module,
    /// The module in a real Envoy.
    EndToEnd,
    /// The stand-in against captures of the real backend, and the module in Envoy against it.
    Conformance,
}

impl Stage {
    fn name(self) -> String {
        self.to_possible_value()
            .map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

/// Runs the stages and prints the sums; fails if any test or stage did.
pub fn run(arguments: &Arguments) -> Result<()> {
    let stages = Stage::value_variants()
        .iter()
        .filter(|stage| arguments.only.is_empty() || arguments.only.contains(stage));
    let filter = arguments.filter.as_deref();
    let mut module = None;
    let mut reports = Vec::new();
    for &stage in stages {
        println!("=== {} ===", stage.name());
        let start = Instant::now();
        let mut counts = Counts::default();
        let result = match stage {
            Stage::Native => native(filter, &mut counts),
            Stage::Wasm32 => wasm32(filter, &mut counts),
            Stage::Module => build_filter().map(|path| module = Some(path)),
            Stage::EndToEnd => end_to_end(module.as_deref(), filter, &mut counts),
            Stage::Conformance => conformance(module.as_deref(), filter, &mut counts),
        };
        if let Err(error) = result {
            println!("{} failed: {error:#}", stage.name());
            // A stage can fail without a test that does: what does not compile
            // must not look like a success in the sum.
            counts.failed = counts.failed.max(1);
        }
        reports.push((stage, counts, start.elapsed()));
    }
    let total = summarize(&reports);
    println!("{} passed, {} failed", total.passed, total.failed);
    if total.failed > 0 {
        // The sum is the last line: the exit code says the rest.
        std::process::exit(1);
    }
    Ok(())
}

fn native(filter: Option<&str>, counts: &mut Counts) -> Result<()> {
    // hello-world exists as a module only.
    count_tests(
        workspace::cargo()
            .args(["test", "--no-fail-fast", "--workspace"])
            .args(["--exclude", "hello-world"])
            .args(filter),
        counts,
    )
}

fn wasm32(filter: Option<&str>, counts: &mut Counts) -> Result<()> {
    let toolchain = Toolchain::ensure()?;
    node_path()?;
    let runner = test_runner_path()?;
    count_tests(
        toolchain
            .cargo("test", TEST_TARGET, &[])
            .args(["--package", "tollgate", "--lib"])
            // Nobody debugs it in Node.js, and compiling is what this stage waits for.
            .env("CARGO_PROFILE_DEV_DEBUG", "false")
            .args(filter)
            .env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_RUNNER", runner),
        counts,
    )
}

fn end_to_end(module: Option<&Path>, filter: Option<&str>, counts: &mut Counts) -> Result<()> {
    let envoy = envoy_path()?;
    let module = module_to_test(module)?;
    let trapping = build_filter_that_traps()?;
    println!("Envoy {}", envoy::version(&envoy)?);
    count_tests(
        workspace::cargo()
            .args(["test", "--no-fail-fast", "--package", "tollgate-end-to-end"])
            .args(["--", "--ignored", "--test-threads=2"])
            .args(filter)
            .env("ENVOY", envoy)
            .env("TOLLGATE_WASM", module)
            .env("TOLLGATE_TRAP_WASM", trapping)
            .env("TOLLGATE_OIDC", oidc_path()?),
        counts,
    )
}

fn module_to_test(module: Option<&Path>) -> Result<PathBuf> {
    match module {
        Some(module) => Ok(module.to_owned()),
        None => build_filter().context("there is no module to test"),
    }
}

/// Counts as two tests: one of captures, one of decisions.
fn conformance(module: Option<&Path>, filter: Option<&str>, counts: &mut Counts) -> Result<()> {
    if filter.is_some_and(|filter| !"conformance".contains(filter)) {
        return Ok(());
    }
    let found = conformance::check(envoy_path()?, module_to_test(module)?)?;
    for differences in [found.captures, found.decisions] {
        counts.passed += u64::from(differences == 0);
        counts.failed += u64::from(differences > 0);
    }
    Ok(())
}

/// Runs a `cargo test` and adds up what it says of its tests.
fn count_tests(command: &mut Command, counts: &mut Counts) -> Result<()> {
    let success = process::observe(command, |line| {
        if let Some(more) = Counts::of_line(line) {
            counts.passed += more.passed;
            counts.failed += more.failed;
        }
    })?;
    if !success {
        bail!("{} did not succeed", process::line(command));
    }
    Ok(())
}

/// How many tests passed and failed.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Counts {
    passed: u64,
    failed: u64,
}

impl Counts {
    /// Reads a line such as `test result: ok. 5 passed; 0 failed; 1 ignored; ...`,
    /// which both libtest and wasm-bindgen-test write; no other line has counts.
    fn of_line(line: &str) -> Option<Self> {
        let rest = line.trim().strip_prefix("test result: ")?;
        let (_verdict, counts) = rest.split_once(". ")?;
        let number = |what: &str| {
            counts.split(';').find_map(|part| {
                let (number, word) = part.trim().split_once(' ')?;
                (word == what).then(|| number.parse().ok())?
            })
        };
        Some(Self {
            passed: number("passed")?,
            failed: number("failed")?,
        })
    }
}

/// Prints one line per stage and returns the sum.
fn summarize(reports: &[(Stage, Counts, Duration)]) -> Counts {
    let mut total = Counts::default();
    println!("\nstage          seconds   passed   failed");
    for (stage, counts, duration) in reports {
        println!(
            "{:<12} {:>9.1} {:>8} {:>8}",
            stage.name(),
            duration.as_secs_f64(),
            counts.passed,
            counts.failed
        );
        total.passed += counts.passed;
        total.failed += counts.failed;
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_line_has_its_counts() {
        let counts = |line| Counts::of_line(line).map(|counts| (counts.passed, counts.failed));
        assert_eq!(
            counts(
                "test result: ok. 12 passed; 0 failed; 3 ignored; 0 measured; 0 filtered out; \
                 finished in 0.01s"
            ),
            Some((12, 0))
        );
        assert_eq!(
            counts("test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 filtered out"),
            Some((1, 2))
        );
    }

    #[test]
    fn other_lines_have_no_counts() {
        for line in [
            "",
            "test result: ok",
            "test result: ok. many passed; 0 failed",
            "running 12 tests",
            "test counts::a_test_result ... ok",
            "note: test result: ok. 12 passed; 0 failed",
        ] {
            assert_eq!(Counts::of_line(line), None, "{line}");
        }
    }
}
