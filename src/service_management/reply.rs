//! How an exchange ended: what Envoy hands to a filter, and whether it was the backend
//! that spoke or Envoy itself.
//!
//! Apart from [`super::answer`] because what is here are facts of Envoy, not of the
//! protocol. They are from the source of Envoy's router, which also carries the calls of
//! filters (`source/common/router/router.cc`, `upstream_request.cc`). The texts were seen
//! with Envoy 1.40: a refused, a timed-out and a failed TLS connection, no endpoint and an
//! open circuit breaker against connections that closed, were reset or stayed silent.

use std::fmt;

use super::xml::Malformed;

/// The response header with the reason of a 409; sent because
/// [`super::Identification::options`] asks for it.
pub const REJECTION_REASON_HEADER: &str = "3scale-rejection-reason";

/// The response header that Envoy's router sets on every reply that came from upstream
/// and on none of its own. (It can be suppressed for routes, not for filters' calls.)
pub const UPSTREAM_HEADER: &str = "x-envoy-upstream-service-time";

/// One exchange as Envoy hands it to a filter. `Debug` leaves out the body, which may
/// hold keys.
#[derive(Clone, Copy)]
pub struct Reply<'a> {
    /// The HTTP status; 0 if the call ended without a reply, or `:status` is no number.
    pub status: u16,
    /// The value of [`REJECTION_REASON_HEADER`], if there is one.
    pub rejection_reason: Option<&'a [u8]>,
    /// Whether [`UPSTREAM_HEADER`] is there.
    pub from_upstream: bool,
    /// The body; empty if there is none.
    pub body: &'a [u8],
}

impl fmt::Debug for Reply<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Reply")
            .field("status", &self.status)
            .field(
                "rejection_reason",
                &self
                    .rejection_reason
                    .map(<[u8]>::escape_ascii)
                    .map(|reason| reason.to_string()),
            )
            .field("from_upstream", &self.from_upstream)
            .field("body_bytes", &self.body.len())
            .finish()
    }
}

/// Why an exchange told nothing of what was asked. It is about the way to the backend or
/// the backend's health, so it says nothing about an application.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The request was surely not sent: no connection was made, or none was allowed.
    #[error("no connection to service management")]
    NotConnected,
    /// There was no answer in time. The request may have been received.
    #[error("no answer from service management in time")]
    Timeout,
    /// The connection broke, or was reset, before an answer. The request may have been
    /// received.
    #[error("the connection to service management broke before an answer")]
    Interrupted,
    /// Envoy gave up the call without any reply. The request may have been received.
    #[error("the call to service management ended without an answer")]
    NoReply,
    /// The backend, or something before it, failed with this status (5xx).
    #[error("service management failed with status {0}")]
    ServerError(u16),
    /// This status is none of the protocol's for this call, or has no `<error code>`
    /// where it should: something else than the backend's listener answered.
    #[error("status {0} is none that service management gives here")]
    UnexpectedStatus(u16),
    /// The status was good and the body was not what belongs to it.
    #[error("the answer of service management cannot be read: {0}")]
    Malformed(Malformed),
}

impl Failure {
    /// Whether some consumer's request may have brought it about: what it shows as its
    /// credential stands in the question, and something before the backend may take offence at
    /// that (a web application firewall, a proxy that finds the line too long), or the body repeats
    /// it. Then it says nothing of service management itself, and must neither let that
    /// consumer in nor keep others out.
    ///
    /// Not so a 408 and a 429, which are about how much is asked.
    #[must_use]
    pub const fn may_be_of_the_consumers_making(self) -> bool {
        match self {
            Self::Malformed(_) => true,
            Self::UnexpectedStatus(status) => {
                matches!(status, 400..=499) && !matches!(status, 408 | 429)
            }
            _ => false,
        }
    }

    /// A short, stable name of letters and underscores, for logs, statistics and
    /// response-code details.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotConnected => "not_connected",
            Self::Timeout => "timeout",
            Self::Interrupted => "interrupted",
            Self::NoReply => "no_reply",
            Self::ServerError(_) => "server_error",
            Self::UnexpectedStatus(_) => "unexpected_status",
            Self::Malformed(_) => "malformed",
        }
    }
}

impl Reply<'_> {
    /// The failure that the status shows by itself: no status at all, or 5xx.
    #[must_use]
    pub fn failure(&self) -> Option<Failure> {
        match self.status {
            0 => Some(Failure::NoReply),
            500.. if self.from_upstream => Some(Failure::ServerError(self.status)),
            503 if never_sent(self.body) => Some(Failure::NotConnected),
            // Also if the time ran out while connecting: the text does not say.
            504 => Some(Failure::Timeout),
            500.. => Some(Failure::Interrupted),
            _ => None,
        }
    }
}

