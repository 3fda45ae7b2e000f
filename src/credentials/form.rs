//! Reading a query string as a form: `name=value` pairs joined by `&`.
//!
//! Apart from the sources because the `form_urlencoded` crate cannot be used here:
//! it replaces what is not UTF-8, and a credential must be refused for that, not
//! repaired. Percent-decoding itself is the library's. `;` separates nothing, as
//! in the backend.

use std::borrow::Cow;

/// The pairs of a query in order, still encoded. A name without `=` has an empty value.
pub(super) fn pairs(query: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    query.split(|byte| *byte == b'&').map(|pair| {
        let mut halves = pair.splitn(2, |byte| *byte == b'=');
        (
            halves.next().unwrap_or_default(),
            halves.next().unwrap_or_default(),
        )
    })
}

/// Form-decodes once: `+` is a space, `%2B` a plus. A `%` that does not begin two
/// hexadecimal digits stands for itself.
pub(super) fn decode(encoded: &[u8]) -> Cow<'_, [u8]> {
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
