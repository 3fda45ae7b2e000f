//! Captures sent again, to any backend that holds their data, and the answers held
//! against the captured ones.
//!
//! Apart from [`crate::captures`], which reads them, and from [`crate::server`], which says
//! what a backend is: this is the order, the state that each request needs, and what is
//! compared.
//!
//! Captures form sequences. Each begins without usage, and lies within one minute, because
//! most limits do. Where time cannot be set, a sequence that a minute's end cuts in two is
//! repeated.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use time::PrimitiveDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use tollgate::authorization::Period;

use crate::captures::{Capture, Sent, header};
use crate::document::Document;
use crate::recording::UsageReport;
use crate::server::Server;

/// Families (first letters of names) that begin a sequence; the others follow on.
const FRESH: [char; 7] = ['a', 'd', 'e', 'f', 'g', 'i', 'l'];

/// The moment of family `f` (Unix seconds): its answers do not tell. The report of f06 is
/// too old by 100 seconds then, and that of f07 too new.
const MOMENT_OF_F: i64 = 1_795_294_090;

/// The moment of family `l`, for the same reason: that of the timestamp in l05. A later one
/// would leave usage in a minute to come.
const MOMENT_OF_L: i64 = 1_795_295_097;

/// The first capture that was taken, to the half minute.
const FIRST_MOMENT: i64 = 1_795_294_050;

/// The captures that were taken while the backend's workers were stopped.
const WORKERS_STOPPED: &str = "g01";
const LAST_WITH_WORKERS_STOPPED: &str = "g01-8-worker-stopped";

/// What the captures after those rely on, if they could not be replayed.
const IN_PLACE_OF_G01: (&str, &str) = (
    "g02-after-worker-resumed",
    "service_token=svc-token&service_id=1001&transactions[0][user_key]=limitedkey&transactions[0][usage][hits]=8",
);

/// All hits of the application with the key `allpkey` after a capture, and those of the
/// present minute, counted from the beginning of the sequence (the recorder's notes): what
/// a 202 was worth.
const STORED_HITS: [(&str, u64, u64); 22] = [
    ("d15-double-count", 2, 2),
    ("d16-flat", 3, 3),
    ("d17-flat-child-only", 3, 3),
    ("d18-set", 50, 50),
    ("d19-set-child", 7, 7),
    ("d20-set-zero", 0, 0),
    ("d23-usage-and-log", 1, 1),
    ("f03-dup-b", 2, 2),
    // A timestamp decides the window.
    ("f04-ts-epoch", 3, 2),
    ("f05-ts-iso", 4, 2),
    ("f07-ts-future", 4, 2),
    ("f08-ts-garbage", 5, 3),
    ("f11-bad-value", 5, 3),
    ("f12-app_id-in-v1", 6, 4),
    ("f16-nousage", 6, 4),
    ("f23-charset", 7, 5),
    ("f31-query-creds", 10, 8),
    ("f32-4096-pairs", 2057, 2055),
    ("f34-set", 15, 15),
    ("f36-unnumbered", 16, 16),
    ("f38-multipart", 17, 17),
    ("f39-gap", 19, 19),
];
const ASK_FOR_HITS: &str =
    "/transactions/authorize.xml?service_token=svc-token&service_id=1001&user_key=allpkey";

/// How often a sequence may be cut in two.
const MOST_ATTEMPTS: usize = 5;

/// An answer of a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The headers in their order, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: String,
}

impl Answer {
    /// The first header of that name.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.headers, name)
    }
}

/// Captures that are not replayed, by name, and why: `exclusions.yaml` beside this crate.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exclusions {
    /// Whatever the backend.
    always: BTreeMap<String, String>,
    /// If its workers cannot be stopped and nothing may be left in it.
    against: BTreeMap<String, String>,
}

impl Exclusions {
    /// Reads them.
    ///
    /// # Errors
    /// The file is not of this shape.
    pub fn read() -> Result<Self> {
        serde_yaml::from_str(include_str!("../exclusions.yaml")).context("exclusions.yaml")
    }

    fn of(self, is_ours: bool) -> BTreeMap<String, String> {
        let mut all = self.always;
        if !is_ours {
            all.extend(self.against);
        }
        all
    }
}

