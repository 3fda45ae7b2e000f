//! Calls to service management: questions and reports on their way out, and the
//! answers as Envoy hands them over.

use super::abi::{self, BufferType, MapType};
use crate::config::ServiceManagement;
use crate::service_management::{
    Application, AuthorizeAnswer, Endpoint, Failure, Identification, MetricsAnswer, OPTIONS_HEADER,
    REJECTION_REASON_HEADER, REPORT_CONTENT_TYPE, REPORT_PATH, Reply, ReportAnswer, ServiceAccess,
    UPSTREAM_HEADER, authorize_answer, authorize_target, listed_keys, metrics_answer,
    push_no_usage, report_answer,
};
use crate::tokens::Url;
use std::time::Duration;

/// Bytes of an answer that are read at most; the parser takes no more than a part of it.
const MAX_ANSWER: usize = 2 * 1_024 * 1_024;
const USER_AGENT: &str = concat!("tollgate/", env!("CARGO_PKG_VERSION"));

/// Asks about an application, when it is used from this referrer. The token of the call;
/// `None` if it could not be made.
pub fn authorize(
    to: &ServiceManagement,
    service: &ServiceAccess<'_>,
    endpoint: Endpoint,
    application: &Application<'_>,
    referrer: Option<&str>,
) -> Option<u32> {
    authorize_with(to, service, endpoint, application, referrer, &[])
}

/// Asks about an application with a usage of 0 of these metrics: which of them are unknown.
/// The token of the call; `None` if it could not be made.
pub fn authorize_with(
    to: &ServiceManagement,
    service: &ServiceAccess<'_>,
    endpoint: Endpoint,
    application: &Application<'_>,
    referrer: Option<&str>,
    metrics: &[String],
) -> Option<u32> {
    let referrer = referrer.map(str::as_bytes);
    let mut target = authorize_target(service, endpoint, application, referrer);
    push_no_usage(&mut target, metrics);
    let options = application.identification().options();
    let headers: [(&[u8], &[u8]); 5] = [
        (b":method", b"GET"),
        (b":path", target.as_bytes()),
        (b":authority", to.authority.as_bytes()),
        (b"user-agent", USER_AGENT.as_bytes()),
        (OPTIONS_HEADER.as_bytes(), options.as_bytes()),
    ];
    abi::http_call(&to.cluster, &headers, &[], milliseconds(to.timeout)).ok()
}

/// Sends a report. The token of the call; `None` if it could not be made.
pub fn report(to: &ServiceManagement, timeout: Duration, body: &[u8]) -> Option<u32> {
    let length = body.len().to_string();
    let headers: [(&[u8], &[u8]); 6] = [
        (b":method", b"POST"),
        (b":path", REPORT_PATH.as_bytes()),
        (b":authority", to.authority.as_bytes()),
        (b"user-agent", USER_AGENT.as_bytes()),
        (b"content-type", REPORT_CONTENT_TYPE.as_bytes()),
        (b"content-length", length.as_bytes()),
    ];
    abi::http_call(&to.cluster, &headers, body, milliseconds(timeout)).ok()
}

/// Asks for what stands at a URL. The token of the call; `None` if it could not be made.
pub fn get(cluster: &str, url: &Url, timeout: Duration) -> Option<u32> {
    let headers: [(&[u8], &[u8]); 5] = [
        (b":method", b"GET"),
        (b":path", url.path.as_bytes()),
        (b":authority", url.authority.as_bytes()),
        (b"user-agent", USER_AGENT.as_bytes()),
        (b"accept", b"application/json"),
    ];
    abi::http_call(cluster, &headers, &[], milliseconds(timeout)).ok()
}

/// Asks a key manager about a token (RFC 7662, 2.1). The token of the call; `None` if it could not
/// be made.
pub fn ask_about_token(
    cluster: &str,
    url: &Url,
    authorization: &str,
    form: &[u8],
    timeout: Duration,
) -> Option<u32> {
    let length = form.len().to_string();
    let headers: [(&[u8], &[u8]); 8] = [
        (b":method", b"POST"),
        (b":path", url.path.as_bytes()),
        (b":authority", url.authority.as_bytes()),
        (b"user-agent", USER_AGENT.as_bytes()),
        (b"accept", b"application/json"),
        (b"authorization", authorization.as_bytes()),
        (b"content-type", b"application/x-www-form-urlencoded"),
        (b"content-length", length.as_bytes()),
    ];
    abi::http_call(cluster, &headers, form, milliseconds(timeout)).ok()
}

fn milliseconds(timeout: Duration) -> u32 {
    u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX)
}

/// The answer to a call, taken from Envoy while its callback runs.
pub struct Answered {
    status: u16,
    rejection_reason: Option<Vec<u8>>,
    from_upstream: bool,
    body: Vec<u8>,
}

impl Answered {
    /// Reads it. A call that failed without any headers reads as status 0.
    pub fn read() -> Self {
        let map = abi::header_map(MapType::CallResponseHeaders).unwrap_or_default();
        let pairs = abi::parse_pairs(&map);
        let first = |name: &str| {
            pairs
                .iter()
                .find(|(candidate, _)| *candidate == name.as_bytes())
                .map(|(_, value)| *value)
        };
        Self {
            status: first(":status")
                .and_then(|digits| std::str::from_utf8(digits).ok())
                .and_then(|digits| digits.parse().ok())
                .unwrap_or(0),
            rejection_reason: first(REJECTION_REASON_HEADER).map(<[u8]>::to_vec),
            from_upstream: first(UPSTREAM_HEADER).is_some(),
            body: abi::buffer(BufferType::CallResponseBody, MAX_ANSWER).unwrap_or_default(),
        }
    }

    /// The HTTP status, 0 if there is none.
    pub const fn status(&self) -> u16 {
        self.status
    }

    /// The failure that the status shows by itself.
    pub fn failure(&self) -> Option<Failure> {
        self.reply().failure()
    }

    /// The body of a 200.
    pub fn ok(&self) -> Option<&[u8]> {
        (self.status == 200).then_some(&*self.body)
    }

    fn reply(&self) -> Reply<'_> {
        Reply {
            status: self.status,
            rejection_reason: self.rejection_reason.as_deref(),
            from_upstream: self.from_upstream,
            body: &self.body,
        }
    }

    /// What it says about an application that was asked about that way.
    pub fn to_authorize(&self, asked: Identification) -> AuthorizeAnswer {
        authorize_answer(&self.reply(), asked)
    }

    /// The keys that it lists in refusing a question in which none was shown.
    pub fn to_listed_keys(&self) -> Option<Vec<String>> {
        listed_keys(&self.reply())
    }

    /// What it says about metrics that were asked about, given what it says otherwise.
    pub fn to_metrics(&self, answer: &AuthorizeAnswer, metrics: &[String]) -> MetricsAnswer {
        metrics_answer(answer, &self.reply(), metrics)
    }

    /// What it says about a report.
    pub fn to_report(&self) -> ReportAnswer {
        report_answer(&self.reply())
    }
}
