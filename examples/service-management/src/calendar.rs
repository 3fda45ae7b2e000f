//! Periods, the windows they stand for, and the backend's ways of writing time.
//!
//! Apart from the filter's own calendar on purpose: what checks the filter must
//! not share its mistakes. All of it is in UTC, and weeks begin on Monday.

use serde::{Deserialize, Serialize};
use time::{
    Date, Duration, Month, OffsetDateTime, PrimitiveDateTime, UtcOffset,
    format_description::StaticFormatDescription, macros::format_description,
};

/// The period of a limit.
///
/// The order is that of the backend's "granularity", shortest first; limit
/// headers prefer the longer one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Period {
    /// A calendar minute.
    Minute,
    /// A calendar hour.
    Hour,
    /// A calendar day.
    Day,
    /// Monday to Sunday.
    Week,
    /// A calendar month.
    Month,
    /// A calendar year.
    Year,
    /// All time.
    Eternity,
}

impl Period {
    /// Every period, longest first: the order in which the backend lists the
    /// limits of a metric.
    pub const LONGEST_FIRST: [Self; 7] = [
        Self::Eternity,
        Self::Year,
        Self::Month,
        Self::Week,
        Self::Day,
        Self::Hour,
        Self::Minute,
    ];

    /// The name used on the wire.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Minute => "minute",
            Self::Hour => "hour",
            Self::Day => "day",
            Self::Week => "week",
            Self::Month => "month",
            Self::Year => "year",
            Self::Eternity => "eternity",
        }
    }

    /// The first second of the window with this moment in it, and the first
    /// second after it (both in Unix seconds). No end: the window is eternity's.
    #[must_use]
    pub fn window(self, seconds: i64) -> (i64, Option<i64>) {
        let date = moment(seconds).date();
        let (first, after) = match self {
            Self::Minute => return aligned(seconds, 60),
            Self::Hour => return aligned(seconds, 3_600),
            Self::Day => return aligned(seconds, 86_400),
            Self::Eternity => return (0, None),
            Self::Week => {
                let into = i64::from(date.weekday().number_days_from_monday());
                let first = date.saturating_sub(Duration::days(into));
                (first, first.saturating_add(Duration::days(7)))
            }
            Self::Month => {
                let after = match date.month() {
                    Month::December => first_of(date.year().saturating_add(1), Month::January),
                    month => first_of(date.year(), month.next()),
                };
                (first_of(date.year(), date.month()), after)
            }
            Self::Year => (
                first_of(date.year(), Month::January),
                first_of(date.year().saturating_add(1), Month::January),
            ),
        };
        (midnight(first), Some(midnight(after)))
    }
}

fn aligned(seconds: i64, length: i64) -> (i64, Option<i64>) {
    let start = seconds.saturating_sub(seconds.rem_euclid(length));
    (start, Some(start.saturating_add(length)))
}

fn first_of(year: i32, month: Month) -> Date {
    Date::from_calendar_date(year, month, 1).unwrap_or(Date::MAX)
}

fn midnight(date: Date) -> i64 {
    date.midnight().assume_utc().unix_timestamp()
}

/// A moment outside the calendar (which ends with the year 9999) is its end.
fn moment(seconds: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(seconds)
        .unwrap_or_else(|_| PrimitiveDateTime::MAX.assume_utc())
}

/// A moment (Unix seconds) as the status document writes it.
#[must_use]
pub fn status_time(seconds: i64) -> String {
    const FORMAT: StaticFormatDescription =
        format_description!("[year]-[month]-[day] [hour]:[minute]:[second] +0000");
    moment(seconds).format(FORMAT).unwrap_or_default()
}

/// A moment (Unix seconds) as the control interface writes it: RFC 3339.
#[must_use]
pub fn control_time(seconds: i64) -> String {
    const FORMAT: StaticFormatDescription =
        format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]Z");
    moment(seconds).format(FORMAT).unwrap_or_default()
}

/// The moment (Unix seconds) that a transaction's `timestamp` stands for, or
/// none, for which the backend takes the time of processing.
///
/// The backend takes whatever Ruby's `Integer()` does, then whatever
/// `Date._parse` finds a year, month and day in; of the latter only the forms
/// that start with the date are known here.
#[must_use]
pub fn parse_timestamp(text: &str) -> Option<i64> {
    let text = text.trim();
    ruby_integer(text).or_else(|| civil_time(text))
}

