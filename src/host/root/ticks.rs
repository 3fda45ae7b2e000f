//! What happens when time has passed: the services that this VM leads are flushed,
//! refreshed and swept. Every tick does bounded work, for it holds up its worker.

use super::{Call, Root, access, refresh_ahead, settings, tick_milliseconds};
use crate::authorization::{Change, Landing, Mark, Question, Slot};
use crate::credentials::Identities;
use crate::host::stats::Counter;
#[cfg(feature = "trap-for-tests")]
use crate::host::trap;
use crate::host::vm::Shared;
use crate::host::{calls, seed};
use crate::moment::Moment;
use crate::service_management::{Failure, ReportAnswer};
use crate::usage::{Terms, lead, wants_flush};
use log::info;

/// A leader that does not renew its lease for so long is replaced.
const LEASE_MILLISECONDS: u64 = 4_000;
/// The sweep looks at every slot once in so many ticks.
const TICKS_OF_A_SWEEP: u32 = 60;
/// The sweep looks at no more slots in a tick than this: about a millisecond.
const MOST_SWEPT: u32 = 1_000;

impl Root {
    /// Leads where this VM may: flushes, refreshes, sweeps.
    pub fn on_tick(&mut self, shared: &mut Shared, now: Moment) {
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
        for index in 0..self.services.len() {
            let Some(at_work) = self.services.get_mut(index) else {
                break;
            };
            let leads = lead(
                &shared.data,
                at_work.scope,
                self.candidate,
                now,
                LEASE_MILLISECONDS,
            );
            if leads && !at_work.leads {
                info!("leading service index {index}: this VM flushes and refreshes");
                at_work.sums.show(Some(&at_work.flusher.in_flight()));
            }
            at_work.leads = leads;
            if !leads {
                at_work
                    .flusher
                    .hand_over(&shared.data, &shared.applications);
            }
            if leads {
                at_work
                    .refresher
                    .take_marks(&shared.data, &shared.applications);
                self.flush(index, shared, now);
                self.probe(index, shared, now);
                self.refresh(index, shared, now);
            }
        }
        self.look_after_keys(shared, now);
        self.hurry(shared, now);
        self.sweep(shared, now);
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
    pub(super) fn flush(&mut self, index: usize, shared: &mut Shared, now: Moment) {
        let settings = settings(&self.configuration);
        let Some(at_work) = self.services.get_mut(index) else {
            return;
        };
        let (reports, settled) = at_work.flusher.next(
            &shared.data,
            &mut shared.applications,
            &access(&at_work.service),
            &Terms {
                metrics: &at_work.service.metrics,
                settings,
                now,
            },
        );
        at_work.settled(settled, now);
        for slot in at_work.flusher.take_due() {
            at_work.refresher.add(slot, now);
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

    /// Asks the questions that are due.
    pub(super) fn refresh(&mut self, index: usize, shared: &mut Shared, now: Moment) {
        let Some(at_work) = self.services.get_mut(index) else {
            return;
        };
        let questions = at_work
            .refresher
            .next(&shared.data, &mut shared.applications, now);
        for question in questions {
            if !self.may_refresh(question.digest, shared, now) {
                if let Some(at_work) = self.services.get_mut(index) {
                    at_work.refresher.left_to_another(question.slot);
                }
                continue;
            }
            self.ask_again(index, question, shared, now);
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
                self.warn_failed(index, "the call could not be made", now);
                let jitter = shared.random();
                if let Some(at_work) = self.services.get_mut(index) {
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
        let slots = shared.applications.slots();
        let ahead = refresh_ahead(&self.configuration);
        for _ in 0..slots.div_ceil(TICKS_OF_A_SWEEP).min(MOST_SWEPT) {
            let slot = Slot(self.swept);
            self.swept = self.swept.saturating_add(1);
            if self.swept >= slots {
                self.swept = 0;
            }
            let services = &mut self.services;
            let found = shared
                .applications
                .table()
                .change_slot(&shared.data, slot, |record| {
                    let at_work = services
                        .iter_mut()
                        .find(|at_work| at_work.leads && at_work.scope == record.scope)?;
                    if record.wants_refresh(now, ahead) {
                        at_work.refresher.add(slot, now);
                    }
                    Some(Change::Keep(
                        wants_flush(record, now).then_some(at_work.scope),
                    ))
                });
            // Marked, not flushed: usage that only waits for its round is sent in it.
            if let Ok(Some(Some(scope))) = found {
                shared
                    .applications
                    .marks(Mark::Dirty, scope)
                    .set_and_note(&shared.data, slot);
            }
        }
    }
}
