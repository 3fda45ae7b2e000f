//! Replays what was captured from the real backend (`tests/data/captures/`)
//! against the state machine, in the order in which it was captured, and holds
//! every answer against the captured one: status, headers and body, byte for
//! byte but for the order of application keys, which the backend leaves open.
//!
//! Captures carry no time, so the clock is set by what their answers say of it:
//! the minute of a usage report, and the seconds to its end.

use service_management::{Backend, Dataset, Period, Request};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Captures that cannot be replayed, and why.
const EXCLUDED: [(&str, &str); 3] = [
    (
        "g04-redis-frozen",
        "the backend's store was stopped; stand-in faults do that",
    ),
    (
        "g05-status-redis-frozen",
        "follows the same stop; a39 is the same call",
    ),
    (
        "i17-internal-noauth",
        "the internal API is not part of the protocol",
    ),
];

/// Families recorded after the backend's usage had been removed.
const RESET_BEFORE: [char; 3] = ['g', 'i', 'l'];

/// What all of `allp`'s hits came to after a report (the recorder's notes).
const STORED_HITS: [(&str, u64); 22] = [
    ("d15-double-count", 2),
    ("d16-flat", 3),
    ("d17-flat-child-only", 3),
    ("d18-set", 50),
    ("d19-set-child", 7),
    ("d20-set-zero", 0),
    ("d23-usage-and-log", 1),
    ("f03-dup-b", 3),
    ("f04-ts-epoch", 4),
    ("f05-ts-iso", 5),
    ("f07-ts-future", 5),
    ("f08-ts-garbage", 6),
    ("f11-bad-value", 6),
    ("f12-app_id-in-v1", 7),
    ("f16-nousage", 7),
    ("f23-charset", 8),
    ("f31-query-creds", 11),
    ("f32-4096-pairs", 2058),
    ("f34-set", 15),
    ("f36-unnumbered", 16),
    ("f38-multipart", 17),
    ("f39-gap", 19),
];

/// Integration errors that reports left, in order.
const ERRORS_OF_REPORTS: [&str; 7] = [
    "transaction_timestamp_too_old",
    "transaction_timestamp_too_new",
    "metric_invalid",
    "user_key_invalid",
    "usage_value_invalid",
    "authentication_error",
    "application_not_found",
];

struct Capture {
    name: String,
    method: String,
    target: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    status: u16,
    answer_headers: Vec<(String, String)>,
    answer_body: String,
}

impl Capture {
    fn read(path: &Path) -> Self {
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let text = std::fs::read_to_string(path).unwrap();
        let (request, answer) = text.split_once("\n<<<<\n").unwrap();
        let (head, body) = request.split_once("\r\n\r\n").unwrap_or((request, ""));
        let mut lines = head.split("\r\n");
        let mut first = lines.next().unwrap().split(' ');
        let method = first.next().unwrap().to_owned();
        let target = first.next().unwrap().to_owned();
        let headers = headers(lines);
        let length = header(&headers, "content-length").map_or(0, |text| text.parse().unwrap());
        let body = restore(body, length);
        let (head, answer_body) = answer.split_once("\r\n\r\n").unwrap();
        let mut lines = head.split("\r\n");
        let status = lines.next().unwrap().split(' ').nth(1).unwrap();
        Self {
            name,
            method,
            target: restore_target(&target),
            headers,
            body,
            status: status.parse().unwrap(),
            answer_headers: self::headers(lines),
            // The line break is the file's own.
            answer_body: answer_body.strip_suffix('\n').unwrap().to_owned(),
        }
    }

    /// The moment (Unix seconds) that the answer was given at: as far as it
    /// tells, and else as close as can be to that of the capture before.
    fn moment(&self, before: i64) -> i64 {
        let starts = self.answer_body.split("<usage_report ").skip(1);
        let minute = starts
            .filter(|report| report.contains("period=\"minute\""))
            .find_map(|report| between(report, "<period_start>", "</period_start>"))
            .map_or(before - before % 60, unix);
        let reset = header(&self.answer_headers, "3scale-limit-reset");
        match reset.map(|text| text.parse::<i64>().unwrap()) {
            Some(reset @ 1..=60) => minute + 60 - reset,
            // Of limits that end later than the minute there are only those of a day.
            Some(reset) if reset > 60 => minute - minute % 86_400 + 86_400 - reset,
            _ => before.max(minute),
        }
    }
}

fn headers<'a>(lines: impl Iterator<Item = &'a str>) -> Vec<(String, String)> {
    lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_lowercase(), value.trim().to_owned()))
        .collect()
}

fn header<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    let mut headers = headers.iter();
    headers
        .find(|(other, _)| other == name)
        .map(|(_, value)| value.as_str())
}

fn between<'a>(text: &'a str, start: &str, end: &str) -> Option<&'a str> {
    Some(text.split_once(start)?.1.split_once(end)?.0)
}

fn unix(text: &str) -> i64 {
    let format = time::macros::format_description!(
        "[year]-[month]-[day] [hour]:[minute]:[second] [offset_hour sign:mandatory][offset_minute]"
    );
    time::OffsetDateTime::parse(text, format)
        .unwrap()
        .unix_timestamp()
}

