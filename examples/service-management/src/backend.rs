//! The backend as a state machine: requests and moments in, responses out. No
//! I/O, no clock.

use crate::calendar::control_time;
use crate::counters::Usage;
use crate::dataset::{ApplicationChange, Dataset, DatasetError, Service};
use crate::error::ApiError;
use crate::form::read_form;
use crate::message::{Request, Response};
use crate::parameters::{self, Parameter, Parameters, ParseError, get};
use crate::report::{Job, JobError};
use crate::status::Extensions;
use serde::Serialize;
use std::collections::{BTreeMap, VecDeque};

/// The version the protocol was taken from.
const STATUS: &str = r#"{"status":"ok","version":{"backend":"3.4.3"}}"#;
/// Puma answers longer queries itself.
const LONGEST_QUERY: usize = 10_240;
/// Integration errors kept per service.
const MOST_ERRORS: usize = 1_000;

/// The endpoints that matter apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Endpoint {
    /// `GET /transactions/authorize.xml`
    Authorize,
    /// `GET /transactions/authrep.xml`
    Authrep,
    /// `GET /transactions/oauth_authorize.xml`
    OauthAuthorize,
    /// `GET /transactions/oauth_authrep.xml`
    OauthAuthrep,
    /// `POST /transactions.xml`
    Report,
    /// `GET /status`, `GET /check.txt`, `HEAD /available`
    Probe,
    /// Everything else.
    Other,
}

impl Endpoint {
    /// The endpoint of a request.
    #[must_use]
    pub fn of(method: &str, path: &str) -> Self {
        let path = clean(path);
        match (method, path.as_str()) {
            ("GET" | "HEAD", "/transactions/authorize.xml") => Self::Authorize,
            ("GET" | "HEAD", "/transactions/authrep.xml") => Self::Authrep,
            ("GET" | "HEAD", "/transactions/oauth_authorize.xml") => Self::OauthAuthorize,
            ("GET" | "HEAD", "/transactions/oauth_authrep.xml") => Self::OauthAuthrep,
            ("POST", "/transactions.xml") => Self::Report,
            ("GET" | "HEAD", "/status" | "/check.txt") | ("HEAD", "/available") => Self::Probe,
            _ => Self::Other,
        }
    }
}

/// An error that a service's owner would find in the admin portal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct IntegrationError {
    /// The code, such as `metric_invalid`.
    pub code: &'static str,
    /// The words, without keys.
    pub message: String,
    /// When: RFC 3339.
    pub timestamp: String,
}

/// Integration errors by service, newest first, and the number of jobs that
/// failed (a counter would have left the range of 64 bits).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Errors {
    /// By service id.
    pub services: BTreeMap<String, VecDeque<IntegrationError>>,
    /// Jobs that a real backend would have put into its failed queue.
    pub failed_jobs: u64,
}

/// Why a call gets no regular answer.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// An `<error>`, whose body `no_body` removes.
    Api(ApiError),
    /// An `<error>` with its body in any case.
    Plain(ApiError),
    /// 403 without a body.
    Forbidden,
    /// 500: an exception in the backend.
    Internal,
}

impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Self {
        Self::Api(error)
    }
}

/// Malformed options: the backend reads them too late to refuse them properly.
impl From<ParseError> for Refusal {
    fn from(error: ParseError) -> Self {
        match error {
            ParseError::Limit(message) => Self::Plain(ApiError::BadRequest(message)),
            _ => Self::Internal,
        }
    }
}

/// The state machine. Times are Unix milliseconds, and must not go back.
#[derive(Clone, Debug)]
pub struct Backend {
    dataset: Dataset,
    usage: Usage,
    /// In the order of arrival, with the moments at which a worker takes them,
    /// which never decrease.
    queue: VecDeque<(u64, Job)>,
    errors: Errors,
    lag: u64,
}

impl Backend {
    /// A backend with this data. Workers apply what is queued after `lag`
    /// milliseconds; with 0, before the next request.
    #[must_use]
    pub fn new(dataset: Dataset, lag: u64) -> Self {
        Self {
            dataset,
            usage: Usage::default(),
            queue: VecDeque::new(),
            errors: Errors::default(),
            lag,
        }
    }

    /// Answers a request.
    pub fn handle(&mut self, request: &Request<'_>, now: u64) -> Response {
        self.apply_due(now);
        let mut response = self.answer(request, now);
        self.apply_due(now);
        if request.method == "HEAD" {
            response.body.clear();
        }
        response
    }

    /// What workers have applied by this moment is applied now. Reports without
    /// a timestamp count at the moment at which their worker took them.
    pub fn apply_due(&mut self, now: u64) {
        while self.queue.front().is_some_and(|(due, _)| *due <= now) {
            if let Some((due, job)) = self.queue.pop_front() {
                self.work(&job, due);
            }
        }
    }