/// Whether this body of Envoy's own 503 says that the request never left Envoy.
///
/// Before it has a connection pool (`Router::Filter::decodeHeaders`), the router answers
/// with one of the whole texts. Afterwards it answers with the prefix and a reason
/// (`Router::Filter::onUpstreamReset`, `Http::Utility::resetReasonToString`). Four reasons
/// come from the pool's failure to give a connection (`UpstreamRequest::onPoolFailure`), that
/// is, before a byte of the request was written: `overflow` is a circuit breaker, and a
/// connection failure includes that of the TLS handshake. On a connection that had been made,
/// `CodecClient::onEvent` names the very same event `connection termination`. (HTTP/3 can
/// send early data before that, by default of safe methods only; reports are `POST`.)
///
/// All other reasons leave it open: `connection termination`, `remote reset`, `local reset`,
/// `protocol error`, `remote refused stream reset` and more. So does a text with "retried and
/// the latest" before the reason: an earlier attempt may have arrived.
fn never_sent(body: &[u8]) -> bool {
    const WHOLE: [&[u8]; 3] = [
        b"no healthy upstream",
        b"maintenance mode",
        b"drop overload",
    ];
    const PREFIX: &[u8] =
        b"upstream connect error or disconnect/reset before headers. reset reason: ";
    const REASONS: [&[u8]; 4] = [
        b"remote connection failure",
        b"local connection failure",
        b"connection timeout",
        b"overflow",
    ];
    const DETAIL: &[u8] = b", transport failure reason: ";

    WHOLE.contains(&body)
        || body.strip_prefix(PREFIX).is_some_and(|rest| {
            REASONS
                .iter()
                .filter_map(|reason| rest.strip_prefix(*reason))
                .any(|rest| rest.is_empty() || rest.starts_with(DETAIL))
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    fn envoy_says(status: u16, body: &str) -> Option<Failure> {
        Reply {
            status,
            rejection_reason: None,
            from_upstream: false,
            body: body.as_bytes(),
        }
        .failure()
    }

    const RESET: &str = "upstream connect error or disconnect/reset before headers. ";

    #[test]
    fn envoy_names_what_was_never_sent() {
        for body in [
            "no healthy upstream".to_owned(),
            "maintenance mode".to_owned(),
            "drop overload".to_owned(),
            format!("{RESET}reset reason: overflow"),
            format!("{RESET}reset reason: connection timeout"),
            format!("{RESET}reset reason: local connection failure"),
            format!(
                "{RESET}reset reason: remote connection failure, transport failure reason: \
                 delayed connect error: Connection refused"
            ),
        ] {
            assert_eq!(
                envoy_says(503, &body),
                Some(Failure::NotConnected),
                "{body}"
            );
        }
    }

    #[test]
    fn what_may_have_been_sent_is_not_called_unsent() {
        for reason in [
            "reset reason: connection termination",
            "reset reason: remote reset",
            "reset reason: local reset",
            "reset reason: protocol error",
            "reset reason: remote refused stream reset",
            "reset reason: remote connection failures",
            "retried and the latest reset reason: remote connection failure",
        ] {
            let body = format!("{RESET}{reason}");
            assert_eq!(envoy_says(503, &body), Some(Failure::Interrupted), "{body}");
        }
        assert_eq!(envoy_says(503, ""), Some(Failure::Interrupted));
        assert_eq!(
            envoy_says(502, "no healthy upstream"),
            Some(Failure::Interrupted)
        );
        assert_eq!(
            envoy_says(504, "upstream request timeout"),
            Some(Failure::Timeout)
        );
        assert_eq!(envoy_says(0, ""), Some(Failure::NoReply));
    }

    #[test]
    fn an_upstream_cannot_claim_that_it_was_never_reached() {
        let reply = Reply {
            status: 503,
            rejection_reason: None,
            from_upstream: true,
            body: b"no healthy upstream",
        };
        assert_eq!(reply.failure(), Some(Failure::ServerError(503)));
    }

    #[test]
    fn debug_output_shows_no_body() {
        let reply = Reply {
            status: 409,
            rejection_reason: Some(b"a\xff"),
            from_upstream: true,
            body: b"hidden",
        };
        let shown = format!("{reply:?}");
        assert!(
            shown.contains("409") && shown.contains("\\\\xff"),
            "{shown}"
        );
        assert!(
            !shown.contains("hidden") && !shown.contains("104, 105"),
            "{shown}"
        );
    }
}
