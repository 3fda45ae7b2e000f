//! Public keys and what they verify.
//!
//! Apart from the set that they come in because here is the cryptography, and nowhere else.
//! It is RustCrypto's (the crates that `jwt-simple` is made of), not `jwt-simple` itself: that
//! refuses RSA keys over 4,096 bits, reads header and claims by its own rules a second time,
//! cannot verify a payload that is no claims (as most published vectors have), and copies the
//! key at each verification. Nothing here needs random numbers.

use p256::ecdsa::signature::Verifier;
use rsa::pkcs8::AssociatedOid;
use rsa::sha2::{Digest, Sha256, Sha384, Sha512};
use rsa::traits::PublicKeyParts;
use rsa::{BigUint, RsaPublicKey, pkcs1v15, pss};

use super::algorithm::Algorithm;

/// Bits of an RSA modulus: fewer are broken (RFC 7518, 3.3), more take a worker too long.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2_048..=8_192;

/// A public key.
///
/// Invariant: it is one that its algorithm allows: a point on the curve, a modulus of 2,048 to
/// 8,192 bits.
#[derive(Clone, Debug)]
pub enum PublicKey {
    /// For RS and PS of all three hashes.
    Rsa(Box<RsaPublicKey>),
    /// For ES256.
    P256(Box<p256::ecdsa::VerifyingKey>),
    /// For ES384.
    P384(Box<p384::ecdsa::VerifyingKey>),
    /// For EdDSA.
    Ed25519(ed25519_compact::PublicKey),
}

impl PublicKey {
    /// An RSA key of modulus and exponent, big-endian.
    #[must_use]
    pub fn rsa(modulus: &[u8], exponent: &[u8]) -> Option<Self> {
        // Before they become numbers: a modulus may be of any length here.
        if modulus.len() > 1_032 || exponent.len() > 8 {
            return None;
        }
        let (n, e) = (
            BigUint::from_bytes_be(modulus),
            BigUint::from_bytes_be(exponent),
        );
        let key = RsaPublicKey::new_with_max_size(n, e, *RSA_BITS.end()).ok()?;
        RSA_BITS
            .contains(&key.n().bits())
            .then(|| Self::Rsa(Box::new(key)))
    }

    /// A point on P-256, if it is one.
    #[must_use]
    pub fn p256(x: &[u8], y: &[u8]) -> Option<Self> {
        let point = uncompressed::<32>(x, y)?;
        let key = p256::ecdsa::VerifyingKey::from_sec1_bytes(&point).ok()?;
        Some(Self::P256(Box::new(key)))
    }

    /// A point on P-384, if it is one.
    #[must_use]
    pub fn p384(x: &[u8], y: &[u8]) -> Option<Self> {
        let point = uncompressed::<48>(x, y)?;
        let key = p384::ecdsa::VerifyingKey::from_sec1_bytes(&point).ok()?;
        Some(Self::P384(Box::new(key)))
    }

    /// An Ed25519 key of its 32 bytes.
    #[must_use]
    pub fn ed25519(x: &[u8]) -> Option<Self> {
        ed25519_compact::PublicKey::from_slice(x)
            .ok()
            .map(Self::Ed25519)
    }

    /// Whether the algorithm is one for this kind of key.
    #[must_use]
    pub const fn fits(&self, algorithm: Algorithm) -> bool {
        use Algorithm::{EdDsa, Es256, Es384, Ps256, Ps384, Ps512, Rs256, Rs384, Rs512};
        match self {
            Self::Rsa(_) => matches!(algorithm, Rs256 | Rs384 | Rs512 | Ps256 | Ps384 | Ps512),
            Self::P256(_) => matches!(algorithm, Es256),
            Self::P384(_) => matches!(algorithm, Es384),
            Self::Ed25519(_) => matches!(algorithm, EdDsa),
        }
    }

    /// About how many milliseconds of a worker a signature takes, in WebAssembly: what it counts
    /// against the worker's pace. RSA's grows with the square of the key's length.
    #[must_use]
    pub fn cost(&self) -> usize {
        match self {
            Self::Rsa(key) => key.n().bits().div_ceil(2_048).saturating_pow(2),
            Self::P256(_) | Self::Ed25519(_) => 1,
            Self::P384(_) => 5,
        }
    }

    /// Whether this is the signature of the message by this key; false as well where the
    /// algorithm does not [fit](Self::fits). Signatures have the form of RFC 7518, 3 and RFC
    /// 8037, 3.1: of ECDSA the two numbers one behind the other.
    #[must_use]
    pub fn verifies(&self, algorithm: Algorithm, message: &[u8], signature: &[u8]) -> bool {
        match (self, algorithm) {
            (Self::Rsa(key), Algorithm::Rs256) => rs::<Sha256>(key, message, signature),
            (Self::Rsa(key), Algorithm::Rs384) => rs::<Sha384>(key, message, signature),
            (Self::Rsa(key), Algorithm::Rs512) => rs::<Sha512>(key, message, signature),
            (Self::Rsa(key), Algorithm::Ps256) => ps::<Sha256>(key, message, signature),
            (Self::Rsa(key), Algorithm::Ps384) => ps::<Sha384>(key, message, signature),
            (Self::Rsa(key), Algorithm::Ps512) => ps::<Sha512>(key, message, signature),
            (Self::P256(key), Algorithm::Es256) => p256::ecdsa::Signature::from_slice(signature)
                .is_ok_and(|signature| key.verify(message, &signature).is_ok()),
            (Self::P384(key), Algorithm::Es384) => p384::ecdsa::Signature::from_slice(signature)
                .is_ok_and(|signature| key.verify(message, &signature).is_ok()),
            (Self::Ed25519(key), Algorithm::EdDsa) => {
                ed25519_compact::Signature::from_slice(signature)
                    .is_ok_and(|signature| key.verify(message, &signature).is_ok())
            }
            _ => false,
        }
    }
}

// By the verifying keys and not by `RsaPublicKey::verify`: that does not compare a PSS signature
// with the modulus (rsa 0.9.10), so a signature could be written in two ways.
fn rs<D>(key: &RsaPublicKey, message: &[u8], signature: &[u8]) -> bool
where
    D: Digest + AssociatedOid,
    pkcs1v15::VerifyingKey<D>: Verifier<pkcs1v15::Signature>,
{
    let key = pkcs1v15::VerifyingKey::<D>::new(key.clone());
    pkcs1v15::Signature::try_from(signature)
        .is_ok_and(|signature| key.verify(message, &signature).is_ok())
}

fn ps<D>(key: &RsaPublicKey, message: &[u8], signature: &[u8]) -> bool
where
    D: Digest,
    pss::VerifyingKey<D>: Verifier<pss::Signature>,
{
    let key = pss::VerifyingKey::<D>::new(key.clone());
    pss::Signature::try_from(signature)
        .is_ok_and(|signature| key.verify(message, &signature).is_ok())
}

/// A point as SEC1 has it, of coordinates that have their full length (RFC 7518, 6.2.1.2).
fn uncompressed<const N: usize>(x: &[u8], y: &[u8]) -> Option<Vec<u8>> {
    (x.len() == N && y.len() == N).then(|| [&[4], x, y].concat())
}
