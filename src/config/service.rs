//! One guarded service.
//!
//! Apart from the settings because here names refer to each other: rules to metrics,
//! metrics to parents, a token to the environment.

use serde_json::Value;

use super::credentials::credentials;
use super::error::{ConfigurationError, Place, Problem, quoted, shown};
use super::exemption::ExemptionError;
use super::{
    Environment, Exemption, HostPattern, PathPrefix, Replies, RouteName, Secret, ServiceManagement,
    Share, Tokens, Trust, shape, tokens,
};
use crate::credentials::{Credentials, Scope};
use crate::mapping::{MAX_DELTA, MetricId, Metrics, MetricsError, Rule, RuleError, Rules};
use crate::request::Request;

/// The longest id of a service, in bytes.
const LONGEST_ID: usize = 128;

/// A service: an API product that service management knows.
#[derive(Clone, Debug)]
pub struct Service {
    /// Its id at service management: 1 to 128 visible ASCII characters.
    pub id: String,
    /// What proves to service management that we may ask.
    pub right: Right,
    /// Whether it is in OAuth mode at service management: asked at `oauth_authorize.xml`,
    /// and an `app_key` is checked where one is shown and needed by nobody.
    pub oauth: bool,
    /// What its applications' identities are digested with.
    pub scope: Scope,
    /// The hosts of its requests; at least one.
    pub hosts: Vec<HostPattern>,
    /// Which of the requests for these hosts are its own.
    pub share: Share,
    /// Where its consumers put their credentials.
    pub credentials: Credentials,
    /// How its tokens are checked, where it has tokens; its credentials are then those.
    pub tokens: Option<Box<Tokens>>,
    /// The metrics that its rules and hierarchy name.
    pub metrics: Metrics,
    /// What its requests cost.
    pub rules: Rules,
    /// What passes untouched.
    pub exemptions: Vec<Exemption>,
    /// What its callers are told when they are refused.
    pub replies: Replies,
    /// Whether its callers are told what is left of their limits.
    pub rate_limit_headers: bool,
    /// How far answers about its applications are relied on.
    pub trust: Trust,
}

/// What gives the right to ask about a service; visible ASCII, not empty.
#[derive(Clone, Debug)]
pub enum Right {
    /// A service token.
    ServiceToken(Secret),
    /// The provider's key.
    ProviderKey(Secret),
}

impl Service {
    /// Whether this request passes untouched: nobody is asked, nothing is counted.
    #[must_use]
    pub fn is_exempt(&self, request: &Request<'_>) -> bool {
        self.exemptions
            .iter()
            .any(|exemption| exemption.covers(request))
    }

    pub(super) fn check(
        shape: shape::Service,
        place: &Place<'_>,
        service_management: &ServiceManagement,
        replies: &Replies,
        trust: Trust,
        environment: Environment<'_>,
    ) -> Result<Self, ConfigurationError> {
        let visible = shape.id.bytes().all(|byte| byte.is_ascii_graphic());
        if shape.id.is_empty() || shape.id.len() > LONGEST_ID || !visible {
            let problem = Problem::ServiceId(quoted(&shape.id));
            return Err(place.field("id").error(problem));
        }
        let right = right(&shape, place, environment)?;
        let hosts = hosts(&shape.hosts, &place.field("hosts"))?;
        let share = share(&shape, place)?;
        let credentials = match &shape.credentials {
            Some(shape) => credentials(&shape.0, &place.field("credentials"), environment)?,
            None => Credentials::default(),
        };
        let credentials = if shape.oauth {
            credentials.refusing_blank_keys()
        } else {
            credentials
        };
        let metrics = metrics(&shape, place)?;
        let rules = rules(
            &shape.mapping_rules,
            &place.field("mapping_rules"),
            &metrics,
        )?;
        let tokens = tokens::tokens(&shape, place, environment)?;
        let exemptions = exemptions(&shape.exempt, &place.field("exempt"))?;
        let replies = replies.changed_by_service(&shape.replies, &place.field("replies"))?;
        let trust = trust.changed(
            (&shape.authorization.0).into(),
            &place.field("authorization"),
        )?;
        Ok(Self {
            scope: Scope {
                cluster: service_management.cluster.clone(),
                authority: service_management.authority.clone(),
                service: shape.id.clone(),
            },
            id: shape.id,
            right,
            // Nobody shows a key beside a token, so an application's keys must not be needed.
            oauth: shape.oauth || tokens.is_some(),
            hosts,
            share,
            credentials,
            tokens,
            metrics,
            rules,
            exemptions,
            replies,
            rate_limit_headers: shape.rate_limit_headers,
            trust,
        })
    }
}

