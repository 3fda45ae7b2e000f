//! Periods of limits and the calendar windows they stand for, in UTC.
//!
//! Apart from the limits so that the calendar is checked by itself. Windows are
//! computed only when one has ended, so nothing here is on the hot path.

use time::{Date, Month, OffsetDateTime, Time};

/// The period of a limit. Calendar-aligned in UTC; weeks begin on Monday
/// (service management protocol, section 8).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Period {
    /// A calendar minute.
    Minute = 0,
    /// A calendar hour.
    Hour = 1,
    /// A calendar day.
    Day = 2,
    /// Monday to Sunday.
    Week = 3,
    /// A calendar month.
    Month = 4,
    /// A calendar year.
    Year = 5,
    /// All time.
    Eternity = 6,
}

/// A half-open stretch of time, in Unix seconds: `start <= t < end`.
/// Eternity is `0..u64::MAX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// First second of the window.
    pub start: u64,
    /// First second after the window.
    pub end: u64,
}

impl Window {
    /// Whether this moment (Unix seconds) is in the window.
    #[must_use]
    pub const fn contains(&self, seconds: u64) -> bool {
        self.start <= seconds && seconds < self.end
    }
}

impl Period {
    /// Every period, shortest first.
    pub const ALL: [Self; 7] = [
        Self::Minute,
        Self::Hour,
        Self::Day,
        Self::Week,
        Self::Month,
        Self::Year,
        Self::Eternity,
    ];

    /// The name service management uses.
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

    /// The period of that name, if there is one.
    #[must_use]
    pub fn from_name(name: &[u8]) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|period| period.name().as_bytes() == name)
    }

    /// The period of that number in a record, if there is one.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.get(usize::from(code)).copied()
    }

    /// The window of this period that contains the moment (Unix seconds).
    ///
    /// A moment past the calendar's range (year 9999) is in a window without end.
    #[must_use]
    pub fn window_at(self, seconds: u64) -> Window {
        match self {
            Self::Minute => aligned(seconds, 60),
            Self::Hour => aligned(seconds, 3_600),
            Self::Day => aligned(seconds, 86_400),
            // 1970-01-01 was a Thursday: the first Monday was on day 4.
            Self::Week => {
                let shifted = aligned(seconds.saturating_add(3 * 86_400), 604_800);
                Window {
                    start: shifted.start.saturating_sub(3 * 86_400),
                    end: shifted.end.saturating_sub(3 * 86_400),
                }
            }
            Self::Month => calendar(seconds, |date| {
                let start = date.replace_day(1).ok()?;
                let (year, month) = match start.month() {
                    Month::December => (start.year().checked_add(1)?, Month::January),
                    month => (start.year(), month.next()),
                };
                Some((start, Date::from_calendar_date(year, month, 1).ok()?))
            }),
            Self::Year => calendar(seconds, |date| {
                let start = Date::from_calendar_date(date.year(), Month::January, 1).ok()?;
                let next = date.year().checked_add(1)?;
                Some((
                    start,
                    Date::from_calendar_date(next, Month::January, 1).ok()?,
                ))
            }),
            Self::Eternity => Window {
                start: 0,
                end: u64::MAX,
            },
        }
    }
}

fn aligned(seconds: u64, length: u64) -> Window {
    let start = seconds
        .checked_rem(length)
        .map_or(seconds, |into| seconds.saturating_sub(into));
    Window {
        start,
        end: start.saturating_add(length),
    }
}

fn calendar(seconds: u64, bounds: impl Fn(Date) -> Option<(Date, Date)>) -> Window {
    i64::try_from(seconds)
        .ok()
        .and_then(|signed| OffsetDateTime::from_unix_timestamp(signed).ok())
        .and_then(|moment| bounds(moment.date()))
        .and_then(|(start, end)| {
            Some(Window {
                start: midnight(start)?,
                end: midnight(end)?,
            })
        })
        .unwrap_or(Window {
            start: 0,
            end: u64::MAX,
        })
}

fn midnight(date: Date) -> Option<u64> {
    u64::try_from(date.with_time(Time::MIDNIGHT).assume_utc().unix_timestamp()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    fn at(moment: OffsetDateTime) -> u64 {
        u64::try_from(moment.unix_timestamp()).unwrap()
    }

    #[test]
    fn a_code_names_its_period() {
        for period in Period::ALL {
            assert_eq!(Period::from_code(period as u8), Some(period));
            assert_eq!(Period::from_name(period.name().as_bytes()), Some(period));
        }
        assert_eq!(Period::from_code(7), None);
    }

    #[test]
    fn weeks_begin_on_monday() {
        let window = Period::Week.window_at(at(datetime!(2026-11-21 20:47 UTC)));
        assert_eq!(window.start, at(datetime!(2026-11-16 0:00 UTC)));
        assert_eq!(window.end, at(datetime!(2026-11-23 0:00 UTC)));
        let sunday = Period::Week.window_at(at(datetime!(2026-11-22 23:59:59 UTC)));
        assert_eq!(sunday, window);
        let monday = Period::Week.window_at(at(datetime!(2026-11-23 0:00 UTC)));
        assert_eq!(monday.start, window.end);
    }

    #[test]
    fn february_is_as_long_as_its_year_says() {
        let leap = Period::Month.window_at(at(datetime!(2028-02-29 12:00 UTC)));
        assert_eq!(leap.end - leap.start, 29 * 86_400);
        let plain = Period::Month.window_at(at(datetime!(2026-02-01 0:00 UTC)));
        assert_eq!(plain.end - plain.start, 28 * 86_400);
    }

    #[test]
    fn december_and_its_year_end_together() {
        let moment = at(datetime!(2026-12-31 23:59:59 UTC));
        let new_year = at(datetime!(2027-01-01 0:00 UTC));
        assert_eq!(Period::Month.window_at(moment).end, new_year);
        assert_eq!(Period::Year.window_at(moment).end, new_year);
        assert_eq!(Period::Year.window_at(new_year).start, new_year);
    }

    #[test]
    fn every_window_contains_its_moment_and_ends_where_the_next_begins() {
        let mut moment = at(datetime!(2023-12-30 23:59:58 UTC));
        for _ in 0..5_000 {
            for period in Period::ALL {
                let window = period.window_at(moment);
                assert!(window.contains(moment), "{period:?} at {moment}");
                if period != Period::Eternity {
                    assert_eq!(period.window_at(window.end).start, window.end);
                }
            }
            moment += 34_567;
        }
    }

    #[test]
    fn the_far_future_does_not_trap() {
        for period in Period::ALL {
            assert!(period.window_at(u64::MAX - 1).start < u64::MAX);
        }
    }
}
