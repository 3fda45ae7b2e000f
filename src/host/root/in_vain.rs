//! Applications about which somebody asked in vain a short while ago.
//!
//! Apart from the fetches, which end with the failure: whoever shows a key or a referrer that
//! was accepted, too long ago to be relied on unasked, waits for the question. While service
//! management fails that would be each request anew. So after a failure such requests go
//! on by what was known, and one of them has the question put behind it now and then.

use crate::credentials::Digest;
use crate::moment::Moment;
use std::collections::HashMap;

/// Between two questions of this VM about one application (milliseconds).
const PAUSE: u64 = 5_000;
/// Applications that are kept in mind: about the others, requests wait again.
const MOST: usize = 1_000;

/// Of one VM: each application, and when somebody may ask again (monotonic milliseconds).
#[derive(Debug, Default)]
pub(super) struct InVain(HashMap<Digest, u64>);

impl InVain {
    /// A question about this application failed.
    pub fn failed(&mut self, digest: Digest, now: Moment) {
        if self.0.len() >= MOST {
            self.0.retain(|_, again| *again > now.monotonic);
        }
        if self.0.len() < MOST {
            self.0.insert(digest, now.monotonic.saturating_add(PAUSE));
        }
    }

    /// A question about this application was answered.
    pub fn answered(&mut self, digest: Digest) {
        self.0.remove(&digest);
    }

    /// Whether the last question about this application failed.
    pub fn knows(&self, digest: Digest) -> bool {
        self.0.contains_key(&digest)
    }

    /// Whether it is time to ask about this application again; it is then not for a while.
    pub fn may_ask(&mut self, digest: Digest, now: Moment) -> bool {
        match self.0.get_mut(&digest) {
            Some(again) if *again <= now.monotonic => {
                *again = now.monotonic.saturating_add(PAUSE);
                true
            }
            Some(_) => false,
            None => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::moment::testing::at;

    #[test]
    fn strangers_by_the_million_take_bounded_room_and_the_last_failures_are_known() {
        let mut in_vain = InVain::default();
        for number in 0..20_000_u32 {
            let mut digest = [0; 16];
            digest[..4].copy_from_slice(&number.to_le_bytes());
            in_vain.failed(Digest(digest), at(u64::from(number) * 10));
            assert!(in_vain.0.len() <= MOST);
            assert!(in_vain.knows(Digest(digest)));
        }
    }

    #[test]
    fn it_is_time_to_ask_again_once_in_a_while() {
        let mut in_vain = InVain::default();
        in_vain.failed(Digest([1; 16]), at(0));
        let asked = (1..=20).filter(|second| in_vain.may_ask(Digest([1; 16]), at(second * 1_000)));
        assert_eq!(asked.collect::<Vec<_>>(), [5, 10, 15, 20]);
        in_vain.answered(Digest([1; 16]));
        assert!(!in_vain.knows(Digest([1; 16])));
    }
}
