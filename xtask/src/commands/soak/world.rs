//! What runs: Envoy with the filter, an API behind it and service management, on the
//! loopback; and how the filter comes to another configuration.

use std::path::{Path, PathBuf};
use std::sync::Mutex as Plain;
use std::sync::PoisonError;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use service_management::{Dataset, Options, StandIn};
use tempfile::TempDir;
use tokio::sync::Mutex;
use tollgate_harness::{
    Base, Client, Echo, Envoy, EnvoyOptions, ListenerUpdate, Plugin, eventually,
};

use super::consumers::{self, Consumers};
use super::tally::{Became, Tally};

/// How long old connections may stay. Clients leave them when the new listener serves; that can take
/// long, for a new module is compiled meanwhile, on a machine that is busy.
const DRAIN: Duration = Duration::from_secs(60);
/// How long may be waited for anything.
const PATIENCE: Duration = Duration::from_secs(60);

/// All that runs. Dropping it ends it, Envoy first.
pub struct World {
    pub envoy: Mutex<Envoy>,
    pub backend: Mutex<StandIn>,
    client: Plain<Client>,
    happening: Plain<String>,
    modules: TempDir,
    module: PathBuf,
    _api: Echo,
}

impl World {
    pub async fn start(executable: PathBuf, module: PathBuf) -> Result<Self> {
        let data = Dataset::from_yaml(&consumers::dataset().to_string())?;
        let backend = StandIn::start(data, Options::default()).await?;
        let api = Echo::start().await?;
        let envoy = Envoy::start(EnvoyOptions {
            executable: Some(executable),
            module: Some(module.clone()),
            base: Base::Reloadable,
            plugin: plugin(6_000, 500),
            upstream: Some(api.address()),
            service_management: Some(backend.address()),
            concurrency: 2,
            drain_time: DRAIN,
            access_log: false,
            ..EnvoyOptions::default()
        })
        .await?;
        let client = envoy.client()?;
        Ok(Self {
            envoy: Mutex::new(envoy),
            backend: Mutex::new(backend),
            client: Plain::new(client),
            happening: Plain::default(),
            modules: tempfile::tempdir()?,
            module,
            _api: api,
        })
    }

    /// The client whose connections are to the newest listener.
    pub fn client(&self) -> Client {
        let client = self.client.lock();
        client.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What goes on now, for the progress line.
    pub fn progress(&self) -> String {
        let happening = self.happening.lock();
        happening.unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn say(&self, happening: String) {
        *self
            .happening
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = happening;
    }

    /// Makes everybody known who is to be.
    pub async fn introduce(&self, tally: &Tally) -> Result<()> {
        for request in Consumers::acquaintances() {
            eventually("an application to be known", PATIENCE, async || {
                let became = Became::of(&self.client(), &request).await.ok()?;
                let known = became.status == 200;
                tally.add(&request, Ok(became));
                known.then_some(())
            })
            .await?;
        }
        Ok(())
    }

    /// Gives the filter other times.
    pub async fn reconfigure(&self, ttl_ms: u64, interval_ms: u64) -> Result<()> {
        let mut envoy = self.envoy.lock().await;
        let update = envoy.update_listener(plugin(ttl_ms, interval_ms)).await?;
        self.take_on(&envoy, update)
    }

    /// Gives it another module: the same, with a custom section that tells them apart, for Envoy
    /// goes by the bytes.
    pub async fn replace_module(&self, version: u64) -> Result<()> {
        let path = self.modules.path().join(format!("{version}.wasm"));
        let [low, high, ..] = version.to_le_bytes();
        let mut module = std::fs::read(&self.module)?;
        // Section 0, 4 bytes long: a name of 1 byte, and 2 of content.
        module.extend([0, 4, 1, b'v', low, high]);
        std::fs::write(&path, module)?;
        let mut envoy = self.envoy.lock().await;
        let update = envoy.update_module(Path::new(&path)).await?;
        self.take_on(&envoy, update)
    }

    fn take_on(&self, envoy: &Envoy, update: ListenerUpdate) -> Result<()> {
        ensure!(
            update == ListenerUpdate::Accepted,
            "Envoy refused a listener"
        );
        *self.client.lock().unwrap_or_else(PoisonError::into_inner) = envoy.client()?;
        Ok(())
    }
}

/// Answers grow old soon, so that there are refreshes all the time.
fn plugin(ttl_ms: u64, interval_ms: u64) -> Plugin {
    let milliseconds = |value: u64| -> Value { json!(format!("{value}ms")) };
    Plugin::Merge(json!({
        "service_management": { "timeout": "1s" },
        "services": consumers::services(),
        "authorization": {
            "ttl": milliseconds(ttl_ms), "negative_ttl": "2s", "stale_if_error": "1h", "unknown": "deny",
        },
        "reporting": { "interval": milliseconds(interval_ms), "timeout": "1s", "uncertain": "resend" },
    }))
}

/// Time since 1970.
pub fn wall() -> Result<Duration> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?)
}
