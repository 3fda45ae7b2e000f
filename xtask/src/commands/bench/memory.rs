//! `cargo xtask bench --memory`: what Envoy holds and how long it takes to come up, with no
//! filter, hello-world, and Tollgate, empty and with applications.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde_json::Value;
use tollgate_harness::{Envoy, EnvoyOptions, wasm_filter};

use super::gateway::{self, Counts, Size};
use super::load::{Cycle, cycle};
use super::{median, variant};

/// Records that are put: as many as the default capacity has room for.
const RECORDS: u64 = 16_384;

/// The JSON that is printed.
#[derive(Debug, Serialize)]
pub struct Results {
    pub starts: u32,
    pub variants: Vec<Figures>,
    /// Bytes of resident memory for each of [`Results::records`] applications: what an
    /// Envoy with as many requests of one application has less.
    pub bytes_per_record: f64,
    /// The same of what Envoy's allocator has handed out, in which the VMs' memory is not.
    pub allocated_bytes_per_record: f64,
    pub records: u64,
}

/// Medians over the starts.
#[derive(Debug, Serialize)]
pub struct Figures {
    pub name: &'static str,
    pub module_bytes: Option<u64>,
    /// From the start of the process until the first request is answered.
    pub ready_ms: f64,
    /// The above less that of no filter: loading and compiling the module, in each of its VMs.
    pub added_ready_ms: f64,
    /// With one worker, after a second of requests.
    pub rss_mib: f64,
    /// With two workers, likewise.
    pub rss_two_workers_mib: f64,
    /// What the second worker adds: its thread, its VM, its copy of everything.
    pub per_worker_mib: f64,
}

