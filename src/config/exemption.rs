//! Requests that pass untouched: probes, preflights, public files.
//!
//! Apart because an exemption is a hole in the gate by design, and what keeps it
//! from being a larger one stands here: a prefix covers only paths that every
//! server reads the same way. The API behind may decode `/public/..%2fadmin`, fold
//! `//`, resolve `..` or drop `;x` before it looks at a path; a request
//! with anything of the kind is not exempt but treated like any other.

use crate::request::Request;

/// A request that passes.
///
/// Invariant: it names a method or a path or both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exemption {
    method: Option<Box<str>>,
    path: Option<PathPattern>,
}

/// Invariant: both texts are plain paths in the sense of [`is_plain`].
#[derive(Clone, Debug, PartialEq, Eq)]
enum PathPattern {
    Exact(Box<str>),
    Prefix(Box<str>),
}

/// Why two texts make no exemption.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExemptionError {
    /// It would exempt everything.
    #[error(
        "names neither a method nor a path, like {{ method: OPTIONS }} or {{ path: /healthz }}"
    )]
    Empty,
    /// Not a method as requests carry it.
    #[error(
        "{0}: a method is a word in capitals, like OPTIONS; without one, every method is exempt"
    )]
    Method(String),
    /// A path that does not begin at the root.
    #[error("{0}: a path begins with \"/\", like \"/healthz\"")]
    Relative(String),
    /// A `*` that is not at the end.
    #[error("{0}: \"*\" may stand at the end only, like \"/public/*\"")]
    Wildcard(String),
    /// A path that servers may read in several ways.
    #[error(
        "{0}: an exempt path has letters, digits and plain punctuation, without \"%\", \";\", \"?\", \"//\", \"/./\" and \"/../\": servers read those in several ways"
    )]
    NotPlain(String),
}

impl Exemption {
    /// An exemption of this method, this path (exact, or a prefix with `*` at its end), or both.
    ///
    /// # Errors
    ///
    /// If there is neither, or one is of a kind that no request should pass by.
    pub fn new(method: Option<&str>, path: Option<&str>) -> Result<Self, ExemptionError> {
        if method.is_none() && path.is_none() {
            return Err(ExemptionError::Empty);
        }
        Ok(Self {
            method: method.map(checked_method).transpose()?,
            path: path.map(PathPattern::parse).transpose()?,
        })
    }

    /// Whether this request passes.
    #[must_use]
    pub fn covers(&self, request: &Request<'_>) -> bool {
        let method = |method: &str| method.as_bytes() == request.method;
        let path = |pattern: &PathPattern| pattern.covers(request.path());
        self.method.as_deref().is_none_or(method) && self.path.as_ref().is_none_or(path)
    }
}

fn checked_method(method: &str) -> Result<Box<str>, ExemptionError> {
    let capital = |byte: u8| byte.is_ascii_uppercase() || byte == b'-';
    // ANY is what a mapping rule would say; here it would never match, silently.
    if method.is_empty() || method == "ANY" || !method.bytes().all(capital) {
        return Err(ExemptionError::Method(super::error::quoted(method)));
    }
    Ok(method.into())
}

impl PathPattern {
    fn parse(text: &str) -> Result<Self, ExemptionError> {
        let quoted = || super::error::quoted(text);
        let (path, prefix) = text
            .strip_suffix('*')
            .map_or((text, false), |path| (path, true));
        if !path.starts_with('/') {
            return Err(ExemptionError::Relative(quoted()));
        }
        if path.contains('*') {
            return Err(ExemptionError::Wildcard(quoted()));
        }
        if !is_plain(path.as_bytes()) {
            return Err(ExemptionError::NotPlain(quoted()));
        }
        Ok(if prefix {
            Self::Prefix(path.into())
        } else {
            Self::Exact(path.into())
        })
    }

    fn covers(&self, path: &[u8]) -> bool {
        match self {
            Self::Exact(exact) => exact.as_bytes() == path,
            Self::Prefix(prefix) => path.starts_with(prefix.as_bytes()) && is_plain(path),
        }
    }
}

/// Whether every server reads this path in the same way: the `pchar` of RFC 3986, 3.3,
/// but no `%`, and no `;` (some servers cut parameters off a segment); no empty
/// segment but the last, and no `.` or `..`.
fn is_plain(path: &[u8]) -> bool {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"/-._~!$&'()*+,=:@".contains(byte);
    let segment = |segment: &[u8]| !matches!(segment, b"." | b"..");
    path.iter().all(plain)
        && !path.windows(2).any(|pair| pair == b"//")
        && path.split(|byte| *byte == b'/').all(segment)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::Headers;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    fn covers(method: Option<&str>, path: Option<&str>, request: (&str, &str)) -> bool {
        Exemption::new(method, path).unwrap().covers(&Request {
            method: request.0.as_bytes(),
            authority: b"api.example.com",
            target: request.1.as_bytes(),
            headers: Headers { pairs: &[] },
        })
    }

    #[test]
    fn a_method_alone_covers_every_path() {
        assert!(covers(Some("OPTIONS"), None, ("OPTIONS", "/a//b%2f?c")));
        assert!(covers(Some("OPTIONS"), None, ("OPTIONS", "*")));
        assert!(!covers(Some("OPTIONS"), None, ("options", "/")));
        assert!(!covers(Some("OPTIONS"), None, ("GET", "/")));
    }

    #[test]
    fn an_exact_path_covers_itself_with_any_query() {
        let health = |target| covers(None, Some("/healthz"), ("GET", target));
        assert!(health("/healthz"));
        assert!(health("/healthz?verbose=1"));
        for target in [
            "/healthz/",
            "//healthz",
            "/HEALTHZ",
            "/healthz;x",
            "/health%7a",
            "/healthz#",
            "/healthz/..",
        ] {
            assert!(!health(target), "{target}");
        }
    }

    #[test]
    fn a_prefix_covers_what_begins_with_it() {
        let public = |target| covers(None, Some("/public/*"), ("GET", target));
        for target in [
            "/public/",
            "/public/a/b.css",
            "/public/a?b=%2f..",
            "/public/a/",
            "/public/...",
            "/public/a..b",
        ] {
            assert!(public(target), "{target}");
        }
        for target in ["/public", "/publicity", "/Public/a", "/a/public/", ""] {
            assert!(!public(target), "{target}");
        }
        assert!(covers(None, Some("/*"), ("GET", "/a")));
    }

    #[test]
    fn a_prefix_never_covers_a_path_that_servers_read_in_several_ways() {
        for target in [
            "/public/..%2fadmin",
            "/public/%2e%2e/admin",
            "/public/../admin",
            "/public/..",
            "/public/.",
            "/public/./a",
            "/public//admin",
            "/public/..;/admin",
            "/public/;/a",
            "/public/..\\admin",
            "/public/a%20b",
            "/public/\u{fc}",
            "/public/a\0",
            "/public/a#b",
            "/public/a|b",
        ] {
            assert!(
                !covers(None, Some("/public/*"), ("GET", target)),
                "{target}"
            );
        }
    }

    #[test]
    fn method_and_path_together_must_both_fit() {
        let get = |request| covers(Some("GET"), Some("/public/*"), request);
        assert!(get(("GET", "/public/a")));
        assert!(!get(("POST", "/public/a")));
        assert!(!get(("GET", "/private")));
    }
}
