//! `cargo xtask bench`: what Tollgate costs, beside no filter, a hello-world filter on the
//! stock SDK and Envoy's native filters. All variants are measured in one run, in
//! alternating rounds, because only figures of the same machine at the same time
//! compare. The figure that counts is Envoy's CPU time per request; requests per second
//! and latency depend on what else the machine does.
//!
//! With `--instructions`, `--scale`, `--latency`, `--memory` or `--economy` it measures something
//! else instead.

mod backend;
mod economy;
mod gateway;
mod inside;
mod instructions;
mod latency;
mod load;
mod memory;
pub mod scale;
mod token;
mod variant;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use tollgate_harness::{Envoy, EnvoyOptions};

use load::load;
use variant::Variant;

use super::build::{build_filter, build_module};
use crate::tools::{envoy::envoy_path, valgrind::valgrind_path, wrk::wrk_path};

/// Arguments of the command.
#[derive(clap::Args)]
pub struct Arguments {
    /// Print the results as JSON, or write that to a file and print a table
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    json: Option<PathBuf>,
    /// Instead: instructions, by Valgrind, which vary little from run to run
    #[arg(long, group = "what")]
    instructions: bool,
    /// Instead: the cost by applications, rules, services, limits and workers (curves)
    #[arg(long, group = "what")]
    scale: bool,
    /// Instead: latencies at half of the saturating rate, at a constant rate
    #[arg(long, group = "what")]
    latency: bool,
    /// Instead: memory, and the time to come up
    #[arg(long, group = "what")]
    memory: bool,
    /// Instead: calls to service management for a million requests, beside a formula
    #[arg(long, group = "what")]
    economy: bool,
    /// With one of the last four: fewer sizes and rounds
    #[arg(long, requires = "what", conflicts_with = "instructions")]
    quick: bool,
    /// Rounds for each variant
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Turns of each variant in a round, after one that warms up
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=100))]
    turns: u32,
    /// Length of a turn, in seconds
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=60))]
    seconds: u32,
    /// Connections that are kept busy
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=1024))]
    connections: u32,
    /// Only these; `none` is always measured, because the others are compared with it
    #[arg(long, value_enum, value_delimiter = ',')]
    variants: Vec<Variant>,
}

impl Arguments {
    fn variants(&self) -> Vec<Variant> {
        use clap::ValueEnum;
        let all = Variant::value_variants().iter().copied();
        all.filter(|v| *v == Variant::None || self.variants.is_empty() || self.variants.contains(v))
            .collect()
    }
}

/// Measures and prints the results to stdout, progress to stderr.
pub fn run(arguments: &Arguments) -> Result<()> {
    if arguments.economy {
        let rows = economy::measure(arguments.quick)?;
        return arguments.show(&rows, |rows| economy::print(rows));
    }
    let envoy = envoy_path()?;
    let modules = arguments.modules()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    if arguments.instructions {
        let variants = arguments.variants();
        let valgrind = valgrind_path()?;
        let measure = instructions::measure(&envoy, &valgrind, &modules, &variants);
        return arguments.show(&runtime.block_on(measure)?, instructions::print);
    }
    let wrk = wrk_path()?;
    if arguments.scale {
        let tools = scale::Tools {
            envoy: &envoy,
            wrk: &wrk,
            module: modules.get("tollgate").cloned().context("no module")?,
            quick: arguments.quick,
        };
        let results = runtime.block_on(scale::measure(&tools))?;
        return arguments.show(&results, scale::print);
    }
    if arguments.latency {
        let (rounds, seconds) = if arguments.quick { (3, 3) } else { (9, 6) };
        let measure = latency::measure(&envoy, &wrk, &modules, rounds, seconds);
        return arguments.show(&runtime.block_on(measure)?, latency::print);
    }
    if arguments.memory {
        let starts = if arguments.quick { 3 } else { 7 };
        let measure = memory::measure(&envoy, &wrk, &modules, starts);
        return arguments.show(&runtime.block_on(measure)?, memory::print);
    }
    let results = runtime.block_on(measure(arguments, &envoy, &wrk, &modules))?;
    arguments.show(&results, print_table)
}

