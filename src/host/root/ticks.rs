//! What happens when time has passed: the services that this VM leads are flushed,
//! refreshed and swept. Every tick does bounded work, for it holds up its worker.

use super::{Call, Root, access, ahead, settings, tick_milliseconds};
use crate::authorization::{Caller, Change, Landing, Mark, Next, Question};
use crate::credentials::Identities;
use crate::host::stats::Counter;
#[cfg(feature = "trap-for-tests")]
use crate::host::trap;
use crate::host::vm::Shared;
use crate::host::{calls, seed};
use crate::moment::Moment;
use crate::service_management::{Failure, ReportAnswer};
use crate::usage::{Lead, MOST_LOOKS, Terms, lead, wants_flush};
use log::{info, warn};
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// A leader that does not renew its lease for so long is replaced, unless there are so many
/// services that it comes by less than four times in it.
const LEASE_MILLISECONDS: u64 = 4_000;
/// Services that one tick looks after at most. Each costs some reads of shared data.
pub(super) const MOST_SERVICES: usize = 100;
/// Refreshes that one tick or one answer looks at at most.
const MOST_REFRESHES: usize = 1_000;
/// Longest and shortest time between ticks, in milliseconds.
const LONGEST_PERIOD: u32 = 1_000;
const SHORTEST_PERIOD: u32 = 100;

/// Which services have their turn next.
#[derive(Debug, Default)]
pub(super) struct Rounds {
    lead: Turn,
    work: Turn,
    pub(super) hurry: Turn,
}

/// A number below a count, and after the last the first again.
#[derive(Debug, Default)]
pub(super) struct Turn(usize);

impl Turn {
    pub(super) const fn next(&mut self, count: usize) -> usize {
        let turn = if self.0 < count { self.0 } else { 0 };
        self.0 = turn.saturating_add(1);
        turn
    }
}

/// Between ticks, in milliseconds, for so many services: so that each has its turn once a
/// second, as far as that can be.
pub(super) fn period(services: usize) -> u32 {
    let turns = u32::try_from(services.div_ceil(MOST_SERVICES)).unwrap_or(u32::MAX);
    let period = LONGEST_PERIOD.checked_div(turns).unwrap_or(LONGEST_PERIOD);
    period.max(SHORTEST_PERIOD)
}

/// How long a lease is taken for, in milliseconds, with ticks in this period.
fn lease(services: usize, period: u32) -> u64 {
    let turns = u64::try_from(services.div_ceil(MOST_SERVICES)).unwrap_or(u64::MAX);
    let round = turns.saturating_mul(u64::from(period));
    round.saturating_mul(4).max(LEASE_MILLISECONDS)
}

impl Root {
    /// Leads where this VM may: flushes, refreshes, sweeps.
    pub fn on_tick(&mut self, shared: &mut Shared, now: Moment) {
        for at_work in &self.services {
            at_work.stats.hand_over();
        }
        if self.shares_limits() && now.monotonic < self.next_full_tick {
            self.hurry(shared, now);
            return;
        }
        // Ticks come a little early and late.
        let period = u64::from(tick_milliseconds(&self.configuration));
        let soon = period.saturating_sub(period / 8);
        self.next_full_tick = now.monotonic.saturating_add(soon);
        self.agree_on_key(shared);
        self.look_after_waiting(shared, now);
        self.run_for_the_lead(shared, now);
        self.work(shared, now);
        self.refresh(shared, now);
        self.look_after_keys(shared, now);
        self.look_after_inquiries(shared, now);
        self.hurry(shared, now);
        self.sweep(shared, now);
    }

    /// Takes and renews the lead of the next services.
    fn run_for_the_lead(&mut self, shared: &mut Shared, now: Moment) {
        let lease = lease(self.services.len(), tick_milliseconds(&self.configuration));
        for _ in 0..self.services.len().min(MOST_SERVICES) {
            let index = self.rounds.lead.next(self.services.len());
            let Some(at_work) = self.services.get_mut(index) else {
                break;
            };
            let lead = lead(&shared.data, at_work.scope, self.candidate, now, lease);
            if lead == Lead::Inherited {
                let settings = settings(&self.configuration.reporting, &at_work.service.trust);
                let slots = shared.applications.slots();
                self.sweep.hurry(slots, settings.deadline(now));
            }
            let leads = lead != Lead::No;
            if leads && !at_work.leads {
                info!("leading service index {index}: this VM flushes and refreshes");
                at_work.sums.show(Some(&at_work.flusher.in_flight()));
            }
            at_work.leads = leads;
            if !leads {
                let (data, applications) = (&shared.data, &shared.applications);
                at_work.flusher.hand_over(data, applications);
                at_work.refresher.hand_over();
            }
            at_work.show_refreshes();
        }
    }

