//! What holds for any bytes: nothing panics, nothing a consumer sends becomes more than a
//! value, and no key changes what a reply says of limits.

use proptest::prelude::*;
use proptest::string::string_regex;

use super::*;

const TOKEN: &str = "t&k=%/+ é";
const SERVICE: ServiceAccess<'_> = ServiceAccess {
    id: "1001",
    right: Right::ServiceToken(TOKEN),
};

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..300),
        "[a-z&=%+;\\[\\]#? \\x00-\\x20\"<>é]{0,60}".prop_map(String::into_bytes),
    ]
}

/// Text that is nearly what the backend sends: pieces of it in any order.
fn nearly_xml() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop::sample::select(vec![
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>",
        "<status>",
        "</status>",
        "<authorized>true</authorized>",
        "<usage_reports>",
        "</usage_reports>",
        "<usage_report metric=\"hits\" period=\"day\">",
        "<usage_report metric=\"hits\" period=\"eternity\">",
        "</usage_report>",
        "<period_start>2026-11-21 20:48:00 +0000</period_start>",
        "<period_end>2026-11-22 20:48:00 +0000</period_end>",
        "<max_value>5</max_value>",
        "<current_value>99999999999999999999</current_value>",
        "<app_keys app=\"a\" svc=\"1\">",
        "<key id=\"k\"/>",
        "</app_keys>",
        "<hierarchy>",
        "<metric name=\"hits\" children=\"a b\"/>",
        "</hierarchy>",
        "<error code=\"user_key_invalid\">",
        "<!--",
        "<![CDATA[",
        "<!DOCTYPE",
        "&#x110000;",
        "&amp",
        "\"",
        "\0",
        " ",
    ]);
    prop::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat().into_bytes())
}

/// The value as a form parser that replaces what is not UTF-8 gives it back.
fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn parse(form: &[u8]) -> Vec<(String, String)> {
    form_urlencoded::parse(form).into_owned().collect()
}

fn pair(name: impl Into<String>, value: impl Into<String>) -> (String, String) {
    (name.into(), value.into())
}

proptest! {
    #[test]
    fn no_reply_panics(
        status in prop_oneof![any::<u16>(), prop::sample::select(vec![200, 202, 400, 403, 404, 409, 503])],
        reason in prop::option::of(prop_oneof![bytes(), Just(b"limits_exceeded".to_vec())]),
        from_upstream: bool,
        body in prop_oneof![bytes(), nearly_xml()],
        by_key: bool,
    ) {
        let reply = Reply { status, rejection_reason: reason.as_deref(), from_upstream, body: &body };
        let asked = if by_key { Identification::UserKey } else { Identification::AppId };
        let _ = format!("{:?} {reply:?}", report_answer(&reply));
        if let AuthorizeAnswer::Known(_) = authorize_answer(&reply, asked) {
            prop_assert!(status == 200 || status == 409);
        }
    }

    #[test]
    fn a_user_key_is_one_parameter_of_a_question(key in bytes()) {
        let target = authorize_target(&SERVICE, Endpoint::Authorize, &Application::UserKey(&key), None);
        prop_assert!(target.bytes().all(|byte| byte.is_ascii_graphic()));
        let (path, query) = target.split_once('?').unwrap();
        prop_assert_eq!(path, "/transactions/authorize.xml");
        prop_assert_eq!(parse(query.as_bytes()), [
            pair("service_token", TOKEN),
            pair("service_id", SERVICE.id),
            pair("user_key", lossy(&key)),
        ]);
        // Not only as text: byte for byte.
        let (_, value) = query.rsplit_once('=').unwrap();
        prop_assert_eq!(percent_encoding::percent_decode_str(value).collect::<Vec<u8>>(), key);
    }

    #[test]
    fn an_app_id_its_key_and_a_referrer_are_parameters_of_a_question(
        id in bytes(),
        key in prop::option::of(bytes()),
        referrer in prop::option::of(bytes()),
    ) {
        let target = authorize_target(
            &SERVICE,
            Endpoint::OauthAuthorize,
            &Application::AppId { id: &id, key: key.as_deref() },
            referrer.as_deref(),
        );
        let (_, query) = target.split_once('?').unwrap();
        let mut expected = vec![
            pair("service_token", TOKEN),
            pair("service_id", SERVICE.id),
            pair("app_id", lossy(&id)),
        ];
        expected.extend(key.map(|key| pair("app_key", lossy(&key))));
        expected.extend(referrer.map(|referrer| pair("referrer", lossy(&referrer))));
        prop_assert_eq!(parse(query.as_bytes()), expected);
    }

    #[test]
    fn a_report_says_what_was_pushed(
        transactions in prop::collection::vec((
            any::<bool>(),
            bytes(),
            any::<u64>(),
            prop::collection::vec((string_regex("[^\\[\\]]{1,20}").unwrap(), 0..=MAX_USAGE), 0..4),
        ), 0..8),
    ) {
        let mut report = ReportBody::new(&SERVICE);
        let mut expected = vec![
            pair("service_token", TOKEN),
            pair("service_id", SERVICE.id),
        ];
        for (index, (by_key, id, at, usage)) in transactions.iter().enumerate() {
            let (name, application) = if *by_key {
                ("user_key", Application::UserKey(id))
            } else {
                ("app_id", Application::AppId { id, key: Some(b"unsent") })
            };
            let usage: Vec<_> = usage.iter().map(|(name, value)| (name.as_str(), *value)).collect();
            report.try_push(&Transaction { application, at: *at, usage: &usage }).unwrap();
            let prefix = format!("transactions[{index}]");
            expected.push(pair(format!("{prefix}[{name}]"), lossy(id)));
            expected.push(pair(format!("{prefix}[timestamp]"), at.to_string()));
            for (metric, value) in usage {
                expected.push(pair(format!("{prefix}[usage][{metric}]"), value.to_string()));
            }
        }
        prop_assert_eq!(report.transactions(), transactions.len());
        prop_assert_eq!(report.parameters(), expected.len());
        prop_assert_eq!(parse(&report.into_bytes()), expected);
    }

    /// A consumer who can name keys owns the text between the limits and the hierarchy.
    #[test]
    fn no_key_changes_limits_or_hierarchy(
        key in prop_oneof![bytes(), nearly_xml()].prop_filter(
            "the limits are looked for by name, and not found twice",
            |key| !String::from_utf8_lossy(key).contains("<usage_report"),
        ),
    ) {
        let body = [
            b"<status><authorized>true</authorized><usage_reports><usage_report metric=\"hits\" \
              period=\"eternity\"><max_value>5</max_value><current_value>1</current_value>\
              </usage_report></usage_reports><app_keys app=\"a\" svc=\"1\"><key id=\"".as_slice(),
            &key,
            b"\"/></app_keys><hierarchy><metric name=\"hits\" children=\"a\"/></hierarchy></status>",
        ].concat();
        let reply = Reply { status: 200, rejection_reason: None, from_upstream: true, body: &body };
        let AuthorizeAnswer::Known(authorization) = authorize_answer(&reply, Identification::AppId) else {
            return Err(TestCaseError::fail("not known"));
        };
        prop_assert_eq!(authorization.limits.len(), 1);
        prop_assert_eq!(authorization.hierarchy, [pair("hits", "a")]);
    }
}