    /// Everything that is queued is applied now, whatever the lag.
    pub fn catch_up(&mut self, now: u64) {
        while let Some((due, job)) = self.queue.pop_front() {
            self.work(&job, due.min(now));
        }
    }

    /// The lag of what is queued from now on, in milliseconds. What was queued
    /// before is still applied before.
    pub fn set_lag(&mut self, lag: u64) {
        self.lag = lag;
    }

    /// The lag, in milliseconds.
    #[must_use]
    pub fn lag(&self) -> u64 {
        self.lag
    }

    /// All usage that is applied.
    #[must_use]
    pub fn usage(&self) -> &Usage {
        &self.usage
    }

    /// The number of jobs that wait for a worker.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.queue.len()
    }

    /// The integration errors.
    #[must_use]
    pub fn errors(&self) -> &Errors {
        &self.errors
    }

    /// Forgets usage, errors and what is queued.
    pub fn reset(&mut self) {
        self.usage = Usage::default();
        self.queue.clear();
        self.errors = Errors::default();
    }

    /// Forgets the integration errors only.
    pub fn reset_errors(&mut self) {
        self.errors = Errors::default();
    }

    /// Changes an application, or makes one.
    ///
    /// # Errors
    /// When the change does not fit the data.
    pub fn put_application(
        &mut self,
        service: &str,
        application: &str,
        change: ApplicationChange,
    ) -> Result<(), DatasetError> {
        self.dataset.put_application(service, application, change)
    }

    /// Forgets an application; says whether there was one. Its usage stays.
    pub fn remove_application(&mut self, service: &str, application: &str) -> bool {
        self.dataset.remove_application(service, application)
    }

    /// Makes another token the only valid one of a service; says whether there
    /// is such a service.
    pub fn set_service_token(&mut self, service: &str, token: &str) -> bool {
        let service = self.dataset.services.get_mut(service);
        service
            .map(|service| token.clone_into(&mut service.token))
            .is_some()
    }

    pub(crate) fn dataset(&self) -> &Dataset {
        &self.dataset
    }

    fn answer(&mut self, request: &Request<'_>, now: u64) -> Response {
        if request.query.len() > LONGEST_QUERY {
            return Response::bare(400, b"");
        }
        let (query, parameters) = match read(request) {
            Ok(read) => read,
            Err(error) => return malformed(request, error),
        };
        let endpoint = Endpoint::of(request.method, request.path);
        let outcome = match endpoint {
            Endpoint::Authorize
            | Endpoint::Authrep
            | Endpoint::OauthAuthorize
            | Endpoint::OauthAuthrep => self.authorization(endpoint, request, parameters, now),
            Endpoint::Report => self.report(request, &parameters, now),
            Endpoint::Probe => return probe(request.path),
            Endpoint::Other if request.method == "OPTIONS" => return Response::preflight(),
            Endpoint::Other => return Response::not_found(),
        };
        match outcome {
            Ok(response) => response,
            Err(Refusal::Api(error)) => match Extensions::parse(request.options, &query) {
                Ok(extensions) => Response::error(&error, !extensions.no_body),
                Err(_) => Response::internal_error(),
            },
            Err(Refusal::Plain(error)) => Response::error(&error, true),
            Err(Refusal::Forbidden) => {
                Response::answer(403, crate::message::XML, Vec::new(), Vec::new())
            }
            Err(Refusal::Internal) => Response::internal_error(),
        }
    }

    /// The provider key that the credentials of the provider's side stand for,
    /// if the data has one; protocol section 2.
    pub(crate) fn provider(&self, parameters: &Parameters) -> Result<Option<String>, ApiError> {
        match get(parameters, "provider_key") {
            Some(Parameter::Text(key)) if key.is_empty() => {}
            Some(key) => return Ok(Some(key.display())),
            None => {
                let sent = |name| get(parameters, name).and_then(Parameter::text);
                if let (Some(token), Some(id)) = (sent("service_token"), sent("service_id"))
                    && let Some(service) = self.dataset.services.get(id.as_ref())
                    && service.token == token
                    && !token.is_empty()
                {
                    return Ok(self.dataset.provider_key.clone());
                }
            }
        }
        let sent = |name| {
            let text = get(parameters, name).map(Parameter::display);
            text.filter(|text| !text.is_empty())
        };
        match (sent("service_token"), sent("service_id")) {
            (None, _) => Err(ApiError::ProviderKeyOrServiceTokenRequired),
            (_, None) => Err(ApiError::ServiceIdMissing),
            (Some(token), Some(service)) => Err(ApiError::ServiceTokenInvalid { token, service }),
        }
    }

    /// `load_with_provider_key!`
    pub(crate) fn service(
        &self,
        id: Option<&Parameter>,
        provider: Option<&str>,
    ) -> Result<&Service, Refusal> {
        let shown = || provider.unwrap_or_default().to_owned();
        let known = self.dataset.provider_key.as_deref() == provider;
        let default = self.dataset.default_service.as_ref().filter(|_| known);
        let id = match id {
            None => String::new(),
            Some(Parameter::Text(id)) => String::from_utf8_lossy(id).into_owned(),
            Some(_) => return Err(Refusal::Internal),
        };
        let id = if id.is_empty() {
            let missing = || ApiError::ProviderKeyInvalidOrServiceMissing(shown());
            default.ok_or_else(missing)?.clone()
        } else {
            id
        };
        let last = id.trim_end_matches('-').rsplit('-').next();
        let service = last
            .and_then(|last| self.dataset.services.get(last))
            .or_else(|| self.dataset.services.get(&id));
        match service {
            Some(service) if known => Ok(service),
            Some(_) if default.is_none() => Err(ApiError::ProviderKeyInvalid(shown()).into()),
            _ => Err(ApiError::ServiceIdInvalid(id).into()),
        }
    }

    pub(crate) fn enqueue(&mut self, job: Job, now: u64) {
        let last = self.queue.back().map_or(0, |(due, _)| *due);
        let due = now.saturating_add(self.lag).max(last);
        self.queue.push_back((due, job));
    }

    /// Keeps the error of a call with the service, if the parameters name one
    /// of the provider's.
    pub(crate) fn keep_error(
        &mut self,
        parameters: &Parameters,
        provider: Option<&str>,
        error: &ApiError,
        now: u64,
    ) {
        if self.dataset.provider_key.as_deref() != provider {
            return;
        }
        let service = match get(parameters, "service_id") {
            Some(id) => Some(id.display()),
            None => self.dataset.default_service.clone(),
        };
        if let Some(service) = service.filter(|id| self.dataset.services.contains_key(id)) {
            self.store_error(service, error, now);
        }
    }

    fn store_error(&mut self, service: String, error: &ApiError, now: u64) {
        let errors = self.errors.services.entry(service).or_default();
        errors.truncate(MOST_ERRORS - 1);
        errors.push_front(IntegrationError {
            code: error.code(),
            message: error.public_message(),
            timestamp: control_time(seconds(now)),
        });
    }

    fn work(&mut self, job: &Job, now: u64) {
        match crate::report::apply(job, &self.dataset, &mut self.usage, seconds(now)) {
            Ok(()) => {}
            Err(JobError::Api(error)) => self.store_error(job.service.clone(), &error, now),
            Err(JobError::Failed) => {
                self.errors.failed_jobs = self.errors.failed_jobs.saturating_add(1);
            }
        }
    }
}

