//! The stand-in's answer to a recorded call, held against the real backend's.
//!
//! Apart from the comparison of decisions because here every word of an answer counts,
//! whatever the filter makes of it.

use std::collections::{BTreeMap, BTreeSet};

use form_urlencoded::Serializer;
use service_management::{Backend, Request, Response};

use crate::document::Document;
use crate::recording::{Call, Operation, UsageReport};

/// What the recorded calls asked for.
const OPTIONS: &[u8] = b"rejection_reason_header=1&limit_headers=1&hierarchy=1&list_app_keys=1";

/// Puts a recorded call to a stand-in at its moment.
pub fn put(backend: &mut Backend, service_token: &str, call: &Call) -> Response {
    let parameters = parameters(service_token, call);
    let path = match (call.op, call.oauth) {
        (Operation::Report, _) => "/transactions.xml",
        (Operation::Authorize, false) => "/transactions/authorize.xml",
        (Operation::Authorize, true) => "/transactions/oauth_authorize.xml",
        (Operation::Authrep, false) => "/transactions/authrep.xml",
        (Operation::Authrep, true) => "/transactions/oauth_authrep.xml",
    };
    let request = match call.op {
        Operation::Report => Request {
            method: "POST",
            path,
            body: parameters.as_bytes(),
            ..Request::default()
        },
        _ => Request {
            method: "GET",
            path,
            query: parameters.as_bytes(),
            options: Some(OPTIONS),
            ..Request::default()
        },
    };
    backend.handle(&request, call.at)
}

fn parameters(service_token: &str, call: &Call) -> String {
    let mut form = Serializer::new(String::new());
    form.append_pair("service_token", service_token)
        .append_pair("service_id", &call.service);
    let name = |name: &str| match call.op {
        Operation::Report => format!("transactions[0][{name}]"),
        _ => name.to_owned(),
    };
    for (parameter, value) in [
        ("user_key", &call.user_key),
        ("app_id", &call.app_id),
        ("app_key", &call.app_key),
    ] {
        if let Some(value) = value {
            form.append_pair(&name(parameter), value);
        }
    }
    for (metric, delta) in &call.usage {
        let parameter = format!("{}[{metric}]", name("usage"));
        form.append_pair(&parameter, &delta.to_string());
    }
    form.finish()
}

/// What differs between an answer and the recorded one, a line each. The moment of the
/// limit's end may differ by a second: the recorded call arrived a little after it was made.
#[must_use]
pub fn differences(answer: &Response, call: &Call) -> Vec<String> {
    let mut differences = Vec::new();
    let mut check = |what: &str, same: bool, ours: String, theirs: String| {
        if !same {
            differences.push(format!("{what}: {ours} instead of {theirs}"));
        }
    };
    macro_rules! check {
        ($what:literal, $ours:expr, $theirs:expr) => {{
            let (ours, theirs) = ($ours, $theirs);
            check(
                $what,
                ours == theirs,
                format!("{ours:?}"),
                format!("{theirs:?}"),
            );
        }};
    }
    let number = |header| answer.header(header).and_then(|text| text.parse().ok());
    check!("status", answer.status, call.status);
    check!(
        "reason",
        answer.header("3scale-rejection-reason"),
        call.reason.as_deref()
    );
    check!(
        "limit remaining",
        number("3scale-limit-remaining"),
        call.limit_remaining
    );
    check!(
        "limit",
        number("3scale-limit-max-value"),
        call.limit_max_value
    );
    let reset = number("3scale-limit-reset");
    if !is_about(reset, call.limit_reset) {
        check!("limit reset", reset, call.limit_reset);
    }
    let body = String::from_utf8_lossy(&answer.body);
    match Document::read(&body) {
        Ok(document) => {
            check!("error", document.error.as_deref(), call.error.as_deref());
            let reports = |reports: &[UsageReport]| {
                let mut reports = reports.to_vec();
                reports.sort();
                reports
            };
            check!(
                "usage reports",
                reports(&document.reports),
                reports(&call.reports)
            );
            check!(
                "hierarchy",
                sorted(&document.hierarchy),
                call.hierarchy.as_ref().map(sorted).unwrap_or_default()
            );
        }
        Err(error) => differences.push(format!("the body is no XML: {error}")),
    }
    differences
}

