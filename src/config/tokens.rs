//! How a service's tokens are checked, and what its mapping rules require of them.
//!
//! Apart from the other credentials because most of it is about issuers, and because what rules
//! require is found out by rules of its own: with the patterns of the mapping rules, and with
//! requirements in the place of metrics. So a service that requires nothing pays nothing.

use std::rc::Rc;
use std::time::Duration;

use serde_json::Value;

use super::Environment;
use super::error::{ConfigurationError, Place, Problem, quoted, quoted_address, shown};
use super::settings::{number, within};
use crate::credentials::{HeaderName, Source};
use crate::mapping::{MetricId, Metrics, Rule, Rules, Usage};
use crate::tokens::{
    Algorithm, ClaimCondition, ClaimPath, Discovery, Handover, Introspection, Issuer, KeySet,
    KeySource, Policy, Requirement, Requirements, Start, Url,
};

pub(super) mod shape {
    //! The fields as they are written.

    use super::super::introspection::shape::Introspection;
    use super::super::shape::{Object, Pairs, Source, present};
    use serde::Deserialize;
    use serde_json::Value;

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    pub(in super::super) struct Tokens {
        #[serde(default)]
        pub(super) issuers: Vec<Object<Issuer>>,
        #[serde(default, deserialize_with = "present")]
        pub(super) jwt_authn: Option<Object<JwtAuthn>>,
        pub(super) introspection: Option<Object<Introspection>>,
        #[serde(default, deserialize_with = "present")]
        pub(super) places: Option<Vec<Object<Source>>>,
        #[serde(default)]
        pub(super) claims_to_headers: Pairs<Value>,
        #[serde(default, deserialize_with = "present")]
        pub(super) verifications_per_second: Option<Value>,
        #[serde(default, deserialize_with = "present")]
        pub(super) remembered: Option<Value>,
    }

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    pub(super) struct JwtAuthn {
        pub(super) payload_in_metadata: String,
    }

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    pub(super) struct Issuer {
        pub(super) issuer: String,
        pub(super) audiences: Vec<String>,
        #[serde(default, deserialize_with = "present")]
        pub(super) jwks: Option<Value>,
        #[serde(default, deserialize_with = "present")]
        pub(super) discovery: Option<Object<Discovery>>,
        #[serde(default, deserialize_with = "present")]
        pub(super) claim: Option<Vec<Value>>,
        #[serde(default, deserialize_with = "present")]
        pub(super) leeway: Option<Value>,
        #[serde(default, deserialize_with = "present")]
        pub(super) algorithms: Option<Vec<String>>,
    }

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    pub(super) struct Discovery {
        pub(super) cluster: String,
        #[serde(default, deserialize_with = "present")]
        pub(super) jwks_uri: Option<String>,
        #[serde(default, deserialize_with = "present")]
        pub(super) timeout: Option<Value>,
        #[serde(default, deserialize_with = "present")]
        pub(super) refresh: Option<Value>,
        #[serde(default, deserialize_with = "present")]
        pub(super) unknown_key_interval: Option<Value>,
        #[serde(default, deserialize_with = "present")]
        pub(super) keep: Option<Value>,
    }

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    pub(in super::super) struct Require {
        #[serde(default)]
        pub(super) scopes: Vec<String>,
        #[serde(default)]
        pub(super) claims: Vec<Object<ClaimCondition>>,
    }

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    pub(super) struct ClaimCondition {
        pub(super) claim: Value,
        #[serde(default)]
        pub(super) any_of: Vec<String>,
        #[serde(default)]
        pub(super) all_of: Vec<String>,
    }
}

/// Headers that no claim is put into: the request's own and the connection's. Envoy's own
/// (`x-envoy-`) are refused as well.
const RESERVED: [&str; 14] = [
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "cookie",
    "expect",
    "host",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "x-forwarded-for",
];
/// The most headers made of claims.
const MOST_HEADERS: usize = 16;
const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(86_400);