fn right(
    shape: &shape::Service,
    place: &Place<'_>,
    environment: Environment<'_>,
) -> Result<Right, ConfigurationError> {
    match (&shape.token, &shape.provider_key) {
        (Some(shape), None) => {
            token(shape, &place.field("token"), environment).map(Right::ServiceToken)
        }
        (None, Some(shape)) => {
            token(shape, &place.field("provider_key"), environment).map(Right::ProviderKey)
        }
        (Some(_), Some(_)) => Err(place.field("provider_key").error(Problem::TwoRights)),
        (None, None) => Err(place.field("token").error(Problem::Missing(
            ": the service token, like { env: TG_SERVICE_TOKEN }, or provider_key in its place",
        ))),
    }
}

fn token(
    shape: &shape::Token,
    place: &Place<'_>,
    environment: Environment<'_>,
) -> Result<Secret, ConfigurationError> {
    let what = "a token or key, or { env: NAME } for one from the environment";
    let token = secret(shape, place, environment, what)?;
    if !token.expose().bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(place.error(Problem::TokenCharacters));
    }
    Ok(token)
}

/// A secret that is not empty, as it stands or out of the environment. `what` says what
/// belongs there.
pub(super) fn secret(
    shape: &shape::Token,
    place: &Place<'_>,
    environment: Environment<'_>,
    what: &'static str,
) -> Result<Secret, ConfigurationError> {
    match shape {
        shape::Token::Literal(secret) if secret.expose().is_empty() => {
            Err(place.error(Problem::EmptyText(what)))
        }
        shape::Token::Literal(secret) => Ok(secret.clone()),
        shape::Token::Environment(name) => {
            let place = place.field("env");
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
            if name.is_empty() || !name.bytes().all(plain) {
                return Err(place.error(Problem::EnvironmentName));
            }
            environment(name)
                .filter(|value| !value.is_empty())
                .map(Secret::new)
                .ok_or_else(|| place.error(Problem::Environment))
        }
    }
}

fn hosts(shape: &[String], place: &Place<'_>) -> Result<Vec<HostPattern>, ConfigurationError> {
    if shape.is_empty() {
        return Err(place.error(Problem::EmptyList(
            "at least one host is needed, like api.example.com, or \"*\" for every host",
        )));
    }
    shape
        .iter()
        .enumerate()
        .map(|(index, host)| {
            HostPattern::parse(host).map_err(|error| {
                place.index(index).error(Problem::Host {
                    found: quoted(host),
                    error,
                })
            })
        })
        .collect()
}

fn share(shape: &shape::Service, place: &Place<'_>) -> Result<Share, ConfigurationError> {
    let path_prefix = match &shape.path_prefix {
        Some(text) => PathPrefix::parse(text).map_err(|error| {
            place.field("path_prefix").error(Problem::PathPrefix {
                found: quoted(text),
                error,
            })
        })?,
        None => PathPrefix::default(),
    };
    let route = match &shape.route {
        Some(name) => Some(
            RouteName::new(name)
                .ok_or_else(|| place.field("route").error(Problem::Route(quoted(name))))?,
        ),
        None => None,
    };
    Ok(Share { path_prefix, route })
}

/// The metrics of the hierarchy and of all rules: a metric need not be declared to be counted.
fn metrics(shape: &shape::Service, place: &Place<'_>) -> Result<Metrics, ConfigurationError> {
    let declared = shape
        .metrics
        .0
        .iter()
        .map(|(name, metric)| (name.clone(), metric.0.parent.clone()));
    let counted = shape
        .mapping_rules
        .iter()
        .flat_map(|rule| &rule.0.usage.0)
        .map(|(name, _)| (name.clone(), None));
    Metrics::new(declared.chain(counted)).map_err(|error| misplaced_metric(error, shape, place))
}

