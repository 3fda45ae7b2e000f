//! The settings that are not about one service, with their defaults and bounds.
//!
//! Apart from the services because these are numbers and choices, checked one like
//! the other.

use std::time::Duration;

use serde_json::Value;

use super::error::{ConfigurationError, Place, Problem, quoted_address, shown};
use super::{Trust, accuracy, duration, hosts, shape};
use crate::authorization::Accuracy;

const MILLISECOND: Duration = Duration::from_millis(1);
pub(super) const SECOND: Duration = Duration::from_secs(1);
pub(super) const MINUTE: Duration = Duration::from_secs(60);
pub(super) const DAY: Duration = Duration::from_secs(86_400);

/// The service-management cluster and how it is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceManagement {
    /// The Envoy cluster; not empty.
    pub cluster: String,
    /// The `:authority` of calls: a host, perhaps with a port.
    pub authority: String,
    /// How long one question may take: 1 ms to 60 s (to Envoy, 0 would mean forever).
    pub timeout: Duration,
}

/// How long what is known of applications is good for, and how many are known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthorizationSettings {
    /// How far answers are relied on, where a service does not say otherwise.
    pub trust: Trust,
    /// How many applications are known at a time: 8 to 1,048,576.
    pub capacity: u32,
    /// How many questions about unknown credentials this gateway asks: 1 to 1,000,000 a
    /// second.
    pub unknown_calls_per_second: u32,
    /// How many refreshes of what is known of applications this gateway asks for: 1 to
    /// 1,000,000 a second.
    pub refreshes_per_second: u32,
    /// How limits are shared: `authorization.gateways` and `authorization.accuracy`.
    pub accuracy: Accuracy,
}

/// How usage is handed on to service management.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReportingSettings {
    /// The time between two flushes: 100 ms to 60 s.
    pub interval: Duration,
    /// How long one report may take: 1 ms to 60 s.
    pub timeout: Duration,
    /// What becomes of a report whose fate is not known.
    pub uncertain: Uncertain,
    /// The most transactions in a report: 1 to 1,000. A report may have to end sooner: the
    /// backend refuses one with more than 4,096 form parameters.
    pub batch: u32,
}

/// What becomes of a report that may or may not have been counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Uncertain {
    /// It is sent again, and may count twice.
    Resend,
    /// It counts as lost.
    Drop,
}

/// What becomes of a request for a host that no service has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnmatchedHosts {
    /// 404.
    Deny,
    /// It passes untouched.
    Pass,
}

impl ServiceManagement {
    pub(super) fn check(
        shape: shape::ServiceManagement,
        place: &Place<'_>,
    ) -> Result<Self, ConfigurationError> {
        if shape.cluster.is_empty() {
            return Err(place
                .field("cluster")
                .error(Problem::EmptyText("the name of an Envoy cluster")));
        }
        if !hosts::is_authority(&shape.authority) {
            let found = quoted_address(&shape.authority);
            return Err(place.field("authority").error(Problem::Authority(found)));
        }
        Ok(Self {
            cluster: shape.cluster,
            authority: shape.authority,
            timeout: within(
                shape.timeout.as_ref(),
                &place.field("timeout"),
                (MILLISECOND, MINUTE),
                SECOND,
            )?,
        })
    }
}

impl AuthorizationSettings {
    pub(super) fn check(
        shape: &shape::Authorization,
        place: &Place<'_>,
    ) -> Result<Self, ConfigurationError> {
        Ok(Self {
            trust: Trust::default().changed(shape.into(), place)?,
            capacity: number(
                shape.capacity.as_ref(),
                &place.field("capacity"),
                (8, 1_048_576),
                16_384,
            )?,
            unknown_calls_per_second: number(
                shape.unknown_calls_per_second.as_ref(),
                &place.field("unknown_calls_per_second"),
                (1, 1_000_000),
                100,
            )?,
            refreshes_per_second: number(
                shape.refreshes_per_second.as_ref(),
                &place.field("refreshes_per_second"),
                (1, 1_000_000),
                100,
            )?,
            accuracy: accuracy::check(shape, place)?,
        })
    }
}

impl ReportingSettings {
    pub(super) fn check(
        shape: &shape::Reporting,
        place: &Place<'_>,
    ) -> Result<Self, ConfigurationError> {
        Ok(Self {
            interval: within(
                shape.interval.as_ref(),
                &place.field("interval"),
                (Duration::from_millis(100), MINUTE),
                Duration::from_secs(10),
            )?,
            timeout: within(
                shape.timeout.as_ref(),
                &place.field("timeout"),
                (MILLISECOND, MINUTE),
                Duration::from_secs(5),
            )?,
            uncertain: choice(
                shape.uncertain.as_ref(),
                &place.field("uncertain"),
                [("resend", Uncertain::Resend), ("drop", Uncertain::Drop)],
            )?,
            batch: number(shape.batch.as_ref(), &place.field("batch"), (1, 1_000), 100)?,
        })
    }
}

impl UnmatchedHosts {
    pub(super) fn check(
        value: Option<&Value>,
        place: &Place<'_>,
    ) -> Result<Self, ConfigurationError> {
        choice(value, place, [("deny", Self::Deny), ("pass", Self::Pass)])
    }
}

/// A duration within these bounds, both included.
pub(super) fn within(
    value: Option<&Value>,
    place: &Place<'_>,
    (least, most): (Duration, Duration),
    default: Duration,
) -> Result<Duration, ConfigurationError> {
    let Some(value) = value else {
        return Ok(default);
    };
    let duration = value
        .as_str()
        .and_then(duration::parse)
        .ok_or_else(|| place.error(Problem::NotADuration(shown(value))))?;
    if !(least..=most).contains(&duration) {
        return Err(place.error(Problem::DurationBounds {
            found: shown(value),
            least,
            most,
        }));
    }
    Ok(duration)
}

/// A whole number within these bounds, both included.
pub(super) fn number(
    value: Option<&Value>,
    place: &Place<'_>,
    (least, most): (u32, u32),
    default: u32,
) -> Result<u32, ConfigurationError> {
    let Some(value) = value else {
        return Ok(default);
    };
    value
        .as_u64()
        .and_then(|number| u32::try_from(number).ok())
        .filter(|number| (least..=most).contains(number))
        .ok_or_else(|| {
            place.error(Problem::Number {
                found: shown(value),
                least: least.into(),
                most: most.into(),
            })
        })
}

/// One of two words; the first is the default.
pub(super) fn choice<T: Copy>(
    value: Option<&Value>,
    place: &Place<'_>,
    [default, other]: [(&str, T); 2],
) -> Result<T, ConfigurationError> {
    let Some(value) = value else {
        return Ok(default.1);
    };
    [default, other]
        .into_iter()
        .find(|(word, _)| value.as_str() == Some(word))
        .map(|(_, meaning)| meaning)
        .ok_or_else(|| {
            place.error(Problem::Choice {
                found: shown(value),
                choices: format!("{} or {}", default.0, other.0),
            })
        })
}