/// How a service's tokens are checked.
#[derive(Clone, Debug)]
pub struct Tokens {
    /// Which tokens are valid, and what is told of them.
    pub policy: Policy,
    /// Who is asked about tokens that are not signed.
    pub introspection: Option<Rc<Introspection>>,
    required: Option<Required>,
}

/// Which requests require what.
#[derive(Clone, Debug)]
struct Required {
    /// As the service's mapping rules, but what they count is which requirements there are.
    rules: Rules,
    /// The metric that stands for each requirement, in their order.
    metrics: Vec<MetricId>,
}

impl Tokens {
    /// What the rules that match a request require of its token, all of them together.
    #[must_use]
    pub fn required(&self, method: &[u8], target: &[u8]) -> Requirements {
        let Some(required) = &self.required else {
            return Requirements::default();
        };
        let mut usage = Usage::new();
        required.rules.matching(method, target, &mut usage);
        let mut all = Requirements::default();
        for (metric, _) in usage.iter() {
            if let Some(number) = required.metrics.iter().position(|it| *it == metric) {
                all = all.with(number);
            }
        }
        all
    }
}

/// The places of tokens: `Authorization: Bearer` unless others are named.
pub(super) fn places(
    shape: &shape::Tokens,
    place: &Place<'_>,
) -> Result<Vec<Source>, ConfigurationError> {
    let Some(places) = &shape.places else {
        return Ok(vec![Source::Bearer]);
    };
    let place = place.field("places");
    if places.is_empty() {
        return Err(place.error(Problem::EmptyList(
            "name at least one place to look in, like { bearer: {} }",
        )));
    }
    let sources = super::credentials::list(places, &place)?;
    for (index, source) in sources.iter().enumerate() {
        if matches!(source, Source::Body(_)) {
            return Err(place.index(index).error(Problem::TokenInBody));
        }
    }
    Ok(sources)
}

/// What a service says of tokens; `None` if it has none.
pub(super) fn tokens(
    shape: &super::shape::Service,
    place: &Place<'_>,
    environment: Environment<'_>,
) -> Result<Option<Box<Tokens>>, ConfigurationError> {
    let credentials = shape.credentials.as_ref();
    let rules = place.field("mapping_rules");
    let Some(token) = credentials.and_then(|credentials| credentials.0.token.as_ref()) else {
        for (index, rule) in shape.mapping_rules.iter().enumerate() {
            if rule.0.require.is_some() {
                let place = rules.index(index);
                return Err(place.field("require").error(Problem::RequireWithoutToken));
            }
        }
        return Ok(None);
    };
    let (requirements, required) = required(&shape.mapping_rules, &rules)?;
    let credentials = place.field("credentials");
    if token.0.jwt_authn.is_some() && shape.credentials.as_ref().is_some_and(|it| it.0.strip) {
        return Err(credentials.field("strip").error(Problem::BesideJwtAuthn));
    }
    let place = credentials.field("token");
    let policy = policy(&token.0, requirements, &place)?;
    let introspection = match &token.0.introspection {
        None => None,
        Some(shape) => {
            let place = place.field("introspection");
            Some(super::introspection::introspection(
                &shape.0,
                &place,
                environment,
            )?)
        }
    };
    Ok(Some(Box::new(Tokens {
        policy,
        introspection: introspection.map(Rc::new),
        required,
    })))
}

fn policy(
    shape: &shape::Tokens,
    requirements: Vec<Requirement>,
    place: &Place<'_>,
) -> Result<Policy, ConfigurationError> {
    let handover = handover(shape, place)?;
    let issuers = place.field("issuers");
    if shape.issuers.is_empty() && shape.introspection.is_none() {
        return Err(issuers.error(Problem::EmptyList(
            "name at least one issuer, or no token is valid",
        )));
    }
    let mut checked: Vec<Issuer> = Vec::with_capacity(shape.issuers.len());
    for (index, shape) in shape.issuers.iter().enumerate() {
        let place = issuers.index(index);
        let issuer = issuer(&shape.0, handover.is_some(), &place)?;
        if checked.iter().any(|before| before.name == issuer.name) {
            let problem = Problem::RepeatedIssuer(quoted(&issuer.name));
            return Err(place.field("issuer").error(problem));
        }
        checked.push(issuer);
    }
    Ok(Policy {
        issuers: checked,
        handover,
        requirements,
        headers: headers(shape, &place.field("claims_to_headers"))?,
        verifications_per_second: number(
            shape.verifications_per_second.as_ref(),
            &place.field("verifications_per_second"),
            (1, 100_000),
            200,
        )?,
        remembered: usize::try_from(number(
            shape.remembered.as_ref(),
            &place.field("remembered"),
            (2, 1_000_000),
            10_000,
        )?)
        .unwrap_or(usize::MAX),
    })
}

