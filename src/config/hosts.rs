//! Which service a request belongs to, by the host that it names.
//!
//! Apart because the same rules for what a host is hold on both sides: for the
//! patterns in the configuration and for the `:authority` of every request. What tells
//! services on the same host apart is in `sharing`.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::net::Ipv6Addr;

use super::sharing::{Entrant, Share, Sharing};

/// The longest host name of the DNS, as text (RFC 1035, 2.3.4).
const LONGEST: usize = 253;
/// The longest label of a host name (RFC 1035, 2.3.4).
const LONGEST_LABEL: usize = 63;

/// The hosts that one entry of `hosts` stands for.
///
/// Invariant: names are in lower case, without a port and without a dot at the end.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum HostPattern {
    /// This host: a name or an address; an IPv6 address with its brackets.
    Exact(Box<str>),
    /// Every host that ends in a dot and this domain, however many labels stand before it.
    Wildcard(Box<str>),
    /// Every host that no other pattern covers.
    Any,
}

/// Why a text is no host pattern; the texts say what would be one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    /// Nothing there.
    #[error("a host is needed, like \"api.example.com\"")]
    Empty,
    /// `*.` alone.
    #[error("a wildcard needs a domain after \"*.\", like \"*.example.com\"")]
    WildcardAlone,
    /// A `*` that is not a whole first label.
    #[error(
        "\"*\" stands for whole labels at the beginning, like \"*.example.com\", or alone for every host"
    )]
    WildcardPlace,
    /// A URL.
    #[error("a host has no scheme and no path, like \"api.example.com\"")]
    Url,
    /// A port.
    #[error("leave the port out: a host is covered on every port")]
    Port,
    /// A character, a label or a length that host names do not have.
    #[error(
        "a host has labels of letters, digits, \"-\" and \"_\" with dots between them, in punycode if it is international, like \"api.example.com\""
    )]
    Name,
}

impl HostPattern {
    /// Reads an entry of `hosts`.
    ///
    /// # Errors
    ///
    /// If it is no host, no `*.domain`, and not `*`.
    pub fn parse(text: &str) -> Result<Self, HostError> {
        if text == "*" {
            return Ok(Self::Any);
        }
        match text.strip_prefix("*.") {
            Some("") => Err(HostError::WildcardAlone),
            Some(domain) => name(domain).map(Self::Wildcard),
            None => name(text).map(Self::Exact),
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => formatter.write_str(name),
            Self::Wildcard(domain) => write!(formatter, "*.{domain}"),
            Self::Any => formatter.write_str("*"),
        }
    }
}

/// Checks and lowers a host without a port.
fn name(text: &str) -> Result<Box<str>, HostError> {
    if text.is_empty() {
        return Err(HostError::Empty);
    }
    if text.contains('/') {
        return Err(HostError::Url);
    }
    if text.contains('*') {
        return Err(HostError::WildcardPlace);
    }
    if let Some(rest) = text.strip_prefix('[') {
        let (address, port) = rest.split_once(']').ok_or(HostError::Name)?;
        address.parse::<Ipv6Addr>().map_err(|_| HostError::Name)?;
        return if port.is_empty() {
            Ok(text.to_ascii_lowercase().into())
        } else {
            Err(HostError::Port)
        };
    }
    if let Some((_, port)) = text.split_once(':') {
        let port = port.bytes().all(|byte| byte.is_ascii_digit());
        return Err(if port {
            HostError::Port
        } else {
            HostError::Name
        });
    }
    let text = text.strip_suffix('.').unwrap_or(text);
    let label =
        |label: &str| (1..=LONGEST_LABEL).contains(&label.len()) && label.bytes().all(in_label);
    if text.len() > LONGEST || !text.split('.').all(label) {
        return Err(HostError::Name);
    }
    Ok(text.to_ascii_lowercase().into())
}

/// Whether a text is the authority of a call: a host, perhaps with a port.
pub(super) fn is_authority(text: &str) -> bool {
    let after_address = text.rfind(']').unwrap_or_default();
    let host = match text.rfind(':') {
        Some(colon) if colon >= after_address => {
            let (host, port) = text.split_at_checked(colon).unwrap_or_default();
            let port = port.strip_prefix(':').unwrap_or_default();
            // Digits only: u16 alone would take "+80", too.
            if !port.bytes().all(|byte| byte.is_ascii_digit()) || port.parse::<u16>().is_err() {
                return false;
            }
            host
        }
        _ => text,
    };
    name(host).is_ok()
}

/// Finds the services of a host: exact names first, then the longest wildcard, then `*`.
///
/// One pattern decides, as one virtual host does in Envoy: where none of its services takes
/// the path or the route, no wildcard is tried.
#[derive(Clone, Debug, Default)]
pub(super) struct HostTable {
    exact: HashMap<Box<[u8]>, Sharing>,
    wildcards: HashMap<Box<[u8]>, Sharing>,
    any: Option<Sharing>,
}

