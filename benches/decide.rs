//! What a decision costs: digest, record and limits, on a map in memory instead of
//! Envoy's shared data. Prints medians in nanoseconds; nothing fails because it is slow.

#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing)]

use std::borrow::Cow;
use std::hint::black_box;
use std::time::Instant;
use tollgate::authorization::{
    Accuracy, Applications, Identity, Lifetimes, Period, Shown, Verdict,
};
use tollgate::credentials::{Credential, Identities, Kind, Scope};
use tollgate::mapping::{Metrics, Usage};
use tollgate::moment::Moment;
use tollgate::service_management::{Authorization, UsageReport};
use tollgate_shared_data::Memory;

fn main() {
    const ROUNDS: usize = 31;
    const REQUESTS: u32 = 20_000;
    let now = Moment {
        wall: 1_795_294_020_000,
        monotonic: 5_000,
    };
    let data = Memory::default();
    let mut applications = Applications::open(&data, 1_024);
    let metrics = Metrics::new([
        ("hits".to_owned(), None),
        ("orders".to_owned(), Some("hits".to_owned())),
    ])
    .unwrap();
    let mut usage = Usage::new();
    usage.add(metrics.id("orders").unwrap(), 1);
    let scope = Scope {
        cluster: "c".into(),
        authority: "a".into(),
        service: "1".into(),
    };
    let identities = Identities::new(&[7; 16], &scope);
    let lifetimes = Lifetimes {
        ttl: u64::MAX,
        negative_ttl: 1,
        stale_if_error: 0,
        accuracy: Accuracy::Exact,
    };
    println!("limits  ns per decision");
    for limits in [0, 1, 3, 7, 20] {
        let key = format!("application-{limits}");
        let credential = Credential::new(Kind::UserKey, Cow::Borrowed(key.as_bytes())).unwrap();
        let answer = Authorization {
            limits: (0..limits)
                .map(|number| {
                    let period = Period::ALL[number % Period::ALL.len()];
                    UsageReport {
                        metric: if number < 7 {
                            "hits".to_owned()
                        } else {
                            format!("m{number}")
                        },
                        period,
                        window: period.window_at(now.seconds()),
                        maximum: u64::MAX / 2,
                        current: 0,
                    }
                })
                .collect(),
            hierarchy: Vec::new(),
            app_keys: None,
        };
        let identity = || Identity {
            digest: identities.digest(&credential),
            scope: 1,
            kind: Kind::UserKey,
            value: key.as_bytes(),
            tells: false,
            shown: Shown::default(),
        };
        applications
            .learn(&data, &identity(), &answer, &metrics, now, &lifetimes)
            .unwrap();
        let mut medians: Vec<_> = (0..ROUNDS)
            .map(|_| {
                let start = Instant::now();
                for _ in 0..REQUESTS {
                    let verdict = applications
                        .decide(&data, &black_box(identity()), &usage, &metrics, now)
                        .unwrap();
                    assert!(matches!(verdict, Verdict::Admitted { .. }));
                }
                start.elapsed().as_nanos() / u128::from(REQUESTS)
            })
            .collect();
        medians.sort_unstable();
        println!("{limits:>6}  {}", medians[ROUNDS / 2]);
    }
}
