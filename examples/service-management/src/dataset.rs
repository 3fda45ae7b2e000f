//! What the backend knows before the first call: services, metrics, plans and
//! applications. Read from YAML, or from the data of a recording.

use crate::calendar::Period;
use indexmap::IndexMap;
use serde::Deserialize;
use serde::de::IgnoredAny;
use std::collections::{HashMap, HashSet};

/// The services, and the provider they belong to.
#[derive(Clone, Debug)]
pub struct Dataset {
    pub(crate) provider_key: Option<String>,
    pub(crate) default_service: Option<String>,
    pub(crate) services: IndexMap<String, Service>,
}

/// Why data was refused. Every message starts with the path of the culprit.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    /// It does not read as data of this shape.
    #[error("{path}: {problem}")]
    Shape {
        /// Where, as far as known; `.` is the top.
        path: String,
        /// What the parser says.
        problem: String,
    },
    /// It reads, but does not hold together.
    #[error("{path}: {problem}")]
    Content {
        /// Where.
        path: String,
        /// What is wrong there.
        problem: String,
    },
}

/// How applications of a service are told apart (`backend_version`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub(crate) enum Mode {
    #[serde(rename = "1")]
    UserKey,
    #[serde(rename = "2")]
    AppId,
    #[serde(rename = "oauth")]
    Oauth,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    #[default]
    Active,
    Suspended,
}

/// A user key as the backend stores it and looks it up: every white space is a plus
/// (its `StorageKeyHelpers.encode_key`).
pub(crate) fn stored_key(key: &str) -> String {
    key.replace([' ', '\t', '\n', '\r', '\u{b}', '\u{c}'], "+")
}

/// A service. Every application's plan is one of `plans`, and `user_keys` maps
/// to its applications.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    pub id: String,
    pub mode: Mode,
    pub state: State,
    pub token: String,
    pub referrer_filters_required: bool,
    pub metrics: Metrics,
    pub plans: HashMap<String, Vec<Limit>>,
    pub applications: IndexMap<String, Application>,
    pub user_keys: HashMap<String, String>,
}

/// The metrics of a service, in the order of their declaration. Parents exist,
/// and no metric is its own ancestor.
#[derive(Clone, Debug)]
pub(crate) struct Metrics(IndexMap<String, Option<usize>>);

/// One limit of a plan. The limits of a plan stand in the order in which the
/// backend lists them: by metric, then longest period first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limit {
    pub metric: usize,
    pub period: Period,
    pub maximum: u64,
}

#[derive(Clone, Debug)]
pub(crate) struct Application {
    pub id: String,
    pub plan: String,
    pub state: State,
    pub keys: Vec<String>,
    pub referrer_filters: Vec<String>,
    pub redirect_url: Option<String>,
}

/// A change to an application while the stand-in runs. What is absent stays.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ApplicationChange {
    /// `active` or `suspended`.
    pub(crate) state: Option<State>,
    /// The plan's id. Needed for an application that is new.
    pub plan: Option<String>,
    /// The user key; the old one is forgotten.
    pub user_key: Option<String>,
    /// All its application keys.
    pub app_keys: Option<Vec<String>>,
}

impl ApplicationChange {
    /// A change of state: suspended or active.
    #[must_use]
    pub fn suspended(suspended: bool) -> Self {
        Self {
            state: Some(if suspended {
                State::Suspended
            } else {
                State::Active
            }),
            ..Self::default()
        }
    }

    /// A change of plan.
    #[must_use]
    pub fn plan(plan: &str) -> Self {
        Self {
            plan: Some(plan.to_owned()),
            ..Self::default()
        }
    }
}

#[derive(Deserialize)]
#[serde(
    deny_unknown_fields,
    expecting = "a map of service_token, provider_key, metrics, plans and services"
)]
struct File {
    provider_key: Option<String>,
    service_token: Option<String>,
    /// Alerts are not part of the protocol.
    #[serde(rename = "alert_limits")]
    _alert_limits: Option<IgnoredAny>,
    #[serde(default)]
    metrics: MetricsFile,
    #[serde(default)]
    plans: PlansFile,
    services: IndexMap<String, ServiceFile>,
}

