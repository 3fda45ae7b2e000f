//! Services that share a host, and which of them a request is for: by the path's
//! beginning, by the name of Envoy's route, or by both.
//!
//! Apart from the hosts because this is about the rest of the request. Paths are compared
//! in the canonical form of the mapping rules, so that no spelling of a path chooses
//! another service than the path itself would.

use std::borrow::{Borrow, Cow};
use std::collections::BTreeMap;

use crate::mapping::canonical_path;

/// The longest prefix, in bytes: what a request can make us compare is bounded by it.
const LONGEST_PREFIX: usize = 1_024;
/// The longest name of a route, in bytes.
const LONGEST_ROUTE: usize = 256;

/// The paths of a service: this path and everything below it.
///
/// Invariant: in canonical form, without the slash at its end; empty for all paths.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct PathPrefix(Box<[u8]>);

/// Why a text is no path prefix; the texts say what would be one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathPrefixError {
    /// It does not begin at the root.
    #[error("a path prefix begins with \"/\", like \"/v1\"")]
    Relative,
    /// It would be read as a pattern.
    #[error(
        "a path prefix is plain text, like \"/v1\": it covers itself and all paths below it, without \"*\", \"{{\", \"}}\", \"?\", \"#\", white space or control characters"
    )]
    NotPlain,
    /// Beyond bounds.
    #[error("a path prefix has at most 1024 bytes")]
    Long,
}

impl PathPrefix {
    /// Reads a prefix. A slash at its end does not matter; `/` covers all paths.
    ///
    /// # Errors
    ///
    /// If it does not begin with a slash, looks like a pattern, or is too long.
    pub fn parse(text: &str) -> Result<Self, PathPrefixError> {
        if text.len() > LONGEST_PREFIX {
            return Err(PathPrefixError::Long);
        }
        let special = |letter: char| {
            "*{}?#".contains(letter) || letter.is_whitespace() || letter.is_control()
        };
        if text.contains(special) {
            return Err(PathPrefixError::NotPlain);
        }
        let path = canonical_path(text.as_bytes()).ok_or(PathPrefixError::Relative)?;
        Ok(Self(path.strip_suffix(b"/").unwrap_or(&path).into()))
    }
}

/// The name of one of Envoy's routes. Invariant: 1 to 256 bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RouteName(Box<[u8]>);

impl RouteName {
    /// Takes a name; `None` if it is empty or too long to be one.
    #[must_use]
    pub fn new(name: &str) -> Option<Self> {
        (1..=LONGEST_ROUTE)
            .contains(&name.len())
            .then(|| Self(name.as_bytes().into()))
    }
}

/// Which requests for its hosts are a service's: those that have this path and this route.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// The beginning of their path.
    pub path_prefix: PathPrefix,
    /// The name of their route; `None`: any.
    pub route: Option<RouteName>,
}

/// Who entered a share of a host: the index of the service, and of the host in its list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entrant {
    pub(super) service: usize,
    pub(super) host: usize,
}

/// The services of one host.
#[derive(Clone, Debug, Default)]
pub(super) struct Sharing {
    prefixes: BTreeMap<PathPrefix, Routes>,
    /// The length of the longest prefix: 0 if paths do not matter.
    longest: usize,
    /// Whether the name of a route matters.
    routed: bool,
}

/// The services of one prefix.
#[derive(Clone, Debug, Default)]
struct Routes {
    named: BTreeMap<RouteName, Entrant>,
    any: Option<Entrant>,
}

impl Sharing {
    /// Enters a share; if somebody has the same, that stays, and its entrant is handed back.
    pub(super) fn enter(&mut self, share: &Share, entrant: Entrant) -> Result<(), Entrant> {
        let routes = self.prefixes.entry(share.path_prefix.clone()).or_default();
        let earlier = match &share.route {
            Some(name) => routes.named.get(name).copied(),
            None => routes.any,
        };
        if let Some(earlier) = earlier {
            return Err(earlier);
        }
        match &share.route {
            Some(name) => {
                routes.named.insert(name.clone(), entrant);
            }
            None => routes.any = Some(entrant),
        }
        self.longest = self.longest.max(share.path_prefix.0.len());
        self.routed |= share.route.is_some();
        Ok(())
    }

    /// Whether one service has the host for itself, without regard to paths and routes.
    pub(super) const fn is_by_host_alone(&self) -> bool {
        self.longest == 0 && !self.routed
    }