/// How closely answers are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closeness {
    /// Every byte, but for the order of an application's keys, which the backend leaves open.
    /// Needs a clock that can be set.
    Bytes,
    /// Status, error code or rejection reason, limit headers, verdict, plan, usage reports,
    /// hierarchy and keys. Windows must be those of the moment of the answer.
    Meaning,
}

/// An answer that is not as captured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The capture.
    pub capture: String,
    /// What is different.
    pub what: String,
}

/// What became of the captures.
#[derive(Debug, Default)]
pub struct Replayed {
    /// How many were replayed.
    pub captures: usize,
    /// Those that were not, and why.
    pub excluded: Vec<(String, String)>,
    /// How many sequences a minute's end had cut in two, so that they were repeated.
    pub repeated: usize,
    /// Answers unlike the captured ones, in order.
    pub differences: Vec<Difference>,
}

/// Replays captures, in their order. `after` is told of each when it has been replayed, and
/// told again if its sequence is.
///
/// # Errors
/// The backend does not answer or does not settle, a capture cannot be read, or an
/// exclusion is of none.
pub async fn replay<S: Server>(
    server: &mut S,
    captures: &[Capture],
    exclusions: Exclusions,
    mut after: impl FnMut(&S, &Capture),
) -> Result<Replayed> {
    let exclusions = exclusions.of(server.is_ours());
    let mut replayed = Replayed::default();
    for name in exclusions.keys() {
        let exists = captures.iter().any(|capture| capture.name == *name);
        ensure!(exists, "exclusions.yaml: there is no capture {name}");
    }
    let mut moment = FIRST_MOMENT;
    let mut rest = captures;
    while let Some(first) = rest.first() {
        let fresh = |capture: &&Capture| {
            let family = |capture: &Capture| capture.name.chars().next();
            family(capture) != family(first)
                && family(capture).is_some_and(|family| FRESH.contains(&family))
        };
        let length = rest.iter().position(|capture| fresh(&capture));
        let (sequence, others) = rest.split_at(length.unwrap_or(rest.len()));
        rest = others;
        let mut attempts = 0;
        let (run, end) = loop {
            server.reset().await?;
            let start = server.clock();
            let run = run(server, sequence, &exclusions, moment, &mut after)
                .await
                .with_context(|| format!("in the sequence that begins with {}", first.name))?;
            if start.map(minute) == server.clock().map(minute) {
                break run;
            }
            attempts += 1;
            replayed.repeated += 1;
            ensure!(
                attempts < MOST_ATTEMPTS,
                "the sequence that begins with {} takes longer than a minute",
                first.name
            );
        };
        moment = end;
        replayed.captures += run.captures;
        replayed.excluded.extend(run.excluded);
        replayed.differences.extend(run.differences);
    }
    Ok(replayed)
}

fn minute(moment: Duration) -> u64 {
    moment.as_secs() / 60
}

/// Replays a sequence that begins at the captured moment `moment`, and returns the moment
/// of its end.
async fn run<S: Server>(
    server: &mut S,
    sequence: &[Capture],
    exclusions: &BTreeMap<String, String>,
    mut moment: i64,
    after: &mut impl FnMut(&S, &Capture),
) -> Result<(Replayed, i64)> {
    let mut replayed = Replayed::default();
    for capture in sequence {
        let name = capture.name.as_str();
        if let Some(reason) = exclusions.get(name) {
            let excluded = (name.to_owned(), reason.clone());
            replayed.excluded.push(excluded);
            continue;
        }
        moment = match name.chars().next() {
            Some('f') => MOMENT_OF_F,
            Some('l') => MOMENT_OF_L,
            _ => capture.moment(moment).context(capture.name.clone())?,
        };
        let now = server.at(moment);
        let differences = one(server, capture, exclusions, now - moment)
            .await
            .with_context(|| name.to_owned())?;
        replayed.captures += 1;
        let differences = differences.into_iter().map(|what| Difference {
            capture: name.to_owned(),
            what,
        });
        replayed.differences.extend(differences);
        after(server, capture);
    }
    Ok((replayed, moment))
}

