//! Several limits with weights at once, over the end of a minute, under load: what each
//! window admits is what a model of the limits admits, to the unit.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use serde_json::json;
use service_management::Period;
use tokio::task::JoinSet;
use tollgate_end_to_end::{Gateway, PATIENCE, SERVICE, Setup, wall_milliseconds};
use tollgate_harness::eventually;

const DATASET: &str = r#"
service_token: svc-token
metrics: { hits: null, orders: hits, bytes: null }
plans:
  weighted:
    hits: { minute: 700, hour: 1200 }
    orders: { minute: 250 }
    bytes: { minute: 2001 }
services:
  "1001":
    backend_version: "1"
    applications:
      weighted: { plan: weighted, user_key: weighted-key }
"#;

/// What a request to each path costs: orders count for hits, too.
const COSTS: [(&str, [(&str, u64); 3]); 3] = [
    ("/v1/items", [("hits", 1), ("orders", 0), ("bytes", 0)]),
    ("/v1/orders", [("hits", 2), ("orders", 2), ("bytes", 0)]),
    ("/v1/blobs", [("hits", 1), ("orders", 0), ("bytes", 50)]),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Envoy and the module: run cargo xtask test"]
async fn over_the_end_of_a_minute_every_window_admits_what_the_model_does() -> Result<()> {
    let service = json!([{
        "id": SERVICE,
        "token": { "env": "TG_SERVICE_TOKEN" },
        "hosts": ["*"],
        "credentials": { "user_key": [{ "header": "x-api-key" }] },
        "metrics": { "orders": { "parent": "hits" } },
        "mapping_rules": [
            { "pattern": "/v1/items", "usage": { "hits": 1 } },
            { "pattern": "/v1/orders", "usage": { "orders": 2 } },
            { "pattern": "/v1/blobs", "usage": { "hits": 1, "bytes": 50 } },
        ],
    }]);
    let gateway = Gateway::start(Setup {
        dataset: DATASET.to_owned(),
        plugin: json!({ "services": service, "authorization": { "ttl": "2s" } }),
        ..Setup::default()
    })
    .await?;
    // So that both minutes are in one hour, and the load begins shortly before the second.
    let wait = loop {
        let into_hour = wall_milliseconds() % 3_600_000;
        let into_minute = into_hour % 60_000;
        if into_hour < 58 * 60_000 {
            break 60_000 - into_minute;
        }
        tokio::time::sleep(Duration::from_secs(10)).await;
    };
    let end = wall_milliseconds() + wait;
    if wait > 12_000 {
        tokio::time::sleep(Duration::from_millis(wait - 12_000)).await;
    }
    let client = gateway.client()?;
    let mut senders = JoinSet::new();
    for sender in 0..24_usize {
        let client = client.clone();
        senders.spawn(async move {
            let mut admitted = BTreeMap::<&str, u64>::new();
            let mut sent = 0;
            while wall_milliseconds() < end + 12_000 {
                let (path, _) = COSTS[(sender + sent) % 3];
                let reply = client.get(path, &[("x-api-key", "weighted-key")]).await?;
                match reply.status {
                    200 => *admitted.entry(path).or_default() += 1,
                    429 => {}
                    status => panic!("{status}: {}", reply.body),
                }
                sent += 1;
            }
            anyhow::Ok((admitted, sent))
        });
    }
    let (mut admitted, mut requests) = (BTreeMap::<&str, u64>::new(), 0);
    while let Some(done) = senders.join_next().await {
        let (counts, sent) = done??;
        requests += sent;
        for (path, count) in counts {
            *admitted.entry(path).or_default() += count;
        }
    }
    let all = ["usage_pending", "usage_in_flight"];
    eventually("all usage to be acknowledged", PATIENCE, async || {
        for name in all {
            if gateway.counter(name).await.ok()? != 0 {
                return None;
            }
        }
        let acknowledged = gateway.counter("usage_acknowledged").await.ok()?;
        let of = |path| admitted.get(path).copied().unwrap_or(0);
        // Units as reported: orders without what they count for hits.
        let units = of("/v1/items") + 2 * of("/v1/orders") + 51 * of("/v1/blobs");
        (acknowledged == units && gateway.backend.queued() == 0).then_some(())
    })
    .await?;
    let usage = gateway.backend.usage();
    let minutes = |metric| usage.windows(SERVICE, "weighted", metric, Period::Minute);
    let by_minute = ["hits", "orders", "bytes"].map(|metric| (metric, minutes(metric)));
    println!("{requests} requests, admitted {admitted:?}: {by_minute:?}");
    // Never over, whatever the order of requests; and nothing fits any more that costs least.
    let mut limits = BTreeMap::from([("hits", 700), ("orders", 250), ("bytes", 2_001)]);
    let boundary = i64::try_from(end / 1_000)?;
    for start in [boundary - 60, boundary] {
        let mut used = BTreeMap::new();
        for (metric, windows) in &by_minute {
            let of_window = windows.iter().find(|(at, _)| *at == start);
            let units = of_window.map_or(0, |(_, units)| *units);
            assert!(units <= limits[metric], "{metric} at {start}: {units}");
            used.insert(*metric, units);
        }
        for (path, cost) in COSTS {
            let fits = |(metric, delta): &(&str, u64)| used[metric] + delta <= limits[metric];
            assert!(
                !cost.iter().all(fits),
                "{path} would fit at {start}: {used:?}"
            );
        }
        // What the hour leaves for the next minute.
        limits.insert("hits", (1_200 - used["hits"]).min(700));
    }
    // What callers were told and what is counted is the same.
    for (index, metric) in ["hits", "orders", "bytes"].into_iter().enumerate() {
        let told = COSTS.iter().map(|(path, cost)| {
            let count = admitted.get(path).copied().unwrap_or(0);
            count * cost[index].1
        });
        assert_eq!(
            told.sum::<u64>(),
            gateway.usage("weighted", metric),
            "{metric}"
        );
    }
    Ok(())
}