/// Whether two times in seconds are the same or next to each other; -1 is no time.
#[must_use]
pub fn is_about(one: Option<i64>, other: Option<i64>) -> bool {
    match (one, other) {
        (Some(one @ 0..), Some(other @ 0..)) => one.abs_diff(other) <= 1,
        (one, other) => one == other,
    }
}

/// The call as it would have been recorded, had the real backend answered this.
#[cfg(test)]
pub(crate) fn recorded(answer: &Response, call: &Call) -> Call {
    let number = |header| answer.header(header).and_then(|text| text.parse().ok());
    let document = Document::read(&String::from_utf8_lossy(&answer.body)).unwrap();
    Call {
        status: answer.status,
        error: document.error,
        reason: answer.header("3scale-rejection-reason").map(str::to_owned),
        limit_remaining: number("3scale-limit-remaining"),
        limit_reset: number("3scale-limit-reset"),
        limit_max_value: number("3scale-limit-max-value"),
        reports: document.reports,
        hierarchy: Some(document.hierarchy),
        ..call.clone()
    }
}

fn sorted(hierarchy: &BTreeMap<String, Vec<String>>) -> BTreeMap<&str, BTreeSet<&str>> {
    hierarchy
        .iter()
        .map(|(metric, children)| {
            let children = children.iter().map(String::as_str).collect();
            (metric.as_str(), children)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use service_management::Dataset;

    const DATA: &str = r#"{"service_token": "secret", "services": [{"id": "1",
        "backend_version": "1", "metrics": [{"name": "hits", "parent": null},
        {"name": "orders", "parent": "hits"}], "plans": {"p": {"hits": {"minute": 5}}},
        "applications": [{"id": "a", "plan": "p", "state": "active", "user_key": "k"}]}]}"#;
    const CALL: &str = r#"{"at": 1795298217162, "service": "1", "op": "authrep",
        "user_key": "k", "usage": {"orders": 2}, "status": 200, "limit_remaining": 1,
        "limit_reset": 3, "limit_max_value": 5, "reports": [{"metric": "hits",
        "period": "minute", "start": "2026-11-21 21:56:00 +0000",
        "end": "2026-11-21 21:57:00 +0000", "max": 5, "current": 2, "exceeded": false}],
        "hierarchy": {"hits": ["orders"]}}"#;

    fn differences_of(change: impl FnOnce(&mut Call)) -> Vec<String> {
        let mut backend = Backend::new(Dataset::from_recording(DATA).unwrap(), 0);
        let mut call: Call = serde_json::from_str(CALL).unwrap();
        let answer = put(&mut backend, "secret", &call);
        change(&mut call);
        differences(&answer, &call)
    }

    #[test]
    fn an_answer_like_the_recorded_one_has_no_difference() {
        assert_eq!(differences_of(|_| {}), [""; 0]);
    }

    #[test]
    fn every_part_of_an_answer_is_compared() {
        for (what, change) in [
            ("status", (|call| call.status = 409) as fn(&mut Call)),
            ("error", |call| call.error = Some("e".to_owned())),
            ("reason", |call| call.reason = Some("r".to_owned())),
            ("limit remaining", |call| call.limit_remaining = None),
            ("limit", |call| call.limit_max_value = Some(4)),
            ("limit reset", |call| call.limit_reset = Some(9)),
            ("usage reports", |call| call.reports[0].current = 1),
            ("usage reports", |call| call.reports[0].start = None),
            ("usage reports", |call| call.reports[0].exceeded = true),
            ("hierarchy", |call| call.hierarchy = None),
        ] {
            let found = differences_of(change);
            assert_eq!(found.len(), 1, "{what}: {found:?}");
            assert!(found[0].starts_with(&format!("{what}:")), "{found:?}");
        }
    }

    #[test]
    fn the_end_of_a_window_may_be_a_second_off_and_no_end_is_none() {
        assert!(is_about(Some(4), Some(3)) && is_about(None, None));
        assert!(is_about(Some(-1), Some(-1)));
        assert!(!is_about(Some(0), Some(-1)) && !is_about(Some(4), Some(2)));
        assert!(!is_about(Some(0), None));
    }
}
