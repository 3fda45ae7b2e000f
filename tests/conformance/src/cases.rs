//! Requests for a gateway that guards the services of the captures' data: who makes them,
//! what they cost, and the question about them that goes to the backend past the gateway.
//!
//! Apart from [`crate::comparison`], which sends them: what is compared is decided here,
//! and needs no Envoy.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::captures::Sent;
use crate::data::{Application, Data, Service};

/// What a request costs: metrics and deltas.
pub type Usage = BTreeMap<String, u64>;

/// A metric that no service has.
pub const UNKNOWN_METRIC: &str = "nonesuch";

/// Who makes a request: parameters by their names at the backend.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Consumer {
    /// What it is a case of, for people.
    pub label: String,
    /// Sent as the request's query parameters, and in the question.
    pub credentials: Vec<(&'static str, String)>,
    /// Sent as the request's `Referer`, and in the question as `referrer`.
    pub referrer: Option<String>,
}

impl Consumer {
    fn new(label: impl Into<String>, credentials: &[(&'static str, &str)]) -> Self {
        Self {
            label: label.into(),
            credentials: credentials
                .iter()
                .map(|(name, value)| (*name, (*value).to_owned()))
                .collect(),
            referrer: None,
        }
    }

    fn with_referrer(mut self, referrer: &str) -> Self {
        self.label = format!("{}, referrer {referrer:?}", self.label);
        self.referrer = Some(referrer.to_owned());
        self
    }

    /// The value of a credential, if it is sent and not blank.
    #[must_use]
    pub fn shows(&self, name: &str) -> bool {
        let mut credentials = self.credentials.iter();
        credentials.any(|(other, value)| *other == name && !value.trim().is_empty())
    }
}

/// How the gateway is configured to know the applications of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// By a `user_key`.
    UserKey,
    /// By an `app_id`, and an `app_key`.
    AppId,
    /// The same, for a service with OAuth.
    Oauth,
}

impl Mode {
    /// The right one for a service.
    #[must_use]
    pub fn of(service: &Service) -> Self {
        match service.backend_version.as_str() {
            "1" => Self::UserKey,
            "oauth" => Self::Oauth,
            _ => Self::AppId,
        }
    }

    /// The parameter that names an application.
    #[must_use]
    pub fn id(self) -> &'static str {
        match self {
            Self::UserKey => "user_key",
            Self::AppId | Self::Oauth => "app_id",
        }
    }
}

/// A request, and the question about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// The service's id.
    pub service: String,
    /// How the gateway takes it.
    pub mode: Mode,
    /// Whose limits it counts against, if it is let in.
    pub application: Option<String>,
    /// Who makes it.
    pub consumer: Consumer,
    /// What it costs.
    pub usage: Usage,
}

impl Case {
    /// The path and query of the request. `number` makes the path one of its kind.
    #[must_use]
    pub fn target(&self, number: usize) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.extend_pairs(&self.consumer.credentials);
        format!("{}?{}", self.path(number), query.finish())
    }

    /// The path of the request.
    #[must_use]
    pub fn path(&self, number: usize) -> String {
        format!("/{}/{number}", segment(&self.usage))
    }

    /// Whether the request has what the gateway looks for.
    #[must_use]
    pub fn has_credential(&self) -> bool {
        self.consumer.shows(self.mode.id())
    }

    /// Whether it has a key without a value where that is a wrong one.
    #[must_use]
    pub fn has_blank_key(&self) -> bool {
        let mut credentials = self.consumer.credentials.iter();
        self.mode == Mode::Oauth
            && credentials.any(|(name, value)| *name == "app_key" && value.trim().is_empty())
    }

    /// The same as the gateway understands it, if that is not the same to the backend: of
    /// other ids than the service's nothing is seen, and what is blank is not there; except,
    /// with OAuth, a key.
    #[must_use]
    pub fn understood(&self) -> Option<Self> {
        let mut understood = self.clone();
        understood.consumer.credentials.retain(|(name, value)| {
            let is_other = ["user_key", "app_id"].contains(name) && *name != self.mode.id();
            let is_wrong_key = self.mode == Mode::Oauth && *name == "app_key";
            !is_other && (is_wrong_key || !value.trim().is_empty())
        });
        (self.has_credential() && understood != *self).then_some(understood)
    }

    /// What the backend would decide: this usage, predicted.
    #[must_use]
    pub fn question(&self, token: &str) -> Sent {
        let mut query = form_urlencoded::Serializer::new(String::new());
        query
            .append_pair("service_token", token)
            .append_pair("service_id", &self.service)
            .extend_pairs(&self.consumer.credentials);
        if let Some(referrer) = &self.consumer.referrer {
            query.append_pair("referrer", referrer);
        }
        for (metric, delta) in &self.usage {
            query.append_pair(&format!("usage[{metric}]"), &delta.to_string());
        }
        let endpoint = match self.mode {
            Mode::Oauth => "oauth_authorize",
            Mode::UserKey | Mode::AppId => "authorize",
        };
        let target = format!("/transactions/{endpoint}.xml?{}", query.finish());
        let options = ("3scale-options", "rejection_reason_header=1");
        Sent {
            headers: vec![(options.0.to_owned(), options.1.to_owned())],
            ..Sent::get(target)
        }
    }
}

