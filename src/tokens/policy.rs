//! What a service takes for a valid token, and the check of one.
//!
//! Apart from the parts of a token because here they meet the configuration. The check has two
//! halves: what needs no signature, and the signature, which costs about a thousand times as
//! much and may have to wait for keys.

use std::borrow::Cow;
use std::rc::Rc;

use super::algorithm::Algorithm;
use super::claims::{ClaimPath, Claims, values};
use super::jwks::{Fingerprint, KeySet};
use super::jws::Compact;
use super::requirement::{Requirement, Requirements};
use super::{Discovery, Flaw, Handover};
use crate::credentials::HeaderName;

/// The longest value of a header made of a claim.
const LONGEST_VALUE: usize = 4_096;

/// How a service's tokens are checked.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Whose tokens are taken; at least one, their names all different.
    pub issuers: Vec<Issuer>,
    /// Where the claims of tokens are that Envoy's `jwt_authn` has verified. `None`: they are
    /// verified here.
    pub handover: Option<Handover>,
    /// What mapping rules require; at most [`Requirements::MOST`].
    pub requirements: Vec<Requirement>,
    /// Which claims the upstream is told, and in which headers; names all different.
    pub headers: Vec<(HeaderName, ClaimPath)>,
    /// How many signatures a worker verifies in a second.
    pub verifications_per_second: u32,
    /// How many verified tokens a worker remembers.
    pub remembered: usize,
}

/// One issuer of tokens.
#[derive(Clone, Debug)]
pub struct Issuer {
    /// Its `iss`, compared exactly.
    pub name: Box<str>,
    /// One of these must be a token's `aud`, or among it. At least one.
    pub audiences: Vec<Box<str>>,
    /// Where its keys come from.
    pub keys: KeySource,
    /// Which claim names the application: the first that is there. At least one.
    pub application: Vec<ClaimPath>,
    /// How far its clock and ours may be apart, in seconds.
    pub leeway: u64,
    /// The algorithms that it signs with; all that there are, if it is empty.
    pub algorithms: Vec<Algorithm>,
}

/// Where keys come from.
#[derive(Clone, Debug)]
pub enum KeySource {
    /// The configuration.
    Inline(Rc<KeySet>),
    /// The issuer, by calls.
    Discovery(Discovery),
    /// Nowhere: `jwt_authn` has them, and no signature is looked at here.
    JwtAuthn,
}

/// A token of which everything holds that can be known without its issuer's keys.
pub struct Candidate<'a> {
    /// The number of its issuer.
    pub issuer: usize,
    compact: Compact<'a>,
    claims: Claims,
    expires: u64,
}

/// Why a signature could not be verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unverified {
    /// It is not the signature of any key that it could be of.
    Signature,
    /// No key could have made it: the issuer may have a new one.
    NoKey,
}

/// What is remembered of a valid token. The token itself is not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// The application that it speaks for.
    pub application: Box<str>,
    /// The first Unix second in which it is not valid any more.
    pub expires: u64,
    /// The number of its issuer; `None` if none of the policy's answers for it.
    pub issuer: Option<usize>,
    /// The key that verified it; `None` if that was done elsewhere.
    pub key: Option<Fingerprint>,
    /// Which requirements it meets.
    pub meets: Requirements,
    /// The values of [`Policy::headers`], in their order; `None`: it has no such claim, or none
    /// that can be a header.
    pub headers: Box<[Option<Box<str>>]>,
}

