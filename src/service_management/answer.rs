//! What an exchange with service management means.
//!
//! Apart from the readers of bodies, which only speak once it is decided here, by the
//! status and then by code or header, that a body is what it seems.

use super::denial::Denial;
use super::misconfiguration::Misconfiguration;
use super::reply::{Failure, Reply};
use super::request::Identification;
use super::status::{self, Authorization};
use super::xml::{Malformed, error_code};

/// The meaning of an answer to [`super::authorize_target`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuthorizeAnswer {
    /// The application may be let in, within its limits. Also where the backend says
    /// that a limit is exceeded: its limits came along, and are for the asker to compute.
    Known(Authorization),
    /// The application may not be let in.
    Denied(Denial),
    /// The question was wrong: nothing was said about the application.
    Misconfigured(Misconfiguration),
    /// There was no usable answer: nothing was said about the application.
    Failed(Failure),
}

/// The meaning of an answer to a [`super::ReportBody`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReportAnswer {
    /// The backend has queued the report. It applies it later, and may still drop it.
    Acknowledged,
    /// The backend took nothing of it, and will not if it is sent again as it is.
    Refused {
        /// The HTTP status: 4xx.
        status: u16,
        /// What the backend named as wrong.
        why: Misconfiguration,
    },
    /// The report surely did not leave Envoy: it can be sent again.
    NotDelivered(Failure),
    /// The backend may or may not have queued it: sent again, it may count twice.
    Uncertain(Failure),
}

/// Classifies the answer to a question about an application that is known that way.
///
/// | status | decided by |
/// |---|---|
/// | 200 | the body, which must be whole and say `authorized` |
/// | 409 | the reason header; `limits_exceeded` is [`AuthorizeAnswer::Known`] with the body's limits, `oauth_not_enabled` is [`AuthorizeAnswer::Misconfigured`], every other reason or none is a denial, whatever the body |
/// | 4xx | `<error code>`; without one, it was not the backend that answered |
/// | 5xx, none | [`Failure`] |
/// | else | [`Failure::UnexpectedStatus`] |
///
/// A service knows applications one way only (protocol section 2): asked the other way,
/// it answers as if no key or id had been sent, with the same code as for a bad one,
/// but with the code that belongs to *its* way. So `user_key_invalid` for an `app_id`, or
/// `application_not_found` for a `user_key`, is [`Misconfiguration::WrongIdentification`].
#[must_use]
pub fn authorize_answer(reply: &Reply<'_>, asked: Identification) -> AuthorizeAnswer {
    if let Some(failure) = reply.failure() {
        return AuthorizeAnswer::Failed(failure);
    }
    match reply.status {
        200 => known(status::read(reply.body, true)),
        409 => match reply.rejection_reason.map(<[u8]>::trim_ascii) {
            Some(b"limits_exceeded") => known(limits_exceeded(reply.body)),
            Some(b"oauth_not_enabled") => {
                AuthorizeAnswer::Misconfigured(Misconfiguration::OauthNotEnabled)
            }
            reason => {
                AuthorizeAnswer::Denied(Denial::from_rejection_reason(reason.unwrap_or_default()))
            }
        },
        400..=499 => match error_code(reply.body) {
            Some(code) => refused(&code, asked),
            None => AuthorizeAnswer::Failed(Failure::UnexpectedStatus(reply.status)),
        },
        status => AuthorizeAnswer::Failed(Failure::UnexpectedStatus(status)),
    }
}

/// The keys of an application, from the refusal of a question in which **no key was
/// shown**: the reason in the body is then a text of the backend's own. Where a key was
/// shown, the consumer's bytes stand in the body, and could say anything.
///
/// `None` if it is another answer, or if they are not surely all and surely these.
#[must_use]
pub fn listed_keys(reply: &Reply<'_>) -> Option<Vec<String>> {
    let reason = reply.rejection_reason.map(<[u8]>::trim_ascii);
    if reply.status != 409 || reason != Some(b"application_key_invalid") {
        return None;
    }
    status::read(reply.body, false).ok()?.app_keys
}

