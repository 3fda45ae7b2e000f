//! What can be wrong with a configuration, and where.
//!
//! All texts stand here, so that they read alike: the field's path, what is wrong
//! with it, and what would be right. They end up in Envoy's log and in the rejection
//! of a listener update, so none of them carries a token.

use std::fmt;
use std::time::Duration;

use super::duration;
use super::exemption::ExemptionError;
use super::hosts::HostError;
use super::replies::ReplyHeaderError;
use super::sharing::PathPrefixError;
use crate::credentials::SourceError;
use crate::mapping::{MetricsError, RuleError};
use crate::tokens::{KeySetError, UrlError};

/// The first thing that is wrong with a configuration.
///
/// Displayed as `services[0].hosts[1]: "*.": a wildcard needs …`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {problem}")]
pub struct ConfigurationError {
    /// The field, from the top, like `services[0].mapping_rules[2].pattern`;
    /// `configuration` for the whole.
    pub path: String,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What is wrong with a field. Texts named `found` are the offending value as JSON.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// No bytes, or white space only.
    #[error("is empty: put Tollgate's settings, an object, into the configuration of the plugin")]
    Empty,
    /// Not JSON at all; with the parser's reason and place.
    #[error("is not JSON: {0}")]
    NotJson(String),
    /// A field that must be there.
    #[error("is missing{0}")]
    Missing(&'static str),
    /// A field that does not exist; with what does.
    #[error("is unknown; the fields here are {0}")]
    UnknownField(String),
    /// The same field twice in one object.
    #[error("stands here twice")]
    RepeatedField,
    /// A value of another JSON type.
    #[error("is {found}, must be {expected}")]
    WrongType {
        /// The type that was found.
        found: &'static str,
        /// The type that belongs here.
        expected: String,
    },
    /// Any other misfit of the shape, in the words of the parser.
    #[error("{0}")]
    Shape(String),
    /// A text that must not be empty.
    #[error("is empty: it must be {0}")]
    EmptyText(&'static str),
    /// A list that must not be empty.
    #[error("is empty: {0}")]
    EmptyList(&'static str),
    /// Not a duration.
    #[error(
        "{0}: a duration is a whole number with its unit in quotes, like \"500ms\", \"10s\", \"10m\", \"1h\" or \"1d\""
    )]
    NotADuration(String),
    /// A duration out of bounds.
    #[error("{found}: must be from {} to {}", duration::shown(*.least), duration::shown(*.most))]
    DurationBounds {
        /// The duration as given.
        found: String,
        /// The shortest that is allowed.
        least: Duration,
        /// The longest that is allowed.
        most: Duration,
    },
    /// Not a whole number within bounds.
    #[error("{found}: must be a whole number from {least} to {most}")]
    Number {
        /// The value as given.
        found: String,
        /// The least that is allowed.
        least: u64,
        /// The most that is allowed.
        most: u64,
    },
    /// None of the words that may stand here.
    #[error("{found}: must be {choices}")]
    Choice {
        /// The value as given.
        found: String,
        /// The words, joined by "or".
        choices: String,
    },
    /// Not the `:authority` of a call.
    #[error("{0}: must be a host, perhaps with a port, and nothing else, like \"su1.3scale.net\"")]
    Authority(String),
    /// Not a service id.
    #[error(
        "{0}: an id has at most 128 letters, digits and characters like \"-\", and no white space, like \"1001\""
    )]
    ServiceId(String),
    /// An id of two services.
    #[error("{found}: is the id of {first}, too; each service stands here once")]
    RepeatedService {
        /// The id.
        found: String,
        /// The path of the earlier service.
        first: String,
    },
    /// The variable is not there, or empty. Its name is not shown, here and below: who
    /// writes the token itself there must not find it in the log.
    #[error(
        "the variable is not set or empty in the environment of the plugin's VM: hand it on with vm_config.environment_variables, like {{ host_env_keys: [TG_SERVICE_TOKEN] }} (in Istio: vmConfig.env with valueFrom: HOST)"
    )]
    Environment,
    /// A name that no environment variable has.
    #[error(
        "must be the name of an environment variable: letters, digits and \"_\", like TG_SERVICE_TOKEN"
    )]
    EnvironmentName,
    /// Two things that give the right to ask.
    #[error("stands here besides a token: name one of them")]
    TwoRights,
    /// A token with characters that no token has. The token is not shown.
    #[error(
        "the token has white space or control characters in it; is there a line break at its end?"
    )]
    TokenCharacters,
    /// Not a host pattern.
    #[error("{found}: {error}")]
    Host {
        /// The host as given.
        found: String,
        /// Why it is none.
        error: HostError,
    },
    /// A host of two services that nothing tells apart, or twice of one.
    #[error(
        "{found}: belongs to service {service:?} already ({first}); services on one host are told apart by path_prefix or route"
    )]
    HostTaken {
        /// The host as given.
        found: String,
        /// The id of the service that has it.
        service: String,
        /// The path at which that service names it.
        first: String,
    },
    /// Not a path prefix.
    #[error("{found}: {error}")]
    PathPrefix {
        /// The prefix as given.
        found: String,
        /// Why it is none.
        error: PathPrefixError,
    },
    /// Not the name of a route.
    #[error("{0}: must be the name of a route in Envoy, of 1 to 256 bytes, like orders")]
    Route(String),
    /// Not one place to look in.
    #[error(
        "must name exactly one place to look in, like {{ query: user_key }}, {{ header: x-api-key }} or {{ bearer: {{}} }}"
    )]
    Source,
    /// A name that cannot be looked for.
    #[error("{found}: {error}")]
    SourceName {
        /// The name as given.
        found: String,
        /// Why not.
        error: SourceError,
    },
    /// A place that is searched already.
    #[error("is named before; each place is searched once")]
    RepeatedSource,
    /// Both kinds of credentials.
    #[error(
        "cannot stand beside user_key: a service at service management knows its applications by user_key or by app_id, never by both"
    )]
    TwoKinds,
    /// Another kind of credentials beside tokens.
    #[error(
        "cannot stand beside token: the application of a request is then the one that its token speaks for"
    )]
    BesideToken,
    /// Tokens in bodies.
    #[error("tokens are not looked for in bodies: name a header, a cookie or a query parameter")]
    TokenInBody,
    /// What is said of keys, or of where tokens are, where these are another filter's business.
    #[error(
        "has no effect beside jwt_authn: it is that filter that finds tokens, takes them out and verifies them; leave this out"
    )]
    BesideJwtAuthn,
    /// A requirement without tokens.
    #[error("needs credentials.token: only a token has scopes and claims")]
    RequireWithoutToken,
    /// A requirement of nothing, of one rule or of one claim.
    #[error("requires nothing: {0}")]
    EmptyRequirement(&'static str),
    /// More different requirements than a service may have.
    #[error("is the 64th different requirement of this service: it may have 63")]
    ManyRequirements,
    /// No place for an issuer's keys, or two.
    #[error(
        "must say where the keys are: discovery, like {{ cluster: id }}, or jwks, like {{ keys: [..] }}; one of them"
    )]
    KeySource,
    /// Not a set of keys.
    #[error("{0}")]
    KeySet(KeySetError),
    /// An issuer that stands there twice.
    #[error("{0}: is named before; each issuer stands here once")]
    RepeatedIssuer(String),
    /// Not a URL.
    #[error("{found}: {error}")]
    Url {
        /// The text as given.
        found: String,
        /// Why it is none.
        error: UrlError,
    },
    /// Not the path of a claim.
    #[error(
        "{0}: must be the name of a claim, like azp, names within each other with dots between them, like realm_access.roles, or the same as a list, like [\"https://example.com/roles\"]"
    )]
    ClaimPath(String),
    /// Not an algorithm.
    #[error("{0}: must be one of RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384 and EdDSA")]
    Algorithm(String),
    /// A header that no claim can be in.
    #[error(
        "{0}: this header is the request's own or the connection's: choose another, like x-client-id"
    )]
    ClaimHeader(String),
    /// Credentials in the body, and to be stripped.
    #[error(
        "cannot be true while a place is {{ body: .. }}: Tollgate does not change bodies, so the upstream would still see the credential"
    )]
    StripBody,
    /// An anonymous credential of the kind that the service has not.
    #[error(
        "is no credential of this service: anonymous must have a {0}, as that is where its consumers' credentials are looked for"
    )]
    AnonymousKind(&'static str),
    /// An anonymous credential that nobody can have. It is not shown.
    #[error(
        "is not a credential: it must have 1 to 256 bytes and no control characters; is there a line break at its end?"
    )]
    AnonymousValue,
    /// Metrics that make no hierarchy.
    #[error("{0}{cure}", cure = metrics_cure(.0))]
    Metrics(MetricsError),
    /// A method in small letters.
    #[error("{0}: a method is a word in capitals, like GET, or ANY")]
    Method(String),
    /// Not a mapping rule.
    #[error(transparent)]
    Rule(#[from] RuleError),
    /// A usage that sets a counter.
    #[error(
        "{0}: usage can add only: setting a counter would overwrite what other gateways have counted; must be a whole number, like 1"
    )]
    SetUsage(String),
    /// Not a status to refuse with.
    #[error("{0}: must be a whole number from 400 to 599: a refusal never looks like a success")]
    ReplyStatus(String),
    /// Not a content type.
    #[error("{0}: must be a media type, like application/json")]
    ContentType(String),
    /// A text beyond its bound. It is not shown.
    #[error("has {bytes} bytes: must be at most {most}")]
    LongText {
        /// How many it has.
        bytes: usize,
        /// How many it may have.
        most: usize,
    },
    /// More headers than a reply may have.
    #[error("names too many headers: must be at most {0}")]
    ManyHeaders(usize),
    /// A header that replies cannot have.
    #[error("{found}: {error}")]
    ReplyHeader {
        /// The name or the value as given.
        found: String,
        /// Why not.
        error: ReplyHeaderError,
    },
    /// Not an exemption.
    #[error(transparent)]
    Exemption(#[from] ExemptionError),
}

