//! One place of a request in which a credential may stand.
//!
//! Apart from [`super::Credentials`] so that another place is one more variant here and
//! nothing there.

use std::borrow::Cow;
use std::fmt;

use super::{MAXIMUM_BYTES, cookie, form, scheme};
use crate::request::Request;

/// Where to look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A query parameter, form-decoded.
    Query(ParameterName),
    /// A header, as its bytes.
    Header(HeaderName),
    /// A cookie, as its bytes.
    Cookie(CookieName),
    /// A part of `Authorization: Basic`, out of its base64.
    Basic(BasicPart),
    /// The token of `Authorization: Bearer`, as its bytes.
    Bearer,
    /// A parameter of an urlencoded body, form-decoded.
    Body(ParameterName),
}

/// Which part of basic authentication.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BasicPart {
    /// What stands before the first colon.
    Username,
    /// What stands behind it.
    Password,
}

/// The decoded name of a parameter of a query or form; not empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParameterName {
    name: Box<str>,
    /// Whether it is its own encoding, up to the `=` behind it.
    is_plain: bool,
}

/// The name of a header in lower case, as Envoy hands headers to filters.
///
/// Invariant: one or more `tchar` of RFC 9110, 5.6.2; so never a pseudo-header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderName(Box<str>);

/// The name of a cookie, compared with its case.
///
/// Invariant: one or more `tchar` of RFC 9110, 5.6.2 (RFC 6265, 4.1.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CookieName(Box<str>);

/// Why a name cannot be looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// No name at all.
    #[error("a name is needed, like user_key")]
    Empty,
    /// Not a header name.
    #[error(
        "a header name has letters, digits, and characters like \"-\" and \"_\", like x-api-key"
    )]
    Header,
    /// Not a cookie name.
    #[error("a cookie name has letters, digits, and characters like \"-\" and \"_\", like key")]
    Cookie,
}

/// How much of a request's body is known. `Debug` shows how long it is, for it may hold a
/// credential.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Body<'a> {
    /// There is none, or nobody will show it.
    None,
    /// It has not arrived yet.
    Ahead,
    /// All of it.
    Whole(&'a [u8]),
}

impl fmt::Debug for Body<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => formatter.write_str("None"),
            Self::Ahead => formatter.write_str("Ahead"),
            Self::Whole(body) => write!(formatter, "Whole({} bytes)", body.len()),
        }
    }
}

/// What a source holds.
#[derive(PartialEq, Eq)]
pub(super) enum Held<'a> {
    /// Nothing.
    Nothing,
    /// Only values that are blank.
    Blank,
    /// A value that is not blank, decoded.
    Value(Cow<'a, [u8]>),
    /// Something that is surely no value.
    Unusable,
    /// It will show when the body is here.
    Ahead,
}

impl ParameterName {
    /// A parameter of this decoded name.
    ///
    /// # Errors
    ///
    /// If it is empty.
    pub fn new(name: &str) -> Result<Self, SourceError> {
        if name.is_empty() {
            return Err(SourceError::Empty);
        }
        let is_plain = !name
            .bytes()
            .any(|byte| matches!(byte, b'%' | b'+' | b'&' | b'='));
        Ok(Self {
            name: name.into(),
            is_plain,
        })
    }

    /// The encoded value of this pair if it has this name.
    fn value_in<'a>(&self, pair: &'a [u8]) -> Option<&'a [u8]> {
        if self.is_plain
            && let Some([b'=', value @ ..]) = pair.strip_prefix(self.name.as_bytes())
        {
            return Some(value);
        }
        let (name, value) = form::pair(pair);
        self.is(name).then_some(value)
    }

    /// Whether this encoded name is that name.
    fn is(&self, encoded: &[u8]) -> bool {
        let name = self.name.as_bytes();
        if !encoded.iter().any(|byte| matches!(byte, b'%' | b'+')) {
            return encoded == name;
        }
        // The length first: strangers' names are not to be decoded at any length.
        encoded.len() <= form::longest_encoding(name.len()) && *form::decode(encoded) == *name
    }

    /// The first value of this name that is not blank, decoded. One whose encoding is longer
    /// than any credential's is handed back as it is: it is too long either way.
    fn first<'a>(&self, form: &'a [u8]) -> Held<'a> {
        first(
            form::pairs(form)
                .filter_map(|pair| self.value_in(pair))
                .map(|value| {
                    if value.len() > form::longest_encoding(MAXIMUM_BYTES) {
                        Cow::Borrowed(value)
                    } else {
                        form::decode(value)
                    }
                }),
        )
    }
}

impl HeaderName {
    /// A header of this name, in any case.
    ///
    /// # Errors
    ///
    /// If no header can have this name.
    pub fn new(name: &str) -> Result<Self, SourceError> {
        if name.is_empty() {
            return Err(SourceError::Empty);
        }
        if !is_token(name) {
            return Err(SourceError::Header);
        }
        Ok(Self(name.to_ascii_lowercase().into()))
    }

    /// The name, in lower case.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl CookieName {
    /// A cookie of this name.
    ///
    /// # Errors
    ///
    /// If no cookie can have this name.
    pub fn new(name: &str) -> Result<Self, SourceError> {
        if name.is_empty() {
            return Err(SourceError::Empty);
        }
        if !is_token(name) {
            return Err(SourceError::Cookie);
        }
        Ok(Self(name.into()))
    }
}

