//! Tokens that have been verified, or refused, by the digest of their bytes.
//!
//! Apart from the check because it must be bounded by itself: who sends tokens chooses how many
//! there are. Good and bad ones have room of their own, so that a flood of bad ones pushes no good
//! one out.

use std::collections::HashMap;
use std::fmt;
use std::rc::Rc;

use siphasher::sip128::SipHasher24;

use super::jwks::KeySet;
use super::{Flaw, Verified};

/// The most refused tokens that are remembered.
const MOST_REFUSED: usize = 4_096;

/// The keyed digest of a token: SipHash-2-4-128 under 16 random bytes that never leave this VM.
/// Who does not know them cannot make a token with the digest of another.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TokenDigest([u8; 16]);

/// What a VM remembers of a service's tokens.
pub struct Cache {
    key: [u8; 16],
    verified: Generations<Rc<Verified>>,
    refused: Generations<(Flaw, u64)>,
}

/// What is remembered of a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remembered {
    /// It was valid, and has not expired.
    Verified(Rc<Verified>),
    /// It was not.
    Refused(Flaw),
    /// Nothing.
    Unknown,
}

/// A map of a bounded size that forgets what has not been looked up for longest, roughly: when the
/// younger half is full, the elder is dropped and the younger becomes it.
pub(super) struct Generations<V> {
    half: usize,
    younger: HashMap<TokenDigest, V>,
    elder: HashMap<TokenDigest, V>,
}

impl Cache {
    /// A cache of so many verified tokens (at least two), under this key.
    #[must_use]
    pub fn new(key: [u8; 16], most_verified: usize) -> Self {
        Self {
            key,
            verified: Generations::new(most_verified),
            refused: Generations::new(MOST_REFUSED),
        }
    }

    /// The digest of a token.
    #[must_use]
    pub fn digest(&self, token: &[u8]) -> TokenDigest {
        let hasher = SipHasher24::new_with_key(&self.key);
        TokenDigest(hasher.hash(token).as_bytes())
    }

    /// What is remembered, at this Unix second and this monotonic millisecond.
    pub fn look_up(&mut self, digest: TokenDigest, seconds: u64, monotonic: u64) -> Remembered {
        if let Some(verified) = self.verified.get(digest) {
            return if seconds < verified.expires {
                Remembered::Verified(Rc::clone(verified))
            } else {
                Remembered::Refused(Flaw::Expired)
            };
        }
        match self.refused.get(digest) {
            Some((flaw, until)) if monotonic < *until => Remembered::Refused(*flaw),
            _ => Remembered::Unknown,
        }
    }

    /// Remembers a valid token.
    pub fn verified(&mut self, digest: TokenDigest, verified: Rc<Verified>) {
        self.verified.insert(digest, verified);
    }

    /// Remembers that a token is not valid, until that monotonic millisecond.
    pub fn refused(&mut self, digest: TokenDigest, flaw: Flaw, until: u64) {
        self.refused.insert(digest, (flaw, until));
    }

    /// An issuer has these keys now: forgets tokens that others verified, and what was refused,
    /// which may have been for want of a key.
    pub fn keys_changed(&mut self, issuer: usize, keys: &KeySet) {
        self.verified
            .retain(|it| it.issuer != Some(issuer) || it.key.is_some_and(|key| keys.has(key)));
        self.refused.retain(|_| false);
    }
}

impl<V> Generations<V> {
    pub(super) fn new(most: usize) -> Self {
        Self {
            half: (most / 2).max(1),
            younger: HashMap::new(),
            elder: HashMap::new(),
        }
    }

    pub(super) fn get(&mut self, digest: TokenDigest) -> Option<&V> {
        if let Some(value) = self.elder.remove(&digest) {
            self.insert(digest, value);
        }
        self.younger.get(&digest)
    }