fn metrics_cure(error: &MetricsError) -> String {
    match error {
        MetricsError::UnknownParent { parent, .. } => {
            format!(
                ": count it in a mapping rule, or declare it in metrics, like {{ {parent}: {{}} }}"
            )
        }
        _ => String::new(),
    }
}

/// A place in the configuration: a path that is put together only when an error needs it.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    parent: Option<&'a Place<'a>>,
    step: Step<'a>,
}

#[derive(Clone, Copy)]
enum Step<'a> {
    Root,
    Field(&'a str),
    Index(usize),
}

impl<'a> Place<'a> {
    /// The whole configuration.
    pub(super) const ROOT: Place<'static> = Place {
        parent: None,
        step: Step::Root,
    };

    /// A field of the object at this place.
    pub(super) fn field(&'a self, name: &'a str) -> Place<'a> {
        Place {
            parent: Some(self),
            step: Step::Field(name),
        }
    }

    /// An element of the list at this place.
    pub(super) fn index(&'a self, index: usize) -> Place<'a> {
        Place {
            parent: Some(self),
            step: Step::Index(index),
        }
    }

    /// This problem at this place.
    pub(super) fn error(&self, problem: Problem) -> ConfigurationError {
        ConfigurationError {
            path: self.to_string(),
            problem,
        }
    }

    fn is_top(&self) -> bool {
        self.parent
            .is_none_or(|parent| matches!(parent.step, Step::Root))
    }
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent
            && !self.is_top()
        {
            parent.fmt(formatter)?;
        }
        let plain = |name: &str| {
            !name.is_empty()
                && name
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
        };
        match self.step {
            Step::Root => formatter.write_str("configuration"),
            Step::Field(name) if !plain(name) => write!(formatter, "[{name:?}]"),
            Step::Field(name) if self.is_top() => formatter.write_str(name),
            Step::Field(name) => write!(formatter, ".{name}"),
            Step::Index(index) => write!(formatter, "[{index}]"),
        }
    }
}

