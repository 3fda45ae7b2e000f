//! What callers are told when the filter answers itself: status, content type, body and
//! further headers of each outcome.
//!
//! Apart from the services because a reply is built up in layers, field by field: what is
//! built in, what the configuration says for all services, what one service says.

use std::rc::Rc;

use super::error::{ConfigurationError, Place, Problem, quoted, shown};
use super::shape;

/// The most bytes of a body: it is sent to everybody who is refused.
const LONGEST_BODY: usize = 16_384;
/// The most bytes of a content type, and of the value of a header.
const LONGEST_VALUE: usize = 1_024;
/// The most headers of a reply.
const MOST_HEADERS: usize = 16;
/// The most bytes of a body that is also the message of a gRPC status: it becomes a header,
/// up to three times as long, and clients take 8 KiB of headers.
const LONGEST_MESSAGE: usize = 1_024;
/// Headers that a reply has of its own, or that are the connection's.
const RESERVED: [&str; 17] = [
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "grpc-message",
    "grpc-status",
    "host",
    "keep-alive",
    "ratelimit-limit",
    "ratelimit-remaining",
    "ratelimit-reset",
    "retry-after",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "www-authenticate",
];

/// Why a request is answered by the filter, as far as its caller is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Outcome {
    /// No credential in any of the places.
    NoCredential,
    /// The credential is not accepted, whatever the reason.
    Denied,
    /// No mapping rule matches.
    NoMappingRule,
    /// A limit is used up.
    Limited,
    /// The plan has a maximum of 0.
    Disabled,
    /// It cannot be known whether the caller may pass.
    Unavailable,
    /// The same, because this gateway is misconfigured.
    Misconfigured,
    /// The token is not valid.
    InvalidToken,
    /// The token does not allow this operation.
    InsufficientScope,
    /// The credential may be in a body that is too large to look into.
    LargeBody,
    /// The credential may be in a body that did not come in time.
    LateBody,
    /// No service has the host, the path or the route.
    NoService,
}

impl Outcome {
    /// Each with its name in the configuration and what is built in. The last two can be
    /// configured for all services only, for nobody has found out the service.
    const ALL: [(Self, &'static str, u16, &'static str); 12] = [
        (
            Self::NoCredential,
            "no_credential",
            401,
            "A credential is required.",
        ),
        (
            Self::Denied,
            "denied",
            403,
            "The credential is not accepted.",
        ),
        (
            Self::NoMappingRule,
            "no_mapping_rule",
            404,
            "This API has no such operation.",
        ),
        (
            Self::Limited,
            "limited",
            429,
            "A limit of the plan is used up.",
        ),
        (
            Self::Disabled,
            "disabled",
            403,
            "The plan does not include this operation.",
        ),
        (
            Self::Unavailable,
            "unavailable",
            503,
            "The request cannot be authorized right now.",
        ),
        (
            Self::Misconfigured,
            "misconfigured",
            503,
            "The request cannot be authorized right now.",
        ),
        (
            Self::InvalidToken,
            "invalid_token",
            401,
            "The token is not valid.",
        ),
        (
            Self::InsufficientScope,
            "insufficient_scope",
            403,
            "The token does not allow this operation.",
        ),
        (Self::LargeBody, "large_body", 413, "The form is too large."),
        (
            Self::LateBody,
            "late_body",
            408,
            "The form did not arrive in time.",
        ),
        (Self::NoService, "no_service", 404, "No API is served here."),
    ];
}

/// A header of a reply: its name in lower case, and its value.
pub type ReplyHeader = (Box<str>, Box<str>);

/// The reply to one outcome.
///
/// Invariants: the status is 400 to 599; nothing here can end a header and begin another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplyForm {
    /// The HTTP status.
    pub status: u16,
    /// The content type of the body.
    pub content_type: Box<str>,
    /// The body, at most 16 KiB.
    pub body: Box<str>,
    /// Further headers; none that the filter sets itself.
    pub headers: Box<[ReplyHeader]>,
    /// What a gRPC caller is told in words: the body if it is a short plain text, else
    /// what is built in.
    pub grpc_message: Box<str>,
}

