//! What Linux tells of a running process: CPU time and memory, from `/proc`. Apart from
//! Envoy's handle because the bench reads it many times a second.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};

/// CPU time of each thread, by name, to the nanosecond (the first field of
/// `/proc/PID/task/TID/schedstat`; `/proc/PID/stat` counts in steps of 10 ms).
/// Threads of the same name are added up. Threads that have ended are missing.
pub(crate) fn threads(pid: u32) -> Result<BTreeMap<String, Duration>> {
    let mut threads = BTreeMap::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let path = entry?.path();
        // A thread can end between the listing and the reading.
        let Ok(name) = std::fs::read_to_string(path.join("comm")) else {
            continue;
        };
        let Ok(figures) = std::fs::read_to_string(path.join("schedstat")) else {
            continue;
        };
        let nanoseconds = figures
            .split_whitespace()
            .next()
            .and_then(|first| first.parse().ok())
            .with_context(|| format!("{}/schedstat reads {figures:?}", path.display()))?;
        *threads.entry(name.trim().to_owned()).or_default() += Duration::from_nanos(nanoseconds);
    }
    Ok(threads)
}

/// Resident memory in bytes (`VmRSS` of `/proc/PID/status`).
pub(crate) fn resident(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let kib: u64 = status
        .lines()
        .find_map(|line| {
            line.strip_prefix("VmRSS:")?
                .trim()
                .strip_suffix("kB")?
                .trim()
                .parse()
                .ok()
        })
        .context("/proc/PID/status has no VmRSS")?;
    Ok(kib.saturating_mul(1024))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figures_of_this_very_process_are_plausible() {
        let pid = std::process::id();
        let before: Duration = threads(pid).unwrap().values().sum();
        let end = std::time::Instant::now() + Duration::from_millis(50);
        while std::time::Instant::now() < end {}
        let after: Duration = threads(pid).unwrap().values().sum();
        assert!(after > before);
        assert!(resident(pid).unwrap() > 1024 * 1024);
    }
}
