//! Where a service's consumers put their credentials.
//!
//! Apart from the rest of a service because here fields exclude each other, and what is
//! said about that must say why.

use std::borrow::Cow;

use super::error::{ConfigurationError, Place, Problem, quoted, shown};
use super::service::secret;
use super::{Environment, shape};
use crate::credentials::{
    BasicPart, CookieName, Credential, Credentials, CredentialsError, HeaderName, Kind, List,
    ParameterName, Source, SourceError, Sources,
};

/// What belongs where an anonymous credential is.
const ANONYMOUS: &str = "a credential, or { env: NAME } for one from the environment";

/// A list of sources as it is written.
type Places = [shape::Object<shape::Source>];

pub(super) fn credentials(
    shape: &shape::Credentials,
    place: &Place<'_>,
    environment: Environment<'_>,
) -> Result<Credentials, ConfigurationError> {
    let wrong = |error: CredentialsError| match error {
        CredentialsError::Repeated(List::Token, index) => place
            .field("token")
            .field("places")
            .index(index)
            .error(Problem::RepeatedSource),
        CredentialsError::Empty(list) => place.field(name(list)).error(Problem::EmptyList(
            "name at least one place to look in, like { query: user_key }",
        )),
        CredentialsError::Repeated(list, index) => place
            .field(name(list))
            .index(index)
            .error(Problem::RepeatedSource),
        CredentialsError::StripBody => place.field("strip").error(Problem::StripBody),
        CredentialsError::AnonymousKind => {
            let kind = if shape.user_key.is_some() {
                "user_key"
            } else {
                "app_id"
            };
            place.field("anonymous").error(Problem::AnonymousKind(kind))
        }
    };
    let mut credentials = Credentials::new(self::sources(shape, place)?).map_err(wrong)?;
    if shape.strip {
        credentials = credentials.stripped().map_err(wrong)?;
    }
    if shape.referrer {
        credentials = credentials.with_referrer();
    }
    if let Some(anonymous) = &shape.anonymous {
        let place = place.field("anonymous");
        let anonymous = self::anonymous(&anonymous.0, credentials.kind(), &place, environment)?;
        credentials = credentials.with_anonymous(anonymous).map_err(wrong)?;
    }
    Ok(credentials)
}

/// A list's name in the configuration.
fn name(list: List) -> &'static str {
    match list {
        List::UserKey => "user_key",
        List::AppId => "app_id",
        List::AppKey => "app_key",
        List::Token => "token",
    }
}

fn sources(shape: &shape::Credentials, place: &Place<'_>) -> Result<Sources, ConfigurationError> {
    if let Some(token) = &shape.token {
        for (other, stands) in [
            ("user_key", shape.user_key.is_some()),
            ("app_id", shape.app_id.is_some()),
            ("app_key", shape.app_key.is_some()),
        ] {
            if stands {
                return Err(place.field(other).error(Problem::BesideToken));
            }
        }
        let place = place.field("token");
        return super::tokens::places(&token.0, &place).map(Sources::Token);
    }
    let list = |places: &Places, list| self::list(places, &place.field(name(list)));
    match (&shape.user_key, &shape.app_id, &shape.app_key) {
        (Some(_), Some(_), _) => Err(place.field("app_id").error(Problem::TwoKinds)),
        (Some(_), None, Some(_)) => Err(place.field("app_key").error(Problem::TwoKinds)),
        (Some(user_key), None, None) => Ok(Sources::UserKey(list(user_key, List::UserKey)?)),
        (None, Some(app_id), app_key) => Ok(Sources::AppId {
            app_id: list(app_id, List::AppId)?,
            app_key: match app_key {
                // Left out, the service has no keys; an empty list says nothing.
                Some(places) if places.is_empty() => {
                    return Err(place.field("app_key").error(Problem::EmptyList(
                        "name at least one place to look in, like { header: app_key }, or leave app_key out",
                    )));
                }
                Some(places) => list(places, List::AppKey)?,
                None => Vec::new(),
            },
        }),
        (None, None, Some(_)) => Err(place.field("app_id").error(Problem::Missing(
            ": where the id is that the app_key belongs to, like [{ header: app_id }]",
        ))),
        (None, None, None) => Err(place.field("user_key").error(Problem::Missing(
            ": where the key is, like [{ header: x-api-key }]; or app_id and app_key",
        ))),
    }
}

