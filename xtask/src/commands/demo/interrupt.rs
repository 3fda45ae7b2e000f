//! The signals that end the demo in an orderly way. Apart, because everything else
//! here waits for them beside what it does.

use anyhow::Result;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Takes the place of what the signals do by default.
pub struct Interrupt {
    interrupted: Signal,
    terminated: Signal,
    hung_up: Signal,
}

impl Interrupt {
    /// From now on the signals end nothing by themselves.
    pub fn listen() -> Result<Self> {
        Ok(Self {
            interrupted: signal(SignalKind::interrupt())?,
            terminated: signal(SignalKind::terminate())?,
            hung_up: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for the next one and returns its name. Can be cancelled.
    pub async fn received(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupted.recv() => "SIGINT",
            _ = self.terminated.recv() => "SIGTERM",
            _ = self.hung_up.recv() => "SIGHUP",
        }
    }
}
