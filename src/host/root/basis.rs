//! What those who waited for an answer are decided on.
//!
//! Apart from the answers because an answer can come to this VM or to another, or fail to
//! come, and whoever waited is decided about in the same way.

use super::Waiting;
use super::at_work::AtWork;
use crate::authorization::{Identity, Landing, Learned, Record, Verdict};
use crate::host::local_reply::Reply;
use crate::host::vm::Shared;
use crate::moment::Moment;

/// See the module's description.
pub(super) enum Basis {
    /// On what is remembered by now.
    Remembered,
    /// On a record that has no slot.
    Uncached(Box<Record>),
    /// On what was known before, and else this is said.
    Known(Reply),
    /// On what was known before, and else they are let in unheard, for so many milliseconds.
    Unheard(u64),
    /// Somebody was let in unheard: on what is remembered by now.
    LetIn,
    /// Somebody was let in unheard: on a record that has no slot.
    LetInUncached(Box<Record>),
    /// This is said to all.
    Reply(Reply),
}

impl Basis {
    /// Decides about one who waited. [`Verdict::Unknown`]: another answer is needed.
    pub fn decide(
        &mut self,
        at_work: &AtWork,
        shared: &mut Shared,
        identity: &Identity<'_>,
        waiting: &Waiting,
        now: Moment,
    ) -> Result<Verdict, Reply> {
        let metrics = &at_work.service.metrics;
        let usage = &waiting.usage;
        let applications = &mut shared.applications;
        let data = &shared.data;
        let decided = match self {
            Self::Reply(reply) => return Err(*reply),
            Self::Uncached(record) | Self::LetInUncached(record) => {
                Ok(applications.decide_uncached(data, record, identity, usage, metrics, now))
            }
            Self::Remembered => applications.decide(data, identity, usage, metrics, now),
            Self::Known(_) | Self::Unheard(_) | Self::LetIn => {
                applications.decide_unanswered(data, identity, usage, metrics, now)
            }
        };
        match (decided, &*self) {
            (Ok(Verdict::Unknown), Self::Known(reply)) => Err(*reply),
            (Ok(Verdict::Unknown), Self::Unheard(milliseconds)) => {
                let learned = applications.let_in_unheard(data, identity, now, *milliseconds);
                *self = match learned {
                    Ok(Learned::Uncached(record)) => Self::LetInUncached(record),
                    Ok(Learned::Remembered | Learned::TooManyMetrics) => Self::LetIn,
                    Err(_) => Self::Reply(Reply::Contended),
                };
                self.decide(at_work, shared, identity, waiting, now)
            }
            (decided, _) => decided.map_err(|_| Reply::Contended),
        }
    }

    /// Whether those who are admitted on it are so without any answer.
    pub const fn is_unheard(&self) -> bool {
        matches!(self, Self::LetIn | Self::LetInUncached(_))
    }

    /// What those who wait elsewhere are told.
    pub const fn landing(&self) -> Landing {
        match self {
            Self::Remembered => Landing::Remembered,
            Self::Uncached(_) => Landing::Uncached,
            Self::Reply(Reply::Denied(denial)) => Landing::denied(*denial),
            Self::Known(Reply::Misconfigured) | Self::Reply(Reply::Misconfigured) => {
                Landing::Misconfigured
            }
            Self::Known(_) | Self::Unheard(_) | Self::LetIn | Self::LetInUncached(_) => {
                Landing::Failed
            }
            Self::Reply(_) => Landing::Contended,
        }
    }
}