    /// The index of the service that this target (path and query, as in `:path`) is for. Of
    /// several, the one with the longest prefix; of two with the same, the one that names the
    /// route. `route` is asked for the route's name, once, if a service on this host names one.
    ///
    /// A target that is no path, like `*`, belongs to services without a prefix.
    pub(super) fn service_for(
        &self,
        target: &[u8],
        route: impl FnOnce() -> Option<Vec<u8>>,
    ) -> Option<usize> {
        let route = if self.routed { route() } else { None };
        let found = |prefix: &[u8]| {
            let routes = self.prefixes.get(prefix)?;
            let named = route.as_deref().and_then(|name| routes.named.get(name));
            named.copied().or(routes.any)
        };
        let entrant = if self.longest == 0 {
            found(b"")
        } else {
            let path = target.split(|byte| *byte == b'?').next();
            let path = path.and_then(canonical_path).unwrap_or(Cow::Borrowed(b""));
            ancestors(&path, self.longest).find_map(found)
        };
        entrant.map(|entrant| entrant.service)
    }
}

// Prefixes and names are ordered as their bytes are.
impl Borrow<[u8]> for PathPrefix {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl Borrow<[u8]> for RouteName {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

/// A canonical path and those it is below, from the longest that has at most so many
/// bytes to the empty one: `/a/b` and `/a` and nothing of `/a/b/`.
fn ancestors(path: &[u8], longest: usize) -> impl Iterator<Item = &[u8]> {
    let whole = Some(path).filter(|path| path.len() <= longest);
    // A prefix ends before a slash, which may stand one behind the longest.
    let within = path.get(..=longest).unwrap_or(path);
    let below = within
        .iter()
        .enumerate()
        .rev()
        .filter(|(_, byte)| **byte == b'/')
        .filter_map(|(slash, _)| path.get(..slash));
    let empty = Some(&b""[..]).filter(|_| !path.starts_with(b"/"));
    whole.into_iter().chain(below).chain(empty)
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    /// Services in the order given, each with its prefix and its route ("" is none).
    fn sharing(shares: &[(&str, &str)]) -> Sharing {
        let mut sharing = Sharing::default();
        for (service, (prefix, route)) in shares.iter().enumerate() {
            let entrant = Entrant { service, host: 0 };
            sharing.enter(&share(prefix, route), entrant).unwrap();
        }
        sharing
    }

    fn share(prefix: &str, route: &str) -> Share {
        Share {
            path_prefix: match prefix {
                "" => PathPrefix::default(),
                prefix => PathPrefix::parse(prefix).unwrap(),
            },
            route: RouteName::new(route),
        }
    }

    fn by_path(sharing: &Sharing, target: &str) -> Option<usize> {
        sharing.service_for(target.as_bytes(), || panic!("nobody names a route"))
    }

    #[test]
    fn a_prefix_covers_itself_and_what_is_below_it() {
        let sharing = sharing(&[("/v1", "")]);
        for target in ["/v1", "/v1/", "/v1/x", "/v1?x", "/v1/?x", "/v1/x/y?z=/v2"] {
            assert_eq!(by_path(&sharing, target), Some(0), "{target}");
        }
        for target in [
            "", "*", "/", "/v", "/v10", "/v1x/", "/V1", "/v2/v1", "/?/v1", "v1", "/v2?/v1/",
        ] {
            assert_eq!(by_path(&sharing, target), None, "{target}");
        }
    }

    #[test]
    fn the_longest_prefix_wins_whatever_the_order() {
        for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
            let prefixes = ["", "/a", "/a/b/c"];
            let shares = order.map(|service| (prefixes[service], ""));
            let sharing = sharing(&shares);
            let found = |target| by_path(&sharing, target).map(|service| order[service]);
            for (target, service) in [
                ("/", 0),
                ("*", 0),
                ("", 0),
                ("/ab", 0),
                ("/a", 1),
                ("/a/", 1),
                ("/a/b", 1),
                ("/a/b/", 1),
                ("/a/b/cd", 1),
                ("/a/b/c", 2),
                ("/a/b/c/", 2),
                ("/a/b/c/d/e", 2),
            ] {
                assert_eq!(found(target), Some(service), "{target}");
            }
        }
    }

    #[test]
    fn no_spelling_of_a_path_chooses_another_service() {
        let sharing = sharing(&[("/v1", ""), ("/v2", ""), ("", "")]);
        for target in [
            "/v2/../v1/x",
            "/v2/%2e%2E/v1/x",
            "//v1/x",
            "/./v1",
            "/%76%31/x",
            "/v1/.",
            "/v1/x/..",
            "/v1//",
            "/../v1",
        ] {
            assert_eq!(by_path(&sharing, target), Some(0), "{target}");
        }
        // An encoded slash is none, as for mapping rules.
        for target in ["/v1%2Fx", "/%2Fv1", "/v1/..", "/v1%00", "/v1%"] {
            assert_eq!(by_path(&sharing, target), Some(2), "{target}");
        }
        assert_eq!(by_path(&sharing, "/v1/..%2Fv2"), Some(0));
    }

