//! A recording replayed: against the stand-in, and against the filter.
//!
//! Apart from both because it says when the two may differ. For the filter,
//!
//! - an `authrep` is a request with that credential and usage at that moment: it must be
//!   admitted if and only if the backend said 200, and refused for the reason the backend
//!   gave, until the end of the last window that has no room by the backend's reports;
//! - an `authorize` is the same question, put to a copy of the gateway, for it counts nothing;
//! - a `report` is somebody else's usage, which the gateway sees when it asks again.
//!
//! After each call, the gateway must know every limit of the application as the backend
//! reported it: window, maximum and usage. At the end, the usage that it has reported must
//! be what the backend counted.
//!
//! A difference does not spread: the gateway is set back to what the backend decided.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use anyhow::{Context, Result};
use service_management::Backend;
use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use tollgate::authorization::{Limit, Refusal};
use tollgate::mapping::{Metrics, Usage};
use tollgate::service_management::Denial;

use crate::gateway::{Consumer, Decision, Gateway};
use crate::recording::{Call, Operation, Recording, UsageReport};
use crate::stand_in;

/// Applications that a gateway of a replay has room for: more than any recording has.
const CAPACITY: u32 = 1_024;

/// Where the filter is not the backend, by design.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ByDesign {
    /// The usage names a metric that the service does not have. The backend refuses every
    /// such call; for the filter it is its own misconfiguration, not a decision about a
    /// request. Not put to the filter: its configuration here has the service's metrics.
    UnknownMetric,
    /// The request costs nothing at all, and some limit of the plan has been overrun by
    /// somebody else's reports. The backend then refuses, whatever metric is meant. To the
    /// filter, what costs nothing cannot be too much.
    NoUsage,
    /// The usage names a metric with a delta of 0, and a limit on it or on an ancestor
    /// has been overrun by somebody else's reports. The backend looks at that limit; no
    /// mapping rule of the filter has a delta of 0.
    ZeroDelta,
    /// The application is suspended, and the key that is shown is none of its own. Both refuse:
    /// the backend because of the key, which it looks at first; the filter because of the
    /// suspension, for it does not keep the keys of an application that is denied.
    SuspendedWithWrongKey,
}

impl fmt::Display for ByDesign {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::UnknownMetric => "the usage names an unknown metric (not put to the filter)",
            Self::NoUsage => "a request without usage, when a limit is overrun",
            Self::ZeroDelta => "a delta of 0 on a limit that is overrun",
            Self::SuspendedWithWrongKey => {
                "a suspended application with a wrong key, refused for the other reason"
            }
        })
    }
}

/// Whose answer differs from the recorded one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// The stand-in for the backend.
    StandIn,
    /// The filter.
    Filter,
}

impl fmt::Display for Who {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::StandIn => "stand-in",
            Self::Filter => "filter",
        })
    }
}

/// A difference that nothing explains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The line of the call, from 1.
    pub line: usize,
    /// Whose answer it is.
    pub who: Who,
    /// What is different.
    pub what: String,
}

/// What became of a recording.
#[derive(Debug, Default)]
pub struct Replayed {
    /// Calls put to the stand-in.
    pub calls: usize,
    /// Calls put to the filter as requests.
    pub requests: usize,
    /// Of these, how many were by `app_id`.
    pub by_app_id: usize,
    /// How many it decided as the backend did.
    pub as_recorded: usize,
    /// How many it decided otherwise by design, and how many were not put to it.
    pub by_design: BTreeMap<ByDesign, usize>,
    /// How often a limit of the backend's was found in the gateway as it should be.
    pub limits: usize,
    /// Everything else, in the order of the calls.
    pub differences: Vec<Difference>,
}

/// Replays a recording.
///
/// # Errors
/// The recording has what no recording has: a service that is not in its data, a call without a
/// credential, a question that the stand-in cannot answer. The message names the line.
pub fn replay(recording: &Recording) -> Result<Replayed> {
    replay_with(recording, CAPACITY)
}