/// Where `jwt_authn` hands claims on; `None` if tokens are verified here.
fn handover(
    shape: &shape::Tokens,
    place: &Place<'_>,
) -> Result<Option<Handover>, ConfigurationError> {
    let Some(jwt_authn) = &shape.jwt_authn else {
        return Ok(None);
    };
    for (field, there) in [
        ("places", shape.places.is_some()),
        ("introspection", shape.introspection.is_some()),
        (
            "verifications_per_second",
            shape.verifications_per_second.is_some(),
        ),
        ("remembered", shape.remembered.is_some()),
    ] {
        if there {
            return Err(place.field(field).error(Problem::BesideJwtAuthn));
        }
    }
    let name = jwt_authn.0.payload_in_metadata.as_str();
    if name.is_empty() {
        let place = place.field("jwt_authn");
        let problem = Problem::EmptyText("the payload_in_metadata of the provider in jwt_authn");
        return Err(place.field("payload_in_metadata").error(problem));
    }
    Ok(Some(Handover::new(name)))
}

fn issuer(
    shape: &shape::Issuer,
    behind_jwt_authn: bool,
    place: &Place<'_>,
) -> Result<Issuer, ConfigurationError> {
    if behind_jwt_authn {
        for (field, there) in [
            ("jwks", shape.jwks.is_some()),
            ("discovery", shape.discovery.is_some()),
            ("algorithms", shape.algorithms.is_some()),
        ] {
            if there {
                return Err(place.field(field).error(Problem::BesideJwtAuthn));
            }
        }
    }
    if shape.issuer.is_empty() {
        let problem = Problem::EmptyText("the iss of the issuer's tokens");
        return Err(place.field("issuer").error(problem));
    }
    let audiences = place.field("audiences");
    if shape.audiences.is_empty() {
        return Err(audiences.error(Problem::EmptyList(
            "name at least one audience, like api: a token that was made for another API must not open this one",
        )));
    }
    let audiences = texts(&shape.audiences, &audiences, "the aud of a token")?;
    let keys = match (&shape.jwks, &shape.discovery) {
        (Some(jwks), None) => {
            let keys = KeySet::parse(jwks.to_string().as_bytes());
            let keys = keys.map_err(|error| place.field("jwks").error(Problem::KeySet(error)))?;
            KeySource::Inline(Rc::new(keys))
        }
        (None, Some(shape_of)) => {
            KeySource::Discovery(discovery(&shape.issuer, &shape_of.0, place)?)
        }
        (None, None) if behind_jwt_authn => KeySource::JwtAuthn,
        _ => return Err(place.error(Problem::KeySource)),
    };
    let application = application(shape.claim.as_deref(), &place.field("claim"))?;
    let leeway = within(
        shape.leeway.as_ref(),
        &place.field("leeway"),
        (Duration::ZERO, Duration::from_secs(300)),
        Duration::from_secs(5),
    )?;
    let algorithms = place.field("algorithms");
    let algorithms = match &shape.algorithms {
        None => Vec::new(),
        Some(names) if names.is_empty() => {
            return Err(algorithms.error(Problem::EmptyList(
                "name those that the issuer signs with, or leave algorithms out",
            )));
        }
        Some(names) => names
            .iter()
            .enumerate()
            .map(|(index, name)| {
                let problem = || Problem::Algorithm(quoted(name));
                Algorithm::named(name).ok_or_else(|| algorithms.index(index).error(problem()))
            })
            .collect::<Result<_, _>>()?,
    };
    Ok(Issuer {
        name: shape.issuer.as_str().into(),
        audiences,
        keys,
        application,
        leeway: leeway.as_secs(),
        algorithms,
    })
}