/// A value for an error: JSON, cut short; lists and objects by their type only.
pub(super) fn shown(value: &serde_json::Value) -> String {
    use serde_json::Value;
    match value {
        Value::String(text) => quoted(text),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
        scalar => scalar.to_string(),
    }
}

/// A text for an error: in quotes, cut short after 64 characters.
pub(super) fn quoted(text: &str) -> String {
    const LONGEST: usize = 64;
    if text.chars().nth(LONGEST).is_none() {
        return format!("{text:?}");
    }
    let start: String = text.chars().take(LONGEST).collect();
    format!("{:?}", format!("{start}\u{2026}"))
}

/// An address for an error, without the user and the password that it begins with: they have no
/// place there, and are a secret nevertheless.
pub(super) fn quoted_address(text: &str) -> String {
    match text.rsplit_once('@') {
        Some((_, rest)) => quoted(&format!("\u{2026}@{rest}")),
        None => quoted(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    #[test]
    fn a_place_reads_as_a_path() {
        let root = Place::ROOT;
        assert_eq!(root.to_string(), "configuration");
        let services = root.field("services");
        assert_eq!(services.to_string(), "services");
        let rule = services.index(0);
        let rule = rule.field("mapping_rules");
        let rule = rule.index(12);
        let usage = rule.field("usage");
        assert_eq!(
            usage.field("orders").to_string(),
            "services[0].mapping_rules[12].usage.orders"
        );
        assert_eq!(
            usage.field("a.b \"c\"").to_string(),
            r#"services[0].mapping_rules[12].usage["a.b \"c\""]"#
        );
        assert_eq!(root.field("").to_string(), r#"[""]"#);
    }

    #[test]
    fn an_address_is_told_without_who_is_to_be_there() {
        for written in [
            "https://gateway:p%40ss@id.example/keys",
            "https://gateway:p@ss@id.example/keys",
            "gateway@id.example/keys",
        ] {
            assert_eq!(quoted_address(written), "\"\u{2026}@id.example/keys\"");
        }
        assert_eq!(quoted_address("/keys"), "\"/keys\"");
    }

    #[test]
    fn long_texts_are_cut_and_control_characters_escaped() {
        assert_eq!(quoted("a\nb"), r#""a\nb""#);
        assert_eq!(quoted(&"x".repeat(64)), format!("{:?}", "x".repeat(64)));
        assert_eq!(
            quoted(&"x".repeat(65)),
            format!("\"{}\u{2026}\"", "x".repeat(64))
        );
    }
}
