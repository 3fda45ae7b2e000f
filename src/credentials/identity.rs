//! The digest under which an application's record is found.
//!
//! Apart from finding the credential because this is about what two requests must
//! have in common to share a record: the same service of the same service
//! management, and the same credential. The digest is keyed, so that nobody
//! outside can prepare keys that fall on the same slots, and 128 bits wide, so that
//! no two applications ever share one by chance.

use std::fmt;
use std::hash::Hasher;

use siphasher::sip128::{Hasher128, SipHasher13};

use super::Credential;

/// The service that an application belongs to, by the names that service management
/// knows it by. Two configurations that name the same scope share records.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Scope {
    /// The Envoy cluster of service management.
    pub cluster: String,
    /// The `:authority` of calls to it.
    pub authority: String,
    /// The service's id there.
    pub service: String,
}

/// Digests the identities of one scope.
///
/// The scope's part is hashed once; each digest goes on from a copy of that state.
#[derive(Clone)]
pub struct Identities {
    scope: SipHasher13,
}

/// The keyed digest of an identity: of scope, kind and value. Opaque: without the key
/// it says nothing about the credential, and it may be logged.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 16]);

/// What is remembered of an application besides its record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Part {
    /// One of its keys.
    AppKey = 1,
    /// Somebody who refers to it.
    Referrer = 2,
}

impl Digest {
    /// The digest of an application and one key or referrer, or the lack of one.
    ///
    /// SipHash-1-3-128 over the part, one byte, and the value, keyed with the application's
    /// digest. That is as secret as the key it was made with, so this needs no other.
    #[must_use]
    pub fn with(self, part: Part, value: Option<&str>) -> Self {
        let mut hasher = SipHasher13::new_with_key(&self.0);
        hasher.write(&[part as u8, u8::from(value.is_some())]);
        hasher.write(value.unwrap_or_default().as_bytes());
        Self(hasher.finish128().as_bytes())
    }
}

impl Scope {
    /// A number that stands for this scope in keys and records of one process. It does
    /// not depend on the key of the digests: should that change, whoever leads the service
    /// still flushes what was recorded before. Scopes come from the operator, so nobody can
    /// choose them to collide. 64 bits: with a thousand services, two share a number once in
    /// 10^13 configurations.
    #[must_use]
    pub fn number(&self) -> u64 {
        Identities::new(&[0; 16], self).scope.finish128().h1
    }
}

impl Identities {
    /// The identities of this scope under this key, 16 random bytes that all VMs of
    /// the process share.
    #[must_use]
    pub fn new(key: &[u8; 16], scope: &Scope) -> Self {
        let mut hasher = SipHasher13::new_with_key(key);
        write(&mut hasher, scope.cluster.as_bytes());
        write(&mut hasher, scope.authority.as_bytes());
        write(&mut hasher, scope.service.as_bytes());
        Self { scope: hasher }
    }

    /// The digest of this credential in this scope: SipHash-1-3-128 over cluster,
    /// authority, service id, kind and value, in this order. Texts are preceded by
    /// their length in bytes (u64, little endian), the kind is [one
    /// byte](super::Kind::code).
    #[must_use]
    pub fn digest(&self, credential: &Credential<'_>) -> Digest {
        let mut hasher = self.scope;
        let value = credential.expose().as_bytes();
        let [a, b, c, d, e, f, g, h] = length(value);
        hasher.write(&[credential.kind().code(), a, b, c, d, e, f, g, h]);
        hasher.write(value);
        Digest(hasher.finish128().as_bytes())
    }
}

/// Hashes a text with its length before it, so that no byte can move from one text
/// to the next without changing the digest.
fn write(hasher: &mut SipHasher13, text: &[u8]) {
    hasher.write(&length(text));
    hasher.write(text);
}

fn length(text: &[u8]) -> [u8; 8] {
    u64::try_from(text.len()).unwrap_or(u64::MAX).to_le_bytes()
}

impl fmt::Debug for Identities {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Identities([secret])")
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Digest({:032x})", u128::from_be_bytes(self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::super::Kind;
    use super::*;
    use std::borrow::Cow;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    fn digest(key: u8, cluster: &str, authority: &str, service: &str, value: &str) -> Digest {
        let scope = Scope {
            cluster: cluster.to_owned(),
            authority: authority.to_owned(),
            service: service.to_owned(),
        };
        let value = Cow::Borrowed(value.as_bytes());
        Identities::new(&[key; 16], &scope).digest(&Credential::new(Kind::UserKey, value).unwrap())
    }

    #[test]
    fn the_same_identity_has_the_same_digest_on_every_machine() {
        // Also on wasm32, where this test runs too: usize and byte order must not matter.
        assert_eq!(
            format!("{:?}", digest(7, "c", "a", "1001", "key")),
            "Digest(5219c20ccbe91ee1a4a0f1583ccf5d85)"
        );
    }

    #[test]
    fn another_key_gives_other_digests() {
        assert_ne!(digest(7, "c", "a", "1", "k"), digest(8, "c", "a", "1", "k"));
    }

    #[test]
    fn each_key_and_referrer_of_each_application_has_a_digest_of_its_own() {
        let [one, other] = ["a", "b"].map(|id| digest(7, "c", "a", "1", id));
        let digests = [
            one,
            one.with(Part::AppKey, None),
            one.with(Part::AppKey, Some("")),
            one.with(Part::AppKey, Some("k")),
            one.with(Part::AppKey, Some("K")),
            one.with(Part::Referrer, None),
            one.with(Part::Referrer, Some("k")),
            other.with(Part::AppKey, Some("k")),
        ];
        for (index, digest) in digests.iter().enumerate() {
            assert_eq!(digests.iter().position(|one| one == digest), Some(index));
        }
    }

    #[test]
    fn a_byte_that_moves_to_the_next_field_changes_the_digest() {
        let whole = digest(7, "ab", "cd", "ef", "gh");
        for (cluster, authority, service, value) in [
            ("a", "bcd", "ef", "gh"),
            ("ab", "c", "def", "gh"),
            ("ab", "cd", "e", "fgh"),
            ("abcd", "", "ef", "gh"),
        ] {
            assert_ne!(whole, digest(7, cluster, authority, service, value));
        }
    }
}

#[cfg(all(test, not(target_family = "wasm")))]
mod properties {
    use super::super::Kind;
    use super::*;
    use proptest::prelude::*;
    use std::borrow::Cow;

    /// Few letters and short texts, so that equal concatenations are common.
    fn identity() -> impl Strategy<Value = (Scope, String)> {
        ("[ab]{0,3}", "[ab]{0,3}", "[ab]{0,3}", "[ab]{1,3}").prop_map(
            |(cluster, authority, service, value)| {
                let scope = Scope {
                    cluster,
                    authority,
                    service,
                };
                (scope, value)
            },
        )
    }

    proptest! {
        #[test]
        fn two_identities_share_a_digest_only_if_they_are_one(
            key: [u8; 16],
            (one_scope, one) in identity(),
            (other_scope, other) in identity(),
        ) {
            let digest = |scope: &Scope, value: &str| {
                let value = Cow::Owned(value.as_bytes().to_vec());
                Identities::new(&key, scope).digest(&Credential::new(Kind::UserKey, value).unwrap())
            };
            prop_assert_eq!(
                digest(&one_scope, &one) == digest(&other_scope, &other),
                (one_scope, one) == (other_scope, other)
            );
        }
    }
}