/// As [`replay`], with room for so many applications in the gateway.
///
/// # Errors
/// As [`replay`].
pub fn replay_with(recording: &Recording, capacity: u32) -> Result<Replayed> {
    let begin = recording.calls.first().map_or(0, |(_, call)| call.at);
    let backend = || Backend::new(recording.dataset.clone(), 0);
    let mut replay = Replay {
        recording,
        backend: backend(),
        gateway: Gateway::new(&recording.data, backend(), capacity, begin)?,
        replayed: Replayed::default(),
    };
    for (line, call) in &recording.calls {
        replay
            .call(*line, call)
            .with_context(|| format!("{}, line {line}", recording.name))?;
    }
    replay.finish()?;
    Ok(replay.replayed)
}

struct Replay<'a> {
    recording: &'a Recording,
    /// The stand-in that gets every call as it was recorded.
    backend: Backend,
    /// With a stand-in of its own, which gets what the gateway says.
    gateway: Gateway,
    replayed: Replayed,
}

impl Replay<'_> {
    fn call(&mut self, line: usize, call: &Call) -> Result<()> {
        let token = &self.recording.data.service_token;
        let answer = stand_in::put(&mut self.backend, token, call);
        self.replayed.calls += 1;
        for what in stand_in::differences(&answer, call) {
            self.differs(line, Who::StandIn, what);
        }
        self.gateway.advance(call.at)?;
        let consumer = Consumer::of(
            call.user_key.as_deref(),
            call.app_id.as_deref(),
            call.app_key.as_deref(),
        );
        let consumer = consumer.context("a call has a user_key or an app_id")?;
        if call.op == Operation::Report {
            self.foreign(&consumer, call)
        } else {
            self.request(line, &consumer, call)
        }
    }

    /// Somebody else reports this usage.
    fn foreign(&mut self, consumer: &Consumer, call: &Call) -> Result<()> {
        let token = &self.recording.data.service_token;
        let report = Call {
            op: Operation::Report,
            app_key: None,
            ..call.clone()
        };
        let put = |backend: &mut Backend| {
            stand_in::put(backend, token, &report);
        };
        self.gateway
            .meanwhile(&call.service, consumer, put, call.at)
    }

    fn request(&mut self, line: usize, consumer: &Consumer, call: &Call) -> Result<()> {
        let metrics = self.gateway.metrics(&call.service);
        let metrics = metrics.context("no such service")?.clone();
        let judged = Judged::new(call, &metrics);
        if judged.has_unknown_metric && call.error.as_deref() == Some("metric_invalid") {
            self.by_design(ByDesign::UnknownMetric);
            return Ok(());
        }

        let before = self.gateway.state();
        let usage = usage(call, &metrics);
        let decision = self
            .gateway
            .request(&call.service, consumer, &usage, call.at)?;
        let admitted = decision == Decision::Admitted;
        if call.op == Operation::Authorize || (admitted && call.status != 200) {
            self.gateway.restore(before);
        } else if admitted {
            self.gateway.went_on(&call.service, call.at)?;
        } else if call.status == 200 {
            self.foreign(consumer, call)?;
        }

        self.replayed.requests += 1;
        self.replayed.by_app_id += usize::from(matches!(consumer, Consumer::AppId(..)));
        match judged.judge(decision)? {
            Judgement::AsRecorded => self.replayed.as_recorded += 1,
            Judgement::ByDesign(class) => self.by_design(class),
            Judgement::Differs(what) => self.differs(line, Who::Filter, what),
        }
        if call.status == 200 || call.reason.as_deref() == Some("limits_exceeded") {
            self.compare_limits(line, consumer, call)?;
        }
        Ok(())
    }

    /// Holds what the gateway knows of an application's limits against the usage reports
    /// of a call that it has just decided about.
    fn compare_limits(&mut self, line: usize, consumer: &Consumer, call: &Call) -> Result<()> {
        let limits = self.gateway.limits(&call.service, consumer, call.at)?;
        // A question that counted nothing was the first one.
        let Some(limits) = limits else {
            return Ok(());
        };
        let ours: BTreeSet<_> = limits.iter().map(known_of_limit).collect();
        let theirs: BTreeSet<_> = call
            .reports
            .iter()
            .map(known_of_report)
            .collect::<Result<_>>()?;
        self.replayed.limits += ours.intersection(&theirs).count();
        let mut differs = |known: &Known, whose: &str| {
            let what = format!("a limit as only {whose} knows it: {known}");
            self.replayed.differences.push(Difference {
                line,
                who: Who::Filter,
                what,
            });
        };
        for known in ours.difference(&theirs) {
            differs(known, "the filter");
        }
        for known in theirs.difference(&ours) {
            differs(known, "the backend");
        }
        Ok(())
    }

    /// All usage that was admitted has arrived, and counts as the backend counted it.
    fn finish(&mut self) -> Result<()> {
        let Some((line, last)) = self.recording.calls.last() else {
            return Ok(());
        };
        self.gateway.finish(last.at)?;
        if self.gateway.has_unacknowledged()? {
            let what = "usage was admitted and never acknowledged".to_owned();
            self.differs(*line, Who::Filter, what);
        }
        if self.gateway.backend().usage() != self.backend.usage() {
            let what = format!(
                "all usage in the end: {} instead of {}",
                serde_json::to_string(self.gateway.backend().usage())?,
                serde_json::to_string(self.backend.usage())?,
            );
            self.differs(*line, Who::Filter, what);
        }
        Ok(())
    }

    fn by_design(&mut self, class: ByDesign) {
        *self.replayed.by_design.entry(class).or_default() += 1;
    }

    fn differs(&mut self, line: usize, who: Who, what: String) {
        self.replayed
            .differences
            .push(Difference { line, who, what });
    }
}

