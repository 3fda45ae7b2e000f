//! Constraints on a request's query, and the query as far as they need it.
//!
//! Apart from the rules because query strings have a syntax of their own
//! (`application/x-www-form-urlencoded`), with its own decoding.

use std::borrow::Cow;

use percent_encoding::percent_decode;
use smallvec::SmallVec;

/// What a parameter's value must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Expected {
    /// Anything, also nothing, as long as the parameter is there.
    Present,
    /// These bytes, after decoding.
    Value(Box<[u8]>),
}

impl Expected {
    /// What this text of a rule asks for. `decoded` is the text without its encoding: an
    /// encoded brace begins no placeholder.
    fn new(text: &str, decoded: impl Into<Box<[u8]>>) -> Self {
        if has_placeholder(text) {
            Self::Present
        } else {
            Self::Value(decoded.into())
        }
    }
}

/// Whether there is a `{name}` somewhere, of ASCII letters, digits, `_` and `-`.
fn has_placeholder(text: &str) -> bool {
    text.split('{').skip(1).any(|piece| {
        piece.split_once('}').is_some_and(|(name, _)| {
            !name.is_empty()
                && name
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
        })
    })
}

/// A parameter's name, decoded, and what its value must be.
pub(super) type Constraint = (Box<[u8]>, Expected);

/// The constraints given as plain names and values.
pub(super) fn from_parameters(parameters: &[(String, String)]) -> Vec<Constraint> {
    parameters
        .iter()
        .map(|(name, value)| {
            (
                name.as_bytes().into(),
                Expected::new(value, value.as_bytes()),
            )
        })
        .collect()
}

/// The constraints in a pattern's query string.
pub(super) fn from_query(query: &str) -> Vec<Constraint> {
    query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = Expected::new(value, form_decode(value.as_bytes()).collect::<Vec<_>>());
            (form_decode(name.as_bytes()).collect(), value)
        })
        .collect()
}

/// The names of all parameters that the rules of a service ask for, sorted.
#[derive(Clone, Debug, Default)]
pub(super) struct Names(Vec<Box<[u8]>>);

impl Names {
    pub(super) fn new(names: impl IntoIterator<Item = Box<[u8]>>) -> Self {
        let mut names: Vec<_> = names.into_iter().collect();
        names.sort_unstable();
        names.dedup();
        Self(names)
    }

    /// The place of a decoded name.
    pub(super) fn place(&self, name: &[u8]) -> Option<usize> {
        self.0
            .binary_search_by(|candidate| candidate.as_ref().cmp(name))
            .ok()
    }
}

/// The parameters of a request that some rule asks for.
///
/// At most one entry per name, the last of the query, by the name's place in [`Names`]. So it is
/// bounded by the configuration, whatever the query. Values are still encoded.
#[derive(Debug)]
pub(super) struct Parameters<'a>(SmallVec<[(usize, &'a [u8]); 8]>);

