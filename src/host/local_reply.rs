//! The answers that the filter gives itself: what each refusal is to its caller, to the
//! access log, and to a gRPC client. What it looks like is configured.

use super::abi::{self, MapType};
use crate::authorization::{Quota, Refusal, seconds_to};
use crate::config::{Outcome, Replies};
use crate::moment::Moment;
use crate::request::Headers;
use crate::service_management::Denial;
use crate::tokens::Flaw;

/// Seconds after which somebody who was told 503 may come again, where nobody knows better.
const UNAVAILABLE_RETRY_SECONDS: u64 = 1;
/// Seconds after which this gateway has looked at the limit again, if it may.
const EARLY_RETRY_SECONDS: u64 = 1;

/// Why a request does not reach the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// No service has the host, or what should be a host is none.
    NoService,
    /// No credential in any of the places where the service looks.
    NoCredential,
    /// No token in any of the places.
    NoToken,
    /// A token that is not valid.
    InvalidToken(Flaw),
    /// A valid token that does not allow this.
    InsufficientScope,
    /// The keys of a token's issuer could not be fetched.
    KeysUnavailable,
    /// A key manager could not be asked about an unknown token.
    KeyManagerUnavailable {
        /// Seconds after which it can be asked again, at least 1.
        retry_after: u64,
    },
    /// More signatures than a worker has time for.
    OverPace,
    /// A credential that no application can have.
    UnusableCredential,
    /// Service management denies the application.
    Denied(Denial),
    /// No mapping rule matches, so the request has no price.
    NoRule,
    /// A limit is used up until then (Unix seconds).
    Limited {
        /// End of the window; `u64::MAX` for an eternal one.
        until: u64,
    },
    /// Something is left of a limit, but this gateway must look again before it goes on.
    Early,
    /// The plan has a maximum of 0 for a metric.
    Disabled,
    /// Service management could not be asked about an unknown application.
    BackendFailed {
        /// Seconds after which it can be asked again, at least 1.
        retry_after: u64,
    },
    /// Service management refuses this gateway, not the caller.
    Misconfigured,
    /// Shared data was contended beyond reason.
    Contended,
    /// More unknown credentials than may be asked about.
    OverBudget,
    /// More requests wait for answers than a worker holds.
    Overloaded,
    /// The credential is looked for in a body that is larger than any form with one.
    LargeBody,
    /// The credential is looked for in a body that did not come in time.
    LateBody,
}

impl From<Refusal> for Reply {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Denied(denial) => Self::Denied(denial),
            Refusal::Limited { until } => Self::Limited { until },
            Refusal::Disabled => Self::Disabled,
            Refusal::Early => Self::Early,
            Refusal::TooManyMetrics => Self::Misconfigured,
        }
    }
}

impl Reply {
    /// What the caller is told.
    const fn outcome(self) -> Outcome {
        match self {
            Self::NoService => Outcome::NoService,
            Self::NoCredential | Self::NoToken => Outcome::NoCredential,
            Self::InvalidToken(_) => Outcome::InvalidToken,
            Self::InsufficientScope => Outcome::InsufficientScope,
            Self::UnusableCredential | Self::Denied(_) => Outcome::Denied,
            Self::LateBody => Outcome::LateBody,
            Self::LargeBody => Outcome::LargeBody,
            Self::NoRule => Outcome::NoMappingRule,
            Self::Limited { .. } | Self::Early => Outcome::Limited,
            Self::Disabled => Outcome::Disabled,
            Self::BackendFailed { .. }
            | Self::Contended
            | Self::OverBudget
            | Self::OverPace
            | Self::KeysUnavailable
            | Self::KeyManagerUnavailable { .. }
            | Self::Overloaded => Outcome::Unavailable,
            Self::Misconfigured => Outcome::Misconfigured,
        }
    }

    /// The response code details, as the access log shows them.
    fn details(self) -> String {
        let case = match self {
            Self::NoService => "no_service",
            Self::NoCredential | Self::NoToken => "no_credential",
            Self::InvalidToken(flaw) => flaw.as_str(),
            Self::InsufficientScope => "insufficient_scope",
            Self::KeysUnavailable => "keys_unavailable",
            Self::KeyManagerUnavailable { .. } => "introspection_unavailable",
            Self::OverPace => "token_over_budget",
            Self::UnusableCredential => "credential_unusable",
            Self::Denied(denial) => denial.as_str(),
            Self::NoRule => "no_mapping_rule",
            Self::Limited { .. } => "limit_exceeded",
            Self::Early => "limit_near",
            Self::Disabled => "metric_disabled",
            Self::BackendFailed { .. } => "service_management_unavailable",
            Self::Misconfigured => "misconfigured",
            Self::Contended => "contended",
            Self::OverBudget => "over_budget",
            Self::Overloaded => "overloaded",
            Self::LargeBody => "body_too_large",
            Self::LateBody => "body_too_late",
        };
        format!("tollgate_{case}")
    }

