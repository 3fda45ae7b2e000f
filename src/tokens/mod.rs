//! Tokens of OAuth and OpenID Connect: signed ones (RFC 7515, RFC 7519) verified here, with the
//! keys of their issuers; opaque ones by the word of who made them (RFC 7662).
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
mod handover;
mod introspection;
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

pub use algorithm::Algorithm;
pub use cache::{Cache, Remembered, TokenDigest};
pub use claims::{ClaimPath, Claims};
pub use discovery::{Discovery, DiscoveryError, Start, Url, UrlError};
pub use handover::Handover;
pub use introspection::{Answers, Client, Introspection, Known, Unreadable, looks_signed};
pub use jwks::{Fingerprint, Key, KeySet, KeySetError, LONGEST_SET};
pub use jws::{Compact, LONGEST_TOKEN};
pub use key::PublicKey;
pub use keyring::{Keyring, Loaded, Standing, Turn, Wanted};
pub use pace::Pace;
pub use policy::{Candidate, Issuer, KeySource, Policy, Unverified, Verified};
pub use requirement::{ClaimCondition, Requirement, Requirements};

/// Why a token is not valid. Callers are told no more than that (RFC 6750, 3.1:
/// `invalid_token`); the access log has the word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// Not three parts of base64 and JSON, too long, or a claim of another type.
    Malformed,
    /// Not signed, signed with a shared secret, or in a way that is not accepted of its issuer.
    Algorithm,
    /// It has a critical extension.
    Critical,
    /// Of another issuer, or of none.
    Issuer,
    /// For somebody else.
    Audience,
    /// It has no `exp`.
    NoExpiry,
    /// It was valid once.
    Expired,
    /// It is not valid yet, or was made in the future.
    Premature,
    /// No key of its issuer has made its signature.
    Signature,
    /// Its issuer has no key that it could be signed with.
    Key,
    /// No claim names the application, or names several.
    Application,
    /// Whoever made it says that it is not active.
    Inactive,
}

impl Flaw {
    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "token_malformed",
            Self::Algorithm => "token_algorithm",
            Self::Critical => "token_critical",
            Self::Issuer => "token_issuer",
            Self::Audience => "token_audience",
            Self::NoExpiry => "token_without_expiry",
            Self::Expired => "token_expired",
            Self::Premature => "token_premature",
            Self::Signature => "token_signature",
            Self::Key => "token_key",
            Self::Application => "token_application",
            Self::Inactive => "token_inactive",
        }
    }
}