/// Replays a capture so many seconds after it was taken, and says what is different.
async fn one(
    server: &mut impl Server,
    capture: &Capture,
    exclusions: &BTreeMap<String, String>,
    later: i64,
) -> Result<Vec<String>> {
    let name = capture.name.as_str();
    let (needy, report) = IN_PLACE_OF_G01;
    if name == needy && exclusions.contains_key(LAST_WITH_WORKERS_STOPPED) {
        server.ask(&Sent::report(report)).await?;
        server.settle().await?;
    }
    let workers_stopped = name.starts_with(WORKERS_STOPPED);
    if workers_stopped {
        server.stop_workers(true);
    }
    let sent = at_another_time(&capture.sent, later)?;
    let answer = server.ask(&sent).await?;
    let mut differences = match server.closeness() {
        Closeness::Bytes => by_bytes(&answer, &capture.answer),
        Closeness::Meaning => by_meaning(&answer, &capture.answer, server.clock()),
    };
    if name == LAST_WITH_WORKERS_STOPPED {
        server.stop_workers(false);
    }
    if may_have_counted(&sent, &answer) && (!workers_stopped || name == LAST_WITH_WORKERS_STOPPED) {
        server.settle().await?;
    }
    if let Some((_, all, minute)) = STORED_HITS.iter().find(|(noted, ..)| *noted == name) {
        let answer = server.ask(&Sent::get(ASK_FOR_HITS)).await?;
        let document = Document::read(&answer.body)?;
        let hits = |period: &str| {
            let mut reports = document.reports.iter();
            let of_period = |report: &&UsageReport| report.period == period;
            reports.find(of_period).map(|report| report.current)
        };
        let (stored, noted) = (
            (hits("eternity"), hits("minute")),
            (Some(*all), Some(*minute)),
        );
        if stored != noted {
            differences.push(format!(
                "hits afterwards, all and of the minute: {stored:?} instead of {noted:?}"
            ));
        }
    }
    Ok(differences)
}

/// Whether usage may have been queued.
fn may_have_counted(sent: &Sent, answer: &Answer) -> bool {
    let asked_only = sent.method == "GET" && !sent.target.contains("authrep.xml");
    (200..300).contains(&answer.status) && !asked_only
}

/// The request with its timestamps so many seconds later.
fn at_another_time(sent: &Sent, later: i64) -> Result<Sent> {
    const MARK: &str = "[timestamp]=";
    const FORMAT: &[BorrowedFormatItem<'_>] =
        format_description!("[year]-[month]-[day]+[hour]:[minute]:[second]+%2B0000");
    let mut sent = sent.clone();
    let Ok(body) = std::str::from_utf8(&sent.body) else {
        return Ok(sent);
    };
    if later == 0 || !body.contains(MARK) {
        return Ok(sent);
    }
    let mut parts = body.split(MARK);
    let mut moved = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (time, rest) = part.split_at(part.find('&').unwrap_or(part.len()));
        moved.push_str(MARK);
        if let Ok(seconds) = time.parse::<i64>() {
            moved.push_str(&(seconds + later).to_string());
        } else if let Ok(time) = PrimitiveDateTime::parse(time, FORMAT) {
            let time = time + time::Duration::seconds(later);
            moved.push_str(&time.format(FORMAT)?);
        } else {
            // Captured because it is no time.
            moved.push_str(time);
        }
        moved.push_str(rest);
    }
    sent.body = moved.into_bytes();
    Ok(sent)
}

fn by_bytes(answer: &Answer, captured: &Answer) -> Vec<String> {
    let sorted = |answer: &Answer| Answer {
        body: with_sorted_keys(&answer.body),
        ..answer.clone()
    };
    let (ours, theirs) = (sorted(answer), sorted(captured));
    let same = ours == theirs;
    let difference = || format!("{ours:?}\ninstead of {theirs:?}");
    (!same).then(difference).into_iter().collect()
}

/// The body with the application's keys in alphabetical order.
fn with_sorted_keys(body: &str) -> String {
    let keys = || {
        let start = body.find("<app_keys ")?;
        let start = start + body.get(start..)?.find('>')? + 1;
        body.get(start..body.find("</app_keys>")?)
    };
    let Some(keys) = keys().filter(|keys| !keys.is_empty()) else {
        return body.to_owned();
    };
    let mut sorted: Vec<_> = keys.split_inclusive("/>").collect();
    sorted.sort_unstable();
    body.replace(keys, &sorted.concat())
}

/// How far the backend's clock may be from ours, and how long its answer may travel (seconds).
const CLOCKS_DIFFER: u64 = 2;