impl Arguments {
    /// Builds the modules that are needed.
    fn modules(&self) -> Result<BTreeMap<&'static str, PathBuf>> {
        let packages = if self.scale {
            vec!["tollgate"]
        } else if self.memory || self.latency {
            vec!["hello-world", "tollgate"]
        } else {
            let variants = self.variants().into_iter();
            variants.filter_map(Variant::package).collect()
        };
        let mut modules = BTreeMap::new();
        for package in packages {
            if let Entry::Vacant(unbuilt) = modules.entry(package) {
                unbuilt.insert(match package {
                    "tollgate" => build_filter()?,
                    other => build_module(other)?,
                });
            }
        }
        Ok(modules)
    }

    /// Prints results as they were asked for.
    fn show<T: Serialize>(&self, results: &T, print: impl FnOnce(&T)) -> Result<()> {
        match &self.json {
            Some(file) if file.as_os_str() == "-" => {
                println!("{}", serde_json::to_string_pretty(results)?);
                return Ok(());
            }
            Some(file) => std::fs::write(file, serde_json::to_string_pretty(results)? + "\n")
                .with_context(|| format!("writing {}", file.display()))?,
            None => {}
        }
        print(results);
        Ok(())
    }
}

/// The JSON that is printed.
#[derive(Debug, Serialize)]
struct Results {
    variants: Vec<Figures>,
}

/// Medians over the rounds.
#[derive(Debug, Serialize)]
struct Figures {
    name: &'static str,
    /// Envoy's CPU time, all threads, per request.
    cpu_us_per_request: f64,
    /// The above less that of `none` in the same round, so that what slows the whole
    /// machine down for a while cancels out.
    added_cpu_us: f64,
    /// The least of all rounds. Whatever else the machine does only ever adds, so where it
    /// is busy this is the steadier figure.
    least_cpu_us: f64,
    requests_per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
    /// Envoy's resident memory after the last round.
    rss_mib: f64,
    /// Size of the module, if the variant has one.
    module_bytes: Option<u64>,
}

/// A variant, and what is known of it so far.
struct Contender {
    variant: Variant,
    module: Option<PathBuf>,
    options: EnvoyOptions,
    rounds: Vec<Round>,
    rss_mib: f64,
}

struct Round {
    cpu_us_per_request: f64,
    /// Share of one core that Envoy used. Well below 1, it waited for the machine, the load
    /// generator or the upstream, and a request costs it a little more.
    busy: f64,
    requests_per_second: f64,
    p50_us: f64,
    p99_us: f64,
}

impl Round {
    /// The medians of some turns.
    fn of(turns: &[Self]) -> Self {
        let over = |figure: &dyn Fn(&Self) -> f64| median(turns.iter().map(figure).collect());
        Self {
            cpu_us_per_request: over(&|it| it.cpu_us_per_request),
            busy: over(&|it| it.busy),
            requests_per_second: over(&|it| it.requests_per_second),
            p50_us: over(&|it| it.p50_us),
            p99_us: over(&|it| it.p99_us),
        }
    }
}

async fn measure(
    arguments: &Arguments,
    envoy: &Path,
    wrk: &Path,
    modules: &BTreeMap<&str, PathBuf>,
) -> Result<Results> {
    let upstream = variant::upstream(envoy).await?;
    let service_management = backend::start().await?;
    let mut contenders = Vec::new();
    for variant in arguments.variants() {
        let module = variant.package().and_then(|package| modules.get(package));
        let options = variant.options(
            module.cloned(),
            upstream.address(),
            service_management.address(),
        );
        contenders.push(Contender {
            variant,
            module: module.cloned(),
            options: EnvoyOptions {
                executable: Some(envoy.to_owned()),
                ..options
            },
            rounds: Vec::new(),
            rss_mib: 0.0,
        });
    }
    for round in 0..arguments.rounds {
        // Where a process lies in memory makes a difference of some microseconds that stays
        // for its lifetime. So each round has processes of its own.
        let mut running = Vec::new();
        for contender in &contenders {
            let envoy = Envoy::start(contender.options.clone())
                .await
                .with_context(|| format!("variant {}", contender.variant.name()))?;
            // Connections, caches, and the answers that Tollgate asks for.
            contender.turn(&envoy, arguments, wrk).await?;
            running.push((envoy, Vec::new()));
        }
        for turn in 0..arguments.turns {
            let count = contenders.len();
            for place in 0..count {
                // Each variant has each place in the order equally often.
                let next = (place + (turn + round) as usize) % count;
                let (envoy, turns) = &mut running[next];
                turns.push(contenders[next].turn(envoy, arguments, wrk).await?);
            }
        }
        for (contender, (envoy, turns)) in contenders.iter_mut().zip(running) {
            let figures = Round::of(&turns);
            eprintln!(
                "round {}/{}  {:<10} {:6.2} µs of CPU a request, {:6.0} requests/s, Envoy {:.0}% busy",
                round + 1,
                arguments.rounds,
                contender.variant.name(),
                figures.cpu_us_per_request,
                figures.requests_per_second,
                figures.busy * 100.0,
            );
            contender.rounds.push(figures);
            contender.rss_mib = envoy.rss_mib()?;
        }
    }
    let base: Vec<f64> = contenders
        .iter()
        .filter(|c| c.variant == Variant::None)
        .flat_map(|c| c.rounds.iter().map(|r| r.cpu_us_per_request))
        .collect();
    let variants = contenders
        .iter()
        .map(|c| c.figures(&base))
        .collect::<Result<_>>()?;
    Ok(Results { variants })
}

