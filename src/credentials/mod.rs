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

pub use identity::{Digest, Identities, Part, Scope};
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
#[repr(u8)]
pub enum Kind {
    /// A `user_key`, the whole credential in one value.
    UserKey = 1,
    /// An `app_id`, and an `app_key` where the application has keys.
    AppId = 2,
}

/// A credential as the consumer sent it, decoded.
///
/// Invariant: the value, the `app_key` and the referrer, as far as there are any, have
/// 1 to [`MAXIMUM_BYTES`] bytes each, of UTF-8 without control characters. A `user_key`
/// has no space in it (it is the plus that 3scale takes it for) and no `app_key`; an
/// `app_key` has no white space around it.
/// All borrow from the request unless they had to be decoded. `Debug` shows none of them.
#[derive(Clone, PartialEq, Eq)]
pub struct Credential<'a> {
    kind: Kind,
    value: Cow<'a, str>,
    app_key: Option<Cow<'a, str>>,
    referrer: Option<Cow<'a, str>>,
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

    /// Whether the `Referer` of a request belongs to its credential.
    #[must_use]
    pub fn looks_at_referrer(&self) -> bool {
        false
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
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// The kind of that byte, if there is one.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        [Self::UserKey, Self::AppId]
            .into_iter()
            .find(|kind| kind.code() == code)
    }
}

impl<'a> Credential<'a> {
    /// A credential of these bytes, which are a `user_key` or an `app_id`, if they can be one.
    #[must_use]
    pub fn new(kind: Kind, value: Cow<'a, [u8]>) -> Option<Self> {
        let value = text(value)?;
        let value = match kind {
            // 3scale looks a user_key up with every white space as a plus. Told apart here,
            // one application would have a record, and limits, for each way to write its key.
            Kind::UserKey if value.contains(' ') => Cow::Owned(value.replace(' ', "+")),
            Kind::UserKey | Kind::AppId => value,
        };
        Some(Self {
            kind,
            value,
            app_key: None,
            referrer: None,
        })
    }

    /// The same with an `app_key`, if these bytes can be one for this kind of credential.
    ///
    /// White space around it goes, as in the backend (protocol section 2). A key of white
    /// space alone is no key: the backend lets it in where it lets in a missing one, which is
    /// where the application has no keys (capture b04).
    #[must_use]
    pub fn with_app_key(self, key: Cow<'a, [u8]>) -> Option<Self> {
        if self.kind != Kind::AppId {
            return None;
        }
        let key = match key {
            Cow::Borrowed(key) => Cow::Borrowed(trim(key)),
            Cow::Owned(key) => Cow::Owned(trim(&key).to_vec()),
        };
        let app_key = if key.is_empty() {
            None
        } else {
            Some(text(key)?)
        };
        Some(Self { app_key, ..self })
    }

    /// The same with a referrer, if these bytes can be one; no bytes are no referrer.
    #[must_use]
    pub fn with_referrer(self, referrer: Cow<'a, [u8]>) -> Option<Self> {
        let referrer = if referrer.is_empty() {
            None
        } else {
            Some(text(referrer)?)
        };
        Some(Self { referrer, ..self })
    }

    /// What kind of credential it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The `user_key` or `app_id` itself, for service management and for nobody else.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.value
    }

    /// The `app_key` that was shown; only an `app_id` has one. For service management and
    /// for nobody else.
    #[must_use]
    pub fn app_key(&self) -> Option<&str> {
        self.app_key.as_deref()
    }

    /// Where the request says that it comes from. `None` where the service does not ask for
    /// referrers (`credentials.referrer`), and where the request names none.
    #[must_use]
    pub fn referrer(&self) -> Option<&str> {
        self.referrer.as_deref()
    }
}

