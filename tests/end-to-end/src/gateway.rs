//! Envoy with the module, an API behind it, and the stand-in for service management.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use service_management::{Dataset, Endpoint, Options, StandIn};
use tollgate_harness::{Client, Echo, Envoy, EnvoyOptions, Plugin, eventually};

/// The service of the shipped configuration.
pub const SERVICE: &str = "1001";

/// How long anything may take that is waited for: generous, because test machines are
/// busy and pauses after failures grow. Nothing waits this long unless something is wrong.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What the stand-in knows unless a test says otherwise. Every application's key is
/// its name with `-key` behind it.
const DATASET: &str = r#"
service_token: svc-token
metrics: { hits: null, orders: hits }
plans:
  free: {}
  minute5: { hits: { minute: 5 } }
  minute100: { hits: { minute: 100 } }
  eternity3000: { hits: { eternity: 3000 } }
  none: { hits: { day: 0 } }
services:
  "1001":
    backend_version: "1"
    applications:
      free: { plan: free, user_key: free-key }
      other: { plan: free, user_key: other-key }
      minute5: { plan: minute5, user_key: minute5-key }
      minute100: { plan: minute100, user_key: minute100-key }
      eternity3000: { plan: eternity3000, user_key: eternity3000-key }
      none: { plan: none, user_key: none-key }
      suspended: { plan: free, user_key: suspended-key, state: suspended }
"#;

/// What to start. Start from `Setup::default()`.
pub struct Setup {
    /// The stand-in's data, as YAML.
    pub dataset: String,
    /// A merge patch on the shipped configuration. Unless it says otherwise, usage is
    /// reported twice a second.
    pub plugin: Value,
    /// How Envoy is started; its addresses and its plugin configuration are filled in.
    pub envoy: EnvoyOptions,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            dataset: DATASET.to_owned(),
            plugin: json!({}),
            envoy: EnvoyOptions::default(),
        }
    }
}

/// A running gateway. Ends with its handle, Envoy first.
pub struct Gateway {
    /// The proxy.
    pub envoy: Envoy,
    /// The API behind it.
    pub echo: Echo,
    /// Service management.
    pub backend: StandIn,
    plugin: Value,
}

impl Gateway {
    /// Starts all three and waits until Envoy serves.
    pub async fn start(setup: Setup) -> Result<Self> {
        let options = Options {
            calls_kept: 100_000,
            ..Options::default()
        };
        let dataset = Dataset::from_yaml(&setup.dataset)?;
        let backend = StandIn::start(dataset, options).await?;
        let echo = Echo::start().await?;
        let mut plugin = json!({ "reporting": { "interval": "500ms" } });
        merge(&mut plugin, &setup.plugin);
        let envoy = Envoy::start(EnvoyOptions {
            plugin: Plugin::Merge(plugin.clone()),
            upstream: Some(echo.address()),
            service_management: Some(backend.address()),
            ..setup.envoy
        })
        .await?;
        Ok(Self {
            envoy,
            echo,
            backend,
            plugin,
        })
    }

    /// The configuration that the filter has, with another patch on top: for an update.
    #[must_use]
    pub fn plugin_with(&self, patch: &Value) -> Plugin {
        let mut plugin = self.plugin.clone();
        merge(&mut plugin, patch);
        Plugin::Merge(plugin)
    }

    /// A client without connections yet.
    pub fn client(&self) -> Result<Client> {
        self.envoy.client()
    }

    /// One of the filter's counters for [`SERVICE`].
    pub async fn counter(&self, name: &str) -> Result<u64> {
        let name = format!("wasmcustom.tollgate.{SERVICE}.{name}");
        self.envoy.stat(&name).await
    }

    /// Waits until the filter's counter says that so many requests were admitted: each worker
    /// adds to it on its ticks.
    pub async fn admitted(&self, requests: u64) -> Result<()> {
        let what = format!("{requests} requests to be counted as admitted");
        eventually(&what, Duration::from_secs(10), async || {
            let counted = self.counter("requests_admitted").await.ok()?;
            (counted == requests).then_some(())
        })
        .await
    }

    /// What service management has counted for an application of [`SERVICE`].
    #[must_use]
    pub fn usage(&self, application: &str, metric: &str) -> u64 {
        self.backend.usage().total(SERVICE, application, metric)
    }

    /// How often service management was asked about an application; questions about metrics,
    /// which name a usage, are others.
    #[must_use]
    pub fn questions(&self) -> u64 {
        self.backend.calls().questions()
    }

    /// How often it was told about usage.
    #[must_use]
    pub fn reports(&self) -> u64 {
        self.backend.calls().count(Endpoint::Report)
    }

    /// Waits until so many units are acknowledged and applied. As long as every request
    /// costs one unit, nothing is pending or in flight after that, so nothing can follow.
    pub async fn flushed(&self, units: u64) -> Result<()> {
        let mut seen = 0;
        eventually("usage to be acknowledged", PATIENCE, async || {
            seen = self.counter("usage_acknowledged").await.ok()?;
            (seen >= units && self.backend.queued() == 0).then_some(())
        })
        .await
        .with_context(|| format!("{seen} of {units} units are acknowledged"))
    }
}

/// Unix time in milliseconds.
#[must_use]
pub fn wall_milliseconds() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}

/// Puts the fields of one object into another. Unlike a merge patch it keeps nulls,
/// for the patch that it makes.
pub fn merge(into: &mut Value, from: &Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (name, value) in from {
                merge(into.entry(name).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from.clone(),
    }
}
