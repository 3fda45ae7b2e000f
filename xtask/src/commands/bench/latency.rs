//! `cargo xtask bench --latency`: how long a request takes at half of the rate that Envoy
//! without a filter can serve, for each variant at the same rate, in alternating rounds.
//!
//! wrk cannot do this: it sends the next request when the last is answered, so whatever
//! holds Envoy up also holds up those that would have waited. Here each request has a time at
//! which it is to be sent, whatever became of the others, and its latency counts from then.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use tollgate_harness::{Envoy, EnvoyOptions};

use super::load::load;
use super::variant::{self, Variant};
use super::{backend, median};

/// What is compared.
pub const VARIANTS: [Variant; 3] = [Variant::None, Variant::Hello, Variant::Limited];
/// A thread for each, so that an answer that is late delays few of the requests after it.
const CONNECTIONS: u32 = 32;

/// The figures of one variant: medians over its rounds, in milliseconds.
#[derive(Debug, Serialize)]
pub struct Figures {
    pub name: &'static str,
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub p999_ms: f64,
    /// p99 less that of no filter in the same round.
    pub added_p99_ms: f64,
}

/// The JSON that is printed.
#[derive(Debug, Serialize)]
pub struct Results {
    /// What Envoy without a filter served at most, in requests a second.
    pub saturating: f64,
    /// What was offered to each.
    pub rate: f64,
    pub rounds: u32,
    pub seconds: u32,
    pub variants: Vec<Figures>,
}

/// Measures. `seconds` is the length of a round.
pub async fn measure(
    envoy: &Path,
    wrk: &Path,
    modules: &BTreeMap<&str, PathBuf>,
    rounds: u32,
    seconds: u32,
) -> Result<Results> {
    let upstream = variant::upstream(envoy).await?;
    let service_management = backend::start().await?;
    let mut contenders = Vec::new();
    for variant in VARIANTS {
        let module = variant.package().and_then(|package| modules.get(package));
        let options = variant.options(
            module.cloned(),
            upstream.address(),
            service_management.address(),
        );
        let started = Envoy::start(EnvoyOptions {
            executable: Some(envoy.to_owned()),
            ..options
        });
        contenders.push((variant, started.await?, Vec::new()));
    }
    // The rate that saturates, and meanwhile everything gets warm.
    let mut most: f64 = 0.0;
    for (variant, envoy, _) in &contenders {
        let url = format!("{}/v1/orders", envoy.url());
        let load = load(wrk, &url, variant.key(), 16, 3).await?;
        eprintln!(
            "{:<8} saturated at {:.0} requests/s",
            variant.name(),
            load.requests_per_second()
        );
        if *variant == Variant::None {
            most = load.requests_per_second();
        }
    }
    let rate = most / 2.0;
    for round in 0..rounds {
        for turn in 0..contenders.len() {
            let place = (turn + round as usize) % contenders.len();
            let (variant, envoy, taken) = &mut contenders[place];
            let (address, key) = (envoy.address(), variant.key());
            let offered = move || offer(address, key, rate, Duration::from_secs(seconds.into()));
            let latencies = tokio::task::spawn_blocking(offered).await??;
            let at = |part| percentile(&latencies, part) as f64 / 1e3;
            let figures = [at(0.5), at(0.99), at(0.999)];
            eprintln!(
                "round {}/{rounds}  {:<8} p50 {:.2} ms, p99 {:.2} ms, p99.9 {:.2} ms",
                round + 1,
                variant.name(),
                figures[0],
                figures[1],
                figures[2]
            );
            taken.push(figures);
        }
    }
    let base: Vec<f64> = contenders[0].2.iter().map(|it: &[f64; 3]| it[1]).collect();
    let variants = contenders.iter().map(|(variant, _, rounds)| {
        let over = |which: usize| median(rounds.iter().map(|it| it[which]).collect());
        let added = rounds.iter().zip(&base).map(|(it, base)| it[1] - base);
        Figures {
            name: variant.name(),
            p50_ms: over(0),
            p99_ms: over(1),
            p999_ms: over(2),
            added_p99_ms: median(added.collect()),
        }
    });
    Ok(Results {
        saturating: most,
        rate,
        rounds,
        seconds,
        variants: variants.collect(),
    })
}

/// The least latency that this part of all is not above. `sorted` is ascending and not empty.
fn percentile(sorted: &[u32], part: f64) -> u32 {
    let rank = (part * sorted.len() as f64).ceil() as usize;
    sorted[rank.clamp(1, sorted.len()) - 1]
}

