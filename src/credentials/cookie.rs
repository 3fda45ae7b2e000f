//! Reading `Cookie` headers (RFC 6265).
//!
//! Apart from the sources because a cookie is also cut out of its header, and both must
//! see the same cookies.

use super::form;

/// The cookies of one header, in order: name and value, without the white space around them
/// and without the quotes around the value (section 4.1.1). Nothing is decoded: a cookie's
/// value is not percent-encoded, whatever some servers put into it. A `;` ends a cookie
/// also within quotes, as in section 5.2; a piece without `=` has an empty value.
pub(super) fn pairs(header: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    header.split(|byte| *byte == b';').map(|piece| {
        let (name, value) = form::pair(piece);
        (name.trim_ascii(), unquoted(value.trim_ascii()))
    })
}

/// The header without the cookies of this name, the others byte for byte; `None` if it has
/// no such cookie. Empty if it has no others.
pub(super) fn without(header: &[u8], name: &[u8]) -> Option<Vec<u8>> {
    let is = |piece: &&[u8]| form::pair(piece).0.trim_ascii() == name;
    let pieces = || header.split(|byte| *byte == b';');
    if !pieces().any(|piece| is(&piece)) {
        return None;
    }
    let others: Vec<&[u8]> = pieces().filter(|piece| !is(piece)).collect();
    Some(others.join(&b';').trim_ascii().to_vec())
}

fn unquoted(value: &[u8]) -> &[u8] {
    value
        .strip_prefix(b"\"")
        .and_then(|value| value.strip_suffix(b"\""))
        .unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    #[test]
    fn cookies_are_read_as_they_stand() {
        let found: Vec<(&[u8], &[u8])> =
            pairs(b"a=1; b=\"2 \";c = x=y%41+ ;; d;=e; \"=\"").collect();
        let expected: [(&[u8], &[u8]); 7] = [
            (b"a", b"1"),
            (b"b", b"2 "),
            (b"c", b"x=y%41+"),
            (b"", b""),
            (b"d", b""),
            (b"", b"e"),
            (b"\"", b"\""),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn a_cookie_is_cut_out_and_the_others_stay_as_they_are() {
        let without =
            |header: &[u8]| without(header, b"k").map(|rest| String::from_utf8(rest).unwrap());
        assert_eq!(without(b"a=1; kk=2; K=3"), None);
        assert_eq!(without(b"k=1").as_deref(), Some(""));
        assert_eq!(without(b"k=1; a=\"2 \"").as_deref(), Some("a=\"2 \""));
        assert_eq!(without(b"a=%20; k=1").as_deref(), Some("a=%20"));
        assert_eq!(
            without(b"a=1;k=2;  b ; k = \"3\"; k;c=k=4").as_deref(),
            Some("a=1;  b ;c=k=4")
        );
    }
}