pub(super) fn list(places: &Places, place: &Place<'_>) -> Result<Vec<Source>, ConfigurationError> {
    let places = places.iter().enumerate();
    places
        .map(|(index, shape)| source(&shape.0, &place.index(index)))
        .collect()
}

fn source(shape: &shape::Source, place: &Place<'_>) -> Result<Source, ConfigurationError> {
    let shape::Source {
        query,
        header,
        cookie,
        basic,
        bearer,
        body,
    } = shape;
    let mut found = [
        query
            .as_deref()
            .map(|name| named("query", name, ParameterName::new, Source::Query, place)),
        header
            .as_deref()
            .map(|name| named("header", name, HeaderName::new, Source::Header, place)),
        cookie
            .as_deref()
            .map(|name| named("cookie", name, CookieName::new, Source::Cookie, place)),
        basic.as_ref().map(|part| match part.as_str() {
            Some("username") => Ok(Source::Basic(BasicPart::Username)),
            Some("password") => Ok(Source::Basic(BasicPart::Password)),
            _ => Err(place.field("basic").error(Problem::Choice {
                found: shown(part),
                choices: "username or password".to_owned(),
            })),
        }),
        bearer.as_ref().map(|_| Ok(Source::Bearer)),
        body.as_deref()
            .map(|name| named("body", name, ParameterName::new, Source::Body, place)),
    ]
    .into_iter()
    .flatten();
    match (found.next(), found.next()) {
        (Some(source), None) => source,
        _ => Err(place.error(Problem::Source)),
    }
}

fn named<N>(
    field: &str,
    name: &str,
    parse: fn(&str) -> Result<N, SourceError>,
    source: fn(N) -> Source,
    place: &Place<'_>,
) -> Result<Source, ConfigurationError> {
    parse(name).map(source).map_err(|error| {
        place.field(field).error(Problem::SourceName {
            found: quoted(name),
            error,
        })
    })
}

