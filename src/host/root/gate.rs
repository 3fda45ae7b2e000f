//! Whether an unknown application may be asked about at all: not when service management
//! keeps failing, and not when too many unknown credentials are asked about already.
//!
//! Apart from the flights because those say who asks, and this whether anybody does. Both
//! are looked at before a question is put among those under way, because a flood must cost
//! little, and gone through when it is really asked.

use super::Root;
use crate::authorization::{Caller, Landing, Passage, Turn};
use crate::credentials::Digest;
use crate::host::local_reply::Reply;
use crate::host::vm::Shared;
use crate::moment::Moment;
use crate::service_management::AuthorizeAnswer;
use log::{info, warn};

/// Why nobody is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shut {
    /// Service management keeps failing.
    BreakerOpen,
    /// Too many unknown credentials are asked about.
    OverBudget,
    /// Nobody can say how many are, because shared data is contended beyond reason.
    Contended,
    /// Envoy does not make the call.
    NoCall,
}

impl Shut {
    /// What those who wait elsewhere are told.
    pub(super) const fn landing(self) -> Landing {
        match self {
            Self::BreakerOpen | Self::NoCall => Landing::Failed,
            Self::OverBudget => Landing::OverBudget,
            Self::Contended => Landing::Contended,
        }
    }
}

impl Root {
    /// Whether a question about this application could be asked now.
    pub(super) fn look_through_gate(
        &self,
        digest: Digest,
        shared: &mut Shared,
        now: Moment,
    ) -> Result<(), Shut> {
        if self.breaker.passage(&shared.data, now) == Passage::Open {
            return Err(Shut::BreakerOpen);
        }
        if self.budget.has_some(&shared.data, now, Caller::Stranger) {
            return Ok(());
        }
        let caller = shared.applications.caller(&shared.data, digest, now);
        if caller == Caller::Returning && self.budget.has_some(&shared.data, now, caller) {
            return Ok(());
        }
        Err(Shut::OverBudget)
    }

    /// What a caller is told when nobody could say anything of its application: also when
    /// somebody may be asked again.
    pub(super) fn backend_failed(&self, shared: &Shared, now: Moment) -> Reply {
        let pause = self.breaker.pause(&shared.data, now);
        Reply::BackendFailed {
            retry_after: pause.div_ceil(1_000).max(1),
        }
    }

    /// A question about this application is asked now, if it may be.
    pub(super) fn pass_gate(
        &self,
        digest: Digest,
        shared: &mut Shared,
        now: Moment,
    ) -> Result<(), Shut> {
        // The passage last: it may be the probe that the breaker waits for.
        self.spend(digest, shared, now)?;
        if self.breaker.pass(&shared.data, now, self.longest()) {
            Ok(())
        } else {
            Err(Shut::BreakerOpen)
        }
    }

    /// Takes a question about this application out of the budget.
    pub(super) fn spend(
        &self,
        digest: Digest,
        shared: &mut Shared,
        now: Moment,
    ) -> Result<(), Shut> {
        let take = |shared: &Shared, caller| {
            let taken = self.budget.take(&shared.data, now, caller);
            taken.map_err(|_| Shut::Contended)
        };
        // Who it is is looked up only where it matters: a flood must cost little.
        if take(shared, Caller::Stranger)? {
            return Ok(());
        }
        let caller = shared.applications.caller(&shared.data, digest, now);
        if caller == Caller::Returning && take(shared, caller)? {
            return Ok(());
        }
        Err(Shut::OverBudget)
    }

    /// Takes in what an answer says of service management itself.
    pub(super) fn judge(&self, answer: &AuthorizeAnswer, shared: &mut Shared, now: Moment) {
        let turn = match answer {
            // About one application and nobody else, and must not shut the gate for others.
            AuthorizeAnswer::Failed(failure) if failure.may_be_of_the_consumers_making() => {
                self.breaker.unjudged(&shared.data, now);
                None
            }
            AuthorizeAnswer::Failed(_) => {
                let jitter = shared.random();
                self.breaker.failed(&shared.data, now, jitter)
            }
            _ => self.breaker.answered(&shared.data, now),
        };
        match turn {
            Some(Turn::Opened) => warn!(
                "service management keeps failing: unknown applications are answered without \
                 asking it, until it answers again"
            ),
            Some(Turn::Closed) => info!("service management answers again"),
            None => {}
        }
    }
}
