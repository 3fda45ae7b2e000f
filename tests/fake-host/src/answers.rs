//! What comes back on a call: Envoy's synthetic replies and the answers of service
//! management, and the reading of reports. Apart because it is the only part that
//! knows that the guest is an API gateway.

use std::collections::BTreeMap;
use std::fmt::Write;

use time::{Date, Duration, Month, OffsetDateTime, Time};

use crate::vm::Call;
use crate::wire::Pairs;

/// An answer to a call.
#[derive(Clone, Debug)]
pub struct Answer {
    headers: Pairs,
    body: Vec<u8>,
}

impl Answer {
    /// An answer from upstream: status, no body.
    pub fn status(status: u16) -> Self {
        Self::synthetic(status, "").header("x-envoy-upstream-service-time", "1")
    }

    fn synthetic(status: u16, body: &str) -> Self {
        Self {
            headers: vec![(b":status".to_vec(), status.to_string().into_bytes())],
            body: body.into(),
        }
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.headers.push((name.into(), value.as_ref().into()));
        self
    }

    /// Sets the body.
    #[must_use]
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    pub(crate) fn into_parts(self) -> (Pairs, Vec<u8>) {
        (self.headers, self.body)
    }
}

/// Why Envoy itself answers a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Nothing listens: 503. Surely not delivered.
    ConnectionRefused,
    /// The connection could not be made in time: 503. Surely not delivered.
    ConnectionTimeout,
    /// The cluster has no host that is healthy: 503. Surely not delivered.
    NoHealthyUpstream,
    /// The cluster's circuit breaker is open: 503. Surely not delivered.
    Overflow,
    /// The connection broke after the request was sent: 503. Perhaps delivered.
    ConnectionTermination,
    /// The call's timeout: 504. Perhaps delivered.
    Timeout,
    /// The call's stream was reset within Envoy: no headers at all. Perhaps delivered.
    Reset,
}

impl From<Failure> for Answer {
    /// The replies that Envoy makes up, with the reason in the body; as Envoy 1.40 gave
    /// them on plain TCP. Over TLS the reason of a failed handshake follows.
    fn from(failure: Failure) -> Self {
        let reset = "upstream connect error or disconnect/reset before headers. reset reason: ";
        let (status, body) = match failure {
            Failure::ConnectionRefused => (503, format!("{reset}remote connection failure")),
            Failure::ConnectionTimeout => (503, format!("{reset}connection timeout")),
            Failure::NoHealthyUpstream => (503, "no healthy upstream".to_owned()),
            Failure::Overflow => (503, format!("{reset}overflow")),
            Failure::ConnectionTermination => (503, format!("{reset}connection termination")),
            Failure::Timeout => (504, "upstream request timeout".to_owned()),
            Failure::Reset => {
                return Self {
                    headers: Vec::new(),
                    body: Vec::new(),
                };
            }
        };
        let answer = Self::synthetic(status, &body)
            .header("content-length", body.len().to_string())
            .header("content-type", "text/plain");
        match failure {
            Failure::Overflow => answer.header("x-envoy-overloaded", "true"),
            _ => answer,
        }
    }
}

/// 202: the report was taken.
pub fn accepted() -> Answer {
    service_management(202)
}