/// The credential of requests that have none. It is as secret as a token.
fn anonymous(
    shape: &shape::Anonymous,
    kind: Kind,
    place: &Place<'_>,
    environment: Environment<'_>,
) -> Result<Credential<'static>, ConfigurationError> {
    let bytes = |shape, place: &Place<'_>| {
        secret(shape, place, environment, ANONYMOUS)
            .map(|secret| Cow::Owned(secret.expose().as_bytes().to_vec()))
    };
    let (name, value, other) = match kind {
        Kind::UserKey => ("user_key", &shape.user_key, &shape.app_id),
        Kind::AppId => ("app_id", &shape.app_id, &shape.user_key),
    };
    let Some(value) = value else {
        return Err(place.error(Problem::AnonymousKind(name)));
    };
    if other.is_some() || (kind == Kind::UserKey && shape.app_key.is_some()) {
        return Err(place.error(Problem::AnonymousKind(name)));
    }
    let field = place.field(name);
    let credential = Credential::new(kind, bytes(value, &field)?)
        .ok_or_else(|| field.error(Problem::AnonymousValue))?;
    match &shape.app_key {
        Some(app_key) => {
            let field = place.field("app_key");
            credential
                .with_app_key(bytes(app_key, &field)?)
                .filter(|credential| credential.app_key().is_some())
                .ok_or_else(|| field.error(Problem::AnonymousValue))
        }
        None => Ok(credential),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Configuration;
    use super::*;
    use crate::credentials::{Body, Found};
    use crate::request::{Headers, Request};
    use serde_json::{Value, json};
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    fn parse(credentials: &Value) -> Result<Credentials, String> {
        let configuration = json!({
            "service_management": { "cluster": "c", "authority": "a" },
            "services": [{
                "id": "1001",
                "token": "token",
                "hosts": ["*"],
                "credentials": credentials,
                "mapping_rules": [{ "pattern": "/", "usage": { "hits": 1 } }],
            }],
        });
        let environment = |name: &str| match name {
            "KEY" => Some("from the environment".to_owned()),
            "LINE" => Some("s3cr3t\n".to_owned()),
            "LONG" => Some("s3cr3t".repeat(50)),
            "WHITE" => Some(" ".to_owned()),
            _ => None,
        };
        Configuration::parse(configuration.to_string().as_bytes(), &environment)
            .map(|configuration| configuration.services[0].credentials.clone())
            .map_err(|error| error.to_string())
    }

    /// The error, without the place that all have in common.
    fn error(credentials: &Value) -> String {
        let error = parse(credentials).unwrap_err();
        assert!(!error.contains("s3cr3t"), "{error}");
        let (_, error) = error.split_once("services[0].credentials.").unwrap();
        error.to_owned()
    }

    fn found(credentials: &Credentials, target: &str, pairs: &[(&[u8], &[u8])]) -> Vec<String> {
        let request = Request {
            method: b"GET",
            authority: b"",
            target: target.as_bytes(),
            headers: Headers { pairs },
        };
        match credentials.find(&request, Body::None) {
            Found::Credential(found) => [Some(found.expose()), found.app_key(), found.referrer()]
                .map(|part| part.unwrap_or("-").to_owned())
                .to_vec(),
            other => vec![format!("{other:?}")],
        }
    }

    #[test]
    fn every_kind_of_place_can_be_named() {
        let user_key = json!([
            { "query": "a" }, { "header": "X-B" }, { "cookie": "C" }, { "basic": "username" },
            { "basic": "password" }, { "bearer": {} }, { "body": "d" },
        ]);
        let parameter = |name| ParameterName::new(name).unwrap();
        let credentials = parse(&json!({ "user_key": user_key })).unwrap();
        let expected = Sources::UserKey(vec![
            Source::Query(parameter("a")),
            Source::Header(HeaderName::new("x-b").unwrap()),
            Source::Cookie(CookieName::new("C").unwrap()),
            Source::Basic(BasicPart::Username),
            Source::Basic(BasicPart::Password),
            Source::Bearer,
            Source::Body(parameter("d")),
        ]);
        assert_eq!(*credentials.sources(), expected);
    }

    #[test]
    fn an_app_id_may_have_keys_or_none() {
        let id = json!([{ "query": "app_id" }]);
        let without = parse(&json!({ "app_id": id })).unwrap();
        let with = parse(&json!({ "app_id": id, "app_key": [{ "header": "k" }] })).unwrap();
        let pairs: &[(&[u8], &[u8])] = &[(b"k", b"2")];
        assert_eq!(found(&without, "/?app_id=1", pairs), ["1", "-", "-"]);
        assert_eq!(found(&with, "/?app_id=1", pairs), ["1", "2", "-"]);
        assert_eq!(with.kind(), Kind::AppId);
    }

    #[test]
    fn strip_referrer_and_anonymous_do_nothing_unless_they_are_asked_for() {
        let user_key = json!([{ "query": "k" }]);
        let pairs: &[(&[u8], &[u8])] = &[(b"referer", b"https://a.example/")];
        let request = Request {
            method: b"GET",
            authority: b"",
            target: b"/?k=1",
            headers: Headers { pairs },
        };
        let plain = parse(&json!({ "user_key": user_key })).unwrap();
        assert_eq!(found(&plain, "/?k=1", pairs), ["1", "-", "-"]);
        assert_eq!(found(&plain, "/", pairs), ["Missing"]);
        assert!(plain.strip(&request).is_none());

        let full = parse(&json!({
            "user_key": user_key, "strip": true, "referrer": true,
            "anonymous": { "user_key": { "env": "KEY" } },
        }))
        .unwrap();
        assert_eq!(
            found(&full, "/?k=1", pairs),
            ["1", "-", "https://a.example/"]
        );
        assert_eq!(found(&full, "/", &[]), ["from+the+environment", "-", "-"]);
        let stripped = full.strip(&request).unwrap();
        assert_eq!(stripped.target.as_deref(), Some(b"/".as_slice()));
        let shown = format!("{full:?}");
        assert!(!shown.contains("environment"), "{shown}");
    }

    #[test]
    fn an_anonymous_app_id_has_its_key() {
        let credentials = parse(&json!({
            "app_id": [{ "query": "i" }], "app_key": [{ "query": "k" }],
            "anonymous": { "app_id": "nobody", "app_key": { "env": "KEY" } },
        }))
        .unwrap();
        assert_eq!(
            found(&credentials, "/", &[]),
            ["nobody", "from the environment", "-"]
        );
    }

    #[test]
    fn a_place_for_credentials_that_is_none_is_refused() {
        let one = "must name exactly one place to look in, like { query: user_key }, { header: x-api-key } or { bearer: {} }";
        for (sources, message) in [
            (json!([]), "user_key: is empty: name at least one place to look in, like { query: user_key }".to_owned()),
            (json!([{}]), format!("user_key[0]: {one}")),
            (json!([{ "query": "a" }, { "query": "a", "header": "a" }]), format!("user_key[1]: {one}")),
            (json!([{ "bearer": {}, "basic": "username" }]), format!("user_key[0]: {one}")),
            (json!([{ "query": "" }]), "user_key[0].query: \"\": a name is needed, like user_key".to_owned()),
            (json!([{ "body": "" }]), "user_key[0].body: \"\": a name is needed, like user_key".to_owned()),
            (json!([{ "header": ":path" }]), "user_key[0].header: \":path\": a header name has letters, digits, and characters like \"-\" and \"_\", like x-api-key".to_owned()),
            (json!([{ "cookie": "a=b" }]), "user_key[0].cookie: \"a=b\": a cookie name has letters, digits, and characters like \"-\" and \"_\", like key".to_owned()),
            (json!([{ "basic": "both" }]), "user_key[0].basic: \"both\": must be username or password".to_owned()),
            (json!([{ "bearer": { "a": 1 } }]), "user_key[0].bearer.a: is unknown; the fields here are ".to_owned()),
            (json!([{ "header": "a" }, { "header": "A" }]), "user_key[1]: is named before; each place is searched once".to_owned()),
        ] {
            let found = error(&json!({ "user_key": sources }));
            assert!(found.starts_with(&message), "{found}\n{message}");
        }
    }

    #[test]
    fn a_service_has_one_kind_of_credentials() {
        let one = json!([{ "query": "a" }]);
        let other = json!([{ "query": "b" }]);
        let both = "cannot stand beside user_key: a service at service management knows its applications by user_key or by app_id, never by both";
        for (credentials, message) in [
            (json!({ "user_key": one, "app_id": other }), format!("app_id: {both}")),
            (json!({ "user_key": one, "app_key": other }), format!("app_key: {both}")),
            (json!({ "app_key": one }), "app_id: is missing: where the id is that the app_key belongs to, like [{ header: app_id }]".to_owned()),
            (json!({ "strip": true }), "user_key: is missing: where the key is, like [{ header: x-api-key }]; or app_id and app_key".to_owned()),
            (json!({ "app_id": [] }), "app_id: is empty: name at least one place to look in, like { query: user_key }".to_owned()),
            (json!({ "app_id": one, "app_key": [] }), "app_key: is empty: name at least one place to look in, like { header: app_key }, or leave app_key out".to_owned()),
            (json!({ "app_id": one, "app_key": one }), "app_key[0]: is named before; each place is searched once".to_owned()),
        ] {
            assert_eq!(error(&credentials), message);
        }
    }

    #[test]
    fn a_body_cannot_be_stripped() {
        let credentials =
            json!({ "user_key": [{ "header": "a" }, { "body": "b" }], "strip": true });
        assert_eq!(
            error(&credentials),
            "strip: cannot be true while a place is { body: .. }: Tollgate does not change bodies, so the upstream would still see the credential"
        );
    }

    #[test]
    fn an_anonymous_credential_must_be_one_of_this_service_and_is_never_shown() {
        let value = "is not a credential: it must have 1 to 256 bytes and no control characters; is there a line break at its end?";
        let kind = |kind| {
            format!(
                "anonymous: is no credential of this service: anonymous must have a {kind}, as that is where its consumers' credentials are looked for"
            )
        };
        for (service, anonymous, message) in [
            ("user_key", json!({}), kind("user_key")),
            ("user_key", json!({ "app_id": "s3cr3t" }), kind("user_key")),
            ("user_key", json!({ "user_key": "a", "app_key": "s3cr3t" }), kind("user_key")),
            ("app_id", json!({ "app_id": "a", "user_key": "s3cr3t" }), kind("app_id")),
            ("app_id", json!({ "app_key": "s3cr3t" }), kind("app_id")),
            ("user_key", json!({ "user_key": { "env": "LINE" } }), format!("anonymous.user_key: {value}")),
            ("user_key", json!({ "user_key": { "env": "LONG" } }), format!("anonymous.user_key: {value}")),
            ("app_id", json!({ "app_id": "a", "app_key": { "env": "WHITE" } }), format!("anonymous.app_key: {value}")),
            ("user_key", json!({ "user_key": "" }), "anonymous.user_key: is empty: it must be a credential, or { env: NAME } for one from the environment".to_owned()),
        ] {
            let credentials = json!({ service: [{ "query": "a" }], "anonymous": anonymous });
            assert_eq!(error(&credentials), message);
        }
        let unset = json!({ "user_key": [{ "query": "a" }], "anonymous": { "user_key": { "env": "NOT_SET" } } });
        assert!(error(&unset).starts_with("anonymous.user_key.env: the variable is not set"));
    }
}
