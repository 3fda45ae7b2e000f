//! The stand-in on a socket: connections, faults, stopping and starting again.
//!
//! The connections are served here and not by axum, because faults must reset
//! them, stopping must close them all, and the backend sends no `date`.

use crate::backend::{Backend, Endpoint, Errors};
use crate::clock::Clock;
use crate::control;
use crate::counters::Usage;
use crate::dataset::{ApplicationChange, Dataset, DatasetError};
use crate::faults::{Fault, FaultRule, take};
use crate::journal::{Call, Calls};
use crate::message::{Request, Response};
use axum::Extension;
use axum::body::{Body, to_bytes};
use axum::extract::State;
use axum::http::{self, HeaderValue, StatusCode, header};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::future::pending;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, oneshot};
use tokio::task::{JoinHandle, JoinSet};

/// The most of a body that is read; the backend refuses forms of more than 4 MiB.
const LONGEST_BODY: usize = 16 * 1024 * 1024;

/// What a stand-in does apart from its data.
#[derive(Clone)]
pub struct Options {
    /// Where to listen: the loopback, unless told otherwise.
    pub host: IpAddr,
    /// The port; 0 lets the system choose.
    pub port: u16,
    /// How long after its answer a call's usage is applied. 0: at once.
    pub lag: Duration,
    /// The clock, of windows and of the lag.
    pub clock: Clock,
    /// How many calls to remember.
    pub calls_kept: usize,
    /// Is told of every call when it is answered, or when it is clear that it
    /// will not be.
    pub observer: Option<fn(&Call)>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            host: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: 0,
            lag: Duration::from_millis(5),
            clock: Clock::System,
            calls_kept: 1_000,
            observer: None,
        }
    }
}

/// A running stand-in. Dropping it closes its port and its connections.
pub struct StandIn {
    shared: Arc<Shared>,
    host: IpAddr,
    address: SocketAddr,
    listener: Option<Listener>,
}

/// The task that accepts, and the way to end it.
struct Listener {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

/// What all connections and the handle share.
pub(crate) struct Shared {
    state: Mutex<Inner>,
    clock: Clock,
    calls_kept: usize,
    observer: Option<fn(&Call)>,
}

pub(crate) struct Inner {
    pub backend: Backend,
    pub faults: Vec<FaultRule>,
    pub calls: Calls,
}

impl Shared {
    /// The state, with all applied that is due.
    pub fn lock(&self) -> MutexGuard<'_, Inner> {
        // No invariant spans a panic: the state is as good as before.
        let mut inner = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        inner.backend.apply_due(self.clock.now());
        inner
    }

    fn record(&self, inner: &mut Inner, call: Call) {
        if let Some(observer) = self.observer {
            observer(&call);
        }
        inner.calls.record(call, self.calls_kept);
    }
}

impl StandIn {
    /// Starts a stand-in with this data, on the runtime that runs this.
    ///
    /// # Errors
    /// When it cannot listen.
    pub async fn start(dataset: Dataset, options: Options) -> std::io::Result<Self> {
        let lag = u64::try_from(options.lag.as_millis()).unwrap_or(u64::MAX);
        let shared = Arc::new(Shared {
            state: Mutex::new(Inner {
                backend: Backend::new(dataset, lag),
                faults: Vec::new(),
                calls: Calls::default(),
            }),
            clock: options.clock,
            calls_kept: options.calls_kept,
            observer: options.observer,
        });
        let mut stand_in = Self {
            shared,
            host: options.host,
            address: SocketAddr::new(options.host, options.port),
            listener: None,
        };
        stand_in.start_on(options.port).await?;
        Ok(stand_in)
    }

    /// Where it listens, or listened before it was stopped.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Closes the port and all connections: clients are refused, and those that
    /// wait get no answer. Once this returns, no call changes anything. What is
    /// known and queued stays. Does nothing if it is stopped.
    pub async fn stop(&mut self) {
        if let Some(Listener { stop, task }) = self.listener.take() {
            // It may have ended with its runtime, which is as good.
            let _ = stop.send(());
            let _ = task.await;
        }
    }