/// The usage of a call, as far as its metrics exist.
fn usage(call: &Call, metrics: &Metrics) -> Usage {
    let mut usage = Usage::new();
    for (metric, delta) in &call.usage {
        if let Some(metric) = metrics.id(metric) {
            usage.add(metric, *delta);
        }
    }
    usage
}

/// What there is to say about a decision.
enum Judgement {
    AsRecorded,
    ByDesign(ByDesign),
    Differs(String),
}

/// A call by the metrics of its service: what it costs on each metric, ancestors included.
/// A metric that is named with 0 costs 0.
struct Judged<'a> {
    call: &'a Call,
    costs: BTreeMap<&'a str, u64>,
    has_unknown_metric: bool,
}

impl<'a> Judged<'a> {
    fn new(call: &'a Call, metrics: &'a Metrics) -> Self {
        let mut judged = Self {
            call,
            costs: BTreeMap::new(),
            has_unknown_metric: false,
        };
        for (metric, delta) in &call.usage {
            let Some(metric) = metrics.id(metric) else {
                judged.has_unknown_metric = true;
                continue;
            };
            let ancestors = metrics.ancestors(metric).iter().copied();
            for metric in std::iter::once(metric).chain(ancestors) {
                *judged.costs.entry(metrics.name(metric)).or_default() += delta;
            }
        }
        judged
    }

    fn judge(&self, decision: Decision) -> Result<Judgement> {
        let why = self.call.why().unwrap_or("nothing");
        Ok(match (decision, self.call.status == 200) {
            (Decision::Admitted, true) => Judgement::AsRecorded,
            (Decision::Admitted, false) => match self.free_and_overrun() {
                Some(class) => Judgement::ByDesign(class),
                None => Judgement::Differs(format!("admitted; the backend refused: {why}")),
            },
            (Decision::Refused(refusal), true) => {
                Judgement::Differs(format!("refused: {refusal}; the backend said 200"))
            }
            (Decision::Refused(Refusal::Denied(Denial::ApplicationNotActive)), false)
                if self.call.app_id.is_some() && why == Denial::ApplicationKeyInvalid.as_str() =>
            {
                Judgement::ByDesign(ByDesign::SuspendedWithWrongKey)
            }
            (Decision::Refused(refusal), false) => match self.other_reason(refusal)? {
                Some(what) => Judgement::Differs(what),
                None => Judgement::AsRecorded,
            },
        })
    }

