//! Who is calling: where a request carries its credential, and what may count as one.
//!
//! Apart from [`crate::config`] because this runs for every request and reads
//! bytes that strangers chose, while the configuration is read once and comes
//! from the operator. [`Identities`] turns what is found here into the digest under
//! which the application's record is kept.

mod form;
mod identity;
mod source;

use std::borrow::Cow;
use std::fmt;

use crate::request::Request;

pub use identity::{Digest, Identities, Scope};
pub use source::{HeaderName, QueryName, Source, SourceError};

/// The most bytes that a credential may have, decoded.
///
/// Longer than any key that 3scale makes (32) or lets people choose (256), and
/// what a record has room for.
pub const MAXIMUM_BYTES: usize = 256;

/// Where a service's consumers put their credentials.
///
/// One kind today, the `user_key`; a service that knows its applications by
/// `app_id` and `app_key` or by a token gets its sources beside it.
///
/// Invariant: there is at least one source, and no source is named twice.
#[derive(Clone, Debug)]
pub struct Credentials {
    user_key: Vec<Source>,
}

/// Why a list of sources cannot be a service's credentials.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CredentialsError {
    /// Nobody could ever be let in.
    #[error("names no place to look in")]
    Empty,
    /// The source of this index stands earlier in the list, too.
    #[error("source {0} is named before")]
    Repeated(usize),
}

/// What a request says about its caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found<'a> {
    /// A credential that service management can be asked about.
    Credential(Credential<'a>),
    /// Something that cannot be anybody's credential: over [`MAXIMUM_BYTES`], not
    /// UTF-8, or with control characters in it. The answer is the one for a wrong
    /// credential (403), and nobody is asked: the backend refuses such values, and
    /// in a batch of reports one of them would cost the whole batch.
    Unusable,
    /// No source holds anything: 401.
    Missing,
}

/// The ways in which service management knows an application.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A `user_key`, the whole credential in one value.
    UserKey,
}

/// A credential as the consumer sent it, decoded.
///
/// Invariant: 1 to [`MAXIMUM_BYTES`] bytes of UTF-8 without control characters.
/// It borrows from the request unless it had to be decoded. `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct Credential<'a> {
    kind: Kind,
    value: Cow<'a, str>,
}

impl Credentials {
    /// Credentials that are a `user_key`, to be looked for in this order.
    ///
    /// # Errors
    ///
    /// If the list is empty or names a source twice.
    pub fn user_key(sources: Vec<Source>) -> Result<Self, CredentialsError> {
        if sources.is_empty() {
            return Err(CredentialsError::Empty);
        }
        for (index, source) in sources.iter().enumerate() {
            if sources.iter().take(index).any(|before| before == source) {
                return Err(CredentialsError::Repeated(index));
            }
        }
        Ok(Self { user_key: sources })
    }

    /// The caller's credential: that of the first source, in the configured order,
    /// that holds a value which is not empty.
    ///
    /// Within a source, too, the first value that is not empty counts: of
    /// `?user_key=a&user_key=b` it is `a`. (The backend would take the last one of
    /// its own parameters, but is only ever sent what was decided on here.) The
    /// search ends there even if the value is [unusable](Found::Unusable): a later
    /// source must not make up for a forged earlier one.
    #[must_use]
    pub fn find<'a>(&self, request: &Request<'a>) -> Found<'a> {
        self.user_key
            .iter()
            .find_map(|source| source.value(request))
            .map_or(Found::Missing, |value| {
                Credential::new(Kind::UserKey, value).map_or(Found::Unusable, Found::Credential)
            })
    }

    /// The sources of the `user_key`, in order.
    #[must_use]
    pub fn sources(&self) -> &[Source] {
        &self.user_key
    }
}

impl Default for Credentials {
    /// The query parameter `user_key`, which is what 3scale's own gateway looks for.
    fn default() -> Self {
        Self {
            user_key: QueryName::new("user_key")
                .map(Source::Query)
                .into_iter()
                .collect(),
        }
    }
}

impl Kind {
    /// The byte that stands for this kind in digests and records; never reused.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::UserKey => 1,
        }
    }

    /// The kind of that byte, if there is one.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        (code == Self::UserKey.code()).then_some(Self::UserKey)
    }
}

impl<'a> Credential<'a> {
    /// A credential of these bytes, if they can be one.
    #[must_use]
    pub fn new(kind: Kind, value: Cow<'a, [u8]>) -> Option<Self> {
        if value.is_empty() || value.len() > MAXIMUM_BYTES {
            return None;
        }
        let value = match value {
            Cow::Borrowed(bytes) => Cow::Borrowed(std::str::from_utf8(bytes).ok()?),
            Cow::Owned(bytes) => Cow::Owned(String::from_utf8(bytes).ok()?),
        };
        let usable = !value.chars().any(char::is_control);
        let value = match kind {
            // 3scale looks a user_key up with every white space as a plus. Told apart here,
            // one application would have a record, and limits, for each way to write its key.
            Kind::UserKey if value.contains(' ') => Cow::Owned(value.replace(' ', "+")),
            Kind::UserKey => value,
        };
        usable.then_some(Self { kind, value })
    }