/// The claims of which the first that is there names the application.
pub(super) fn application(
    paths: Option<&[Value]>,
    place: &Place<'_>,
) -> Result<Vec<ClaimPath>, ConfigurationError> {
    match paths {
        None => Ok(["azp", "client_id"]
            .iter()
            .filter_map(|name| ClaimPath::new([*name]))
            .collect()),
        Some([]) => Err(place.error(Problem::EmptyList(
            "name the claim that has the application's app_id, like azp",
        ))),
        Some(paths) => paths
            .iter()
            .enumerate()
            .map(|(index, path)| claim_path(path, &place.index(index)))
            .collect(),
    }
}

fn discovery(
    issuer: &str,
    shape: &shape::Discovery,
    place: &Place<'_>,
) -> Result<Discovery, ConfigurationError> {
    let of_issuer = place.field("issuer");
    let place = place.field("discovery");
    if shape.cluster.is_empty() {
        let problem = Problem::EmptyText("the name of an Envoy cluster");
        return Err(place.field("cluster").error(problem));
    }
    let url = |text: &str, url: Result<Url, _>, place: &Place<'_>| {
        url.map_err(|error| {
            place.error(Problem::Url {
                found: quoted_address(text),
                error,
            })
        })
    };
    let start = match &shape.jwks_uri {
        Some(text) => Start::Keys(url(text, Url::parse(text), &place.field("jwks_uri"))?),
        None => Start::Document(url(issuer, Url::of_document(issuer), &of_issuer)?),
    };
    Ok(Discovery {
        cluster: shape.cluster.clone(),
        start,
        timeout: within(
            shape.timeout.as_ref(),
            &place.field("timeout"),
            (Duration::from_millis(1), Duration::from_secs(60)),
            Duration::from_secs(2),
        )?,
        refresh: within(
            shape.refresh.as_ref(),
            &place.field("refresh"),
            (SECOND, DAY),
            Duration::from_secs(600),
        )?,
        interval: within(
            shape.unknown_key_interval.as_ref(),
            &place.field("unknown_key_interval"),
            (SECOND, Duration::from_secs(3_600)),
            Duration::from_secs(5),
        )?,
        kept: within(
            shape.keep.as_ref(),
            &place.field("keep"),
            (SECOND, Duration::from_secs(7 * 86_400)),
            DAY,
        )?,
    })
}

fn headers(
    shape: &shape::Tokens,
    place: &Place<'_>,
) -> Result<Vec<(HeaderName, ClaimPath)>, ConfigurationError> {
    if shape.claims_to_headers.0.len() > MOST_HEADERS {
        return Err(place.error(Problem::ManyHeaders(MOST_HEADERS)));
    }
    let mut headers: Vec<(HeaderName, ClaimPath)> = Vec::new();
    for (name, path) in &shape.claims_to_headers.0 {
        let place = place.field(name);
        let header = HeaderName::new(name).map_err(|error| {
            place.error(Problem::SourceName {
                found: quoted(name),
                error,
            })
        })?;
        let reserved = RESERVED.contains(&header.as_str());
        if reserved || header.as_str().starts_with("x-envoy-") {
            return Err(place.error(Problem::ClaimHeader(quoted(name))));
        }
        if headers.iter().any(|(before, _)| *before == header) {
            return Err(place.error(Problem::RepeatedField));
        }
        headers.push((header, claim_path(path, &place)?));
    }
    Ok(headers)
}