fn known(read: Result<Authorization, Malformed>) -> AuthorizeAnswer {
    match read {
        Ok(authorization) => AuthorizeAnswer::Known(authorization),
        Err(why) => AuthorizeAnswer::Failed(Failure::Malformed(why)),
    }
}

/// The limits of an application over one of them: without any it would be unlimited.
fn limits_exceeded(body: &[u8]) -> Result<Authorization, Malformed> {
    status::read(body, false).and_then(|authorization| {
        if authorization.limits.is_empty() {
            Err(Malformed::NoUsageReports)
        } else {
            Ok(authorization)
        }
    })
}

fn refused(code: &str, asked: Identification) -> AuthorizeAnswer {
    match (code, asked) {
        ("user_key_invalid", Identification::UserKey) => {
            AuthorizeAnswer::Denied(Denial::UserKeyInvalid)
        }
        ("application_not_found", Identification::AppId) => {
            AuthorizeAnswer::Denied(Denial::ApplicationNotFound)
        }
        ("user_key_invalid" | "application_not_found", _) => {
            AuthorizeAnswer::Misconfigured(Misconfiguration::WrongIdentification)
        }
        ("not_valid_data", _) => AuthorizeAnswer::Denied(Denial::CredentialNotUtf8),
        (code, _) => AuthorizeAnswer::Misconfigured(Misconfiguration::from_error_code(code)),
    }
}

