//! A request as the filter sees it: bytes that somebody sent.
//!
//! Apart from [`crate::host`] so that every room can read requests without
//! knowing where they came from. Nothing in a request is assumed to be UTF-8:
//! Envoy hands on header values with any byte.

use memchr::memchr;
use std::fmt;

/// The headers of one request, in order, with lower-case names (Envoy lowers them).
///
/// Borrowed from one buffer: the header map is fetched once per request. `Debug` shows
/// how many there are, for any of them may hold a credential.
#[derive(Clone, Copy)]
pub struct Headers<'a> {
    /// Name and value pairs, as bytes.
    pub pairs: &'a [(&'a [u8], &'a [u8])],
}

impl<'a> Headers<'a> {
    /// The first header of this lower-case name.
    #[must_use]
    pub fn first(&self, name: &[u8]) -> Option<&'a [u8]> {
        self.pairs
            .iter()
            .find(|(candidate, _)| *candidate == name)
            .map(|(_, value)| *value)
    }

    /// Every header of this lower-case name, in order.
    pub fn all(&self, name: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
        self.pairs
            .iter()
            .filter(move |(candidate, _)| *candidate == name)
            .map(|(_, value)| *value)
    }
}

impl fmt::Debug for Headers<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Headers")
            .field("count", &self.pairs.len())
            .finish()
    }
}

/// What a decision about a request needs of it. `Debug` shows neither the authority nor
/// the target: both can hold credentials.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    /// `:method`, as sent.
    pub method: &'a [u8],
    /// `:authority`, as sent: host, perhaps with a port.
    pub authority: &'a [u8],
    /// `:path` as Envoy forwards it, query included.
    pub target: &'a [u8],
    /// All headers, pseudo-headers included.
    pub headers: Headers<'a>,
}

impl<'a> Request<'a> {
    /// The path without the query.
    #[must_use]
    pub fn path(&self) -> &'a [u8] {
        memchr(b'?', self.target)
            .and_then(|mark| self.target.get(..mark))
            .unwrap_or(self.target)
    }

    /// The query without its `?`; empty if there is none.
    #[must_use]
    pub fn query(&self) -> &'a [u8] {
        memchr(b'?', self.target)
            .and_then(|mark| self.target.get(mark.saturating_add(1)..))
            .unwrap_or_default()
    }
}

impl fmt::Debug for Request<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Request")
            .field("method", &self.method.escape_ascii().to_string())
            .field("authority_bytes", &self.authority.len())
            .field("target_bytes", &self.target.len())
            .field("headers", &self.headers)
            .finish()
    }
}
