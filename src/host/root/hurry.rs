//! Limits that are shared with other gateways: who is near one is reported and looked at at
//! once, on ticks of its own.
//!
//! Apart from the other ticks, which do everything there is to do and come more seldom.

use super::Root;
use crate::authorization::Accuracy;
use crate::host::vm::Shared;
use crate::moment::Moment;
use crate::usage::MOST_LOOKS;

impl Root {
    /// Whether limits are shared, so that there are ticks in between.
    pub(super) fn shares_limits(&self) -> bool {
        self.configuration.authorization.accuracy != Accuracy::Exact
    }

    /// Does what is urgent, in the services that this VM leads.
    pub(super) fn hurry(&mut self, shared: &mut Shared, now: Moment) {
        let most = usize::try_from(self.configuration.reporting.batch).unwrap_or(usize::MAX);
        for index in 0..self.services.len() {
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