    /// What kind of credential it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The value itself, for service management and for nobody else.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.value
    }
}

impl fmt::Debug for Credential<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Credential")
            .field("kind", &self.kind)
            .field("value", &"[secret]")
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::Headers;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    fn query(name: &str) -> Source {
        Source::Query(QueryName::new(name).unwrap())
    }

    fn header(name: &str) -> Source {
        Source::Header(HeaderName::new(name).unwrap())
    }

    /// What these sources find: the value, or which of the two other outcomes.
    fn find(sources: Vec<Source>, target: &[u8], pairs: &[(&[u8], &[u8])]) -> String {
        let credentials = Credentials::user_key(sources).unwrap();
        match credentials.find(&Request {
            method: b"GET",
            authority: b"api.example.com",
            target,
            headers: Headers { pairs },
        }) {
            Found::Credential(credential) => credential.expose().to_owned(),
            Found::Unusable => "(unusable)".to_owned(),
            Found::Missing => "(missing)".to_owned(),
        }
    }

    fn in_query(target: &[u8]) -> String {
        find(vec![query("user_key")], target, &[])
    }

    fn in_header(value: &[u8]) -> String {
        find(vec![header("X-Api-Key")], b"/", &[(b"x-api-key", value)])
    }

    #[test]
    fn a_query_parameter_is_found_wherever_it_stands() {
        assert_eq!(in_query(b"/a?user_key=abc"), "abc");
        assert_eq!(in_query(b"/a?x=1&user_key=abc&y=2"), "abc");
        assert_eq!(in_query(b"/a?x=1&&user_key=a=b?c"), "a=b?c");
    }

    #[test]
    fn only_the_query_is_searched_for_a_query_parameter() {
        assert_eq!(in_query(b"/user_key=abc"), "(missing)");
        assert_eq!(
            in_query(b"/a?other_user_key=abc&user_key2=abc&user=abc"),
            "(missing)"
        );
        assert_eq!(in_query(b"/a?x=1;user_key=abc"), "(missing)");
        assert_eq!(in_query(b"/a?USER_KEY=abc"), "(missing)");
        assert_eq!(in_query(b""), "(missing)");
    }

    #[test]
    fn a_query_value_is_decoded_exactly_once() {
        assert_eq!(in_query(b"/?user_key=a%62c%2Be"), "abc+e");
        assert_eq!(in_query(b"/?user_key=%2561"), "%61");
        assert_eq!(in_query(b"/?user_key=100%"), "100%");
        assert_eq!(in_query(b"/?user_key=%c3%a4%zz"), "\u{e4}%zz");
    }

    #[test]
    fn a_space_in_a_user_key_is_the_plus_that_3scale_takes_it_for() {
        for written in ["a+b", "a%2Bb", "a%20b"] {
            let target = format!("/?user_key={written}");
            assert_eq!(in_query(target.as_bytes()), "a+b", "{written}");
        }
    }

    #[test]
    fn a_query_name_is_compared_decoded() {
        assert_eq!(in_query(b"/?user%5Fkey=abc"), "abc");
        assert_eq!(in_query(b"/?%75%73%65%72%5F%6B%65%79=abc"), "abc");
        assert_eq!(in_query(b"/?user%255Fkey=abc"), "(missing)");
        assert_eq!(find(vec![query("my key")], b"/?my+key=abc", &[]), "abc");
        assert_eq!(find(vec![query("my key")], b"/?my%20key=abc", &[]), "abc");
        assert_eq!(find(vec![query("a+b")], b"/?a%2bb=abc", &[]), "abc");
        assert_eq!(find(vec![query("a+b")], b"/?a+b=abc", &[]), "(missing)");
        assert_eq!(find(vec![query("a%41")], b"/?a%41=abc", &[]), "(missing)");
    }

    #[test]
    fn the_first_value_of_a_repeated_parameter_or_header_counts() {
        assert_eq!(in_query(b"/?user_key=first&user_key=second"), "first");
        assert_eq!(in_query(b"/?user_key=&user_key&user_key=third"), "third");
        let pairs: &[(&[u8], &[u8])] = &[(b"k", b" "), (b"k", b"two"), (b"k", b"three")];
        assert_eq!(find(vec![header("k")], b"/", pairs), "two");
    }

    #[test]
    fn the_order_of_the_sources_decides() {
        let both = |sources| find(sources, b"/?key=query", &[(b"key", b"header")]);
        assert_eq!(both(vec![query("key"), header("key")]), "query");
        assert_eq!(both(vec![header("key"), query("key")]), "header");
        let empty = find(
            vec![query("key"), header("key")],
            b"/?key=",
            &[(b"key", b"header")],
        );
        assert_eq!(empty, "header");
    }

    #[test]
    fn a_header_value_is_taken_as_it_is_but_for_white_space_around_it() {
        assert_eq!(in_header(b" \ta%20b+c \t"), "a%20b+c");
        assert_eq!(in_header(b"   "), "(missing)");
        assert_eq!(in_header(b""), "(missing)");
    }

    #[test]
    fn a_value_that_the_backend_would_refuse_is_unusable() {
        assert_eq!(in_header(b"a\xffb"), "(unusable)");
        assert_eq!(in_header(b"a\tb"), "(unusable)");
        assert_eq!(in_header(b"a\x7fb"), "(unusable)");
        assert_eq!(in_query(b"/?user_key=%ff"), "(unusable)");
        assert_eq!(in_query(b"/?user_key=a%00b"), "(unusable)");
        assert_eq!(in_query(b"/?user_key=%0d%0a"), "(unusable)");
        assert_eq!(in_query(b"/?user_key=%c2%85"), "(unusable)");
    }

    #[test]
    fn a_value_may_have_256_bytes_after_decoding_and_no_more() {
        let of = |unit: &str, count: usize| {
            in_query(format!("/?user_key={}", unit.repeat(count)).as_bytes())
        };
        assert_eq!(of("a", 256), "a".repeat(256));
        assert_eq!(of("%61", 256), "a".repeat(256));
        assert_eq!(of("a", 257), "(unusable)");
        assert_eq!(of("%61", 257), "(unusable)");
        assert_eq!(of("a", 60_000), "(unusable)");
        assert_eq!(in_header(&[b'a'; 256]), "a".repeat(256));
        assert_eq!(in_header(&[b'a'; 257]), "(unusable)");
    }

    #[test]
    fn an_unusable_value_is_not_made_up_for_by_a_later_source() {
        let sources = vec![query("key"), header("key")];
        assert_eq!(
            find(sources, b"/?key=%ff", &[(b"key", b"good")]),
            "(unusable)"
        );
    }

    #[test]
    fn sources_are_neither_none_nor_repeated() {
        let error = |sources| Credentials::user_key(sources).unwrap_err();
        assert_eq!(error(vec![]), CredentialsError::Empty);
        let repeated = vec![header("key"), query("key"), header("KEY")];
        assert_eq!(error(repeated), CredentialsError::Repeated(2));
    }

    #[test]
    fn by_default_the_query_parameter_user_key_is_the_credential() {
        assert_eq!(Credentials::default().sources(), [query("user_key")]);
    }

    #[test]
    fn debug_output_does_not_show_a_credential() {
        let credential = Credential::new(Kind::UserKey, Cow::Borrowed(b"s3cr3t")).unwrap();
        let found = format!("{:?}", Found::Credential(credential));
        assert!(
            found.contains("UserKey") && !found.contains("s3cr3t"),
            "{found}"
        );
    }
}