/// The different requirements of the rules, and the rules that find them.
fn required(
    shapes: &[super::shape::Object<super::shape::MappingRule>],
    place: &Place<'_>,
) -> Result<(Vec<Requirement>, Option<Required>), ConfigurationError> {
    let mut requirements: Vec<Requirement> = Vec::new();
    let mut of_rules = Vec::with_capacity(shapes.len());
    for (index, shape) in shapes.iter().enumerate() {
        let place = place.index(index);
        let place = place.field("require");
        let Some(shape) = &shape.0.require else {
            of_rules.push(None);
            continue;
        };
        let requirement = requirement(&shape.0, &place)?;
        let known = requirements.iter().position(|it| *it == requirement);
        let number = known.unwrap_or(requirements.len());
        if known.is_none() {
            if requirements.len() >= Requirements::MOST {
                return Err(place.error(Problem::ManyRequirements));
            }
            requirements.push(requirement);
        }
        of_rules.push(Some(number));
    }
    if requirements.is_empty() {
        return Ok((requirements, None));
    }
    // The last stands for no requirement: a rule must count something.
    let name = |number: usize| number.to_string();
    let names = (0..=requirements.len()).map(|number| (name(number), None));
    let Ok(metrics) = Metrics::new(names) else {
        return Err(place.error(Problem::ManyRequirements));
    };
    let id = |number: usize| metrics.id(&name(number));
    let mut rules = Vec::with_capacity(shapes.len());
    for (shape, number) in shapes.iter().zip(of_rules) {
        let usage = id(number.unwrap_or(requirements.len()));
        let method = shape.0.method.as_deref().unwrap_or("ANY");
        let query = shape.0.query.as_ref().map(|query| query.0.as_slice());
        let usage = usage.map(|metric| (metric, 1)).into_iter().collect();
        // What is wrong with a rule has been told by now.
        if let Ok(rule) = Rule::new(method, &shape.0.pattern, query, usage, shape.0.last) {
            rules.push(rule);
        }
    }
    let required = Required {
        rules: Rules::compile(rules),
        metrics: (0..requirements.len()).filter_map(id).collect(),
    };
    Ok((requirements, Some(required)))
}

fn requirement(
    shape: &shape::Require,
    place: &Place<'_>,
) -> Result<Requirement, ConfigurationError> {
    if shape.scopes.is_empty() && shape.claims.is_empty() {
        return Err(place.error(Problem::EmptyRequirement(
            "name scopes, like { scopes: [orders.read] }, or claims",
        )));
    }
    let claims = place.field("claims");
    let condition = |(index, shape): (usize, &super::shape::Object<shape::ClaimCondition>)| {
        let place = claims.index(index);
        let shape = &shape.0;
        if shape.any_of.is_empty() && shape.all_of.is_empty() {
            return Err(place.error(Problem::EmptyRequirement(
                "name values that the claim must have, like any_of: [admin]",
            )));
        }
        let value = "a value of the claim";
        Ok(ClaimCondition {
            path: claim_path(&shape.claim, &place.field("claim"))?,
            any_of: texts(&shape.any_of, &place.field("any_of"), value)?,
            all_of: texts(&shape.all_of, &place.field("all_of"), value)?,
        })
    };
    Ok(Requirement {
        scopes: texts(&shape.scopes, &place.field("scopes"), "a scope")?,
        claims: shape
            .claims
            .iter()
            .enumerate()
            .map(condition)
            .collect::<Result<_, _>>()?,
    })
}

/// Texts that are not empty.
pub(super) fn texts(
    texts: &[String],
    place: &Place<'_>,
    what: &'static str,
) -> Result<Vec<Box<str>>, ConfigurationError> {
    let text = |(index, text): (usize, &String)| {
        if text.is_empty() {
            return Err(place.index(index).error(Problem::EmptyText(what)));
        }
        Ok(text.as_str().into())
    };
    texts.iter().enumerate().map(text).collect()
}

/// A path: a text with dots in it, or a list of names that may have dots of their own.
fn claim_path(value: &Value, place: &Place<'_>) -> Result<ClaimPath, ConfigurationError> {
    let path = match value {
        Value::String(text) => ClaimPath::new(text.split('.')),
        Value::Array(names) => names
            .iter()
            .map(Value::as_str)
            .collect::<Option<Vec<_>>>()
            .and_then(ClaimPath::new),
        _ => None,
    };
    path.ok_or_else(|| place.error(Problem::ClaimPath(shown(value))))
}