    /// Listens again on the port it had.
    ///
    /// # Errors
    /// When somebody else has taken it.
    pub async fn restart(&mut self) -> std::io::Result<()> {
        self.start_on(self.address.port()).await
    }

    /// Listens on this port (0: one that the system chooses), with the state it
    /// has. Stops first if it runs.
    ///
    /// # Errors
    /// When it cannot.
    pub async fn start_on(&mut self, port: u16) -> std::io::Result<()> {
        self.stop().await;
        let listener = TcpListener::bind(SocketAddr::new(self.host, port)).await?;
        self.address = listener.local_addr()?;
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(accept(listener, self.shared.clone(), stopped));
        self.listener = Some(Listener { stop, task });
        Ok(())
    }

    /// All usage that is applied by now.
    #[must_use]
    pub fn usage(&self) -> Usage {
        self.shared.lock().backend.usage().clone()
    }

    /// The number of calls whose usage is not applied yet.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.shared.lock().backend.queued()
    }

    /// What was called.
    #[must_use]
    pub fn calls(&self) -> Calls {
        self.shared.lock().calls.clone()
    }

    /// The integration errors.
    #[must_use]
    pub fn errors(&self) -> Errors {
        self.shared.lock().backend.errors().clone()
    }

    /// Replaces all faults.
    pub fn set_faults(&self, faults: Vec<FaultRule>) {
        self.shared.lock().faults = faults;
    }

    /// Takes all faults away. Calls that hang go on hanging.
    pub fn clear_faults(&self) {
        self.set_faults(Vec::new());
    }

    /// Forgets usage, what is queued, integration errors and calls.
    pub fn reset(&self) {
        let mut inner = self.shared.lock();
        inner.backend.reset();
        inner.calls = Calls::default();
    }

    /// Changes how late usage is applied, from now on.
    pub fn set_lag(&self, lag: Duration) {
        let lag = u64::try_from(lag.as_millis()).unwrap_or(u64::MAX);
        self.shared.lock().backend.set_lag(lag);
    }

    /// Applies all that is queued, whatever the lag.
    pub fn catch_up(&self) {
        let now = self.shared.clock.now();
        self.shared.lock().backend.catch_up(now);
    }

    /// Changes an application, or makes one.
    ///
    /// # Errors
    /// When the change does not fit the data.
    pub fn put_application(
        &self,
        service: &str,
        application: &str,
        change: ApplicationChange,
    ) -> Result<(), DatasetError> {
        let mut inner = self.shared.lock();
        inner.backend.put_application(service, application, change)
    }

    /// Forgets an application; says whether there was one. Its usage stays.
    #[must_use = "false means that there was no such application"]
    pub fn remove_application(&self, service: &str, application: &str) -> bool {
        let mut inner = self.shared.lock();
        inner.backend.remove_application(service, application)
    }

    /// Makes another token the only valid one of a service; says whether there
    /// is such a service.
    #[must_use = "false means that there is no such service"]
    pub fn set_service_token(&self, service: &str, token: &str) -> bool {
        self.shared.lock().backend.set_service_token(service, token)
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        if let Some(listener) = &self.listener {
            listener.task.abort();
        }
    }
}

/// Accepts until told to stop, or aborted; either ends all its connections.
async fn accept(listener: TcpListener, shared: Arc<Shared>, mut stopped: oneshot::Receiver<()>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(serve(stream, shared.clone()));
                }
                // Out of file descriptors, most likely: some will come back.
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            },
            Some(_) = connections.join_next() => {}
            _ = &mut stopped => break,
        }
    }
    drop(listener);
    connections.shutdown().await;
}

/// Asks for the connection that a call came by to be reset.
#[derive(Clone, Default)]
struct Reset(Arc<Notify>);

