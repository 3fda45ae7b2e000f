//! The form in which patterns and paths are compared.
//!
//! Apart because both sides must go through the very same steps: decode percent-encoding,
//! merge slashes, resolve dot segments.
//!
//! The form is a byte string in which every byte but [`ESCAPE`] stands for itself.
//! `ESCAPE` begins a code of two bytes, for what a byte alone could not say
//! without being mistaken for something else: an encoded slash, a NUL that was really
//! there, and, in patterns, a placeholder.

use std::borrow::Cow;

use percent_encoding::percent_decode;

/// Begins a code of two bytes. No placeholder runs over it.
pub(super) const ESCAPE: u8 = 0;

/// `%2F`: not the slash between segments.
const ENCODED_SLASH: [u8; 2] = [ESCAPE, 1];

/// A NUL byte, raw or encoded.
const NUL: [u8; 2] = [ESCAPE, 2];

/// A placeholder of a pattern; never in a path.
pub(super) const PLACEHOLDER: [u8; 2] = [ESCAPE, 3];

/// How a byte string that is being resolved ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Its last segment is complete.
    Closed,
    /// Its last segment is the beginning of a segment, so dots there are no dot segment.
    Open,
}

/// Whether a placeholder's run ends before this byte of the canonical form.
pub(super) fn is_boundary(byte: u8) -> bool {
    byte == b'/' || byte == ESCAPE
}

/// The canonical form of a request's path (without its query). Borrowed if
/// the path is in that form already. `None` if it does not start with `/`.
pub fn path(raw: &[u8]) -> Option<Cow<'_, [u8]>> {
    if raw.first() != Some(&b'/') {
        return None;
    }
    if is_canonical(raw) {
        return Some(Cow::Borrowed(raw));
    }
    let mut decoded = Vec::with_capacity(raw.len());
    decode(raw, &mut decoded);
    Some(Cow::Owned(resolve(&decoded, End::Closed)))
}

/// Whether a path that starts with `/` needs no change.
fn is_canonical(path: &[u8]) -> bool {
    // Behind the last slash: how many bytes, and whether all of them are dots.
    let (mut length, mut dots) = (3_usize, true);
    for byte in path {
        match byte {
            b'/' => {
                if dots && length < 3 {
                    return false;
                }
                (length, dots) = (0, true);
                continue;
            }
            b'%' | &ESCAPE => return false,
            b'.' => {}
            _ => dots = false,
        }
        length = length.saturating_add(1);
    }
    !(dots && matches!(length, 1 | 2))
}

/// Appends the text with its percent-encoding undone.
pub(super) fn decode(mut raw: &[u8], into: &mut Vec<u8>) {
    // Cutting at an encoded slash cuts no other escape in two: `%` is no hex digit.
    while let Some((before, after)) = raw
        .windows(3)
        .position(|three| three.eq_ignore_ascii_case(b"%2F"))
        .and_then(|at| raw.split_at_checked(at))
    {
        decode_bytes(before, into);
        into.extend_from_slice(&ENCODED_SLASH);
        raw = after.get(3..).unwrap_or_default();
    }
    decode_bytes(raw, into);
}

fn decode_bytes(raw: &[u8], into: &mut Vec<u8>) {
    for byte in percent_decode(raw) {
        if byte == 0 {
            into.extend_from_slice(&NUL);
        } else {
            into.push(byte);
        }
    }
}

/// A decoded path or pattern that starts with `/`, its slashes merged and dot segments
/// resolved. Slashes are merged first: `/a//../b` is `/b`.
pub(super) fn resolve(decoded: &[u8], end: End) -> Vec<u8> {
    let mut resolved = Vec::with_capacity(decoded.len());
    let mut segments = decoded.split(|byte| *byte == b'/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let is_last = segments.peek().is_none();
        let is_open = is_last && end == End::Open;
        match segment {
            b"" if !is_last => {}
            b"." | b".." if !is_open => {
                if segment == b".." {
                    let parent = resolved.iter().rposition(|byte| *byte == b'/');
                    resolved.truncate(parent.unwrap_or(0));
                }
                if is_last {
                    resolved.push(b'/');
                }
            }
            _ => {
                resolved.push(b'/');
                resolved.extend_from_slice(segment);
            }
        }
    }
    resolved
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    fn canonical(raw: &str) -> Vec<u8> {
        path(raw.as_bytes()).unwrap().into_owned()
    }

    #[test]
    fn a_canonical_path_is_borrowed() {
        for raw in [
            "/",
            "/a",
            "/a/",
            "/a/b.c",
            "/.well-known/...",
            "/a./..b",
            "/é",
        ] {
            assert!(
                matches!(path(raw.as_bytes()), Some(Cow::Borrowed(_))),
                "{raw}"
            );
        }
    }

    #[test]
    fn escapes_are_decoded_once_and_bad_ones_are_text() {
        assert_eq!(canonical("/%41%c3%A9%20"), "/Aé ".as_bytes());
        assert_eq!(canonical("/%2541"), b"/%41");
        for text in ["/%", "/%2", "/%zz", "/%%", "/100%/b"] {
            assert_eq!(canonical(text), text.as_bytes(), "{text}");
        }
        assert_eq!(canonical("/%%41"), b"/%A");
    }

    #[test]
    fn an_encoded_slash_a_nul_and_their_spellings_stay_apart() {
        let forms = [
            "/a%2Fb",
            "/a/b",
            "/a%252Fb",
            "/a%00b",
            "/a%01b",
            "/a%00%01b",
            "/a%02b",
        ];
        for (place, one) in forms.iter().enumerate() {
            for other in forms.iter().skip(place + 1) {
                assert_ne!(canonical(one), canonical(other), "{one} {other}");
            }
        }
        assert_eq!(canonical("/a%2fb"), canonical("/a%2Fb"));
        assert_eq!(canonical("/a\0b"), canonical("/a%00b"));
    }

    #[test]
    fn slashes_merge_and_dot_segments_resolve_also_when_encoded() {
        for (raw, expected) in [
            ("//", "/"),
            ("///a///b///", "/a/b/"),
            ("/a/./b", "/a/b"),
            ("/a/.", "/a/"),
            ("/a/../b", "/b"),
            ("/a/b/..", "/a/"),
            ("/a//../b", "/b"),
            ("/..", "/"),
            ("/../../a", "/a"),
            ("/a/../..", "/"),
            ("/a/%2e%2E/b", "/b"),
            ("/a/..%62", "/a/..b"),
        ] {
            assert_eq!(canonical(raw), expected.as_bytes(), "{raw}");
        }
    }

    #[test]
    fn an_encoded_slash_does_not_end_a_dot_segment() {
        assert_eq!(
            canonical("/a/..%2Fb"),
            [b"/a/..", &ENCODED_SLASH[..], b"b"].concat()
        );
    }

    #[test]
    fn what_does_not_start_with_a_slash_is_no_path() {
        for raw in ["", "*", "a/b", "http://host/a", "%2F"] {
            assert_eq!(path(raw.as_bytes()), None, "{raw}");
        }
    }
}
