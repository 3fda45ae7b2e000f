//! `cargo xtask decisions`: what was recorded from the real backend, replayed against
//! the stand-in and the filter.

use std::path::PathBuf;

use anyhow::{Result, bail};
use tollgate_conformance::decisions::{Replayed, Who, replay};
use tollgate_conformance::recording::{Recording, folder};

/// Arguments of the command.
#[derive(clap::Args)]
pub struct Arguments {
    /// The backend's data; without it, everything in tests/data/decisions is replayed.
    #[arg(requires = "calls")]
    data: Option<PathBuf>,
    /// The calls that were made to it, one a line.
    calls: Option<PathBuf>,
}

/// Replays, prints every difference and the sums; fails if any difference is not explained.
pub fn run(arguments: &Arguments) -> Result<()> {
    let recordings = match (&arguments.data, &arguments.calls) {
        (Some(data), Some(calls)) => vec![Recording::read(data, calls)?],
        _ => Recording::read_all(&folder())?,
    };
    let mut unexplained = 0;
    for recording in &recordings {
        let replayed = replay(recording)?;
        for difference in &replayed.differences {
            println!(
                "{}:{}: {}: {}",
                recording.name, difference.line, difference.who, difference.what
            );
        }
        summarize(&recording.name, &replayed);
        unexplained += replayed.differences.len();
    }
    println!("{unexplained} unexplained differences");
    if unexplained > 0 {
        bail!("the replay differs from the recording");
    }
    Ok(())
}

fn summarize(name: &str, replayed: &Replayed) {
    let differences = |who| {
        let all = replayed.differences.iter();
        all.filter(|difference| difference.who == who).count()
    };
    println!("{name}: {} calls", replayed.calls);
    println!(
        "  stand-in: {} differences in its answers",
        differences(Who::StandIn)
    );
    println!(
        "  filter: {} differences; {} of {} requests decided as recorded, {} limits known as reported",
        differences(Who::Filter),
        replayed.as_recorded,
        replayed.requests,
        replayed.limits
    );
    println!("    {} of the requests by app_id", replayed.by_app_id);
    for (class, count) in &replayed.by_design {
        println!("    {count} otherwise by design: {class}");
    }
}
