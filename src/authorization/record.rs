//! One application's entry in shared data: what service management said of it, what
//! it has used, and what of that is not yet acknowledged.
//!
//! One value under one key, changed only by compare-and-set: the write that admits
//! a request also counts it, for limits and for reporting. So two workers cannot
//! both take the last unit, and a VM that goes away loses nothing that it admitted.
//! Metrics stand here by name, never by index into a configuration, because two
//! configurations can be alive at once. The byte layout is in `codec`.

use super::accuracy::{Accuracy, Grant, Known, LONGEST_SETTLING, mix};
use super::keys::Keys;
use super::limit::Limit;
use super::names::Names;
use super::quota::Quota;
use super::units::Units;
use crate::credentials::{Digest, Kind};
use crate::mapping::{Metrics, Usage};
use crate::moment::Moment;
use crate::service_management::{Authorization, Denial, MAX_USAGE};
use std::cmp::Reverse;
use thiserror::Error;

/// Seconds after which usage can no longer be reported: the backend takes 24 hours,
/// measured when its worker runs, so ten minutes are left for the way there.
const REPORTABLE_SECONDS: u64 = 24 * 3_600 - 600;
/// Seconds that usage may be stamped ahead of now: the backend takes an hour, measured by its own
/// clock, so ten minutes are left for the two to differ. Stamps in a window that opens while a
/// worker's reading is late are far below that.
const AHEAD_SECONDS: u64 = 3_600 - 600;
/// Usage is kept by minute for so long, then by hour (the backend's minute counters live 180 s).
const MINUTES_KEPT_SECONDS: u64 = 180;
/// How long after an acknowledgement a read of the backend's counters includes the
/// batch. The backend applies reports late; no bound is promised, this is generous.
const SETTLED_MILLISECONDS: u64 = 5_000;
/// A gateway that admitted nothing for so long knows little of what the others did.
const IDLE_MILLISECONDS: u64 = 10_000;
/// How long after its last use a record stays for usage that was given up. A day, so that no limit
/// of a day or less admits it again; longer ones, up to those without end, would keep slots of
/// applications that are gone.
const REMEMBERED_MILLISECONDS: u64 = 24 * 3_600 * 1_000;
/// Entries of usage that is only kept until it has settled, about.
const MOST_SETTLING: usize = 16;
/// How long ago a worker may have read its clock when it writes.
pub const LATE_READING_SECONDS: u64 = 60;
/// Limits of a record: their number is one byte in the layout.
const MOST_LIMITS: usize = 255;

/// Whether the record may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The slot holds nobody.
    Vacant,
    /// Somebody is about to put a record here and is making sure that it is the only one.
    Candidate,
    /// In use.
    Live,
}

/// How far what service management said may be relied on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// Decide on it.
    Fresh,
    /// Decide on it and have it refreshed.
    Stale,
    /// Ask before deciding.
    Expired,
}

/// What one request is refused for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// Service management denies the application.
    #[error("denied by service management: {0:?}")]
    Denied(Denial),
    /// A limit is used up until that moment (Unix seconds); `u64::MAX`: for good.
    #[error("a limit is used up until {until}")]
    Limited {
        /// First second at which the usage could fit.
        until: u64,
    },
    /// Something is left of every limit, but not granted to this gateway yet.
    #[error("what is left of a limit is not granted to this gateway")]
    Early,
    /// The plan allows nothing of a metric (maximum 0).
    #[error("the plan disables a metric")]
    Disabled,
    /// The record has no room for another metric name, or for so many limits.
    #[error("the application has more metrics or limits than a record holds")]
    TooManyMetrics,
}

/// Totals of one metric over the life of the record. Invariant, kept by every
/// change: `admitted = acknowledged + lost + pending + in flight`, the last two
/// summed over the record's usage of that metric.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    /// Units of admitted requests.
    pub admitted: u64,
    /// Units in reports that were answered 202.
    pub acknowledged: u64,
    /// Units that will never be reported; each was counted and logged when it was given up.
    pub lost: u64,
    /// The part of `admitted` that the service's sums have.
    pub published: u64,
}

/// Unacknowledged usage of one metric in one minute or hour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The metric, as an index into the record's names.
    pub name: u8,
    /// Whether this is a sum over an hour; `at` is then the latest minute in it.
    pub hour: bool,
    /// First second of the minute, as it is reported.
    pub at: u64,
    /// Admitted and not yet sent.
    pub pending: u64,
    /// Sent in the record's batch and not yet answered.
    pub in_flight: u64,
    /// Acknowledged so lately that the backend may not have applied it yet.
    pub settling: u64,
}

impl Entry {
    const fn is_acknowledged(&self) -> bool {
        self.pending == 0 && self.in_flight == 0
    }

    const fn is_over(&self) -> bool {
        self.pending == 0 && self.in_flight == 0 && self.settling == 0
    }
}

