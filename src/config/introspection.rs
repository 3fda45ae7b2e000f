//! Which key manager is asked about opaque tokens, and how far it is relied on.
//!
//! Apart from the issuers of signed tokens because it has a secret, lifetimes and a budget, and
//! they have keys.

use std::time::Duration;

use super::Environment;
use super::error::{ConfigurationError, Place, Problem, quoted_address};
use super::service::secret;
use super::settings::{DAY, MINUTE, SECOND, number, within};
use super::tokens::{application, texts};
use crate::tokens::{Client, Introspection, Url};

pub(super) mod shape {
    //! The fields as they are written.

    use super::super::shape::{Token, present};
    use serde::Deserialize;
    use serde_json::Value;

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    pub(in super::super) struct Introspection {
        pub(super) cluster: String,
        pub(super) url: String,
        pub(super) client_id: String,
        pub(super) client_secret: Token,
        #[serde(default, deserialize_with = "present")]
        pub(super) issuer: Option<String>,
        #[serde(default, deserialize_with = "present")]
        pub(super) audiences: Option<Vec<String>>,
        #[serde(default, deserialize_with = "present")]
        pub(super) claim: Option<Vec<Value>>,
        #[serde(default, deserialize_with = "present")]
        pub(super) timeout: Option<Value>,
        #[serde(default, deserialize_with = "present")]
        pub(super) ttl: Option<Value>,
        #[serde(default, deserialize_with = "present")]
        pub(super) negative_ttl: Option<Value>,
        #[serde(default, deserialize_with = "present")]
        pub(super) stale_if_error: Option<Value>,
        #[serde(default, deserialize_with = "present")]
        pub(super) calls_per_second: Option<Value>,
    }
}

const MILLISECOND: Duration = Duration::from_millis(1);
/// The longest `stale_if_error`.
const WEEK: Duration = Duration::from_secs(7 * 86_400);

/// What is written of a key manager, checked.
pub(super) fn introspection(
    shape: &shape::Introspection,
    place: &Place<'_>,
    environment: Environment<'_>,
) -> Result<Introspection, ConfigurationError> {
    let named = |text: &str, field, what| {
        if text.is_empty() {
            return Err(place.field(field).error(Problem::EmptyText(what)));
        }
        Ok(())
    };
    named(&shape.cluster, "cluster", "the name of an Envoy cluster")?;
    let url = Url::parse(&shape.url).map_err(|error| {
        place.field("url").error(Problem::Url {
            found: quoted_address(&shape.url),
            error,
        })
    })?;
    named(
        &shape.client_id,
        "client_id",
        "the id of this gateway at the key manager",
    )?;
    let at = place.field("client_secret");
    let what = "a secret, or { env: NAME } for one from the environment";
    let secret = secret(&shape.client_secret, &at, environment, what)?;
    // The line break at the end of a file. (RFC 6749, A.2 would allow spaces.)
    let blank = |letter: char| letter.is_whitespace() || letter.is_control();
    if secret.expose().contains(blank) {
        return Err(at.error(Problem::TokenCharacters));
    }
    if let Some(issuer) = &shape.issuer {
        named(issuer, "issuer", "the iss of its answers")?;
    }
    let audiences = place.field("audiences");
    let audiences = match &shape.audiences {
        None => Vec::new(),
        Some(names) if names.is_empty() => {
            return Err(audiences.error(Problem::EmptyList(
                "name at least one audience, like api, or leave audiences out if answers have no aud",
            )));
        }
        Some(names) => texts(names, &audiences, "the aud of an answer")?,
    };
    let duration =
        |value, field, bounds, default| within(value, &place.field(field), bounds, default);
    Ok(Introspection {
        cluster: shape.cluster.clone(),
        url,
        client: Client::new(&shape.client_id, secret.expose()),
        issuer: shape.issuer.as_deref().map(Into::into),
        audiences,
        application: application(shape.claim.as_deref(), &place.field("claim"))?,
        timeout: duration(
            shape.timeout.as_ref(),
            "timeout",
            (MILLISECOND, MINUTE),
            Duration::from_secs(2),
        )?,
        ttl: duration(shape.ttl.as_ref(), "ttl", (SECOND, DAY), MINUTE)?,
        negative_ttl: duration(
            shape.negative_ttl.as_ref(),
            "negative_ttl",
            (SECOND, DAY),
            Duration::from_secs(10),
        )?,
        stale_if_error: duration(
            shape.stale_if_error.as_ref(),
            "stale_if_error",
            (Duration::ZERO, WEEK),
            Duration::from_secs(600),
        )?,
        calls_per_second: number(
            shape.calls_per_second.as_ref(),
            &place.field("calls_per_second"),
            (1, 100_000),
            100,
        )?,
    })
}