/// An `<error>` with its code: 403 `user_key_invalid`, 404 `application_not_found` and so on.
pub fn error(status: u16, code: &str) -> Answer {
    let error = format!(r#"{DECLARATION}<error code="{code}">{code} as a sentence</error>"#);
    service_management(status).body(error)
}

/// What service management says to a question with usage of an application that it
/// authorizes, if the service has these metrics: 404 with the name of the first other one.
/// `None`: the question has no usage.
pub fn with_usage(call: &Call, has: impl Fn(&str) -> bool, wall_ms: u64) -> Option<Answer> {
    let metrics = metrics_of(call);
    let unknown = metrics.iter().find(|metric| !has(metric));
    let text = |metric| {
        let code = r#"<error code="metric_invalid">"#;
        format!(r#"{DECLARATION}{code}metric "{metric}" is invalid</error>"#)
    };
    match unknown {
        Some(metric) => Some(service_management(404).body(text(metric))),
        None if metrics.is_empty() => None,
        None => Some(authorized().at(wall_ms)),
    }
}

/// The metrics in the usage of a question, in order.
pub fn metrics_of(call: &Call) -> Vec<String> {
    let (_, query) = call.path().split_once('?').unwrap_or_default();
    form_urlencoded::parse(query.as_bytes())
        .filter_map(|(name, _)| {
            let metric = name.strip_prefix("usage[")?.strip_suffix(']')?;
            Some(metric.to_owned())
        })
        .collect()
}

/// 200: the application is authorized.
pub fn authorized() -> Authorization {
    Authorization {
        reason: None,
        limits: Vec::new(),
        keys: None,
        hierarchy: Vec::new(),
    }
}

/// 409: the application is denied, for a reason code such as `application_not_active`.
pub fn denied(reason: &str) -> Authorization {
    Authorization {
        reason: Some(reason.to_owned()),
        ..authorized()
    }
}

const DECLARATION: &str = r#"<?xml version="1.0" encoding="UTF-8"?>"#;

fn service_management(status: u16) -> Answer {
    Answer::status(status).header("content-type", "application/vnd.3scale-v2.0+xml")
}

/// A `<status>` answer that is being put together; [`Authorization::at`] finishes it.
#[derive(Clone, Debug)]
#[must_use = "finished with at()"]
pub struct Authorization {
    reason: Option<String>,
    limits: Vec<(String, String, u64, u64)>,
    keys: Option<Vec<String>>,
    hierarchy: Vec<(String, String)>,
}

impl Authorization {
    /// Adds a usage report: a metric, a period such as `minute`, the limit and what is used.
    pub fn limit(mut self, metric: &str, period: &str, maximum: u64, current: u64) -> Self {
        self.limits
            .push((metric.into(), period.into(), maximum, current));
        self
    }

    /// Adds one of the application's keys.
    pub fn key(mut self, key: &str) -> Self {
        self.keys.get_or_insert_default().push(key.into());
        self
    }

    /// Lists the application's keys, of which there are none unless they are added.
    pub fn list_keys(mut self) -> Self {
        self.keys.get_or_insert_default();
        self
    }

    /// Adds a metric to the hierarchy, with its methods separated by spaces.
    pub fn hierarchy(mut self, metric: &str, children: &str) -> Self {
        self.hierarchy.push((metric.into(), children.into()));
        self
    }

    /// The answer as given at `wall_ms`, milliseconds since 1970: usage reports name the
    /// windows that are open then.
    ///
    /// Panics on a period that service management does not have.
    pub fn at(self, wall_ms: u64) -> Answer {
        let mut xml = format!(
            "{DECLARATION}<status><authorized>{}</authorized>",
            self.reason.is_none()
        );
        if let Some(reason) = &self.reason {
            let _ = write!(xml, "<reason>{reason} as a sentence</reason>");
        }
        xml.push_str("<plan>Basic</plan>");
        if !self.limits.is_empty() {
            xml.push_str("<usage_reports>");
            for (metric, period, maximum, current) in &self.limits {
                let exceeded = if current > maximum {
                    r#" exceeded="true""#
                } else {
                    ""
                };
                let window = match window(period, wall_ms) {
                    Some((start, end)) => format!(
                        "<period_start>{start}</period_start><period_end>{end}</period_end>"
                    ),
                    None => String::new(),
                };
                let _ = write!(
                    xml,
                    r#"<usage_report metric="{metric}" period="{period}"{exceeded}>{window}<max_value>{maximum}</max_value><current_value>{current}</current_value></usage_report>"#
                );
            }
            xml.push_str("</usage_reports>");
        }
        if let Some(keys) = &self.keys {
            xml.push_str(r#"<app_keys app="app" svc="1001">"#);
            for key in keys {
                let _ = write!(xml, r#"<key id="{key}"/>"#);
            }
            xml.push_str("</app_keys>");
        }
        if !self.hierarchy.is_empty() {
            xml.push_str("<hierarchy>");
            for (metric, children) in &self.hierarchy {
                let _ = write!(xml, r#"<metric name="{metric}" children="{children}"/>"#);
            }
            xml.push_str("</hierarchy>");
        }
        xml.push_str("</status>");
        let answer = match &self.reason {
            Some(reason) => service_management(409).header("3scale-rejection-reason", reason),
            None => service_management(200),
        };
        answer.body(xml)
    }
}

/// Start and end of the window that is open at `wall_ms`, as the backend writes times.
/// Eternity has none.
fn window(period: &str, wall_ms: u64) -> Option<(String, String)> {
    let seconds = i64::try_from(wall_ms / 1000).expect("a date");
    let now = OffsetDateTime::from_unix_timestamp(seconds).expect("a date");
    let date = now.date();
    let hour = now.replace_time(Time::from_hms(now.hour(), 0, 0).expect("an hour"));
    let midnight = |date: Date| date.midnight().assume_utc();
    let first = |year, month| Date::from_calendar_date(year, month, 1).expect("a first day");
    let (start, end) = match period {
        "minute" => {
            let start = hour + Duration::minutes(now.minute().into());
            (start, start + Duration::MINUTE)
        }
        "hour" => (hour, hour + Duration::HOUR),
        "day" => (midnight(date), midnight(date) + Duration::DAY),
        "week" => {
            let since_monday = now.weekday().number_days_from_monday();
            let start = midnight(date) - Duration::days(since_monday.into());
            (start, start + Duration::WEEK)
        }
        "month" => {
            let start = first(now.year(), now.month());
            let next = start + Duration::days(now.month().length(now.year()).into());
            (midnight(start), midnight(next))
        }
        "year" => {
            let start = |year| midnight(first(year, Month::January));
            (start(now.year()), start(now.year() + 1))
        }
        "eternity" => return None,
        other => panic!("no period {other}"),
    };
    Some((text(start), text(end)))
}

fn text(at: OffsetDateTime) -> String {
    let (hour, minute, second) = at.to_hms();
    format!("{} {hour:02}:{minute:02}:{second:02} +0000", at.date())
}

/// A body of `POST /transactions.xml`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// What names the service and proves the right to report, by parameter name.
    pub service: BTreeMap<String, String>,
    /// The transactions by their index.
    pub transactions: BTreeMap<String, Transaction>,
}

/// One transaction of a report.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transaction {
    /// The application: `user_key` or `app_id`, and whatever else was sent.
    pub application: BTreeMap<String, String>,
    /// When it was used, as sent.
    pub timestamp: Option<String>,
    /// Usage by metric.
    pub usage: BTreeMap<String, u64>,
}

impl Report {
    /// Reads a report. Panics on whatever service management would not understand, and on
    /// parameters that are sent twice.
    pub fn parse(body: &[u8]) -> Self {
        let mut report = Self::default();
        for (name, value) in form_urlencoded::parse(body) {
            let value = value.into_owned();
            let path: Vec<&str> = name
                .split('[')
                .map(|part| part.trim_end_matches(']'))
                .collect();
            let twice = match path[..] {
                [name] => report.service.insert(name.into(), value).is_some(),
                ["transactions", index, ref rest @ ..] => {
                    let transaction = report.transactions.entry(index.into()).or_default();
                    match *rest {
                        ["usage", metric] => {
                            let delta = value.parse().expect("a delta is a number");
                            transaction.usage.insert(metric.into(), delta).is_some()
                        }
                        ["timestamp"] => transaction.timestamp.replace(value).is_some(),
                        [name] => {
                            let application = &mut transaction.application;
                            application.insert(name.into(), value).is_some()
                        }
                        _ => panic!("no parameter of a transaction: {name}"),
                    }
                }
                _ => panic!("no parameter of a report: {name}"),
            };
            assert!(!twice, "twice in one report: {name}");
        }
        report
    }

    /// Usage by metric over all transactions.
    pub fn usage(&self) -> BTreeMap<String, u64> {
        let mut sum = BTreeMap::new();
        for transaction in self.transactions.values() {
            for (metric, delta) in &transaction.usage {
                *sum.entry(metric.clone()).or_default() += delta;
            }
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(answer: Answer) -> String {
        String::from_utf8(answer.into_parts().1).unwrap()
    }

    #[test]
    fn an_authorization_is_written_as_the_backend_writes_it() {
        // 2026-11-21 20:48:30 UTC, a Saturday.
        let at = 1_795_294_110_000;
        let answer = authorized()
            .limit("hits", "minute", 5, 1)
            .limit("ads", "eternity", 7, 8);
        let reports = concat!(
            r#"<usage_reports><usage_report metric="hits" period="minute">"#,
            "<period_start>2026-11-21 20:48:00 +0000</period_start>",
            "<period_end>2026-11-21 20:49:00 +0000</period_end>",
            "<max_value>5</max_value><current_value>1</current_value></usage_report>",
            r#"<usage_report metric="ads" period="eternity" exceeded="true">"#,
            "<max_value>7</max_value><current_value>8</current_value></usage_report></usage_reports>",
        );
        let body = body(answer.at(at));
        assert!(body.contains("<authorized>true</authorized>"), "{body}");
        assert!(body.contains(reports), "{body}");
    }

    #[test]
    fn windows_follow_the_calendar() {
        let at = 1_795_294_110_000;
        let of = |period| window(period, at).unwrap();
        let between =
            |start: &str, end: &str| (format!("{start}:00:00 +0000"), format!("{end}:00:00 +0000"));
        assert_eq!(of("hour"), between("2026-11-21 20", "2026-11-21 21"));
        assert_eq!(of("day"), between("2026-11-21 00", "2026-11-22 00"));
        assert_eq!(of("week"), between("2026-11-16 00", "2026-11-23 00"));
        assert_eq!(of("month"), between("2026-11-01 00", "2026-12-01 00"));
        assert_eq!(of("year"), between("2026-01-01 00", "2027-01-01 00"));
    }

    #[test]
    fn a_report_is_read_as_the_backend_reads_it() {
        let body = "service_token=t&service_id=1001\
            &transactions[0][user_key]=a%26b&transactions[0][usage][hits]=1\
            &transactions%5B1%5D%5Bapp_id%5D=b&transactions[1][usage][hits]=2\
            &transactions[1][timestamp]=2026-11-21+20%3A48%3A00";
        let report = Report::parse(body.as_bytes());
        assert_eq!(report.service["service_id"], "1001");
        assert_eq!(report.transactions["0"].application["user_key"], "a&b");
        let timestamp = report.transactions["1"].timestamp.as_deref();
        assert_eq!(timestamp, Some("2026-11-21 20:48:00"));
        assert_eq!(report.usage(), BTreeMap::from([("hits".to_owned(), 3)]));
    }
}
