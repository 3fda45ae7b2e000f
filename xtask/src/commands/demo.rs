//! `cargo xtask demo`: a whole gateway on this machine, and traffic that shows every
//! outcome. What is claimed is checked, so that `--once` also serves as a test.

mod checks;
mod consumers;
pub(super) mod interrupt;
mod ledger;
mod story;
mod world;

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, anyhow, bail};

use super::build::build_filter;
use crate::tools::envoy::envoy_path;
use checks::{Checks, say};
use interrupt::Interrupt;
use world::{Ports, World};

/// Arguments of the command.
#[derive(clap::Args)]
pub struct Arguments {
    /// End after the traffic, with an error unless everything was as it should be.
    #[arg(long)]
    once: bool,
    /// The gateway's port on the loopback; 0 lets the system choose
    #[arg(long, value_name = "N", default_value_t = 0)]
    port: u16,
    /// The port of service management; 0 lets the system choose
    #[arg(long, value_name = "N", default_value_t = 0)]
    service_management_port: u16,
}

/// Shows what the filter does. Fails if anything that was said did not hold, with
/// `--once` at once, else when it is interrupted.
pub fn run(arguments: &Arguments) -> Result<()> {
    let envoy = envoy_path()?;
    let module = build_filter()?;
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?
        .block_on(demonstrate(arguments, &envoy, &module))
}

async fn demonstrate(arguments: &Arguments, envoy: &Path, module: &Path) -> Result<()> {
    // Before anything is started: from here on a signal ends what is running and
    // does not just kill this process.
    let mut interrupt = Interrupt::listen()?;
    let ports = Ports {
        gateway: arguments.port,
        service_management: arguments.service_management_port,
    };
    let mut world = tokio::select! {
        signal = interrupt.received() => bail!("ended by {signal}"),
        world = World::start(envoy, module, ports) => world?,
    };
    say(&world);
    let mut checks = Checks::new();
    let told = tokio::select! {
        signal = interrupt.received() => bail!("ended by {signal}"),
        told = story::tell(&mut world, &mut checks) => told,
    };
    told.map_err(|error| with_log(&error, &world))?;
    let verdict = checks.verdict();
    if arguments.once {
        return verdict.map_err(|error| with_log(&error, &world));
    }
    if let Err(error) = &verdict {
        // It is returned as well, in the end.
        eprintln!("\n{error}");
    }
    say(world.things_to_try());
    stay(&world, &mut interrupt).await?;
    verdict
}

/// Shows what service management is asked until there is a signal.
async fn stay(world: &World, interrupt: &mut Interrupt) -> Result<()> {
    world::show_calls(true);
    let signal = loop {
        tokio::select! {
            signal = interrupt.received() => break signal,
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
        if let Err(error) = world.envoy.admin("/ready").await {
            // Ctrl-C in a terminal reaches Envoy, too, and perhaps first.
            tokio::select! {
                signal = interrupt.received() => break signal,
                () = tokio::time::sleep(Duration::from_secs(1)) => {
                    return Err(with_log(&error.context("Envoy does not answer any more"), world));
                }
            }
        }
    };
    world::show_calls(false);
    say(format_args!(
        "\n{signal}: ending Envoy, the API and service management"
    ));
    Ok(())
}

fn with_log(error: &anyhow::Error, world: &World) -> anyhow::Error {
    anyhow!("{error:#}\nEnvoy's log ends:\n{}", world.envoy.log_tail())
}