/// Usage of one minute or hour, as one transaction of a report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dispatched {
    /// Unix seconds to report it at.
    pub at: u64,
    /// Metric names and deltas, each above 0 and at most [`MAX_USAGE`]. A name stands here once: of two, the
    /// backend would count the last.
    pub usage: Vec<(String, u64)>,
}

impl Dispatched {
    /// Adds usage, as much as a transaction may have of a metric. Returns how much. A metric can
    /// have an hour's entry and a minute's at the same time, where the wall clock went back.
    fn add(&mut self, metric: &str, delta: u64) -> u64 {
        match self.usage.iter_mut().find(|(name, _)| name == metric) {
            Some((_, sum)) => {
                let fits = delta.min(MAX_USAGE.saturating_sub(*sum));
                *sum = sum.saturating_add(fits);
                fits
            }
            None => {
                let fits = delta.min(MAX_USAGE);
                self.usage.push((metric.to_owned(), fits));
                fits
            }
        }
    }
}

/// What became of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Answered 202.
    Acknowledged,
    /// Surely not applied: pending again, as if never sent.
    Returned,
    /// Perhaps applied: pending again, and still counted as sent.
    Resent,
    /// Perhaps applied, and given up.
    Lost,
    /// Surely not applied, and given up.
    Refused,
}

/// What an answer showed of how late the backend counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// The age of an acknowledged report that was not in the counts yet (milliseconds).
    pub late: Option<u64>,
}

/// See the module's description.
#[derive(Clone)]
pub struct Record {
    /// Whether it may be used.
    pub state: State,
    /// Whose it is. A slot can hold another application's record than the one looked for.
    pub digest: Digest,
    /// The service it belongs to, in one cluster and authority.
    pub scope: u64,
    /// What kind of credential the identity is.
    pub kind: Kind,
    /// The identity as it must be reported: at most 256 bytes.
    pub identity: Vec<u8>,
    /// Why service management denies the application, if it does.
    pub denial: Option<Denial>,
    /// Whether a refresh has been asked for.
    pub refresh_marked: bool,
    /// Whether its usage is reported in a batch of its own: one bad application
    /// makes the backend drop a whole batch after its 202.
    pub alone: bool,
    /// When service management was last heard of it (monotonic milliseconds).
    pub fetched_at: u64,
    /// Decide on it until then (monotonic milliseconds).
    pub fresh_until: u64,
    /// With a refresh asked for, decide on it until then (monotonic milliseconds).
    pub stale_until: u64,
    /// When a request was last admitted on it (monotonic milliseconds).
    pub last_used: u64,
    /// The batch that holds its usage in flight; 0 if none is.
    pub batch: u64,
    /// When the batch's outcome is uncertain for good (monotonic milliseconds).
    pub batch_deadline: u64,
    /// When a batch of it was last acknowledged (monotonic milliseconds).
    pub acknowledged_at: u64,
    /// The application's keys, if it is known by an `app_id`.
    pub keys: Keys,
    pub(super) names: Names,
    pub(super) ledger: Vec<Ledger>,
    pub(super) limits: Vec<Limit>,
    pub(super) usage: Vec<Entry>,
    charges: Vec<Charge>,
}

/// What a request costs on one metric, resolved against the record's names.
#[derive(Clone, Copy, Debug)]
struct Charge {
    name: u8,
    delta: u64,
    /// The metric and all its ancestors, a bit for each of the record's names.
    counts_for: u64,
}

impl Record {
    /// A record that holds nobody.
    #[must_use]
    pub fn vacant() -> Self {
        Self {
            state: State::Vacant,
            digest: Digest([0; 16]),
            scope: 0,
            kind: Kind::UserKey,
            identity: Vec::new(),
            denial: None,
            refresh_marked: false,
            alone: false,
            fetched_at: 0,
            fresh_until: 0,
            stale_until: 0,
            last_used: 0,
            batch: 0,
            batch_deadline: 0,
            acknowledged_at: 0,
            keys: Keys::Unheard,
            names: Names::default(),
            ledger: Vec::new(),
            limits: Vec::new(),
            usage: Vec::new(),
            charges: Vec::new(),
        }
    }

    /// How far it may be relied on now.
    #[must_use]
    pub const fn freshness(&self, now: Moment) -> Freshness {
        if now.monotonic < self.fresh_until {
            Freshness::Fresh
        } else if now.monotonic < self.stale_until {
            Freshness::Stale
        } else {
            Freshness::Expired
        }
    }

    /// Whether any usage waits to be sent.
    #[must_use]
    pub fn has_pending(&self) -> bool {
        self.usage.iter().any(|entry| entry.pending > 0)
    }