/// These bytes as a part of a credential, if they can be one.
fn text(bytes: Cow<'_, [u8]>) -> Option<Cow<'_, str>> {
    if bytes.is_empty() || bytes.len() > MAXIMUM_BYTES {
        return None;
    }
    let text = match bytes {
        Cow::Borrowed(bytes) => Cow::Borrowed(std::str::from_utf8(bytes).ok()?),
        Cow::Owned(bytes) => Cow::Owned(String::from_utf8(bytes).ok()?),
    };
    (!text.chars().any(char::is_control)).then_some(text)
}

/// Without what Ruby's `strip` takes off, which the backend trims with.
fn trim(bytes: &[u8]) -> &[u8] {
    let white = |byte: &u8| matches!(byte, b'\0' | b'\t'..=b'\r' | b' ');
    let Some(start) = bytes.iter().position(|byte| !white(byte)) else {
        return &[];
    };
    let end = bytes
        .iter()
        .rposition(|byte| !white(byte))
        .map_or(start, |last| last.saturating_add(1));
    bytes.get(start..end).unwrap_or_default()
}

impl fmt::Debug for Credential<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Credential")
            .field("kind", &self.kind)
            .finish_non_exhaustive()
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

    fn app_id(key: &[u8]) -> Option<Credential<'_>> {
        Credential::new(Kind::AppId, Cow::Borrowed(b"id"))
            .unwrap()
            .with_app_key(Cow::Borrowed(key))
    }

    #[test]
    fn an_app_key_is_trimmed_as_the_backend_trims_it() {
        let key = |key| app_id(key).unwrap().app_key().map(str::to_owned);
        assert_eq!(key(b"a b+c"), Some("a b+c".to_owned()));
        assert_eq!(key(b" \t\n\x0b\x0c\r\0a\0\r\n "), Some("a".to_owned()));
        assert_eq!(key("\u{a0}a".as_bytes()), Some("\u{a0}a".to_owned()));
        assert_eq!(key(b""), None);
        assert_eq!(key(b" \t\0"), None);
        let long = [b" ".as_slice(), &[b'a'; 256], b" "].concat();
        assert_eq!(key(&long), Some("a".repeat(256)));
    }

    #[test]
    fn an_app_key_and_a_referrer_are_bounded_as_the_value_is() {
        let referrer = |referrer| {
            Credential::new(Kind::UserKey, Cow::Borrowed(b"key"))?
                .with_referrer(Cow::Borrowed(referrer))
        };
        for bad in [b"a\0b".as_slice(), b"a\nb", b"\xff", &[b'a'; 257]] {
            assert_eq!(app_id(bad), None, "{bad:?}");
            assert_eq!(referrer(bad), None, "{bad:?}");
        }
        assert_eq!(referrer(b"").unwrap().referrer(), None);
        assert_eq!(referrer(b"a b").unwrap().referrer(), Some("a b"));
    }

    #[test]
    fn a_user_key_has_no_app_key() {
        let credential = Credential::new(Kind::UserKey, Cow::Borrowed(b"key")).unwrap();
        assert_eq!(credential.with_app_key(Cow::Borrowed(b"a")), None);
    }

    #[test]
    fn a_space_in_an_app_id_stays_one() {
        let credential = Credential::new(Kind::AppId, Cow::Borrowed(b"a b")).unwrap();
        assert_eq!(credential.expose(), "a b");
    }

    #[test]
    fn each_kind_has_a_byte_of_its_own() {
        for kind in [Kind::UserKey, Kind::AppId] {
            assert_eq!(Kind::from_code(kind.code()), Some(kind));
        }
        assert_eq!((Kind::UserKey.code(), Kind::AppId.code()), (1, 2));
        assert_eq!((Kind::from_code(0), Kind::from_code(3)), (None, None));
    }

    #[test]
    fn debug_output_does_not_show_a_credential() {
        let credential = Credential::new(Kind::AppId, Cow::Borrowed(b"s3cr3t"))
            .and_then(|credential| credential.with_app_key(Cow::Borrowed(b"s3cr3t")))
            .and_then(|credential| credential.with_referrer(Cow::Borrowed(b"s3cr3t")))
            .unwrap();
        let found = format!("{:?}", Found::Credential(credential));
        assert!(
            found.contains("AppId") && !found.contains("s3cr3t"),
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
