//! The calls under way. Apart from the root because it counts those that nobody waits for, of
//! which there must not be more than Envoy's cluster takes.

use super::Call;
use std::collections::HashMap;

/// With so many calls under way that no request waits for, no more of them are made, or Envoy's
/// circuit breaker for the cluster (in the shipped configurations, 256 requests) would refuse them
/// and others.
const MOST_UNAWAITED: usize = 160;

/// Calls by the token that Envoy has given them.
#[derive(Default)]
pub(super) struct UnderWay {
    calls: HashMap<u32, Call>,
    unawaited: usize,
}

impl UnderWay {
    pub fn insert(&mut self, token: u32, call: Call) {
        self.unawaited = self.unawaited.saturating_add(unawaited(&call));
        if let Some(before) = self.calls.insert(token, call) {
            self.unawaited = self.unawaited.saturating_sub(unawaited(&before));
        }
    }

    pub fn remove(&mut self, token: u32) -> Option<Call> {
        let call = self.calls.remove(&token)?;
        self.unawaited = self.unawaited.saturating_sub(unawaited(&call));
        Some(call)
    }

    pub fn contains(&self, token: u32) -> bool {
        self.calls.contains_key(&token)
    }

    /// Whether there is room for one more call that nobody waits for.
    pub const fn has_room(&self) -> bool {
        self.unawaited < MOST_UNAWAITED
    }
}

/// 1 for a call that no request waits for.
const fn unawaited(call: &Call) -> usize {
    match call {
        Call::Authorize(_) => 0,
        // Of another cluster.
        Call::Keys { .. } | Call::Introspection { .. } => 0,
        Call::Behind(_)
        | Call::Refresh { .. }
        | Call::Report { .. }
        | Call::Probe { .. }
        | Call::Uncached { .. } => 1,
    }
}
