//! Envoy's shared data behind the trait that the other rooms know, and what this VM can
//! tell of the tokens that its own sets were given.
//!
//! The ABI does not say which token a set was given; to read it means to read the value,
//! for which the host calls back into the module for memory, and that is the dearest part
//! of a request that is admitted from the cache. But tokens come from one counter for the whole process,
//! so whoever knows where it stands knows what the own next set is given, as long as nobody
//! else sets anything. See [`SharedData::last_token`] for why a wrong guess does no harm.

use super::abi::{self, Status};
use super::clock;
use crate::shared_data::{Guess, Key, SetError, SharedData, Token};
use std::cell::Cell;

const COUNTER_KIND: u8 = b't';

thread_local! {
    static COUNTER: Cell<Counter> = const { Cell::new(Counter { next: 0, last: 0, until: 0, asked: false }) };
}

/// The host's counter of tokens, as this VM knows it.
///
/// Invariant: until the time `until`, the true counter is at `next` or beyond it. It is beyond
/// as soon as others have set something.
#[derive(Clone, Copy)]
struct Counter {
    /// 0: unknown.
    next: u32,
    /// What the last set was given, or less; 0: unknown.
    last: u32,
    until: u64,
    /// Whether anybody wanted to know since it was read.
    asked: bool,
}

/// The shared data of the process, in the namespace of this VM's `vm_id`.
#[derive(Clone, Copy, Debug)]
pub struct HostSharedData;

impl SharedData for HostSharedData {
    fn get(&self, key: &[u8], into: &mut Vec<u8>) -> Result<Token, SetError> {
        into.clear();
        match abi::shared_data(key) {
            Ok((value, cas)) => {
                *into = value;
                Ok(Token(cas))
            }
            Err(Status::NotFound) => Ok(Token::ABSENT),
            Err(_) => Err(SetError::Unavailable),
        }
    }

    fn set(&self, key: &[u8], value: &[u8], token: Token) -> Result<(), SetError> {
        abi::set_shared_data(key, value, token.0).map_err(|status| match status {
            Status::CasMismatch => SetError::Mismatch,
            _ => SetError::Unavailable,
        })?;
        let mut counter = COUNTER.get();
        counter.last = counter.next;
        if counter.next != 0 {
            counter.next = after(counter.next);
        }
        COUNTER.set(counter);
        Ok(())
    }

    fn last_token(&self) -> Option<Guess> {
        let counter = COUNTER.get();
        if !counter.asked {
            COUNTER.set(Counter {
                asked: true,
                ..counter
            });
        }
        (counter.last != 0).then_some(Guess {
            token: Token(counter.last),
            until: counter.until,
        })
    }

    fn find_counter(&self) {
        // Whoever sets it, its token is later than all that went before. It is empty, so that
        // the host needs no memory to hand it out.
        let key = Key::new(COUNTER_KIND, 0, 0);
        let read = abi::set_shared_data(key.as_bytes(), &[], Token::OVERWRITE.0)
            .and_then(|()| abi::shared_data(key.as_bytes()));
        let next = read.map_or(0, |(_, token)| after(token));
        // Not as it was last read: after a wait, that would be too early to rely on.
        let now = clock::now_by_one().monotonic;
        COUNTER.set(Counter {
            next,
            last: 0,
            until: now.saturating_add(Guess::LONGEST),
            asked: false,
        });
    }
}

/// Finds the host's counter anew, if requests of this VM wanted to know it since the last time.
/// Whether it did.
pub fn keep_counter() -> bool {
    let asked = COUNTER.get().asked;
    if asked {
        HostSharedData.find_counter();
    }
    asked
}

/// The token after this one: the host leaves out 0.
const fn after(token: u32) -> u32 {
    match token.wrapping_add(1) {
        0 => 1,
        next => next,
    }
}