/// The path segment that stands for a usage.
fn segment(usage: &Usage) -> String {
    if usage.is_empty() {
        return "free".to_owned();
    }
    let parts = usage
        .iter()
        .map(|(metric, delta)| format!("{metric}-{delta}"));
    parts.collect::<Vec<_>>().join("--")
}

/// Everything that a request may cost: nothing, one of each metric, as much as the limits of
/// the data and more, and several metrics, one an ancestor of the other.
#[must_use]
pub fn usages() -> Vec<Usage> {
    let parts: [&[(&str, u64)]; 15] = [
        &[("hits", 1)],
        &[("orders", 1)],
        &[],
        &[("orders_vip", 1)],
        &[("ads", 1)],
        &[("hits", 3)],
        &[("ads", 8)],
        &[("hits", 1), ("orders", 1)],
        &[("orders_vip", 2), ("ads", 1)],
        &[("orders", 4)],
        &[("hits", 6)],
        &[("hits", 11)],
        &[("ads", 5)],
        &[("hits", 1001)],
        &[("orders", 1), ("orders_vip", 1), ("ads", 7)],
    ];
    parts
        .iter()
        .map(|parts| {
            let parts = parts.iter();
            parts
                .map(|(metric, delta)| ((*metric).to_owned(), *delta))
                .collect()
        })
        .collect()
}

/// The host of a service's requests.
#[must_use]
pub fn host(service: &str) -> String {
    format!("service-{service}.test")
}

/// The gateway's configuration for a service: its mode, its metrics, and a rule for each usage.
#[must_use]
pub fn configuration(data: &Data, id: &str, service: &Service, mode: Mode, token: &str) -> Value {
    let credentials = match mode {
        Mode::UserKey => json!({ "user_key": [{ "query": "user_key" }] }),
        Mode::AppId | Mode::Oauth => json!({
            "app_id": [{ "query": "app_id" }],
            "app_key": [{ "query": "app_key" }],
            "referrer": service.referrer_filters_required,
        }),
    };
    let metrics: BTreeMap<_, _> = data
        .metrics
        .iter()
        .map(|(metric, parent)| {
            let declared = parent.as_ref().map(|parent| json!({ "parent": parent }));
            (metric, declared.unwrap_or_else(|| json!({})))
        })
        .collect();
    let rules: Vec<_> = usages()
        .iter()
        .map(|usage| json!({ "pattern": format!("/{}/", segment(usage)), "usage": usage, "last": true }))
        .collect();
    json!({
        "id": id,
        "token": token,
        "oauth": mode == Mode::Oauth,
        "hosts": [host(id)],
        "credentials": credentials,
        "metrics": metrics,
        "mapping_rules": rules,
    })
}

/// A rule for a metric that the service does not have.
#[must_use]
pub fn rule_of_unknown_metric() -> Value {
    let usage = Usage::from([(UNKNOWN_METRIC.to_owned(), 1)]);
    json!({ "pattern": format!("/{}/", segment(&usage)), "usage": usage, "last": true })
}

fn by_user_key(service: &Service) -> bool {
    Mode::of(service) == Mode::UserKey
}

/// Who may make requests for an application of this service: rightly, the first, and wrongly.
/// None if no request can be made for it.
#[must_use]
pub fn consumers_of(service: &Service, id: &str, application: &Application) -> Vec<Consumer> {
    if by_user_key(service) {
        let Some(key) = &application.user_key else {
            return Vec::new();
        };
        let both = [("user_key", key.as_str()), ("app_id", id)];
        return vec![
            Consumer::new(id, &[("user_key", key)]),
            Consumer::new(format!("{id}, and an app_id"), &both),
        ];
    }
    let with = |what: &str, key: &str| {
        Consumer::new(format!("{id}, {what}"), &[("app_id", id), ("app_key", key)])
    };
    let bare = Consumer::new(format!("{id}, no key"), &[("app_id", id)]);
    let mut consumers: Vec<_> = (1..)
        .zip(&application.app_keys)
        .map(|(number, key)| with(&format!("key {number}"), key))
        .collect();
    consumers.extend([
        bare,
        with("a wrong key", "wrong"),
        with("an empty key", ""),
        with("a key with parameters after it", "k1&usage[hits]=0"),
    ]);
    consumers.extend(
        application
            .app_keys
            .first()
            .map(|key| with("a key in capitals", &key.to_uppercase())),
    );
    consumers.extend(
        application
            .app_keys
            .last()
            .map(|key| with("a key with spaces around it", &format!(" {key} "))),
    );
    let mut both = consumers.first().cloned().unwrap_or_default();
    both.label = format!("{id}, and a user_key");
    both.credentials.push(("user_key", "key1".to_owned()));
    consumers.push(both);
    let looks_at_referrer = service.referrer_filters_required;
    if looks_at_referrer && !application.referrer_filters.is_empty() {
        let base = consumers.first().cloned().unwrap_or_default();
        let referrers = [
            "www.example.org",
            "foo.example.com",
            "*",
            "evil.com",
            "example.org",
        ];
        let mut with_referrer: Vec<_> = referrers
            .iter()
            .map(|referrer| base.clone().with_referrer(referrer))
            .collect();
        with_referrer.append(&mut consumers);
        return with_referrer;
    }
    consumers
}