impl Policy {
    /// Looks at a token, in Unix seconds. Nothing of it is verified after that.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn look<'a>(&self, token: &'a [u8], now: u64) -> Result<Candidate<'a>, Flaw> {
        let compact = Compact::parse(token)?;
        let claims = Claims::parse(&compact.payload).ok_or(Flaw::Malformed)?;
        let (number, issuer) = self.issuer_of(&claims)?;
        if !issuer.algorithms.is_empty() && !issuer.algorithms.contains(&compact.algorithm) {
            return Err(Flaw::Algorithm);
        }
        let expires = issuer.accept(&claims, now)?;
        Ok(Candidate {
            issuer: number,
            compact,
            claims,
            expires,
        })
    }

    /// What is remembered of a token that this key has verified.
    ///
    /// # Errors
    /// [`Flaw::Application`]: it speaks for nobody.
    pub fn verified(&self, candidate: &Candidate<'_>, key: Fingerprint) -> Result<Verified, Flaw> {
        let Candidate {
            issuer: number,
            claims,
            expires,
            ..
        } = candidate;
        let issuer = self.issuers.get(*number).ok_or(Flaw::Issuer)?;
        Ok(Verified {
            issuer: Some(*number),
            key: Some(key),
            ..self.granted(claims, &issuer.application, *expires)?
        })
    }

    /// What a token says whose signature was verified elsewhere, in Unix seconds. All but the
    /// signature is looked at here nevertheless: it may have been verified for another purpose.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn vouched(&self, claims: &Claims, now: u64) -> Result<Verified, Flaw> {
        let (number, issuer) = self.issuer_of(claims)?;
        let expires = issuer.accept(claims, now)?;
        Ok(Verified {
            issuer: Some(number),
            ..self.granted(claims, &issuer.application, expires)?
        })
    }

    fn issuer_of(&self, claims: &Claims) -> Result<(usize, &Issuer), Flaw> {
        let name = claims.text("iss").ok_or(Flaw::Issuer)?;
        let mut issuers = self.issuers.iter().enumerate();
        let found = issuers.find(|(_, issuer)| *issuer.name == *name);
        found.ok_or(Flaw::Issuer)
    }

    /// What is remembered of a token with these claims that is valid until then: of no issuer, and
    /// verified by no key.
    ///
    /// # Errors
    /// [`Flaw::Application`]: it speaks for nobody.
    pub(super) fn granted(
        &self,
        claims: &Claims,
        application: &[ClaimPath],
        expires: u64,
    ) -> Result<Verified, Flaw> {
        let named = application.iter().find_map(|path| claims.at(path));
        let application = named.and_then(only).ok_or(Flaw::Application)?;
        let mut meets = Requirements::default();
        for (number, requirement) in self.requirements.iter().enumerate() {
            if requirement.is_met_by(claims) {
                meets = meets.with(number);
            }
        }
        let header = |path: &ClaimPath| {
            claims.at(path).and_then(|claim| {
                let text = values(claim).collect::<Vec<_>>().join(",");
                is_header_value(&text).then(|| text.into())
            })
        };
        Ok(Verified {
            application: application.into(),
            expires,
            issuer: None,
            key: None,
            meets,
            headers: self.headers.iter().map(|(_, path)| header(path)).collect(),
        })
    }
}

impl Issuer {
    /// The first Unix second in which a token with these claims is not valid any more.
    fn accept(&self, claims: &Claims, now: u64) -> Result<u64, Flaw> {
        if !claims.is_for(&self.audiences) {
            return Err(Flaw::Audience);
        }
        let moment = |name| claims.moment(name).map_err(|()| Flaw::Malformed);
        let latest = now.saturating_add(self.leeway);
        let expires = moment("exp")?.ok_or(Flaw::NoExpiry)?;
        let expires = expires.saturating_add(self.leeway);
        if now >= expires {
            return Err(Flaw::Expired);
        }
        for beginning in ["nbf", "iat"] {
            if moment(beginning)?.is_some_and(|beginning| beginning > latest) {
                return Err(Flaw::Premature);
            }
        }
        Ok(expires)
    }
}

impl Candidate<'_> {
    /// What [`verify`](Self::verify) costs at most: the sum over the keys that there are to try
    /// ([`PublicKey::cost`](super::PublicKey::cost)).
    #[must_use]
    pub fn cost(&self, keys: &KeySet) -> usize {
        let costs = self.keys(keys).map(|key| key.public().cost());
        costs.fold(0, usize::saturating_add)
    }

    /// How many keys there are to try.
    #[must_use]
    pub fn tries(&self, keys: &KeySet) -> usize {
        self.keys(keys).count()
    }

    /// Looks for the key that made the signature.
    ///
    /// # Errors
    /// That there is none.
    pub fn verify(&self, keys: &KeySet) -> Result<Fingerprint, Unverified> {
        let mut why = Unverified::NoKey;
        for key in self.keys(keys) {
            let Compact {
                algorithm,
                signed,
                signature,
                ..
            } = &self.compact;
            if key.public().verifies(*algorithm, signed, signature) {
                return Ok(key.fingerprint());
            }
            why = Unverified::Signature;
        }
        // Without a `kid` it may be of a key that was not there yet.
        if self.compact.key_id.is_none() {
            why = Unverified::NoKey;
        }
        Err(why)
    }

    fn keys<'k>(&'k self, keys: &'k KeySet) -> impl Iterator<Item = &'k super::jwks::Key> {
        keys.candidates(self.compact.algorithm, self.compact.key_id.as_deref())
    }
}

/// The one value of a claim: of a list, its only element.
fn only(claim: &serde_json::Value) -> Option<Cow<'_, str>> {
    let mut values = values(claim);
    match (values.next(), values.next()) {
        (Some(value), None) => Some(value),
        _ => None,
    }
}

/// Visible characters of ASCII with spaces between them: what cannot end the header, and what
/// all upstreams read alike.
fn is_header_value(text: &str) -> bool {
    (1..=LONGEST_VALUE).contains(&text.len())
        && text.trim() == text
        && text.bytes().all(|byte| (b' '..=b'~').contains(&byte))
}
