//! Which service a request belongs to, by the host that it names.
//!
//! Apart because the same rules for what a host is hold on both sides: for the
//! patterns in the configuration and for the `:authority` of every request.

use std::borrow::Cow;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::net::Ipv6Addr;

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
    let label = |label: &str| {
        (1..=LONGEST_LABEL).contains(&label.len())
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
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

/// Finds the owner of a host: exact names first, then the longest wildcard, then `*`.
#[derive(Clone, Debug, Default)]
pub(super) struct HostTable {
    exact: HashMap<Box<[u8]>, Entrant>,
    wildcards: HashMap<Box<[u8]>, Entrant>,
    any: Option<Entrant>,
}

/// Who entered a pattern: the index of the service, and of the host in its list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entrant {
    pub(super) service: usize,
    pub(super) host: usize,
}

impl HostTable {
    /// Enters a pattern; if it is there already, it stays, and its entrant is handed back.
    pub(super) fn enter(&mut self, pattern: &HostPattern, entrant: Entrant) -> Result<(), Entrant> {
        let entry = match pattern {
            HostPattern::Exact(name) => self.exact.entry(name.as_bytes().into()),
            HostPattern::Wildcard(domain) => self.wildcards.entry(domain.as_bytes().into()),
            HostPattern::Any => {
                return match self.any {
                    Some(earlier) => Err(earlier),
                    None => {
                        self.any = Some(entrant);
                        Ok(())
                    }
                };
            }
        };
        match entry {
            Entry::Occupied(earlier) => Err(*earlier.get()),
            Entry::Vacant(vacant) => {
                vacant.insert(entrant);
                Ok(())
            }
        }
    }

    /// The index of the service that covers the host in this authority.
    pub(super) fn service_for(&self, authority: &[u8]) -> Option<usize> {
        self.named(host(authority))
            .or(self.any)
            .map(|entrant| entrant.service)
    }

    /// The entrant of the exact name or the longest wildcard that covers this host.
    fn named(&self, host: &[u8]) -> Option<Entrant> {
        if self.exact.is_empty() && self.wildcards.is_empty() {
            return None;
        }
        // Nothing that is longer was entered, and nobody is to make us walk its labels.
        if host.len() > LONGEST {
            return None;
        }
        let host = if host.iter().any(u8::is_ascii_uppercase) {
            Cow::Owned(host.to_ascii_lowercase())
        } else {
            Cow::Borrowed(host)
        };
        if let Some(entrant) = self.exact.get(host.as_ref()) {
            return Some(*entrant);
        }
        if self.wildcards.is_empty() {
            return None;
        }
        // From the left, so that the longest domain comes first; a dot in front of
        // everything ends no label.
        host.iter()
            .enumerate()
            .skip(1)
            .filter(|(_, byte)| **byte == b'.')
            .filter_map(|(dot, _)| host.get(dot.saturating_add(1)..))
            .find_map(|domain| self.wildcards.get(domain).copied())
    }
}

/// The host of an authority: without the port, whatever it looks like, and without
/// dots at the end. An IPv6 address keeps its brackets.
///
/// Cut at the first colon rather than at a well-formed port, so that no odd port
/// makes a request belong to no service.
fn host(authority: &[u8]) -> &[u8] {
    let end = if authority.first() == Some(&b'[') {
        authority
            .iter()
            .position(|byte| *byte == b']')
            .map(|bracket| bracket.saturating_add(1))
    } else {
        authority.iter().position(|byte| *byte == b':')
    };
    let mut host = end
        .and_then(|end| authority.get(..end))
        .unwrap_or(authority);
    while let Some(shorter) = host.strip_suffix(b".") {
        host = shorter;
    }
    host
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
            table.enter(&pattern, Entrant { service, host: 0 }).unwrap();
        }
        table
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
            "api.example.com:http",
            "api.example.com..",
        ] {
            assert_eq!(
                table.service_for(authority.as_bytes()),
                Some(0),
                "{authority}"
            );
        }
        assert_eq!(table.service_for(b"[::1]"), Some(1));
        assert_eq!(table.service_for(b"[::1]:80"), Some(1));
        assert_eq!(table.service_for(b"127.0.0.1:80"), Some(2));
        assert_eq!(table.service_for(b"localhost"), Some(3));
    }

    #[test]
    fn what_is_not_covered_has_no_service() {
        let table = table(&["api.example.com", "*.example.org"]);
        for authority in [
            "",
            ":80",
            ".",
            "example.com",
            "x.api.example.com",
            "example.org",
            ".example.org",
            "xexample.org",
            "[",
            "[::1",
            "\u{fc}",
        ] {
            assert_eq!(table.service_for(authority.as_bytes()), None, "{authority}");
        }
        assert_eq!(table.service_for(b"\xff\xfe"), None);
    }

    #[test]
    fn a_wildcard_covers_any_number_of_labels() {
        let table = table(&["*.example.com"]);
        assert_eq!(table.service_for(b"a.example.com"), Some(0));
        assert_eq!(table.service_for(b"a.b.c.EXAMPLE.com:80"), Some(0));
    }

    #[test]
    fn exact_names_go_before_wildcards_and_long_wildcards_before_short_ones() {
        let table = table(&["*", "*.com", "*.b.com", "a.b.com"]);
        assert_eq!(table.service_for(b"a.b.com"), Some(3));
        assert_eq!(table.service_for(b"x.b.com"), Some(2));
        assert_eq!(table.service_for(b"x.a.b.com"), Some(2));
        assert_eq!(table.service_for(b"b.com"), Some(1));
        assert_eq!(table.service_for(b"com"), Some(0));
        assert_eq!(table.service_for(b"\xff"), Some(0));
        assert_eq!(table.service_for(b""), Some(0));
        assert_eq!(table.service_for("a.".repeat(30_000).as_bytes()), Some(0));
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
                table.enter(&pattern, late),
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