/// Long bodies were shortened when they were written down: `start...[N bytes]`.
fn restore(body: &str, length: usize) -> Vec<u8> {
    let Some((start, _)) = body.split_once("...[") else {
        // The file has a line break of its own after the body.
        return body
            .as_bytes()
            .get(..length)
            .unwrap_or(body.as_bytes())
            .to_vec();
    };
    if start.ends_with('y') {
        let mut body = start.as_bytes().to_vec();
        body.resize(length, b'y');
        return body;
    }
    let mut body = "service_token=svc-token&service_id=1001".to_owned();
    for index in 0.. {
        if body.len() >= length {
            break;
        }
        body.push_str(&format!(
            "&transactions[{index}][user_key]=allpkey&transactions[{index}][usage][hits]=1"
        ));
    }
    assert_eq!(body.len(), length, "the body is not what was captured");
    body.into_bytes()
}

fn restore_target(target: &str) -> String {
    let Some((start, rest)) = target.split_once("...[") else {
        return target.to_owned();
    };
    let request: usize = rest.parse().unwrap();
    let others = "GET  HTTP/1.1\r\nHost: backend.local\r\n\r\n".len();
    format!("{start}{}", "y".repeat(request - others - start.len()))
}

/// The body with the application keys in alphabetical order.
fn with_sorted_keys(body: &str) -> String {
    let Some(keys) = between(body, "\">", "</app_keys>").and_then(|_| {
        let start = body.find("<app_keys ")?;
        let start = start + body.get(start..)?.find('>')? + 1;
        body.get(start..body.find("</app_keys>")?)
    }) else {
        return body.to_owned();
    };
    let mut sorted: Vec<_> = keys.split_inclusive("/>").collect();
    sorted.sort_unstable();
    body.replace(keys, &sorted.concat())
}

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data")
}

fn captures() -> Vec<Capture> {
    let mut paths: Vec<_> = std::fs::read_dir(data().join("captures"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "http")
        })
        .collect();
    paths.sort();
    paths.iter().map(|path| Capture::read(path)).collect()
}

#[test]
fn every_capture_is_answered_as_the_real_backend_did() {
    let dataset = std::fs::read_to_string(data().join("dataset.yaml")).unwrap();
    // Nothing is applied but when this test says so.
    let mut backend = Backend::new(Dataset::from_yaml(&dataset).unwrap(), 86_400_000);
    let mut unused: BTreeSet<_> = EXCLUDED.iter().map(|(name, _)| *name).collect();
    let mut stored: Vec<_> = STORED_HITS.to_vec();
    let (mut replayed, mut excluded) = (0, 0);
    let mut wrong = Vec::new();
    let mut family = 'a';
    let mut now = unix("2026-11-21 20:47:30 +0000");
    for capture in captures() {
        let name = capture.name.as_str();
        if unused.remove(name) {
            excluded += 1;
            continue;
        }
        let first = name.chars().next().unwrap();
        if first != family && RESET_BEFORE.contains(&first) {
            backend.reset();
        }
        if first == 'f' && family != 'f' {
            backend.reset_errors();
        }
        family = first;
        // The report of f06 is too old by 100 seconds, that of f07 too new.
        now = if first == 'f' {
            1_795_294_090
        } else {
            capture.moment(now)
        };
        let (path, query) = capture
            .target
            .split_once('?')
            .unwrap_or((&capture.target, ""));
        let answer = backend.handle(
            &Request {
                method: &capture.method,
                path,
                query: query.as_bytes(),
                content_type: header(&capture.headers, "content-type"),
                options: header(&capture.headers, "3scale-options").map(str::as_bytes),
                body: &capture.body,
            },
            u64::try_from(now * 1_000).unwrap(),
        );
        // The workers were stopped for g01.
        if !name.starts_with("g01") || name.starts_with("g01-8") {
            backend.catch_up(u64::try_from(now * 1_000).unwrap());
        }
        replayed += 1;

        let answer_headers: Vec<_> = answer
            .headers
            .iter()
            .map(|(name, value)| ((*name).to_owned(), value.clone()))
            .collect();
        let body = String::from_utf8(answer.body).unwrap();
        if answer.status != capture.status
            || answer_headers != capture.answer_headers
            || with_sorted_keys(&body) != with_sorted_keys(&capture.answer_body)
        {
            wrong.push(format!(
                "{name}: {} {answer_headers:?}\n{body}\nthe real backend: {} {:?}\n{}\n",
                answer.status, capture.status, capture.answer_headers, capture.answer_body
            ));
        }
        if let Some(at) = stored.iter().position(|(other, _)| *other == name) {
            let (_, hits) = stored.remove(at);
            assert_eq!(
                backend.usage().total("1001", "allp", "hits"),
                hits,
                "after {name}"
            );
        }
        if name == "f41-bad-utf8" {
            let codes: Vec<_> = backend.errors().services["1001"]
                .iter()
                .rev()
                .map(|error| error.code)
                .collect();
            assert_eq!(codes, ERRORS_OF_REPORTS);
        }
        if name == "f04-ts-epoch" {
            let minute =
                backend
                    .usage()
                    .value("1001", "allp", "hits", Period::Minute, 1_795_290_490);
            assert_eq!(minute, 1, "a timestamp decides the window");
        }
    }
    println!("{replayed} captures replayed, {excluded} excluded");
    assert!(
        wrong.is_empty(),
        "{} wrong:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    assert!(unused.is_empty(), "excluded, but not captured: {unused:?}");
    assert!(stored.is_empty(), "no such capture: {stored:?}");
    assert_eq!((replayed, excluded), (228, 3));
}