    /// Whether the slot may be given to somebody else without losing usage or
    /// the exactness of a limit: nothing unacknowledged, and what was reported has
    /// been seen in a later answer; or, where there is no limit, would be in an answer of now,
    /// which could bring one. What was given up is in no answer, and known only here.
    #[must_use]
    pub fn may_give_way(&self, now: Moment) -> bool {
        let settling = self.usage.iter().any(|entry| entry.settling > 0);
        self.batch == 0
            && (!settling || self.is_settled(now))
            && self
                .usage
                .iter()
                .all(|entry| entry.pending == 0 && entry.in_flight == 0)
            && !self.is_unconfirmed()
            && !self.is_remembered(now)
    }

    /// Whether an open window of a limit has usage that was given up, and the application was used lately.
    fn is_remembered(&self, now: Moment) -> bool {
        now.monotonic <= self.last_used.saturating_add(REMEMBERED_MILLISECONDS)
            && self
                .limits
                .iter()
                .any(|limit| limit.given_up && now.seconds() < limit.window.end)
    }

    /// Whether a limit would forget reported usage if the record went: no answer that
    /// came later has shown it.
    fn is_unconfirmed(&self) -> bool {
        self.limits.iter().any(|limit| limit.sent > 0)
            && self.fetched_at <= self.acknowledged_at.saturating_add(SETTLED_MILLISECONDS)
    }

    /// Whether an answer of now would show everything that was reported.
    const fn is_settled(&self, now: Moment) -> bool {
        self.batch == 0 && now.monotonic > self.acknowledged_at.saturating_add(SETTLED_MILLISECONDS)
    }

    /// Whether one more answer is all that the record needs to be able to give way.
    #[must_use]
    pub fn wants_confirmation(&self, now: Moment) -> bool {
        self.is_unconfirmed() && self.is_settled(now) && !self.has_pending()
    }

    /// Admits one request and counts it, or says why not; all of its usage or none.
    ///
    /// The metrics are the service's table: its hierarchy and the record's together
    /// decide what an ancestor is.
    ///
    /// # Errors
    /// Why the request is refused; the record then counts nothing.
    pub fn admit(&mut self, usage: &Usage, metrics: &Metrics, now: Moment) -> Result<(), Refusal> {
        if let Some(denial) = self.denial {
            return Err(Refusal::Denied(denial));
        }
        self.roll_windows(now);
        if now.monotonic > self.last_used.saturating_add(IDLE_MILLISECONDS) {
            self.age_grants(now);
        }
        self.resolve(usage, metrics)?;
        self.check_limits()?;
        let minute = self.minute_of(now);
        for index in 0..self.charges.len() {
            let Some(charge) = self.charges.get(index).copied() else {
                break;
            };
            for limit in &mut self.limits {
                if charge.counts_for & Names::bit(limit.name) != 0 {
                    limit.own = limit.own.saturating_add(charge.delta);
                }
            }
            if let Some(ledger) = self.ledger_of(charge.name) {
                ledger.admitted = ledger.admitted.saturating_add(charge.delta);
            }
            self.add_pending(charge.name, charge.delta, minute);
        }
        self.last_used = now.monotonic;
        Ok(())
    }

    fn resolve(&mut self, usage: &Usage, metrics: &Metrics) -> Result<(), Refusal> {
        self.charges.clear();
        for (metric, delta) in usage.iter() {
            let name = self
                .name(metrics.name(metric))
                .ok_or(Refusal::TooManyMetrics)?;
            let mut counts_for = self.names.with_ancestors(name);
            for ancestor in metrics.ancestors(metric) {
                if let Some(ancestor) = self.names.find(metrics.name(*ancestor)) {
                    counts_for |= self.names.with_ancestors(ancestor);
                }
            }
            self.charges.push(Charge {
                name,
                delta,
                counts_for,
            });
        }
        Ok(())
    }

    fn check_limits(&self) -> Result<(), Refusal> {
        let mut until = None;
        let mut early = false;
        for limit in &self.limits {
            let cost = self.cost(limit);
            if cost == 0 {
                continue;
            }
            if limit.admits(cost) {
                early |= !limit.is_granted();
                continue;
            }
            if limit.maximum == 0 {
                return Err(Refusal::Disabled);
            }
            until = until.max(Some(limit.window.end));
        }
        match until {
            Some(until) => Err(Refusal::Limited { until }),
            None if early => Err(Refusal::Early),
            None => Ok(()),
        }
    }

    /// Whether a limit has come to where this gateway should report and look again; true
    /// once, and again after the next look.
    pub fn take_urgent(&mut self) -> bool {
        let mut urgent = false;
        for limit in &mut self.limits {
            if let Some(grant) = &mut limit.grant
                && limit.own >= grant.urgent_at
            {
                grant.urgent_at = u64::MAX;
                urgent = true;
            }
        }
        urgent
    }

