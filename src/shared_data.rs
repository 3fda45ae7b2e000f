//! The narrow door to Envoy's shared data: a process-wide map with compare-and-set.
//!
//! Apart from `host` so that the records, the lease and the marks can be written
//! and tested against any map of the same contract. The contract (observed on
//! Envoy 1.40): every set takes the next token of one process-wide counter; a set
//! with a token other than the value's fails; a set with any token on an absent
//! key inserts; there is no delete, no expiry, no listing and no bound.

use thiserror::Error;

/// What a value was when it was read. Never kept across callbacks, for the counter wraps; but see
/// [`Guess`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token(pub u32);

impl Token {
    /// For a key that was absent: inserts, and fails if somebody else has inserted.
    ///
    /// No live value has this token but once in 2^32 sets. 0 would overwrite, and 1
    /// is the token of a process's first set.
    pub const ABSENT: Self = Self(u32::MAX);

    /// Overwrites whatever is there.
    pub const OVERWRITE: Self = Self(0);
}

/// What the token of a value may be that was set here; kept for a while.
///
/// Invariant: as long as it [is good](Guess::is_good), it is the value's token, or one that no value
/// of its key has. So a set with it replaces the very value that was set here, or fails, as
/// long as the key is there at all: an absent one takes any token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guess {
    /// The token to set with.
    pub token: Token,
    /// When it is good no more: milliseconds of the steady clock.
    pub until: u64,
}

impl Guess {
    /// How long a guess may be good, in milliseconds. In this time the counter must not come around:
    /// 2^32 sets in five seconds are some thousand times what a process can do.
    pub const LONGEST: u64 = 5_000;

    /// Whether it may be relied on at this time, in milliseconds of the steady clock. Not by a clock
    /// that could not be read (0) or that has gone backwards.
    #[must_use]
    pub fn is_good(self, now: u64) -> bool {
        let left = self.until.saturating_sub(now);
        now > 0 && left > 0 && left <= Self::LONGEST
    }
}

/// Why a value was not set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SetError {
    /// Somebody else set it meanwhile: read again.
    #[error("somebody else changed the value meanwhile")]
    Mismatch,
    /// The host refused.
    #[error("shared data is not available")]
    Unavailable,
}

/// Envoy's shared data, or a map that keeps the same contract.
pub trait SharedData {
    /// Reads a value into `into`, replacing its content, and returns its token;
    /// `Token::ABSENT` and an empty `into` if the key is absent.
    ///
    /// # Errors
    /// `Unavailable` if the host refused.
    fn get(&self, key: &[u8], into: &mut Vec<u8>) -> Result<Token, SetError>;

    /// Sets a value if it is still the one that was read with this token.
    ///
    /// # Errors
    /// `Mismatch` if it is not; `Unavailable` if the host refused.
    fn set(&self, key: &[u8], value: &[u8], token: Token) -> Result<(), SetError>;

    /// What the last set that succeeded was given, if that can be guessed.
    ///
    /// A guess is never more than the true token: it is where the counter of all tokens was
    /// known to be, and one more for each set from here since then. If others have set something meanwhile, the true
    /// token is larger. It never falls, so then no value of this key has, or will ever have, the
    /// token that was guessed (but for the counter coming around, which [`Guess::until`] is
    /// about), and a set with it fails.
    fn last_token(&self) -> Option<Guess> {
        None
    }

    /// Finds out anew where the counter of all tokens stands. Takes three calls to the host.
    fn find_counter(&self) {}
}

/// How often a lost race is tried again. Losing all of them takes as many other
/// writers to one key within microseconds; the caller must then refuse, never admit.
pub const ATTEMPTS: u32 = 256;

/// A key of ours: product prefix, layout version, kind, and two numbers.
///
/// The prefix keeps unrelated plugins apart, which share the namespace when they
/// leave `vm_id` empty, as Istio's WasmPlugin makes them. The numbers are little-endian:
/// a key is made for every call, and nobody lists them. In 22 bytes the host keeps a key without
/// memory of its own (libc++'s short strings), and it makes one anew for each call.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    bytes: [u8; 22],
}

