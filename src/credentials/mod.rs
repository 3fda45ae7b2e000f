//! Who is calling: where a request carries its credential, and what may count as one.
//!
//! Apart from [`crate::config`] because this runs for every request and reads
//! bytes that strangers chose, while the configuration is read once and comes
//! from the operator. [`Identities`] turns what is found here into the digest under
//! which the application's record is kept.

mod cookie;
mod credential;
mod form;
mod identity;
#[cfg(all(test, not(target_family = "wasm")))]
mod property_tests;
mod scheme;
mod source;
mod strip;
#[cfg(test)]
mod tests;

use std::borrow::Cow;

use crate::request::Request;
use source::Held;

pub use credential::{Credential, Kind, MAXIMUM_BYTES};
pub use identity::{Digest, Identities, Part, Scope};
pub use source::{BasicPart, Body, CookieName, HeaderName, ParameterName, Source, SourceError};
pub use strip::{Stripped, StrippedHeader};

/// Where a service's consumers put their credentials, and what is done with them.
///
/// Invariant: there is a source of the `user_key` or the `app_id`; no source is named twice;
/// nothing is stripped from requests if the body is a source; the anonymous credential is
/// of the service's kind.
#[derive(Clone, Debug)]
pub struct Credentials {
    sources: Sources,
    strip: bool,
    referrer: bool,
    refuse_blank_key: bool,
    anonymous: Option<Credential<'static>>,
}

/// Where to look, in this order. A service of the backend knows its applications in one
/// of these ways only (protocol section 2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sources {
    /// By a `user_key`.
    UserKey(Vec<Source>),
    /// By an `app_id`, and an `app_key` if there is one.
    AppId {
        /// Where the id is.
        app_id: Vec<Source>,
        /// Where the key is; nowhere if empty.
        app_key: Vec<Source>,
    },
    /// By an `app_id` that a verified token names ([`crate::tokens`]).
    Token(Vec<Source>),
}

/// A list of sources, by its name in the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum List {
    /// `user_key`
    UserKey,
    /// `app_id`
    AppId,
    /// `app_key`
    AppKey,
    /// `token`
    Token,
}

/// Why sources cannot be a service's credentials.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CredentialsError {
    /// Nobody could ever be let in.
    #[error("{0:?} names no place to look in")]
    Empty(List),
    /// The source of this index stands earlier, too.
    #[error("{0:?} names source {1}, which is named before")]
    Repeated(List, usize),
    /// A body cannot be changed, so credentials cannot be stripped from it.
    #[error("credentials cannot be stripped from a body")]
    StripBody,
    /// An anonymous credential of the other kind.
    #[error("the anonymous credential is of another kind than the sources")]
    AnonymousKind,
}

