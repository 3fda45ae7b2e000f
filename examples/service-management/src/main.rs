//! The stand-in as a program: reads its data, listens, and prints what it is asked.

use anyhow::Context;
use clap::Parser;
use service_management::{Call, Dataset, Options, StandIn};
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// A local stand-in for the 3scale Service Management API, for development and tests.
#[derive(Parser)]
struct Arguments {
    /// The data: services, metrics, plans and applications, in YAML.
    #[arg(long)]
    data: PathBuf,
    /// Where to listen. Whoever can connect can also use the control interface.
    #[arg(long, default_value = "127.0.0.1:3000")]
    listen: SocketAddr,
    /// How long after its answer a call's usage is applied.
    #[arg(long, default_value = "5ms", value_parser = humantime::parse_duration)]
    lag: Duration,
}

/// Prints a line. Nobody may be reading it any more, which is no reason to stop.
fn print(line: &impl std::fmt::Display) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

fn print_call(call: &Call) {
    print(call);
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let path = arguments.data.display();
    let data =
        std::fs::read_to_string(&arguments.data).with_context(|| format!("reading {path}"))?;
    let dataset = Dataset::from_yaml(&data).with_context(|| format!("in {path}"))?;
    let options = Options {
        host: arguments.listen.ip(),
        port: arguments.listen.port(),
        lag: arguments.lag,
        observer: Some(print_call),
        ..Options::default()
    };
    let mut stand_in = StandIn::start(dataset, options)
        .await
        .with_context(|| format!("listening on {}", arguments.listen))?;
    print(&format!("listening on http://{}", stand_in.address()));
    stopped().await?;
    stand_in.stop().await;
    Ok(())
}

/// Waits for an interrupt, or for the signal with which containers are stopped.
async fn stopped() -> anyhow::Result<()> {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let mut terminated = signal(SignalKind::terminate())?;
        tokio::select! {
            interrupted = tokio::signal::ctrl_c() => interrupted?,
            _ = terminated.recv() => {}
        }
    }
    #[cfg(not(unix))]
    tokio::signal::ctrl_c().await?;
    Ok(())
}
