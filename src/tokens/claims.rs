//! What a token's payload says (RFC 7519, 4), and how a claim is named.
//!
//! Apart from the signature because claims are looked at before it, too: a token that has
//! expired is not worth the time that a signature takes.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use serde_json::{Map, Value};

use super::json;

/// The claims of a token.
#[derive(Clone)]
pub struct Claims(Map<String, Value>);

impl fmt::Debug for Claims {
    /// What a token says of somebody is nobody else's business.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Claims")
    }
}

/// Where a claim is: the names of members, from the outermost object inwards; at least one,
/// none of them empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimPath(Box<[Box<str>]>);

impl ClaimPath {
    /// The most members of a path.
    pub const DEEPEST: usize = 8;

    /// A path of these names.
    #[must_use]
    pub fn new<'a>(names: impl IntoIterator<Item = &'a str>) -> Option<Self> {
        let names: Box<[Box<str>]> = names.into_iter().map(Into::into).collect();
        let bounded = (1..=Self::DEEPEST).contains(&names.len());
        (bounded && names.iter().all(|name| !name.is_empty())).then_some(Self(names))
    }
}

impl Claims {
    /// The claims of a payload: an object in which each member stands once.
    #[must_use]
    pub fn parse(payload: &[u8]) -> Option<Self> {
        json::object(payload).map(Self)
    }

    /// The claims that these members are.
    pub(super) const fn of(members: Map<String, Value>) -> Self {
        Self(members)
    }

    /// What stands there; `null` is nothing.
    #[must_use]
    pub fn at(&self, path: &ClaimPath) -> Option<&Value> {
        let (first, rest) = path.0.split_first()?;
        let mut found = self.0.get(&**first)?;
        for name in rest {
            found = found.as_object()?.get(&**name)?;
        }
        (!found.is_null()).then_some(found)
    }

    /// A claim that is a text.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).and_then(Value::as_str)
    }

    /// Whether the audience (a text or a list of them, RFC 7519, 4.1.3) is one of these.
    pub(super) fn is_for(&self, audiences: &[Box<str>]) -> bool {
        let one = |value: &Value| {
            let found = value.as_str();
            found.is_some_and(|found| audiences.iter().any(|wanted| **wanted == *found))
        };
        match self.0.get("aud") {
            Some(Value::Array(values)) => values.iter().any(one),
            Some(value) => one(value),
            None => false,
        }
    }

    /// A moment in whole Unix seconds, rounded down. `Err`: the claim is there and is none.
    pub(super) fn moment(&self, name: &str) -> Result<Option<u64>, ()> {
        match self.0.get(name) {
            None => Ok(None),
            Some(Value::Number(number)) => match number.as_u64() {
                Some(seconds) => Ok(Some(seconds)),
                None => {
                    let seconds = number.as_f64().ok_or(())?;
                    let since = Duration::try_from_secs_f64(seconds).map_err(|_| ())?;
                    Ok(Some(since.as_secs()))
                }
            },
            Some(_) => Err(()),
        }
    }

    /// Whether a scope was granted: a word of `scope` (RFC 8693, 4.2) or of `scp`, or an
    /// element of these where they are lists.
    #[must_use]
    pub fn has_scope(&self, scope: &str) -> bool {
        ["scope", "scp"].iter().any(|name| match self.0.get(*name) {
            Some(Value::String(words)) => words.split(' ').any(|word| word == scope),
            Some(Value::Array(words)) => words.iter().any(|word| word == scope),
            _ => false,
        })
    }
}

/// A value that can be compared with a text of the configuration, or written into a header: a
/// text, a whole number, true or false.
pub(super) fn plain(value: &Value) -> Option<Cow<'_, str>> {
    match value {
        Value::String(text) => Some(Cow::Borrowed(text)),
        Value::Number(number) if !number.is_f64() => Some(Cow::Owned(number.to_string())),
        Value::Bool(truth) => Some(Cow::Borrowed(if *truth { "true" } else { "false" })),
        _ => None,
    }
}

/// All plain values of a claim: it, or the elements of a list.
pub(super) fn values(value: &Value) -> impl Iterator<Item = Cow<'_, str>> {
    let (one, many) = match value {
        Value::Array(values) => (None, values.as_slice()),
        value => (Some(value), [].as_slice()),
    };
    one.into_iter().chain(many).filter_map(plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    fn claims(text: &str) -> Claims {
        Claims::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn a_path_leads_through_objects_only() {
        let claims = claims(r#"{"a":{"b":{"c":1},"n":null},"a.b":2,"l":[{"x":1}]}"#);
        let at = |names: &[&str]| {
            let path = ClaimPath::new(names.iter().copied()).unwrap();
            claims.at(&path).map(ToString::to_string)
        };
        assert_eq!(at(&["a", "b", "c"]), Some("1".to_owned()));
        assert_eq!(at(&["a.b"]), Some("2".to_owned()));
        for nothing in [
            &["b"][..],
            &["a", "c"],
            &["a", "b", "c", "d"],
            &["l", "x"],
            &["l", "0"],
            &["a", "n"],
        ] {
            assert_eq!(at(nothing), None, "{nothing:?}");
        }
        assert_eq!(ClaimPath::new([]), None);
        assert_eq!(ClaimPath::new(["a", ""]), None);
        assert_eq!(ClaimPath::new(["a"; 9]), None);
    }

    #[test]
    fn an_audience_is_a_text_or_a_list_of_them() {
        let wanted: [Box<str>; 2] = ["x".into(), "y".into()];
        for (aud, is) in [
            (r#""y""#, true),
            (r#"["z","x"]"#, true),
            (r#""z""#, false),
            ("[]", false),
            (r#""x y""#, false),
            ("1", false),
            (r#"[["x"]]"#, false),
            (r#"{"x":"x"}"#, false),
            ("null", false),
        ] {
            assert_eq!(
                claims(&format!(r#"{{"aud":{aud}}}"#)).is_for(&wanted),
                is,
                "{aud}"
            );
        }
        assert!(!claims("{}").is_for(&wanted));
    }

    #[test]
    fn a_moment_is_a_number_that_is_not_negative() {
        let moment = |value: &str| claims(&format!(r#"{{"exp":{value}}}"#)).moment("exp");
        assert_eq!(moment("1300819380"), Ok(Some(1_300_819_380)));
        assert_eq!(moment("1300819380.9"), Ok(Some(1_300_819_380)));
        assert_eq!(moment("1.3e9"), Ok(Some(1_300_000_000)));
        assert_eq!(moment("0"), Ok(Some(0)));
        assert_eq!(moment("18446744073709551615"), Ok(Some(u64::MAX)));
        for bad in ["-1", "1e300", "\"1300819380\"", "null", "[1]", "true"] {
            assert_eq!(moment(bad), Err(()), "{bad}");
        }
        assert_eq!(claims("{}").moment("exp"), Ok(None));
    }

    #[test]
    fn scopes_are_words_or_elements() {
        for text in [
            r#"{"scope":"a read b"}"#,
            r#"{"scp":["read"]}"#,
            r#"{"scp":"read"}"#,
            r#"{"scope":"a","scp":["read"]}"#,
        ] {
            assert!(claims(text).has_scope("read"), "{text}");
        }
        for text in [
            "{}",
            r#"{"scope":"readx"}"#,
            r#"{"scope":"a,read"}"#,
            r#"{"scope":{"read":1}}"#,
            r#"{"scp":["a read"]}"#,
        ] {
            assert!(!claims(text).has_scope("read"), "{text}");
        }
    }
}
