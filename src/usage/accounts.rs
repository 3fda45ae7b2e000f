//! What becomes of a service's usage, by metric: the steps of the sums that operators see.
//!
//! The sums themselves stand where Envoy keeps statistics. They follow the records' ledgers:
//! `admitted = acknowledged + lost + pending + in flight`, as of the last time that the
//! leader looked at each record.

use crate::authorization::{Outcome, Units};

/// Units that became something since the last look.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Accounts {
    /// Admitted, and seen by the leader.
    pub admitted: Units,
    /// Answered with 202.
    pub acknowledged: Units,
    /// Given up.
    pub lost: Units,
    /// Whether a report was sent or answered.
    moved: bool,
}

impl Accounts {
    /// Whether a sum has changed.
    #[must_use]
    pub fn is_changed(&self) -> bool {
        self.moved
            || [&self.admitted, &self.acknowledged, &self.lost]
                .iter()
                .any(|units| !units.is_empty())
    }

    pub(super) const fn sent(&mut self) {
        self.moved = true;
    }

    /// Usage was admitted.
    pub fn admitted(&mut self, units: &Units) {
        self.admitted.add_all(units);
    }

    /// Usage was given up.
    pub fn lost(&mut self, units: &Units) {
        self.lost.add_all(units);
    }

    /// A report of usage has come to its end.
    pub fn settled(&mut self, outcome: Outcome, units: &Units) {
        match outcome {
            Outcome::Acknowledged => self.acknowledged.add_all(units),
            Outcome::Lost | Outcome::Refused => self.lost.add_all(units),
            Outcome::Returned | Outcome::Resent => {}
        }
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.admitted.add_all(&other.admitted);
        self.acknowledged.add_all(&other.acknowledged);
        self.lost.add_all(&other.lost);
        self.moved |= other.moved;
    }
}
