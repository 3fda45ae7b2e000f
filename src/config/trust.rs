//! How long what service management said is relied on, and what becomes of those of whom it
//! said nothing: for all services, and otherwise for one.
//!
//! Apart from the other settings because these stand in two places: what a service leaves
//! out is as it is for all.

use std::time::Duration;

use serde_json::Value;

use super::error::{ConfigurationError, Place};
use super::settings::{DAY, MINUTE, SECOND, choice, within};
use super::shape;

/// The longest `stale_if_error`.
const WEEK: Duration = Duration::from_secs(7 * 86_400);

/// How far service management's answers about applications are relied on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trust {
    /// How long an answer that let an application in is fresh: 1 s to 1 day.
    pub ttl: Duration,
    /// The same for an answer that did not: 1 s to 1 day.
    pub negative_ttl: Duration,
    /// How long after that it is still good while service management fails: 0 to 7 days.
    pub stale_if_error: Duration,
    /// What becomes of an application of which nothing can be known.
    pub unknown: Unknown,
}

/// What becomes of an application of which nothing is known while service management fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// 503.
    Deny,
    /// It passes, and its usage is reported later.
    Allow,
}

impl Default for Trust {
    fn default() -> Self {
        Self {
            ttl: MINUTE,
            negative_ttl: Duration::from_secs(10),
            stale_if_error: Duration::from_secs(600),
            unknown: Unknown::Deny,
        }
    }
}

/// The fields of an `authorization`, of all services or of one, as they are written.
#[derive(Clone, Copy)]
pub(super) struct Written<'a> {
    ttl: Option<&'a Value>,
    negative_ttl: Option<&'a Value>,
    stale_if_error: Option<&'a Value>,
    unknown: Option<&'a Value>,
}

impl Trust {
    /// This one with what is written changed; `place` is that of the `authorization`.
    pub(super) fn changed(
        self,
        written: Written<'_>,
        place: &Place<'_>,
    ) -> Result<Self, ConfigurationError> {
        let duration =
            |value, field, bounds, default| within(value, &place.field(field), bounds, default);
        Ok(Self {
            ttl: duration(written.ttl, "ttl", (SECOND, DAY), self.ttl)?,
            negative_ttl: duration(
                written.negative_ttl,
                "negative_ttl",
                (SECOND, DAY),
                self.negative_ttl,
            )?,
            stale_if_error: duration(
                written.stale_if_error,
                "stale_if_error",
                (Duration::ZERO, WEEK),
                self.stale_if_error,
            )?,
            unknown: match written.unknown {
                None => self.unknown,
                written => choice(
                    written,
                    &place.field("unknown"),
                    [("deny", Unknown::Deny), ("allow", Unknown::Allow)],
                )?,
            },
        })
    }
}

impl<'a> From<&'a shape::Authorization> for Written<'a> {
    fn from(shape: &'a shape::Authorization) -> Self {
        Self {
            ttl: shape.ttl.as_ref(),
            negative_ttl: shape.negative_ttl.as_ref(),
            stale_if_error: shape.stale_if_error.as_ref(),
            unknown: shape.unknown.as_ref(),
        }
    }
}

impl<'a> From<&'a shape::ServiceAuthorization> for Written<'a> {
    fn from(shape: &'a shape::ServiceAuthorization) -> Self {
        Self {
            ttl: shape.ttl.as_ref(),
            negative_ttl: shape.negative_ttl.as_ref(),
            stale_if_error: shape.stale_if_error.as_ref(),
            unknown: shape.unknown.as_ref(),
        }
    }
}
