//! A request and a response without a connection, and the headers the backend
//! puts on each kind of response.

use crate::error::ApiError;
use quick_xml::escape::partial_escape;

/// A request, as far as it matters to the backend.
#[derive(Clone, Copy, Debug, Default)]
pub struct Request<'a> {
    /// The method, in capitals.
    pub method: &'a str,
    /// The path, as sent.
    pub path: &'a str,
    /// What follows the `?`, as sent.
    pub query: &'a [u8],
    /// The `content-type` header.
    pub content_type: Option<&'a str>,
    /// The `3scale-options` header.
    pub options: Option<&'a [u8]>,
    /// The body.
    pub body: &'a [u8],
}

/// A response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// The HTTP status.
    pub status: u16,
    /// The headers, names in lower case, in the order the backend sends them.
    pub headers: Vec<(&'static str, String)>,
    /// The body.
    pub body: Vec<u8>,
    /// The error code or the rejection reason, sent or not.
    pub code: Option<&'static str>,
}

pub(crate) const XML: &str = "application/vnd.3scale-v2.0+xml";
pub(crate) const XML_HEAD: &str = r#"<?xml version="1.0" encoding="UTF-8"?>"#;
const ALLOWED_HEADERS: &str = "Authorization, Accept-Encoding, Content-Type, Cache-Control, \
    Accept, If-Match, If-Modified-Since, If-None-Match, If-Unmodified-Since, \
    X-Requested-With, X-HTTP-Method-Override, 3scale-options";

type Headers = Vec<(&'static str, String)>;

fn cross_origin() -> Headers {
    vec![
        ("access-control-allow-origin", "*".to_owned()),
        (
            "access-control-expose-headers",
            "ETag, Link, 3scale-rejection-reason".to_owned(),
        ),
    ]
}

fn content_security() -> (&'static str, String) {
    ("content-security-policy", "default-src 'self'".to_owned())
}

fn nosniff() -> (&'static str, String) {
    ("x-content-type-options", "nosniff".to_owned())
}

fn length(body: &[u8]) -> (&'static str, String) {
    ("content-length", body.len().to_string())
}

impl Response {
    /// The value of a header.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        headers
            .find(|(other, _)| *other == name)
            .map(|(_, value)| value.as_str())
    }

    /// What a handler of the backend answers, with headers of its own.
    pub(crate) fn answer(status: u16, content_type: &str, extra: Headers, body: Vec<u8>) -> Self {
        let mut headers = vec![("content-type", content_type.to_owned())];
        headers.extend(cross_origin());
        headers.push(content_security());
        headers.extend(extra);
        headers.push(nosniff());
        headers.push(length(&body));
        Self {
            status,
            headers,
            body,
            code: None,
        }
    }

    /// An `<error>`; its body can be asked away.
    pub(crate) fn error(error: &ApiError, with_body: bool) -> Self {
        let body = if with_body {
            let message = error.to_string();
            let code = error.code();
            let message = partial_escape(message.as_str());
            format!("{XML_HEAD}<error code=\"{code}\">{message}</error>").into_bytes()
        } else {
            Vec::new()
        };
        let mut headers = vec![("content-type", XML.to_owned())];
        headers.extend(cross_origin());
        headers.push(nosniff());
        headers.push(length(&body));
        Self {
            status: error.status(),
            headers,
            body,
            code: Some(error.code()),
        }
    }

    /// What the web framework itself says of a malformed request.
    pub(crate) fn malformed(message: &str) -> Self {
        let body = message.as_bytes().to_vec();
        Self {
            status: 400,
            headers: vec![
                ("content-type", "text/html;charset=utf-8".to_owned()),
                nosniff(),
                length(&body),
            ],
            body,
            code: None,
        }
    }

    /// A path without a handler.
    pub(crate) fn not_found() -> Self {
        let cascade = vec![("x-cascade", "pass".to_owned())];
        Self::answer(404, XML, cascade, Vec::new())
    }

    /// The answer to a CORS preflight.
    pub(crate) fn preflight() -> Self {
        let mut headers = cross_origin();
        headers.push(content_security());
        headers.push(("access-control-max-age", "86400".to_owned()));
        let methods = "GET, POST, PATCH, PUT, DELETE";
        headers.push(("access-control-allow-methods", methods.to_owned()));
        headers.push(("access-control-allow-headers", ALLOWED_HEADERS.to_owned()));
        headers.push(nosniff());
        Self {
            status: 204,
            headers,
            body: Vec::new(),
            code: None,
        }
    }

    /// A failure outside the handlers: nothing but a length.
    pub(crate) fn bare(status: u16, body: &[u8]) -> Self {
        Self {
            status,
            headers: vec![length(body)],
            body: body.to_vec(),
            code: None,
        }
    }

    /// An exception that nobody caught.
    pub(crate) fn internal_error() -> Self {
        Self::bare(500, b"Internal Server Error\n")
    }

    /// What a fault of this status looks like.
    pub(crate) fn fault(status: u16) -> Self {
        if status == 500 {
            Self::internal_error()
        } else {
            Self::bare(status, b"")
        }
    }
}