    /// What is left of the limits that are shared with other gateways, at the least, for who
    /// must choose whom to look at first; in parts of 65,536. `None` if none is shared or
    /// nothing is left, so that no look would change anything.
    #[must_use]
    pub fn least_headroom(&self, now: Moment) -> Option<u64> {
        let open = |limit: &&Limit| limit.grant.is_some() && limit.window.contains(now.seconds());
        let left = self.limits.iter().filter(open).map(|limit| {
            let known = limit.own.saturating_add(limit.foreign);
            let left = u128::from(limit.maximum.saturating_sub(known)).saturating_mul(65_536);
            let left = left.checked_div(u128::from(limit.maximum)).unwrap_or(0);
            u64::try_from(left).unwrap_or(u64::MAX)
        });
        left.min().filter(|left| *left > 0)
    }

    /// Since when nothing is known of what other gateways use of the limits that they share
    /// (monotonic milliseconds): since the last look, or since one of the windows began.
    #[must_use]
    pub fn known_until(&self, now: Moment) -> u64 {
        let shared = self.limits.iter().filter(|limit| limit.grant.is_some());
        let begun = shared.map(|limit| limit.window.start.saturating_mul(1_000));
        let ago = now.wall.saturating_sub(begun.max().unwrap_or(0));
        self.fetched_at.max(now.monotonic.saturating_sub(ago))
    }

    /// Renews what this gateway may do on the limits before it looks again, by the answer
    /// that was just taken in and was asked for at `asked`; those that it knows nothing
    /// about stay as they are.
    pub fn renew_grants(
        &mut self,
        authorization: &Authorization,
        accuracy: Accuracy,
        asked: Moment,
    ) -> Look {
        let (gateways, strict, settled_after) = match accuracy {
            Accuracy::Exact => {
                for limit in &mut self.limits {
                    limit.grant = None;
                }
                return Look::default();
            }
            Accuracy::Eager { gateways } => (gateways, false, 0),
            Accuracy::Strict {
                gateways,
                settled_after,
            } => (gateways, true, settled_after),
        };
        let settled = !strict
            || (self.batch == 0
                && asked.monotonic > self.acknowledged_at.saturating_add(settled_after));
        let luck = self.luck(asked.monotonic);
        let mut look = Look::default();
        for limit in &mut self.limits {
            let metric = self.names.bytes(limit.name);
            let Some(report) = authorization.limits.iter().find(|report| {
                report.metric.as_bytes() == metric
                    && report.period == limit.period
                    && report.window == limit.window
            }) else {
                continue;
            };
            // The others' usage cannot have become less: something of ours is missing.
            let age = asked.monotonic.saturating_sub(self.acknowledged_at);
            let late = settled
                && !limit.unsure
                && age < LONGEST_SETTLING
                && report.current < limit.sent.saturating_add(limit.foreign);
            if late {
                look.late = Some(age);
            }
            // Of what was sent, something may never arrive or arrive twice: then the
            // count and what was not sent yet is all that can be said.
            let unsent = limit.own.saturating_sub(limit.sent);
            let used = limit.own.saturating_add(limit.foreign);
            let known = Known {
                maximum: limit.maximum,
                used: used.max(report.current.saturating_add(unsent)),
                own: limit.own,
                sent: limit.sent,
                counted: report.current,
            };
            match &mut limit.grant {
                Some(grant) if grant.is_strict() == strict && grant.gateways == gateways => {
                    if settled && !(late && strict) {
                        grant.renew(&known, luck);
                    }
                }
                grant => *grant = Some(Grant::first(gateways, strict, &known, luck)),
            }
        }
        look
    }

    /// Grants that nobody used for a while are worth less: the others went on.
    fn age_grants(&mut self, now: Moment) {
        let luck = self.luck(now.monotonic);
        let looked = self.looked(now);
        for limit in &mut self.limits {
            let begun = limit.window.start.saturating_mul(1_000);
            let since = now.wall.saturating_sub(looked.max(begun));
            let unseen = limit.unseen(now, looked, since);
            if let Some(grant) = &mut limit.grant {
                let known = Known {
                    maximum: limit.maximum,
                    used: limit.own.saturating_add(limit.foreign),
                    own: limit.own,
                    sent: limit.sent,
                    counted: 0,
                };
                grant.idle(&known, unseen, luck);
            }
        }
    }

