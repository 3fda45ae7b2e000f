//! `cargo xtask bench --economy`: calls to service management for a million admitted
//! requests, as counted in virtual time on the fake host and as a formula has it.

use anyhow::Result;
use serde::Serialize;

use super::inside::{self, Economy};

/// `reporting.batch`, as the default has it.
const BATCH: f64 = 100.0;
/// `authorization.refreshes_per_second`, likewise.
const REFRESHES_PER_SECOND: f64 = 100.0;

/// A measurement and the formula beside it, in calls for a million admitted requests.
#[derive(Debug, Serialize)]
pub struct Row {
    pub applications: u64,
    pub ttl: u64,
    pub interval: u64,
    pub refreshes: f64,
    pub reports: f64,
    /// Questions about unknown applications and about metrics.
    pub others: f64,
    pub refreshes_by_formula: f64,
    pub reports_by_formula: f64,
}

/// The gateway's load and settings. Seconds, and requests a second.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    pub applications: f64,
    pub rate: f64,
    pub ttl: f64,
    pub interval: f64,
}

impl Load {
    /// Refreshes a second. An answer in use is asked for again at an age between half of the
    /// ttl and what leaves two intervals, or a quarter of the ttl; by chance, so on average in
    /// the middle; and on the next tick, half a second later on average. No more often than the
    /// budget allows.
    pub fn refreshes(self) -> f64 {
        let latest = (self.ttl / 4.0)
            .max(2.0 * self.interval)
            .min(self.ttl / 2.0);
        let age = self.ttl - (self.ttl / 2.0 + latest) / 2.0 + 0.5;
        // Applications that are used less often are asked about less often.
        let in_use = self.applications.min(self.rate * age);
        (in_use / age).min(REFRESHES_PER_SECOND)
    }

    /// Reports a second. Each interval has a transaction for each application that was used in
    /// it; and another, where the turn of a minute lies in between, for usage is reported by
    /// the minute. A batch holds a hundred.
    pub fn reports(self) -> f64 {
        let used = self.applications.min(self.rate * self.interval);
        let turns = (self.interval / 60.0).min(1.0);
        let batches = |transactions: f64| (transactions / BATCH).ceil();
        let with_turn = self.applications.min(self.rate * self.interval / 2.0) * 2.0;
        ((1.0 - turns) * batches(used) + turns * batches(with_turn.max(used))) / self.interval
    }
}

/// Measures, and sets the formula beside it.
pub fn measure(quick: bool) -> Result<Vec<Row>> {
    let measured = inside::measure(&["economy"], quick)?;
    Ok(measured.economy.iter().map(row).collect())
}

fn row(measured: &Economy) -> Row {
    let per_million = 1e6 / measured.admitted as f64;
    let load = Load {
        applications: measured.applications as f64,
        rate: measured.rate as f64,
        ttl: measured.ttl as f64,
        interval: measured.interval as f64,
    };
    let by_formula = |per_second: f64| per_second / load.rate * 1e6;
    Row {
        applications: measured.applications,
        ttl: measured.ttl,
        interval: measured.interval,
        refreshes: measured.refresh_calls as f64 * per_million,
        reports: measured.report_calls as f64 * per_million,
        others: (measured.authorize_calls + measured.probe_calls) as f64 * per_million,
        refreshes_by_formula: by_formula(load.refreshes()),
        reports_by_formula: by_formula(load.reports()),
    }
}

/// Prints the rows as a table of Markdown, as docs/performance.md has it.
pub fn print(rows: &[Row]) {
    println!(
        "| applications | ttl s | interval s | refreshes | by formula | reports | by formula | others |\n\
         |---|---|---|---|---|---|---|---|"
    );
    for row in rows {
        println!(
            "| {} | {} | {} | {:.0} | {:.0} | {:.0} | {:.0} | {:.0} |",
            row.applications,
            row.ttl,
            row.interval,
            row.refreshes,
            row.refreshes_by_formula,
            row.reports,
            row.reports_by_formula,
            row.others
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USUAL: Load = Load {
        applications: 1_000.0,
        rate: 1_000.0,
        ttl: 60.0,
        interval: 10.0,
    };

    #[test]
    fn an_answer_is_asked_for_again_between_half_of_its_life_and_two_intervals_before_its_end() {
        assert_eq!(USUAL.refreshes(), 1_000.0 / 35.5);
        let long = Load {
            ttl: 600.0,
            ..USUAL
        };
        assert_eq!(long.refreshes(), 1_000.0 / 375.5);
    }

    #[test]
    fn refreshes_keep_to_their_budget_and_to_who_is_in_use() {
        let many = Load {
            applications: 100_000.0,
            ..USUAL
        };
        assert_eq!(many.refreshes(), 100.0);
        let idle = Load { rate: 2.0, ..USUAL };
        assert_eq!(idle.refreshes(), 2.0);
    }

    #[test]
    fn a_report_holds_a_hundred_applications_and_each_minute_of_them() {
        let few = Load {
            applications: 10.0,
            ..USUAL
        };
        assert_eq!(few.reports(), 0.1);
        // Every sixth flush holds two minutes of each: 10, 10, 10, 10, 10 and 20.
        assert!((USUAL.reports() - 70.0 / 60.0).abs() < 1e-9);
        let rare = Load {
            rate: 20.0,
            ..USUAL
        };
        assert_eq!(rare.reports(), 0.2);
    }
}
