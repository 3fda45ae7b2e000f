//! Usage that was in a report which service management did not take, and that is told
//! apart from what it would take: smaller and smaller groups of it are sent by themselves,
//! until what is bad stands alone and is given up.
//!
//! Apart from the flush, which sends what it is given: here is decided what an answer says
//! of what was in the report. All of this is in the leader's memory only. When its VM goes, the
//! next one begins again with whole reports.

use super::flush::Settings;
use crate::authorization::{Outcome, Slot, backoff};
use crate::config::Uncertain;
use crate::service_management::{Failure, ReportAnswer};
use std::collections::{HashSet, VecDeque};

/// Groups at most. In an outage with answers of 5xx, reports are split to no end.
const MOST_GROUPS: usize = 64;
/// A report that failed with 5xx so often is split.
const FAILURES_TO_SPLIT: u32 = 2;
/// A transaction that was refused by itself so often is given up, also when nothing shows
/// that service management takes others.
const REFUSALS_TO_GIVE_UP: u32 = 3;
/// A transaction that failed by itself with 5xx so often, while others were acknowledged
/// before each time, is given up.
const FAILURES_TO_GIVE_UP: u32 = 3;
/// Longest pause of a group.
const LONGEST_PAUSE: u64 = 60_000;

/// How often something was tried, and what was seen meanwhile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Trial {
    /// Whether it was part of a report that was not taken.
    trial: bool,
    /// Refusals or failures of exactly this.
    tries: u32,
    /// Of these, with an acknowledgement of something else before.
    proven: u32,
    /// Acknowledgements of the service until it was last refused or failed; for what was
    /// not, until it was sent.
    acknowledgements: u64,
}

impl Trial {
    pub const fn is_trial(self) -> bool {
        self.trial
    }

    /// Until it is tried again.
    pub fn pause(self, settings: &Settings, jitter: u64) -> u64 {
        let first = settings.interval;
        backoff(self.tries, first, LONGEST_PAUSE.max(first), jitter)
    }
}

/// Slots whose usage is sent together and with nothing else.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Group {
    pub slots: VecDeque<Slot>,
    /// Transactions of one record in a report at most.
    pub most: usize,
    pub trial: Trial,
    /// It is not sent before that (monotonic milliseconds).
    pub not_before: u64,
}

impl Group {
    /// Suspects that were not tried like this before, to be sent at once.
    pub const fn of(slots: VecDeque<Slot>, most: usize, trial: Trial) -> Self {
        Self {
            slots,
            most,
            trial,
            not_before: 0,
        }
    }

    /// Two groups of half of these; of a single record one with at most `of_one` of its
    /// transactions.
    pub fn halves(
        mut slots: VecDeque<Slot>,
        most: usize,
        of_one: usize,
        trial: Trial,
    ) -> Vec<Self> {
        if slots.len() == 1 {
            return vec![Self::of(slots, of_one, trial)];
        }
        let second = slots.split_off(slots.len() / 2);
        [slots, second]
            .into_iter()
            .filter(|slots| !slots.is_empty())
            .map(|slots| Self::of(slots, most, trial))
            .collect()
    }
}

/// What an answer means for what was in the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fate {
    pub outcome: Outcome,
    pub then: Then,
    /// Whether everything else should wait, too.
    pub pause: bool,
}

/// What is done with usage of the report's records that is pending now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Then {
    /// It goes with everything else in the next round.
    Forget,
    /// The same, unless the report could not hold all that is suspected.
    GoOn(Trial),
    /// The same group goes again, later.
    TryAgain(Trial),
    /// Halves go apart, at once.
    Split(Trial),
}

/// The groups that wait to be tried.
#[derive(Debug, Default)]
pub(super) struct Suspects {
    groups: VecDeque<Group>,
    /// All slots of the groups: no round sends them.
    slots: HashSet<Slot>,
    acknowledgements: u64,
}

impl Suspects {
    /// Whether a slot is in a group.
    pub fn contains(&self, slot: Slot) -> bool {
        self.slots.contains(&slot)
    }

