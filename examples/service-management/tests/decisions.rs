//! Replays what was recorded from the real backend with random services, in
//! virtual time: every call of `NAME.jsonl` against the data of
//! `NAME.data.json`, each applied before the next.
//!
//! The recordings are `tests/data/decisions/`, which says what is in a line.

use serde_json::{Value, json};
use service_management::{Backend, Dataset, Request};
use std::path::Path;

fn query(call: &Value) -> String {
    let mut pairs = vec![
        ("service_token".to_owned(), "svc-token".to_owned()),
        (
            "service_id".to_owned(),
            call["service"].as_str().unwrap().to_owned(),
        ),
    ];
    let report = call["op"] == "report";
    let prefix = |name: &str| {
        if report {
            format!("transactions[0][{name}]")
        } else {
            name.to_owned()
        }
    };
    for name in ["user_key", "app_id", "app_key"] {
        if let Some(value) = call[name].as_str() {
            pairs.push((prefix(name), value.to_owned()));
        }
    }
    if let Some(usage) = call["usage"].as_object() {
        for (metric, delta) in usage {
            pairs.push((format!("{}[{metric}]", prefix("usage")), delta.to_string()));
        }
    }
    let pairs: Vec<_> = pairs
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    pairs.join("&")
}

fn between<'a>(text: &'a str, start: &str, end: &str) -> Option<&'a str> {
    Some(text.split_once(start)?.1.split_once(end)?.0)
}

fn reports(body: &str) -> Vec<Value> {
    let mut reports: Vec<_> = body
        .split("<usage_report ")
        .skip(1)
        .map(|report| {
            json!({
                "metric": between(report, "metric=\"", "\"").unwrap(),
                "period": between(report, "period=\"", "\"").unwrap(),
                "start": between(report, "<period_start>", "<"),
                "end": between(report, "<period_end>", "<"),
                "max": between(report, "<max_value>", "<").unwrap().parse::<u64>().unwrap(),
                "current": between(report, "<current_value>", "<").unwrap().parse::<u64>().unwrap(),
                "exceeded": report.split('>').next().unwrap().contains("exceeded=\"true\""),
            })
        })
        .collect();
    reports.sort_by_key(|report| (report["metric"].to_string(), report["period"].to_string()));
    reports
}

fn replay(folder: &Path, name: &str) -> (usize, Vec<String>) {
    let data = std::fs::read_to_string(folder.join(format!("{name}.data.json"))).unwrap();
    let mut backend = Backend::new(Dataset::from_recording(&data).unwrap(), 0);
    let calls = std::fs::read_to_string(folder.join(format!("{name}.jsonl"))).unwrap();
    let mut wrong = Vec::new();
    for (line, text) in calls.lines().enumerate() {
        let call: Value = serde_json::from_str(text).unwrap();
        let op = call["op"].as_str().unwrap();
        let query = query(&call);
        let path = format!(
            "/transactions/{}{op}.xml",
            if call["oauth"] == true { "oauth_" } else { "" }
        );
        let request = if op == "report" {
            Request {
                method: "POST",
                path: "/transactions.xml",
                body: query.as_bytes(),
                ..Request::default()
            }
        } else {
            Request {
                method: "GET",
                path: &path,
                query: query.as_bytes(),
                options: Some(
                    b"rejection_reason_header=1&limit_headers=1&hierarchy=1&list_app_keys=1",
                ),
                ..Request::default()
            }
        };
        let answer = backend.handle(&request, call["at"].as_u64().unwrap());
        let body = String::from_utf8(answer.body.clone()).unwrap();
        let limit = |name: &str| {
            answer
                .header(name)
                .map_or(Value::Null, |text| json!(text.parse::<i64>().unwrap()))
        };
        let mut differences = Vec::new();
        let mut check = |what: &str, ours: Value, theirs: &Value| {
            if ours != *theirs {
                differences.push(format!("{what}: {ours} for {theirs}"));
            }
        };
        check("status", json!(answer.status), &call["status"]);
        let reason = answer.header("3scale-rejection-reason");
        check("reason", json!(reason), &call["reason"]);
        check(
            "error",
            json!(between(&body, "<error code=\"", "\"")),
            &call["error"],
        );
        check(
            "remaining",
            limit("3scale-limit-remaining"),
            &call["limit_remaining"],
        );
        check(
            "maximum",
            limit("3scale-limit-max-value"),
            &call["limit_max_value"],
        );
        let reset = limit("3scale-limit-reset");
        let close = match (reset.as_i64(), call["limit_reset"].as_i64()) {
            (Some(ours), Some(theirs)) => (ours - theirs).abs() <= 1,
            (ours, theirs) => ours == theirs,
        };
        if !close {
            check("reset", reset, &call["limit_reset"]);
        }
        if body.contains("<status>") {
            let mut theirs = call["reports"].as_array().cloned().unwrap_or_default();
            theirs
                .sort_by_key(|report| (report["metric"].to_string(), report["period"].to_string()));
            check("reports", json!(reports(&body)), &json!(theirs));
        }
        if !differences.is_empty() {
            wrong.push(format!(
                "{name}:{}: {}\n{text}",
                line + 1,
                differences.join("; ")
            ));
        }
    }
    (calls.lines().count(), wrong)
}

#[test]
fn every_recorded_decision_is_reproduced() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/decisions");
    let mut count = 0;
    let mut wrong = Vec::new();
    for name in ["now", "yearend", "leapday", "afterleap", "monday"] {
        let (calls, differences) = replay(&folder, name);
        count += calls;
        wrong.extend(differences);
    }
    assert_eq!(count, 4_000);
    assert!(
        wrong.is_empty(),
        "{} of {count}:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}