#[cfg(test)]
mod tests {
    use super::super::{Configuration, Tokens};
    use super::*;
    use serde_json::{Value, json};
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    /// The least that is needed, with a field changed; `null`: left out.
    fn with(field: &str, value: Value) -> Value {
        let mut written = json!({
            "cluster": "id", "url": "https://id.example.com/introspect",
            "client_id": "gateway", "client_secret": { "env": "SECRET" },
        });
        if value.is_null() {
            written.as_object_mut().unwrap().remove(field);
        } else {
            written[field] = value;
        }
        written
    }

    fn tokens(token: &Value) -> Result<Tokens, String> {
        let configuration = json!({
            "service_management": { "cluster": "c", "authority": "a" },
            "services": [{
                "id": "1001", "token": "t", "hosts": ["*"], "credentials": { "token": token },
                "mapping_rules": [{ "pattern": "/", "usage": { "hits": 1 } }],
            }],
        });
        let environment = |name: &str| match name {
            "SECRET" => Some("from-environment".to_owned()),
            "FILE" => Some("secret\n".to_owned()),
            _ => None,
        };
        Configuration::parse(configuration.to_string().as_bytes(), &environment)
            .map(|configuration| *configuration.services[0].tokens.clone().unwrap())
            .map_err(|error| error.to_string())
    }

    fn checked(written: &Value) -> Result<Introspection, String> {
        let tokens = tokens(&json!({ "introspection": written }))?;
        Ok((*tokens.introspection.unwrap()).clone())
    }

    #[test]
    fn a_key_manager_has_defaults_and_needs_no_issuers_beside_it() {
        let checked = checked(&with("client_id", json!("gateway"))).unwrap();
        let seconds = |duration: Duration| duration.as_secs();
        assert_eq!(checked.url.path, "/introspect");
        assert_eq!(checked.application.len(), 2);
        assert_eq!((checked.issuer, checked.audiences.len()), (None, 0));
        assert_eq!(
            [
                checked.timeout,
                checked.ttl,
                checked.negative_ttl,
                checked.stale_if_error
            ]
            .map(seconds),
            [2, 60, 10, 600]
        );
        assert_eq!(checked.calls_per_second, 100);
        let written = with("client_secret", json!("from-environment"));
        let literal = super::tests::checked(&written).unwrap();
        let fresh = super::tests::checked(&with("ttl", json!("30s"))).unwrap();
        let client = Client::new("gateway", "from-environment");
        assert_eq!([literal.client, fresh.client], [client.clone(), client]);
        assert_eq!(seconds(fresh.ttl), 30);
    }

    #[test]
    fn what_is_wrong_with_a_key_manager_is_told_with_its_place_and_no_secret() {
        for (written, message) in [
            (with("cluster", json!("")), ".cluster: is empty"),
            (with("cluster", Value::Null), ".cluster: is missing"),
            (
                with("url", json!("/introspect")),
                ".url: \"/introspect\": must be a URL",
            ),
            (
                with("url", json!("https://a:from-environment@id.example/")),
                ".url: \"\u{2026}@id.example/\": must be a URL",
            ),
            (with("client_id", json!("")), ".client_id: is empty"),
            (
                with("client_secret", Value::Null),
                ".client_secret: is missing",
            ),
            (with("client_secret", json!("")), ".client_secret: is empty"),
            (
                with("client_secret", json!({ "env": "FILE" })),
                ".client_secret: the token has white space",
            ),
            (
                with("client_secret", json!({ "env": "NONE" })),
                ".client_secret.env: ",
            ),
            (with("issuer", json!("")), ".issuer: is empty"),
            (with("audiences", json!([])), ".audiences: is empty"),
            (
                with("audiences", json!(["a", ""])),
                ".audiences[1]: is empty",
            ),
            (with("claim", json!([])), ".claim: is empty"),
            (
                with("claim", json!(["a..b"])),
                ".claim[0]: \"a..b\": must be",
            ),
            (
                with("timeout", json!("0s")),
                ".timeout: \"0s\": must be from",
            ),
            (with("ttl", json!("0s")), ".ttl: \"0s\": must be from 1s"),
            (
                with("negative_ttl", json!("2d")),
                ".negative_ttl: \"2d\": must be from",
            ),
            (
                with("stale_if_error", json!("8d")),
                ".stale_if_error: \"8d\": must be from 0s",
            ),
            (
                with("calls_per_second", json!(0)),
                ".calls_per_second: 0: must be",
            ),
            (with("secret", json!("x")), ".secret: "),
        ] {
            let error = checked(&written).unwrap_err();
            let message = format!("services[0].credentials.token.introspection{message}");
            assert!(error.starts_with(&message), "{error}\n{message}");
            assert!(!error.contains("from-environment"), "{error}");
        }
        let error = tokens(&json!({})).unwrap_err();
        assert!(
            error.starts_with("services[0].credentials.token.issuers: is empty"),
            "{error}"
        );
    }
}
