//! A key manager (RFC 7662) that answers as a test says, also as a real one is hard to bring to.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use axum::Router;
use axum::body::to_bytes;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// What a key manager answers.
pub enum Said {
    /// This status and this body.
    Answer(u16, String),
    /// Nothing, however long somebody waits.
    Nothing,
}

impl From<Value> for Said {
    fn from(body: Value) -> Self {
        Self::Answer(200, body.to_string())
    }
}

/// Listens on 127.0.0.1, on a port that the system gives. Ends when dropped.
pub struct KeyManager {
    /// Where it listens.
    pub address: SocketAddr,
    shown: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl KeyManager {
    /// Starts one that says of each token what `answer` says, which is given the path and the
    /// token.
    pub async fn start(
        answer: impl Fn(&str, &str) -> Said + Send + Sync + 'static,
    ) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let shown = Arc::new(Mutex::new(Vec::new()));
        let (answer, clients) = (Arc::new(answer), Arc::clone(&shown));
        let app = Router::new().fallback(move |request: Request| {
            let (answer, clients) = (Arc::clone(&answer), Arc::clone(&clients));
            async move {
                let authorization = request.headers().get("authorization");
                let shown = authorization.and_then(|it| it.to_str().ok());
                clients
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(shown.unwrap_or_default().to_owned());
                introspect(request, &*answer).await
            }
        });
        let task = tokio::spawn(async move {
            // Ends only with the task.
            let _ = axum::serve(listener, app).await;
        });
        Ok(Self {
            address,
            shown,
            task,
        })
    }

    /// The `Authorization` of all questions, oldest first.
    #[must_use]
    pub fn shown(&self) -> Vec<String> {
        self.shown
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Drop for KeyManager {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn introspect(request: Request, answer: &impl Fn(&str, &str) -> Said) -> Response {
    let path = request.uri().path().to_owned();
    let form = to_bytes(request.into_body(), 1 << 20)
        .await
        .unwrap_or_default();
    let token = form_urlencoded::parse(&form).find(|(name, _)| name == "token");
    let token = token.map(|(_, token)| token).unwrap_or_default();
    match answer(&path, &token) {
        Said::Answer(status, body) => {
            let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            (status, [("content-type", "application/json")], body).into_response()
        }
        Said::Nothing => std::future::pending().await,
    }
}
