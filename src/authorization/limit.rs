//! One limit of a plan, in the window that is open, with what is known of its use.
//!
//! Apart from the record so that the arithmetic of several reporters to one backend
//! stands by itself.

use super::accuracy::Grant;
use super::period::{Period, Window};
use crate::moment::Moment;
use crate::service_management::UsageReport;

/// A limit and its counts. All counts are of the open window.
///
/// `own` is what this gateway admitted. `sent` is the part of it that was
/// dispatched to the backend, whatever became of it. `foreign` is a lower bound of
/// everybody else's usage. The window never goes backwards.
///
/// `unsure` means that some of `sent` may never arrive at the backend: a report of it
/// had no certain answer. No count then tells how much is everybody else's, for as long
/// as the window is open.
///
/// `given_up` means that some of `own` is no longer to be sent, so no count may ever show it:
/// only this record knows of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// The metric, as an index into the record's names.
    pub name: u8,
    /// How often it starts again.
    pub period: Period,
    /// The open window.
    pub window: Window,
    /// What may be used in a window; 0 disables the metric.
    pub maximum: u64,
    /// Admitted here.
    pub own: u64,
    /// Of that, dispatched to the backend.
    pub sent: u64,
    /// Everybody else's, at least.
    pub foreign: u64,
    /// Whether some of what was sent may never arrive.
    pub unsure: bool,
    /// Whether some of what was admitted was given up.
    pub given_up: bool,
    /// Among several gateways: what this one may do before it looks again.
    pub grant: Option<Grant>,
}

impl Limit {
    /// Whether so much more fits: `own + foreign + cost <= maximum`.
    #[must_use]
    pub const fn admits(&self, cost: u64) -> bool {
        match self.own.checked_add(self.foreign) {
            Some(known) => match known.checked_add(cost) {
                Some(after) => after <= self.maximum,
                None => false,
            },
            None => false,
        }
    }

    /// Whether more may be admitted before this gateway has looked again at what the
    /// others use.
    #[must_use]
    pub const fn is_granted(&self) -> bool {
        match self.grant {
            Some(grant) => self.own < grant.until,
            None => true,
        }
    }

    /// Opens the next window if this one has ended. Nobody waits for the backend to
    /// do so, and no refusal outlives its window. `looked`: as for [`Self::unseen`].
    pub fn roll(&mut self, now: Moment, looked: u64, luck: u64) {
        if now.seconds() >= self.window.end {
            let window = self.period.window_at(now.seconds());
            let late = now.wall.saturating_sub(milliseconds(window.start));
            let unseen = self.unseen(now, looked, late);
            *self = Self {
                window,
                own: 0,
                sent: 0,
                foreign: 0,
                unsure: false,
                given_up: false,
                ..*self
            };
            if let Some(grant) = &mut self.grant {
                grant.roll(self.maximum, unseen, luck);
            }
        }
    }

    /// What other gateways may have used in the last `since` milliseconds, in which nobody here
    /// saw it, by what they did in this window before. `looked` is when the backend was last
    /// asked (Unix milliseconds).
    #[must_use]
    pub fn unseen(&self, now: Moment, looked: u64, since: u64) -> u64 {
        let Some(grant) = &self.grant else {
            return 0;
        };
        let start = milliseconds(self.window.start);
        let until = if looked > start { looked } else { now.wall };
        let over = until
            .min(milliseconds(self.window.end))
            .saturating_sub(start);
        let used = self.own.saturating_add(self.foreign);
        let own = (looked <= start).then_some(self.own);
        grant.unseen(used, own, over, since)
    }

    /// The limit as the backend reports it now. Of the backend's count at most
    /// `sent` is ours, so the rest is at least everybody else's; once everything
    /// that was sent is in the count (`settled`, and not `unsure`), it is exactly that, and
    /// may fall. A report of another window says nothing about this one: neither of an older
    /// one, nor of the next one from a backend whose clock is ahead, which is not opened
    /// before its time here or usage of this one would count in neither.
    #[must_use]
    pub fn merged(&self, report: &UsageReport, settled: bool) -> Self {
        let others = report.current.saturating_sub(self.sent);
        let foreign = if report.window != self.window {
            self.foreign
        } else if settled && !self.unsure {
            others
        } else {
            self.foreign.max(others)
        };
        Self {
            maximum: report.maximum,
            foreign,
            ..*self
        }
    }
}

const fn milliseconds(seconds: u64) -> u64 {
    seconds.saturating_mul(1_000)
}
