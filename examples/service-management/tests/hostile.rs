//! Whatever is sent, the state machine answers, and keeps its promises: it does
//! not panic, its answers are framed, and nothing but the worker changes usage.

use proptest::prelude::*;
use service_management::{Backend, Dataset, Period, Request};
use std::sync::LazyLock;

static DATASET: LazyLock<Dataset> =
    LazyLock::new(|| Dataset::from_yaml(include_str!("../demo.yaml")).unwrap());
const NOW: u64 = 1_795_294_090_000;

/// Names and values that mean something to the backend, and some that do not.
fn fragment() -> impl Strategy<Value = String> {
    let known = prop::sample::select(vec![
        "service_token",
        "demo-token",
        "service_id",
        "1001",
        "1002",
        "user_key",
        "alice-key",
        "bob-key",
        "app_id",
        "frank",
        "app_key",
        "usage",
        "[hits]",
        "[orders]",
        "[]",
        "[",
        "]",
        "transactions",
        "[0]",
        "[1]",
        "[user_key]",
        "[usage]",
        "[timestamp]",
        "[app_id]",
        "provider_key",
        "demo-provider",
        "no_body",
        "=",
        "&",
        "%",
        "%FF",
        "%00",
        "+",
        "#",
        "%23",
        "1",
        "0",
        "-1",
        "99999999999999999999999999999999999999999999",
        "2026-11-21",
        "é",
    ]);
    prop_oneof![8 => known.prop_map(str::to_owned), 1 => any::<String>()]
}

fn text() -> impl Strategy<Value = String> {
    prop::collection::vec(fragment(), 0..24).prop_map(|fragments| fragments.concat())
}

/// Starts as a call that is let in would.
fn parameters() -> impl Strategy<Value = String> {
    let start = prop::sample::select(vec![
        "",
        "service_token=demo-token&service_id=1001&user_key=alice-key&",
        "service_token=demo-token&service_id=1002&app_id=frank&app_key=frank-secret&usage[hits]=",
        "service_token=demo-token&service_id=1001&transactions[0][user_key]=bob-key&transactions[0]",
        "provider_key=demo-provider&service_id=",
    ]);
    (start, text()).prop_map(|(start, rest)| format!("{start}{rest}"))
}

fn request() -> impl Strategy<
    Value = (
        &'static str,
        String,
        String,
        Option<String>,
        String,
        Option<&'static str>,
    ),
> {
    let method = prop::sample::select(vec!["GET", "HEAD", "POST", "OPTIONS", "PUT"]);
    let path = prop_oneof![
        8 => prop::sample::select(vec![
            "/transactions/authorize.xml", "/transactions/authrep.xml", "/transactions.xml",
            "/transactions/oauth_authrep.xml", "/transactions/oauth_authorize.xml", "/status",
        ]).prop_map(str::to_owned),
        1 => any::<String>(),
    ];
    let content_type = prop::sample::select(vec![
        None,
        Some("application/x-www-form-urlencoded"),
        Some("multipart/form-data; boundary=1"),
        Some("multipart/form-data"),
        Some("text/plain"),
        Some(";"),
    ]);
    (
        method,
        path,
        parameters(),
        prop::option::of(text()),
        parameters(),
        content_type,
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn any_sequence_of_requests_is_answered(requests in prop::collection::vec(request(), 1..8)) {
        let mut backend = Backend::new(DATASET.clone(), 10);
        for (step, (method, path, query, options, body, content_type)) in requests.iter().enumerate() {
            let before = backend.usage().clone();
            let now = NOW + u64::try_from(step).unwrap();
            let answer = backend.handle(
                &Request {
                    method,
                    path,
                    query: query.as_bytes(),
                    content_type: *content_type,
                    options: options.as_ref().map(String::as_bytes),
                    body: body.as_bytes(),
                },
                now,
            );
            prop_assert!((200..=500).contains(&answer.status));
            let length = answer.header("content-length");
            match length.map(|length| length.parse::<usize>().unwrap()) {
                Some(length) if *method != "HEAD" => prop_assert_eq!(length, answer.body.len()),
                _ => prop_assert!(answer.body.is_empty()),
            }
            prop_assert_eq!(backend.usage(), &before, "nothing is due yet");
        }
        backend.catch_up(NOW + 10_000);
        prop_assert_eq!(backend.queued(), 0);
        for application in ["alice", "bob"] {
            let usage = backend.usage();
            let total = usage.total("1001", application, "hits");
            let years = usage.windows("1001", application, "hits", Period::Year);
            let years: u64 = years.iter().map(|(_, value)| *value).sum();
            prop_assert_eq!(total, years, "every period counts the same");
        }
    }
}
