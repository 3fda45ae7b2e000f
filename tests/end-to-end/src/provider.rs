//! A real OpenID provider on loopback: npm's `oidc-provider` in Node.js, of which nothing is ours
//! but a script of settings (`oidc/provider.mjs`).

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::gateway::PATIENCE;

/// How often it is started at the most: Node.js 20 was seen to stand still for good, in its own
/// lock, while it made the keys.
const STARTS: usize = 3;
/// How long a start may take that is not the last.
const START: Duration = Duration::from_secs(20);

/// The provider. It ends with its handle.
pub struct Provider {
    process: Child,
    /// Its `iss`, which is also its URL.
    pub issuer: String,
    /// Where it listens.
    pub address: SocketAddr,
    http: reqwest::Client,
}

impl Provider {
    /// Starts one on any port.
    pub async fn start() -> Result<Self> {
        Self::start_at(0).await
    }

    /// Starts one on this port: the same issuer again, with other keys.
    pub async fn start_at(port: u16) -> Result<Self> {
        for _ in 1..STARTS {
            if let Ok(Ok(started)) = timeout(START, Self::try_start(port)).await {
                return Ok(started);
            }
        }
        let started = timeout(PATIENCE, Self::try_start(port)).await;
        started.context("the OpenID provider does not come up")?
    }

    /// Starts one, and ends it if this is not waited for.
    async fn try_start(port: u16) -> Result<Self> {
        let home = std::env::var_os("TOLLGATE_OIDC")
            .map(PathBuf::from)
            .context("TOLLGATE_OIDC is not set: run cargo xtask test")?;
        let mut process = Command::new("node")
            .arg("provider.mjs")
            .arg(port.to_string())
            .current_dir(home)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .context("starting the OpenID provider")?;
        let output = process.stdout.take().context("no output")?;
        let mut lines = BufReader::new(output).lines();
        let issuer = loop {
            let line = lines.next_line().await?;
            let line = line.context("the OpenID provider has ended")?;
            if line.starts_with("http://127.0.0.1:") {
                break line;
            }
        };
        let address = issuer.trim_start_matches("http://").parse()?;
        Ok(Self {
            process,
            issuer,
            address,
            http: reqwest::Client::builder()
                .no_proxy()
                .timeout(PATIENCE)
                .build()?,
        })
    }

    /// Ends it at once.
    pub async fn stop(mut self) -> Result<()> {
        self.process.kill().await?;
        Ok(())
    }

    /// An access token by client credentials. `like` says what it is like: `alg=ES256&ttl=60`.
    pub async fn token(&self, client: &str, scope: &str, like: &str) -> Result<String> {
        let form = form_urlencoded::Serializer::new(String::new())
            .append_pair("grant_type", "client_credentials")
            .append_pair("resource", &format!("https://api.example/orders?{like}"))
            .append_pair("scope", scope)
            .finish();
        let secret = format!("{client}-secret");
        let reply = self
            .http
            .post(format!("{}/token", self.issuer))
            .basic_auth(client, Some(secret))
            .header("content-type", "application/x-www-form-urlencoded")
            .body(form)
            .send()
            .await?;
        let body: Value = serde_json::from_slice(&reply.bytes().await?)?;
        let token = body["access_token"].as_str();
        Ok(token.with_context(|| body.to_string())?.to_owned())
    }

    /// Takes back a token of this client (RFC 7009).
    pub async fn revoke(&self, client: &str, token: &str) -> Result<()> {
        let reply = self.about(client, "revocation", token).await?;
        ensure!(reply.status().is_success(), "{}", reply.status());
        Ok(())
    }

    /// Whether it says that a token is active (RFC 7662).
    pub async fn introspect(&self, token: &str) -> Result<bool> {
        let reply = self.about("gateway", "introspection", token).await?;
        let body: Value = serde_json::from_slice(&reply.bytes().await?)?;
        body["active"].as_bool().context("no answer")
    }

    async fn about(&self, client: &str, what: &str, token: &str) -> Result<reqwest::Response> {
        let form = form_urlencoded::Serializer::new(String::new())
            .append_pair("token", token)
            .finish();
        let request = self
            .http
            .post(format!("{}/token/{what}", self.issuer))
            .basic_auth(client, Some(format!("{client}-secret")))
            .header("content-type", "application/x-www-form-urlencoded")
            .body(form);
        Ok(request.send().await?)
    }

    /// A token that only looks like one of the provider's.
    pub async fn forged(&self, kind: &str) -> Result<String> {
        self.control(&format!("forge?kind={kind}")).await
    }

    /// Makes new keys. The old ones stay published if `keep` says so.
    pub async fn rotate(&self, keep: bool) -> Result<()> {
        let keep = if keep { "?keep" } else { "" };
        self.control(&format!("rotate{keep}")).await.map(drop)
    }

    /// How many requests there were for a path.
    pub async fn count(&self, path: &str) -> Result<u64> {
        let counts: Value = serde_json::from_str(&self.control("counts").await?)?;
        Ok(counts[path].as_u64().unwrap_or(0))
    }

    async fn control(&self, what: &str) -> Result<String> {
        let reply = self.http.get(format!("{}/-/{what}", self.issuer)).send();
        let reply = reply.await?;
        ensure!(reply.status().is_success(), "{what}: {}", reply.status());
        Ok(String::from_utf8(reply.bytes().await?.to_vec())?)
    }
}
