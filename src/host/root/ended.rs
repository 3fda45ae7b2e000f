//! Requests that ended while they waited for an answer, and the places that they still hold.
//!
//! Apart because nobody tells: a callback for the end of a stream would cost every request,
//! so it is found out, on ticks and when there is no place left.

use super::Root;
use crate::host::abi;
use crate::moment::Moment;

/// At least so long (milliseconds) between two looks for a place: each asks Envoy about every
/// request that waits, about a millisecond in all.
const PAUSE_MILLISECONDS: u64 = 100;

impl Root {
    /// Makes room for a request whose callback is running, if there is none: those that
    /// have ended need theirs no more.
    pub(super) fn make_room(&mut self, stream_id: u32, now: Moment) {
        if now.monotonic >= self.next_room {
            self.next_room = now.monotonic.saturating_add(PAUSE_MILLISECONDS);
            self.forget_ended(stream_id);
        }
    }

    /// Forgets requests that have ended. `context` is the effective one afterwards.
    pub(super) fn forget_ended(&mut self, context: u32) {
        if self.waiting == 0 {
            return;
        }
        let mut left: usize = 0;
        self.fetches.retain(|_, fetch| {
            fetch
                .waiting
                .retain(|waiting| abi::set_effective_context(waiting.stream_id).is_ok());
            left = left.saturating_add(fetch.waiting.len());
            // Where this VM asks, others wait for the answer, too.
            !fetch.waiting.is_empty() || fetch.waits_until.is_none()
        });
        self.waiting = left;
        let _ = abi::set_effective_context(context);
    }
}