impl HostTable {
    /// Enters a service's share of a pattern; if somebody has it already, that stays, and
    /// its entrant is handed back.
    pub(super) fn enter(
        &mut self,
        pattern: &HostPattern,
        share: &Share,
        entrant: Entrant,
    ) -> Result<(), Entrant> {
        let sharing = match pattern {
            HostPattern::Exact(name) => self.exact.entry(name.as_bytes().into()).or_default(),
            HostPattern::Wildcard(domain) => {
                self.wildcards.entry(domain.as_bytes().into()).or_default()
            }
            HostPattern::Any => self.any.get_or_insert_default(),
        };
        sharing.enter(share, entrant)
    }

    /// The services that share the host in this authority, if any cover it.
    ///
    /// # Errors
    ///
    /// If the authority names no host: then not even `*` covers it.
    pub(super) fn services_at(&self, authority: &[u8]) -> Result<Option<&Sharing>, NotAHost> {
        Ok(self.named(&host(authority)?).or(self.any.as_ref()))
    }

    /// What the exact name or the longest wildcard has that covers this host.
    fn named(&self, host: &[u8]) -> Option<&Sharing> {
        if let Some(sharing) = self.exact.get(host) {
            return Some(sharing);
        }
        if self.wildcards.is_empty() {
            return None;
        }
        // From the left, so that the longest domain comes first.
        host.iter()
            .enumerate()
            .filter(|(_, byte)| **byte == b'.')
            .filter_map(|(dot, _)| host.get(dot.saturating_add(1)..))
            .find_map(|domain| self.wildcards.get(domain))
    }
}

/// The authority of a request is not `host` or `host:port`.
///
/// Such a request belongs to nobody and must be refused, also where a service has `*` or
/// unmatched hosts may pass. Envoy matches a wildcard domain against the whole authority:
/// it takes `x:y.example.com` for a host of `*.example.com`, and cutting at that colon
/// would charge the request to the service of another route, or to none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the authority is not a host, alone or with a port")]
pub struct NotAHost;

/// The host of an authority, in lower case: without the port, whose digits may be
/// missing after the colon, and without a dot at the end. An IPv6 address keeps its brackets.
///
/// Only a host in upper case is copied.
fn host(authority: &[u8]) -> Result<Cow<'_, [u8]>, NotAHost> {
    if authority.first() == Some(&b'[') {
        return address(authority);
    }
    let mut upper = false;
    let mut after_dot = true;
    let mut end = authority.len();
    for (index, byte) in authority.iter().enumerate() {
        match byte {
            b':' => {
                end = index;
                break;
            }
            b'.' if after_dot => return Err(NotAHost),
            byte if *byte != b'.' && !in_label(*byte) => return Err(NotAHost),
            _ => {}
        }
        if index > LONGEST {
            return Err(NotAHost);
        }
        after_dot = *byte == b'.';
        upper |= byte.is_ascii_uppercase();
    }
    let (host, port) = authority.split_at_checked(end).ok_or(NotAHost)?;
    let host = host.strip_suffix(b".").unwrap_or(host);
    if host.is_empty() || host.len() > LONGEST || !is_port(port) {
        return Err(NotAHost);
    }
    Ok(lowered(host, upper))
}

/// The host of an authority that begins with a bracket.
fn address(authority: &[u8]) -> Result<Cow<'_, [u8]>, NotAHost> {
    let bracket = authority.iter().position(|byte| *byte == b']');
    let end = bracket.ok_or(NotAHost)?.saturating_add(1);
    let (host, port) = authority.split_at_checked(end).ok_or(NotAHost)?;
    let inside = host
        .strip_prefix(b"[")
        .and_then(|host| host.strip_suffix(b"]"));
    let text = inside.and_then(|inside| std::str::from_utf8(inside).ok());
    text.and_then(|text| text.parse::<Ipv6Addr>().ok())
        .filter(|_| is_port(port))
        .ok_or(NotAHost)?;
    Ok(lowered(host, host.iter().any(u8::is_ascii_uppercase)))
}

/// Whether this may follow a host: nothing, or a colon and digits. Some clients send the
/// colon alone (RFC 3986, 3.2.3).
fn is_port(rest: &[u8]) -> bool {
    match rest.split_first() {
        Some((colon, digits)) => *colon == b':' && digits.iter().all(u8::is_ascii_digit),
        None => true,
    }
}

fn lowered(host: &[u8], upper: bool) -> Cow<'_, [u8]> {
    if upper {
        Cow::Owned(host.to_ascii_lowercase())
    } else {
        Cow::Borrowed(host)
    }
}