    #[test]
    fn prefixes_that_differ_in_spelling_only_are_the_same() {
        for prefix in ["/v1/", "//v1", "/./v1", "/%76%31", "/x/../v1"] {
            assert_eq!(PathPrefix::parse(prefix), PathPrefix::parse("/v1"));
        }
        assert_eq!(PathPrefix::parse("/"), Ok(PathPrefix::default()));
        assert_eq!(PathPrefix::parse("//"), Ok(PathPrefix::default()));
        let mut sharing = sharing(&[("/v1", ""), ("", "")]);
        let late = Entrant {
            service: 9,
            host: 9,
        };
        let entered = sharing.enter(&share("/v1/", ""), late);
        assert_eq!(
            entered,
            Err(Entrant {
                service: 0,
                host: 0
            })
        );
        let entered = sharing.enter(&share("/", ""), late);
        assert_eq!(
            entered,
            Err(Entrant {
                service: 1,
                host: 0
            })
        );
    }

    #[test]
    fn what_is_no_prefix_is_refused() {
        for (text, error) in [
            ("", PathPrefixError::Relative),
            ("v1", PathPrefixError::Relative),
            ("https://a/v1", PathPrefixError::Relative),
            ("/v1/*", PathPrefixError::NotPlain),
            ("/v{n}", PathPrefixError::NotPlain),
            ("/v1?a", PathPrefixError::NotPlain),
            ("/v1#a", PathPrefixError::NotPlain),
            ("/v 1", PathPrefixError::NotPlain),
            ("/v1\n", PathPrefixError::NotPlain),
        ] {
            assert_eq!(PathPrefix::parse(text), Err(error), "{text}");
        }
        assert!(PathPrefix::parse(&format!("/{}", "a".repeat(1_023))).is_ok());
        let long = PathPrefix::parse(&format!("/{}", "a".repeat(1_024)));
        assert_eq!(long, Err(PathPrefixError::Long));
    }

    #[test]
    fn a_route_chooses_among_the_services_of_the_longest_prefix_that_has_it() {
        let sharing = sharing(&[("", "a"), ("", ""), ("/v1", "b"), ("/v1/x", "c")]);
        let found = |target: &str, route: Option<&str>| {
            let route = route.map(|name| name.as_bytes().to_vec());
            sharing.service_for(target.as_bytes(), || route)
        };
        for (target, route, service) in [
            ("/", Some("a"), 0),
            ("/", Some("b"), 1),
            ("/", Some(""), 1),
            ("/", Some("A"), 1),
            ("/", None, 1),
            ("/v1", Some("a"), 0),
            ("/v1", Some("b"), 2),
            ("/v1/x", Some("b"), 2),
            ("/v1/x", Some("c"), 3),
            ("/v1/y", Some("c"), 1),
            ("/v1/x", Some("d"), 1),
        ] {
            assert_eq!(found(target, route), Some(service), "{target} {route:?}");
        }
        assert_eq!(
            sharing.service_for(b"/", || Some(b"\xff".to_vec())),
            Some(1)
        );
    }

    #[test]
    fn without_a_service_for_every_route_some_requests_have_none() {
        let sharing = sharing(&[("", "a"), ("", "b")]);
        let found = |route: &[u8]| sharing.service_for(b"/", || Some(route.to_vec()));
        assert_eq!(
            (found(b"a"), found(b"b"), found(b"c")),
            (Some(0), Some(1), None)
        );
        assert_eq!(sharing.service_for(b"/", || None), None);
    }

    #[test]
    fn a_thousand_services_on_one_host_are_told_apart() {
        let prefixes: Vec<_> = (0..1_000)
            .map(|n| format!("/team{}/api{n}", n / 10))
            .collect();
        let shares: Vec<_> = prefixes
            .iter()
            .map(|prefix| (prefix.as_str(), ""))
            .collect();
        let sharing = sharing(&shares);
        for (service, prefix) in prefixes.iter().enumerate() {
            assert_eq!(by_path(&sharing, &format!("{prefix}/x/y")), Some(service));
            assert_eq!(by_path(&sharing, &format!("{prefix}x/y")), None);
        }
    }
}