/// The replies to all outcomes. What nobody changed is shared by all services.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replies([Rc<ReplyForm>; Outcome::ALL.len()]);

/// Why a header cannot be added to a reply; the texts say what could be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplyHeaderError {
    /// Not the name of a header.
    #[error("a header name has letters, digits, and characters like \"-\", like cache-control")]
    Name,
    /// A header that is not free.
    #[error(
        "the reply or the connection sets this header itself; the content type is content_type, beside headers"
    )]
    Reserved,
    /// Characters that would end the header, or that not everybody reads alike.
    #[error(
        "a header value has 1 to 1024 visible ASCII characters, with spaces between them only, like no-store"
    )]
    Value,
}

impl Default for Replies {
    fn default() -> Self {
        Self(Outcome::ALL.map(|(_, _, status, message)| {
            Rc::new(ReplyForm {
                status,
                content_type: "text/plain; charset=utf-8".into(),
                body: format!("{message}\n").into(),
                headers: Box::default(),
                grpc_message: message.into(),
            })
        }))
    }
}

impl Replies {
    /// The reply to this outcome.
    #[must_use]
    pub fn to(&self, outcome: Outcome) -> &ReplyForm {
        let [
            no_credential,
            denied,
            no_mapping_rule,
            limited,
            disabled,
            rest @ ..,
        ] = &self.0;
        let [
            unavailable,
            misconfigured,
            invalid_token,
            insufficient_scope,
            large_body,
            late_body,
            no_service,
        ] = rest;
        match outcome {
            Outcome::NoCredential => no_credential,
            Outcome::Denied => denied,
            Outcome::NoMappingRule => no_mapping_rule,
            Outcome::Limited => limited,
            Outcome::Disabled => disabled,
            Outcome::Unavailable => unavailable,
            Outcome::Misconfigured => misconfigured,
            Outcome::InvalidToken => invalid_token,
            Outcome::InsufficientScope => insufficient_scope,
            Outcome::LargeBody => large_body,
            Outcome::LateBody => late_body,
            Outcome::NoService => no_service,
        }
    }

    /// These replies with changes for all services.
    pub(super) fn changed(
        &self,
        shape: &shape::Replies,
        place: &Place<'_>,
    ) -> Result<Self, ConfigurationError> {
        self.changed_in(shape, place, &Outcome::ALL)
    }

    /// These replies with the changes of one service.
    pub(super) fn changed_by_service(
        &self,
        shape: &shape::Replies,
        place: &Place<'_>,
    ) -> Result<Self, ConfigurationError> {
        let [of_services @ .., _late_body, _no_service] = &Outcome::ALL;
        self.changed_in(shape, place, of_services)
    }

    fn changed_in(
        &self,
        shape: &shape::Replies,
        place: &Place<'_>,
        outcomes: &[(Outcome, &'static str, u16, &'static str)],
    ) -> Result<Self, ConfigurationError> {
        let mut changed = self.clone();
        for (name, shape) in &shape.0 {
            let place = place.field(name);
            let known = outcomes.iter().find(|(_, known, ..)| known == name);
            let Some((outcome, _, _, message)) = known else {
                let names: Vec<_> = outcomes.iter().map(|(_, name, ..)| *name).collect();
                return Err(place.error(Problem::UnknownField(names.join(", "))));
            };
            let form = self.to(*outcome).changed(&shape.0, message, &place)?;
            if let Some(slot) = changed.0.get_mut(*outcome as usize) {
                *slot = Rc::new(form);
            }
        }
        Ok(changed)
    }
}

