//! A service management that knows nobody, lets everybody in, and keeps every byte it was
//! sent. Apart from the stand-in, which keeps no credentials.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Result;
use axum::Router;
use axum::body::to_bytes;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

/// More calls than are ever answered at once.
const PERMITS: usize = 10_000;

/// One call: its parameters, decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The path, without the query.
    pub path: String,
    /// Names and values of the query and of the body, in order.
    pub parameters: Vec<(String, String)>,
}

impl Seen {
    /// The values of a parameter.
    #[must_use]
    pub fn all(&self, name: &str) -> Vec<&str> {
        let values = self.parameters.iter().filter(|(known, _)| known == name);
        values.map(|(_, value)| value.as_str()).collect()
    }

    /// The names of the parameters, in order.
    #[must_use]
    pub fn names(&self) -> Vec<&str> {
        self.parameters
            .iter()
            .map(|(name, _)| name.as_str())
            .collect()
    }
}

/// Listens on 127.0.0.1, on a port that the system gives. Ends when dropped.
pub struct Recorder {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    gate: Arc<Semaphore>,
    task: JoinHandle<()>,
}

impl Recorder {
    /// Starts to listen.
    pub async fn start() -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let seen = Arc::new(Mutex::new(Vec::new()));
        let gate = Arc::new(Semaphore::new(PERMITS));
        let (calls, open) = (Arc::clone(&seen), Arc::clone(&gate));
        let app = Router::new().fallback(move |request: Request| {
            let (calls, open) = (Arc::clone(&calls), Arc::clone(&open));
            async move { answer(request, &calls, &open).await }
        });
        let task = tokio::spawn(async move {
            // Ends only with the task.
            let _ = axum::serve(listener, app).await;
        });
        Ok(Self {
            address,
            seen,
            gate,
            task,
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What arrived, oldest first.
    #[must_use]
    pub fn seen(&self) -> Vec<Seen> {
        self.lock().clone()
    }

    /// How many calls have arrived.
    #[must_use]
    pub fn count(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Seen>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The questions that arrived after the first so many calls.
    #[must_use]
    pub fn questions_after(&self, calls: usize) -> Vec<Seen> {
        let seen = self.lock();
        let new = seen.iter().skip(calls);
        new.filter(|call| call.path == "/transactions/authorize.xml")
            .cloned()
            .collect()
    }

    /// Answers nothing until the guard goes.
    pub async fn hold(&self) -> Result<impl Drop + use<>> {
        let permits = u32::try_from(PERMITS)?;
        Ok(Arc::clone(&self.gate).acquire_many_owned(permits).await?)
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(request: Request, seen: &Mutex<Vec<Seen>>, gate: &Semaphore) -> Response {
    let (parts, body) = request.into_parts();
    let body = to_bytes(body, 1 << 22).await.unwrap_or_default();
    let query = parts.uri.query().unwrap_or_default();
    let parameters = form_urlencoded::parse(query.as_bytes())
        .chain(form_urlencoded::parse(&body))
        .map(|(name, value)| (name.into_owned(), value.into_owned()))
        .collect();
    let path = parts.uri.path().to_owned();
    let report = path == "/transactions.xml";
    seen.lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(Seen { path, parameters });
    let _open = gate.acquire().await;
    if report {
        return StatusCode::ACCEPTED.into_response();
    }
    let document = "<?xml version=\"1.0\" encoding=\"UTF-8\"?><status><authorized>true</authorized><plan>P</plan></status>";
    (
        [("content-type", "application/vnd.3scale-v2.0+xml")],
        document,
    )
        .into_response()
}