impl Contender {
    /// Load on its Envoy for a while.
    async fn turn(&self, envoy: &Envoy, arguments: &Arguments, wrk: &Path) -> Result<Round> {
        let url = format!("{}/v1/orders", envoy.url());
        let stats_before = envoy.stats("").await?;
        let cpu_before = envoy.cpu_time()?;
        let load = load(
            wrk,
            &url,
            self.variant.key(),
            arguments.connections,
            arguments.seconds,
        )
        .await?;
        let cpu = envoy.cpu_time()?.saturating_sub(cpu_before);
        let stats_after = envoy.stats("").await?;
        // Envoy's count: wrk leaves out what is under way when it stops.
        let answered = "http.ingress.downstream_rq_2xx";
        let requests = variant::get(&stats_after, answered)
            .saturating_sub(variant::get(&stats_before, answered));
        ensure!(
            requests >= load.requests,
            "{}: {} requests were made, {requests} were answered with 2xx",
            self.variant.name(),
            load.requests
        );
        self.variant.prove(
            &stats_before,
            &stats_after,
            requests,
            arguments.connections.into(),
        )?;
        Ok(Round {
            cpu_us_per_request: cpu.as_secs_f64() * 1e6 / requests as f64,
            busy: cpu.as_secs_f64() * 1e6 / load.microseconds as f64,
            requests_per_second: load.requests_per_second(),
            p50_us: load.p50_us as f64,
            p99_us: load.p99_us as f64,
        })
    }

    fn figures(&self, base: &[f64]) -> Result<Figures> {
        let over =
            |figure: &dyn Fn(&Round) -> f64| median(self.rounds.iter().map(figure).collect());
        let module_bytes = self
            .module
            .as_ref()
            .map(|path| std::fs::metadata(path).map(|m| m.len()))
            .transpose()?;
        Ok(Figures {
            name: self.variant.name(),
            cpu_us_per_request: over(&|r| r.cpu_us_per_request),
            added_cpu_us: median(
                self.rounds
                    .iter()
                    .zip(base)
                    .map(|(r, b)| r.cpu_us_per_request - b)
                    .collect(),
            ),
            least_cpu_us: self
                .rounds
                .iter()
                .map(|r| r.cpu_us_per_request)
                .fold(f64::INFINITY, f64::min),
            requests_per_second: over(&|r| r.requests_per_second),
            p50_ms: over(&|r| r.p50_us / 1e3),
            p99_ms: over(&|r| r.p99_us / 1e3),
            rss_mib: self.rss_mib,
            module_bytes,
        })
    }
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    let middle = figures.len() / 2;
    if figures.len() % 2 == 1 {
        figures[middle]
    } else {
        (figures[middle - 1] + figures[middle]) / 2.0
    }
}

fn print_table(results: &Results) {
    println!(
        "{:<10} {:>10} {:>9} {:>9} {:>11} {:>8} {:>8} {:>8} {:>10}",
        "variant",
        "CPU µs/req",
        "added µs",
        "least µs",
        "requests/s",
        "p50 ms",
        "p99 ms",
        "RSS MiB",
        "module KiB"
    );
    for v in &results.variants {
        let module = v
            .module_bytes
            .map(|bytes| (bytes / 1024).to_string())
            .unwrap_or_default();
        println!(
            "{:<10} {:>10.2} {:>9.2} {:>9.2} {:>11.0} {:>8.2} {:>8.2} {:>8.1} {:>10}",
            v.name,
            v.cpu_us_per_request,
            v.added_cpu_us,
            v.least_cpu_us,
            v.requests_per_second,
            v.p50_ms,
            v.p99_ms,
            v.rss_mib,
            module
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_lies_between_the_two_in_the_middle() {
        assert_eq!(median(vec![4.0, 1.0, 100.0, 2.0]), 3.0);
        assert_eq!(median(vec![9.0, 1.0, 2.0]), 2.0);
    }
}
