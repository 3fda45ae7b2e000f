//! `cargo xtask mapping-cases`: a table of mapping rules and requests, held against
//! the filter's mapping.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use tollgate_conformance::mapping_cases;

/// Arguments of the command.
#[derive(clap::Args)]
pub struct Arguments {
    /// A table like tests/data/mapping-rules.tsv.
    file: PathBuf,
}

/// Prints every row that comes out otherwise than its column `expected`, and the sums;
/// fails if there is any.
pub fn run(arguments: &Arguments) -> Result<()> {
    let named = || arguments.file.display().to_string();
    let table = std::fs::read_to_string(&arguments.file).with_context(named)?;
    let checked = mapping_cases::check(&table).with_context(named)?;
    for difference in &checked.differences {
        println!(
            "line {}: {} instead of {}: {}",
            difference.line, difference.outcome, difference.expected, difference.row
        );
    }
    println!(
        "{} rows, {} differences",
        checked.rows,
        checked.differences.len()
    );
    if !checked.differences.is_empty() {
        bail!("the mapping differs from the table");
    }
    Ok(())
}