    /// Flushes and probes the next services, and sees who is to be refreshed, until it has looked
    /// at so many records that the rest must wait for the next tick.
    fn work(&mut self, shared: &mut Shared, now: Moment) {
        let mut looks = MOST_LOOKS;
        for _ in 0..self.services.len().min(MOST_SERVICES) {
            if looks == 0 || !self.calls.has_room() {
                break;
            }
            let index = self.rounds.work.next(self.services.len());
            if !self.leads(index) {
                continue;
            }
            self.flush(index, shared, now, &mut looks);
            self.probe(index, shared, now);
            if let Some(at_work) = self.services.get_mut(index) {
                let (data, applications) = (&shared.data, &mut shared.applications);
                let ahead = ahead(&self.configuration.reporting, &at_work.service.trust);
                let refresher = &mut at_work.refresher;
                refresher.take_marks(data, applications);
                refresher.list_marked(data, applications, ahead, now, &mut looks);
            }
        }
    }

    /// Goes by the key that the process agreed on, should it be another one now.
    fn agree_on_key(&mut self, shared: &Shared) {
        if let Some(key) = seed::agree(&shared.data, &shared.offer)
            && key != self.key
        {
            self.key = key;
            for (service, at_work) in self.configuration.services.iter().zip(&mut self.services) {
                at_work.identities = Identities::new(&key, &service.scope);
            }
        }
    }

    /// Sends the reports that are due.
    pub(super) fn flush(
        &mut self,
        index: usize,
        shared: &mut Shared,
        now: Moment,
        looks: &mut u32,
    ) {
        if !self.calls.has_room() {
            return;
        }
        let Some(at_work) = self.services.get_mut(index) else {
            return;
        };
        let settings = settings(&self.configuration.reporting, &at_work.service.trust);
        let (reports, settled) = at_work.flusher.next(
            &shared.data,
            &mut shared.applications,
            &access(&at_work.service),
            &Terms {
                metrics: &at_work.service.metrics,
                settings,
                now,
            },
            looks,
        );
        at_work.settled(settled, now);
        for (slot, wanted) in at_work.flusher.take_due() {
            at_work.refresher.add(slot, wanted, now);
        }
        for report in reports {
            self.count(index, Counter::ReportCalls);
            #[cfg(feature = "trap-for-tests")]
            trap::leader(trap::Point::Unsent);
            let sent = calls::report(
                &self.configuration.service_management,
                self.configuration.reporting.timeout,
                &report.body,
            );
            #[cfg(feature = "trap-for-tests")]
            trap::leader(trap::Point::Sent);
            match sent {
                Some(token) => {
                    self.calls.insert(
                        token,
                        Call::Report {
                            service: index,
                            batch: report.batch,
                        },
                    );
                }
                None => {
                    let answer = ReportAnswer::NotDelivered(Failure::NotConnected);
                    self.answered_report(index, report.batch, &answer, shared, now);
                }
            }
        }
    }