/// Measures. Each variant is started so many times with each number of workers.
pub async fn measure(
    envoy: &Path,
    wrk: &Path,
    modules: &BTreeMap<&str, PathBuf>,
    starts: u32,
) -> Result<Results> {
    let upstream = variant::upstream(envoy).await?;
    let service_management = gateway::service_management(envoy).await?;
    let tollgate = modules.get("tollgate").context("no module")?;
    let hello = modules.get("hello-world").context("no module")?;
    let options = |name: &str, workers: u32| {
        let plain = |filters| EnvoyOptions {
            filters: Some(filters),
            upstream: Some(upstream.address()),
            ..variant::quiet()
        };
        let options = match name {
            "none" => plain(Vec::new()),
            "hello" => plain(vec![wasm_filter("hello", hello)]),
            _ => gateway::options(
                tollgate.clone(),
                Size::default().plugin(),
                upstream.address(),
                service_management.address(),
            ),
        };
        EnvoyOptions {
            executable: Some(envoy.to_owned()),
            concurrency: workers,
            ..options
        }
    };
    let names: [(&'static str, Option<&PathBuf>); 3] = [
        ("none", None),
        ("hello", Some(hello)),
        ("tollgate", Some(tollgate)),
    ];
    // By variant and number of workers: milliseconds and MiB of each start.
    let mut measured: BTreeMap<(&str, u32), Vec<(f64, f64)>> = BTreeMap::new();
    for start in 0..starts {
        for turn in 0..names.len() {
            let (name, _) = names[(turn + start as usize) % names.len()];
            for workers in [1, 2] {
                let begin = Instant::now();
                let started = Envoy::start(options(name, workers)).await?;
                first_answer(&started).await?;
                let ready = begin.elapsed().as_secs_f64() * 1e3;
                // Every worker has had requests, and gives back what it needed to come up.
                let one = Cycle { keys: 1, hosts: 1 };
                cycle(wrk, &started.url(), one, 0, 16, 1).await?;
                let rss = started.rss_mib()?;
                eprintln!(
                    "start {}/{starts}  {name:<8} {workers} worker(s): ready after {ready:.0} ms, {rss:.1} MiB",
                    start + 1
                );
                measured
                    .entry((name, workers))
                    .or_default()
                    .push((ready, rss));
            }
        }
    }
    let of = |name, workers, figure: fn(&(f64, f64)) -> f64| {
        median(measured[&(name, workers)].iter().map(figure).collect())
    };
    let mut variants = Vec::new();
    for (name, module) in names {
        let (one, two) = (of(name, 1, |it| it.1), of(name, 2, |it| it.1));
        let ready = of(name, 1, |it| it.0);
        variants.push(Figures {
            name,
            module_bytes: module
                .map(|path| std::fs::metadata(path).map(|it| it.len()))
                .transpose()?,
            ready_ms: ready,
            added_ready_ms: ready - of("none", 1, |it| it.0),
            rss_mib: one,
            rss_two_workers_mib: two,
            per_worker_mib: two - one,
        });
    }

    // As many requests, of one application and of all.
    let mut held = Vec::new();
    for keys in [1, RECORDS] {
        let started = Envoy::start(options("tollgate", 1)).await?;
        held.push(filled(&started, wrk, keys).await?);
    }
    let each =
        |figure: fn(&Held) -> f64| (figure(&held[1]) - figure(&held[0])) / (RECORDS - 1) as f64;
    Ok(Results {
        starts,
        variants,
        bytes_per_record: each(|it| it.resident),
        allocated_bytes_per_record: each(|it| it.allocated),
        records: RECORDS,
    })
}

/// Bytes.
struct Held {
    resident: f64,
    allocated: f64,
}

async fn first_answer(envoy: &Envoy) -> Result<()> {
    let client = envoy.client()?;
    let headers = [("x-api-key", "k0000000"), ("host", "h0.example.com")];
    let reply = client.get("/v1/orders", &headers).await?;
    ensure!(reply.status == 200, "the first answer is {}", reply.status);
    Ok(())
}

/// Makes requests of so many applications until all of them are known, and at least as many as
/// [`RECORDS`].
async fn filled(envoy: &Envoy, wrk: &Path, keys: u64) -> Result<Held> {
    let mut sent = 0;
    let all = Cycle { keys, hosts: 1 };
    let until = Instant::now() + Duration::from_secs(90);
    // Twice, so that all that varies with the number of requests is there in both cases.
    while sent < RECORDS * 4 || Counts::read(envoy).await?.questions < keys {
        sent += cycle(wrk, &envoy.url(), all, sent, 16, 1).await?.requests;
        ensure!(
            Instant::now() < until,
            "{keys} applications are not known yet"
        );
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let memory: Value = serde_json::from_str(&envoy.admin("/memory").await?)?;
    let allocated = memory["allocated"].as_str().and_then(|it| it.parse().ok());
    let held = Held {
        resident: envoy.rss_mib()? * f64::from(1 << 20),
        allocated: allocated.context("/memory has no number of allocated bytes")?,
    };
    eprintln!(
        "{keys} applications after {sent} requests: {:.1} MiB",
        held.resident / f64::from(1 << 20)
    );
    Ok(held)
}

/// Prints the figures.
pub fn print(results: &Results) {
    println!(
        "{:<10} {:>10} {:>9} {:>9} {:>8} {:>10} {:>10}",
        "variant", "module KiB", "ready ms", "added ms", "RSS MiB", "2 workers", "per worker"
    );
    for v in &results.variants {
        let module = v.module_bytes.map(|it| (it / 1024).to_string());
        println!(
            "{:<10} {:>10} {:>9.0} {:>9.0} {:>8.1} {:>10.1} {:>10.1}",
            v.name,
            module.unwrap_or_default(),
            v.ready_ms,
            v.added_ready_ms,
            v.rss_mib,
            v.rss_two_workers_mib,
            v.per_worker_mib
        );
    }
    println!(
        "\n{} applications: {:.0} bytes of resident memory each, of which Envoy has allocated {:.0}",
        results.records, results.bytes_per_record, results.allocated_bytes_per_record
    );
}