impl Key {
    /// The key of this kind for a scope (0 if it has none) and a number.
    #[must_use]
    pub const fn new(kind: u8, scope: u64, number: u32) -> Self {
        let [a, b, c, d, e, f, g, h] = scope.to_le_bytes();
        let [i, j, k, l] = number.to_le_bytes();
        Self {
            bytes: [
                b't', b'o', b'l', b'l', b'g', b'a', b't', b'e', b'2', kind, a, b, c, d, e, f, g, h,
                i, j, k, l,
            ],
        }
    }

    /// The key as shared data takes it.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
pub mod memory {
    //! A map in memory that keeps the contract, for the tests of other rooms.

    use super::{SetError, SharedData, Token};
    use std::cell::RefCell;
    use std::collections::HashMap;

    /// A process's shared data, for one thread.
    #[derive(Default)]
    pub struct Memory {
        state: RefCell<State>,
    }

    #[derive(Default)]
    struct State {
        values: HashMap<Vec<u8>, (Vec<u8>, u32)>,
        sets: u32,
        mismatches: u32,
    }

    impl Memory {
        /// The next sets fail as if somebody else had been faster.
        pub fn lose_next(&self, races: u32) {
            self.state.borrow_mut().mismatches = races;
        }

        /// Number of keys.
        pub fn keys(&self) -> usize {
            self.state.borrow().values.len()
        }
    }

    impl SharedData for Memory {
        fn get(&self, key: &[u8], into: &mut Vec<u8>) -> Result<Token, SetError> {
            into.clear();
            match self.state.borrow().values.get(key) {
                Some((value, token)) => {
                    into.extend_from_slice(value);
                    Ok(Token(*token))
                }
                None => Ok(Token::ABSENT),
            }
        }

        fn set(&self, key: &[u8], value: &[u8], token: Token) -> Result<(), SetError> {
            let mut state = self.state.borrow_mut();
            if state.mismatches > 0 {
                state.mismatches -= 1;
                return Err(SetError::Mismatch);
            }
            if let Some((_, current)) = state.values.get(key)
                && token != Token::OVERWRITE
                && token.0 != *current
            {
                return Err(SetError::Mismatch);
            }
            state.sets += 1;
            let sets = state.sets;
            state.values.insert(key.to_vec(), (value.to_vec(), sets));
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::memory::Memory;
    use super::*;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    #[test]
    fn keys_of_different_kind_scope_or_number_differ() {
        let keys = [
            Key::new(b'r', 0, 1),
            Key::new(b'r', 0, 2),
            Key::new(b'r', 1, 1),
            Key::new(b'n', 0, 1),
        ];
        for (index, one) in keys.iter().enumerate() {
            for other in &keys[index + 1..] {
                assert_ne!(one.as_bytes(), other.as_bytes());
            }
        }
        assert_eq!(
            Key::new(b'd', 0xabc, 0x12).as_bytes(),
            b"tollgate2d\xbc\x0a\0\0\0\0\0\0\x12\0\0\0"
        );
    }

    #[test]
    fn an_absent_key_is_inserted_once() {
        let memory = Memory::default();
        let mut value = Vec::new();
        assert_eq!(memory.get(b"k", &mut value), Ok(Token::ABSENT));
        assert_eq!(memory.set(b"k", b"one", Token::ABSENT), Ok(()));
        assert_eq!(
            memory.set(b"k", b"two", Token::ABSENT),
            Err(SetError::Mismatch)
        );
        let token = memory.get(b"k", &mut value).unwrap();
        assert_eq!(value, b"one");
        assert_eq!(memory.set(b"k", b"three", token), Ok(()));
        assert_eq!(memory.set(b"k", b"four", token), Err(SetError::Mismatch));
    }
}
