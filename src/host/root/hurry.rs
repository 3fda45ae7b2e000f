//! Limits that are shared with other gateways: who is near one is reported and looked at at
//! once, on ticks of its own.
//!
//! Apart from the other ticks, which do everything there is to do and come more seldom.

use super::Root;
use super::ticks::MOST_SERVICES;
use crate::authorization::Accuracy;
use crate::host::vm::Shared;
use crate::moment::Moment;
use crate::usage::MOST_LOOKS;

impl Root {
    /// Whether limits are shared, so that there are ticks in between.
    pub(super) fn shares_limits(&self) -> bool {
        self.configuration.authorization.accuracy != Accuracy::Exact
    }

    /// Does what is urgent in the next services that this VM leads, until it has looked at so many
    /// records that the rest must wait for the next tick.
    pub(super) fn hurry(&mut self, shared: &mut Shared, now: Moment) {
        let most = usize::try_from(self.configuration.reporting.batch).unwrap_or(usize::MAX);
        let count = self.services.len();
        let (mut services, mut looks) = (MOST_SERVICES, usize::try_from(MOST_LOOKS).unwrap_or(0));
        for _ in 0..count {
            if services == 0 || looks == 0 {
                break;
            }
            let index = self.rounds.hurry.next(count);
            let Some(at_work) = self.services.get_mut(index) else {
                break;
            };
            if !at_work.leads {
                continue;
            }
            let Some(urgent) = &mut at_work.urgent else {
                continue;
            };
            let due = urgent.next(
                &shared.data,
                &mut shared.applications,
                now,
                most,
                &mut self.urgent_calls,
            );
            services = services.saturating_sub(1);
            looks = looks.saturating_sub(urgent.following());
            at_work.flusher.urge(&due.report, urgent.held(), now);
            for slot in due.ask.iter().rev() {
                at_work.refresher.add_first(*slot, now);
            }
            if !due.report.is_empty() {
                self.flush(index, shared, now, &mut MOST_LOOKS.clone());
            }
            if !due.ask.is_empty() {
                self.refresh(shared, now);
            }
        }
    }
}