fn by_meaning(answer: &Answer, captured: &Answer, clock: Option<Duration>) -> Vec<String> {
    let now = clock.unwrap_or_default().as_secs();
    let mut differences = Vec::new();
    macro_rules! check {
        ($what:expr, $ours:expr, $theirs:expr) => {{
            let (ours, theirs) = ($ours, $theirs);
            if ours != theirs {
                differences.push(format!("{}: {ours:?} instead of {theirs:?}", $what));
            }
        }};
    }
    check!("status", answer.status, captured.status);
    for name in [
        "3scale-rejection-reason",
        "3scale-limit-remaining",
        "3scale-limit-max-value",
    ] {
        check!(name, answer.header(name), captured.header(name));
    }
    let reset =
        |answer: &Answer| -> Option<i64> { answer.header("3scale-limit-reset")?.parse().ok() };
    if let Some(what) = other_reset(reset(answer), reset(captured), now) {
        differences.push(what);
    }
    match (Document::read(&answer.body), Document::read(&captured.body)) {
        (Ok(ours), Ok(theirs)) => {
            check!("error", &ours.error, &theirs.error);
            check!("authorized", &ours.authorized, &theirs.authorized);
            check!("plan", &ours.plan, &theirs.plan);
            check!("usage reports", without_time(&ours), without_time(&theirs));
            check!("hierarchy", &ours.hierarchy, &theirs.hierarchy);
            check!("keys", &ours.keys, &theirs.keys);
            differences.extend(ours.reports.iter().filter_map(|r| other_window(r, now)));
        }
        // What a consumer sent is not escaped in a reason.
        (Err(_), Err(_)) => {}
        (Err(error), Ok(_)) => differences.push(format!("the body is not well-formed: {error}")),
        (Ok(_), Err(_)) => differences.push("the body is well-formed".to_owned()),
    }
    differences
}

/// Usage reports as a set: their order is open. Without their windows' times.
fn without_time(document: &Document) -> Vec<UsageReport> {
    let timeless = document.reports.iter().map(|report| UsageReport {
        start: report.start.as_ref().map(|_| String::new()),
        end: report.end.as_ref().map(|_| String::new()),
        ..report.clone()
    });
    let mut reports: Vec<_> = timeless.collect();
    reports.sort();
    reports
}

/// What is wrong with the window of a report that was made at this moment (Unix seconds).
fn other_window(report: &UsageReport, now: u64) -> Option<String> {
    let period = Period::from_name(report.period.as_bytes())?;
    let (Some(start), Some(end)) = (&report.start, &report.end) else {
        // That there is none is compared with the capture.
        return None;
    };
    let right = |moment: u64| {
        let window = period.window_at(moment);
        let same = |text: &str, seconds| crate::decisions::unix_seconds(text).ok() == Some(seconds);
        same(start, window.start) && same(end, window.end)
    };
    let (before, after) = (now.saturating_sub(CLOCKS_DIFFER), now + CLOCKS_DIFFER);
    (!right(before) && !right(after)).then(|| {
        format!(
            "window: {start} to {end} is not the present {}",
            report.period
        )
    })
}