impl Source {
    /// The first value here that is not blank, decoded.
    pub(super) fn held<'a>(&self, request: &Request<'a>, body: Body<'a>) -> Held<'a> {
        let headers = |name: &'a [u8]| request.headers.all(name);
        match self {
            Self::Query(name) => name.first(request.query()),
            Self::Header(name) => first(
                request
                    .headers
                    .pairs
                    .iter()
                    .filter(|(candidate, _)| *candidate == name.0.as_bytes())
                    .map(|(_, value)| Cow::Borrowed(trim(value))),
            ),
            Self::Cookie(name) => first(
                headers(b"cookie")
                    .flat_map(cookie::pairs)
                    .filter(|(candidate, _)| *candidate == name.0.as_bytes())
                    .map(|(_, value)| Cow::Borrowed(value)),
            ),
            Self::Basic(part) => headers(scheme::AUTHORIZATION)
                .filter_map(|value| scheme::behind(value, scheme::BASIC))
                .map(|encoded| match (scheme::basic(encoded), part) {
                    (None, _) => Held::Unusable,
                    (Some((username, _)), BasicPart::Username) => first([Cow::Owned(username)]),
                    (Some((_, password)), BasicPart::Password) => first([Cow::Owned(password)]),
                })
                .fold(Held::Nothing, Held::or),
            Self::Bearer => first(
                headers(scheme::AUTHORIZATION)
                    .filter_map(|value| scheme::behind(value, scheme::BEARER))
                    .map(Cow::Borrowed),
            ),
            Self::Body(name) => match body {
                Body::None => Held::Nothing,
                Body::Ahead | Body::Whole(_) if !form::is_form(&request.headers) => Held::Nothing,
                Body::Ahead => Held::Ahead,
                Body::Whole(body) => name.first(body),
            },
        }
    }

    /// The query without what this source holds; `None` if it holds nothing there.
    pub(super) fn is_in_query(&self, encoded_name: &[u8]) -> bool {
        matches!(self, Self::Query(name) if name.is(encoded_name))
    }

    /// What is left of a header when what this source may hold is taken out of it: all of it
    /// (borrowed), a part, or nothing.
    pub(super) fn cut<'a>(&self, name: &[u8], value: Cow<'a, [u8]>) -> Option<Cow<'a, [u8]>> {
        let scheme = match self {
            Self::Header(header) if header.0.as_bytes() == name => return None,
            Self::Cookie(cookie) if name == b"cookie" => {
                return match cookie::without(&value, cookie.0.as_bytes()) {
                    None => Some(value),
                    Some(rest) if rest.is_empty() => None,
                    Some(rest) => Some(Cow::Owned(rest)),
                };
            }
            Self::Basic(_) if name == scheme::AUTHORIZATION => scheme::BASIC,
            Self::Bearer if name == scheme::AUTHORIZATION => scheme::BEARER,
            _ => return Some(value),
        };
        scheme::behind(&value, scheme).is_none().then_some(value)
    }
}

impl Held<'_> {
    /// Whether it holds anything that counts, were it only that it is unusable.
    pub(super) const fn counts(&self) -> bool {
        !matches!(self, Self::Nothing | Self::Blank)
    }

    /// This if it counts, else what comes later; blank if only that came of both.
    pub(super) fn or(self, later: Self) -> Self {
        match (&self, &later) {
            (Self::Blank, Self::Nothing) => self,
            (Self::Nothing | Self::Blank, _) => later,
            _ => self,
        }
    }
}

/// The first value that is not blank.
fn first<'a>(values: impl IntoIterator<Item = Cow<'a, [u8]>>) -> Held<'a> {
    let mut held = Held::Nothing;
    for value in values {
        if !form::trim(&value).is_empty() {
            return Held::Value(value);
        }
        held = Held::Blank;
    }
    held
}

/// One or more `tchar` of RFC 9110, 5.6.2.
fn is_token(name: &str) -> bool {
    name.bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

/// Without the optional white space of RFC 9110, 5.6.3, at both ends.
pub(super) fn trim(value: &[u8]) -> &[u8] {
    let blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let start = value
        .iter()
        .position(|byte| !blank(byte))
        .unwrap_or(value.len());
    let end = value
        .iter()
        .rposition(|byte| !blank(byte))
        .map_or(start, |last| last.saturating_add(1));
    value.get(start..end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    #[test]
    fn header_names_are_lowered_and_cookie_names_are_not() {
        assert_eq!(HeaderName::new("X-Api-Key"), HeaderName::new("x-api-key"));
        assert_ne!(CookieName::new("Key"), CookieName::new("key"));
    }

    #[test]
    fn what_nothing_can_be_called_is_refused() {
        for name in [
            ":authority",
            "x api",
            "x-api-key:",
            "\u{fc}ser",
            "a\n",
            "a=b",
            "a;b",
        ] {
            assert_eq!(HeaderName::new(name), Err(SourceError::Header), "{name:?}");
            assert_eq!(CookieName::new(name), Err(SourceError::Cookie), "{name:?}");
        }
        assert_eq!(HeaderName::new(""), Err(SourceError::Empty));
        assert_eq!(CookieName::new(""), Err(SourceError::Empty));
        assert_eq!(ParameterName::new(""), Err(SourceError::Empty));
    }
}
