//! What the demo runs: Envoy with the filter, the API behind it, and service management,
//! all on the loopback; and what a person can try with them.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use service_management::{Call, Dataset, StandIn};
use tollgate_harness::{Echo, Envoy, EnvoyOptions, Plugin};

use super::checks::say;
use crate::tools::envoy;

const DATA: &str = include_str!("../../../../examples/service-management/demo.yaml");

/// The service of the data whose applications are known by user keys.
pub const SERVICE: &str = "1001";
/// The metric whose usage is that of all requests.
pub const METRIC_OF_ALL: &str = "hits";
/// Paths and the metric that a request for them, or for a path below, counts for. The
/// first two metrics are methods of the last.
const COSTS: [(&str, &str); 3] = [
    ("/v1/orders", "orders"),
    ("/v1/reports", "reports"),
    ("/v1/", METRIC_OF_ALL),
];
/// Envoy's worker threads.
pub const WORKERS: u32 = 2;
/// The time between two reports to service management.
pub const FLUSH_INTERVAL: Duration = Duration::from_secs(1);

/// The metric that a request for this path counts for: one.
pub fn cost(path: &str) -> Option<&'static str> {
    let (_, metric) = COSTS.iter().find(|(start, _)| path.starts_with(start))?;
    Some(metric)
}

/// Where to listen; 0 lets the system choose.
pub struct Ports {
    pub gateway: u16,
    pub service_management: u16,
}

/// All that runs. Dropping it ends it, Envoy first.
pub struct World {
    pub envoy: Envoy,
    pub api: Echo,
    pub service_management: StandIn,
    version: String,
}

impl World {
    /// Starts everything and waits until it serves.
    pub async fn start(executable: &Path, module: &Path, ports: Ports) -> Result<Self> {
        let version = envoy::version(executable)?;
        let options = service_management::Options {
            port: ports.service_management,
            observer: Some(show_call),
            ..Default::default()
        };
        let data = Dataset::from_yaml(DATA).context("examples/service-management/demo.yaml")?;
        let service_management = StandIn::start(data, options)
            .await
            .with_context(|| listening(ports.service_management))?;
        let api = Echo::start().await?;
        let port = ports.gateway;
        let envoy = Envoy::start(EnvoyOptions {
            executable: Some(executable.to_owned()),
            module: Some(module.to_owned()),
            plugin: plugin(),
            upstream: Some(api.address()),
            service_management: Some(service_management.address()),
            concurrency: WORKERS,
            env: vec![("TG_SERVICE_TOKEN".into(), "demo-token".into())],
            listener: Some(Arc::new(move |listener: &mut Value| {
                listener["address"]["socket_address"]["port_value"] = port.into();
            })),
            ..Default::default()
        })
        .await?;
        Ok(Self {
            envoy,
            api,
            service_management,
            version,
        })
    }

    /// A counter of the filter for the service.
    pub async fn counter(&self, name: &str) -> Result<u64> {
        let name = format!("wasmcustom.tollgate.{SERVICE}.{name}");
        self.envoy.stat(&name).await
    }

    /// Commands that show each outcome, for a terminal.
    pub fn things_to_try(&self) -> String {
        let gateway = self.envoy.url();
        let admin = self.envoy.admin_url();
        let backend = format!("http://{}", self.service_management.address());
        let log = self.envoy.access_log_path();
        let log = log.display();
        format!(
            "
Try it; Ctrl-C ends everything. What service management is asked shows here.

  curl -i '{gateway}/v1/orders/7?user_key=alice-key'               # 200
  curl -i -H 'x-api-key: dave-key' {gateway}/v1/items     # 200
  curl -i {gateway}/v1/orders/7                           # 401 no credential
  curl -i -H 'x-api-key: anything' {gateway}/v1/orders/7  # 403 unknown key
  curl -i -H 'x-api-key: carol-key' {gateway}/v1/orders/7 # 403 suspended
  curl -i -H 'x-api-key: erin-key' {gateway}/v1/reports   # 403 not in the plan
  curl -i -H 'x-api-key: alice-key' {gateway}/v2/orders   # 404 no mapping rule
  curl -i {gateway}/healthz                               # 200 exempt
  for i in 1 2 3 4 5 6; do curl -i -H 'x-api-key: bob-key' {gateway}/v1/items; done  # 429 after 5 a minute

  # A new customer, whose first request makes a call
  curl -X PUT {backend}/stand-in/applications/{SERVICE}/yves -d '{{\"plan\":\"small\",\"user_key\":\"yves-key\"}}'
  curl -i -H 'x-api-key: yves-key' {gateway}/v1/items

  # Service management fails: 503 for who is unknown, 200 for alice as before
  curl -X PUT {backend}/stand-in/faults -d '[{{\"endpoint\":\"any\",\"fault\":{{\"status\":500}}}}]'
  curl -i -H 'x-api-key: never-seen' {gateway}/v1/items
  curl -X DELETE {backend}/stand-in/faults

  curl {backend}/stand-in/usage            # usage as service management holds it
  curl {backend}/stand-in/calls            # the calls it got
  curl '{admin}/stats?filter=tollgate'     # the filter's own figures
  tail -f {log}      # every request and what was decided
"
        )
    }
}

impl fmt::Display for World {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gateway = self.envoy.url();
        let (version, admin) = (&self.version, self.envoy.admin_url());
        let api = self.api.address();
        let backend = self.service_management.address();
        writeln!(
            out,
            "\nTollgate in front of an API, all of it on this machine"
        )?;
        writeln!(
            out,
            "  gateway             {gateway}  (Envoy {version}, {WORKERS} workers, admin {admin})"
        )?;
        writeln!(
            out,
            "  the API             http://{api}  (says ok to everything)"
        )?;
        write!(
            out,
            "  service management  http://{backend}  (a stand-in for 3scale's)"
        )
    }
}

/// Whether calls to service management are printed.
static SHOW_CALLS: AtomicBool = AtomicBool::new(false);

/// Prints every call to service management from now on, or none.
pub fn show_calls(show: bool) {
    SHOW_CALLS.store(show, Ordering::Relaxed);
}

fn show_call(call: &Call) {
    if SHOW_CALLS.load(Ordering::Relaxed) {
        say(format_args!("  service management: {call}"));
    }
}

fn listening(port: u16) -> String {
    format!("service management cannot listen on 127.0.0.1:{port}")
}

/// The shipped configuration with rules by which a request counts exactly one of one
/// metric, and with reports soon enough to watch.
fn plugin() -> Plugin {
    let rules: Vec<_> = COSTS
        .iter()
        .map(|(path, metric)| json!({ "pattern": path, "usage": { *metric: 1 }, "last": true }))
        .collect();
    Plugin::Merge(json!({
        "services": [{
            "id": SERVICE,
            "token": { "env": "TG_SERVICE_TOKEN" },
            "hosts": ["*"],
            "credentials": { "user_key": [{ "query": "user_key" }, { "header": "x-api-key" }] },
            "metrics": { "orders": { "parent": METRIC_OF_ALL }, "reports": { "parent": METRIC_OF_ALL } },
            "mapping_rules": rules,
            "exempt": [{ "method": "OPTIONS" }, { "path": "/healthz" }],
        }],
        "reporting": { "interval": format!("{}s", FLUSH_INTERVAL.as_secs()) },
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_path_that_fits_decides_what_is_counted() {
        assert_eq!(cost("/v1/orders/7"), Some("orders"));
        assert_eq!(cost("/v1/items"), Some("hits"));
        assert_eq!(cost("/v2/orders"), None);
    }
}
