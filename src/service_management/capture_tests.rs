//! Every exchange that was recorded with the backend, classified: the proof that what is
//! read here is what is sent there.
//!
//! Most expectations follow from the recorded status, `<error code>` and reason header by
//! the rules of the protocol; the exchanges that a rule could get wrong stand by name.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::*;

/// One file of `tests/data/captures/`: a raw request, `<<<<`, a raw response.
struct Capture {
    name: String,
    method: String,
    path: String,
    query: BTreeMap<String, String>,
    status: u16,
    reason: Option<Vec<u8>>,
    body: Vec<u8>,
}

impl Capture {
    fn parse(name: &str, raw: &[u8]) -> Self {
        let between = b"\n<<<<\n";
        let at = raw
            .windows(between.len())
            .position(|here| here == between)
            .unwrap();
        let request = String::from_utf8_lossy(&raw[..at]);
        let response = &raw[at + between.len()..];
        let blank = response
            .windows(4)
            .position(|here| here == b"\r\n\r\n")
            .unwrap();
        let head = str::from_utf8(&response[..blank]).unwrap();
        let header = |wanted: &str| {
            head.lines()
                .filter_map(|line| line.split_once(": "))
                .find(|(name, _)| name.eq_ignore_ascii_case(wanted))
                .map(|(_, value)| value)
        };
        let mut line = request.lines().next().unwrap().split(' ');
        let (method, target) = (line.next().unwrap(), line.next().unwrap());
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        // The file ends in a line feed of its own.
        let mut body = response[blank + 4..].to_vec();
        body.truncate(header("content-length").map_or(0, |length| length.parse().unwrap()));
        if method == "HEAD" {
            body.clear();
        }
        Self {
            name: name.to_owned(),
            method: method.to_owned(),
            path: path.to_owned(),
            query: form_urlencoded::parse(query.as_bytes())
                .into_owned()
                .collect(),
            status: head.split(' ').nth(1).unwrap().parse().unwrap(),
            reason: header(REJECTION_REASON_HEADER).map(|value| value.as_bytes().to_vec()),
            body,
        }
    }

    fn is_question(&self) -> bool {
        [
            "authorize.xml",
            "authrep.xml",
            "oauth_authorize.xml",
            "oauth_authrep.xml",
        ]
        .iter()
        .any(|end| self.path.trim_start_matches('/') == format!("transactions/{end}"))
    }

    /// The way that the request asked, or the service's own if it named nobody.
    fn asked(&self) -> Identification {
        let service = self.query.get("service_id").map(String::as_str);
        if self.query.contains_key("app_id") {
            Identification::AppId
        } else if self.query.contains_key("user_key") || service == Some("1001") {
            Identification::UserKey
        } else {
            Identification::AppId
        }
    }

    fn reply(&self) -> Reply<'_> {
        Reply {
            status: self.status,
            rejection_reason: self.reason.as_deref(),
            from_upstream: true,
            body: &self.body,
        }
    }

    /// What stands between two texts, by plain search: independent of the reader.
    fn between(&self, before: &str, after: &str) -> Option<String> {
        let body = String::from_utf8_lossy(&self.body).into_owned();
        let (_, rest) = body.split_once(before)?;
        Some(rest.split_once(after)?.0.to_owned())
    }

    fn error_code(&self) -> Option<String> {
        self.between("<error code=\"", "\"")
    }

    fn limits(&self) -> usize {
        String::from_utf8_lossy(&self.body)
            .matches("<usage_report ")
            .count()
    }
}

fn captures() -> Vec<Capture> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/captures");
    let mut captures: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "http")
        })
        .map(|path| {
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            Capture::parse(&name, &fs::read(&path).unwrap())
        })
        .collect();
    captures.sort_by(|one, other| one.name.cmp(&other.name));
    captures
}

fn capture(name: &str) -> Capture {
    captures()
        .into_iter()
        .find(|capture| capture.name.split('-').next() == Some(name))
        .unwrap()
}

fn answer(name: &str) -> AuthorizeAnswer {
    let capture = capture(name);
    authorize_answer(&capture.reply(), capture.asked())
}

/// An answer in one line: its class, why, and how many limits it brought.
fn summary(answer: &AuthorizeAnswer) -> String {
    match answer {
        AuthorizeAnswer::Known(authorization) => format!("known {}", authorization.limits.len()),
        AuthorizeAnswer::Denied(denial) => format!("denied {}", denial.as_str()),
        AuthorizeAnswer::Misconfigured(why) => format!("misconfigured {}", why.as_str()),
        AuthorizeAnswer::Failed(failure) => format!("failed {}", failure.as_str()),
    }
}