#[cfg(test)]
mod tests {
    use super::super::Configuration;
    use super::*;
    use serde_json::json;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    fn issuer() -> Value {
        json!({ "issuer": "https://id.example.com", "audiences": ["api"], "discovery": { "cluster": "id" } })
    }

    fn rules(rules: &Value, credentials: &Value) -> Result<Tokens, String> {
        let configuration = json!({
            "service_management": { "cluster": "c", "authority": "a" },
            "services": [{
                "id": "1001", "token": "t", "hosts": ["*"],
                "credentials": credentials, "mapping_rules": rules,
            }],
        });
        Configuration::parse(configuration.to_string().as_bytes(), &|_| None)
            .map(|configuration| *configuration.services[0].tokens.clone().unwrap())
            .map_err(|error| error.to_string())
    }

    fn tokens(token: &Value) -> Result<Tokens, String> {
        let rule = json!([{ "pattern": "/", "usage": { "hits": 1 } }]);
        rules(&rule, &json!({ "token": token }))
    }

    /// An issuer with a field changed.
    fn with(field: &str, value: Value) -> Value {
        let mut issuer = issuer();
        issuer[field] = value;
        json!({ "issuers": [issuer] })
    }

    #[test]
    fn an_issuer_has_defaults() {
        let Tokens {
            policy, required, ..
        } = tokens(&json!({ "issuers": [issuer()] })).unwrap();
        let issuer = &policy.issuers[0];
        assert_eq!((issuer.leeway, issuer.application.len()), (5, 2));
        assert!(issuer.algorithms.is_empty() && required.is_none() && policy.headers.is_empty());
        assert_eq!(
            (policy.verifications_per_second, policy.remembered),
            (200, 10_000)
        );
        let KeySource::Discovery(discovery) = &issuer.keys else {
            panic!("no discovery")
        };
        let path = "/.well-known/openid-configuration";
        assert!(matches!(&discovery.start, Start::Document(url) if url.path == path));
    }