/// Offers requests at a constant rate and returns their latencies in microseconds, sorted.
fn offer(address: SocketAddr, key: &str, rate: f64, time: Duration) -> Result<Vec<u32>> {
    let begin = Instant::now() + Duration::from_millis(20);
    let pause = f64::from(CONNECTIONS) / rate;
    let mut latencies = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..CONNECTIONS)
            .map(|number| {
                let first = begin + Duration::from_secs_f64(f64::from(number) / rate);
                scope.spawn(move || connection(address, key, first, pause, begin + time))
            })
            .collect();
        let mut all = Vec::new();
        for thread in threads {
            let latencies = thread.join().map_err(|_| anyhow::anyhow!("a panic"))?;
            all.extend(latencies?);
        }
        anyhow::Ok(all)
    })?;
    ensure!(!latencies.is_empty(), "no requests were made");
    latencies.sort_unstable();
    Ok(latencies)
}

/// One connection's share: a request each `pause` seconds from `first` until `end`.
fn connection(
    address: SocketAddr,
    key: &str,
    first: Instant,
    pause: f64,
    end: Instant,
) -> Result<Vec<u32>> {
    let request = format!("GET /v1/orders HTTP/1.1\r\nhost: bench\r\nx-api-key: {key}\r\n\r\n");
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let (mut latencies, mut buffer) = (Vec::new(), Vec::new());
    for number in 0_u32.. {
        let due = first + Duration::from_secs_f64(f64::from(number) * pause);
        if due >= end {
            break;
        }
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        stream.write_all(request.as_bytes())?;
        read_answer(&mut stream, &mut buffer)?;
        latencies.push(u32::try_from(due.elapsed().as_micros())?);
    }
    Ok(latencies)
}

/// Reads one answer, which must be 200 and say how long its body is.
fn read_answer(stream: &mut impl Read, buffer: &mut Vec<u8>) -> Result<()> {
    buffer.clear();
    let mut chunk = [0; 4096];
    loop {
        let count = stream.read(&mut chunk)?;
        ensure!(count > 0, "the connection was closed");
        buffer.extend_from_slice(&chunk[..count]);
        if let Some(head) = buffer.windows(4).position(|it| it == b"\r\n\r\n") {
            let text = std::str::from_utf8(&buffer[..head])?;
            ensure!(text.starts_with("HTTP/1.1 200 "), "answered with {text}");
            let length = text.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                name.eq_ignore_ascii_case("content-length")
                    .then(|| value.trim().parse().ok())?
            });
            let length: usize = length.context("an answer without content-length")?;
            if buffer.len() >= head + 4 + length {
                return Ok(());
            }
        }
    }
}

/// Prints the figures.
pub fn print(results: &Results) {
    println!(
        "at {:.0} requests/s, half of what Envoy without a filter served at most ({:.0}):\n",
        results.rate, results.saturating
    );
    println!(
        "{:<10} {:>8} {:>8} {:>8} {:>12}",
        "variant", "p50 ms", "p99 ms", "p99.9 ms", "added p99 ms"
    );
    for v in &results.variants {
        println!(
            "{:<10} {:>8.2} {:>8.2} {:>8.2} {:>12.2}",
            v.name, v.p50_ms, v.p99_ms, v.p999_ms, v.added_p99_ms
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_a_latency_that_so_many_are_not_above() {
        let hundred: Vec<u32> = (1..=100).collect();
        assert_eq!(percentile(&hundred, 0.5), 50);
        assert_eq!(percentile(&hundred, 0.99), 99);
        assert_eq!(percentile(&hundred, 0.999), 100);
        assert_eq!(percentile(&[7], 0.0), 7);
    }

    #[test]
    fn an_answer_is_read_to_its_end_however_it_arrives() {
        struct Bytewise<'a>(&'a [u8]);
        impl Read for Bytewise<'_> {
            fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
                let Some((first, rest)) = self.0.split_first() else {
                    return Ok(0);
                };
                (into[0], self.0) = (*first, rest);
                Ok(1)
            }
        }
        let text = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\nHTTP";
        let mut stream = Bytewise(text);
        read_answer(&mut stream, &mut Vec::new()).unwrap();
        assert_eq!(stream.0, b"HTTP");
        let refused = b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n";
        read_answer(&mut &refused[..], &mut Vec::new()).unwrap_err();
    }

    #[test]
    fn a_request_that_is_sent_late_counts_from_when_it_was_due() {
        let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = server.local_addr().unwrap();
        let serving = std::thread::spawn(move || {
            let (mut stream, _) = server.accept().unwrap();
            let mut chunk = [0; 1024];
            let mut answers = 0;
            while stream.read(&mut chunk).is_ok_and(|count| count > 0) {
                if answers == 0 {
                    std::thread::sleep(Duration::from_millis(200));
                }
                answers += 1;
                stream
                    .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                    .unwrap();
            }
        });
        let first = Instant::now();
        let end = first + Duration::from_millis(100);
        let latencies = connection(address, "key", first, 0.02, end).unwrap();
        serving.join().unwrap();
        assert_eq!(latencies.len(), 5);
        // The last was due at 80 ms and could not be sent before 200.
        assert!(latencies.iter().all(|it| *it >= 115_000), "{latencies:?}");
    }
}