/// What the protocol's tables say of a question's answer.
fn expected(capture: &Capture) -> String {
    let asked_by_user_key = capture.asked() == Identification::UserKey;
    match (capture.status, capture.error_code().as_deref()) {
        // `no_body`, or a HEAD: it cannot be seen that there are no limits.
        (200, _) if capture.body.is_empty() => "failed malformed".into(),
        (200, _) => format!("known {}", capture.limits()),
        (409, _) => match capture
            .reason
            .as_deref()
            .map(|reason| str::from_utf8(reason).unwrap())
        {
            Some("limits_exceeded") if capture.body.is_empty() => "failed malformed".into(),
            Some("limits_exceeded") => format!("known {}", capture.limits()),
            Some("oauth_not_enabled") => "misconfigured oauth_not_enabled".into(),
            Some(reason) => format!("denied {reason}"),
            // Recorded without asking for the header, as nobody does here.
            None => "denied denied".into(),
        },
        (500, _) => "failed server_error".into(),
        (_, Some("user_key_invalid")) if asked_by_user_key => "denied user_key_invalid".into(),
        (_, Some("application_not_found")) if !asked_by_user_key => {
            "denied application_not_found".into()
        }
        (_, Some("not_valid_data")) => "denied credential_not_utf8".into(),
        (_, Some(code)) => format!(
            "misconfigured {}",
            match code {
                "user_key_invalid" | "application_not_found" => "wrong_identification",
                "provider_key_or_service_token_required" => "service_token_missing",
                "provider_key_invalid_or_service_missing" => "provider_key_invalid",
                "authentication_error" => "both_identifications",
                "usage_value_invalid" => "usage_invalid",
                "end_users_no_longer_supported" => "end_users",
                same => same,
            }
        ),
        (_, None) => "failed unexpected_status".into(),
    }
}

#[test]
fn every_recorded_answer_about_an_application_is_classified() {
    let questions: Vec<_> = captures()
        .into_iter()
        .filter(Capture::is_question)
        .collect();
    assert_eq!(questions.len(), 168);
    for capture in questions {
        let answer = authorize_answer(&capture.reply(), capture.asked());
        assert_eq!(summary(&answer), expected(&capture), "{}", capture.name);
    }
}

#[test]
fn recorded_answers_that_a_rule_could_get_wrong() {
    for (name, expected) in [
        // One 403 is the consumer's, the other ours.
        ("a09", "denied user_key_invalid"),
        ("a14", "misconfigured service_token_invalid"),
        // So is one 404.
        ("b07", "denied application_not_found"),
        ("a21", "misconfigured metric_invalid"),
        // A 403 without a code: our `usage=1`.
        ("a23", "failed unexpected_status"),
        ("a26", "denied credential_not_utf8"),
        // An app_id for a service of user_keys, and the reverse.
        ("a32", "misconfigured wrong_identification"),
        ("b08", "misconfigured wrong_identification"),
        ("c13", "misconfigured wrong_identification"),
        // The listener's own 400 of a long query, with no body.
        ("a44", "failed unexpected_status"),
        // A limit of 0 is a limit.
        ("a05", "known 1"),
        // Any key will do for an application without keys.
        ("b05", "known 1"),
        // Wrong key and limits in one: the key decides, though limits are listed.
        ("b14", "denied denied"),
        // Secrets in the body, and a denial all the same.
        ("c03", "denied denied"),
        ("c10", "denied denied"),
        // `<reason>` with the consumer's markup.
        ("b15", "denied denied"),
        ("j01", "denied denied"),
        ("j02", "denied denied"),
        // Over a limit, and known.
        ("d05", "known 1"),
        ("d13", "known 4"),
        ("e08", "failed malformed"),
        ("e15", "denied application_key_invalid"),
        ("e16", "denied application_not_active"),
        ("e18", "failed server_error"),
        ("e20", "known 4"),
    ] {
        assert_eq!(summary(&answer(name)), expected, "{name}");
    }
}

