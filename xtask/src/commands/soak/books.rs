//! Whether usage is conserved: in the filter's sums at every look, and at rest between what
//! consumers were let do, what the filter says, and what service management holds.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use serde::Serialize;
use tollgate_harness::{Envoy, eventually};

use super::consumers::{self, METRICS, Request, SERVICES};
use super::tally::Tally;
use super::world::{World, wall};

/// How long usage may take to arrive when nothing goes wrong any more: the longest pause after
/// failures is a minute.
const PATIENCE: Duration = Duration::from_secs(150);
/// Readings of which one must balance: they are taken while the filter counts.
const READINGS: usize = 40;
/// Counters that say that usage is lost or that a limit may not be exact.
const NEVER: [&str; 7] = [
    "usage_lost_uncertain",
    "usage_lost_too_old",
    "usage_lost_uncached",
    "usage_lost_refused",
    "requests_uncached",
    "misconfigured",
    "metrics_unknown",
];

type Stats = BTreeMap<String, u64>;

/// What the books say at the end.
#[derive(Default, Serialize)]
pub struct Figures {
    pub admitted: u64,
    pub acknowledged: u64,
    pub resent: u64,
    pub arrived: u64,
    pub questions: u64,
    pub refreshes: u64,
    pub reports: u64,
    pub failures: u64,
}

fn of(stats: &Stats, service: &str, name: &str) -> u64 {
    let name = format!("wasmcustom.tollgate.{service}.{name}");
    stats.get(&name).copied().unwrap_or(0)
}

fn sum(stats: &Stats, name: &str) -> u64 {
    SERVICES
        .iter()
        .map(|service| of(stats, service, name))
        .sum()
}

fn units(stats: &Stats, service: &str, metric: &str, name: &str) -> u64 {
    of(stats, service, &format!("metric.{metric}.units_{name}"))
}

/// The metrics of a service whose sums do not balance.
fn unbalanced(stats: &Stats) -> Vec<String> {
    let each = SERVICES
        .into_iter()
        .flat_map(|service| METRICS.map(|metric| (service, metric)));
    each.filter_map(|(service, metric)| {
        let of = |name| units(stats, service, metric, name);
        let parts = ["acknowledged", "lost", "pending", "in_flight"].map(of);
        let admitted = of("admitted");
        (parts.iter().sum::<u64>() != admitted)
            .then(|| format!("{metric} of {service}: {admitted} admitted, {parts:?}"))
    })
    .collect()
}

/// A look at Envoy under load.
pub async fn look(envoy: &Envoy, tally: &Tally) -> Result<()> {
    let mut wrong = Vec::new();
    for _ in 0..READINGS {
        wrong = unbalanced(&envoy.stats("wasmcustom.tollgate.").await?);
        if wrong.is_empty() {
            break;
        }
    }
    if let Some(wrong) = wrong.first() {
        tally.violation(format!("the sums do not balance: {wrong}"));
    }
    trapped(envoy, tally).await
}

async fn trapped(envoy: &Envoy, tally: &Tally) -> Result<()> {
    let stats = envoy.stats("wasm.tollgate.vm_reload").await?;
    for (name, count) in stats.iter().filter(|(_, count)| **count > 0) {
        tally.violation(format!("{name} is {count}"));
    }
    let log = envoy.log();
    for sign in ["Uncaught RuntimeError", "Function: proxy_", "panicked at"] {
        if let Some(line) = log.lines().find(|line| line.contains(sign)) {
            tally.violation(format!("a VM trapped: {line}"));
        }
    }
    Ok(())
}

/// Nothing is sent and nothing goes wrong: waits until all usage has arrived, and compares.
pub async fn rest(world: &World, tally: &Tally) -> Result<Figures> {
    let expected = tally.admitted();
    let direct = |service: &str, metric: usize| -> u64 {
        let own = expected.iter().filter(|((of, _), _)| *of == service);
        own.map(|(_, units)| units[metric]).sum()
    };
    let envoy = world.envoy.lock().await;
    let backend = world.backend.lock().await;
    let settled = async || {
        let stats = envoy.stats("wasmcustom.tollgate.").await.ok()?;
        let open = sum(&stats, "usage_pending") + sum(&stats, "usage_in_flight");
        let seen = SERVICES.iter().all(|service| {
            let at_least = |(metric, name): (usize, &&str)| {
                units(&stats, service, name, "admitted") >= direct(service, metric)
            };
            METRICS.iter().enumerate().all(at_least)
        });
        (open == 0 && seen && backend.queued() == 0).then_some(())
    };
    if eventually("usage to arrive", PATIENCE, settled)
        .await
        .is_err()
    {
        tally.violation(format!("usage does not arrive in {PATIENCE:?}"));
    }
    // What has arrived too often comes a round later at the latest.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let stats = envoy.stats("wasmcustom.tollgate.").await?;
    for (service, counter) in SERVICES.iter().flat_map(|it| NEVER.map(|name| (it, name))) {
        let count = of(&stats, service, counter);
        if count > 0 {
            tally.violation(format!("{counter} of {service} is {count}"));
        }
    }
    for wrong in unbalanced(&stats) {
        tally.violation(format!("the sums do not balance at rest: {wrong}"));
    }
    for (service, (index, metric)) in SERVICES
        .into_iter()
        .flat_map(|service| METRICS.into_iter().enumerate().map(move |it| (service, it)))
    {
        let (let_do, says) = (
            direct(service, index),
            units(&stats, service, metric, "admitted"),
        );
        if let_do != says {
            tally.violation(format!(
                "consumers were let use {let_do} {metric} of {service}, and the filter says {says}"
            ));
        }
    }
    let usage = backend.usage();
    let mut arrived = 0;
    let mut doubled = BTreeMap::new();
    for service in SERVICES {
        let resent = of(&stats, service, "usage_resent");
        let mut twice = 0;
        for application in consumers::applications() {
            let whose = (service, application.clone());
            let units = expected.get(&whose).copied().unwrap_or_default();
            for (metric, should) in METRICS.iter().zip(Request::counted(units)) {
                let has = usage.total(service, &application, metric);
                if has < should {
                    tally.violation(format!(
                        "{application} of {service} used {should} {metric}, and {has} arrived"
                    ));
                }
                if *metric == "hits" {
                    twice += has.saturating_sub(should);
                    arrived += has;
                    doubled.insert(whose.clone(), has.saturating_sub(should));
                }
            }
        }
        if twice > resent {
            tally.violation(format!(
                "{twice} units of {service} arrived twice, and {resent} were sent again"
            ));
        }
    }
    let resent = sum(&stats, "usage_resent");
    tally.doubled(doubled);
    tally.windows_until(wall()?);
    trapped(&envoy, tally).await?;
    Ok(Figures {
        admitted: sum(&stats, "usage_admitted"),
        acknowledged: sum(&stats, "usage_acknowledged"),
        resent,
        arrived,
        questions: sum(&stats, "authorize_calls"),
        refreshes: sum(&stats, "refresh_calls"),
        reports: sum(&stats, "report_calls"),
        failures: sum(&stats, "authorize_failures")
            + sum(&stats, "reports_not_delivered")
            + sum(&stats, "reports_uncertain"),
    })
}