async fn serve(stream: TcpStream, shared: Arc<Shared>) {
    // Answers are small and written whole. If this fails, they are only slower.
    let _ = stream.set_nodelay(true);
    let reset = Reset::default();
    let router = control::router()
        .fallback(answer)
        .layer(Extension(reset.clone()))
        .with_state(shared);
    let mut connection = http1::Builder::new()
        .auto_date_header(false)
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    tokio::select! {
        // What a client did wrong with its connection concerns nobody here.
        _ = &mut connection => {}
        () = reset.0.notified() => {
            let stream = connection.into_parts().io.into_inner();
            // Without lingering, closing resets. If this fails, it only closes.
            let _ = stream.set_zero_linger();
        }
    }
}

/// Every call that is not for the control interface.
async fn answer(
    State(shared): State<Arc<Shared>>,
    Extension(reset): Extension<Reset>,
    request: http::Request<Body>,
) -> http::Response<Body> {
    let (parts, body) = request.into_parts();
    let Ok(body) = to_bytes(body, LONGEST_BODY).await else {
        return plain(StatusCode::PAYLOAD_TOO_LARGE);
    };
    let header = |name| parts.headers.get(name).map(HeaderValue::as_bytes);
    let content_type = header("content-type").map(String::from_utf8_lossy);
    let request = Request {
        method: parts.method.as_str(),
        path: parts.uri.path(),
        query: parts.uri.query().unwrap_or_default().as_bytes(),
        content_type: content_type.as_deref(),
        options: header("3scale-options"),
        body: &body,
    };
    let (response, fault) = handle(&shared, &request);
    match fault {
        Some(Fault::Hang) => pending().await,
        Some(Fault::ResetBefore | Fault::ResetAfter) => {
            reset.0.notify_one();
            pending().await
        }
        Some(Fault::DelayMs(delay)) => tokio::time::sleep(Duration::from_millis(delay)).await,
        _ => {}
    }
    written(response)
}

/// Handles a call as far as its fault lets it, and notes it.
fn handle(shared: &Shared, request: &Request<'_>) -> (Response, Option<Fault>) {
    let mut inner = shared.lock();
    let now = shared.clock.now();
    let mut call = Call::describe(request, &inner.backend, now);
    let fault = take(
        &mut inner.faults,
        Endpoint::of(request.method, request.path),
    );
    let response = match fault {
        Some(Fault::Hang | Fault::ResetBefore) => Response::fault(500),
        Some(Fault::Status(status)) => Response::fault(status),
        Some(Fault::StatusAfter(status)) => {
            inner.backend.handle(request, now);
            Response::fault(status)
        }
        Some(Fault::LagMs(lag)) => {
            let usual = inner.backend.lag();
            inner.backend.set_lag(lag);
            let response = inner.backend.handle(request, now);
            inner.backend.set_lag(usual);
            response
        }
        None | Some(Fault::DelayMs(_) | Fault::ResetAfter) => inner.backend.handle(request, now),
    };
    call.fault = fault;
    if !matches!(
        fault,
        Some(Fault::Hang | Fault::ResetBefore | Fault::ResetAfter)
    ) {
        call.status = Some(response.status);
        call.code = response.code;
    }
    shared.record(&mut inner, call);
    (response, fault)
}

fn written(response: Response) -> http::Response<Body> {
    let status = StatusCode::from_u16(response.status);
    let mut written = plain(status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR));
    *written.body_mut() = Body::from(response.body);
    for (name, value) in response.headers {
        if let Ok(value) = HeaderValue::from_str(&value) {
            written
                .headers_mut()
                .append(header::HeaderName::from_static(name), value);
        }
    }
    written
}

pub(crate) fn plain(status: StatusCode) -> http::Response<Body> {
    let mut response = http::Response::new(Body::empty());
    *response.status_mut() = status;
    response
}