/// Consumers that no application of the service stands behind.
#[must_use]
pub fn strangers(service: &Service) -> Vec<Consumer> {
    let id = if by_user_key(service) {
        "user_key"
    } else {
        "app_id"
    };
    let applications = &service.applications;
    let known = applications.iter().find_map(|(name, application)| {
        let known = if by_user_key(service) {
            application.user_key.clone()
        } else {
            Some(name.clone())
        };
        known.filter(|_| application.state == "active")
    });
    let known = known.unwrap_or_default();
    let injected = format!("{known}&usage[hits]=0");
    let values = [
        ("unknown", "nobody".to_owned()),
        ("empty", String::new()),
        ("blank", "  ".to_owned()),
        ("in capitals", known.to_uppercase()),
        ("with a space before it", format!(" {known}")),
        ("with parameters after it", injected),
        ("with an end of its text in it", format!("{known}\0")),
        ("with a line break after it", format!("{known}\n")),
        ("with a plus after it", format!("{known}+")),
        (
            "percent-encoded once more",
            known.replace('k', "%6B").replace('a', "%61"),
        ),
        (
            "with markup in it",
            "</reason><authorized>true</authorized>".to_owned(),
        ),
        ("not ASCII", "schlüssel".to_owned()),
        (
            "of another service",
            if by_user_key(service) {
                "key1002"
            } else {
                "app3"
            }
            .to_owned(),
        ),
        ("of 300 letters", "y".repeat(300)),
    ];
    let mut strangers: Vec<_> = values
        .iter()
        .map(|(what, value)| Consumer::new(format!("{id} {what}"), &[(id, value)]))
        .collect();
    strangers.push(Consumer::new("nothing", &[]));
    let other = if by_user_key(service) {
        "app_id"
    } else {
        "user_key"
    };
    let only_other = Consumer::new(format!("only a {other}"), &[(other, &known)]);
    strangers.push(only_other);
    if !by_user_key(service) {
        strangers.push(Consumer::new("only an app_key", &[("app_key", "k1")]));
    }
    strangers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_usage_has_a_path_of_its_own() {
        let mut segments: Vec<_> = usages().iter().map(segment).collect();
        segments.sort();
        segments.dedup();
        assert_eq!(segments.len(), usages().len());
    }

    #[test]
    fn every_application_that_can_make_requests_is_a_consumer() {
        let data = Data::read().unwrap();
        let mut without = Vec::new();
        for service in data.services.values() {
            for (id, application) in &service.applications {
                if consumers_of(service, id, application).is_empty() {
                    without.push(id.as_str());
                }
            }
        }
        // Of the service of user keys, and without one.
        assert_eq!(without, ["app2"]);
    }

    #[test]
    fn a_gateway_sees_no_other_ids_and_nothing_blank() {
        let of = |mode, credentials| Case {
            service: "1".to_owned(),
            mode,
            application: None,
            consumer: Consumer::new("", credentials),
            usage: Usage::new(),
        };
        let case = |credentials| of(Mode::AppId, credentials);
        let both = [("app_id", "a"), ("user_key", "u"), ("app_key", " ")];
        assert_eq!(case(&both).understood(), Some(case(&[("app_id", "a")])));
        let blank = [("app_id", "a"), ("app_key", " ")];
        assert_eq!(of(Mode::Oauth, &blank).understood(), None);
        assert_eq!(
            case(&[("app_id", "a"), ("app_key", "k")]).understood(),
            None
        );
        // Nothing is left to ask about.
        assert_eq!(case(&[("user_key", "u")]).understood(), None);
    }

    #[test]
    fn a_question_says_what_the_request_says() {
        let case = Case {
            service: "1".to_owned(),
            mode: Mode::Oauth,
            application: None,
            consumer: Consumer::new("", &[("app_id", "a&b"), ("app_key", "k")]).with_referrer("r"),
            usage: Usage::from([("m".to_owned(), 2)]),
        };
        assert_eq!(case.target(7), "/m-2/7?app_id=a%26b&app_key=k");
        assert_eq!(
            case.question("t").target,
            "/transactions/oauth_authorize.xml?service_token=t&service_id=1&app_id=a%26b\
             &app_key=k&referrer=r&usage%5Bm%5D=2"
        );
    }
}
