//! A running Envoy: started from a shipped configuration, asked over its admin port,
//! and ended when its handle is dropped.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::client::{Client, Reply};
use crate::configuration::{Base, Changes, ListenerPatch, Plugin};
use crate::{eventually, process};

/// How long Envoy may take to come up or to take a listener: generous, because test
/// machines are busy. Nothing waits this long unless something is wrong.
const PATIENCE: Duration = Duration::from_secs(30);

/// What to start. Start from `EnvoyOptions::default()`.
#[derive(Clone)]
pub struct EnvoyOptions {
    /// Envoy's executable; `None` takes the path in `ENVOY`.
    pub executable: Option<PathBuf>,
    /// The shipped configuration to start from.
    pub base: Base,
    /// The filter's configuration.
    pub plugin: Plugin,
    /// The filter's module; `None` takes the path in `TOLLGATE_WASM`.
    pub module: Option<PathBuf>,
    /// HTTP filters in place of Tollgate's, before the router.
    pub filters: Option<Vec<Value>>,
    /// Address of the cluster `upstream`; `None` refuses connections.
    pub upstream: Option<SocketAddr>,
    /// Address of the cluster `service-management`; `None` refuses connections.
    pub service_management: Option<SocketAddr>,
    /// Further clusters, each of one address.
    pub clusters: Vec<(String, SocketAddr)>,
    /// Number of worker threads.
    pub concurrency: u32,
    /// The only processor that it may use, for measurements (`taskset`); `None`: all.
    pub processor: Option<usize>,
    /// Variables for Envoy's process, beside `TG_SERVICE_TOKEN`, which is `svc-token`
    /// unless given here.
    pub env: Vec<(String, String)>,
    /// How long an old listener keeps its connections. Whole seconds.
    pub drain_time: Duration,
    /// As for Envoy's `--log-level`.
    pub log_level: String,
    /// Whether requests are logged (see [`Envoy::access_log`]).
    pub access_log: bool,
    /// Further changes to the listener, made last.
    pub listener: Option<ListenerPatch>,
}

impl Default for EnvoyOptions {
    fn default() -> Self {
        Self {
            executable: None,
            base: Base::default(),
            plugin: Plugin::default(),
            module: None,
            filters: None,
            upstream: None,
            service_management: None,
            clusters: Vec::new(),
            processor: None,
            concurrency: 2,
            env: Vec::new(),
            drain_time: Duration::from_secs(2),
            log_level: "info".into(),
            access_log: true,
            listener: None,
        }
    }
}

/// What Envoy did with a new listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListenerUpdate {
    /// It serves new connections.
    Accepted,
    /// The previous listener stays.
    Rejected,
}

/// A running Envoy. Dropping it ends the process (SIGTERM, then SIGKILL after a few
/// seconds) and removes its files.
pub struct Envoy {
    child: Child,
    directory: TempDir,
    changes: Changes,
    concurrency: u32,
    admin: Client,
    admin_address: SocketAddr,
    address: SocketAddr,
}

