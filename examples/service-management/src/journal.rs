//! What was asked of the stand-in, for tests and for the terminal. No keys and
//! no tokens get here: of the parameters only those that are known not to be
//! secret keep their values.

use crate::backend::{Backend, Endpoint, read};
use crate::faults::Fault;
use crate::message::Request;
use crate::parameters::{Parameter, Parameters, get};
use serde::Serialize;
use std::collections::{BTreeMap, VecDeque};
use std::fmt;

/// The most characters that are kept of anything a caller writes.
const LONGEST_TEXT: usize = 256;

/// One call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Call {
    /// When it arrived: Unix milliseconds by the stand-in's clock.
    pub at: u64,
    /// The endpoint.
    pub endpoint: Endpoint,
    /// The method.
    pub method: String,
    /// The path, without the query.
    pub path: String,
    /// The service, as named by the call.
    pub service: Option<String>,
    /// The application, if there is one by the key or id of the call.
    pub application: Option<String>,
    /// The parameters by name, such as `usage[hits]`; secrets and what is not
    /// known are `<redacted>`. Of reports only those outside the transactions.
    /// Long texts are cut.
    pub parameters: BTreeMap<String, String>,
    /// The `3scale-options`.
    pub options: Option<String>,
    /// For reports: the number of transactions.
    pub transactions: Option<usize>,
    /// The fault that befell it.
    pub fault: Option<Fault>,
    /// The status of the answer, if there was one.
    pub status: Option<u16>,
    /// The error code or rejection reason.
    pub code: Option<&'static str>,
}

/// How often each endpoint was called, and the last calls.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Calls {
    /// Calls by endpoint.
    pub counts: BTreeMap<Endpoint, u64>,
    /// Calls to authorize that named a usage.
    pub predictions: u64,
    /// Transactions in all reports.
    pub transactions: u64,
    /// The last calls, oldest first.
    pub calls: VecDeque<Call>,
}

impl Calls {
    /// How often an endpoint was called.
    #[must_use]
    pub fn count(&self, endpoint: Endpoint) -> u64 {
        self.counts.get(&endpoint).copied().unwrap_or(0)
    }

    /// How often it was asked about an application and nothing else: calls to authorize without
    /// a usage.
    #[must_use]
    pub fn questions(&self) -> u64 {
        self.count(Endpoint::Authorize)
            .saturating_sub(self.predictions)
    }

    pub(crate) fn record(&mut self, call: Call, kept: usize) {
        if call.endpoint == Endpoint::Authorize && call.has_usage() {
            self.predictions = self.predictions.saturating_add(1);
        }
        let count = self.counts.entry(call.endpoint).or_default();
        *count = count.saturating_add(1);
        let transactions = call.transactions.unwrap_or(0);
        let transactions = u64::try_from(transactions).unwrap_or(u64::MAX);
        self.transactions = self.transactions.saturating_add(transactions);
        self.calls.push_back(call);
        while self.calls.len() > kept {
            self.calls.pop_front();
        }
    }
}

impl Call {
    /// Whether a usage was named, outside transactions.
    #[must_use]
    pub fn has_usage(&self) -> bool {
        self.parameters
            .keys()
            .any(|name| name.starts_with("usage["))
    }

    /// What a request says, before it is answered.
    pub(crate) fn describe(request: &Request<'_>, backend: &Backend, at: u64) -> Self {
        let endpoint = Endpoint::of(request.method, request.path);
        let parameters = match endpoint {
            Endpoint::Probe | Endpoint::Other => Parameters::new(),
            _ => read(request).map(|(_, all)| all).unwrap_or_default(),
        };
        let text = |name| get(&parameters, name).map(Parameter::display);
        let service = text("service_id");
        let known = service
            .as_ref()
            .and_then(|service| backend.dataset().services.get(service));
        let application = known.and_then(|service| {
            let by_key = text("user_key").and_then(|key| service.user_keys.get(&key).cloned());
            let by_id = || text("app_id").filter(|id| service.applications.contains_key(id));
            by_key.or_else(by_id)
        });
        let transactions = match get(&parameters, "transactions") {
            Some(Parameter::Map(transactions)) => Some(transactions.len()),
            _ => None,
        };
        let mut shown = BTreeMap::new();
        for (name, value) in &parameters {
            let name = String::from_utf8_lossy(name);
            if name != "transactions" {
                show(&name, &name, value, &mut shown);
            }
        }
        Self {
            at,
            endpoint,
            method: request.method.to_owned(),
            path: brief(request.path),
            service: service.as_deref().map(brief),
            application,
            parameters: shown,
            options: request
                .options
                .map(|options| brief(&String::from_utf8_lossy(options))),
            transactions,
            fault: None,
            status: None,
            code: None,
        }
    }
}

/// The start of a text: many calls are kept, and callers decide what they say.
fn brief(text: &str) -> String {
    text.chars().take(LONGEST_TEXT).collect()
}

fn show(top: &str, path: &str, value: &Parameter, shown: &mut BTreeMap<String, String>) {
    match value {
        Parameter::Map(map) => {
            for (name, value) in map {
                let path = format!("{path}[{}]", String::from_utf8_lossy(name));
                show(top, &path, value, shown);
            }
        }
        Parameter::List(items) => {
            for item in items {
                show(top, &format!("{path}[]"), item, shown);
            }
        }
        value => {
            let public = matches!(
                top,
                "service_id" | "app_id" | "usage" | "log" | "referrer" | "no_body"
            );
            let text = if public {
                value.display()
            } else {
                "<redacted>".to_owned()
            };
            shown.insert(brief(path), brief(&text));
        }
    }
}

impl fmt::Display for Call {
    /// One line for the terminal.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} {}", self.method, self.path.escape_debug())?;
        if let Some(service) = &self.service {
            write!(out, " service {}", service.escape_debug())?;
        }
        if let Some(application) = &self.application {
            write!(out, " application {}", application.escape_debug())?;
        }
        if let Some(transactions) = self.transactions {
            write!(out, " transactions {transactions}")?;
        }
        for (name, value) in &self.parameters {
            if name.starts_with("usage") {
                write!(out, " {}={}", name.escape_debug(), value.escape_debug())?;
            }
        }
        write!(out, " ->")?;
        match self.status {
            Some(status) => write!(out, " {status}")?,
            None => write!(out, " no answer")?,
        }
        if let Some(code) = self.code {
            write!(out, " {code}")?;
        }
        if let Some(fault) = self.fault {
            write!(out, " (fault: {fault:?})")?;
        }
        Ok(())
    }
}
