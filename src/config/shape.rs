//! JSON as it is written, before anything is checked but its shape.
//!
//! Apart from the checked types because the shape is serde's business, down to the
//! path of what does not fit, and the rest is ours. Numbers, durations and choices
//! are read as any JSON value, so that the check can say what belongs there.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeOwned, Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_path_to_error::Segment;

use super::error::{ConfigurationError, Place, Problem};
use super::secret::Secret;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Configuration {
    pub(super) service_management: Object<ServiceManagement>,
    pub(super) services: Vec<Object<Service>>,
    #[serde(default)]
    pub(super) authorization: Object<Authorization>,
    #[serde(default)]
    pub(super) reporting: Object<Reporting>,
    #[serde(default, deserialize_with = "present")]
    pub(super) unmatched_hosts: Option<Value>,
    #[serde(default)]
    pub(super) replies: Replies,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ServiceManagement {
    pub(super) cluster: String,
    pub(super) authority: String,
    #[serde(default, deserialize_with = "present")]
    pub(super) timeout: Option<Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Service {
    pub(super) id: String,
    #[serde(default, deserialize_with = "present")]
    pub(super) token: Option<Token>,
    #[serde(default, deserialize_with = "present")]
    pub(super) provider_key: Option<Token>,
    #[serde(default)]
    pub(super) oauth: bool,
    pub(super) hosts: Vec<String>,
    #[serde(default, deserialize_with = "present")]
    pub(super) path_prefix: Option<String>,
    #[serde(default, deserialize_with = "present")]
    pub(super) route: Option<String>,
    #[serde(default, deserialize_with = "present")]
    pub(super) credentials: Option<Object<Credentials>>,
    pub(super) mapping_rules: Vec<Object<MappingRule>>,
    #[serde(default)]
    pub(super) metrics: Pairs<Object<Metric>>,
    #[serde(default)]
    pub(super) exempt: Vec<Object<Exemption>>,
    #[serde(default)]
    pub(super) replies: Replies,
    #[serde(default)]
    pub(super) rate_limit_headers: bool,
    #[serde(default)]
    pub(super) authorization: Object<ServiceAuthorization>,
}

/// What of [`Authorization`] can be otherwise for one service.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ServiceAuthorization {
    #[serde(default, deserialize_with = "present")]
    pub(super) ttl: Option<Value>,
    #[serde(default, deserialize_with = "present")]
    pub(super) negative_ttl: Option<Value>,
    #[serde(default, deserialize_with = "present")]
    pub(super) stale_if_error: Option<Value>,
    #[serde(default, deserialize_with = "present")]
    pub(super) unknown: Option<Value>,
}

/// Replies by the name of their outcome.
pub(super) type Replies = Pairs<Object<Reply>>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Reply {
    #[serde(default, deserialize_with = "present")]
    pub(super) status: Option<Value>,
    #[serde(default, deserialize_with = "present")]
    pub(super) content_type: Option<String>,
    #[serde(default, deserialize_with = "present")]
    pub(super) body: Option<String>,
    #[serde(default, deserialize_with = "present")]
    pub(super) headers: Option<Pairs<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Credentials {
    #[serde(default, deserialize_with = "present")]
    pub(super) user_key: Option<Vec<Object<Source>>>,
    #[serde(default, deserialize_with = "present")]
    pub(super) app_id: Option<Vec<Object<Source>>>,
    #[serde(default, deserialize_with = "present")]
    pub(super) app_key: Option<Vec<Object<Source>>>,
    #[serde(default, deserialize_with = "present")]
    pub(super) token: Option<Object<super::tokens::shape::Tokens>>,
    #[serde(default)]
    pub(super) strip: bool,
    #[serde(default)]
    pub(super) referrer: bool,
    #[serde(default, deserialize_with = "present")]
    pub(super) anonymous: Option<Object<Anonymous>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Anonymous {
    #[serde(default, deserialize_with = "present")]
    pub(super) user_key: Option<Token>,
    #[serde(default, deserialize_with = "present")]
    pub(super) app_id: Option<Token>,
    #[serde(default, deserialize_with = "present")]
    pub(super) app_key: Option<Token>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Source {
    #[serde(default, deserialize_with = "present")]
    pub(super) query: Option<String>,
    #[serde(default, deserialize_with = "present")]
    pub(super) header: Option<String>,
    #[serde(default, deserialize_with = "present")]
    pub(super) cookie: Option<String>,
    #[serde(default, deserialize_with = "present")]
    pub(super) basic: Option<Value>,
    #[serde(default, deserialize_with = "present")]
    pub(super) bearer: Option<Object<Nothing>>,
    #[serde(default, deserialize_with = "present")]
    pub(super) body: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Nothing {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MappingRule {
    #[serde(default, deserialize_with = "present")]
    pub(super) method: Option<String>,
    pub(super) pattern: String,
    #[serde(default, deserialize_with = "present")]
    pub(super) query: Option<Pairs<String>>,
    pub(super) usage: Pairs<Value>,
    #[serde(default)]
    pub(super) last: bool,
    #[serde(default, deserialize_with = "present")]
    pub(super) require: Option<Object<super::tokens::shape::Require>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Metric {
    #[serde(default, deserialize_with = "present")]
    pub(super) parent: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Exemption {
    #[serde(default, deserialize_with = "present")]
    pub(super) method: Option<String>,
    #[serde(default, deserialize_with = "present")]
    pub(super) path: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Authorization {
    #[serde(default, deserialize_with = "present")]
    pub(super) ttl: Option<Value>,
    #[serde(default, deserialize_with = "present")]
    pub(super) negative_ttl: Option<Value>,
    #[serde(default, deserialize_with = "present")]
    pub(super) stale_if_error: Option<Value>,
    #[serde(default, deserialize_with = "present")]
    pub(super) capacity: Option<Value>,
    #[serde(default, deserialize_with = "present")]
    pub(super) unknown: Option<Value>,
    #[serde(default, deserialize_with = "present")]
    pub(super) unknown_calls_per_second: Option<Value>,
    #[serde(default, deserialize_with = "present")]
    pub(super) refreshes_per_second: Option<Value>,
    #[serde(default, deserialize_with = "present")]
    pub(super) gateways: Option<Value>,
    #[serde(default, deserialize_with = "present")]
    pub(super) accuracy: Option<Value>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Reporting {
    #[serde(default, deserialize_with = "present")]
    pub(super) interval: Option<Value>,
    #[serde(default, deserialize_with = "present")]
    pub(super) timeout: Option<Value>,
    #[serde(default, deserialize_with = "present")]
    pub(super) uncertain: Option<Value>,
    #[serde(default, deserialize_with = "present")]
    pub(super) batch: Option<Value>,
}

/// A secret (a service token, a credential), or where it is.
pub(super) enum Token {
    Literal(Secret),
    Environment(String),
}

/// An object and nothing else: serde's structs would take a list, too.
#[derive(Default)]
pub(super) struct Object<T>(pub(super) T);

/// An object with names of the operator's choice, in the order written; a name that
/// stands there twice is an error rather than silently the last.
pub(super) struct Pairs<V>(pub(super) Vec<(String, V)>);

/// What belongs where a token is.
const TOKEN: &str = "a string or { env: NAME }";

/// Reads the shape of a configuration.
pub(super) fn read(bytes: &[u8]) -> Result<Configuration, ConfigurationError> {
    // Some editors begin a file with a byte order mark, and RFC 8259, 8.1 lets us skip it.
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    if matches!(bytes.trim_ascii(), b"" | b"null") {
        return Err(Place::ROOT.error(Problem::Empty));
    }
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let Object(shape) = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let segments: Vec<Segment> = error.path().iter().cloned().collect();
        locate(&Place::ROOT, &segments, error.inner())
    })?;
    deserializer
        .end()
        .map_err(|error| Place::ROOT.error(Problem::NotJson(error.to_string())))?;
    Ok(shape)
}

/// Turns serde's error and path into ours.
fn locate(place: &Place<'_>, path: &[Segment], error: &serde_json::Error) -> ConfigurationError {
    if error.is_syntax() || error.is_eof() || error.is_io() {
        return Place::ROOT.error(Problem::NotJson(error.to_string()));
    }
    match path.split_first() {
        Some((Segment::Seq { index }, rest)) => locate(&place.index(*index), rest, error),
        Some((Segment::Map { key }, rest)) => locate(&place.field(key), rest, error),
        Some((Segment::Enum { .. } | Segment::Unknown, rest)) => locate(place, rest, error),
        None => translate(place, error),
    }
}

/// Turns serde's message into ours, whatever the place. A value is never repeated: it
/// may be a token that stands in the wrong place.
fn translate(place: &Place<'_>, error: &serde_json::Error) -> ConfigurationError {
    let text = error.to_string();
    let position = format!(" at line {} column {}", error.line(), error.column());
    let text = text.strip_suffix(&position).unwrap_or(&text);
    let name = |prefix: &str| {
        let (name, rest) = text.strip_prefix(prefix)?.split_once('`')?;
        Some((name.to_owned(), rest.to_owned()))
    };
    if let Some((name, _)) = name("missing field `") {
        let hint = hint(&name);
        return place.field(&name).error(Problem::Missing(hint));
    }
    if let Some((name, _)) = name("duplicate field `") {
        return place.field(&name).error(Problem::RepeatedField);
    }
    if text.starts_with("unknown field `") {
        // Serde's path ends in the field itself.
        let allowed = text
            .rsplit_once("`, expected ")
            .map_or("", |(_, allowed)| allowed);
        let allowed = allowed
            .replace("one of ", "")
            .replace('`', "")
            .replace(" or ", ", ");
        return place.error(Problem::UnknownField(allowed));
    }
    if let Some((found, expected)) = text
        .strip_prefix("invalid type: ")
        .or_else(|| text.strip_prefix("invalid value: "))
        .and_then(|rest| rest.rsplit_once(", expected "))
    {
        let found = found_type(found);
        return place.error(Problem::WrongType {
            found,
            expected: expected_type(found, expected),
        });
    }
    place.error(Problem::Shape(text.to_owned()))
}

/// The JSON type in serde's description of a value.
fn found_type(description: &str) -> &'static str {
    const TYPES: [(&str, &str); 7] = [
        ("boolean", "true or false"),
        ("integer", "a number"),
        ("floating point", "a number"),
        ("string", "a string"),
        ("null", "null"),
        ("sequence", "a list"),
        ("map", "an object"),
    ];
    TYPES
        .iter()
        .find(|(start, _)| description.starts_with(start))
        .map_or("something else", |(_, name)| name)
}

/// Serde's description of what belongs there, in the words of JSON, and how to get it.
fn expected_type(found: &str, expected: &str) -> String {
    let name = match expected {
        "a sequence" => "a list",
        "a boolean" => "true or false",
        other => other,
    };
    let cure = match (found, name) {
        ("a number" | "true or false", "a string" | TOKEN) => ": put it in quotes",
        ("null", _) => ": fill it in, or leave the field out if it is optional",
        _ => "",
    };
    format!("{name}{cure}")
}

/// What a required field is for, by its name.
fn hint(field: &str) -> &'static str {
    match field {
        "service_management" => {
            ": it names the cluster to ask, like { cluster: service-management, authority: su1.3scale.net }"
        }
        "cluster" => ": the name of the Envoy cluster of service management",
        "authority" => ": the host of service management, like su1.3scale.net",
        "services" => ": the list of services that this gateway guards",
        "id" => ": the service's id at service management, like \"1001\"",
        "hosts" => ": the hosts of the service's requests, like [api.example.com]",
        "mapping_rules" => {
            ": what requests count as, like [{ pattern: \"/\", usage: { hits: 1 } }]"
        }
        "pattern" => ": the paths that the rule is for, like \"/v1/orders/{id}$\"",
        "usage" => ": what a request counts as, like { hits: 1 }",
        "user_key" => ": where the key is, like [{ header: x-api-key }]",
        "issuers" => {
            ": whose tokens are taken, like [{ issuer: \"https://id.example.com\", audiences: [api], discovery: { cluster: id } }]"
        }
        "issuer" => ": the iss of its tokens, like \"https://id.example.com\"",
        "audiences" => ": which aud a token must have, like [api]",
        "claim" => ": which claim is looked at, like realm_access.roles",
        _ => "",
    }
}

/// Reads an optional field that is there: `null` is not the same as leaving it out,
/// because in YAML a name with nothing behind it is `null`, and a mistake.
pub(super) fn present<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    T::deserialize(deserializer).map(Some)
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ObjectVisitor<T>(PhantomData<T>);

        impl<'de, T: DeserializeOwned> Visitor<'de> for ObjectVisitor<T> {
            type Value = Object<T>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }

        deserializer.deserialize_map(ObjectVisitor(PhantomData))
    }
}

impl<V> Default for Pairs<V> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, V: DeserializeOwned> Deserialize<'de> for Pairs<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PairsVisitor<V>(PhantomData<V>);

        impl<'de, V: DeserializeOwned> Visitor<'de> for PairsVisitor<V> {
            type Value = Pairs<V>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut pairs: Vec<(String, V)> = Vec::new();
                while let Some((name, value)) = map.next_entry::<String, V>()? {
                    if pairs.iter().any(|(earlier, _)| *earlier == name) {
                        return Err(A::Error::custom(format_args!("duplicate field `{name}`")));
                    }
                    pairs.push((name, value));
                }
                Ok(Pairs(pairs))
            }
        }

        deserializer.deserialize_map(PairsVisitor(PhantomData))
    }
}

impl<'de> Deserialize<'de> for Token {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TokenVisitor;

        impl<'de> Visitor<'de> for TokenVisitor {
            type Value = Token;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(TOKEN)
            }

            fn visit_str<E>(self, text: &str) -> Result<Token, E> {
                Ok(Token::Literal(Secret::new(text.to_owned())))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Token, A::Error> {
                let mut variable = None;
                while let Some(name) = map.next_key::<String>()? {
                    // Without the name: `{ the-token }` is YAML for an object with that field.
                    if name != "env" || variable.is_some() {
                        return Err(A::Error::custom(format_args!("must be {TOKEN}")));
                    }
                    variable = Some(map.next_value::<String>()?);
                }
                variable
                    .map(Token::Environment)
                    .ok_or_else(|| A::Error::custom(format_args!("must be {TOKEN}")))
            }
        }

        deserializer.deserialize_any(TokenVisitor)
    }
}
