//! What the tests of this room have in common: a service, its metrics, answers, moments.

use super::keys::KeyRule;
use super::shown::{Referrer, Shown};
use super::{Accuracy, Identity, Period, Window};
use crate::credentials::{Digest, Kind};
use crate::mapping::{Metrics, Usage};
use crate::moment::Moment;
use crate::service_management::{Authorization, UsageReport};

/// 2026-11-21 20:47:00 UTC, the first second of a minute.
pub const START: u64 = 1_795_294_020;

/// An application that is known by its `user_key`.
pub const ALICE: Identity<'_> = Identity {
    digest: Digest([1; 16]),
    scope: 7,
    kind: Kind::UserKey,
    value: b"alice",
    shown: Shown {
        rule: KeyRule::IfAny,
        app_key: None,
        referrer: Referrer::Ignored,
    },
    tells: false,
};

/// One of four gateways, which share limits as exactly as can be.
pub const STRICT: Accuracy = Accuracy::Strict {
    gateways: 4,
    settled_after: 1_000,
};

/// A moment so many milliseconds after the start, on both clocks.
pub fn at(milliseconds: u64) -> Moment {
    Moment {
        wall: START * 1_000 + milliseconds,
        monotonic: 1_000_000 + milliseconds,
    }
}

/// hits <- orders <- orders_vip as the configuration knows it if `hierarchy`, and ads.
pub fn metrics(hierarchy: bool) -> Metrics {
    let parent = |name: &str| hierarchy.then(|| name.to_owned());
    Metrics::new([
        ("hits".to_owned(), None),
        ("orders".to_owned(), parent("hits")),
        ("orders_vip".to_owned(), parent("orders")),
        ("ads".to_owned(), None),
    ])
    .unwrap()
}

/// A request's usage.
pub fn usage(metrics: &Metrics, of: &[(&str, u64)]) -> Usage {
    let mut usage = Usage::new();
    for (metric, delta) in of {
        usage.add(metrics.id(metric).unwrap(), *delta);
    }
    usage
}

/// A report of a limit in the window open at that moment.
pub fn limit(metric: &str, period: Period, maximum: u64, current: u64, now: Moment) -> UsageReport {
    UsageReport {
        metric: metric.to_owned(),
        period,
        window: period.window_at(now.seconds()),
        maximum,
        current,
    }
}

/// An answer with these limits and no hierarchy.
pub fn known(limits: Vec<UsageReport>) -> Authorization {
    Authorization {
        limits,
        hierarchy: Vec::new(),
        app_keys: None,
    }
}

/// The window of a period at the start.
pub fn window(period: Period) -> Window {
    period.window_at(START)
}
