//! Sets of public keys (RFC 7517, 5) and which of them may have signed a token.
//!
//! Apart from the keys because what a set may contain is up to its issuer: keys for other
//! purposes and of kinds that nobody here knows are passed over, as RFC 7517, 5 wants it.

use std::hash::Hasher;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};
use siphasher::sip::SipHasher13;
use thiserror::Error;

use super::algorithm::Algorithm;
use super::json;
use super::jws::LONGEST_KEY_ID;
use super::key::PublicKey;

/// The most bytes of a set.
pub const LONGEST_SET: usize = 131_072;
/// The most keys of a set, usable or not.
pub const MOST_KEYS: usize = 64;
/// The most keys that are tried for a token that does not name one, or names one that several
/// have.
const MOST_CANDIDATES: usize = 4;

/// Why bytes are no set of keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum KeySetError {
    /// Over [`LONGEST_SET`] bytes.
    #[error("has more than 131072 bytes")]
    TooLong,
    /// No object with a list `keys` of objects.
    #[error("is no object with a list \"keys\" of objects, each member once (RFC 7517)")]
    Shape,
    /// Over 64 keys.
    #[error("has more than 64 keys")]
    TooMany,
    /// None that could verify a token.
    #[error(
        "has no key for signatures: RSA of 2048 to 8192 bits, EC on P-256 or P-384, or OKP on Ed25519"
    )]
    NoneUsable,
}

/// The keys of an issuer.
///
/// Invariant: 1 to 64 keys that can verify signatures.
#[derive(Clone, Debug)]
pub struct KeySet {
    keys: Vec<Key>,
}

/// One key of a set.
#[derive(Clone, Debug)]
pub struct Key {
    id: Option<Box<str>>,
    algorithm: Option<Algorithm>,
    public: PublicKey,
    fingerprint: Fingerprint,
}

/// Tells keys of one issuer apart. The issuer makes them, so nobody chooses them to collide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint(u64);

impl Fingerprint {
    /// Of a token that no key has verified.
    pub(super) const NONE: Self = Self(0);
}

impl KeySet {
    /// Reads a set.
    ///
    /// # Errors
    /// That these bytes are none, or none that is of any use.
    pub fn parse(bytes: &[u8]) -> Result<Self, KeySetError> {
        if bytes.len() > LONGEST_SET {
            return Err(KeySetError::TooLong);
        }
        let set = json::object(bytes).ok_or(KeySetError::Shape)?;
        let Some(Value::Array(members)) = set.get("keys") else {
            return Err(KeySetError::Shape);
        };
        if members.len() > MOST_KEYS {
            return Err(KeySetError::TooMany);
        }
        let mut keys = Vec::new();
        for member in members {
            let member = member.as_object().ok_or(KeySetError::Shape)?;
            keys.extend(Key::read(member));
        }
        if keys.is_empty() {
            return Err(KeySetError::NoneUsable);
        }
        Ok(Self { keys })
    }

    /// The keys that may have signed a token with this header, at most four: those that the
    /// algorithm is one for, that are bound to no other, and that have the token's `kid` or none.
    pub fn candidates(
        &self,
        algorithm: Algorithm,
        key_id: Option<&str>,
    ) -> impl Iterator<Item = &Key> {
        self.keys
            .iter()
            .filter(move |key| key.may_have_signed(algorithm, key_id))
            .take(MOST_CANDIDATES)
    }

    /// Whether the set has this key.
    #[must_use]
    pub fn has(&self, fingerprint: Fingerprint) -> bool {
        self.keys.iter().any(|key| key.fingerprint == fingerprint)
    }

    /// Number of keys that can verify signatures.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.keys.len()
    }

    /// Never.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }
}

impl Key {
    /// A key for signatures of these members of a JWK; `None` if it is for anything else.
    fn read(members: &Map<String, Value>) -> Option<Self> {
        let text = |name: &str| members.get(name).and_then(Value::as_str);
        let bytes = |name: &str| URL_SAFE_NO_PAD.decode(text(name)?).ok();
        if members.get("use").is_some_and(|purpose| purpose != "sig") {
            return None;
        }
        let verifies = |operations: &Value| {
            let operations = operations.as_array();
            operations.is_some_and(|list| list.iter().any(|it| it == "verify"))
        };
        if members.get("key_ops").is_some_and(|it| !verifies(it)) {
            return None;
        }
        let (public, material) = match (text("kty")?, text("crv")) {
            ("RSA", _) => {
                let (n, e) = (bytes("n")?, bytes("e")?);
                (PublicKey::rsa(&n, &e)?, [n, e])
            }
            ("EC", Some("P-256")) => {
                let (x, y) = (bytes("x")?, bytes("y")?);
                (PublicKey::p256(&x, &y)?, [x, y])
            }
            ("EC", Some("P-384")) => {
                let (x, y) = (bytes("x")?, bytes("y")?);
                (PublicKey::p384(&x, &y)?, [x, y])
            }
            ("OKP", Some("Ed25519")) => {
                let x = bytes("x")?;
                (PublicKey::ed25519(&x)?, [x, Vec::new()])
            }
            _ => return None,
        };
        let algorithm = match members.get("alg") {
            None => None,
            Some(name) => Some(Algorithm::named(name.as_str()?).filter(|it| public.fits(*it))?),
        };
        let id = match members.get("kid") {
            None => None,
            Some(id) => Some(id.as_str().filter(|id| id.len() <= LONGEST_KEY_ID)?),
        };
        let mut hasher = SipHasher13::new();
        hasher.write(id.unwrap_or_default().as_bytes());
        for part in material {
            hasher.write(&[0]);
            hasher.write(&part);
        }
        Some(Self {
            id: id.map(Into::into),
            algorithm,
            public,
            fingerprint: Fingerprint(hasher.finish()),
        })
    }

    fn may_have_signed(&self, algorithm: Algorithm, key_id: Option<&str>) -> bool {
        let named = match (key_id, &self.id) {
            (Some(wanted), Some(id)) => **id == *wanted,
            _ => true,
        };
        named && self.public.fits(algorithm) && self.algorithm.is_none_or(|own| own == algorithm)
    }

    /// The key itself.
    #[must_use]
    pub const fn public(&self) -> &PublicKey {
        &self.public
    }

    /// What tells it from the issuer's other keys.
    #[must_use]
    pub const fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }
}