impl<'a> Parameters<'a> {
    /// Reads a query string, without its `?`.
    pub(super) fn parse(names: &Names, query: &'a [u8]) -> Self {
        let mut found: SmallVec<[(usize, &'a [u8]); 8]> = SmallVec::new();
        for pair in query.split(|byte| *byte == b'&') {
            let mut halves = pair.splitn(2, |byte| *byte == b'=');
            let name = halves.next().unwrap_or_default();
            let value = halves.next();
            if name.is_empty() && value.is_none() {
                continue;
            }
            let Some(place) = names.place(&decoded_name(name)) else {
                continue;
            };
            let entry = (place, value.unwrap_or_default());
            match found.binary_search_by_key(&place, |(known, _)| *known) {
                Ok(at) => {
                    if let Some(known) = found.get_mut(at) {
                        *known = entry;
                    }
                }
                Err(at) => found.insert(at, entry),
            }
        }
        Self(found)
    }

    /// Whether the parameter is there and is what it must be.
    pub(super) fn satisfy(&self, place: usize, expected: &Expected) -> bool {
        let found = self.0.binary_search_by_key(&place, |(known, _)| *known);
        let Some((_, value)) = found.ok().and_then(|at| self.0.get(at)) else {
            return false;
        };
        match expected {
            Expected::Present => true,
            Expected::Value(expected) => form_decode(value).eq(expected.iter().copied()),
        }
    }
}

fn decoded_name(name: &[u8]) -> Cow<'_, [u8]> {
    if name.iter().any(|byte| matches!(byte, b'%' | b'+')) {
        Cow::Owned(form_decode(name).collect())
    } else {
        Cow::Borrowed(name)
    }
}

/// The bytes of a form-encoded name or value.
fn form_decode(encoded: &[u8]) -> impl Iterator<Item = u8> + '_ {
    // A `+` is part of no escape, so the words between can be decoded one by one.
    encoded
        .split(|byte| *byte == b'+')
        .enumerate()
        .flat_map(|(number, word)| {
            let space = (number > 0).then_some(b' ');
            space.into_iter().chain(percent_decode(word))
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    /// Whether the query satisfies every constraint that the pattern's query names.
    fn satisfies(query: &str, pattern_query: &str) -> bool {
        let constraints = from_query(pattern_query);
        let names = Names::new(constraints.iter().map(|(name, _)| name.clone()));
        let parameters = Parameters::parse(&names, query.as_bytes());
        constraints
            .iter()
            .all(|(name, expected)| parameters.satisfy(names.place(name).unwrap(), expected))
    }

    #[test]
    fn every_constraint_must_hold_in_any_order() {
        assert!(satisfies("b=2&x=3&a=1", "a=1&b=2"));
        assert!(!satisfies("a=1", "a=1&b=2"));
        assert!(!satisfies("a=1&b=3", "a=1&b=2"));
        assert!(!satisfies("", "a=1"));
    }

    #[test]
    fn the_last_of_repeated_values_counts() {
        assert!(satisfies("a=2&a=1", "a=1"));
        assert!(!satisfies("a=1&a=2", "a=1"));
        assert!(!satisfies("a=1&%61", "a=1"));
    }

    #[test]
    fn names_and_values_are_compared_decoded() {
        assert!(satisfies("%61=x+y", "a=x%20y"));
        assert!(satisfies("a%5B%5D=1%2f2", "a[]=1/2"));
        assert!(satisfies("a+b=%", "a%20b=%25"));
        assert!(satisfies("a=%zz", "a=%25zz"));
        assert!(!satisfies("a=%2B", "a=+"));
        assert!(!satisfies("A=1", "a=1"));
    }

    #[test]
    fn a_parameter_without_a_value_has_an_empty_one() {
        assert!(satisfies("a", "a="));
        assert!(satisfies("a=", "a"));
        assert!(!satisfies("a", "a=1"));
    }

    #[test]
    fn a_placeholder_asks_for_presence_only() {
        for query in ["a", "a=", "a=1", "a=1&a"] {
            assert!(satisfies(query, "a={x}"), "{query}");
            assert!(satisfies(query, "a=1{x-1_}2"), "{query}");
        }
        assert!(!satisfies("b=1", "a={x}"));
    }

    #[test]
    fn what_only_resembles_a_placeholder_is_a_value() {
        for value in ["{}", "{a.b}", "{a", "a}", "{é}", "%7Bx%7D"] {
            assert!(!satisfies("a=1", &format!("a={value}")), "{value}");
            assert!(
                satisfies(&format!("a={value}"), &format!("a={value}")),
                "{value}"
            );
        }
    }

    #[test]
    fn empty_pairs_are_nothing() {
        assert!(satisfies("&&a=1&", "&a=1&&"));
        assert!(!satisfies("&&", "="));
        assert!(satisfies("=", "="));
    }
}
