//! `cargo xtask conformance`: whether a backend answers as the real one was captured, and
//! whether the filter in Envoy decides as that backend does.

use std::env;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use tollgate_conformance::captures::{Capture, folder};
use tollgate_conformance::comparison::{self, Compared, Programs};
use tollgate_conformance::load::{User, load};
use tollgate_conformance::replay::{Exclusions, Replayed, replay};
use tollgate_conformance::server::Wire;

use super::build::build_filter;
use crate::tools::envoy::envoy_path;

const USER: &str = "CONFIG_INTERNAL_API_USER";
const PASSWORD: &str = "CONFIG_INTERNAL_API_PASSWORD";

/// Arguments of the command.
#[derive(clap::Args)]
pub struct Arguments {
    /// A backend that holds tests/data/dataset.yaml, such as http://127.0.0.1:3000; all
    /// usage of the applications in it is set to 0. Without it, a stand-in is started
    #[arg(long, value_name = "URL")]
    against: Option<String>,
    /// Put tests/data/dataset.yaml into it first, through its internal API, as the user of
    /// CONFIG_INTERNAL_API_USER and CONFIG_INTERNAL_API_PASSWORD
    #[arg(long, requires = "against")]
    load: bool,
}

/// Replays the captures, compares decisions, prints every difference and the sums; fails
/// if there is any.
pub fn run(arguments: &Arguments) -> Result<()> {
    let programs = Programs {
        envoy: envoy_path()?,
        module: build_filter()?,
    };
    let whom = arguments.against.as_deref().unwrap_or("a fresh stand-in");
    let found = block_on(async {
        let wire = match &arguments.against {
            Some(url) => {
                if arguments.load {
                    let variable = |name| env::var(name).with_context(|| format!("${name}"));
                    let (name, password) = (variable(USER)?, variable(PASSWORD)?);
                    println!("loading tests/data/dataset.yaml into {url}");
                    load(url, &User { name, password }).await?;
                }
                Wire::at_url(url)?
            }
            None => Wire::start().await?,
        };
        compare(wire, whom, &programs).await
    })?;
    match found.captures + found.decisions {
        0 => Ok(()),
        1 => bail!("1 difference"),
        differences => bail!("{differences} differences"),
    }
}

/// Differences that were found.
pub struct Found {
    /// Answers that are not as captured.
    pub captures: usize,
    /// Decisions of the filter that are not the backend's.
    pub decisions: usize,
}

/// The same with a stand-in, for `cargo xtask test`.
pub fn check(envoy: PathBuf, module: PathBuf) -> Result<Found> {
    let programs = Programs { envoy, module };
    block_on(async { compare(Wire::start().await?, "a fresh stand-in", &programs).await })
}

fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?
        .block_on(work)
}

async fn compare(mut wire: Wire, whom: &str, programs: &Programs) -> Result<Found> {
    let captures = Capture::read_all(&folder())?;
    println!("replaying {} captures against {whom}", captures.len());
    let replayed = replay(&mut wire, &captures, Exclusions::read()?, |_, _| {}).await?;
    summarize(&replayed);
    println!("comparing decisions of the filter in Envoy with those of {whom}");
    let start = Instant::now();
    let progress = |phase: &str| println!("  {:>5.1} s: {phase}", start.elapsed().as_secs_f64());
    let compared = comparison::compare(&mut wire, programs, progress).await?;
    summarize_decisions(&compared);
    Ok(Found {
        captures: replayed.differences.len(),
        decisions: compared.differences.len(),
    })
}

fn summarize(replayed: &Replayed) {
    for difference in &replayed.differences {
        println!("{}: {}", difference.capture, difference.what);
    }
    println!(
        "captures: {} replayed, {} excluded, {} differences ({} sequences repeated at a minute's end)",
        replayed.captures,
        replayed.excluded.len(),
        replayed.differences.len(),
        replayed.repeated
    );
    for (capture, reason) in &replayed.excluded {
        println!("  excluded: {capture}: {reason}");
    }
}

fn summarize_decisions(compared: &Compared) {
    for difference in &compared.differences {
        println!("{difference}");
    }
    println!(
        "decisions: {} compared, {} differences ({} phases cut at a minute's end)",
        compared.decisions,
        compared.differences.len(),
        compared.cuts
    );
    println!("  {} admitted by both", compared.admitted);
    for (reason, count) in &compared.refused {
        println!("  {count} refused by both: {reason}");
    }
    for (class, count) in &compared.by_design {
        println!("  {count} otherwise by design: {class}");
    }
    println!(
        "  {} times the backend's count of a limit was what had been admitted",
        compared.counts
    );
}