/// What a request says about its caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found<'a> {
    /// A credential that service management can be asked about.
    Credential(Credential<'a>),
    /// Something that cannot be anybody's credential: over [`MAXIMUM_BYTES`], not
    /// UTF-8, with control characters in it, or broken base64. The answer is the one for a
    /// wrong credential (403), and nobody is asked: the backend refuses such values, and
    /// in a batch of reports one of them would cost the whole batch.
    Unusable,
    /// A token that is still to be verified, as its bytes.
    Token(Cow<'a, [u8]>),
    /// It may be in the body, which has not arrived yet: look again when it is here.
    InBody,
    /// No source holds anything: 401.
    Missing,
}

impl Credentials {
    /// Credentials that are a `user_key`, to be looked for in this order.
    ///
    /// # Errors
    ///
    /// If the list is empty or names a source twice.
    pub fn user_key(sources: Vec<Source>) -> Result<Self, CredentialsError> {
        Self::new(Sources::UserKey(sources))
    }

    /// Credentials to be looked for in these places.
    ///
    /// # Errors
    ///
    /// If the first list is empty, or a source is named twice.
    pub fn new(sources: Sources) -> Result<Self, CredentialsError> {
        let mut before: Vec<&Source> = Vec::new();
        for (index, (list, sources)) in sources.lists().enumerate() {
            if index == 0 && sources.is_empty() {
                return Err(CredentialsError::Empty(list));
            }
            for (index, source) in sources.iter().enumerate() {
                if before.contains(&source) {
                    return Err(CredentialsError::Repeated(list, index));
                }
                before.push(source);
            }
        }
        Ok(Self {
            sources,
            strip: false,
            referrer: false,
            refuse_blank_key: false,
            anonymous: None,
        })
    }

    /// The same, but the upstream does not see the credentials.
    ///
    /// # Errors
    ///
    /// If the body is one of the sources: it could not be changed.
    pub fn stripped(self) -> Result<Self, CredentialsError> {
        let body = |source: &Source| matches!(source, Source::Body(_));
        if self.sources.all().any(body) {
            return Err(CredentialsError::StripBody);
        }
        Ok(Self {
            strip: true,
            ..self
        })
    }

    /// The same, but the `Referer` of a request belongs to its credential.
    #[must_use]
    pub fn with_referrer(self) -> Self {
        Self {
            referrer: true,
            ..self
        }
    }

    /// The same, but an `app_key` that is blank is a wrong one rather than none: for
    /// services in OAuth mode, where one that is there is checked, and one that is not need
    /// not be (protocol section 4, capture `c04`).
    #[must_use]
    pub fn refusing_blank_keys(self) -> Self {
        Self {
            refuse_blank_key: true,
            ..self
        }
    }

    /// The same, but requests without any credential have this one.
    ///
    /// # Errors
    ///
    /// If it is not of the kind that is looked for.
    pub fn with_anonymous(self, credential: Credential<'static>) -> Result<Self, CredentialsError> {
        if credential.kind() != self.kind() {
            return Err(CredentialsError::AnonymousKind);
        }
        Ok(Self {
            anonymous: Some(credential),
            ..self
        })
    }

    /// The kind of all credentials of the service.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self.sources {
            Sources::UserKey(_) => Kind::UserKey,
            Sources::AppId { .. } | Sources::Token(_) => Kind::AppId,
        }
    }

    /// The caller's credential: that of the first source, in the configured order,
    /// that holds a value which is not blank (for `app_id` and `app_key` each). Of the
    /// other kind's credentials nothing is seen.
    ///
    /// Within a source, too, the first value that is not blank counts: of
    /// `?user_key=a&user_key=b` it is `a`. (The backend would take the last one of
    /// its own parameters, but is only ever sent what was decided on here.) The
    /// search ends there even if the value is [unusable](Found::Unusable): a later
    /// source must not make up for a forged earlier one. Blank is what the backend takes for
    /// absent: nothing but white space.
    ///
    /// A request without any has the anonymous credential, if there is one. An `app_key`
    /// without an `app_id` is not such a request, and nobody's credential.
    #[must_use]
    pub fn find<'a>(&'a self, request: &Request<'a>, body: Body<'a>) -> Found<'a> {
        let search = |sources: &[Source]| {
            let mut held = Held::Nothing;
            for source in sources {
                held = held.or(source.held(request, body));
                if held.counts() {
                    break;
                }
            }
            held
        };
        let (value, app_key) = match &self.sources {
            Sources::UserKey(sources) => (search(sources), Held::Nothing),
            Sources::AppId { app_id, app_key } => (search(app_id), search(app_key)),
            Sources::Token(sources) => match search(sources) {
                Held::Value(token) => return Found::Token(token),
                other => (other, Held::Nothing),
            },
        };
        let credential = match (value, app_key) {
            (Held::Unusable, _) | (_, Held::Unusable) => None,
            (Held::Ahead, _) | (_, Held::Ahead) => return Found::InBody,
            (Held::Nothing | Held::Blank, Held::Value(_)) => return Found::Missing,
            (Held::Nothing | Held::Blank, Held::Nothing | Held::Blank) => match &self.anonymous {
                Some(anonymous) => Some(anonymous.reborrow()),
                None => return Found::Missing,
            },
            (Held::Value(_), Held::Blank) if self.refuse_blank_key => None,
            (Held::Value(value), Held::Nothing | Held::Blank) => {
                Credential::new(self.kind(), value)
            }
            (Held::Value(value), Held::Value(app_key)) => Credential::new(self.kind(), value)
                .and_then(|credential| credential.with_app_key(app_key)),
        };
        credential
            .and_then(|credential| self.referred(credential, request))
            .map_or(Found::Unusable, Found::Credential)
    }

    /// The credential of a request whose token speaks for this application; `None` if nobody can
    /// have it.
    #[must_use]
    pub fn of_token<'a>(
        &self,
        application: &'a str,
        request: &Request<'a>,
    ) -> Option<Credential<'a>> {
        let credential = Credential::new(self.kind(), Cow::Borrowed(application.as_bytes()))?;
        self.referred(credential, request)
    }

    /// With the request's `Referer`, where that is looked at.
    fn referred<'a>(
        &self,
        credential: Credential<'a>,
        request: &Request<'a>,
    ) -> Option<Credential<'a>> {
        if !self.referrer {
            return Some(credential);
        }
        let referrer = request.headers.first(b"referer").unwrap_or_default();
        credential.with_referrer(Cow::Borrowed(source::trim(referrer)))
    }

    /// Whether the `Referer` of a request belongs to its credential.
    #[must_use]
    pub const fn looks_at_referrer(&self) -> bool {
        self.referrer
    }

    /// What the upstream is to see in place of the credentials; `None` if it may see them.
    #[must_use]
    pub fn strip<'a>(&self, request: &Request<'a>) -> Option<Stripped<'a>> {
        if !self.strip {
            return None;
        }
        let sources: Vec<&Source> = self.sources.all().collect();
        Some(strip::strip(&sources, request))
    }

    /// Where credentials are looked for.
    #[must_use]
    pub fn sources(&self) -> &Sources {
        &self.sources
    }
}

impl Sources {
    fn lists(&self) -> impl Iterator<Item = (List, &[Source])> {
        let (first, second) = match self {
            Self::UserKey(user_key) => ((List::UserKey, user_key.as_slice()), None),
            Self::AppId { app_id, app_key } => (
                (List::AppId, app_id.as_slice()),
                Some((List::AppKey, app_key.as_slice())),
            ),
            Self::Token(token) => ((List::Token, token.as_slice()), None),
        };
        std::iter::once(first).chain(second)
    }

    fn all(&self) -> impl Iterator<Item = &Source> {
        self.lists().flat_map(|(_, sources)| sources)
    }
}

impl Default for Credentials {
    /// The query parameter `user_key`, which is what 3scale's own gateway looks for.
    fn default() -> Self {
        let sources = ParameterName::new("user_key")
            .map(Source::Query)
            .into_iter()
            .collect();
        Self {
            sources: Sources::UserKey(sources),
            strip: false,
            referrer: false,
            refuse_blank_key: false,
            anonymous: None,
        }
    }
}
