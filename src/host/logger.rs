//! The `log` facade on Envoy's log. No line ever carries a secret.

use super::abi::{self, LogLevel};
use log::{Level, LevelFilter, Log, Metadata, Record};

struct EnvoyLog;

impl Log for EnvoyLog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let level = match record.level() {
            Level::Error => LogLevel::Error,
            Level::Warn => LogLevel::Warn,
            Level::Info => LogLevel::Info,
            Level::Debug => LogLevel::Debug,
            Level::Trace => LogLevel::Trace,
        };
        abi::log(level, &format!("tollgate: {}", record.args()));
    }

    fn flush(&self) {}
}

/// Sends the filter's log lines to Envoy, from the level that Envoy shows.
pub fn install() {
    // Installed before: another root context of this VM.
    let _ = log::set_logger(&EnvoyLog);
    log::set_max_level(match abi::log_level() {
        Ok(0) => LevelFilter::Trace,
        Ok(1) => LevelFilter::Debug,
        Ok(2) | Err(_) => LevelFilter::Info,
        Ok(3) => LevelFilter::Warn,
        Ok(_) => LevelFilter::Error,
    });
}

/// Lets a line through once in a while: a failure that repeats at every request must
/// not fill the log.
#[derive(Debug, Default)]
pub struct Seldom {
    next: u64,
    withheld: u64,
}

impl Seldom {
    const MILLISECONDS: u64 = 10_000;

    /// Whether to log now (monotonic milliseconds); then with the number of lines that
    /// were withheld since the last.
    pub const fn due(&mut self, now: u64) -> Option<u64> {
        if now < self.next {
            self.withheld = self.withheld.saturating_add(1);
            return None;
        }
        self.next = now.saturating_add(Self::MILLISECONDS);
        let withheld = self.withheld;
        self.withheld = 0;
        Some(withheld)
    }
}
