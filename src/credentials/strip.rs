//! Taking credentials out of a request, so that the upstream does not see them.
//!
//! Apart from finding them because it goes by where credentials may stand, not by which
//! was found: a second key, or one that was not looked at, is a secret as well.

use std::borrow::Cow;

use super::Source;
use super::form;
use crate::request::Request;

/// What a request without its credentials has in place of what it had.
#[derive(Clone, PartialEq, Eq)]
pub struct Stripped<'a> {
    /// The new `:path`, if it is another.
    pub target: Option<Vec<u8>>,
    /// Headers that are others now, each name once.
    pub headers: Vec<StrippedHeader<'a>>,
}

/// A header of which something goes.
#[derive(Clone, PartialEq, Eq)]
pub struct StrippedHeader<'a> {
    /// Its name.
    pub name: &'a [u8],
    /// The values it is left with, in order. Without values the header goes.
    pub values: Vec<Cow<'a, [u8]>>,
}

/// The request without what these sources hold.
pub(super) fn strip<'a>(sources: &[&Source], request: &Request<'a>) -> Stripped<'a> {
    Stripped {
        target: target(sources, request),
        headers: headers(sources, request),
    }
}

/// The target without the parameters, the others byte for byte.
fn target(sources: &[&Source], request: &Request<'_>) -> Option<Vec<u8>> {
    let secret = |pair: &&[u8]| {
        let (name, _) = form::pair(pair);
        sources.iter().any(|source| source.is_in_query(name))
    };
    let pairs = || request.query().split(|byte| *byte == b'&');
    if !pairs().any(|pair| secret(&pair)) {
        return None;
    }
    let others: Vec<&[u8]> = pairs().filter(|pair| !secret(pair)).collect();
    let mut target = request.path().to_vec();
    if !others.is_empty() {
        target.push(b'?');
        target.extend_from_slice(&others.join(&b'&'));
    }
    Some(target)
}

/// The headers of which something goes.
fn headers<'a>(sources: &[&Source], request: &Request<'a>) -> Vec<StrippedHeader<'a>> {
    let kept = |name: &[u8], value: &'a [u8]| {
        sources
            .iter()
            .try_fold(Cow::Borrowed(value), |value, source| {
                source.cut(name, value)
            })
    };
    let mut changed: Vec<StrippedHeader<'_>> = Vec::new();
    for (name, value) in request.headers.pairs {
        let whole = kept(name, value).is_some_and(|kept| kept.len() == value.len());
        if !whole && !changed.iter().any(|before| before.name == *name) {
            let values = request.headers.all(name);
            let values = values.filter_map(|value| kept(name, value)).collect();
            changed.push(StrippedHeader { name, values });
        }
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::super::{BasicPart, CookieName, HeaderName, ParameterName};
    use super::*;
    use crate::request::Headers;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    fn stripped(sources: &[Source], target: &str, pairs: &[(&str, &str)]) -> (String, String) {
        let pairs: Vec<(&[u8], &[u8])> = pairs
            .iter()
            .map(|(name, value)| (name.as_bytes(), value.as_bytes()))
            .collect();
        let request = Request {
            method: b"GET",
            authority: b"a",
            target: target.as_bytes(),
            headers: Headers { pairs: &pairs },
        };
        let sources: Vec<&Source> = sources.iter().collect();
        let Stripped { target, headers } = strip(&sources, &request);
        let headers: Vec<String> = headers
            .iter()
            .map(|StrippedHeader { name, values }| {
                let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
                let values: Vec<String> = values.iter().map(|value| text(value)).collect();
                format!("{}={}", text(name), values.join("|"))
            })
            .collect();
        let target = target.map_or("(as it was)".to_owned(), |target| {
            String::from_utf8(target).unwrap()
        });
        (target, headers.join(" & "))
    }

    fn target(target: &str) -> String {
        let source = Source::Query(ParameterName::new("key").unwrap());
        stripped(&[source], target, &[("key", "value")]).0
    }

    #[test]
    fn every_such_parameter_goes_and_the_others_stay_as_they_are() {
        assert_eq!(target("/a?key=1"), "/a");
        assert_eq!(target("/a?key"), "/a");
        assert_eq!(target("/a?key=1&key=2&k%65y=3"), "/a");
        assert_eq!(target("/a?x=%2b&key=1&y=+&&z"), "/a?x=%2b&y=+&&z");
        assert_eq!(target("/a?key=1&x=?key=2"), "/a?x=?key=2");
        assert_eq!(target("/a/key=1?x=1&key=&"), "/a/key=1?x=1&");
    }

    #[test]
    fn a_target_without_such_a_parameter_is_not_touched() {
        for other in ["/a", "/a?", "/a?KEY=1&keys=2&x=key", "/key=1", "", "?"] {
            assert_eq!(target(other), "(as it was)", "{other}");
        }
    }

    #[test]
    fn a_header_goes_with_all_its_values() {
        let source = [Source::Header(HeaderName::new("X-Key").unwrap())];
        let pairs = [
            ("x-key", "1"),
            ("x-keys", "2"),
            ("x-key", ""),
            ("y", "x-key"),
        ];
        assert_eq!(stripped(&source, "/", &pairs).1, "x-key=");
        assert_eq!(stripped(&source, "/", &[("y", "1")]).1, "");
    }

    #[test]
    fn of_cookies_that_one_alone_goes() {
        let cookie = |name| Source::Cookie(CookieName::new(name).unwrap());
        let pairs = [
            ("cookie", "a=1; key=2"),
            ("cookie", "key=3"),
            ("cookie", "b=key"),
        ];
        let key = [cookie("key")];
        assert_eq!(stripped(&key, "/", &pairs).1, "cookie=a=1|b=key");
        let both = [cookie("key"), cookie("a")];
        assert_eq!(stripped(&both, "/", &pairs).1, "cookie=b=key");
        assert_eq!(stripped(&key, "/", &[("cookie", "keys=1")]).1, "");
        assert_eq!(stripped(&key, "/", &[("cookie", "key=1")]).1, "cookie=");
    }

    #[test]
    fn an_authorization_of_another_scheme_is_the_upstreams() {
        let basic = [Source::Basic(BasicPart::Username)];
        let pairs = [("authorization", "Bearer a"), ("authorization", "BASIC b")];
        assert_eq!(stripped(&basic, "/", &pairs).1, "authorization=Bearer a");
        assert_eq!(
            stripped(&[Source::Bearer], "/", &pairs).1,
            "authorization=BASIC b"
        );
        let both = [Source::Bearer, Source::Basic(BasicPart::Password)];
        assert_eq!(stripped(&both, "/", &pairs).1, "authorization=");
        assert_eq!(stripped(&both, "/", &[("authorization", "Digest c")]).1, "");
    }
}
