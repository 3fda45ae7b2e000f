//! Requests whose credential may be in their body.
//!
//! Apart from the other requests because these are decided at the end of the body, and
//! because what Envoy does with a body meanwhile must be right: nothing may go
//! upstream before the decision.

use super::Root;
use crate::config::Replies;
use crate::host::abi::{self, Action};
use crate::host::local_reply::{Reply, waiting_wants_grpc};
use crate::moment::Moment;
use crate::request::Request;
use std::collections::HashMap;

/// The largest body that is read: 64 KiB. A form with a credential is far smaller, and
/// Envoy keeps it in memory.
pub const LARGEST_BODY: usize = 65_536;
/// A body that has not come so long (milliseconds) after its headers will not come. This also
/// ends what waits for nothing, where Envoy was not told to show bodies to filters.
const LONGEST_WAIT: u64 = 10_000;
/// Requests that may wait for bodies in one VM.
const MOST_WAITING: usize = 10_000;
/// At least so long (milliseconds) between two looks for a place: see [`super::ended`].
const PAUSE_MILLISECONDS: u64 = 100;

/// Whether a body of so many bytes is not read.
pub const fn is_too_large(size: usize) -> bool {
    size > LARGEST_BODY
}

/// Waits for a request's body, unless it says that it is too large.
pub(super) fn wait(request: &Request<'_>) -> Result<Action, Reply> {
    let length = request
        .headers
        .first(b"content-length")
        .and_then(|length| std::str::from_utf8(length).ok()?.parse::<u64>().ok());
    // Without a length, or with a strange one, what comes is measured.
    if length.is_some_and(|length| usize::try_from(length).map_or(true, is_too_large)) {
        return Err(Reply::LargeBody);
    }
    Ok(Action::AwaitBody)
}

/// The streams that wait for their body.
///
/// A stream leaves only when it is decided or has ended: whatever else became of its root,
/// a body of which nobody knows any more would take its request upstream.
#[derive(Default)]
pub struct Bodies {
    waiting: HashMap<u32, Wait>,
    /// When room may be looked for again (monotonic milliseconds).
    next_room: u64,
}

struct Wait {
    root_id: u32,
    /// Since when (monotonic milliseconds).
    since: u64,
    /// It has waited too long, and was answered.
    late: bool,
}

impl Bodies {
    /// Takes in the stream whose callback is running. False: there are too many.
    pub fn insert(&mut self, stream_id: u32, root_id: u32, now: Moment) -> bool {
        if self.waiting.len() >= MOST_WAITING && now.monotonic >= self.next_room {
            self.next_room = now.monotonic.saturating_add(PAUSE_MILLISECONDS);
            self.waiting
                .retain(|waiting, _| abi::set_effective_context(*waiting).is_ok());
            let _ = abi::set_effective_context(stream_id);
        }
        if self.waiting.len() >= MOST_WAITING {
            return false;
        }
        let wait = Wait {
            root_id,
            since: now.monotonic,
            late: false,
        };
        self.waiting.insert(stream_id, wait);
        true
    }

    /// Whether a stream waits.
    pub fn waits(&self, stream_id: u32) -> bool {
        // Usually there are none, and then it is not worth a hash.
        !self.waiting.is_empty() && self.waiting.contains_key(&stream_id)
    }

    /// Lets go of a stream that is to be decided. The root that decides; `None` if it was
    /// answered already.
    pub fn take(&mut self, stream_id: u32) -> Option<u32> {
        self.waiting
            .remove(&stream_id)
            .and_then(|wait| (!wait.late).then_some(wait.root_id))
    }

    /// Answers those that have waited too long, and forgets those that have ended. Returns how
    /// many were answered. To be called from a callback of this root, whose context is
    /// the effective one afterwards.
    pub fn expire(&mut self, root_id: u32, roots: &[Root], now: Moment) -> usize {
        let mut answered: usize = 0;
        let mut away = false;
        self.waiting.retain(|stream_id, wait| {
            if abi::set_effective_context(*stream_id).is_err() {
                return false;
            }
            away = true;
            if !wait.late && now.monotonic.saturating_sub(wait.since) >= LONGEST_WAIT {
                wait.late = true;
                answered = answered.saturating_add(1);
                let root = roots.iter().find(|root| root.id() == wait.root_id);
                let built_in = Replies::default();
                let replies = root.map_or(&built_in, Root::general_replies);
                Reply::LateBody.send(replies, waiting_wants_grpc(), None, now);
            }
            true
        });
        if away {
            let _ = abi::set_effective_context(root_id);
        }
        answered
    }
}