#[cfg(all(test, not(target_family = "wasm")))]
mod properties {
    use super::*;
    use crate::request::Headers;
    use percent_encoding::{NON_ALPHANUMERIC, percent_encode};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_request_is_too_strange(
            target in proptest::collection::vec(any::<u8>(), 0..400),
            value in proptest::collection::vec(any::<u8>(), 0..400),
        ) {
            let pairs: &[(&[u8], &[u8])] = &[(b"k", &value)];
            let request = Request {
                method: b"GET",
                authority: b"",
                target: &target,
                headers: Headers { pairs },
            };
            let credentials = Credentials::user_key(vec![
                Source::Query(QueryName::new("k").unwrap()),
                Source::Header(HeaderName::new("k").unwrap()),
            ]).unwrap();
            if let Found::Credential(credential) = credentials.find(&request) {
                prop_assert!((1..=MAXIMUM_BYTES).contains(&credential.expose().len()));
            }
        }

        #[test]
        fn what_was_encoded_is_found_as_it_was(key in "[^\\p{Cc}]{1,60}") {
            let target = format!("/?user_key={}", percent_encode(key.as_bytes(), NON_ALPHANUMERIC));
            let request = Request {
                method: b"GET",
                authority: b"",
                target: target.as_bytes(),
                headers: Headers { pairs: &[] },
            };
            let expected = Credential::new(Kind::UserKey, Cow::Borrowed(key.as_bytes())).unwrap();
            prop_assert_eq!(Credentials::default().find(&request), Found::Credential(expected));
        }
    }
}