#[test]
fn injected_markup_does_not_change_a_denial_with_a_reason() {
    for (name, reason, denial) in [
        (
            "b15",
            "application_key_invalid",
            Denial::ApplicationKeyInvalid,
        ),
        (
            "j01",
            "application_key_invalid",
            Denial::ApplicationKeyInvalid,
        ),
        ("j02", "referrer_not_allowed", Denial::ReferrerNotAllowed),
        ("a30", "service_not_active", Denial::ServiceNotActive),
        ("c07", "redirect_url_invalid", Denial::RedirectInvalid),
    ] {
        let capture = capture(name);
        let reply = Reply {
            rejection_reason: Some(reason.as_bytes()),
            ..capture.reply()
        };
        assert_eq!(
            authorize_answer(&reply, capture.asked()),
            AuthorizeAnswer::Denied(denial),
            "{name}"
        );
    }
}

fn known(name: &str) -> Authorization {
    match answer(name) {
        AuthorizeAnswer::Known(authorization) => authorization,
        other => panic!("{name}: {other:?}"),
    }
}

#[test]
fn recorded_limits_are_read_to_the_number() {
    let authorization = known("d05");
    let limit = &authorization.limits[0];
    assert_eq!(
        (limit.metric.as_str(), limit.maximum, limit.current),
        ("hits", 5, 9)
    );
    let every = known("a02");
    let found: Vec<_> = every
        .limits
        .iter()
        .map(|limit| (limit.period, limit.maximum))
        .collect();
    use crate::authorization::Period::*;
    assert_eq!(
        found,
        [
            (Eternity, 500_000),
            (Year, 400_000),
            (Month, 300_000),
            (Week, 200_000),
            (Day, 100_000),
            (Hour, 10_000),
            (Minute, 1_000)
        ]
    );
}

#[test]
fn recorded_windows_are_the_calendar_s() {
    let mut checked = 0;
    for capture in captures().iter().filter(|capture| capture.is_question()) {
        if let AuthorizeAnswer::Known(authorization) =
            authorize_answer(&capture.reply(), capture.asked())
        {
            for limit in authorization.limits {
                assert_eq!(
                    limit.period.window_at(limit.window.start),
                    limit.window,
                    "{} {}",
                    capture.name,
                    limit.metric
                );
                checked += 1;
            }
        }
    }
    assert!(checked > 150, "{checked}");
}

#[test]
fn recorded_hierarchy_and_keys_are_read() {
    let pairs = |names: &[(&str, &str)]| -> Vec<(String, String)> {
        names
            .iter()
            .map(|(parent, child)| ((*parent).into(), (*child).into()))
            .collect()
    };
    let keys = |names: &[&str]| Some(names.iter().map(|name| (*name).to_owned()).collect());
    let all = known("e20");
    assert_eq!(
        all.hierarchy,
        pairs(&[("hits", "orders"), ("orders", "orders_vip")])
    );
    assert_eq!(all.app_keys, keys(&["k3", "k1", "k2"]));
    let oauth = known("e21");
    assert_eq!(oauth.hierarchy, pairs(&[("hits", "orders")]));
    assert_eq!(oauth.app_keys, keys(&["secret3"]));
    let without = known("e03b");
    assert_eq!(
        (without.app_keys, without.hierarchy),
        (keys(&[]), pairs(&[]))
    );
    assert_eq!(known("a01").app_keys, None);
}

#[test]
fn every_recorded_answer_to_a_report_is_classified() {
    let reports: Vec<_> = captures()
        .into_iter()
        .filter(|capture| capture.method == "POST" && capture.path == REPORT_PATH)
        .collect();
    assert_eq!(reports.len(), 54);
    for capture in reports {
        let found = match report_answer(&capture.reply()) {
            ReportAnswer::Acknowledged => "acknowledged".into(),
            ReportAnswer::Refused { status, why } => format!("refused {status} {}", why.as_str()),
            ReportAnswer::NotDelivered(failure) => format!("unsent {}", failure.as_str()),
            ReportAnswer::Uncertain(failure) => format!("uncertain {}", failure.as_str()),
        };
        let expected = match capture.name.split('-').next().unwrap() {
            "f17" | "f18" | "f19" | "f20" => "refused 400 transactions_invalid",
            "f22" => "refused 400 content_type_invalid",
            "f25" | "i01" => "refused 403 service_token_invalid",
            "f26" => "refused 403 service_token_missing",
            "f27" => "refused 422 service_id_missing",
            "f28" => "refused 403 provider_key_invalid",
            "f30" => "refused 400 end_users",
            "f33" | "i03" => "refused 400 bad_request",
            "f41" => "refused 422 not_utf8",
            "f21" | "m01" | "m02" | "m03" => "uncertain server_error",
            _ => "acknowledged",
        };
        assert_eq!(found, expected, "{}", capture.name);
    }
}
