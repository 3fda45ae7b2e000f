//! Reading a query string or a body as a form: `name=value` pairs joined by `&`.
//!
//! Apart from the sources because the `form_urlencoded` crate cannot be used here:
//! it replaces what is not UTF-8, and a credential must be refused for that, not
//! repaired. Percent-decoding itself is the library's. `;` separates nothing, as
//! in the backend.

use std::borrow::Cow;

use crate::request::Headers;
use memchr::{memchr, memchr2};

/// The pairs of a form in order, whole and still encoded.
pub(super) fn pairs(form: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(form);
    std::iter::from_fn(move || {
        let form = rest?;
        let (pair, after) = match memchr(b'&', form) {
            Some(end) => (form.get(..end)?, form.get(end.checked_add(1)?..)),
            None => (form, None),
        };
        rest = after;
        Some(pair)
    })
}

/// The name and the value of one pair, still encoded. A name without `=` has an empty value.
pub(super) fn pair(pair: &[u8]) -> (&[u8], &[u8]) {
    let mut halves = pair.splitn(2, |byte| *byte == b'=');
    (
        halves.next().unwrap_or_default(),
        halves.next().unwrap_or_default(),
    )
}

/// Form-decodes once: `+` is a space, `%2B` a plus. A `%` that does not begin two
/// hexadecimal digits stands for itself.
pub(super) fn decode(encoded: &[u8]) -> Cow<'_, [u8]> {
    // Usual, and told at a glance.
    if memchr2(b'%', b'+', encoded).is_none() {
        return Cow::Borrowed(encoded);
    }
    if !encoded.contains(&b'+') {
        return Cow::from(percent_encoding::percent_decode(encoded));
    }
    let spaced: Vec<u8> = encoded
        .iter()
        .map(|byte| if *byte == b'+' { b' ' } else { *byte })
        .collect();
    Cow::Owned(percent_encoding::percent_decode(&spaced).collect())
}

/// The most bytes that can be the encoding of `decoded` bytes.
pub(super) fn longest_encoding(decoded: usize) -> usize {
    decoded.saturating_mul(3)
}

/// Without what Ruby's `strip` takes off at both ends, which the backend trims with and by
/// which it knows an empty value.
pub(super) fn trim(bytes: &[u8]) -> &[u8] {
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

/// Whether a request with these headers says that its body is a form as it stands:
/// `application/x-www-form-urlencoded` (any case, any parameters), and not compressed.
pub(super) fn is_form(headers: &Headers<'_>) -> bool {
    let is = |value: &[u8], expected: &str| {
        let value = value.split(|byte| *byte == b';').next();
        value.is_some_and(|value| value.trim_ascii().eq_ignore_ascii_case(expected.as_bytes()))
    };
    headers
        .first(b"content-type")
        .is_some_and(|value| is(value, "application/x-www-form-urlencoded"))
        && headers
            .first(b"content-encoding")
            .is_none_or(|value| is(value, "identity"))
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    #[test]
    fn a_form_is_known_by_its_content_type_alone() {
        let form = |pairs: &[(&[u8], &[u8])]| is_form(&Headers { pairs });
        let urlencoded: (&[u8], &[u8]) = (b"content-type", b"application/x-www-form-urlencoded");
        assert!(form(&[urlencoded]));
        assert!(form(&[(
            b"content-type",
            b"APPLICATION/X-WWW-Form-Urlencoded ; charset=utf-8"
        )]));
        assert!(form(&[urlencoded, (b"content-encoding", b"identity")]));
        assert!(!form(&[]));
        assert!(!form(&[(b"content-type", b"application/json")]));
        assert!(!form(&[(
            b"content-type",
            b"text/plain; application/x-www-form-urlencoded"
        )]));
        assert!(!form(&[urlencoded, (b"content-encoding", b"gzip")]));
    }
}
