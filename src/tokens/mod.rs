//! Tokens of OAuth and OpenID Connect: signed ones (RFC 7515, RFC 7519) verified here, with the
//! keys of their issuers.
//!
//! Apart from [`crate::credentials`] because a token proves by itself whom it speaks for, and
//! only that (an application) goes on from here. No I/O: who fetches keys is [`crate::host`]'s
//! business, when they may be fetched stands in [`Keyring`].
//!
//! A token is read in the order of what it costs: its length, its form, its claims
//! ([`Policy::look`]), and last its signature ([`Candidate::verify`]).

mod algorithm;
mod cache;
mod claims;
mod discovery;
mod json;
mod jwks;
mod jws;
mod key;
mod keyring;
mod pace;
mod policy;
mod requirement;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use thiserror::Error;

pub use algorithm::Algorithm;
pub use cache::{Cache, Remembered, TokenDigest};
pub use claims::{ClaimPath, Claims};
pub use discovery::{Discovery, DiscoveryError, Start, Url, UrlError};
pub use jwks::{Fingerprint, Key, KeySet, KeySetError, LONGEST_SET};
pub use jws::{Compact, LONGEST_TOKEN};
pub use key::PublicKey;
pub use keyring::{Keyring, Loaded, Standing, Turn, Wanted};
pub use pace::Pace;
pub use policy::{Candidate, Issuer, KeySource, Policy, Unverified, Verified};
pub use requirement::{ClaimCondition, Requirement, Requirements};

/// Why a token is not valid. Callers are told no more than that (RFC 6750, 3.1:
/// `invalid_token`); the access log has the word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Flaw {
    /// Not three parts of base64 and JSON, too long, or a claim of another type.
    #[error("token_malformed")]
    Malformed,
    /// Not signed, signed with a shared secret, or in a way that is not accepted of its issuer.
    #[error("token_algorithm")]
    Algorithm,
    /// It has a critical extension.
    #[error("token_critical")]
    Critical,
    /// Of another issuer, or of none.
    #[error("token_issuer")]
    Issuer,
    /// For somebody else.
    #[error("token_audience")]
    Audience,
    /// It has no `exp`.
    #[error("token_without_expiry")]
    NoExpiry,
    /// It was valid once.
    #[error("token_expired")]
    Expired,
    /// It is not valid yet, or was made in the future.
    #[error("token_premature")]
    Premature,
    /// No key of its issuer has made its signature.
    #[error("token_signature")]
    Signature,
    /// Its issuer has no key that it could be signed with.
    #[error("token_key")]
    Key,
    /// No claim names the application, or names several.
    #[error("token_application")]
    Application,
}