/// Whether labels of host names have this byte: also `_`, which the DNS has and hosts
/// should not.
const fn in_label(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    /// A table in which the pattern of index n belongs to service n.
    fn table(patterns: &[&str]) -> HostTable {
        let mut table = HostTable::default();
        for (service, pattern) in patterns.iter().enumerate() {
            let pattern = HostPattern::parse(pattern).unwrap();
            let entrant = Entrant { service, host: 0 };
            table.enter(&pattern, &Share::default(), entrant).unwrap();
        }
        table
    }

    impl HostTable {
        fn service_for(&self, authority: &[u8]) -> Result<Option<usize>, NotAHost> {
            let sharing = self.services_at(authority)?;
            Ok(sharing.and_then(|sharing| sharing.service_for(b"/", || None)))
        }
    }

    #[test]
    fn port_case_and_final_dot_of_an_authority_do_not_matter() {
        let table = table(&["API.example.com", "[::1]", "127.0.0.1", "localhost."]);
        for authority in [
            "api.example.com",
            "API.Example.COM",
            "api.example.com:8443",
            "api.example.com.",
            "api.example.com.:80",
            "api.example.com:",
        ] {
            let found = table.service_for(authority.as_bytes());
            assert_eq!(found, Ok(Some(0)), "{authority}");
        }
        assert_eq!(table.service_for(b"[::1]"), Ok(Some(1)));
        assert_eq!(table.service_for(b"[::1]:80"), Ok(Some(1)));
        assert_eq!(table.service_for(b"[::1]:"), Ok(Some(1)));
        assert_eq!(table.service_for(b"127.0.0.1:80"), Ok(Some(2)));
        assert_eq!(table.service_for(b"localhost"), Ok(Some(3)));
    }

    #[test]
    fn what_is_not_covered_has_no_service() {
        let table = table(&["api.example.com", "*.example.org"]);
        for authority in [
            "example.com",
            "x.api.example.com",
            "example.org",
            "xexample.org",
            "[::1]",
            "[::1]:80",
        ] {
            let found = table.service_for(authority.as_bytes());
            assert_eq!(found, Ok(None), "{authority}");
        }
    }

    #[test]
    fn what_is_no_host_belongs_to_nobody_even_where_every_host_is_covered() {
        let table = table(&["*.example.com", "*"]);
        let label = |length: usize| format!("{}.example.com", "a".repeat(length));
        let long = label(242);
        for authority in [
            "",
            ":80",
            ".",
            "..",
            ".example.com",
            "a..example.com",
            "a.example.com..",
            "x:y.example.com",
            "x:80.example.com",
            "x:80:80",
            "a.example.com:http",
            "a.example.com:+80",
            "x@a.example.com",
            "x a.example.com",
            "x/a.example.com",
            "[x].example.com",
            "[::1].example.com",
            "[::1]x",
            "[::1]:x",
            "[x]",
            "[]",
            "[",
            "[::1",
            "::1",
            "a.example.com]",
            "\u{fc}.example.com",
            &long,
            &format!("{long}."),
            &"a.".repeat(30_000),
        ] {
            let found = table.service_for(authority.as_bytes());
            assert_eq!(found, Err(NotAHost), "{authority}");
        }
        assert_eq!(table.service_for(b"\xff.example.com"), Err(NotAHost));
        for longest in [label(241), label(241) + ".", label(241) + ".:443"] {
            assert_eq!(table.service_for(longest.as_bytes()), Ok(Some(0)));
        }
    }

    #[test]
    fn a_wildcard_covers_any_number_of_labels() {
        let table = table(&["*.example.com"]);
        assert_eq!(table.service_for(b"a.example.com"), Ok(Some(0)));
        assert_eq!(table.service_for(b"a.b.c.EXAMPLE.com:80"), Ok(Some(0)));
    }

    #[test]
    fn exact_names_go_before_wildcards_and_long_wildcards_before_short_ones() {
        let table = table(&["*", "*.com", "*.b.com", "a.b.com"]);
        assert_eq!(table.service_for(b"a.b.com"), Ok(Some(3)));
        assert_eq!(table.service_for(b"x.b.com"), Ok(Some(2)));
        assert_eq!(table.service_for(b"x.a.b.com"), Ok(Some(2)));
        assert_eq!(table.service_for(b"b.com"), Ok(Some(1)));
        assert_eq!(table.service_for(b"com"), Ok(Some(0)));
        assert_eq!(table.service_for(b"[::1]"), Ok(Some(0)));
    }

    #[test]
    fn a_pattern_can_be_entered_once() {
        let mut table = table(&["a.com", "*.com", "*"]);
        for (service, pattern) in ["A.com.", "*.COM", "*"].iter().enumerate() {
            let pattern = HostPattern::parse(pattern).unwrap();
            let late = Entrant {
                service: 9,
                host: 9,
            };
            assert_eq!(
                table.enter(&pattern, &Share::default(), late),
                Err(Entrant { service, host: 0 })
            );
        }
    }

    #[test]
    fn an_authority_is_a_host_and_perhaps_a_port() {
        for good in [
            "su1.3scale.net",
            "backend:3000",
            "[::1]",
            "[::1]:3000",
            "127.0.0.1:80",
        ] {
            assert!(is_authority(good), "{good}");
        }
        for bad in [
            "",
            ":80",
            "https://su1.3scale.net",
            "su1.3scale.net/",
            "a:b",
            "a:",
            "a:65536",
            "a:+80",
            "a b",
            "*",
            "*.a",
            "::1",
            "[::1]x",
            "user@a",
        ] {
            assert!(!is_authority(bad), "{bad}");
        }
    }
}