/// Classifies the answer to a report.
///
/// Acknowledged is a 202 and nothing else. Refused is a 4xx with an `<error code>`, which
/// only the backend gives, and it gives it before it queues anything (protocol section 10).
/// Not delivered is what Envoy itself says was never sent. Everything else is uncertain: a
/// 5xx can come after the report was queued, and a 4xx without a code (a rate limit on the
/// way, a wrong authority) refuses the call and not the report.
#[must_use]
pub fn report_answer(reply: &Reply<'_>) -> ReportAnswer {
    match reply.failure() {
        Some(Failure::NotConnected) => ReportAnswer::NotDelivered(Failure::NotConnected),
        Some(failure) => ReportAnswer::Uncertain(failure),
        None => match reply.status {
            202 => ReportAnswer::Acknowledged,
            status @ 400..=499 => match error_code(reply.body) {
                Some(code) => ReportAnswer::Refused {
                    status,
                    why: Misconfiguration::from_error_code(&code),
                },
                None => ReportAnswer::Uncertain(Failure::UnexpectedStatus(status)),
            },
            status => ReportAnswer::Uncertain(Failure::UnexpectedStatus(status)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    fn reply<'a>(status: u16, reason: Option<&'a str>, body: &'a str) -> Reply<'a> {
        Reply {
            status,
            rejection_reason: reason.map(str::as_bytes),
            from_upstream: true,
            body: body.as_bytes(),
        }
    }

    fn ask(status: u16, reason: Option<&str>, body: &str) -> AuthorizeAnswer {
        authorize_answer(&reply(status, reason, body), Identification::AppId)
    }

    const LIMITED: &str = "<status><authorized>false</authorized><reason>r</reason><usage_reports>\
        <usage_report metric=\"hits\" period=\"eternity\"><max_value>1</max_value>\
        <current_value>1</current_value></usage_report></usage_reports></status>";

    #[test]
    fn a_denial_holds_whatever_its_body() {
        for body in [
            "",
            "<status><authorized>false</authorized><reason>key \"<b>&\" is bad</reason></status>",
            "<status><authorized>true</authorized></status>",
            LIMITED,
        ] {
            assert_eq!(
                ask(409, Some(" application_key_invalid"), body),
                AuthorizeAnswer::Denied(Denial::ApplicationKeyInvalid)
            );
            assert_eq!(ask(409, None, body), AuthorizeAnswer::Denied(Denial::Other));
        }
    }

    #[test]
    fn an_exceeded_limit_is_no_verdict() {
        let AuthorizeAnswer::Known(authorization) = ask(409, Some("limits_exceeded"), LIMITED)
        else {
            panic!("not known");
        };
        assert_eq!(authorization.limits.len(), 1);
    }

    #[test]
    fn an_exceeded_limit_that_is_not_listed_is_not_unlimited() {
        let bare = "<status><authorized>false</authorized></status>";
        for (body, why) in [
            (bare, Malformed::NoUsageReports),
            ("", Malformed::NotAStatus),
            (
                "<status><authorized>true</authorized></status>",
                Malformed::Authorized,
            ),
        ] {
            assert_eq!(
                ask(409, Some("limits_exceeded"), body),
                AuthorizeAnswer::Failed(Failure::Malformed(why))
            );
        }
    }

    #[test]
    fn a_status_decides_before_a_body_that_says_authorized() {
        let body = "<status><authorized>true</authorized></status>";
        for status in [
            100, 201, 202, 204, 302, 400, 401, 403, 404, 422, 429, 500, 503,
        ] {
            assert!(
                matches!(ask(status, None, body), AuthorizeAnswer::Failed(_)),
                "{status}"
            );
        }
    }

    #[test]
    fn a_service_of_the_other_way_is_no_invalid_key() {
        let user_key = "<error code=\"user_key_invalid\">user key is missing</error>";
        let app_id = "<error code=\"application_not_found\">application id is missing</error>";
        let wrong = AuthorizeAnswer::Misconfigured(Misconfiguration::WrongIdentification);
        assert_eq!(ask(403, None, user_key), wrong);
        assert_eq!(
            ask(404, None, app_id),
            AuthorizeAnswer::Denied(Denial::ApplicationNotFound)
        );
        let ask = |body| authorize_answer(&reply(403, None, body), Identification::UserKey);
        assert_eq!(
            ask(user_key),
            AuthorizeAnswer::Denied(Denial::UserKeyInvalid)
        );
        assert_eq!(ask(app_id), wrong);
    }

    /// Protocol section 5, every line: status and code, the meaning for a service of
    /// `user_key`s and for one of `app_id`s.
    #[test]
    fn every_code_of_the_protocol_has_a_class() {
        use Misconfiguration as M;
        let ours = |what| {
            [
                AuthorizeAnswer::Misconfigured(what),
                AuthorizeAnswer::Misconfigured(what),
            ]
        };
        let table = [
            (
                403,
                "provider_key_or_service_token_required",
                ours(M::ServiceTokenMissing),
            ),
            (403, "service_token_invalid", ours(M::ServiceTokenInvalid)),
            (403, "provider_key_invalid", ours(M::ProviderKeyInvalid)),
            (
                403,
                "provider_key_invalid_or_service_missing",
                ours(M::ProviderKeyInvalid),
            ),
            (403, "service_id_invalid", ours(M::ServiceIdInvalid)),
            (422, "service_id_missing", ours(M::ServiceIdMissing)),
            (
                403,
                "user_key_invalid",
                [
                    AuthorizeAnswer::Denied(Denial::UserKeyInvalid),
                    AuthorizeAnswer::Misconfigured(M::WrongIdentification),
                ],
            ),
            (403, "authentication_error", ours(M::BothIdentifications)),
            (403, "usage_value_invalid", ours(M::UsageInvalid)),
            (
                404,
                "application_not_found",
                [
                    AuthorizeAnswer::Misconfigured(M::WrongIdentification),
                    AuthorizeAnswer::Denied(Denial::ApplicationNotFound),
                ],
            ),
            (404, "metric_invalid", ours(M::MetricInvalid)),
            (400, "end_users_no_longer_supported", ours(M::EndUsers)),
            (400, "bad_request", ours(M::BadRequest)),
            (400, "content_type_invalid", ours(M::ContentTypeInvalid)),
            (400, "transactions_is_blank", ours(M::TransactionsInvalid)),
            (
                400,
                "transactions_format_invalid",
                ours(M::TransactionsInvalid),
            ),
            (
                400,
                "transactions_has_nil_transaction",
                ours(M::TransactionsInvalid),
            ),
            (
                422,
                "not_valid_data",
                [
                    AuthorizeAnswer::Denied(Denial::CredentialNotUtf8),
                    AuthorizeAnswer::Denied(Denial::CredentialNotUtf8),
                ],
            ),
        ];
        for (status, code, meanings) in table {
            let body = format!("<error code=\"{code}\">text</error>");
            let ways = [Identification::UserKey, Identification::AppId];
            for (asked, meaning) in ways.into_iter().zip(meanings) {
                assert_eq!(
                    authorize_answer(&reply(status, None, &body), asked),
                    meaning,
                    "{code}"
                );
            }
            let expected = M::from_error_code(code);
            let told_of_reports = matches!(
                report_answer(&reply(status, None, &body)),
                ReportAnswer::Refused { why, .. } if why == expected
            );
            assert!(told_of_reports, "{code}");
        }
        let denied = [
            ("application_key_invalid", Denial::ApplicationKeyInvalid),
            ("application_not_active", Denial::ApplicationNotActive),
            ("service_not_active", Denial::ServiceNotActive),
            ("referrer_not_allowed", Denial::ReferrerNotAllowed),
            ("redirect_url_invalid", Denial::RedirectInvalid),
            ("redirect_uri_invalid", Denial::RedirectInvalid),
        ];
        for (reason, denial) in denied {
            assert_eq!(ask(409, Some(reason), ""), AuthorizeAnswer::Denied(denial));
        }
        assert_eq!(
            ask(409, Some("oauth_not_enabled"), ""),
            AuthorizeAnswer::Misconfigured(M::OauthNotEnabled)
        );
    }

    #[test]
    fn keys_are_listed_by_the_refusal_of_no_key_and_by_nothing_else() {
        let body = "<status><authorized>false</authorized><reason>application key is missing\
             </reason><plan>p</plan><app_keys app=\"a\" svc=\"1\"><key id=\"k1\"/><key id=\"k2\"/>\
             </app_keys></status>";
        let listed = |status, reason, body| listed_keys(&reply(status, reason, body));
        let refused = Some("application_key_invalid");
        assert_eq!(
            listed(409, refused, body),
            Some(vec!["k1".to_owned(), "k2".to_owned()])
        );
        assert_eq!(listed(409, Some("referrer_not_allowed"), body), None);
        assert_eq!(listed(200, refused, body), None);
        assert_eq!(listed(409, None, body), None);
        assert_eq!(listed(409, refused, "<status>"), None);
    }

    #[test]
    fn only_202_acknowledges_a_report() {
        for status in (0..=999).filter(|status| *status != 202) {
            assert_ne!(
                report_answer(&reply(status, None, "")),
                ReportAnswer::Acknowledged
            );
        }
        assert_eq!(
            report_answer(&reply(202, None, "")),
            ReportAnswer::Acknowledged
        );
    }

    #[test]
    fn a_report_is_undelivered_only_if_envoy_says_so() {
        let from = |from_upstream| {
            report_answer(&Reply {
                from_upstream,
                ..reply(503, None, "no healthy upstream")
            })
        };
        assert_eq!(
            from(false),
            ReportAnswer::NotDelivered(Failure::NotConnected)
        );
        assert_eq!(
            from(true),
            ReportAnswer::Uncertain(Failure::ServerError(503))
        );
        assert_eq!(
            report_answer(&reply(429, None, "slow down")),
            ReportAnswer::Uncertain(Failure::UnexpectedStatus(429))
        );
    }
}
