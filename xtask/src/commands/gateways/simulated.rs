//! The same in virtual time, for more gateways than a machine can run.

use anyhow::Result;
use serde::Serialize;
use tollgate_simulation::{self as simulation, Mode, Period, Setup};

use super::{Arguments, COLUMNS, Figures, Load};

/// Whole windows that are simulated, unless the arguments ask for more.
const WINDOWS: u32 = 5;

#[derive(Serialize)]
struct Row {
    accuracy: &'static str,
    lag_ms: u64,
    #[serde(flatten)]
    figures: Figures,
}

/// Simulates every combination and prints a row of each.
pub fn run(arguments: &Arguments) -> Result<()> {
    let counts = match arguments.count.as_slice() {
        [] => vec![1, 4, 16, 64],
        some => some.to_vec(),
    };
    let lags = match arguments.lag.as_slice() {
        [] => vec![50, 500, 2_000],
        some => some
            .iter()
            .map(|lag| u64::try_from(lag.as_millis()))
            .collect::<Result<_, _>>()?,
    };
    if !arguments.json {
        println!("accuracy      lag  gateways {COLUMNS}");
    }
    let mut rows = Vec::new();
    for (accuracy, mode) in [
        ("strict", Mode::Strict),
        ("eager", Mode::Eager),
        ("fixed 10 s", Mode::FixedFlush),
    ] {
        for lag_ms in &lags {
            for gateways in &counts {
                let row = Row {
                    accuracy,
                    lag_ms: *lag_ms,
                    figures: simulate(arguments, *gateways, *lag_ms, mode),
                };
                if !arguments.json {
                    let figures = row.figures.percentages();
                    println!("{accuracy:<10} {lag_ms:>4}ms {gateways:>9} {figures}");
                }
                rows.push(row);
            }
        }
    }
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
    }
    Ok(())
}

fn simulate(arguments: &Arguments, gateways: u16, lag: u64, mode: Mode) -> Figures {
    let figures = simulation::run(Setup {
        gateways,
        told: arguments.told,
        limit: arguments.limit,
        period: Period::Minute,
        rate: f64::from(arguments.rate),
        load: match arguments.load {
            Load::Even => simulation::Load::Even,
            Load::Uneven => simulation::Load::Uneven,
            Load::Moving => simulation::Load::Moving { every: 20_000 },
        },
        applications: 1,
        lag,
        mode,
        windows: (arguments.seconds / 60).max(WINDOWS),
        seed: 1,
    });
    Figures {
        gateways,
        limit: arguments.limit,
        admitted: figures.admitted.iter().sum(),
        windows: figures.admitted.len(),
        overrun: figures.overrun(),
        worst_overrun: figures.worst_overrun(),
        calls_per_second_per_gateway: figures.calls,
        early: figures.early(),
        unused: figures.unused(),
    }
}
