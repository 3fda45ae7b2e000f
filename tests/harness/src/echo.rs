//! The API behind the gateway: small and fast, so that the proxy is what is measured,
//! and able to show what arrived.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;
use axum::Router;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// Answers every request with 200: below `/echo` with JSON that shows the request
/// (`{"method", "path", "headers": {name: [values]}}`, the path with its query), else
/// with the constant body `ok`. Ends when dropped.
pub struct Echo {
    address: SocketAddr,
    requests: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Echo {
    /// Listens on 127.0.0.1, on a port that the system gives.
    pub async fn start() -> Result<Self> {
        Self::start_on(0).await
    }

    /// Listens on 127.0.0.1 and this port.
    pub async fn start_on(port: u16) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", port)).await?;
        let address = listener.local_addr()?;
        let requests = Arc::new(AtomicU64::new(0));
        let count = requests.clone();
        let app = Router::new().fallback(move |request: Request| {
            count.fetch_add(1, Ordering::Relaxed);
            std::future::ready(answer(&request))
        });
        let task = tokio::spawn(async move {
            // Ends only with the task.
            let _ = axum::serve(listener, app).await;
        });
        Ok(Self {
            address,
            requests,
            task,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many requests have arrived.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn answer(request: &Request) -> Response {
    if !request.uri().path().starts_with("/echo") {
        return "ok\n".into_response();
    }
    let mut headers = BTreeMap::<&str, Vec<_>>::new();
    for (name, value) in request.headers() {
        headers
            .entry(name.as_str())
            .or_default()
            .push(String::from_utf8_lossy(value.as_bytes()));
    }
    let seen = json!({
        "method": request.method().as_str(),
        "path": request.uri().path_and_query().map(|path| path.as_str()),
        "headers": headers,
    });
    ([("content-type", "application/json")], seen.to_string()).into_response()
}
