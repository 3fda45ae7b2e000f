//! What captures are replayed against: a backend in this process whose time is set, or one
//! behind a URL, in real time.
//!
//! Apart from the replay, which need not know which: it asks, and waits until usage counts.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use reqwest::Method;
use service_management::{Backend, Dataset, Options, Request, StandIn};

use crate::captures::{Sent, dataset};
use crate::data::Data;
use crate::document::Document;
use crate::replay::{Answer, Closeness};

/// A backend that holds the captures' data.
#[expect(async_fn_in_trait, reason = "nobody sends these futures elsewhere")]
pub trait Server {
    /// Sends a request and returns the answer.
    async fn ask(&mut self, sent: &Sent) -> Result<Answer>;
    /// Makes it this moment (Unix seconds), if time can be set; says which moment it is.
    fn at(&mut self, moment: i64) -> i64;
    /// Waits until everything that was reported so far counts.
    async fn settle(&mut self) -> Result<()>;
    /// Takes all usage away.
    async fn reset(&mut self) -> Result<()>;
    /// Keeps reported usage from counting, or no longer. Only if it [is ours](Self::is_ours).
    fn stop_workers(&mut self, stop: bool);
    /// Whether it is here for the replay alone: it can be stopped and spoiled.
    fn is_ours(&self) -> bool;
    /// How closely its answers can be compared.
    fn closeness(&self) -> Closeness;
    /// Time since the epoch by the clock that its windows follow; none if it stands still.
    fn clock(&self) -> Option<Duration>;
}

/// The stand-in's state machine, without a connection, at the moments of the captures.
pub struct InProcess {
    /// It, for a closer look.
    pub backend: Backend,
    moment: i64,
}

impl InProcess {
    /// A fresh one with the captures' data.
    ///
    /// # Errors
    /// The data does not read.
    pub fn start() -> Result<Self> {
        Ok(Self {
            // Nothing is applied but when the replay says so.
            backend: Backend::new(Dataset::from_yaml(dataset())?, 86_400_000),
            moment: 0,
        })
    }

    fn milliseconds(&self) -> u64 {
        u64::try_from(self.moment * 1_000).unwrap_or_default()
    }
}

impl Server for InProcess {
    async fn ask(&mut self, sent: &Sent) -> Result<Answer> {
        let (path, query) = sent.target.split_once('?').unwrap_or((&sent.target, ""));
        let now = self.milliseconds();
        let response = self.backend.handle(
            &Request {
                method: &sent.method,
                path,
                query: query.as_bytes(),
                content_type: sent.header("content-type"),
                options: sent.header("3scale-options").map(str::as_bytes),
                body: &sent.body,
            },
            now,
        );
        let headers = response.headers.into_iter();
        Ok(Answer {
            status: response.status,
            headers: headers
                .map(|(name, value)| (name.to_owned(), value))
                .collect(),
            body: String::from_utf8(response.body)?,
        })
    }

    fn at(&mut self, moment: i64) -> i64 {
        self.moment = moment;
        moment
    }

    async fn settle(&mut self) -> Result<()> {
        let now = self.milliseconds();
        self.backend.catch_up(now);
        Ok(())
    }

    async fn reset(&mut self) -> Result<()> {
        self.backend.reset();
        Ok(())
    }

    /// Its usage counts when it is settled, and only then.
    fn stop_workers(&mut self, _stop: bool) {}

    fn is_ours(&self) -> bool {
        true
    }

    fn closeness(&self) -> Closeness {
        Closeness::Bytes
    }

    fn clock(&self) -> Option<Duration> {
        None
    }
}

/// How long a backend may take until usage counts.
const PATIENCE: Duration = Duration::from_secs(60);
/// Seconds at either end of a minute in which nothing is begun: clocks differ.
const MARGIN: u64 = 2;
/// So much of a minute must be left for what lies within one.
const ROOM: u64 = 6;

/// A backend behind a URL, real or not, by its protocol alone: usage is taken away by
/// setting it to 0, and settled when a mark set after it shows.
pub struct Wire {
    url: String,
    http: reqwest::Client,
    /// The host and port of the URL.
    authority: String,
    data: Data,
    stand_in: Option<StandIn>,
    last_mark: u64,
}

impl Wire {
    /// A stand-in with the captures' data, started now, that ends with this.
    ///
    /// # Errors
    /// It does not start.
    pub async fn start() -> Result<Self> {
        let data = Dataset::from_yaml(dataset())?;
        let stand_in = StandIn::start(data, Options::default()).await?;
        let url = format!("http://{}", stand_in.address());
        let mut wire = Self::at_url(&url)?;
        wire.stand_in = Some(stand_in);
        Ok(wire)
    }

    /// A backend that holds the captures' data.
    ///
    /// # Errors
    /// The URL is not `http://host[:port]`, or the data does not read.
    pub fn at_url(url: &str) -> Result<Self> {
        let parsed = reqwest::Url::parse(url).with_context(|| url.to_owned())?;
        ensure!(
            parsed.scheme() == "http" && parsed.path() == "/" && parsed.query().is_none(),
            "{url}: the backend's address is like http://127.0.0.1:3000 (behind TLS, put a \
             local proxy in front)"
        );
        let host = parsed.host_str().context("no host")?;
        let port = parsed.port_or_known_default().context("no port")?;
        Ok(Self {
            url: url.trim_end_matches('/').to_owned(),
            http: reqwest::Client::builder()
                .no_proxy()
                .redirect(reqwest::redirect::Policy::none())
                .timeout(PATIENCE)
                // The real backend's server ends a connection after what it cannot parse,
                // and answers only if that came first.
                .pool_max_idle_per_host(0)
                .build()?,
            authority: format!("{host}:{port}"),
            data: Data::read()?,
            stand_in: None,
            last_mark: 0,
        })
    }

