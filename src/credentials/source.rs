//! One place of a request in which a credential may stand.
//!
//! Apart from [`super::Credentials`] so that another place (a cookie, the user of
//! basic authentication, a bearer token) is one more variant here and nothing there.

use std::borrow::Cow;

use super::{MAXIMUM_BYTES, form};
use crate::request::Request;

/// Where to look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A query parameter, form-decoded.
    Query(QueryName),
    /// A header, as its bytes.
    Header(HeaderName),
}

/// The decoded name of a query parameter; not empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueryName(Box<str>);

/// The name of a header in lower case, as Envoy hands headers to filters.
///
/// Invariant: one or more `tchar` of RFC 9110, 5.6.2; so never a pseudo-header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderName(Box<str>);

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
}

impl QueryName {
    /// A parameter of this decoded name.
    ///
    /// # Errors
    ///
    /// If it is empty.
    pub fn new(name: &str) -> Result<Self, SourceError> {
        if name.is_empty() {
            return Err(SourceError::Empty);
        }
        Ok(Self(name.into()))
    }

    /// Whether this encoded name is that name.
    fn is(&self, encoded: &[u8]) -> bool {
        let name = self.0.as_bytes();
        if !encoded.iter().any(|byte| matches!(byte, b'%' | b'+')) {
            return encoded == name;
        }
        // The length first: strangers' names are not to be decoded at any length.
        encoded.len() <= form::longest_encoding(name.len()) && *form::decode(encoded) == *name
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
        let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        if !name.bytes().all(token) {
            return Err(SourceError::Header);
        }
        Ok(Self(name.to_ascii_lowercase().into()))
    }
}

impl Source {
    /// The first value here that is not empty, decoded. One whose encoding is longer
    /// than any credential's is handed back as it is: it is too long either way.
    pub(super) fn value<'a>(&self, request: &Request<'a>) -> Option<Cow<'a, [u8]>> {
        match self {
            Self::Query(name) => form::pairs(request.query())
                .find(|(candidate, value)| !value.is_empty() && name.is(candidate))
                .map(|(_, value)| {
                    if value.len() > form::longest_encoding(MAXIMUM_BYTES) {
                        Cow::Borrowed(value)
                    } else {
                        form::decode(value)
                    }
                }),
            Self::Header(name) => request
                .headers
                .pairs
                .iter()
                .filter(|(candidate, _)| *candidate == name.0.as_bytes())
                .map(|(_, value)| trim(value))
                .find(|value| !value.is_empty())
                .map(Cow::Borrowed),
        }
    }
}

/// Without the optional white space of RFC 9110, 5.6.3, at both ends.
fn trim(value: &[u8]) -> &[u8] {
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
    fn header_names_are_lowered() {
        assert_eq!(HeaderName::new("X-Api-Key"), HeaderName::new("x-api-key"));
    }

    #[test]
    fn what_no_header_can_be_called_is_refused() {
        for name in [":authority", "x api", "x-api-key:", "\u{fc}ser", "a\n"] {
            assert_eq!(HeaderName::new(name), Err(SourceError::Header), "{name:?}");
        }
        assert_eq!(HeaderName::new(""), Err(SourceError::Empty));
        assert_eq!(QueryName::new(""), Err(SourceError::Empty));
    }
}
