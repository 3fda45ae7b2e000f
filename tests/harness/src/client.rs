//! The consumer's side: requests through the gateway, many at once, and raw bytes for
//! what a well-behaved client would not send.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use reqwest::Method;
use reqwest::header::HeaderMap;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// An answer, read to its end.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The HTTP status.
    pub status: u16,
    /// The headers of the answer.
    pub headers: HeaderMap,
    /// The body; bytes that are not UTF-8 are replaced.
    pub body: String,
}

impl Reply {
    /// The first value of a header, if it is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// Keeps connections alive and reuses them, as an API's consumers do. After a listener
/// was replaced, take a new client: old connections stay with the old listener until it
/// has drained.
#[derive(Clone)]
pub struct Client {
    base: String,
    http: reqwest::Client,
}

impl Client {
    /// `base` is the start of every URL, such as `http://127.0.0.1:10000`.
    pub fn new(base: impl Into<String>) -> Result<Self> {
        let http = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(Duration::from_secs(30))
            .build()?;
        Ok(Self {
            base: base.into(),
            http,
        })
    }

    /// Sends `GET path`. Header values may be any bytes that HTTP allows.
    pub async fn get(&self, path: &str, headers: &[(&str, &str)]) -> Result<Reply> {
        self.send(Method::GET, path, headers, Vec::new()).await
    }

    /// Sends one request. The path is normalized by the URL parser (dots and the like):
    /// use [`raw_request`] for what must arrive as it is.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Vec<u8>,
    ) -> Result<Reply> {
        let mut request = self.http.request(method, format!("{}{path}", self.base));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if !body.is_empty() {
            request = request.body(body);
        }
        let response = request
            .send()
            .await
            .with_context(|| format!("request for {path}"))?;
        let status = response.status().as_u16();
        let headers = response.headers().clone();
        let body = String::from_utf8_lossy(&response.bytes().await?).into_owned();
        Ok(Reply {
            status,
            headers,
            body,
        })
    }

    /// Sends `total` times `GET path`, never more than `at_once` at a time. Returns how
    /// often each status was answered.
    pub async fn get_many(
        &self,
        total: usize,
        at_once: usize,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Result<BTreeMap<u16, usize>> {
        let next = Arc::new(AtomicUsize::new(0));
        let mut senders = tokio::task::JoinSet::new();
        for _ in 0..at_once.min(total) {
            let (client, next, path) = (self.clone(), next.clone(), path.to_owned());
            let headers: Vec<_> = headers
                .iter()
                .map(|(n, v)| (n.to_string(), v.to_string()))
                .collect();
            senders.spawn(async move {
                let headers: Vec<_> = headers
                    .iter()
                    .map(|(n, v)| (n.as_str(), v.as_str()))
                    .collect();
                let mut statuses = Vec::new();
                while next.fetch_add(1, Ordering::Relaxed) < total {
                    statuses.push(client.get(&path, &headers).await?.status);
                }
                anyhow::Ok(statuses)
            });
        }
        let mut counts = BTreeMap::new();
        while let Some(statuses) = senders.join_next().await {
            for status in statuses?? {
                *counts.entry(status).or_default() += 1;
            }
        }
        Ok(counts)
    }
}

/// Writes these bytes to a new connection and reads until the peer closes it or says
/// nothing for two seconds. Returns the status of the first answer, if it looks like one,
/// and everything that was read.
pub async fn raw_request(address: SocketAddr, bytes: &[u8]) -> Result<(Option<u16>, Vec<u8>)> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(bytes).await?;
    let mut answer = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        match tokio::time::timeout(Duration::from_secs(2), stream.read(&mut chunk)).await {
            Ok(Ok(0)) | Err(_) => break,
            Ok(Ok(count)) => answer.extend_from_slice(&chunk[..count]),
            // A peer that refuses a request may reset the connection after its answer.
            Ok(Err(_)) if !answer.is_empty() => break,
            Ok(Err(error)) => return Err(error.into()),
        }
    }
    let status = answer
        .strip_prefix(b"HTTP/1.1 ")
        .and_then(|rest| std::str::from_utf8(rest.get(..3)?).ok()?.parse().ok());
    Ok((status, answer))
}