    /// Seconds to wait before trying again, if waiting helps.
    const fn retry_after(self, now: Moment) -> Option<u64> {
        match self {
            Self::Limited { until } => seconds_to(until, now),
            Self::Early => Some(EARLY_RETRY_SECONDS),
            Self::BackendFailed { retry_after } | Self::KeyManagerUnavailable { retry_after } => {
                Some(retry_after)
            }
            Self::Misconfigured
            | Self::Contended
            | Self::OverBudget
            | Self::OverPace
            | Self::KeysUnavailable
            | Self::Overloaded => Some(UNAVAILABLE_RETRY_SECONDS),
            _ => None,
        }
    }

    /// How to ask again with a credential (RFC 9110, 11.6.1); of tokens, RFC 6750, 3.
    const fn challenge(self) -> Option<&'static str> {
        match self {
            Self::NoCredential => Some("ApiKey realm=\"api\""),
            Self::NoToken => Some("Bearer realm=\"api\""),
            Self::InvalidToken(_) => Some("Bearer realm=\"api\", error=\"invalid_token\""),
            Self::InsufficientScope => Some("Bearer realm=\"api\", error=\"insufficient_scope\""),
            _ => None,
        }
    }

    /// Sends it to the stream of the effective context, whose request wants gRPC or not.
    /// The quota is told of if the reason is a limit.
    pub fn send(self, replies: &Replies, grpc: bool, quota: Option<Quota>, now: Moment) {
        let form = replies.to(self.outcome());
        let retry_after = self.retry_after(now).map(|seconds| seconds.to_string());
        let quota = quota
            .filter(|_| matches!(self, Self::Limited { .. }))
            .map(|quota| quota_fields(&quota, now))
            .unwrap_or_default();
        let mut headers: Vec<(&[u8], &[u8])> = Vec::with_capacity(8);
        // Envoy sets the content type of gRPC itself.
        if !grpc && !form.body.is_empty() {
            headers.push((b"content-type", form.content_type.as_bytes()));
        }
        if let Some(seconds) = &retry_after {
            headers.push((b"retry-after", seconds.as_bytes()));
        }
        for field in &quota {
            headers.push((field.header.as_bytes(), field.value.as_bytes()));
        }
        if let Some(challenge) = self.challenge() {
            headers.push((b"www-authenticate", challenge.as_bytes()));
        }
        for (name, value) in &form.headers {
            headers.push((name.as_bytes(), value.as_bytes()));
        }
        let body = if grpc { &form.grpc_message } else { &form.body };
        // A stream that has ended meanwhile needs no answer.
        let _ = abi::local_reply(
            u32::from(form.status),
            grpc.then(|| grpc_status(form.status, self.outcome())),
            &self.details(),
            &headers,
            body.as_bytes(),
        );
    }
}

/// A field of draft-ietf-httpapi-ratelimit-headers-06, the last draft that has a header for
/// each number.
struct QuotaField {
    header: &'static str,
    /// The filter state that carries it to Envoy's `response_headers_to_add`, without the
    /// `wasm.` that Envoy puts before it.
    state: &'static str,
    value: String,
}