    /// Its host and port.
    #[must_use]
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// Waits, if must be, until so many seconds of a minute are left.
    pub async fn room_in_the_minute(&self, seconds: u64) {
        loop {
            let second = now().as_secs() % 60;
            if (MARGIN..60 - seconds).contains(&second) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Whether a run that began then (time since the epoch) lay within one minute, by the
    /// backend's clock as well.
    #[must_use]
    pub fn within_a_minute(began: Duration) -> bool {
        let end = now().as_secs();
        end / 60 == began.as_secs() / 60 && end % 60 < 60 - MARGIN
    }

    /// Reports usage of an application, as somebody else would.
    ///
    /// # Errors
    /// It is not taken.
    pub async fn report(&mut self, service: &str, usages: &[(&str, &str, String)]) -> Result<()> {
        let mut form = form_urlencoded::Serializer::new(String::new());
        form.append_pair("service_token", &self.data.service_token)
            .append_pair("service_id", service);
        for (index, (application, metric, usage)) in usages.iter().enumerate() {
            form.append_pair(&format!("transactions[{index}][app_id]"), application)
                .append_pair(&format!("transactions[{index}][usage][{metric}]"), usage);
        }
        let answer = self.ask(&Sent::report(form.finish())).await?;
        ensure!(
            answer.status == 202,
            "a report for service {service}: {} {} (does the backend hold \
             tests/data/dataset.yaml?)",
            answer.status,
            answer.body
        );
        Ok(())
    }

    /// Sets what no request that matters uses, and waits until that shows.
    async fn mark(&mut self, value: u64) -> Result<()> {
        let (service, application, metric) = MARK;
        self.report(service, &[(application, metric, format!("#{value}"))])
            .await?;
        let until = Instant::now() + PATIENCE;
        loop {
            let answer = self.ask(&Sent::get(ASK_FOR_MARK)).await?;
            let document = Document::read(&answer.body)
                .with_context(|| format!("{} {}", answer.status, answer.body))?;
            let mut reports = document.reports.iter();
            let Some(report) = reports.find(|report| report.metric == metric) else {
                bail!(
                    "the backend does not hold tests/data/dataset.yaml: {} {}",
                    answer.status,
                    answer.body
                );
            };
            if report.current == value {
                return Ok(());
            }
            ensure!(
                Instant::now() < until,
                "what was reported does not count after {PATIENCE:?}: do the backend's workers run?"
            );
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

/// A metric with an eternal limit, of an application that no request uses up.
const MARK: (&str, &str, &str) = ("1002", "app2multi", "ads");
const ASK_FOR_MARK: &str = "/transactions/authorize.xml?service_token=svc-token&service_id=1002&app_id=app2multi&app_key=k1";

fn now() -> Duration {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default()
}

impl Server for Wire {
    async fn ask(&mut self, sent: &Sent) -> Result<Answer> {
        let headers: Vec<_> = sent
            .headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            // These are the connection's.
            .filter(|(name, _)| !["host", "content-length", "connection"].contains(name))
            .collect();
        let method = Method::from_bytes(sent.method.as_bytes())?;
        let url = reqwest::Url::parse(&format!("{}{}", self.url, sent.target))?;
        ensure!(
            url.as_str().strip_prefix(&self.url) == Some(&sent.target),
            "{} cannot be sent as it is",
            sent.target
        );
        let mut request = self.http.request(method, url).body(sent.body.clone());
        for (name, value) in headers {
            request = request.header(name, value);
        }
        // Some URLs are too long for a message.
        let response = request.send().await.map_err(reqwest::Error::without_url)?;
        let headers = response.headers().iter().map(|(name, value)| {
            let value = String::from_utf8_lossy(value.as_bytes());
            (name.as_str().to_owned(), value.into_owned())
        });
        Ok(Answer {
            status: response.status().as_u16(),
            headers: headers.collect(),
            body: String::from_utf8_lossy(&response.bytes().await?).into_owned(),
        })
    }

    fn at(&mut self, _moment: i64) -> i64 {
        i64::try_from(now().as_secs()).unwrap_or(i64::MAX)
    }

    async fn settle(&mut self) -> Result<()> {
        // Not a value that may be left from an earlier run.
        let millisecond = u64::try_from(now().as_millis())? % 1_000_000_000_000;
        self.last_mark = millisecond.max(self.last_mark + 1);
        self.mark(self.last_mark).await?;
        self.mark(0).await
    }

    async fn reset(&mut self) -> Result<()> {
        self.room_in_the_minute(ROOM).await;
        for (service, data) in self.data.services.clone() {
            let metrics: Vec<_> = self.data.metrics.keys().cloned().collect();
            let usages: Vec<_> = data
                .applications
                .keys()
                .flat_map(|application| metrics.iter().map(move |metric| (application, metric)))
                .map(|(application, metric)| {
                    (application.as_str(), metric.as_str(), "#0".to_owned())
                })
                .collect();
            self.report(&service, &usages).await?;
        }
        self.settle().await
    }

    fn stop_workers(&mut self, stop: bool) {
        let Some(stand_in) = &self.stand_in else {
            return;
        };
        if stop {
            stand_in.set_lag(Duration::from_secs(3_600));
        } else {
            stand_in.set_lag(Options::default().lag);
            stand_in.catch_up();
        }
    }

    fn is_ours(&self) -> bool {
        self.stand_in.is_some()
    }

    fn closeness(&self) -> Closeness {
        Closeness::Meaning
    }

    fn clock(&self) -> Option<Duration> {
        Some(now())
    }
}
