//! What is found: a credential, as service management wants it.
//!
//! Apart from finding it because its invariants are relied on by every room that comes
//! after: what is one of these can be asked about, stored and reported.

use memchr::memchr;
use std::borrow::Cow;
use std::fmt;

use super::form::trim;

/// The most bytes that a credential may have, decoded.
///
/// Longer than any key that 3scale makes (32) or lets people choose (256), and
/// what a record has room for.
pub const MAXIMUM_BYTES: usize = 256;

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
        // 3scale looks an application up with every white space as a plus. Told apart here,
        // one application would have a record, and limits, for each way to write its name.
        let value = if memchr(b' ', value.as_bytes()).is_some() {
            Cow::Owned(value.replace(' ', "+"))
        } else {
            value
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

    /// The same credential, borrowed.
    pub(super) fn reborrow(&self) -> Credential<'_> {
        Credential {
            kind: self.kind,
            value: Cow::Borrowed(&self.value),
            app_key: self.app_key.as_deref().map(Cow::Borrowed),
            referrer: self.referrer.as_deref().map(Cow::Borrowed),
        }
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
    (is_visible(text.as_bytes()) || !text.chars().any(char::is_control)).then_some(text)
}

/// Whether all bytes are visible ASCII, by eight at a time. False also for fewer than eight
/// bytes: then it is not worth it.
fn is_visible(bytes: &[u8]) -> bool {
    const EACH: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = EACH.wrapping_mul(0x80);
    let visible = |word: &[u8; 8]| {
        let word = u64::from_le_bytes(*word);
        // Of seven bits each, none carries into the next.
        let from_space = word.wrapping_add(EACH.wrapping_mul(0x80 - 0x20));
        let beyond_tilde = word.wrapping_add(EACH.wrapping_mul(0x80 - 0x7f));
        word & HIGH == 0 && from_space & HIGH == HIGH && beyond_tilde & HIGH == 0
    };
    let (words, _) = bytes.as_chunks::<8>();
    bytes.last_chunk::<8>().is_some_and(visible) && words.iter().all(visible)
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
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

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
    fn a_space_in_an_app_id_is_a_plus_as_in_a_user_key() {
        let credential = Credential::new(Kind::AppId, Cow::Borrowed(b"a b")).unwrap();
        assert_eq!(credential.expose(), "a+b");
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
        let found = format!("{credential:?}");
        assert!(
            found.contains("AppId") && !found.contains("s3cr3t"),
            "{found}"
        );
    }
}
