//! `cargo xtask soak`: a real gateway under mixed traffic, with faults of service management and
//! new configurations and modules at random, and everything that must hold checked
//! meanwhile. What happens follows from a seed, which is printed; when exactly, also from the machine.

mod accidents;
mod books;
mod consumers;
mod memory;
mod tally;
mod traffic;
mod world;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use serde::Serialize;
use tokio::time::Instant;

use super::build::build_filter;
use super::demo::interrupt::Interrupt;
use crate::tools::envoy::envoy_path;
use accidents::Accidents;
use memory::Memory;
use tally::Tally;
use world::World;

/// Traffic between two rests, at which the books must balance.
const ROUND: Duration = Duration::from_secs(60);
/// Between two looks at Envoy.
const LOOK: Duration = Duration::from_secs(5);

/// Arguments of the command.
#[derive(clap::Args)]
pub struct Arguments {
    /// How long the traffic lasts
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=10_080))]
    minutes: u64,
    /// Where what happens comes from; a new one each time unless given
    #[arg(long)]
    seed: Option<u64>,
    /// Requests a second
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..=5_000))]
    rate: u32,
    /// A module instead of the one that is built
    #[arg(long)]
    module: Option<PathBuf>,
    /// Print the summary as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Summary {
    seed: u64,
    seconds: u64,
    #[serde(flatten)]
    traffic: tally::Figures,
    #[serde(flatten)]
    accidents: accidents::Figures,
    #[serde(flatten)]
    books: books::Figures,
    #[serde(flatten)]
    memory: memory::Figures,
    violations: Vec<String>,
}

/// Runs it and prints the summary to stdout. Fails if anything did not hold.
pub fn run(arguments: &Arguments) -> Result<()> {
    let envoy = envoy_path()?;
    let module = match &arguments.module {
        Some(module) => module.clone(),
        None => build_filter()?,
    };
    let seed = match arguments.seed {
        Some(seed) => seed,
        None => world::wall()?.subsec_nanos().into(),
    };
    eprintln!(
        "soak: seed {seed}, {} minutes, {} requests/s",
        arguments.minutes, arguments.rate
    );
    let summary = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?
        .block_on(async {
            let mut interrupt = Interrupt::listen()?;
            let world = tokio::select! {
                signal = interrupt.received() => bail!("ended by {signal}"),
                world = World::start(envoy, module) => world?,
            };
            let summary = tokio::select! {
                signal = interrupt.received() => bail!("ended by {signal}"),
                summary = soak(arguments, seed, &world) => summary,
            };
            match summary {
                Ok(summary) => Ok(summary),
                Err(error) => {
                    let log = world.envoy.lock().await.log_tail();
                    Err(anyhow!("{error:#}\nEnvoy's log ends:\n{log}"))
                }
            }
        })?;
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&summary)?);
    } else {
        print(&summary);
    }
    match summary.violations.len() {
        0 => Ok(()),
        many => bail!("{many} violations; seed {seed}"),
    }
}

async fn soak(arguments: &Arguments, seed: u64, world: &World) -> Result<Summary> {
    let tally = Tally::new(consumers::limits());
    world.introduce(&tally).await?;
    let mut accidents = Accidents::new(seed);
    let mut consumers = consumers::Consumers::new(seed);
    let mut memory = Memory::default();
    let mut books = books::Figures::default();
    let begun = Instant::now();
    let end = begun + Duration::from_secs(arguments.minutes * 60);
    while Instant::now() < end {
        let until = (Instant::now() + ROUND).min(end);
        let looks = async {
            while Instant::now() < until {
                tokio::time::sleep_until((Instant::now() + LOOK).min(until)).await;
                let envoy = world.envoy.lock().await;
                memory.look(begun.elapsed(), envoy.rss_mib()?);
                books::look(&envoy, &tally).await?;
                eprintln!(
                    "{:>5} s: {}; {}; {:.0} MiB",
                    begun.elapsed().as_secs(),
                    tally.progress(),
                    world.progress(),
                    memory.last(),
                );
            }
            anyhow::Ok(())
        };
        tokio::try_join!(
            traffic::send(world, &tally, &mut consumers, arguments.rate, until),
            accidents.befall(world, until),
            looks,
        )?;
        books = books::rest(world, &tally).await?;
    }
    memory.look(begun.elapsed(), world.envoy.lock().await.rss_mib()?);
    tally.close();
    memory.check(&tally);
    Ok(Summary {
        seed,
        seconds: begun.elapsed().as_secs(),
        traffic: tally.figures(),
        accidents: accidents.figures(),
        books,
        memory: memory.figures(),
        violations: tally.violations(),
    })
}

fn print(summary: &Summary) {
    let Summary {
        traffic,
        accidents,
        books,
        memory,
        ..
    } = summary;
    println!("seed {}, {} s", summary.seed, summary.seconds);
    println!(
        "requests    {} ({} could not be sent in time)",
        traffic.requests, traffic.behind
    );
    for (outcome, count) in &traffic.outcomes {
        println!("            {count:>8} {outcome}");
    }
    println!(
        "known       p50 {:.1} ms, p99 {:.1} ms, longest {:.1} ms",
        traffic.known_p50_ms, traffic.known_p99_ms, traffic.known_longest_ms
    );
    println!(
        "            beside 401 and 404, which depend on nobody: p99 {:.1} ms, longest {:.1} ms",
        traffic.beside_p99_ms, traffic.beside_longest_ms
    );
    println!(
        "limits      {} windows used up, of {}",
        traffic.full_windows, traffic.windows
    );
    println!(
        "faults      {} {:?}, reloads {} (modules among them {})",
        accidents.faults, accidents.by_kind, accidents.reloads, accidents.modules
    );
    println!(
        "usage       {} units admitted, {} acknowledged, {} sent again for want of an answer, \
         {} in service management",
        books.admitted, books.acknowledged, books.resent, books.arrived
    );
    println!(
        "calls       {} questions, {} refreshes, {} reports, {} failures",
        books.questions, books.refreshes, books.reports, books.failures
    );
    println!(
        "memory      {:.1} MiB at the start, {:.1} at the end, {:.1} at most, {:+.2} MiB a \
         minute over the second half",
        memory.first_mib, memory.last_mib, memory.most_mib, memory.slope_mib_a_minute
    );
    println!("violations  {}", summary.violations.len());
    for violation in &summary.violations {
        println!("            {violation}");
    }
}