    pub(super) fn insert(&mut self, digest: TokenDigest, value: V) {
        if self.younger.len() >= self.half && !self.younger.contains_key(&digest) {
            self.elder = std::mem::take(&mut self.younger);
        }
        self.younger.insert(digest, value);
    }

    pub(super) fn remove(&mut self, digest: TokenDigest) {
        self.younger.remove(&digest);
        self.elder.remove(&digest);
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.younger.len().saturating_add(self.elder.len())
    }

    fn retain(&mut self, keep: impl Fn(&V) -> bool) {
        self.younger.retain(|_, value| keep(value));
        self.elder.retain(|_, value| keep(value));
    }
}

impl fmt::Debug for Cache {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Cache([secret])")
    }
}

#[cfg(test)]
mod tests {
    use super::super::Requirements;
    use super::super::testing;
    use super::*;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    fn verified(expires: u64) -> Rc<Verified> {
        Rc::new(Verified {
            application: "app".into(),
            expires,
            issuer: Some(0),
            key: Some(testing::fingerprint()),
            meets: Requirements::default(),
            headers: Box::default(),
        })
    }

    #[test]
    fn a_verified_token_is_good_until_it_expires_and_not_a_second_longer() {
        let mut cache = Cache::new([1; 16], 10);
        let digest = cache.digest(b"token");
        assert_eq!(cache.look_up(digest, 0, 0), Remembered::Unknown);
        cache.verified(digest, verified(100));
        assert_eq!(
            cache.look_up(digest, 99, 0),
            Remembered::Verified(verified(100))
        );
        assert_eq!(
            cache.look_up(digest, 100, 0),
            Remembered::Refused(Flaw::Expired)
        );
        let other = cache.digest(b"tokeN");
        assert_eq!(cache.look_up(other, 99, 0), Remembered::Unknown);
    }

    #[test]
    fn a_refused_token_is_looked_at_again_after_a_while() {
        let mut cache = Cache::new([1; 16], 10);
        let digest = cache.digest(b"token");
        cache.refused(digest, Flaw::Signature, 500);
        assert_eq!(
            cache.look_up(digest, 0, 499),
            Remembered::Refused(Flaw::Signature)
        );
        assert_eq!(cache.look_up(digest, 0, 500), Remembered::Unknown);
    }

    #[test]
    fn bad_tokens_push_no_good_one_out_and_nothing_grows() {
        let mut cache = Cache::new([1; 16], 10);
        let good = cache.digest(b"good");
        cache.verified(good, verified(100));
        for number in 0..20_000_u32 {
            let digest = cache.digest(&number.to_le_bytes());
            cache.refused(digest, Flaw::Signature, 500);
        }
        assert!(matches!(cache.look_up(good, 0, 0), Remembered::Verified(_)));
        assert!(cache.refused.younger.len() + cache.refused.elder.len() <= MOST_REFUSED);
        for number in 0..1_000_u32 {
            let digest = cache.digest(&number.to_be_bytes());
            cache.verified(digest, verified(100));
            // In use, so it stays.
            assert!(
                matches!(cache.look_up(good, 0, 0), Remembered::Verified(_)),
                "{number}"
            );
        }
        assert!(cache.verified.younger.len() + cache.verified.elder.len() <= 10);
    }

    #[test]
    fn what_a_key_verified_goes_with_the_key() {
        let mut cache = Cache::new([1; 16], 10);
        let digest = cache.digest(b"token");
        cache.verified(digest, verified(100));
        cache.keys_changed(0, &testing::keys());
        assert!(matches!(
            cache.look_up(digest, 0, 0),
            Remembered::Verified(_)
        ));
        cache.keys_changed(1, &testing::other_keys());
        assert!(matches!(
            cache.look_up(digest, 0, 0),
            Remembered::Verified(_)
        ));
        cache.keys_changed(0, &testing::other_keys());
        assert_eq!(cache.look_up(digest, 0, 0), Remembered::Unknown);
    }
}