fn seconds(milliseconds: u64) -> i64 {
    i64::try_from(milliseconds / 1_000).unwrap_or(i64::MAX)
}

/// The parameters of the query, and all: those of a form replace those of the query.
pub(crate) fn read(request: &Request<'_>) -> Result<(Parameters, Parameters), ParseError> {
    let query = parameters::parse(request.query)?;
    let mut all = query.clone();
    all.extend(read_form(request)?);
    Ok((query, all))
}

fn malformed(request: &Request<'_>, error: ParseError) -> Response {
    match error {
        ParseError::Limit(message) => Response::error(&ApiError::BadRequest(message), true),
        // The access log of the backend reads the form again, and raises.
        _ if request.method == "POST" => Response::bare(500, b""),
        ParseError::PercentEncoding => {
            let message = "Invalid query parameters: invalid %-encoding";
            Response::error(&ApiError::BadRequest(message.to_owned()), true)
        }
        ParseError::Clash {
            expected: "Hash",
            found: "Array",
            ..
        } => {
            let message =
                "request contains syntax errors, should not be repeated without modification";
            Response::error(&ApiError::BadRequest(message.to_owned()), true)
        }
        ParseError::Clash {
            expected,
            found,
            name,
        } => Response::malformed(&format!(
            "Invalid query parameters: expected {expected} (got {found}) for param `{}&#39;",
            quick_xml::escape::escape(name.as_str())
        )),
    }
}

fn probe(path: &str) -> Response {
    match clean(path).as_str() {
        "/status" => Response::answer(200, "application/json", Vec::new(), STATUS.into()),
        "/check.txt" => {
            let content_type = "text/plain;charset=utf-8";
            Response::answer(200, content_type, Vec::new(), b"ok".to_vec())
        }
        _ => Response::answer(200, crate::message::XML, Vec::new(), Vec::new()),
    }
}

/// The path as the framework matches it: without empty and dotted segments.
fn clean(path: &str) -> String {
    let path = path
        .replace("%2e", ".")
        .replace("%2E", ".")
        .replace("%2f", "/")
        .replace("%2F", "/");
    let mut segments = Vec::new();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => {
                segments.pop();
            }
            segment => segments.push(segment),
        }
    }
    let slash = !segments.is_empty() && ["/", "/.", "/.."].iter().any(|end| path.ends_with(end));
    format!("/{}{}", segments.join("/"), if slash { "/" } else { "" })
}