/// Ruby's `Integer()`: sign, radix prefixes, single underscores between digits.
/// What is beyond the range is its end, which no deadline accepts either.
fn ruby_integer(text: &str) -> Option<i64> {
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, text.get(1..)?),
        b'+' => (false, text.get(1..)?),
        _ => (false, text),
    };
    let lower = digits.to_ascii_lowercase();
    let (radix, digits) = match lower.get(..2) {
        Some("0x") => (16, lower.get(2..)?),
        Some("0b") => (2, lower.get(2..)?),
        Some("0o") => (8, lower.get(2..)?),
        Some("0d") => (10, lower.get(2..)?),
        Some(_) if lower.starts_with('0') => (8, lower.get(1..)?.trim_start_matches('_')),
        _ => (10, lower.as_str()),
    };
    if digits.is_empty()
        || digits.starts_with('_')
        || digits.ends_with('_')
        || digits.contains("__")
    {
        return None;
    }
    let value = digits
        .chars()
        .filter(|character| *character != '_')
        .try_fold(0_i64, |value, character| {
            let digit = character.to_digit(radix)?;
            Some(
                value
                    .saturating_mul(i64::from(radix))
                    .saturating_add(i64::from(digit)),
            )
        })?;
    Some(if negative {
        value.saturating_neg()
    } else {
        value
    })
}

fn civil_time(text: &str) -> Option<i64> {
    const DATE: StaticFormatDescription = format_description!("[year]-[month]-[day]");
    const SLASHES: StaticFormatDescription = format_description!("[year]/[month]/[day]");
    const CLOCK: StaticFormatDescription = format_description!("[hour]:[minute]:[second]");
    const SHORT: StaticFormatDescription = format_description!("[hour]:[minute]");

    let (date, rest) = match text.split_once(['T', 't', ' ']) {
        Some((date, rest)) => (date, rest.trim()),
        None => (text, ""),
    };
    let date = Date::parse(date, DATE)
        .or_else(|_| Date::parse(date, SLASHES))
        .ok()?;
    if rest.is_empty() {
        return Some(midnight(date));
    }
    let end = rest
        .find(|character: char| !character.is_ascii_digit() && character != ':')
        .unwrap_or(rest.len());
    let (clock, zone) = rest.split_at_checked(end)?;
    let clock = time::Time::parse(clock, CLOCK)
        .or_else(|_| time::Time::parse(clock, SHORT))
        .ok()?;
    let zone = match zone.strip_prefix('.') {
        Some(fraction) => fraction.trim_start_matches(|character: char| character.is_ascii_digit()),
        None => zone,
    };
    Some(
        date.with_time(clock)
            .assume_offset(offset(zone.trim())?)
            .unix_timestamp(),
    )
}

fn offset(zone: &str) -> Option<UtcOffset> {
    const FORMS: [StaticFormatDescription; 3] = [
        format_description!("[offset_hour sign:mandatory][offset_minute]"),
        format_description!("[offset_hour sign:mandatory]:[offset_minute]"),
        format_description!("[offset_hour sign:mandatory]"),
    ];
    match zone {
        "" | "Z" | "z" | "UTC" | "GMT" => Some(UtcOffset::UTC),
        _ => FORMS
            .iter()
            .find_map(|form| UtcOffset::parse(zone, form).ok()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(period: Period, seconds: i64) -> (String, Option<String>) {
        let (start, end) = period.window(seconds);
        (status_time(start), end.map(status_time))
    }

    #[test]
    fn windows_follow_the_calendar_in_utc() {
        let now = parse_timestamp("2024-12-31 23:59:59").unwrap();
        for (period, start, end) in [
            (Period::Minute, "2024-12-31 23:59:00", "2025-01-01 00:00:00"),
            (Period::Hour, "2024-12-31 23:00:00", "2025-01-01 00:00:00"),
            (Period::Day, "2024-12-31 00:00:00", "2025-01-01 00:00:00"),
            (Period::Week, "2024-12-30 00:00:00", "2025-01-06 00:00:00"),
            (Period::Month, "2024-12-01 00:00:00", "2025-01-01 00:00:00"),
            (Period::Year, "2024-01-01 00:00:00", "2025-01-01 00:00:00"),
        ] {
            let expected = (format!("{start} +0000"), Some(format!("{end} +0000")));
            assert_eq!(window(period, now), expected);
        }
        assert_eq!(Period::Eternity.window(now), (0, None));
    }

    #[test]
    fn a_leap_day_ends_its_february() {
        let now = parse_timestamp("2024-02-29 12:00:00").unwrap();
        let expected = (
            "2024-02-01 00:00:00 +0000".to_owned(),
            Some("2024-03-01 00:00:00 +0000".to_owned()),
        );
        assert_eq!(window(Period::Month, now), expected);
    }

    #[test]
    fn timestamps_are_read_as_ruby_reads_them() {
        for (text, seconds) in [
            ("1795290490", Some(1_795_290_490)),
            (" 1_0 ", Some(10)),
            ("-5", Some(-5)),
            ("0x10", Some(16)),
            ("99999999999999999999", Some(i64::MAX)),
            ("1970-01-02", Some(86_400)),
            ("1970-01-02 00:00:01", Some(86_401)),
            ("1970-01-02T01:00:01.5+0100", Some(86_401)),
            ("1970-01-02 00:00:01 +01:00", Some(82_801)),
            ("1970-01-02 00:00:01 UTC", Some(86_401)),
            ("garbage", None),
            ("", None),
            ("1970-13-01", None),
            ("1__0", None),
            ("é", None),
        ] {
            assert_eq!(parse_timestamp(text), seconds, "{text:?}");
        }
    }
}