    /// Takes all slots out of all groups.
    pub fn release(&mut self) -> HashSet<Slot> {
        self.groups.clear();
        std::mem::take(&mut self.slots)
    }

    /// The trial of a report of nobody suspected.
    pub fn first_trial(&self) -> Trial {
        Trial {
            acknowledgements: self.acknowledgements,
            ..Trial::default()
        }
    }

    /// Takes the first group that may be sent now.
    pub fn take(&mut self, now: u64) -> Option<Group> {
        let index = self
            .groups
            .iter()
            .position(|group| group.not_before <= now)?;
        let group = self.groups.remove(index)?;
        for slot in &group.slots {
            self.slots.remove(slot);
        }
        Some(group)
    }

    /// Puts back the rest of a group that was taken.
    pub fn put_first(&mut self, group: Group) {
        self.slots.extend(&group.slots);
        self.groups.push_front(group);
    }

    /// Adds a group.
    ///
    /// # Errors
    /// The group, if there are too many.
    pub fn put_last(&mut self, group: Group) -> Result<(), Group> {
        if self.groups.len() >= MOST_GROUPS {
            return Err(group);
        }
        if !group.slots.is_empty() {
            self.slots.extend(&group.slots);
            self.groups.push_back(group);
        }
        Ok(())
    }

    /// What an answer to a report of so many transactions means for them.
    pub fn judge(
        &mut self,
        answer: &ReportAnswer,
        before: Trial,
        transactions: usize,
        policy: Uncertain,
    ) -> Fate {
        let proven = self.acknowledgements > before.acknowledgements;
        let trial = Trial {
            trial: true,
            tries: before.tries.saturating_add(1),
            proven: before.proven.saturating_add(u32::from(proven)),
            acknowledgements: self.acknowledgements,
        };
        let untried = Trial {
            tries: 0,
            proven: 0,
            ..trial
        };
        let again = if before.is_trial() {
            Then::TryAgain(before)
        } else {
            Then::Forget
        };
        let fate = |outcome, then, pause| Fate {
            outcome,
            then,
            pause,
        };
        match answer {
            ReportAnswer::Acknowledged => {
                self.acknowledgements = self.acknowledgements.saturating_add(1);
                let then = if before.is_trial() {
                    Then::GoOn(untried)
                } else {
                    Then::Forget
                };
                fate(Outcome::Acknowledged, then, false)
            }
            ReportAnswer::NotDelivered(_) => fate(Outcome::Returned, again, true),
            // The whole service is refused, until somebody changes a configuration.
            ReportAnswer::Refused { why, .. } if !why.may_lie_in_one_transaction() => {
                fate(Outcome::Returned, again, true)
            }
            ReportAnswer::Refused { .. } if transactions > 1 => {
                fate(Outcome::Returned, Then::Split(untried), false)
            }
            ReportAnswer::Refused { .. } if proven || trial.tries >= REFUSALS_TO_GIVE_UP => {
                fate(Outcome::Refused, Then::Forget, false)
            }
            // One answer to all halves of a report may be late: the first time, nobody waits.
            ReportAnswer::Refused { .. } => {
                fate(Outcome::Returned, Then::TryAgain(trial), trial.tries > 1)
            }
            ReportAnswer::Uncertain(Failure::ServerError(_)) if policy == Uncertain::Resend => {
                if transactions > 1 && trial.tries >= FAILURES_TO_SPLIT {
                    fate(Outcome::Resent, Then::Split(untried), !proven)
                } else if transactions == 1 && trial.proven >= FAILURES_TO_GIVE_UP {
                    fate(Outcome::Lost, Then::Forget, false)
                } else {
                    fate(Outcome::Resent, Then::TryAgain(trial), !proven)
                }
            }
            ReportAnswer::Uncertain(_) => fate(uncertain(policy), again, true),
        }
    }
}

/// What becomes of usage that was perhaps applied.
pub(super) const fn uncertain(policy: Uncertain) -> Outcome {
    match policy {
        Uncertain::Resend => Outcome::Resent,
        Uncertain::Drop => Outcome::Lost,
    }
}
