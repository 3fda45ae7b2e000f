//! Reading an `Authorization` header (RFC 9110, 11.6.2): its scheme, and what is behind it.
//!
//! Apart from the sources because the header is shared: a service may look for one
//! scheme and leave the others to the upstream.

use base64::Engine as _;
use base64::alphabet::{Alphabet, STANDARD, URL_SAFE};
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use super::MAXIMUM_BYTES;

/// The header, as Envoy spells it.
pub(super) const AUTHORIZATION: &[u8] = b"authorization";

/// The scheme of RFC 7617, in any case.
pub(super) const BASIC: &[u8] = b"basic";

/// The scheme of RFC 6750, in any case.
pub(super) const BEARER: &[u8] = b"bearer";

/// The longest encoding that is read: two credentials and a colon, and room for padding.
const LONGEST_ENCODING: usize = MAXIMUM_BYTES.saturating_mul(2).saturating_add(3) / 3 * 4;

/// Base64 is read with and without padding, and whatever the bits are that say nothing.
const LENIENT: GeneralPurposeConfig = GeneralPurposeConfig::new()
    .with_decode_padding_mode(DecodePaddingMode::Indifferent)
    .with_decode_allow_trailing_bits(true);

/// What stands behind the scheme, without the white space around it; `None` if the value
/// is of another scheme.
pub(super) fn behind<'a>(value: &'a [u8], scheme: &[u8]) -> Option<&'a [u8]> {
    let value = value.trim_ascii();
    let (start, rest) = value.split_at_checked(scheme.len())?;
    let ends = rest.first().is_none_or(|byte| matches!(byte, b' ' | b'\t'));
    (ends && start.eq_ignore_ascii_case(scheme)).then(|| rest.trim_ascii())
}

/// The user and the password of basic authentication, from the base64 of `user:password`,
/// in either alphabet of RFC 4648, with or without padding. Without a colon all of it is
/// the user. `None`: not base64, or longer than two credentials.
pub(super) fn basic(encoded: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    if encoded.len() > LONGEST_ENCODING {
        return None;
    }
    let url_safe = encoded.iter().any(|byte| matches!(byte, b'-' | b'_'));
    let alphabet: &Alphabet = if url_safe { &URL_SAFE } else { &STANDARD };
    let mut user = GeneralPurpose::new(alphabet, LENIENT)
        .decode(encoded)
        .ok()?;
    let Some(colon) = user.iter().position(|byte| *byte == b':') else {
        return Some((user, Vec::new()));
    };
    let password = user
        .get(colon.saturating_add(1)..)
        .unwrap_or_default()
        .to_vec();
    user.truncate(colon);
    Some((user, password))
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    fn parts(encoded: &str) -> Option<(String, String)> {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        basic(encoded.as_bytes()).map(|(user, password)| (text(user), text(password)))
    }

    #[test]
    fn a_scheme_is_a_whole_word_in_any_case() {
        assert_eq!(behind(b"Basic abc", BASIC), Some(b"abc".as_slice()));
        assert_eq!(behind(b"bASIC \t abc= ", BASIC), Some(b"abc=".as_slice()));
        assert_eq!(behind(b"basic", BASIC), Some(b"".as_slice()));
        for other in [
            b"Basically abc".as_slice(),
            b"Bas",
            b"",
            b"Bearer abc",
            b"Basic,abc",
        ] {
            assert_eq!(behind(other, BASIC), None, "{other:?}");
        }
    }

    #[test]
    fn base64_is_read_in_both_alphabets_with_and_without_padding() {
        let expected = Some(("a?>".to_owned(), "\u{ff}b".to_owned()));
        for encoded in [
            "YT8+OsO/Yg==",
            "YT8+OsO/Yg",
            "YT8+OsO/Yg=",
            "YT8-OsO_Yg==",
            "YT8-OsO_Yg",
        ] {
            assert_eq!(parts(encoded), expected, "{encoded}");
        }
    }

    #[test]
    fn the_first_colon_parts_user_and_password() {
        let is = |encoded, user: &str, password: &str| {
            assert_eq!(parts(encoded), Some((user.to_owned(), password.to_owned())));
        };
        is("YTpiOmM=", "a", "b:c");
        is("YTo=", "a", "");
        is("OmI=", "", "b");
        is("YQ==", "a", "");
        is("", "", "");
    }

    #[test]
    fn what_is_not_base64_is_refused() {
        for encoded in [
            "a",
            "YTpi!",
            "YT pi",
            "YT8+OsO_Yg",
            "YQ===",
            "=",
            "YQ==YQ==",
        ] {
            assert_eq!(parts(encoded), None, "{encoded}");
        }
        assert!(parts(&"YWFh".repeat(171)).is_some());
        assert_eq!(parts(&"YWFh".repeat(172)), None);
    }
}
