//! `cargo xtask gateways`: several gateways that share one limit, before one backend that
//! applies reports late. How far is the limit overrun, and what does it cost in calls?
//!
//! With real Envoys, beside as many that report and look every ten seconds, under the same
//! load at the same time; or, with `--simulate`, the filter's core in virtual time.

mod live;
mod simulated;

use std::time::Duration;

use anyhow::Result;
use clap::ValueEnum;
use serde::Serialize;

/// Arguments of the command.
#[derive(clap::Args)]
pub struct Arguments {
    /// How many gateways: with --simulate several numbers (1,4,16,64 unless given)
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..=64))]
    count: Vec<u16>,
    /// What the application may use a minute, on all gateways together
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(1..))]
    limit: u64,
    /// Requests a second, over all gateways
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=5_000))]
    rate: u32,
    /// How long, from the first second of a minute; only whole minutes with --simulate
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=3_600))]
    seconds: u32,
    /// How long after its acknowledgement the backend applies a report: with --simulate
    /// several (50ms,500ms,2s unless given)
    #[arg(long, value_delimiter = ',', value_parser = humantime::parse_duration)]
    lag: Vec<Duration>,
    /// How the limit is shared
    #[arg(long, value_enum, default_value_t = Accuracy::Strict)]
    accuracy: Accuracy,
    /// Simulate instead of starting Envoys, and show every accuracy
    #[arg(long)]
    simulate: bool,
    /// With --simulate: how many gateways each is told that there are, if that is another number
    #[arg(long, requires = "simulate", value_parser = clap::value_parser!(u16).range(1..=1_024))]
    told: Option<u16>,
    /// With --simulate: how the load is spread
    #[arg(long, value_enum, default_value_t = Load::Even)]
    load: Load,
    /// Print the figures as JSON
    #[arg(long)]
    json: bool,
}

/// As in the filter's configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
enum Accuracy {
    Strict,
    Eager,
}

/// How the load is spread over the gateways.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Load {
    /// As much on each.
    Even,
    /// Half on the first, half of the rest on the second, and so on.
    Uneven,
    /// All on one, and on another every 20 seconds.
    Moving,
}

/// The figures of one set of gateways.
#[derive(Clone, Debug, Serialize)]
struct Figures {
    gateways: u16,
    limit: u64,
    /// In all windows together.
    admitted: u64,
    windows: usize,
    /// Admitted / limit - 1 where it is above 0: the mean of all windows.
    overrun: f64,
    worst_overrun: f64,
    calls_per_second_per_gateway: f64,
    /// Requests refused early, as a part of all.
    early: f64,
    /// Of limit and offer the smaller: the part that was not admitted.
    unused: f64,
}

impl Figures {
    fn percentages(&self) -> String {
        format!(
            "{:>7.1}% {:>7.1}% {:>7.1}% {:>7.1}% {:>9.2}",
            self.overrun * 100.0,
            self.worst_overrun * 100.0,
            self.unused * 100.0,
            self.early * 100.0,
            self.calls_per_second_per_gateway,
        )
    }
}

const COLUMNS: &str = " overrun    worst   unused    early   calls/s";

/// Measures or simulates, and prints the figures to stdout.
pub fn run(arguments: &Arguments) -> Result<()> {
    if arguments.simulate {
        simulated::run(arguments)
    } else {
        live::run(arguments)
    }
}