/// What is wrong with the seconds to the end of a limit's window. The captured ones tell the
/// period: there are minutes and days.
fn other_reset(ours: Option<i64>, theirs: Option<i64>, now: u64) -> Option<String> {
    let period = match theirs {
        None | Some(-1) => {
            return (ours != theirs)
                .then(|| format!("3scale-limit-reset: {ours:?} instead of {theirs:?}"));
        }
        Some(..=60) => Period::Minute,
        Some(_) => Period::Day,
    };
    let left = period.window_at(now).end.saturating_sub(now);
    let close = ours
        .and_then(|ours| u64::try_from(ours).ok())
        .is_some_and(|ours| ours.abs_diff(left) <= CLOCKS_DIFFER);
    (!close).then(|| {
        let period = period.name();
        format!("3scale-limit-reset: {ours:?} when {left} seconds of the {period} are left")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::captures::folder;

    /// 2026-11-21 20:48:03 UTC, when d01-6 was captured.
    const THEN: Duration = Duration::from_secs(1_795_294_083);

    fn capture(name: &str) -> Capture {
        let captures = Capture::read_all(&folder()).unwrap();
        let found = captures.into_iter().find(|capture| capture.name == name);
        found.unwrap()
    }

    fn differences(change: impl FnOnce(&mut Answer)) -> Vec<String> {
        let captured = capture("d10-child-propagates").answer;
        let mut answer = captured.clone();
        change(&mut answer);
        by_meaning(&answer, &captured, Some(THEN))
    }

    fn replaced(answer: &mut Answer, from: &str, to: &str) {
        assert!(answer.body.contains(from), "{}", answer.body);
        answer.body = answer.body.replacen(from, to, 1);
    }

    #[test]
    fn an_answer_like_the_captured_one_has_no_difference_in_whatever_order() {
        assert_eq!(differences(|_| {}), [""; 0]);
        let captured = capture("e03-list_app_keys").answer;
        let mut answer = captured.clone();
        replaced(
            &mut answer,
            r#"<key id="k3"/><key id="k1"/>"#,
            r#"<key id="k1"/><key id="k3"/>"#,
        );
        assert_ne!(answer, captured);
        assert_eq!(by_bytes(&answer, &captured), [""; 0]);
        answer.body.push(' ');
        assert_eq!(by_bytes(&answer, &captured).len(), 1);
    }

    #[test]
    fn every_part_of_an_answer_is_compared() {
        let header = |answer: &mut Answer, name: &str, value: &str| {
            let header = answer.headers.iter_mut().find(|(other, _)| other == name);
            value.clone_into(&mut header.unwrap().1);
        };
        type Change<'a> = &'a dyn Fn(&mut Answer);
        let changes: [(&str, Change<'_>); 12] = [
            ("status", &|answer| answer.status = 409),
            ("3scale-limit-remaining", &|answer| {
                header(answer, "3scale-limit-remaining", "1")
            }),
            ("3scale-limit-max-value", &|answer| {
                header(answer, "3scale-limit-max-value", "4")
            }),
            ("3scale-limit-reset", &|answer| {
                header(answer, "3scale-limit-reset", "31")
            }),
            ("3scale-limit-reset", &|answer| {
                header(answer, "3scale-limit-reset", "-1")
            }),
            ("3scale-rejection-reason", &|answer| {
                let reason = (
                    "3scale-rejection-reason".to_owned(),
                    "limits_exceeded".to_owned(),
                );
                answer.headers.push(reason);
            }),
            ("authorized", &|answer| {
                replaced(answer, ">true<", ">false<")
            }),
            ("plan", &|answer| {
                replaced(answer, "Plan multi", "Plan other")
            }),
            ("usage reports", &|answer| {
                replaced(answer, "<current_value>2<", "<current_value>3<");
            }),
            ("usage reports", &|answer| {
                replaced(answer, "period=\"day\"", "period=\"day\" exceeded=\"true\"");
            }),
            ("hierarchy", &|answer| {
                replaced(answer, "orders_vip", "other")
            }),
            ("window", &|answer| replaced(answer, "20:49:00", "20:50:00")),
        ];
        for (what, change) in changes {
            let found = differences(change);
            assert_eq!(found.len(), 1, "{what}: {found:?}");
            assert!(found[0].starts_with(&format!("{what}:")), "{found:?}");
        }
        let captured = capture("a09-user_key-invalid").answer;
        let mut answer = captured.clone();
        replaced(&mut answer, "user_key_invalid", "service_token_invalid");
        assert_eq!(by_meaning(&answer, &captured, Some(THEN)).len(), 1);
    }

    #[test]
    fn a_reason_that_is_no_xml_is_not_held_against_a_backend() {
        let captured = capture("b15-xml-injection").answer;
        assert_eq!(by_meaning(&captured, &captured, Some(THEN)), [""; 0]);
        let other = capture("b02-key-missing").answer;
        let found = by_meaning(&other, &captured, Some(THEN));
        assert_eq!(found, ["the body is well-formed"]);
    }

    #[test]
    fn timestamps_move_with_the_time_and_what_is_none_stays() {
        let moved = |name: &str| {
            let sent = at_another_time(&capture(name).sent, 86_400 + 1).unwrap();
            String::from_utf8(sent.body).unwrap()
        };
        assert!(moved("f04-ts-epoch").ends_with("[timestamp]=1795376891"));
        assert!(moved("f05-ts-iso").ends_with("[timestamp]=2026-11-22+20:47:11+%2B0000"));
        assert!(moved("f08-ts-garbage").ends_with("[timestamp]=garbage"));
        assert!(moved("f06-ts-old").contains("[timestamp]=1795293991&transactions[1]"));
    }
}
