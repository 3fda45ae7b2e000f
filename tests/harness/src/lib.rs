//! What tests, the bench and the demo share: a real Envoy that runs one of the shipped
//! configurations, an upstream API, and a client. It knows nothing of how the filter
//! works. It stands apart so that the crate of the filter never depends on a server.
//!
//! Everything listens on 127.0.0.1, on ports that the system gives, and ends when its
//! handle is dropped, also when a test fails.

mod client;
mod configuration;
mod echo;
mod envoy;
mod process;

pub use client::{Client, Reply, raw_request};
pub use configuration::{Base, ListenerPatch, Plugin, connection_manager, wasm_filter};
pub use echo::Echo;
pub use envoy::{Envoy, EnvoyOptions, ListenerUpdate};

use std::time::{Duration, Instant};

/// Asks `probe` every 20 ms until it has an answer. The error names `what` was waited for.
pub async fn eventually<T, F>(what: &str, limit: Duration, mut probe: F) -> anyhow::Result<T>
where
    F: AsyncFnMut() -> Option<T>,
{
    let until = Instant::now() + limit;
    loop {
        if let Some(answer) = probe().await {
            return Ok(answer);
        }
        anyhow::ensure!(
            Instant::now() < until,
            "after {limit:?} still waiting for {what}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
