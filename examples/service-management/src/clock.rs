//! The stand-in's clock: the system's, or one that tests set.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};
use std::time::{SystemTime, UNIX_EPOCH};

/// Where the time comes from. Clones of a settable clock share its time.
#[derive(Clone, Debug, Default)]
pub enum Clock {
    /// The clock of the system.
    #[default]
    System,
    /// A clock that stands still unless it is set: Unix milliseconds.
    Settable(Arc<AtomicU64>),
}

impl Clock {
    /// A settable clock that shows this time (Unix milliseconds).
    #[must_use]
    pub fn settable(milliseconds: u64) -> Self {
        Self::Settable(Arc::new(AtomicU64::new(milliseconds)))
    }

    /// The time in Unix milliseconds.
    #[must_use]
    pub fn now(&self) -> u64 {
        match self {
            Self::System => SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| {
                    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
                }),
            Self::Settable(time) => time.load(Ordering::SeqCst),
        }
    }

    /// Sets a settable clock (Unix milliseconds); the system's stays as it is.
    pub fn set(&self, milliseconds: u64) {
        if let Self::Settable(time) = self {
            time.store(milliseconds, Ordering::SeqCst);
        }
    }
}
