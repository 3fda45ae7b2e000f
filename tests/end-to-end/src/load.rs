//! Traffic that goes on while something happens to the gateway, request by request.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use tokio::task::JoinSet;
use tollgate_harness::{Client, eventually};

use crate::PATIENCE;

/// What became of one request.
#[derive(Clone, Debug)]
pub struct Sample {
    /// When it was sent.
    pub at: Instant,
    /// How long its answer took.
    pub took: Duration,
    /// The status, or why there was none.
    pub outcome: Result<u16, String>,
}

/// Several consumers, each of which sends the same request again and again.
/// Dropping it stops them.
pub struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    senders: JoinSet<Vec<Sample>>,
}

impl Load {
    /// Starts `at_once` consumers that send `GET path` with `key` and rest for `pause`
    /// between an answer and the next request.
    pub fn start(client: &Client, at_once: usize, pause: Duration, path: &str, key: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let answered = Arc::new(AtomicU64::new(0));
        let mut senders = JoinSet::new();
        for _ in 0..at_once {
            let (stop, answered) = (stop.clone(), answered.clone());
            let (client, path, key) = (client.clone(), path.to_owned(), key.to_owned());
            senders.spawn(async move {
                let mut samples = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let at = Instant::now();
                    let reply = client.get(&path, &[("x-api-key", &key)]).await;
                    samples.push(Sample {
                        at,
                        took: at.elapsed(),
                        outcome: reply
                            .map(|reply| reply.status)
                            .map_err(|error| format!("{error:#}")),
                    });
                    answered.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(pause).await;
                }
                samples
            });
        }
        Self {
            stop,
            answered,
            senders,
        }
    }

    /// Waits until so many more requests have been answered, or have failed.
    pub async fn go_on_for(&self, requests: u64) -> Result<()> {
        let until = self.answered.load(Ordering::Relaxed) + requests;
        eventually("requests to be answered", PATIENCE, async || {
            (self.answered.load(Ordering::Relaxed) >= until).then_some(())
        })
        .await
    }

    /// Lets requests under way be answered, and returns what became of all, by time.
    pub async fn finish(mut self) -> Result<Vec<Sample>> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Vec::new();
        while let Some(samples) = self.senders.join_next().await {
            all.extend(samples?);
        }
        all.sort_by_key(|sample| sample.at);
        Ok(all)
    }
}

/// The time within which `percent` of these requests were answered.
#[must_use]
pub fn percentile(samples: &[Sample], percent: usize) -> Duration {
    let mut times: Vec<_> = samples.iter().map(|sample| sample.took).collect();
    times.sort_unstable();
    let rank = (times.len() * percent).div_ceil(100).max(1);
    times.get(rank - 1).copied().unwrap_or_default()
}