impl ReplyForm {
    fn changed(
        &self,
        shape: &shape::Reply,
        message: &str,
        place: &Place<'_>,
    ) -> Result<Self, ConfigurationError> {
        let mut form = self.clone();
        if let Some(value) = &shape.status {
            form.status = value
                .as_u64()
                .and_then(|status| u16::try_from(status).ok())
                .filter(|status| (400..=599).contains(status))
                .ok_or_else(|| {
                    let found = shown(value);
                    place.field("status").error(Problem::ReplyStatus(found))
                })?;
        }
        if let Some(content_type) = &shape.content_type {
            if !is_content_type(content_type) {
                let problem = Problem::ContentType(quoted(content_type));
                return Err(place.field("content_type").error(problem));
            }
            form.content_type = content_type.as_str().into();
        }
        if let Some(body) = &shape.body {
            if body.len() > LONGEST_BODY {
                return Err(place.field("body").error(Problem::LongText {
                    bytes: body.len(),
                    most: LONGEST_BODY,
                }));
            }
            form.body = body.as_str().into();
        }
        if let Some(headers) = &shape.headers {
            form.headers = checked_headers(headers, &place.field("headers"))?.into();
        }
        let plain = form.content_type.starts_with("text/plain");
        let text = form.body.trim();
        form.grpc_message = if plain && (1..=LONGEST_MESSAGE).contains(&text.len()) {
            text.into()
        } else {
            message.into()
        };
        Ok(form)
    }
}

fn checked_headers(
    headers: &shape::Pairs<String>,
    place: &Place<'_>,
) -> Result<Vec<ReplyHeader>, ConfigurationError> {
    if headers.0.len() > MOST_HEADERS {
        return Err(place.error(Problem::ManyHeaders(MOST_HEADERS)));
    }
    let mut checked: Vec<ReplyHeader> = Vec::with_capacity(headers.0.len());
    for (name, value) in &headers.0 {
        let place = place.field(name);
        let error = |found: &str, error| {
            place.error(Problem::ReplyHeader {
                found: quoted(found),
                error,
            })
        };
        let lower = name.to_ascii_lowercase();
        if lower.is_empty() || lower.len() > LONGEST_VALUE || !lower.bytes().all(is_token) {
            return Err(error(name, ReplyHeaderError::Name));
        }
        if RESERVED.contains(&lower.as_str()) {
            return Err(error(name, ReplyHeaderError::Reserved));
        }
        if !is_value(value) {
            return Err(error(value, ReplyHeaderError::Value));
        }
        if checked.iter().any(|(earlier, _)| **earlier == *lower) {
            return Err(place.error(Problem::RepeatedField));
        }
        checked.push((lower.into(), value.as_str().into()));
    }
    Ok(checked)
}

/// Whether a text is a media type, perhaps with parameters (RFC 9110, 8.3.1). The
/// parameters are not looked at beyond their characters.
fn is_content_type(text: &str) -> bool {
    let media_type = text.split(';').next().unwrap_or_default().trim_end();
    let Some((main, sub)) = media_type.split_once('/') else {
        return false;
    };
    let token = |text: &str| !text.is_empty() && text.bytes().all(is_token);
    token(main) && token(sub) && is_value(text)
}

/// Whether a text can be the value of a header as it is (RFC 9110, 5.5, without what is obsolete
/// there).
fn is_value(text: &str) -> bool {
    (1..=LONGEST_VALUE).contains(&text.len())
        && text.trim() == text
        && text.bytes().all(|byte| (b' '..=b'~').contains(&byte))
}

/// Whether a byte may stand in a name or a media type (RFC 9110, 5.6.2).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    #[test]
    fn every_outcome_stands_at_its_own_number() {
        let replies = Replies::default();
        for (index, (outcome, name, status, message)) in Outcome::ALL.iter().enumerate() {
            assert_eq!(*outcome as usize, index, "{name}");
            let form = replies.to(*outcome);
            assert_eq!(form.status, *status, "{name}");
            assert_eq!(*form.body, format!("{message}\n"), "{name}");
            assert!(std::ptr::eq(form, &*replies.0[index]), "{name}");
        }
    }

    #[test]
    fn a_content_type_is_a_media_type() {
        for good in [
            "text/plain",
            "application/problem+json",
            "text/html; charset=utf-8",
            "text/html;charset=\"utf-8\"",
        ] {
            assert!(is_content_type(good), "{good}");
        }
        for bad in [
            "",
            "json",
            "text/",
            "/plain",
            "a b/c",
            "text/plain\r\nx: y",
            "text/plain ",
            "text/plän",
        ] {
            assert!(!is_content_type(bad), "{bad:?}");
        }
    }
}