    /// Asks the questions that are due, of all services those first that cannot wait, as far as
    /// the budget of refreshes goes.
    pub(super) fn refresh(&mut self, shared: &mut Shared, now: Moment) {
        let mut next: BinaryHeap<_> = self
            .services
            .iter_mut()
            .enumerate()
            .filter(|(_, at_work)| at_work.leads)
            .filter_map(|(index, at_work)| Some(Reverse((at_work.refresher.rank(now)?, index))))
            .collect();
        for _ in 0..MOST_REFRESHES {
            if !self.calls.has_room() {
                return;
            }
            let Some(Reverse((_, index))) = next.pop() else {
                return;
            };
            let Some(at_work) = self.services.get_mut(index) else {
                return;
            };
            let (data, budget) = (shared.data, self.refreshes);
            // What cannot be booked is not asked.
            let may_ask = || budget.take(&data, now, Caller::Known).unwrap_or(false);
            let ahead = ahead(&self.configuration.reporting, &at_work.service.trust);
            let applications = &mut shared.applications;
            match at_work
                .refresher
                .next(&data, applications, ahead, now, may_ask)
            {
                Next::Nobody => continue,
                Next::NotWanted(slot) => at_work.looked_elsewhere(slot, now),
                Next::OverBudget { late } => {
                    if late {
                        self.warn_of_late_refreshes(now);
                    }
                    return;
                }
                Next::Ask(question) => self.ask_in_turn(index, question, shared, now),
            }
            if let Some(at_work) = self.services.get_mut(index)
                && let Some(rank) = at_work.refresher.rank(now)
            {
                next.push(Reverse((rank, index)));
            }
        }
    }

    /// Asks about an application that is known, unless another VM does.
    fn ask_in_turn(&mut self, index: usize, question: Question, shared: &mut Shared, now: Moment) {
        if self.may_refresh(question.digest, shared, now) {
            self.ask_again(index, question, shared, now);
        } else if let Some(at_work) = self.services.get_mut(index) {
            at_work.refresher.left_to_another(question.slot);
            at_work.looked_elsewhere(question.slot, now);
        }
    }

    fn warn_of_late_refreshes(&mut self, now: Moment) {
        if let Some(withheld) = self.few_refreshes.due(now.monotonic) {
            warn!(
                "authorization.refreshes_per_second ({}) is small for the applications in use: some \
                 answers are almost too old. Raise it, or ttl and stale_if_error, before requests \
                 have to wait ({withheld} such lines withheld)",
                self.configuration.authorization.refreshes_per_second
            );
        }
    }

    /// Asks about an application that is known.
    pub(super) fn ask_again(
        &mut self,
        index: usize,
        question: Question,
        shared: &mut Shared,
        now: Moment,
    ) {
        let Some(at_work) = self.services.get(index) else {
            return;
        };
        let asked = at_work.asks_again_with(question.app_key.as_deref());
        self.count(index, Counter::RefreshCalls);
        match self.ask(index, question.kind, &question.value, &asked) {
            Some(token) => {
                self.calls.insert(
                    token,
                    Call::Refresh {
                        service: index,
                        question,
                        asked: now,
                    },
                );
            }
            None => {
                self.land(question.digest, Landing::Failed, shared);
                let jitter = shared.random();
                if let Some(at_work) = self.services.get_mut(index) {
                    at_work.not_called(now);
                    at_work.refresher.failed(question.slot, now, jitter);
                }
            }
        }
    }

    /// Looks at some of the slots, so that what no mark names is found all the same:
    /// usage in flight of a VM that went away, marks that were lost with one.
    fn sweep(&mut self, shared: &mut Shared, now: Moment) {
        if !self.services.iter().any(|at_work| at_work.leads) {
            return;
        }
        let reporting = &self.configuration.reporting;
        let tick = tick_milliseconds(&self.configuration);
        let (hurries, slots) = self.sweep.next(shared.applications.slots(), tick, now);
        for slot in slots {
            let services = &mut self.services;
            let found = shared
                .applications
                .table()
                .change_slot(&shared.data, slot, |record| {
                    let at_work = services
                        .iter_mut()
                        .find(|at_work| at_work.leads && at_work.scope == record.scope)?;
                    let ahead = ahead(reporting, &at_work.service.trust);
                    if let Some(wanted) = record.wants_refresh(now, ahead) {
                        at_work.refresher.add(slot, wanted, now);
                    }
                    let wanted = wants_flush(record, now);
                    if wanted && hurries {
                        at_work.flusher.hasten(now);
                    }
                    Some(Change::Keep(wanted.then_some(at_work.scope)))
                });
            // Marked, not flushed: usage that only waits for its round is sent in it, and what a VM
            // left that went away in an early one.
            if let Ok(Some(Some(scope))) = found {
                shared
                    .applications
                    .marks(Mark::Dirty, scope)
                    .set_and_note(&shared.data, slot);
            }
        }
    }
}