impl Envoy {
    /// Starts Envoy and waits until it serves.
    /// Errors carry the end of its log.
    pub async fn start(options: EnvoyOptions) -> Result<Self> {
        let executable = match options.executable {
            Some(path) => path,
            None => variable("ENVOY")?,
        };
        let module = match (&options.module, &options.filters) {
            (Some(module), _) => Some(module.clone()),
            (None, Some(_)) => None,
            (None, None) => Some(variable("TOLLGATE_WASM")?),
        };
        if let Some(module) = &module {
            ensure!(
                module.is_file(),
                "there is no module at {}: run cargo xtask test",
                module.display()
            );
        }
        let directory = tempfile::Builder::new()
            .prefix("tollgate-envoy-")
            .tempdir()?;
        let file = |name: &str| directory.path().join(name);
        let changes = Changes {
            base: options.base,
            plugin: options.plugin,
            module: module.map(|path| text(&path)).transpose()?,
            filters: options.filters,
            upstream: options.upstream,
            service_management: options.service_management,
            clusters: options.clusters,
            access_log: options
                .access_log
                .then(|| text(file("access.log")))
                .transpose()?,
            listener: options.listener,
            // In a directory of its own, because Envoy watches the directory: at `debug` it
            // would log that its log has changed, which changes it.
            listeners_path: text(file("watched").join("listeners.json"))?,
        };
        // JSON is YAML to Envoy.
        std::fs::write(file("bootstrap.json"), changes.bootstrap()?.to_string())?;
        if changes.base == Base::Reloadable {
            std::fs::create_dir(file("watched"))?;
            std::fs::write(&changes.listeners_path, changes.listeners()?.to_string())?;
        }
        let log = File::create(file("envoy.log"))?;
        let mut command = match options.processor {
            // It becomes Envoy, under the same process id.
            Some(processor) => {
                let mut taskset = Command::new("taskset");
                taskset.args(["--cpu-list", &processor.to_string()]);
                taskset.arg(&executable);
                taskset
            }
            None => Command::new(&executable),
        };
        let child = command
            .args(["-c".as_ref(), file("bootstrap.json").as_os_str()])
            .args(["--admin-address-path".as_ref(), file("admin").as_os_str()])
            .args(["--concurrency", &options.concurrency.to_string()])
            .args(["--drain-time-s", &options.drain_time.as_secs().to_string()])
            .args(["--log-level", &options.log_level])
            // At `info` it lists all of Envoy's extensions.
            .args(["--component-log-level", "main:warning"])
            // Several Envoys on one machine must not share memory; access logs are wanted at once.
            .args(["--use-dynamic-base-id", "--file-flush-interval-msec", "20"])
            .env("TG_SERVICE_TOKEN", "svc-token")
            .envs(options.env)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("starting Envoy from {}", executable.display()))?;
        // From here on, dropping ends the process.
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut envoy = Self {
            child,
            directory,
            changes,
            concurrency: options.concurrency,
            admin: Client::new("")?,
            admin_address: nowhere,
            address: nowhere,
        };
        match envoy.come_up().await {
            Ok(()) => Ok(envoy),
            Err(error) => Err(error.context(format!(
                "Envoy did not come up; its log ends:\n{}",
                envoy.log_tail()
            ))),
        }
    }

    async fn come_up(&mut self) -> Result<()> {
        let until = Instant::now() + PATIENCE;
        let admin_file = self.directory.path().join("admin");
        loop {
            if let Some(status) = self.child.try_wait()? {
                bail!("Envoy ended with {status}");
            }
            // Written in one go, but perhaps not yet.
            if let Some(address) = std::fs::read_to_string(&admin_file)
                .ok()
                .and_then(|text| text.trim().parse().ok())
            {
                self.admin_address = address;
                self.admin = Client::new(self.admin_url())?;
                if let Some(address) = self.serving().await? {
                    self.address = address;
                    return Ok(());
                }
            }
            ensure!(Instant::now() < until, "not ready after {PATIENCE:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The listener's address, once Envoy is ready and every worker has the listener.
    async fn serving(&self) -> Result<Option<SocketAddr>> {
        // The port is announced before it answers.
        let Ok(ready) = self.admin.get("/ready", &[]).await else {
            return Ok(None);
        };
        if ready.status != 200 {
            return Ok(None);
        }
        let counters = self.stats("listener_manager.").await?;
        ensure!(
            count(&counters, "listener_manager.lds.update_rejected") == 0,
            "Envoy refused the listener"
        );
        if count(&counters, "listener_manager.listener_create_success")
            < u64::from(self.concurrency)
        {
            return Ok(None);
        }
        let listeners: Value = serde_json::from_str(&self.admin("/listeners?format=json").await?)?;
        let address = &listeners["listener_statuses"][0]["local_address"]["socket_address"];
        let (Some(host), Some(port)) =
            (address["address"].as_str(), address["port_value"].as_u64())
        else {
            return Ok(None);
        };
        Ok(Some(SocketAddr::new(host.parse()?, port.try_into()?)))
    }

    /// Where requests go: `http://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Where requests go, for raw bytes.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A new client for [`url`](Self::url), with no connections yet.
    pub fn client(&self) -> Result<Client> {
        Client::new(self.url())
    }

    /// The admin interface: `http://127.0.0.1:PORT`.
    pub fn admin_url(&self) -> String {
        format!("http://{}", self.admin_address)
    }

    /// The body of a GET on the admin interface.
    pub async fn admin(&self, path: &str) -> Result<String> {
        Self::checked(path, self.admin.get(path, &[]).await?)
    }

    fn checked(path: &str, reply: Reply) -> Result<String> {
        ensure!(
            reply.status == 200,
            "{path} on the admin interface: {} {}",
            reply.status,
            reply.body
        );
        Ok(reply.body)
    }

    /// Counters and gauges whose names start with `prefix`. The filter's own are
    /// `wasmcustom.<name>`.
    pub async fn stats(&self, prefix: &str) -> Result<BTreeMap<String, u64>> {
        let body = self.admin("/stats").await?;
        Ok(body
            .lines()
            .filter_map(|line| line.split_once(": "))
            .filter(|(name, _)| name.starts_with(prefix))
            // Histograms and text are left out.
            .filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?)))
            .collect())
    }

    /// One counter or gauge by its whole name; 0 if it does not exist (yet).
    pub async fn stat(&self, name: &str) -> Result<u64> {
        Ok(count(&self.stats(name).await?, name))
    }

    /// Waits until a counter or gauge is as `is` wants it.
    pub async fn wait_for_stat(&self, name: &str, is: impl Fn(u64) -> bool) -> Result<u64> {
        let mut last = 0;
        eventually(name, PATIENCE, async || {
            last = self.stat(name).await.ok()?;
            is(last).then_some(last)
        })
        .await
        .with_context(|| format!("{name} is {last}"))
    }

    /// What Envoy and the filter have logged.
    pub fn log(&self) -> String {
        let bytes = std::fs::read(self.directory.path().join("envoy.log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The last lines of [`log`](Self::log), for messages.
    pub fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    /// The requests so far, one JSON object each, with the fields of the shipped
    /// configuration. A request appears some 20 ms after it ended.
    pub fn access_log(&self) -> Result<Vec<Value>> {
        let text = std::fs::read_to_string(self.access_log_path())?;
        // Only whole lines: Envoy may be writing.
        let (whole, _) = text.rsplit_once('\n').unwrap_or_default();
        whole
            .lines()
            .map(|line| {
                serde_json::from_str(line).with_context(|| format!("access log line {line}"))
            })
            .collect()
    }

    /// The file that [`access_log`](Self::access_log) reads. It is removed with the handle.
    pub fn access_log_path(&self) -> PathBuf {
        self.directory.path().join("access.log")
    }

    /// Waits until the access log has a line that `is` wants, and returns it.
    pub async fn wait_for_access_log(&self, is: impl Fn(&Value) -> bool) -> Result<Value> {
        eventually("a line in the access log", PATIENCE, async || {
            self.access_log().ok()?.into_iter().find(|line| is(line))
        })
        .await
    }

    /// Envoy's process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Resident memory in MiB.
    pub fn rss_mib(&self) -> Result<f64> {
        Ok(process::resident(self.pid())? as f64 / f64::from(1 << 20))
    }

    /// CPU time of the whole process so far, user and system, to the nanosecond.
    pub fn cpu_time(&self) -> Result<Duration> {
        Ok(self.cpu_time_by_thread()?.values().sum())
    }

    /// CPU time so far by the thread's name; the workers are `wrk:worker_0` and so on.
    pub fn cpu_time_by_thread(&self) -> Result<BTreeMap<String, Duration>> {
        process::threads(self.pid())
    }

    /// Gives the filter another configuration, by moving a new listener file into place, and
    /// waits for what Envoy makes of it. Needs [`Base::Reloadable`]. Connections that
    /// exist keep the old listener until it has drained: take a new [`client`](Self::client).
    pub async fn update_listener(&mut self, plugin: Plugin) -> Result<ListenerUpdate> {
        let before = self.changes.plugin.clone();
        self.changes.plugin = plugin;
        let update = self.move_listener_into_place().await;
        if !matches!(update, Ok(ListenerUpdate::Accepted)) {
            self.changes.plugin = before;
        }
        update
    }

    /// Gives the listener another module (and so a new VM), as
    /// [`update_listener`](Self::update_listener) does with the configuration.
    pub async fn update_module(&mut self, module: &Path) -> Result<ListenerUpdate> {
        let before = self.changes.module.replace(text(module)?);
        let update = self.move_listener_into_place().await;
        if !matches!(update, Ok(ListenerUpdate::Accepted)) {
            self.changes.module = before;
        }
        update
    }

    async fn move_listener_into_place(&self) -> Result<ListenerUpdate> {
        ensure!(
            self.changes.base == Base::Reloadable,
            "a listener can be updated with Base::Reloadable only"
        );
        const ACCEPTED: &str = "listener_manager.lds.update_success";
        const REJECTED: &str = "listener_manager.lds.update_rejected";
        const MODIFIED: &str = "listener_manager.listener_modified";
        const CREATED: &str = "listener_manager.listener_create_success";
        let before = self.stats("listener_manager.").await?;
        let rose = |now: &BTreeMap<String, u64>, name: &str| {
            count(now, name).saturating_sub(count(&before, name))
        };
        let mut new = tempfile::NamedTempFile::new_in(self.directory.path())?;
        std::io::Write::write_all(&mut new, self.changes.listeners()?.to_string().as_bytes())?;
        new.persist(&self.changes.listeners_path)?;
        eventually(
            "Envoy to take or refuse the listener",
            PATIENCE,
            async || {
                let now = self.stats("listener_manager.").await.ok()?;
                if rose(&now, REJECTED) > 0 {
                    return Some(ListenerUpdate::Rejected);
                }
                // A listener that says the same as before is not made anew.
                let everywhere =
                    rose(&now, MODIFIED) == 0 || rose(&now, CREATED) >= u64::from(self.concurrency);
                (rose(&now, ACCEPTED) > 0 && everywhere).then_some(ListenerUpdate::Accepted)
            },
        )
        .await
        .with_context(|| format!("Envoy's log ends:\n{}", self.log_tail()))
    }

    /// Starts to drain the listeners: answers ask clients to close, and after the drain
    /// time the listeners are gone. Envoy itself stays.
    pub async fn drain(&self) -> Result<()> {
        let path = "/drain_listeners?graceful";
        let reply = self
            .admin
            .send(reqwest::Method::POST, path, &[], Vec::new())
            .await?;
        Self::checked(path, reply).map(drop)
    }

    /// Sends SIGTERM and waits until Envoy has ended; after five seconds SIGKILL.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        if !matches!(self.child.try_wait(), Ok(None)) {
            return;
        }
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        if pid.is_some_and(|pid| kill_process(pid, Signal::TERM).is_ok()) {
            let until = Instant::now() + Duration::from_secs(5);
            while Instant::now() < until && matches!(self.child.try_wait(), Ok(None)) {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        // Errors mean that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Envoy {
    fn drop(&mut self) {
        self.end();
        if std::thread::panicking() {
            eprintln!("Envoy's log ends:\n{}", self.log_tail());
        }
    }
}

fn count(stats: &BTreeMap<String, u64>, name: &str) -> u64 {
    stats.get(name).copied().unwrap_or_default()
}

fn variable(name: &str) -> Result<PathBuf> {
    std::env::var_os(name)
        .filter(|value| !value.is_empty())
        .map(PathBuf::from)
        .with_context(|| {
            format!("the environment variable {name} is not set: run cargo xtask test")
        })
}

fn text(path: impl AsRef<OsStr>) -> Result<String> {
    path.as_ref()
        .to_str()
        .map(str::to_owned)
        .context("a path is not UTF-8")
}