    #[test]
    fn what_is_wrong_with_an_issuer_is_told_with_its_place() {
        let key = "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU";
        let off_curve = json!({ "keys": [{ "kty": "EC", "crv": "P-256", "x": key, "y": key }] });
        for (token, message) in [
            (json!({ "issuers": [] }), "issuers: is empty"),
            (
                json!({ "issuers": [issuer(), issuer()] }),
                "issuers[1].issuer: \"https://id.example.com\": is named before",
            ),
            (with("issuer", json!("")), "issuers[0].issuer: is empty"),
            (
                with("issuer", json!("id")),
                "issuers[0].issuer: \"id\": must be a URL",
            ),
            (
                with("audiences", json!([])),
                "issuers[0].audiences: is empty",
            ),
            (
                with("audiences", json!(["a", ""])),
                "issuers[0].audiences[1]: is empty",
            ),
            (
                with("jwks", off_curve.clone()),
                "issuers[0]: must say where the keys are",
            ),
            (
                json!({ "issuers": [{ "issuer": "i", "audiences": ["a"] }] }),
                "issuers[0]: must say where the keys are",
            ),
            (
                json!({ "issuers": [{ "issuer": "i", "audiences": ["a"], "jwks": off_curve }] }),
                "issuers[0].jwks: has no key for signatures",
            ),
            (
                json!({ "issuers": [{ "issuer": "i", "audiences": ["a"], "jwks": "{}" }] }),
                "issuers[0].jwks: is no object",
            ),
            (with("claim", json!([])), "issuers[0].claim: is empty"),
            (
                with("claim", json!(["a", "b..c"])),
                "issuers[0].claim[1]: \"b..c\": must be the name of a claim",
            ),
            (with("claim", json!([1])), "issuers[0].claim[0]: 1: must be"),
            (
                with("leeway", json!("10m")),
                "issuers[0].leeway: \"10m\": must be from 0s to 5m",
            ),
            (
                with("algorithms", json!(["HS256"])),
                "issuers[0].algorithms[0]: \"HS256\": must be one of RS256",
            ),
            (
                with("algorithms", json!([])),
                "issuers[0].algorithms: is empty",
            ),
            (
                with("discovery", json!({ "cluster": "" })),
                "issuers[0].discovery.cluster: is empty",
            ),
            (
                with("discovery", json!({ "cluster": "c", "jwks_uri": "/jwks" })),
                "issuers[0].discovery.jwks_uri: \"/jwks\": must be a URL",
            ),
            (
                json!({ "issuers": [issuer()], "places": [{ "body": "t" }] }),
                "places[0]: tokens are not looked for in bodies",
            ),
            (
                json!({ "issuers": [issuer()], "places": [] }),
                "places: is empty",
            ),
            (
                json!({ "issuers": [issuer()], "places": [{ "bearer": {} }, { "bearer": {} }] }),
                "places[1]: is named before",
            ),
            (
                json!({ "issuers": [issuer()], "claims_to_headers": { "Host": "azp" } }),
                "claims_to_headers.Host: \"Host\": this header is",
            ),
            (
                json!({ "issuers": [issuer()], "claims_to_headers": { ":path": "azp" } }),
                "claims_to_headers[\":path\"]: \":path\": a header name",
            ),
            (
                json!({ "issuers": [issuer()], "claims_to_headers": { "x-a": "a", "X-A": "b" } }),
                "claims_to_headers.x-a: stands here twice",
            ),
        ] {
            let error = tokens(&token).unwrap_err();
            let message = format!("services[0].credentials.token.{message}");
            assert!(error.starts_with(&message), "{error}\n{message}");
        }
        let beside = json!({ "token": { "issuers": [issuer()] }, "user_key": [{ "query": "k" }] });
        let rule = json!([{ "pattern": "/", "usage": { "hits": 1 } }]);
        let error = rules(&rule, &beside).unwrap_err();
        assert!(
            error.starts_with("services[0].credentials.user_key: cannot stand beside token"),
            "{error}"
        );
    }

    #[test]
    fn behind_jwt_authn_nothing_is_said_that_has_no_effect() {
        let behind = |token: Value| {
            let mut all = json!({
                "issuers": [{ "issuer": "joe", "audiences": ["api"] }],
                "jwt_authn": { "payload_in_metadata": "jwt" },
            });
            for (name, value) in token.as_object().unwrap() {
                all[name] = value.clone();
            }
            all
        };
        let Tokens { policy, .. } = tokens(&behind(json!({}))).unwrap();
        assert!(matches!(policy.issuers[0].keys, KeySource::JwtAuthn));
        assert_eq!(policy.handover, Some(Handover::new("jwt")));
        let issuer = |field: &str, value: Value| {
            let mut issuer = json!({ "issuer": "joe", "audiences": ["api"] });
            issuer[field] = value;
            json!({ "issuers": [issuer] })
        };
        for (token, message) in [
            (
                json!({ "places": [{ "bearer": {} }] }),
                "places: has no effect",
            ),
            (
                json!({ "verifications_per_second": 1 }),
                "verifications_per_second: has no effect",
            ),
            (json!({ "remembered": 10 }), "remembered: has no effect"),
            (
                json!({ "introspection": {
                    "cluster": "id", "url": "https://id.example.com/introspect",
                    "client_id": "gateway", "client_secret": "s",
                } }),
                "introspection: has no effect",
            ),
            (
                issuer("jwks", json!({ "keys": [] })),
                "issuers[0].jwks: has no effect",
            ),
            (
                issuer("discovery", json!({ "cluster": "id" })),
                "issuers[0].discovery: has no effect",
            ),
            (
                issuer("algorithms", json!(["RS256"])),
                "issuers[0].algorithms: has no effect",
            ),
            (
                json!({ "jwt_authn": { "payload_in_metadata": "" } }),
                "jwt_authn.payload_in_metadata: is empty",
            ),
            (
                json!({ "jwt_authn": {} }),
                "jwt_authn.payload_in_metadata: is missing",
            ),
            // A client can send it: see `crate::tokens::Handover`.
            (
                json!({ "jwt_authn": { "forward_payload_header": "x-jwt" } }),
                "jwt_authn.forward_payload_header: is unknown",
            ),
        ] {
            let error = tokens(&behind(token)).unwrap_err();
            let message = format!("services[0].credentials.token.{message}");
            assert!(error.starts_with(&message), "{error}\n{message}");
        }
        let rule = json!([{ "pattern": "/", "usage": { "hits": 1 } }]);
        let strip = json!({ "token": behind(json!({})), "strip": true });
        let error = rules(&rule, &strip).unwrap_err();
        assert!(
            error.starts_with("services[0].credentials.strip: has no effect"),
            "{error}"
        );
    }

