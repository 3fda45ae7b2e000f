//! Whatever becomes of reports under load, every unit of usage is accounted for: at each
//! moment in the filter's sums, and after the fault at service management.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::json;
use service_management::{Fault, FaultRule, FaultScope};
use tollgate_end_to_end::{Gateway, Load, PATIENCE, Setup};
use tollgate_harness::eventually;

/// The sums of one metric, in Envoy's statistics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sums {
    admitted: u64,
    acknowledged: u64,
    lost: u64,
    pending: u64,
    in_flight: u64,
}

impl Sums {
    async fn read(gateway: &Gateway) -> Result<Self> {
        let prefix = "wasmcustom.tollgate.1001.metric.hits.units_";
        let all = gateway.envoy.stats(prefix).await?;
        let of = |name: &str| all.get(&format!("{prefix}{name}")).copied().unwrap_or(0);
        Ok(Self {
            admitted: of("admitted"),
            acknowledged: of("acknowledged"),
            lost: of("lost"),
            pending: of("pending"),
            in_flight: of("in_flight"),
        })
    }

    /// Reads until a reading balances: they are read one after the other, while the
    /// filter changes them.
    async fn balanced(gateway: &Gateway) -> Result<Self> {
        let mut sums = Self::default();
        for _ in 0..20 {
            sums = Self::read(gateway).await?;
            let parts = sums.acknowledged + sums.lost + sums.pending + sums.in_flight;
            if sums.admitted == parts {
                return Ok(sums);
            }
        }
        anyhow::bail!("the sums do not balance: {sums:?}")
    }
}

/// How the backend fails.
enum Failing {
    With(Fault),
    Refused,
    Flapping,
}

/// Lets the backend fail for some seconds under load. Then everything is delivered.
/// `applied`: whether reports without an answer count all the same.
async fn failing(what: &str, failing: Failing, applied: Option<bool>) -> Result<()> {
    let mut gateway = Gateway::start(Setup {
        plugin: json!({
            "authorization": { "ttl": "10m" },
            "reporting": { "interval": "200ms", "timeout": "500ms" },
        }),
        ..Setup::default()
    })
    .await?;
    let pause = Duration::from_millis(3);
    let load = Load::start(&gateway.client()?, 4, pause, "/v1/items", "free-key");
    load.go_on_for(200).await?;
    let begun = Instant::now();
    let mut most = Sums::default();
    if let Failing::With(fault) = &failing {
        let rule = FaultRule::always(FaultScope::Report, *fault);
        gateway.backend.set_faults(vec![rule]);
    }
    let mut up = true;
    while begun.elapsed() < Duration::from_secs(4) {
        let change = match failing {
            Failing::With(_) => false,
            Failing::Refused => up,
            Failing::Flapping => true,
        };
        if change && up {
            gateway.backend.stop().await;
            up = false;
        } else if change {
            gateway.backend.restart().await?;
            up = true;
        }
        let sums = Sums::balanced(&gateway).await?;
        most.pending = most.pending.max(sums.pending);
        most.in_flight = most.in_flight.max(sums.in_flight);
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    if !up {
        gateway.backend.restart().await?;
    }
    gateway.backend.clear_faults();
    load.go_on_for(200).await?;
    let samples = load.finish().await?;
    let admitted = samples.len() as u64;
    for sample in &samples {
        assert_eq!(sample.outcome, Ok(200), "{what}");
    }
    let settled = async || {
        let sums = Sums::balanced(&gateway).await.ok()?;
        let rest = sums.pending + sums.in_flight == 0 && sums.admitted == admitted;
        (rest && gateway.backend.queued() == 0).then_some(sums)
    };
    let sums = eventually("all usage to be settled", PATIENCE, settled).await?;
    let resent = gateway.counter("usage_resent").await?;
    let usage = gateway.usage("free", "hits");
    println!(
        "{what}: {admitted} requests, usage {usage}, at most {} pending and {} in flight; \
         {resent} units sent twice for want of an answer, {} lost",
        most.pending, most.in_flight, sums.lost,
    );
    assert_eq!((sums.admitted, sums.lost), (admitted, 0), "{what}");
    let failures = gateway.counter("reports_uncertain").await?
        + gateway.counter("reports_not_delivered").await?;
    ensure!(failures > 0, "{what}: no report failed");
    match applied {
        Some(true) => assert_eq!(usage, admitted + resent, "{what}"),
        Some(false) => assert_eq!(usage, admitted, "{what}"),
        None => assert!((admitted..=admitted + resent).contains(&usage), "{what}"),
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Envoy and the module: run cargo xtask test"]
async fn usage_is_conserved_while_reports_surely_do_not_arrive() -> Result<()> {
    failing("refused", Failing::Refused, None).await?;
    failing("500", Failing::With(Fault::Status(500)), Some(false)).await?;
    failing("hangs", Failing::With(Fault::Hang), Some(false)).await?;
    failing(
        "reset before",
        Failing::With(Fault::ResetBefore),
        Some(false),
    )
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Envoy and the module: run cargo xtask test"]
async fn usage_is_conserved_while_reports_arrive_without_an_answer() -> Result<()> {
    failing("reset after", Failing::With(Fault::ResetAfter), Some(true)).await?;
    failing(
        "500 after",
        Failing::With(Fault::StatusAfter(500)),
        Some(true),
    )
    .await?;
    failing("slow", Failing::With(Fault::DelayMs(900)), Some(true)).await?;
    failing("flapping", Failing::Flapping, None).await
}
