//! The one entry point for every command of this repository: `cargo xtask <command>`.
//!
//! A command first sets up what it needs and is missing on this machine, saying
//! so in one line per step, and is silent about what is there. Each command is a
//! module of [`commands`]; what commands share stands beside it.

mod commands;
mod process;
mod tools;
mod wasm;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use commands::{
    bench, build, conformance, curves, decisions, demo, fuzz, gateways, lint, mapping_cases, setup,
    soak, test,
};

/// Builds, tests and checks Tollgate.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install everything that any command needs and this machine lacks.
    Setup,
    /// Build target/tollgate.wasm and check what it imports and exports.
    Build(build::Arguments),
    /// Run every test: native, wasm32, the module, Envoy end to end, conformance.
    Test(test::Arguments),
    /// Run a gateway on this machine and show what the filter does, with real traffic.
    Demo(demo::Arguments),
    /// Measure what the filter costs, beside others, in one run.
    Bench(bench::Arguments),
    /// Draw what `bench --scale --json FILE` measured.
    Curves(curves::Arguments),
    /// Show how far several gateways overrun a limit that they share.
    Gateways(gateways::Arguments),
    /// Look for bytes that break what must hold for any bytes.
    Fuzz(fuzz::Arguments),
    /// Run a gateway under mixed traffic, faults and reloads, and check everything meanwhile.
    Soak(soak::Arguments),
    /// Hold a backend against captured exchanges, and the filter in Envoy against that backend.
    Conformance(conformance::Arguments),
    /// Replay calls recorded from the real backend against the stand-in and the filter.
    Decisions(decisions::Arguments),
    /// Hold a table of mapping rules and requests against the filter's mapping.
    MappingCases(mapping_cases::Arguments),
    /// Check format, clippy, documentation, dependencies and the ban on panics.
    Lint,
}

fn main() -> ExitCode {
    let result = match CommandLine::parse().command {
        Command::Setup => setup::run(),
        Command::Build(arguments) => build::run(&arguments),
        Command::Test(arguments) => test::run(&arguments),
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Curves(arguments) => curves::run(&arguments),
        Command::Gateways(arguments) => gateways::run(&arguments),
        Command::Fuzz(arguments) => fuzz::run(&arguments),
        Command::Soak(arguments) => soak::run(&arguments),
        Command::Conformance(arguments) => conformance::run(&arguments),
        Command::Decisions(arguments) => decisions::run(&arguments),
        Command::MappingCases(arguments) => mapping_cases::run(&arguments),
        Command::Lint => lint::run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The chain of contexts; a backtrace of xtask would help nobody.
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        CommandLine::command().debug_assert();
    }
}