    #[test]
    fn what_is_wrong_with_a_requirement_is_told_with_its_place() {
        let token = json!({ "token": { "issuers": [issuer()] } });
        let key = json!({ "user_key": [{ "query": "k" }] });
        let claims = |claim: Value| json!({ "claims": [claim] });
        for (credentials, require, message) in [
            (
                &key,
                json!({ "scopes": ["a"] }),
                ": needs credentials.token",
            ),
            (&token, json!({}), ": requires nothing"),
            (&token, json!({ "scopes": [""] }), ".scopes[0]: is empty"),
            (
                &token,
                claims(json!({ "claim": "a" })),
                ".claims[0]: requires nothing",
            ),
            (
                &token,
                claims(json!({ "claim": [], "any_of": ["a"] })),
                ".claims[0].claim: a list: must be",
            ),
            (
                &token,
                claims(json!({ "claim": "a", "all_of": [""] })),
                ".claims[0].all_of[0]: is empty",
            ),
            (
                &token,
                claims(json!({ "any_of": ["a"] })),
                ".claims[0].claim: is missing",
            ),
        ] {
            let rule = json!([{ "pattern": "/", "usage": { "hits": 1 }, "require": require }]);
            let error = rules(&rule, credentials).unwrap_err();
            let message = format!("services[0].mapping_rules[0].require{message}");
            assert!(error.starts_with(&message), "{error}\n{message}");
        }
    }

    #[test]
    fn a_request_must_meet_what_all_its_rules_require() {
        let rule = |pattern: &str, scope: &str, last: bool| {
            let mut rule = json!({ "pattern": pattern, "usage": { "hits": 1 }, "last": last });
            if !scope.is_empty() {
                rule["require"] = json!({ "scopes": [scope] });
            }
            rule
        };
        let all = json!([
            rule("/free", "", true),
            rule("/a", "x", false),
            rule("/a/b", "y", false),
            rule("/c", "x", false),
            rule("/", "", false),
        ]);
        let tokens = rules(&all, &json!({ "token": { "issuers": [issuer()] } })).unwrap();
        assert_eq!(tokens.policy.requirements.len(), 2);
        let none = Requirements::default();
        for (path, required) in [
            ("/", none),
            ("/free/a", none),
            ("/a", none.with(0)),
            ("/a/b?c", none.with(0).with(1)),
            ("/c", none.with(0)),
            ("/%61/x/../b", none.with(0).with(1)),
        ] {
            assert_eq!(tokens.required(b"GET", path.as_bytes()), required, "{path}");
        }
    }

    #[test]
    fn a_service_has_63_requirements_and_no_more() {
        let all = |count: usize| {
            let rule = |number: usize| {
                let scope = number.to_string();
                json!({ "pattern": format!("/{number}$"), "usage": { "hits": 1 }, "require": { "scopes": [scope] } })
            };
            let all: Vec<Value> = (0..count).map(rule).collect();
            rules(&json!(all), &json!({ "token": { "issuers": [issuer()] } }))
        };
        let tokens = all(63).unwrap();
        assert_eq!(
            tokens.required(b"GET", b"/62"),
            Requirements::default().with(62)
        );
        assert!(
            all(64)
                .unwrap_err()
                .starts_with("services[0].mapping_rules[63].require: is the 64th")
        );
    }
}
