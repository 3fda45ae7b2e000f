//! The API's consumers: many connections, spread over all of Envoy's workers, on which
//! requests are sent side by side.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Result, ensure};
use tokio::task::JoinSet;
use tollgate_harness::{Client, Envoy, Reply};

/// Connections that are opened at a time, and the most in all.
const CONNECTIONS: usize = 16;
const MOST_CONNECTIONS: usize = 128;

/// One request: a path, and whose key it carries, if any.
#[derive(Clone)]
pub struct Ask {
    /// The path, with a query if there is one.
    pub path: String,
    /// The application; its key goes into the header `x-api-key`.
    pub application: Option<String>,
}

impl Ask {
    /// A request of the application with this name.
    pub fn by(application: &str, path: &str) -> Self {
        Self {
            path: path.to_owned(),
            application: Some(application.to_owned()),
        }
    }

    /// A request without a credential.
    pub fn anonymous(path: &str) -> Self {
        Self {
            path: path.to_owned(),
            application: None,
        }
    }

    async fn send(&self, client: &Client) -> Result<Reply> {
        let key = self.application.as_deref().map(key_of);
        let header = key.as_deref().map(|key| ("x-api-key", key));
        client.get(&self.path, header.as_slice()).await
    }
}

/// The key of an application of the stand-in's data.
pub fn key_of(application: &str) -> String {
    format!("{application}-key")
}

/// Clients with one connection each; every worker has at least one of them.
pub struct Consumers {
    clients: Vec<Client>,
    /// Requests that [`connect`](Self::connect) sent.
    pub greetings: u64,
}

impl Consumers {
    /// Opens connections until every worker has accepted some. The kernel chooses the
    /// worker, so it may take more than the first few. Each connection sends one exempt
    /// request.
    pub async fn connect(envoy: &Envoy) -> Result<Self> {
        let mut consumers = Self {
            clients: Vec::new(),
            greetings: 0,
        };
        loop {
            for _ in 0..CONNECTIONS {
                let client = envoy.client()?;
                let reply = client.get("/healthz", &[]).await?;
                ensure!(
                    reply.status == 200,
                    "/healthz was answered {}",
                    reply.status
                );
                consumers.clients.push(client);
                consumers.greetings += 1;
            }
            let workers = connections_by_worker(envoy).await?;
            if workers.values().all(|connections| *connections > 0) {
                return Ok(consumers);
            }
            ensure!(
                consumers.clients.len() < MOST_CONNECTIONS,
                "of {} connections some worker has none: {workers:?}",
                consumers.clients.len()
            );
        }
    }

    /// How many connections there are.
    pub fn connections(&self) -> usize {
        self.clients.len()
    }

    /// Sends one request.
    pub async fn send(&self, ask: &Ask) -> Result<Reply> {
        let Some(client) = self.clients.first() else {
            anyhow::bail!("nobody is connected");
        };
        ask.send(client).await
    }

    /// Sends all requests, one at a time on each connection. The replies are in the
    /// order of the requests.
    pub async fn send_all(&self, asks: Vec<Ask>) -> Result<Vec<Reply>> {
        let asks = Arc::new(asks);
        let next = Arc::new(AtomicUsize::new(0));
        let mut senders = JoinSet::new();
        for client in &self.clients {
            let (client, asks, next) = (client.clone(), asks.clone(), next.clone());
            senders.spawn(async move {
                let mut replies = Vec::new();
                loop {
                    let turn = next.fetch_add(1, Ordering::Relaxed);
                    let Some(ask) = asks.get(turn) else {
                        return anyhow::Ok(replies);
                    };
                    replies.push((turn, ask.send(&client).await?));
                }
            });
        }
        let mut replies = Vec::with_capacity(asks.len());
        while let Some(some) = senders.join_next().await {
            replies.extend(some??);
        }
        replies.sort_by_key(|(turn, _)| *turn);
        Ok(replies.into_iter().map(|(_, reply)| reply).collect())
    }
}

/// Open connections by the worker's name (`listener.<address>.<worker>.downstream_cx_active`).
pub async fn connections_by_worker(envoy: &Envoy) -> Result<BTreeMap<String, u64>> {
    let stats = envoy.stats("listener.").await?;
    Ok(stats
        .iter()
        .filter_map(|(name, value)| {
            let worker = name
                .strip_suffix(".downstream_cx_active")?
                .rsplit('.')
                .next()?;
            worker
                .starts_with("worker_")
                .then(|| (worker.to_owned(), *value))
        })
        .collect())
}

/// How often each status was answered, such as `200 × 5, 429 × 35`.
pub fn statuses(replies: &[Reply]) -> String {
    let mut counts = BTreeMap::<u16, usize>::new();
    for reply in replies {
        *counts.entry(reply.status).or_default() += 1;
    }
    let counts: Vec<_> = counts
        .iter()
        .map(|(status, count)| format!("{status} × {count}"))
        .collect();
    counts.join(", ")
}

/// How many replies have this status.
pub fn count(replies: &[Reply], status: u16) -> usize {
    replies
        .iter()
        .filter(|reply| reply.status == status)
        .count()
}