/// Finds the place at which the metric stands that an error is about.
fn misplaced_metric(
    error: MetricsError,
    shape: &shape::Service,
    place: &Place<'_>,
) -> ConfigurationError {
    let (name, field) = match &error {
        MetricsError::EmptyName => ("", None),
        MetricsError::LongName { name }
        | MetricsError::BadName { name }
        | MetricsError::TooMany { name } => (name.as_str(), None),
        MetricsError::UnknownParent { name, .. }
        | MetricsError::TwoParents { name, .. }
        | MetricsError::Cycle { name } => (name.as_str(), Some("parent")),
    };
    let name = name.to_owned();
    let problem = Problem::Metrics(error);
    let metrics = place.field("metrics");
    if shape.metrics.0.iter().any(|(metric, _)| *metric == name) {
        let metric = metrics.field(&name);
        return match field {
            Some(field) => metric.field(field).error(problem),
            None => metric.error(problem),
        };
    }
    let counts = |rule: &shape::MappingRule| rule.usage.0.iter().any(|(metric, _)| *metric == name);
    let rule = shape.mapping_rules.iter().position(|rule| counts(&rule.0));
    match rule {
        Some(rule) => place
            .field("mapping_rules")
            .index(rule)
            .field("usage")
            .field(&name)
            .error(problem),
        None => metrics.error(problem),
    }
}

fn rules(
    shape: &[shape::Object<shape::MappingRule>],
    place: &Place<'_>,
    metrics: &Metrics,
) -> Result<Rules, ConfigurationError> {
    if shape.is_empty() {
        return Err(place.error(Problem::EmptyList(
            "without a rule that matches, every request is denied; this one matches all: { pattern: \"/\", usage: { hits: 1 } }",
        )));
    }
    let rules: Result<Vec<Rule>, _> = shape
        .iter()
        .enumerate()
        .map(|(index, shape)| rule(&shape.0, &place.index(index), metrics))
        .collect();
    rules.map(Rules::compile)
}

fn rule(
    shape: &shape::MappingRule,
    place: &Place<'_>,
    metrics: &Metrics,
) -> Result<Rule, ConfigurationError> {
    let method = shape.method.as_deref().unwrap_or("ANY");
    // Methods are compared exactly: "get" would silently never match.
    if method.bytes().any(|byte| byte.is_ascii_lowercase()) {
        return Err(place.field("method").error(Problem::Method(quoted(method))));
    }
    let usage: Result<Vec<(MetricId, u64)>, _> = shape
        .usage
        .0
        .iter()
        .filter_map(|(name, value)| {
            let metric = metrics.id(name)?;
            let place = place.field("usage");
            Some(delta(value, &place.field(name)).map(|delta| (metric, delta)))
        })
        .collect();
    let query = shape.query.as_ref().map(|query| query.0.as_slice());
    Rule::new(method, &shape.pattern, query, usage?, shape.last).map_err(|error| {
        let field = match error {
            RuleError::Method { .. } => "method",
            RuleError::NoLeadingSlash { .. }
            | RuleError::Braces { .. }
            | RuleError::AnchorInQuery { .. } => "pattern",
            RuleError::RepeatedParameter { .. } if shape.query.is_some() => "query",
            RuleError::RepeatedParameter { .. } => "pattern",
            RuleError::NoUsage { .. }
            | RuleError::ZeroDelta { .. }
            | RuleError::LargeDelta { .. } => "usage",
        };
        place.field(field).error(Problem::Rule(error))
    })
}

/// What a rule adds to a metric: a whole number from 1 to [`MAX_DELTA`].
fn delta(value: &Value, place: &Place<'_>) -> Result<u64, ConfigurationError> {
    if value.as_str().is_some_and(|text| text.starts_with('#')) {
        return Err(place.error(Problem::SetUsage(shown(value))));
    }
    value
        .as_u64()
        .filter(|delta| (1..=MAX_DELTA).contains(delta))
        .ok_or_else(|| {
            place.error(Problem::Number {
                found: shown(value),
                least: 1,
                most: MAX_DELTA,
            })
        })
}

fn exemptions(
    shape: &[shape::Object<shape::Exemption>],
    place: &Place<'_>,
) -> Result<Vec<Exemption>, ConfigurationError> {
    shape
        .iter()
        .enumerate()
        .map(|(index, shape)| {
            let place = place.index(index);
            Exemption::new(shape.0.method.as_deref(), shape.0.path.as_deref()).map_err(|error| {
                let field = match error {
                    ExemptionError::Empty => return place.error(Problem::Exemption(error)),
                    ExemptionError::Method(_) => "method",
                    ExemptionError::Relative(_)
                    | ExemptionError::Wildcard(_)
                    | ExemptionError::NotPlain(_) => "path",
                };
                place.field(field).error(Problem::Exemption(error))
            })
        })
        .collect()
}
