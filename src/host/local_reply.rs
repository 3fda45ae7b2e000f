//! The answers that the filter gives itself: status, details for the access log,
//! headers and body of each refusal.

use super::abi;
use crate::authorization::Refusal;
use crate::moment::Moment;
use crate::service_management::Denial;

/// Seconds after which somebody who was told 503 may come again.
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
    BackendFailed,
    /// Service management refuses this gateway, not the caller.
    Misconfigured,
    /// Shared data was contended beyond reason.
    Contended,
    /// More requests wait for answers than a worker holds.
    Overloaded,
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
    const fn status(self) -> u32 {
        match self {
            Self::NoCredential => 401,
            Self::UnusableCredential | Self::Denied(_) | Self::Disabled => 403,
            Self::NoService | Self::NoRule => 404,
            Self::Limited { .. } | Self::Early => 429,
            Self::BackendFailed | Self::Misconfigured | Self::Contended | Self::Overloaded => 503,
        }
    }

    /// The response code details, as the access log shows them.
    fn details(self) -> String {
        let case = match self {
            Self::NoService => "no_service",
            Self::NoCredential => "no_credential",
            Self::UnusableCredential => "credential_unusable",
            Self::Denied(denial) => denial.as_str(),
            Self::NoRule => "no_mapping_rule",
            Self::Limited { .. } => "limit_exceeded",
            Self::Early => "limit_near",
            Self::Disabled => "metric_disabled",
            Self::BackendFailed => "service_management_unavailable",
            Self::Misconfigured => "misconfigured",
            Self::Contended => "contended",
            Self::Overloaded => "overloaded",
        };
        format!("tollgate_{case}")
    }

    /// What the caller reads. Nothing of the credential, and nothing of our own faults.
    const fn body(self) -> &'static str {
        match self {
            Self::NoService => "No API is served at this host.\n",
            Self::NoCredential => "A credential is required.\n",
            Self::UnusableCredential | Self::Denied(_) => "The credential is not accepted.\n",
            Self::NoRule => "This API has no such operation.\n",
            Self::Limited { .. } => "A limit of the plan is used up.\n",
            Self::Early => "A limit of the plan is nearly used up.\n",
            Self::Disabled => "The plan does not include this operation.\n",
            Self::BackendFailed | Self::Misconfigured | Self::Contended | Self::Overloaded => {
                "The request cannot be authorized right now.\n"
            }
        }
    }

    /// Seconds to wait before trying again, if waiting helps.
    const fn retry_after(self, now: Moment) -> Option<u64> {
        match self {
            Self::Limited { until: u64::MAX } => None,
            Self::Limited { until } => {
                let milliseconds = until.saturating_mul(1_000).saturating_sub(now.wall);
                let seconds = milliseconds.div_ceil(1_000);
                Some(if seconds == 0 { 1 } else { seconds })
            }
            Self::Early => Some(EARLY_RETRY_SECONDS),
            Self::BackendFailed | Self::Misconfigured | Self::Contended | Self::Overloaded => {
                Some(UNAVAILABLE_RETRY_SECONDS)
            }
            _ => None,
        }
    }

    /// Sends it to the stream of the effective context.
    pub fn send(self, now: Moment) {
        let retry_after = self.retry_after(now).map(|seconds| seconds.to_string());
        let mut headers: Vec<(&[u8], &[u8])> =
            vec![(b"content-type", b"text/plain; charset=utf-8")];
        if let Some(seconds) = &retry_after {
            headers.push((b"retry-after", seconds.as_bytes()));
        }
        if self == Self::NoCredential {
            headers.push((b"www-authenticate", b"ApiKey realm=\"api\""));
        }
        // A stream that has ended meanwhile needs no answer.
        let _ = abi::local_reply(
            self.status(),
            &self.details(),
            &headers,
            self.body().as_bytes(),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Moment = Moment {
        wall: 59_001,
        monotonic: 0,
    };

    #[test]
    fn retry_after_is_the_time_to_the_end_of_the_window_rounded_up() {
        let limited = |until| Reply::Limited { until }.retry_after(NOW);
        assert_eq!(limited(60), Some(1));
        assert_eq!(limited(61), Some(2));
        assert_eq!(limited(59), Some(1), "never 0: that would mean now");
        assert_eq!(limited(u64::MAX), None, "eternity does not end");
    }

    #[test]
    fn only_our_own_failures_are_503() {
        assert_eq!(Reply::Denied(Denial::UserKeyInvalid).status(), 403);
        assert_eq!(Reply::from(Refusal::Disabled).status(), 403);
        assert_eq!(Reply::Misconfigured.status(), 503);
        assert!(Reply::Misconfigured.retry_after(NOW).is_some());
    }
}