    /// A number that differs between gateways and moments.
    pub(super) fn luck(&self, moment: u64) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = self.digest.0;
        mix(u64::from_le_bytes([a, b, c, d, e, f, g, h]), moment)
    }

    /// What the usage that was resolved last costs of a limit.
    fn cost(&self, limit: &Limit) -> u64 {
        self.charges
            .iter()
            .filter(|charge| charge.counts_for & Names::bit(limit.name) != 0)
            .fold(0_u64, |sum, charge| sum.saturating_add(charge.delta))
    }

    /// What the caller is told of its limits right after [`admit`](Self::admit) has admitted
    /// its request, or `refused` it for a limit: of those that count its usage, the one that
    /// leaves least; of those that refuse it, the one that does so for longest. `None` if
    /// there is none.
    #[must_use]
    pub fn quota(&self, refused: bool) -> Option<Quota> {
        self.limits
            .iter()
            .filter(|limit| {
                let cost = self.cost(limit);
                cost > 0 && !(refused && limit.admits(cost))
            })
            .map(Quota::of)
            .min_by_key(|quota| {
                let least = if refused { 0 } else { quota.remaining };
                (least, Reverse(quota.until), quota.remaining)
            })
    }

    fn roll_windows(&mut self, now: Moment) {
        if self
            .limits
            .iter()
            .all(|limit| now.seconds() < limit.window.end)
        {
            return;
        }
        let luck = self.luck(now.seconds());
        let looked = self.looked(now);
        for limit in &mut self.limits {
            limit.roll(now, looked, luck);
        }
    }

    /// When service management was last heard of it, by the wall clock as it goes now (Unix
    /// milliseconds).
    const fn looked(&self, now: Moment) -> u64 {
        now.wall
            .saturating_sub(now.monotonic.saturating_sub(self.fetched_at))
    }

    /// The index of a name, which is added if there is room.
    fn name(&mut self, text: &str) -> Option<u8> {
        let name = self.names.find_or_add(text)?;
        if self.ledger.len() < self.names.len() {
            self.ledger.resize(self.names.len(), Ledger::default());
        }
        Some(name)
    }

    fn ledger_of(&mut self, name: u8) -> Option<&mut Ledger> {
        self.ledger.get_mut(usize::from(name))
    }

    /// The minute that usage of now is reported at. Where another worker has opened a window
    /// since this one read its clock, the usage counts in that window, here and so there.
    /// (A window further ahead is of a calendar clock that was set back.)
    fn minute_of(&self, now: Moment) -> u64 {
        let latest = now.seconds().saturating_add(LATE_READING_SECONDS);
        let starts = self.limits.iter().map(|limit| limit.window.start);
        let opened = starts.filter(|start| *start <= latest).max();
        now.minute().max(opened.unwrap_or(0))
    }

    fn add_pending(&mut self, name: u8, delta: u64, minute: u64) {
        let known = self
            .usage
            .iter_mut()
            .find(|entry| entry.name == name && entry.at == minute && !entry.hour);
        if let Some(entry) = known {
            entry.pending = entry.pending.saturating_add(delta);
            return;
        }
        self.fold_old_minutes(minute);
        self.usage.push(Entry {
            name,
            hour: false,
            at: minute,
            pending: delta,
            in_flight: 0,
            settling: 0,
        });
    }

    /// Puts minutes that are over three minutes old into their hours, so that an
    /// outage of a day costs a record at most 24 entries a metric.
    fn fold_old_minutes(&mut self, minute: u64) {
        let mut index = 0;
        while let Some(entry) = self.usage.get(index).copied() {
            if entry.hour || entry.at.saturating_add(MINUTES_KEPT_SECONDS) > minute {
                index = index.saturating_add(1);
                continue;
            }
            self.usage.remove(index);
            let hour = entry.at / 3_600;
            match self.usage.iter_mut().find(|candidate| {
                candidate.hour && candidate.name == entry.name && candidate.at / 3_600 == hour
            }) {
                Some(sum) => {
                    sum.at = sum.at.max(entry.at);
                    sum.pending = sum.pending.saturating_add(entry.pending);
                    sum.in_flight = sum.in_flight.saturating_add(entry.in_flight);
                    sum.settling = sum.settling.saturating_add(entry.settling);
                }
                None => self.usage.push(Entry {
                    hour: true,
                    ..entry
                }),
            }
        }
    }

    /// Moves pending usage into a batch: as many transactions as `most` allows,
    /// oldest first. Empty if nothing is pending or a batch is already in flight.
    pub fn dispatch(
        &mut self,
        batch: u64,
        deadline: u64,
        most: usize,
        metrics: &Metrics,
    ) -> Vec<Dispatched> {
        let mut transactions: Vec<Dispatched> = Vec::new();
        if self.batch != 0 || batch == 0 {
            return transactions;
        }
        self.usage.sort_by_key(|entry| entry.at);
        for index in 0..self.usage.len() {
            let Some(entry) = self.usage.get(index).copied() else {
                break;
            };
            if entry.pending == 0 {
                continue;
            }
            let metric = self.names.text(entry.name);
            let full = transactions.len() >= most;
            let count = match transactions.last_mut() {
                Some(last) if last.at == entry.at => last.add(metric, entry.pending),
                _ if full => break,
                _ => {
                    let mut next = Dispatched {
                        at: entry.at,
                        usage: Vec::new(),
                    };
                    let count = next.add(metric, entry.pending);
                    transactions.push(next);
                    count
                }
            };
            self.change_limits(&entry, metrics, |limit| {
                limit.sent = limit.sent.saturating_add(count);
            });
            if let Some(entry) = self.usage.get_mut(index) {
                entry.in_flight = entry.in_flight.saturating_add(count);
                entry.pending = entry.pending.saturating_sub(count);
            }
        }
        if !transactions.is_empty() {
            self.batch = batch;
            self.batch_deadline = deadline;
        }
        transactions
    }

    /// Takes what was admitted since the last time into the service's sums: returns it.
    pub fn publish(&mut self, metrics: &Metrics) -> Units {
        let mut units = Units::default();
        for (name, ledger) in (0_u8..).zip(&mut self.ledger) {
            let new = ledger.admitted.saturating_sub(ledger.published);
            ledger.published = ledger.admitted;
            if new > 0 {
                units.add_named(metrics, self.names.text(name), new);
            }
        }
        units
    }

    /// Settles the batch. Does nothing if the record is not in that batch (any more).
    /// Returns the units that left flight.
    pub fn settle(
        &mut self,
        batch: u64,
        outcome: Outcome,
        metrics: &Metrics,
        now: Moment,
    ) -> Units {
        let mut units = Units::default();
        if self.batch != batch || batch == 0 {
            return units;
        }
        let settled = now.monotonic > self.acknowledged_at.saturating_add(SETTLED_MILLISECONDS);
        for index in 0..self.usage.len() {
            let Some(entry) = self.usage.get(index).copied() else {
                break;
            };
            let count = entry.in_flight;
            units.add_named(metrics, self.names.text(entry.name), count);
            match outcome {
                Outcome::Acknowledged => {
                    if let Some(ledger) = self.ledger_of(entry.name) {
                        ledger.acknowledged = ledger.acknowledged.saturating_add(count);
                    }
                }
                Outcome::Lost | Outcome::Refused => {
                    if let Some(ledger) = self.ledger_of(entry.name) {
                        ledger.lost = ledger.lost.saturating_add(count);
                    }
                }
                Outcome::Returned | Outcome::Resent => {}
            }
            if count > 0 {
                self.change_limits(&entry, metrics, |limit| match outcome {
                    Outcome::Acknowledged => {}
                    Outcome::Returned => limit.sent = limit.sent.saturating_sub(count),
                    Outcome::Refused => {
                        limit.sent = limit.sent.saturating_sub(count);
                        limit.given_up = true;
                    }
                    Outcome::Resent => limit.unsure = true,
                    Outcome::Lost => {
                        limit.unsure = true;
                        limit.given_up = true;
                    }
                });
            }
            if let Some(entry) = self.usage.get_mut(index) {
                entry.in_flight = 0;
                if settled {
                    entry.settling = 0;
                }
                if outcome == Outcome::Acknowledged {
                    entry.settling = entry.settling.saturating_add(count);
                }
                if matches!(outcome, Outcome::Returned | Outcome::Resent) {
                    entry.pending = entry.pending.saturating_add(count);
                }
            }
        }
        self.usage.retain(|entry| !entry.is_over());
        // Where batches come faster than they settle, minutes would stay for ever.
        while self.usage.len() > MOST_SETTLING
            && let Some(oldest) = self.usage.iter().position(Entry::is_acknowledged)
        {
            self.usage.remove(oldest);
        }
        self.batch = 0;
        self.batch_deadline = 0;
        if outcome == Outcome::Acknowledged {
            self.acknowledged_at = now.monotonic;
        }
        units
    }

    /// Gives up pending usage that the backend would refuse as too old, which would
    /// cost the rest of its batch. Returns the units lost.
    pub fn give_up_unreportable(&mut self, metrics: &Metrics, now: Moment) -> Units {
        let oldest = now.seconds().saturating_sub(REPORTABLE_SECONDS);
        let mut units = Units::default();
        for index in 0..self.usage.len() {
            let Some(entry) = self.usage.get_mut(index) else {
                break;
            };
            if entry.at >= oldest || entry.pending == 0 {
                continue;
            }
            let given_up = *entry;
            let (name, count) = (entry.name, entry.pending);
            entry.pending = 0;
            self.change_limits(&given_up, metrics, |limit| limit.given_up = true);
            units.add_named(metrics, self.names.text(name), count);
            if let Some(ledger) = self.ledger_of(name) {
                ledger.lost = ledger.lost.saturating_add(count);
            }
        }
        self.usage.retain(|entry| !entry.is_over());
        units
    }

    /// Puts pending usage that the backend would refuse as too far ahead, which would cost the
    /// rest of its batch, into the minute of now: its stamp is of a calendar clock that was set
    /// back since, and it was admitted lately. Limits that it was counted in keep it; those whose
    /// window it comes into count it now, since the backend will.
    pub fn bring_back(&mut self, metrics: &Metrics, now: Moment) {
        let latest = now.seconds().saturating_add(AHEAD_SECONDS);
        let mut ahead = Vec::new();
        for entry in &mut self.usage {
            if entry.at > latest && entry.pending > 0 {
                ahead.push(*entry);
                entry.pending = 0;
            }
        }
        if ahead.is_empty() {
            return;
        }
        self.usage.retain(|entry| !entry.is_over());
        let minute = self.minute_of(now);
        for entry in ahead {
            let Entry {
                name, at, pending, ..
            } = entry;
            let counts_for = self.counts_for(name, metrics);
            for limit in &mut self.limits {
                let comes_in = limit.window.contains(minute) && !limit.window.contains(at);
                if comes_in && counts_for & Names::bit(limit.name) != 0 {
                    limit.own = limit.own.saturating_add(pending);
                }
            }
            self.add_pending(name, pending, minute);
        }
    }

    /// Changes every limit whose open window this usage counts in.
    fn change_limits(&mut self, entry: &Entry, metrics: &Metrics, change: impl Fn(&mut Limit)) {
        let counts_for = self.counts_for(entry.name, metrics);
        for limit in &mut self.limits {
            if counts_for & Names::bit(limit.name) != 0 && limit.window.contains(entry.at) {
                change(limit);
            }
        }
    }

    /// A name and its ancestors by the record's hierarchy and the service's.
    fn counts_for(&self, name: u8, metrics: &Metrics) -> u64 {
        let mut names = self.names.with_ancestors(name);
        if let Some(metric) = metrics.id(self.names.text(name)) {
            for ancestor in metrics.ancestors(metric) {
                if let Some(ancestor) = self.names.find(metrics.name(*ancestor)) {
                    names |= self.names.with_ancestors(ancestor);
                }
            }
        }
        names
    }

    /// Takes in what service management says of the application now.
    ///
    /// Counts of windows go on: what this gateway has admitted stays counted, and
    /// everybody else's usage is what the backend's count exceeds ours by.
    ///
    /// Names that are settled and that the answer does not need are forgotten when there
    /// is no room for those that it does.
    ///
    /// # Errors
    /// `TooManyMetrics` if the answer has more metrics or limits than a record holds; the
    /// record is then as it was.
    pub fn refresh(
        &mut self,
        authorization: &Authorization,
        metrics: &Metrics,
        now: Moment,
        ttl: u64,
        stale_if_error: u64,
    ) -> Result<(), Refusal> {
        let mut next = self.clone();
        if next.take_in(authorization, metrics, now, false).is_err() {
            next = self.clone();
            next.forget_settled_names(authorization);
            next.take_in(authorization, metrics, now, true)?;
        }
        next.denial = None;
        next.alone = false;
        next.heard(now, ttl, stale_if_error);
        *self = next;
        Ok(())
    }

    /// Takes in limits and hierarchy. `only_needed` leaves out of the hierarchy what
    /// neither has a limit nor can be used by this configuration.
    fn take_in(
        &mut self,
        authorization: &Authorization,
        metrics: &Metrics,
        now: Moment,
        only_needed: bool,
    ) -> Result<(), Refusal> {
        if authorization.limits.len() > MOST_LIMITS {
            return Err(Refusal::TooManyMetrics);
        }
        self.roll_windows(now);
        let needed = |child: &str, names: &Names| {
            metrics.id(child).is_some()
                || names.find(child).is_some()
                || authorization
                    .limits
                    .iter()
                    .any(|limit| limit.metric == child)
        };
        let mut parents = Vec::with_capacity(authorization.hierarchy.len());
        for (parent, child) in &authorization.hierarchy {
            if only_needed && !needed(child, &self.names) {
                continue;
            }
            let parent = self.name(parent).ok_or(Refusal::TooManyMetrics)?;
            let child = self.name(child).ok_or(Refusal::TooManyMetrics)?;
            parents.push((child, parent));
        }
        let mut reported = Vec::with_capacity(authorization.limits.len());
        for report in &authorization.limits {
            let name = self.name(&report.metric).ok_or(Refusal::TooManyMetrics)?;
            reported.push((name, report));
        }
        self.add_configured_parents(&mut parents, metrics);
        self.names.set_parents(&parents);
        let settled = self.is_settled(now);
        if settled {
            self.forget_settled_usage();
        }
        self.limits.retain(|limit| {
            let mut same = reported.iter();
            same.any(|(name, report)| limit.name == *name && limit.period == report.period)
        });
        let mut limits = Vec::with_capacity(reported.len());
        for (name, report) in reported {
            let known = self
                .limits
                .iter()
                .find(|limit| limit.name == name && limit.period == report.period);
            let limit = match known {
                Some(limit) => limit.merged(report, settled),
                None => self.new_limit(name, report, metrics, now),
            };
            limits.push(limit);
        }
        self.limits = limits;
        Ok(())
    }

    /// An answer of now has in its counts all that was acknowledged.
    fn forget_settled_usage(&mut self) {
        for entry in &mut self.usage {
            entry.settling = 0;
        }
        self.usage.retain(|entry| !entry.is_over());
    }

    /// Makes room for names: of the old ones only those stay that have unacknowledged
    /// usage, or a limit that the answer has too.
    fn forget_settled_names(&mut self, authorization: &Authorization) {
        let old = std::mem::take(&mut self.names);
        let ledger = std::mem::take(&mut self.ledger);
        let usage = std::mem::take(&mut self.usage);
        let limits = std::mem::take(&mut self.limits);
        for entry in usage {
            if let Some(name) = self.name(old.text(entry.name)) {
                self.usage.push(Entry { name, ..entry });
            }
        }
        for limit in limits {
            let text = old.text(limit.name);
            if authorization.limits.iter().any(|new| new.metric == text)
                && let Some(name) = self.name(text)
            {
                self.limits.push(Limit { name, ..limit });
            }
        }
        for (name, totals) in (0_u8..).zip(ledger) {
            if let Some(name) = self.names.find(old.text(name))
                && let Some(kept) = self.ledger_of(name)
            {
                *kept = totals;
            }
        }
    }

    /// Adds the parents that only the service's table names: service management shows
    /// those of limited metrics, so a way up to a limit can change between the two at every
    /// step. The parent is then the nearest ancestor that the record knows; whatever is
    /// between has no limit.
    fn add_configured_parents(&self, parents: &mut Vec<(u8, u8)>, metrics: &Metrics) {
        for child in (0_u8..).take(self.names.len()) {
            if parents.iter().any(|(shown, _)| *shown == child) {
                continue;
            }
            let parent = metrics.id(self.names.text(child)).and_then(|metric| {
                let mut ancestors = metrics.ancestors(metric).iter();
                ancestors.find_map(|ancestor| self.names.find(metrics.name(*ancestor)))
            });
            parents.extend(parent.map(|parent| (child, parent)));
        }
    }

    /// Takes in that service management denies the application now. Usage and
    /// limits stay; the usage goes alone, since the backend may no longer take it.
    pub fn deny(&mut self, denial: Denial, now: Moment, ttl: u64, stale_if_error: u64) {
        self.denial = Some(denial);
        self.alone = true;
        self.heard(now, ttl, stale_if_error);
    }

    /// Lets the application in unheard, for `unknown: allow` while the backend fails;
    /// unless it was last heard of as denied, which it then stays.
    pub fn let_in_unheard(&mut self, now: Moment, for_milliseconds: u64) {
        self.alone = true;
        self.heard(now, 0, for_milliseconds);
    }

    fn heard(&mut self, now: Moment, ttl: u64, stale_if_error: u64) {
        self.refresh_marked = false;
        self.fetched_at = now.monotonic;
        self.fresh_until = now.monotonic.saturating_add(ttl);
        self.stale_until = self.fresh_until.saturating_add(stale_if_error);
    }

    /// A limit that the record does not yet follow: what is not acknowledged counts
    /// as ours, and so does what was, but may not be in the backend's count yet; whatever else
    /// that has is others'.
    ///
    /// A backend whose clock is ahead says which window the first limits begin in. One that comes
    /// to others begins where they are: usage of now is reported in one minute, which must be in
    /// the windows of all that count it.
    fn new_limit(
        &self,
        name: u8,
        report: &crate::service_management::UsageReport,
        metrics: &Metrics,
        now: Moment,
    ) -> Limit {
        let here = report.period.window_at(self.minute_of(now));
        let window = if self.limits.is_empty() && here.start <= report.window.start {
            report.window
        } else {
            here
        };
        let (mut own, mut sent): (u64, u64) = (0, 0);
        for entry in &self.usage {
            let counts = self.counts_for(entry.name, metrics) & Names::bit(name) != 0;
            if counts && window.contains(entry.at) {
                let gone = entry.in_flight.saturating_add(entry.settling);
                own = own.saturating_add(entry.pending).saturating_add(gone);
                sent = sent.saturating_add(gone);
            }
        }
        let foreign = if window == report.window {
            report.current.saturating_sub(sent)
        } else {
            0
        };
        Limit {
            name,
            period: report.period,
            window,
            maximum: report.maximum,
            own,
            sent,
            foreign,
            unsure: false,
            given_up: false,
            grant: None,
        }
    }

    /// The limits, for those who look at a record from outside.
    pub fn limits(&self) -> impl Iterator<Item = (&str, &Limit)> {
        self.limits
            .iter()
            .map(|limit| (self.names.text(limit.name), limit))
    }

    /// Per metric: its totals, and the units pending and in flight.
    pub fn accounts(&self) -> impl Iterator<Item = (&str, Ledger, u64, u64)> {
        (0_u8..).zip(&self.ledger).map(|(name, ledger)| {
            let of_name = self.usage.iter().filter(move |entry| entry.name == name);
            let (pending, in_flight) =
                of_name.fold((0_u64, 0_u64), |(pending, in_flight), entry| {
                    (
                        pending.saturating_add(entry.pending),
                        in_flight.saturating_add(entry.in_flight),
                    )
                });
            (self.names.text(name), *ledger, pending, in_flight)
        })
    }
}

#[cfg(test)]
#[path = "record_tests.rs"]
mod tests;