/// Limit, remaining, and seconds to the end of the window if it has one.
fn quota_fields(quota: &Quota, now: Moment) -> Vec<QuotaField> {
    let field = |header, state, value: u64| QuotaField {
        header,
        state,
        value: value.to_string(),
    };
    [
        Some(field(
            "ratelimit-limit",
            "tollgate.ratelimit_limit",
            quota.maximum,
        )),
        Some(field(
            "ratelimit-remaining",
            "tollgate.ratelimit_remaining",
            quota.remaining,
        )),
        quota
            .reset(now)
            .map(|seconds| field("ratelimit-reset", "tollgate.ratelimit_reset", seconds)),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Tells the caller of a request that goes on what is left, by way of filter state: Envoy
/// adds the headers where its configuration says so, and the filter needs no callback for
/// the response.
pub fn tell(quota: &Quota, now: Moment) {
    for field in quota_fields(quota, now) {
        // Without it the header is missing, and nothing else.
        let _ = abi::set_filter_state(field.state, &field.value);
    }
}

/// Whether Envoy takes a request for gRPC, by its content type: `application/grpc`, also
/// with `+proto` and the like behind it, but not `application/grpc-web`.
pub fn wants_grpc(headers: &Headers<'_>) -> bool {
    let Some(content_type) = headers.first(b"content-type") else {
        return false;
    };
    let rest = content_type.strip_prefix(b"application/grpc");
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// The same for the request of the effective context, which has waited.
pub fn waiting_wants_grpc() -> bool {
    let bytes = abi::header_map(MapType::RequestHeaders).unwrap_or_default();
    let pairs = abi::parse_pairs(&bytes);
    wants_grpc(&Headers { pairs: &pairs })
}

/// The gRPC status of a reply: that of its HTTP status, where there is one that says as
/// much, else that of the outcome. (Envoy's own table has UNAVAILABLE for 429, which
/// clients take for a reason to try again at once.)
const fn grpc_status(status: u16, outcome: Outcome) -> i32 {
    match status {
        401 => UNAUTHENTICATED,
        403 => PERMISSION_DENIED,
        404 | 405 | 501 => UNIMPLEMENTED,
        429 => RESOURCE_EXHAUSTED,
        500 => INTERNAL,
        502..=504 => UNAVAILABLE,
        _ => match outcome {
            Outcome::NoCredential | Outcome::InvalidToken => UNAUTHENTICATED,
            Outcome::Denied | Outcome::Disabled | Outcome::InsufficientScope => PERMISSION_DENIED,
            Outcome::NoMappingRule | Outcome::NoService => UNIMPLEMENTED,
            Outcome::Limited => RESOURCE_EXHAUSTED,
            Outcome::LargeBody => RESOURCE_EXHAUSTED,
            Outcome::Unavailable | Outcome::Misconfigured | Outcome::LateBody => UNAVAILABLE,
        },
    }
}

// Codes of gRPC's core specification, statuscodes.md.
const PERMISSION_DENIED: i32 = 7;
const RESOURCE_EXHAUSTED: i32 = 8;
const UNIMPLEMENTED: i32 = 12;
const INTERNAL: i32 = 13;
const UNAVAILABLE: i32 = 14;
const UNAUTHENTICATED: i32 = 16;

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Moment = Moment {
        wall: 59_001,
        monotonic: 0,
    };

    fn status(reply: Reply) -> u16 {
        Replies::default().to(reply.outcome()).status
    }

    #[test]
    fn retry_after_is_the_time_to_the_end_of_the_window_rounded_up() {
        let limited = |until| Reply::Limited { until }.retry_after(NOW);
        assert_eq!(limited(60), Some(1));
        assert_eq!(limited(61), Some(2));
        assert_eq!(limited(u64::MAX), None, "eternity does not end");
    }

    #[test]
    fn only_our_own_failures_are_503() {
        assert_eq!(status(Reply::Denied(Denial::UserKeyInvalid)), 403);
        assert_eq!(status(Reply::from(Refusal::Disabled)), 403);
        assert_eq!(status(Reply::Misconfigured), 503);
        assert!(Reply::Misconfigured.retry_after(NOW).is_some());
    }

    #[test]
    fn a_grpc_status_is_that_of_the_http_status_or_else_of_the_outcome() {
        for (status, outcome, grpc) in [
            (401, Outcome::NoCredential, 16),
            (403, Outcome::Denied, 7),
            (404, Outcome::NoMappingRule, 12),
            (429, Outcome::Limited, 8),
            (503, Outcome::Unavailable, 14),
            // A denial that hides as something else also hides from gRPC.
            (404, Outcome::Denied, 12),
            (402, Outcome::Limited, 8),
            (418, Outcome::Unavailable, 14),
        ] {
            assert_eq!(grpc_status(status, outcome), grpc, "{status} {outcome:?}");
        }
    }

    #[test]
    fn grpc_is_what_envoy_takes_for_it() {
        for (content_type, grpc) in [
            (&b"application/grpc"[..], true),
            (b"application/grpc+proto", true),
            (b"application/grpc;x=y", true),
            (b"application/grpc-web", false),
            (b"application/grpcx", false),
            (b"application/json", false),
            (b"\xff", false),
        ] {
            let pairs = [(&b"content-type"[..], content_type)];
            assert_eq!(wants_grpc(&Headers { pairs: &pairs }), grpc);
        }
        assert!(!wants_grpc(&Headers { pairs: &[] }));
    }
}
