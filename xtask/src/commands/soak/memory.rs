//! How much memory Envoy has, and whether it grows without end.

use std::time::Duration;

use serde::Serialize;

use super::tally::Tally;

/// Growth in the second half that is none yet, in MiB: allocators and V8 keep what they had.
const SLACK_MIB: f64 = 48.0;

/// Resident memory over time.
#[derive(Default)]
pub struct Memory {
    /// Minutes since the start, and MiB.
    looks: Vec<(f64, f64)>,
}

/// The figures.
#[derive(Serialize)]
pub struct Figures {
    pub first_mib: f64,
    pub last_mib: f64,
    pub most_mib: f64,
    pub slope_mib_a_minute: f64,
}

impl Memory {
    pub fn look(&mut self, since: Duration, mib: f64) {
        self.looks.push((since.as_secs_f64() / 60.0, mib));
    }

    pub fn last(&self) -> f64 {
        self.looks.last().map_or(0.0, |(_, mib)| *mib)
    }

    fn second_half(&self) -> &[(f64, f64)] {
        self.looks.get(self.looks.len() / 2..).unwrap_or_default()
    }

    /// Of the line that fits the second half best.
    fn slope(&self) -> f64 {
        let looks = self.second_half();
        let count = looks.len() as f64;
        let (x, y) = looks
            .iter()
            .fold((0.0, 0.0), |sum, it| (sum.0 + it.0, sum.1 + it.1));
        let (x, y) = (x / count, y / count);
        let (over, under) = looks.iter().fold((0.0, 0.0), |(over, under), it| {
            (
                over + (it.0 - x) * (it.1 - y),
                under + (it.0 - x) * (it.0 - x),
            )
        });
        if under > 0.0 { over / under } else { 0.0 }
    }

    /// Growth that does not end is a violation.
    pub fn check(&self, tally: &Tally) {
        let (Some(first), Some(last)) = (self.second_half().first(), self.looks.last()) else {
            return;
        };
        let grown = self.slope() * (last.0 - first.0);
        if grown > SLACK_MIB {
            tally.violation(format!("memory grew by {grown:.0} MiB in the second half"));
        }
    }

    pub fn figures(&self) -> Figures {
        Figures {
            first_mib: self.looks.first().map_or(0.0, |(_, mib)| *mib),
            last_mib: self.last(),
            most_mib: self.looks.iter().map(|(_, mib)| *mib).fold(0.0, f64::max),
            slope_mib_a_minute: self.slope(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leak_is_found_and_a_warm_up_is_none() {
        let tally = Tally::new([0; 2]);
        let mut memory = Memory::default();
        for minute in 0..10_u16 {
            let mib = if minute < 5 {
                100.0 * f64::from(minute)
            } else {
                500.0
            };
            memory.look(Duration::from_secs(60) * minute.into(), mib);
        }
        memory.check(&tally);
        assert_eq!(tally.violations(), Vec::<String>::new());
        for minute in 10..30_u16 {
            memory.look(
                Duration::from_secs(60) * minute.into(),
                50.0 * f64::from(minute),
            );
        }
        memory.check(&tally);
        assert_eq!(tally.violations().len(), 1);
    }
}
