//! `cargo xtask bench --instructions`: how many instructions of Envoy's worker a request takes,
//! by Valgrind's callgrind.
//!
//! Apart from the times because these hardly vary: what else the machine does is not in
//! them. What they leave out is how long an instruction takes, mostly the waiting for
//! memory; the misses of the first instruction cache say something of that.

use std::collections::BTreeMap;
use std::fs::{File, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use tempfile::TempDir;
use tokio::process::Command;
use tollgate_harness::{Client, Envoy, EnvoyOptions};

use super::backend;
use super::variant::{self, Variant};

/// Requests that are counted at a time, one after the other on one connection.
const REQUESTS: u32 = 100;
/// How often they are counted.
const WINDOWS: u32 = 12;
/// Until then everything has been asked, and a tick has passed: Tollgate learns on ticks how
/// to save itself a read.
const WARM_UP: Duration = Duration::from_secs(3);
const LEAST_WARM_UP_REQUESTS: u32 = 200;
/// The figures of one variant, for each request.
#[derive(Debug, Serialize)]
pub struct Figures {
    pub name: &'static str,
    /// Instructions of the worker's thread.
    pub instructions: f64,
    /// The above less that of `none`.
    pub added_instructions: f64,
    /// Misses of a first instruction cache as this machine's is, less those of `none`.
    pub added_misses: f64,
}

/// The JSON that is printed.
#[derive(Debug, Serialize)]
pub struct Results {
    pub requests: u32,
    pub variants: Vec<Figures>,
}

/// Measures these variants, of which the first is the one that the others are compared with.
pub async fn measure(
    envoy: &Path,
    valgrind: &Path,
    modules: &BTreeMap<&str, PathBuf>,
    variants: &[Variant],
) -> Result<Results> {
    let upstream = variant::upstream(envoy).await?;
    let service_management = backend::start().await?;
    let mut base = None;
    let mut figures = Vec::new();
    for variant in variants {
        let module = variant.package().and_then(|package| modules.get(package));
        let options = variant.options(
            module.cloned(),
            upstream.address(),
            service_management.address(),
        );
        let counts = Counted::start(envoy, valgrind, options)
            .await?
            .requests(*variant)
            .await
            .with_context(|| format!("variant {}", variant.name()))?;
        let base = base.get_or_insert(counts);
        eprintln!(
            "{:<10} {:.0} instructions a request",
            variant.name(),
            counts.instructions
        );
        figures.push(Figures {
            name: variant.name(),
            instructions: counts.instructions,
            added_instructions: counts.instructions - base.instructions,
            added_misses: counts.misses - base.misses,
        });
    }
    Ok(Results {
        requests: REQUESTS,
        variants: figures,
    })
}

/// What the worker has executed.
#[derive(Clone, Copy)]
struct Counts {
    instructions: f64,
    misses: f64,
}

/// An Envoy under callgrind, which is not counting yet.
struct Counted {
    envoy: Envoy,
    control: PathBuf,
    folder: TempDir,
    /// Dumps so far; they are numbered from 1.
    dumps: u32,
}

impl Counted {
    async fn start(envoy: &Path, valgrind: &Path, options: EnvoyOptions) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("tollgate-callgrind-")
            .tempdir()?;
        let script = folder.path().join("envoy");
        // A script, because it is to be started in the place of Envoy.
        let mut file = File::create(&script)?;
        writeln!(
            file,
            "#!/bin/sh\nexec '{}' --tool=callgrind --instr-atstart=no --cache-sim=yes \
             --separate-threads=yes '--callgrind-out-file={}/out' '{}' \"$@\"",
            valgrind.display(),
            folder.path().display(),
            envoy.display()
        )?;
        file.set_permissions(Permissions::from_mode(0o755))?;
        drop(file);
        Ok(Self {
            envoy: Envoy::start(EnvoyOptions {
                executable: Some(script),
                ..options
            })
            .await?,
            control: valgrind.with_file_name("callgrind_control"),
            folder,
            dumps: 0,
        })
    }

    /// The counts for each request of this variant.
    async fn requests(mut self, variant: Variant) -> Result<Counts> {
        let client = self.envoy.client()?;
        let warm = Instant::now() + WARM_UP;
        let mut warmed_up = 0;
        while warmed_up < LEAST_WARM_UP_REQUESTS || Instant::now() < warm {
            request(&client, variant).await?;
            warmed_up += 1;
        }
        self.control(&["--instr=on"]).await?;
        // What is counted is translated anew, and once.
        for _ in 0..LEAST_WARM_UP_REQUESTS / 10 {
            request(&client, variant).await?;
        }
        self.control(&["--zero"]).await?;
        // Time passes as ever, while requests are slowed down, so ticks would weigh too much.
        // In the best of these there is none.
        let mut least = None;
        for _ in 0..WINDOWS {
            for _ in 0..REQUESTS {
                request(&client, variant).await?;
            }
            let counted = self.dump().await?;
            least = Some(least.map_or(counted, |least: (u64, u64)| least.min(counted)));
        }
        let (instructions, misses) = least.context("nothing was counted")?;
        let each = |count: u64| count as f64 / f64::from(REQUESTS);
        Ok(Counts {
            instructions: each(instructions),
            misses: each(misses),
        })
    }

    /// Instructions and misses of the worker since the last dump.
    async fn dump(&mut self) -> Result<(u64, u64)> {
        self.control(&["--dump"]).await?;
        self.dumps += 1;
        let prefix = format!("out.{}-", self.dumps);
        let mut most = None;
        for entry in std::fs::read_dir(self.folder.path())? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(&prefix) {
                most = most.max(Some(totals(&std::fs::read_to_string(entry.path())?)?));
            }
        }
        // One worker serves, so its thread is the one that has executed most.
        most.context("callgrind has dumped nothing")
    }

    /// Tells callgrind what to do, and waits until it has.
    async fn control(&self, what: &[&str]) -> Result<()> {
        let output = Command::new(&self.control)
            .args(what)
            .arg(self.envoy.pid().to_string())
            .stdin(Stdio::null())
            .output()
            .await
            .with_context(|| format!("running {}", self.control.display()))?;
        ensure!(
            output.status.success(),
            "callgrind_control {what:?} ended with {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }
}

async fn request(client: &Client, variant: Variant) -> Result<()> {
    let headers = [("x-api-key", variant.key())];
    let reply = client.get("/v1/orders", &headers).await?;
    ensure!(reply.status == 200, "answered with {}", reply.status);
    Ok(())
}

/// Instructions and misses of the first instruction cache in a dump of callgrind.
fn totals(dump: &str) -> Result<(u64, u64)> {
    let line = |name: &str| {
        let mut lines = dump.lines();
        lines.find_map(|line| line.strip_prefix(name))
    };
    let events = line("events:").context("a dump without events")?;
    let totals = line("totals:").context("a dump without totals")?;
    let of = |event: &str| {
        let place = events.split_whitespace().position(|it| it == event)?;
        // Zeros at the end are left out.
        let number = totals.split_whitespace().nth(place).unwrap_or("0");
        number.parse().ok()
    };
    of("Ir")
        .zip(of("I1mr"))
        .context("a dump without instructions or misses")
}

/// Prints the figures.
pub fn print(results: &Results) {
    println!(
        "{:<10} {:>13} {:>8} {:>13}",
        "variant", "instructions", "added", "added misses"
    );
    for v in &results.variants {
        println!(
            "{:<10} {:>13.0} {:>8.0} {:>13.0}",
            v.name, v.instructions, v.added_instructions, v.added_misses
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_are_found_by_the_names_of_the_events() {
        let dump =
            "version: 1\npositions: line\nevents: Dr Ir I1mr\nfn=(1)\n1 2 3 4\ntotals: 5 70 9\n";
        assert_eq!(totals(dump).unwrap(), (70, 9));
        let idle = "events: Ir Dr I1mr\ntotals: 3\n";
        assert_eq!(totals(idle).unwrap(), (3, 0));
        totals("events: Ir I1mr\n").unwrap_err();
        totals("events: Ir\ntotals: 5\n").unwrap_err();
    }
}
