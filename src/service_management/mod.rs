//! The wire of the Service Management API: questions and reports out as strings and
//! bytes, answers in as status, headers and body, classified by what they mean.
//!
//! Apart from everything that decides, so that no other module knows a path, a
//! parameter, an XML element or an error text. No I/O here: the caller dispatches what
//! [`authorize_target`] and [`ReportBody`] build and hands the outcome, as a [`Reply`],
//! to [`authorize_answer`] or [`report_answer`].
//!
//! The source of the facts is the 3scale backend ("apisonator") 3.4.3 and exchanges
//! recorded with it, which stand in `tests/data/captures/` and are all read by the tests
//! here. Two of these facts shape the module:
//!
//! - The backend does not escape the consumer's bytes in `<reason>` nor key ids in
//!   `<app_keys>`. So a decision comes from the HTTP status, then from `<error code>` (4xx)
//!   or the `3scale-rejection-reason` header (409), and never from searching a body.
//! - 403, 404 and 409 each mean both "this consumer is refused" and "this gateway is
//!   misconfigured" (or "over a limit"). [`Denial`] and [`Misconfiguration`] keep these apart.
//!
//! Replies of `oauth_*.xml` hold the application's secret, and those with `<app_keys>` all
//! of its keys: a body is never logged or passed on, and nothing here shows it in `Debug`.

mod answer;
mod denial;
mod metrics;
mod misconfiguration;
mod reply;
mod report;
mod request;
mod status;
mod xml;

#[cfg(test)]
#[cfg(not(target_family = "wasm"))]
mod capture_tests;
#[cfg(test)]
#[cfg(not(target_family = "wasm"))]
mod property_tests;

pub use answer::{AuthorizeAnswer, ReportAnswer, authorize_answer, listed_keys, report_answer};
pub use denial::{Denial, Fault};
pub use metrics::{MetricsAnswer, metrics_answer, push_no_usage};
pub use misconfiguration::Misconfiguration;
pub use reply::{Failure, REJECTION_REASON_HEADER, Reply, UPSTREAM_HEADER};
pub use report::{
    MAX_REPORT_BYTES, MAX_REPORT_PARAMETERS, MAX_USAGE, NotPushed, REPORT_CONTENT_TYPE,
    REPORT_PATH, ReportBody, Transaction,
};
pub use request::{
    ANY_REFERRER, Application, Endpoint, Identification, OPTIONS_HEADER, Right, ServiceAccess,
    authorize_target,
};
pub use status::{Authorization, UsageReport};
pub use xml::Malformed;
