//! Credentials, wherever a request may have them.
//!
//! An input is a request as text: the target, a line for each header, an empty line, the body.

use std::borrow::Cow;

use tollgate::credentials::{
    BasicPart, Body, CookieName, Credentials, Found, HeaderName, Identities, MAXIMUM_BYTES,
    ParameterName, Scope, Source, Sources,
};
use tollgate::request::{Headers, Request};

use crate::cut;

/// What is found is fit to be sent on, `Debug` does not show it, and what was stripped holds
/// nothing any more.
///
/// # Panics
/// If that is not so.
pub fn credentials(data: &[u8]) {
    let (target, mut rest) = cut(data, b'\n');
    let mut pairs: Vec<(Vec<u8>, &[u8])> = Vec::new();
    loop {
        let (line, after) = cut(rest, b'\n');
        rest = after;
        if line.is_empty() {
            break;
        }
        let (name, value) = cut(line, b':');
        pairs.push((name.to_ascii_lowercase(), value.trim_ascii()));
    }
    let pairs: Vec<(&[u8], &[u8])> = pairs
        .iter()
        .map(|(name, value)| (&**name, *value))
        .collect();
    let request = Request {
        method: b"GET",
        authority: b"",
        target,
        headers: Headers { pairs: &pairs },
    };
    assert!(!format!("{request:?}").contains("authorization"));
    for kind in kinds() {
        for body in [Body::None, Body::Ahead, Body::Whole(rest)] {
            check(&kind.find(&request, body));
        }
        let Ok(stripping) = kind.stripped() else {
            continue;
        };
        let stripped = stripping.strip(&request).expect("it strips");
        let gone = |name: &[u8]| stripped.headers.iter().any(|gone| gone.name == name);
        let mut left: Vec<(&[u8], &[u8])> = pairs
            .iter()
            .copied()
            .filter(|(name, _)| !gone(name))
            .collect();
        for header in &stripped.headers {
            left.extend(
                header
                    .values
                    .iter()
                    .map(|value| (header.name, Cow::as_ref(value))),
            );
        }
        let request = Request {
            target: stripped.target.as_deref().unwrap_or(target),
            headers: Headers { pairs: &left },
            ..request
        };
        assert_eq!(stripping.find(&request, Body::None), Found::Missing);
    }
}

fn check(found: &Found<'_>) {
    let Found::Credential(credential) = found else {
        return;
    };
    let shown = format!("{found:?}");
    let parts = [
        Some(credential.expose()),
        credential.app_key(),
        credential.referrer(),
    ];
    for part in parts.into_iter().flatten() {
        assert!((1..=MAXIMUM_BYTES).contains(&part.len()));
        assert!(!part.chars().any(char::is_control));
        // Short ones may stand in a type's name.
        assert!(part.len() < 24 || !shown.contains(part), "{shown}");
    }
    let scope = Scope {
        cluster: "a".to_owned(),
        authority: "b".to_owned(),
        service: "c".to_owned(),
    };
    let identities = Identities::new(&[7; 16], &scope);
    assert_eq!(identities.digest(credential), identities.digest(credential));
}

/// Both kinds, from every place.
fn kinds() -> [Credentials; 3] {
    let query = |name| Source::Query(ParameterName::new(name).expect("a name"));
    let header = |name| Source::Header(HeaderName::new(name).expect("a name"));
    let cookie = |name| Source::Cookie(CookieName::new(name).expect("a name"));
    let body = |name| Source::Body(ParameterName::new(name).expect("a name"));
    let app = Sources::AppId {
        app_id: vec![
            query("app_id"),
            header("app-id"),
            cookie("app_id"),
            Source::Basic(BasicPart::Username),
        ],
        app_key: vec![
            query("app key"),
            header("app-key"),
            cookie("app_key"),
            Source::Basic(BasicPart::Password),
            Source::Bearer,
        ],
    };
    [
        Credentials::new(app).map(Credentials::with_referrer),
        Credentials::user_key(vec![
            Source::Bearer,
            header("x-api-key"),
            query("user_key"),
            cookie("user_key"),
            Source::Basic(BasicPart::Username),
        ]),
        Credentials::user_key(vec![body("user_key"), query("user_key")]),
    ]
    .map(|credentials| credentials.expect("sources"))
}