    /// The reported limits that have no room for what the call costs on them.
    fn without_room(&self) -> impl Iterator<Item = &'a UsageReport> {
        self.call.reports.iter().filter(|report| {
            let cost = self.costs.get(report.metric.as_str()).copied();
            cost.is_some_and(|cost| cost > 0 && report.current + cost > report.max)
        })
    }

    /// Which rule of the backend's refuses this call that the filter does not have: by the
    /// reports, all limits have room for what it costs, and some are overrun on which it
    /// costs nothing.
    fn free_and_overrun(&self) -> Option<ByDesign> {
        let limited = self.call.reason.as_deref() == Some("limits_exceeded");
        if !limited || self.without_room().next().is_some() {
            return None;
        }
        let mut overrun = self.call.reports.iter().filter(|report| report.exceeded);
        if self.call.usage.is_empty() {
            return overrun.next().map(|_| ByDesign::NoUsage);
        }
        overrun
            .find(|report| self.costs.get(report.metric.as_str()) == Some(&0))
            .map(|_| ByDesign::ZeroDelta)
    }

    /// What is different about the reason for which a request was refused that the
    /// backend refused, too.
    ///
    /// The backend's `limit_reset` is not compared: it is the end of the limit with the
    /// fewest such calls left, metric by metric, and not when there will be room.
    fn other_reason(&self, refusal: Refusal) -> Result<Option<String>> {
        let why = self.call.why().unwrap_or("nothing");
        let ours = match refusal {
            Refusal::Denied(denial) => denial.as_str(),
            Refusal::Limited { .. } | Refusal::Disabled => "limits_exceeded",
            Refusal::Early => "early",
            Refusal::TooManyMetrics => "too_many_metrics",
        };
        if ours != why {
            let what = format!("refused: {refusal}; the backend's reason: {why}");
            return Ok(Some(what));
        }
        if matches!(refusal, Refusal::Denied(_)) {
            return Ok(None);
        }
        let mut by_reports = Refusal::Limited { until: 0 };
        for report in self.without_room() {
            let end = known_of_report(report)?.window.1;
            by_reports = match by_reports {
                _ if report.max == 0 => Refusal::Disabled,
                Refusal::Limited { until } => Refusal::Limited {
                    until: until.max(end),
                },
                disabled => disabled,
            };
        }
        Ok((refusal != by_reports)
            .then(|| format!("refused: {refusal}; by the backend's reports: {by_reports}")))
    }
}

/// What is known of a limit: metric, period, window, maximum, usage.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Known {
    metric: String,
    period: String,
    window: (u64, u64),
    maximum: u64,
    current: u64,
}

impl fmt::Display for Known {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            metric,
            period,
            window: (start, end),
            maximum,
            current,
        } = self;
        write!(
            out,
            "{metric} per {period}, {current} of {maximum}, from {start} to {end}"
        )
    }
}

fn known_of_limit((metric, limit): &(String, Limit)) -> Known {
    Known {
        metric: metric.clone(),
        period: limit.period.name().to_owned(),
        window: (limit.window.start, limit.window.end),
        maximum: limit.maximum,
        current: limit.own + limit.foreign,
    }
}

fn known_of_report(report: &UsageReport) -> Result<Known> {
    let seconds = |time: &Option<String>, otherwise| match time {
        Some(time) => unix_seconds(time),
        None => Ok(otherwise),
    };
    Ok(Known {
        metric: report.metric.clone(),
        period: report.period.clone(),
        window: (seconds(&report.start, 0)?, seconds(&report.end, u64::MAX)?),
        maximum: report.max,
        current: report.current,
    })
}

