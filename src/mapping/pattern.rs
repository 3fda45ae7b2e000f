//! The path part of a mapping rule's pattern, parsed.
//!
//! Apart from the rules so that the index sees nothing but text and placeholders.

use super::canonical::{self, End, PLACEHOLDER};

/// What a path must look like.
///
/// Pieces are in order; the first is a text that starts with `/`. Texts are never empty and
/// never adjacent, and each consists of whole codes of the canonical form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pattern {
    pub(super) pieces: Vec<Piece>,
    /// Whether the path ends where the pattern does; else the pattern is a prefix.
    pub(super) anchored: bool,
}

/// A piece of a [`Pattern`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// These bytes of the canonical form.
    Text(Box<[u8]>),
    /// One or more bytes up to a boundary of the canonical form.
    Placeholder,
}

/// Why text is not a pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PatternError {
    NoLeadingSlash,
    Braces,
}

impl Pattern {
    /// Parses what stands before the `?`.
    pub(super) fn parse(text: &str) -> Result<Self, PatternError> {
        if !text.starts_with('/') {
            return Err(PatternError::NoLeadingSlash);
        }
        let (text, end) = match text.strip_suffix('$') {
            Some(text) => (text, End::Closed),
            None => (text, End::Open),
        };

        let mut decoded = Vec::with_capacity(text.len());
        let mut pieces = text.split('{');
        let first = pieces.next().unwrap_or_default();
        if first.contains('}') {
            return Err(PatternError::Braces);
        }
        canonical::decode(first.as_bytes(), &mut decoded);
        for piece in pieces {
            let (name, text) = piece.split_once('}').ok_or(PatternError::Braces)?;
            if name.contains('/') || text.contains('}') {
                return Err(PatternError::Braces);
            }
            if name.is_empty() {
                decoded.extend_from_slice(b"{}");
            } else {
                decoded.extend_from_slice(&PLACEHOLDER);
            }
            canonical::decode(text.as_bytes(), &mut decoded);
        }

        Ok(Self {
            pieces: cut(&canonical::resolve(&decoded, end)),
            anchored: end == End::Closed,
        })
    }
}

/// Cuts the canonical form at its placeholders.
fn cut(mut resolved: &[u8]) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let push_text = |pieces: &mut Vec<Piece>, text: &[u8]| {
        if !text.is_empty() {
            pieces.push(Piece::Text(text.into()));
        }
    };
    while let Some((text, after)) = resolved
        .windows(2)
        .position(|two| two == PLACEHOLDER)
        .and_then(|at| resolved.split_at_checked(at))
    {
        push_text(&mut pieces, text);
        pieces.push(Piece::Placeholder);
        resolved = after.get(2..).unwrap_or_default();
    }
    push_text(&mut pieces, resolved);
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    /// The pattern in a form to read: `{}` for a placeholder, `|` between pieces.
    fn shown(text: &str) -> String {
        let pattern = Pattern::parse(text).unwrap();
        let pieces: Vec<_> = pattern
            .pieces
            .iter()
            .map(|piece| match piece {
                Piece::Text(text) => String::from_utf8(text.to_vec()).unwrap(),
                Piece::Placeholder => "{}".to_owned(),
            })
            .collect();
        pieces.join("|") + if pattern.anchored { "$" } else { "" }
    }

    #[test]
    fn a_pattern_is_cut_into_canonical_text_and_placeholders() {
        assert_eq!(shown("/a/{b}.json$"), "/a/|{}|.json$");
        assert_eq!(shown("//a/./{b}{c}/%41"), "/a/|{}|{}|/A");
        assert_eq!(shown("/{any name: é}"), "/|{}");
        assert_eq!(shown("/{a}/../b"), "/b");
    }

    #[test]
    fn only_a_last_dollar_is_an_anchor() {
        assert_eq!(shown("/a$b$$"), "/a$b$$");
        assert!(!Pattern::parse("/a%24").unwrap().anchored);
        assert_eq!(shown("/$"), "/$");
    }

    #[test]
    fn braces_without_a_name_and_encoded_braces_are_text() {
        assert_eq!(shown("/{}"), "/{}");
        assert_eq!(shown("/%7Ba%7D"), "/{a}");
    }

    #[test]
    fn dots_at_an_open_end_are_the_beginning_of_a_segment() {
        assert_eq!(shown("/a/."), "/a/.");
        assert_eq!(shown("/a/.."), "/a/..");
        assert_eq!(shown("/a/.$"), "/a/$");
        assert_eq!(shown("/a/..$"), "/$");
        assert_eq!(shown("/a/../"), "/");
    }

    #[test]
    fn braces_that_do_not_pair_within_a_segment_are_refused() {
        for text in ["/{a", "/a}", "/{a{b}}", "/{a}}", "/{a/b}", "/}{", "/{"] {
            assert_eq!(Pattern::parse(text), Err(PatternError::Braces), "{text}");
        }
    }

    #[test]
    fn a_pattern_starts_with_a_slash() {
        for text in ["", "a", "$", "{a}", "%2Fa"] {
            assert_eq!(Pattern::parse(text), Err(PatternError::NoLeadingSlash));
        }
    }
}