type MetricsFile = IndexMap<String, Option<String>>;
type PlansFile = IndexMap<String, IndexMap<String, IndexMap<Period, u64>>>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ServiceFile {
    backend_version: Mode,
    #[serde(default)]
    default_service: bool,
    #[serde(default)]
    state: State,
    service_token: Option<String>,
    #[serde(default)]
    referrer_filters_required: bool,
    metrics: Option<MetricsFile>,
    plans: Option<PlansFile>,
    #[serde(default)]
    applications: IndexMap<String, ApplicationFile>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ApplicationFile {
    plan: String,
    #[serde(default)]
    state: State,
    user_key: Option<String>,
    #[serde(default)]
    app_keys: Vec<String>,
    #[serde(default)]
    referrer_filters: Vec<String>,
    redirect_url: Option<String>,
}

#[derive(Deserialize)]
struct Recording {
    service_token: String,
    services: Vec<RecordedService>,
}

#[derive(Deserialize)]
struct RecordedService {
    id: String,
    backend_version: Mode,
    metrics: Vec<RecordedMetric>,
    plans: PlansFile,
    applications: Vec<RecordedApplication>,
}

#[derive(Deserialize)]
struct RecordedMetric {
    name: String,
    parent: Option<String>,
}

#[derive(Deserialize)]
struct RecordedApplication {
    id: String,
    #[serde(flatten)]
    rest: ApplicationFile,
}

impl Dataset {
    /// Reads the data of a stand-in: the YAML that the README describes.
    ///
    /// # Errors
    /// When it is not YAML, not of that shape, or contradicts itself.
    pub fn from_yaml(text: &str) -> Result<Self, DatasetError> {
        let file = serde_path_to_error::deserialize(serde_yaml::Deserializer::from_str(text))
            .map_err(shape)?;
        build(file)
    }

    /// Reads the data of a recording of the real backend (`NAME.data.json`).
    ///
    /// # Errors
    /// When it is not JSON, not of that shape, or contradicts itself.
    pub fn from_recording(text: &str) -> Result<Self, DatasetError> {
        let mut json = serde_json::Deserializer::from_str(text);
        let recording: Recording = serde_path_to_error::deserialize(&mut json).map_err(shape)?;
        let services = recording.services.into_iter().map(|service| {
            let metrics = service.metrics.into_iter();
            let applications = service.applications.into_iter();
            let file = ServiceFile {
                backend_version: service.backend_version,
                default_service: false,
                state: State::Active,
                service_token: None,
                referrer_filters_required: false,
                metrics: Some(metrics.map(|metric| (metric.name, metric.parent)).collect()),
                plans: Some(service.plans),
                applications: applications
                    .map(|application| (application.id, application.rest))
                    .collect(),
            };
            (service.id, file)
        });
        build(File {
            provider_key: None,
            service_token: Some(recording.service_token),
            _alert_limits: None,
            metrics: MetricsFile::new(),
            plans: PlansFile::new(),
            services: services.collect(),
        })
    }

    /// Changes an application, or makes one.
    ///
    /// # Errors
    /// When the service or the plan is unknown, a new application has no plan,
    /// or the user key belongs to another application.
    pub(crate) fn put_application(
        &mut self,
        service: &str,
        id: &str,
        change: ApplicationChange,
    ) -> Result<(), DatasetError> {
        let path = format!("services.{service}.applications.{id}");
        let Some(service) = self.services.get_mut(service) else {
            return Err(content(&path, "there is no such service"));
        };
        if let Some(plan) = &change.plan
            && !service.plans.contains_key(plan)
        {
            return Err(content(
                &format!("{path}.plan"),
                format!("there is no plan {plan}"),
            ));
        }
        if let Some(key) = &change.user_key
            && service
                .user_keys
                .get(&stored_key(key))
                .is_some_and(|owner| owner != id)
        {
            return Err(content(
                &format!("{path}.user_key"),
                "another application of the service has the same user key",
            ));
        }
        let application = match (service.applications.get_mut(id), &change.plan) {
            (Some(application), _) => application,
            (None, None) => {
                return Err(content(
                    &format!("{path}.plan"),
                    "a new application needs a plan",
                ));
            }
            (None, Some(plan)) => {
                service
                    .applications
                    .entry(id.to_owned())
                    .or_insert(Application {
                        id: id.to_owned(),
                        plan: plan.clone(),
                        state: State::Active,
                        keys: Vec::new(),
                        referrer_filters: Vec::new(),
                        redirect_url: None,
                    })
            }
        };
        if let Some(state) = change.state {
            application.state = state;
        }
        if let Some(plan) = change.plan {
            application.plan = plan;
        }
        if let Some(keys) = change.app_keys {
            application.keys = keys;
        }
        if let Some(key) = change.user_key {
            service.user_keys.retain(|_, owner| owner != id);
            service.user_keys.insert(stored_key(&key), id.to_owned());
        }
        Ok(())
    }

    /// Forgets an application; says whether there was one.
    pub(crate) fn remove_application(&mut self, service: &str, id: &str) -> bool {
        let Some(service) = self.services.get_mut(service) else {
            return false;
        };
        service.user_keys.retain(|_, owner| owner != id);
        service.applications.shift_remove(id).is_some()
    }
}

impl Service {
    /// The limits of an application's plan.
    pub fn limits(&self, application: &Application) -> &[Limit] {
        self.plans.get(&application.plan).map_or(&[], Vec::as_slice)
    }
}

impl Metrics {
    /// The metric of this name.
    pub fn find(&self, name: &str) -> Option<usize> {
        self.0.get_index_of(name)
    }

    /// The name of a metric.
    pub fn name(&self, metric: usize) -> &str {
        self.0.get_index(metric).map_or("", |(name, _)| name)
    }

    /// The parent of a metric.
    pub fn parent(&self, metric: usize) -> Option<usize> {
        self.0.get_index(metric).and_then(|(_, parent)| *parent)
    }

    /// The parent, its parent, and so on.
    pub fn ancestors(&self, metric: usize) -> impl Iterator<Item = usize> {
        std::iter::successors(self.parent(metric), |metric| self.parent(*metric))
    }

    /// The metrics whose parent this is.
    pub fn children(&self, metric: usize) -> impl Iterator<Item = usize> {
        self.0
            .values()
            .enumerate()
            .filter_map(move |(child, parent)| (*parent == Some(metric)).then_some(child))
    }

    /// All below a metric, in the backend's order: its children, then the
    /// descendants of each.
    pub fn descendants(&self, metric: usize) -> Vec<usize> {
        let children: Vec<_> = self.children(metric).collect();
        let deeper = children.iter().flat_map(|child| self.descendants(*child));
        let deeper: Vec<_> = deeper.collect();
        [children, deeper].concat()
    }
}

fn shape<E: std::fmt::Display>(error: serde_path_to_error::Error<E>) -> DatasetError {
    DatasetError::Shape {
        path: error.path().to_string(),
        problem: error.into_inner().to_string(),
    }
}

fn content(path: &str, problem: impl Into<String>) -> DatasetError {
    DatasetError::Content {
        path: path.to_owned(),
        problem: problem.into(),
    }
}

fn build(file: File) -> Result<Dataset, DatasetError> {
    let mut default_service = None;
    let mut services = IndexMap::new();
    for (id, service) in file.services {
        let path = format!("services.{id}");
        if service.default_service && default_service.replace(id.clone()).is_some() {
            return Err(content(
                &format!("{path}.default_service"),
                "another service is the default already",
            ));
        }
        let (metrics_path, metrics) = match &service.metrics {
            Some(metrics) => (format!("{path}.metrics"), metrics),
            None => ("metrics".to_owned(), &file.metrics),
        };
        let metrics = build_metrics(&metrics_path, metrics)?;
        let (plans_path, plans) = match &service.plans {
            Some(plans) => (format!("{path}.plans"), plans),
            None => ("plans".to_owned(), &file.plans),
        };
        let plans = plans
            .iter()
            .map(|(plan, limits)| {
                let path = format!("{plans_path}.{plan}");
                Ok((plan.clone(), build_limits(&path, limits, &metrics)?))
            })
            .collect::<Result<HashMap<_, _>, DatasetError>>()?;
        let Some(token) = service.service_token.or_else(|| file.service_token.clone()) else {
            return Err(content(
                &format!("{path}.service_token"),
                "neither the service nor the file has a service token",
            ));
        };
        let mut user_keys = HashMap::new();
        let mut applications = IndexMap::new();
        for (name, application) in service.applications {
            let path = format!("{path}.applications.{name}");
            if !plans.contains_key(&application.plan) {
                let problem = format!("there is no plan {}", application.plan);
                return Err(content(&format!("{path}.plan"), problem));
            }
            if let Some(key) = application.user_key
                && user_keys.insert(stored_key(&key), name.clone()).is_some()
            {
                return Err(content(
                    &format!("{path}.user_key"),
                    "another application of the service has the same user key",
                ));
            }
            let application = Application {
                id: name.clone(),
                plan: application.plan,
                state: application.state,
                keys: application.app_keys,
                referrer_filters: application.referrer_filters,
                redirect_url: application.redirect_url,
            };
            applications.insert(name, application);
        }
        let service = Service {
            id: id.clone(),
            mode: service.backend_version,
            state: service.state,
            token,
            referrer_filters_required: service.referrer_filters_required,
            metrics,
            plans,
            applications,
            user_keys,
        };
        services.insert(id, service);
    }
    Ok(Dataset {
        provider_key: file.provider_key,
        default_service,
        services,
    })
}

fn build_metrics(path: &str, file: &MetricsFile) -> Result<Metrics, DatasetError> {
    let mut parents = IndexMap::new();
    for (name, parent) in file {
        let parent = match parent {
            None => None,
            Some(parent) => Some(file.get_index_of(parent).ok_or_else(|| {
                content(
                    &format!("{path}.{name}"),
                    format!("there is no metric {parent}"),
                )
            })?),
        };
        parents.insert(name.clone(), parent);
    }
    let metrics = Metrics(parents);
    for (metric, name) in file.keys().enumerate() {
        let mut seen = HashSet::from([metric]);
        if !metrics
            .ancestors(metric)
            .all(|ancestor| seen.insert(ancestor))
        {
            return Err(content(
                &format!("{path}.{name}"),
                "the metric is its own ancestor, or has such a one",
            ));
        }
    }
    Ok(metrics)
}

fn build_limits(
    path: &str,
    file: &IndexMap<String, IndexMap<Period, u64>>,
    metrics: &Metrics,
) -> Result<Vec<Limit>, DatasetError> {
    let mut limits = Vec::new();
    for (name, periods) in file {
        let metric = metrics
            .find(name)
            .ok_or_else(|| content(&format!("{path}.{name}"), "the service has no such metric"))?;
        limits.extend(periods.iter().map(|(period, maximum)| Limit {
            metric,
            period: *period,
            maximum: *maximum,
        }));
    }
    limits.sort_by_key(|limit| (limit.metric, std::cmp::Reverse(limit.period)));
    Ok(limits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(text: &str) -> String {
        Dataset::from_yaml(text).unwrap_err().to_string()
    }

    #[test]
    fn bad_data_is_refused_with_its_path() {
        let head = "service_token: t\nmetrics: { hits: null }\nplans: { free: {} }\n";
        for (text, expected) in [
            (
                format!("{head}services: {{ '1': {{ backend_version: '1', applications: {{ a: {{ plan: gold }} }} }} }}"),
                "services.1.applications.a.plan: there is no plan gold",
            ),
            (
                "service_token: t\nmetrics: { a: b }\nservices: { '1': { backend_version: '1' } }".to_owned(),
                "metrics.a: there is no metric b",
            ),
            (
                "service_token: t\nmetrics: { a: b, b: a }\nservices: { '1': { backend_version: '1' } }".to_owned(),
                "metrics.a: the metric is its own ancestor, or has such a one",
            ),
            (
                format!("{head}services: {{ '1': {{ backend_version: '1', plans: {{ p: {{ x: {{ day: 1 }} }} }} }} }}"),
                "services.1.plans.p.x: the service has no such metric",
            ),
            (
                "services: { '1': { backend_version: '1' } }".to_owned(),
                "services.1.service_token: neither the service nor the file has a service token",
            ),
            (
                format!("{head}services: {{ '1': {{ backend_version: '1', applications: {{ a: {{ plan: free, user_key: k }}, b: {{ plan: free, user_key: k }} }} }} }}"),
                "services.1.applications.b.user_key: another application of the service has the same user key",
            ),
        ] {
            assert_eq!(problem(&text), expected);
        }
    }

    #[test]
    fn data_of_another_shape_is_refused_with_its_path() {
        let text = "service_token: t\nplans: { p: { hits: { fortnight: 1 } } }\nservices: {}";
        let message = problem(text);
        assert!(message.starts_with("plans.p.hits"), "{message}");
        let text = "service_token: t\nservices: { '1': { backend_version: '3' } }";
        let message = problem(text);
        assert!(
            message.starts_with("services.1.backend_version"),
            "{message}"
        );
        assert!(problem("services: {}\nsurprise: 1").contains("surprise"));
    }

    #[test]
    fn the_data_of_a_recording_is_read() {
        let text = r#"{"service_token":"t","services":[{"id":"7","backend_version":"2",
            "metrics":[{"name":"hits","parent":null},{"name":"m1","parent":"hits"}],
            "plans":{"p":{"m1":{"day":2,"eternity":3}}},
            "applications":[{"id":"a","plan":"p","state":"suspended","app_keys":["k"]}]}]}"#;
        let data = Dataset::from_recording(text).unwrap();
        let service = &data.services["7"];
        assert_eq!(service.mode, Mode::AppId);
        assert_eq!(service.token, "t");
        let application = &service.applications["a"];
        assert_eq!(application.state, State::Suspended);
        let periods: Vec<_> = service
            .limits(application)
            .iter()
            .map(|l| l.period)
            .collect();
        assert_eq!(periods, [Period::Eternity, Period::Day]);
    }
}