pub(crate) fn unix_seconds(time: &str) -> Result<u64> {
    const FORMAT: &[BorrowedFormatItem<'_>] = format_description!(
        "[year]-[month]-[day] [hour]:[minute]:[second] [offset_hour sign:mandatory][offset_minute]"
    );
    let moment = OffsetDateTime::parse(time, FORMAT).with_context(|| time.to_owned())?;
    Ok(u64::try_from(moment.unix_timestamp())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use service_management::Dataset;

    /// 2026-12-31 23:59:30 UTC.
    const BEGIN: u64 = 1_798_761_570_000;

    fn data() -> String {
        json!({
            "service_token": "t",
            "services": [
                {
                    "id": "1",
                    "backend_version": "1",
                    "metrics": [
                        {"name": "hits", "parent": null},
                        {"name": "orders", "parent": "hits"},
                        {"name": "ads", "parent": null},
                    ],
                    "plans": {"p": {"hits": {"minute": 5, "year": 9}, "ads": {"eternity": 1}}},
                    "applications": [
                        {"id": "a", "plan": "p", "state": "active", "user_key": "k"},
                        {"id": "s", "plan": "p", "state": "suspended", "user_key": "ks"},
                    ],
                },
                {
                    "id": "2",
                    "backend_version": "2",
                    "metrics": [{"name": "hits", "parent": null}],
                    "plans": {"p": {"hits": {"day": 4}}},
                    "applications": [
                        {"id": "b", "plan": "p", "state": "active", "app_keys": ["x", "y"]},
                    ],
                },
            ],
        })
        .to_string()
    }

    /// Calls so many milliseconds after the beginning, with the answers of a stand-in.
    fn recording(calls: &[(u64, Value)]) -> Recording {
        let dataset = Dataset::from_recording(&data()).unwrap();
        let mut backend = Backend::new(dataset.clone(), 0);
        let calls = calls.iter().map(|(after, call)| {
            let mut call = call.clone();
            call["at"] = json!(BEGIN + after);
            call["status"] = json!(0);
            let call: Call = serde_json::from_value(call).unwrap();
            let answer = stand_in::put(&mut backend, "t", &call);
            stand_in::recorded(&answer, &call)
        });
        Recording {
            name: "test".to_owned(),
            dataset,
            data: serde_json::from_str(&data()).unwrap(),
            calls: (1..).zip(calls).collect(),
        }
    }

    fn call(op: &str, key: &str, usage: Value) -> Value {
        json!({"service": "1", "op": op, "user_key": key, "usage": usage})
    }

    fn pair(op: &str, id: &str, key: Option<&str>, hits: u64) -> Value {
        json!({"service": "2", "op": op, "app_id": id, "app_key": key, "usage": {"hits": hits}})
    }

    fn statuses(recording: &Recording) -> Vec<u16> {
        let calls = recording.calls.iter();
        calls.map(|(_, call)| call.status).collect()
    }

    fn of_filter(replayed: &Replayed) -> Vec<(usize, &str)> {
        let differences = replayed.differences.iter();
        differences
            .filter(|difference| difference.who == Who::Filter)
            .map(|difference| (difference.line, difference.what.as_str()))
            .collect()
    }

    #[test]
    fn requests_reports_and_the_turn_of_the_year_are_followed() {
        let recording = recording(&[
            (0, call("authrep", "k", json!({"orders": 3}))),
            (1, call("authorize", "k", json!({"orders": 2}))),
            (2, call("authorize", "k", json!({"orders": 2}))),
            (3, call("report", "k", json!({"hits": 1}))),
            (4, call("authrep", "k", json!({"hits": 2}))),
            (5, call("authrep", "ks", json!({"hits": 1}))),
            (6, call("authrep", "nobody", json!({"hits": 1}))),
            (29_999, call("authrep", "k", json!({"hits": 1, "ads": 1}))),
            (30_000, call("authrep", "k", json!({"hits": 5}))),
            (30_001, call("authrep", "k", json!({"ads": 1}))),
            // After the usage of the old year was reported in the new one.
            (40_000, call("report", "k", json!({"hits": 1}))),
            (40_001, call("authorize", "k", json!({"hits": 1}))),
            (90_000, call("authrep", "k", json!({"hits": 5}))),
        ]);
        assert_eq!(
            statuses(&recording),
            [
                200, 200, 200, 202, 409, 409, 403, 200, 200, 409, 202, 409, 409
            ]
        );
        let replayed = replay(&recording).unwrap();
        assert_eq!(replayed.differences, []);
        assert_eq!((replayed.requests, replayed.as_recorded), (11, 11));
        assert!(replayed.limits >= 15, "{replayed:?}");
    }

    #[test]
    fn the_keys_of_an_application_share_its_limits() {
        let recording = recording(&[
            (0, pair("authrep", "b", Some("x"), 1)),
            (1, pair("authrep", "b", Some("y"), 2)),
            (2, pair("report", "b", None, 1)),
            (3, pair("authrep", "b", Some("x"), 1)),
            (4, pair("authrep", "b", Some("z"), 1)),
            (5, pair("authrep", "b", None, 1)),
            (6, pair("authrep", "c", Some("x"), 1)),
        ]);
        assert_eq!(statuses(&recording), [200, 200, 202, 409, 409, 409, 404]);
        let replayed = replay(&recording).unwrap();
        assert_eq!(replayed.differences, []);
        assert_eq!((replayed.as_recorded, replayed.by_app_id), (6, 6));
    }

    #[test]
    fn what_the_backend_should_have_refused_is_a_difference_and_is_taken_back() {
        let mut recording = recording(&[
            (0, call("authrep", "k", json!({"hits": 2}))),
            (1, call("authrep", "k", json!({"hits": 3}))),
        ]);
        let refused = &mut recording.calls[0].1;
        refused.status = 409;
        refused.reason = Some("application_not_active".to_owned());
        let replayed = replay(&recording).unwrap();
        let found = of_filter(&replayed);
        assert_eq!(
            found[0],
            (1, "admitted; the backend refused: application_not_active")
        );
        // The second request fits although the first was admitted; the counts tell.
        assert_eq!(replayed.as_recorded, 1);
        assert!(found.last().unwrap().1.starts_with("all usage in the end"));
    }

    #[test]
    fn what_the_backend_should_have_allowed_is_a_difference() {
        let mut recording = recording(&[(0, call("authrep", "k", json!({"hits": 6})))]);
        recording.calls[0].1.status = 200;
        let replayed = replay(&recording).unwrap();
        let [(1, what), ..] = of_filter(&replayed)[..] else {
            panic!("{replayed:?}");
        };
        assert!(what.ends_with("the backend said 200"), "{what}");
    }

    #[test]
    fn another_reason_is_a_difference() {
        let mut recording = recording(&[(0, call("authrep", "ks", json!({"hits": 1})))]);
        recording.calls[0].1.reason = Some("application_key_invalid".to_owned());
        let replayed = replay(&recording).unwrap();
        assert_eq!(of_filter(&replayed).len(), 1);
        assert_eq!(replayed.as_recorded, 0);
    }

    #[test]
    fn another_end_of_a_refusal_is_a_difference() {
        // In the new year, whose end is not that of the minute.
        let mut recording = recording(&[(30_000, call("authrep", "k", json!({"hits": 6})))]);
        let reports = &mut recording.calls[0].1.reports;
        reports.retain(|report| report.period == "year");
        reports[0].current = 4;
        let replayed = replay(&recording).unwrap();
        assert!(
            of_filter(&replayed)[0]
                .1
                .contains("by the backend's reports")
        );
    }

    #[test]
    fn a_limit_that_is_known_otherwise_is_a_difference() {
        let mut recording = recording(&[(0, call("authrep", "k", json!({"hits": 1})))]);
        recording.calls[0].1.reports[0].current += 1;
        let replayed = replay(&recording).unwrap();
        let found = of_filter(&replayed);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(
            found[0]
                .1
                .starts_with("a limit as only the filter knows it")
        );
        assert!(
            found[1]
                .1
                .starts_with("a limit as only the backend knows it")
        );
    }

    #[test]
    fn what_differs_by_design_is_counted_by_its_class() {
        let recording = recording(&[
            (0, call("report", "k", json!({"hits": 6}))),
            (1, call("authrep", "k", json!({}))),
            (2, call("authrep", "k", json!({"orders": 0}))),
            (3, call("authorize", "k", json!({"orders": 0, "ads": 1}))),
            (4, call("authrep", "k", json!({"ads": 1, "nothing": 1}))),
        ]);
        assert_eq!(statuses(&recording), [202, 409, 409, 409, 404]);
        let replayed = replay(&recording).unwrap();
        assert_eq!(replayed.differences, []);
        let classes = [
            (ByDesign::UnknownMetric, 1),
            (ByDesign::NoUsage, 1),
            (ByDesign::ZeroDelta, 2),
        ];
        assert_eq!(replayed.by_design, BTreeMap::from(classes));
        assert_eq!((replayed.requests, replayed.as_recorded), (3, 0));
    }

    #[test]
    fn no_class_excuses_a_request_for_which_a_limit_has_no_room() {
        let recording = recording(&[
            (0, call("report", "k", json!({"hits": 6, "ads": 1}))),
            (1, call("authrep", "k", json!({"orders": 0, "ads": 1}))),
        ]);
        let (_, call) = &recording.calls[1];
        let metrics = ["hits", "orders", "ads"].map(|name| {
            let parent = (name == "orders").then(|| "hits".to_owned());
            (name.to_owned(), parent)
        });
        let metrics = Metrics::new(metrics).unwrap();
        let judgement = Judged::new(call, &metrics).judge(Decision::Admitted);
        assert!(matches!(judgement, Ok(Judgement::Differs(_))));
    }
}
