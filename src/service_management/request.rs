//! The question about one application: who asks, about whom, and the target to ask at.
//!
//! Apart from the answers: this is the half where bytes from consumers go out, and its
//! one duty is that they stay values. A key with `&usage[hits]=1` in it must not become a
//! parameter, so everything but RFC 3986 unreserved characters is percent-encoded.

use std::fmt;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};

/// The request header that asks for protocol extensions (protocol section 9).
/// Its value is [`Identification::options`].
pub const OPTIONS_HEADER: &str = "3scale-options";

/// Everything but `A-Z a-z 0-9 - . _ ~` (RFC 3986, section 2.3).
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// The provider side of every call: for which service, and the right to ask.
///
/// The backend takes the pair as one: a token is valid for named services only. It is
/// always sent with the id: a provider key alone would ask about the provider's default
/// service (protocol section 2).
#[derive(Clone, Copy)]
pub struct ServiceAccess<'a> {
    /// The service's id.
    pub id: &'a str,
    /// What gives the right to ask: a secret.
    pub right: Right<'a>,
}

/// What gives the right to ask about a service. Never both: the provider key would win.
#[derive(Clone, Copy)]
pub enum Right<'a> {
    /// A token for this service and perhaps some others.
    ServiceToken(&'a str),
    /// The key of the provider, for all of its services.
    ProviderKey(&'a str),
}

impl fmt::Debug for ServiceAccess<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("ServiceAccess")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// How the applications of a service are known. A service of the backend has exactly
/// one way (its `backend_version`); the other way's parameters are ignored there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Identification {
    /// By `user_key` (`backend_version` 1).
    UserKey,
    /// By `app_id`, with an `app_key` if the application has keys (`backend_version` 2,
    /// and `oauth` for OpenID Connect, where the client id is sent as `app_id`).
    AppId,
}

impl Identification {
    /// The value of [`OPTIONS_HEADER`] for a question about such an application: always
    /// the reason of a 409 and the hierarchy of limited metrics, and where applications
    /// have keys, the keys. An option is enabled by the literal `1` only.
    #[must_use]
    pub const fn options(self) -> &'static str {
        match self {
            Self::UserKey => "rejection_reason_header=1&hierarchy=1",
            Self::AppId => "rejection_reason_header=1&hierarchy=1&list_app_keys=1",
        }
    }
}

/// Who is asked about or reported for, in the bytes that the consumer sent.
///
/// The credential is a secret: `Debug` shows the kind only.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Application<'a> {
    /// Known by this `user_key`.
    UserKey(&'a [u8]),
    /// Known by an `app_id`.
    AppId {
        /// The id: public.
        id: &'a [u8],
        /// The key that the consumer showed, if any. Reports leave it out: the backend
        /// checks no key there.
        key: Option<&'a [u8]>,
    },
}

impl Application<'_> {
    /// Which of the two ways this is.
    #[must_use]
    pub const fn identification(&self) -> Identification {
        match self {
            Self::UserKey(_) => Identification::UserKey,
            Self::AppId { .. } => Identification::AppId,
        }
    }
}

impl fmt::Debug for Application<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UserKey(_) => formatter.write_str("UserKey(..)"),
            Self::AppId { .. } => formatter.write_str("AppId(..)"),
        }
    }
}

/// Where a question is put (protocol section 1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Endpoint {
    /// `authorize.xml`, for services of every `backend_version`.
    #[default]
    Authorize,
    /// `oauth_authorize.xml`, for services whose `backend_version` is `oauth`: an `app_key` is
    /// checked if one is shown, and needed by nobody.
    OauthAuthorize,
}

impl Endpoint {
    const fn path(self) -> &'static str {
        match self {
            Self::Authorize => "/transactions/authorize.xml?",
            Self::OauthAuthorize => "/transactions/oauth_authorize.xml?",
        }
    }
}

/// The referrer that every application's filters let pass (capture `b12`). With it, an
/// answer is about the application and not about somebody who refers to it.
pub const ANY_REFERRER: &str = "*";

/// The path and query of the question "what may this application do?", for a `GET`, when it
/// is used from this referrer, if the service looks at referrers.
///
/// Names no usage: the answer is about the application, and limits are computed by the
/// asker. So the backend checks every limit of the plan with what is already counted.
///
/// The listener answers a query over 10,240 bytes with a bare 400 (protocol section 12), and
/// every byte of a credential can take three here: bound credentials to a few hundred bytes.
#[must_use]
pub fn authorize_target(
    service: &ServiceAccess<'_>,
    endpoint: Endpoint,
    application: &Application<'_>,
    referrer: Option<&[u8]>,
) -> String {
    let mut target = String::from(endpoint.path());
    push_access(&mut target, service);
    match application {
        Application::UserKey(key) => push_parameter(&mut target, "&user_key=", key),
        Application::AppId { id, key } => {
            push_parameter(&mut target, "&app_id=", id);
            if let Some(key) = key {
                push_parameter(&mut target, "&app_key=", key);
            }
        }
    }
    if let Some(referrer) = referrer {
        push_parameter(&mut target, "&referrer=", referrer);
    }
    target
}

/// Appends the two parameters that every call begins with.
pub(super) fn push_access(text: &mut String, service: &ServiceAccess<'_>) {
    match service.right {
        Right::ServiceToken(token) => push_parameter(text, "service_token=", token.as_bytes()),
        Right::ProviderKey(key) => push_parameter(text, "provider_key=", key.as_bytes()),
    }
    push_parameter(text, "&service_id=", service.id.as_bytes());
}

/// Appends a name, written as it goes out, and a value, encoded.
pub(super) fn push_parameter(text: &mut String, name: &str, value: &[u8]) {
    text.push_str(name);
    push_encoded(text, value);
}

/// Appends bytes as unreserved characters and percent-encodings.
pub(super) fn push_encoded(text: &mut String, bytes: &[u8]) {
    text.extend(percent_encode(bytes, RESERVED));
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    const SERVICE: ServiceAccess<'_> = ServiceAccess {
        id: "1001",
        right: Right::ServiceToken("s3cret&x=1"),
    };

    fn target(application: &Application<'_>) -> String {
        authorize_target(&SERVICE, Endpoint::Authorize, application, None)
    }

    #[test]
    fn a_key_cannot_become_a_parameter() {
        assert_eq!(
            target(&Application::UserKey(b"k&usage[hits]=9#")),
            "/transactions/authorize.xml?service_token=s3cret%26x%3D1&service_id=1001\
             &user_key=k%26usage%5Bhits%5D%3D9%23"
        );
    }

    #[test]
    fn an_application_without_a_key_sends_none() {
        let with = |key| target(&Application::AppId { id: b"a b", key });
        assert!(with(None).ends_with("&app_id=a%20b"));
        assert!(with(Some(b"\xff+".as_slice())).ends_with("&app_id=a%20b&app_key=%FF%2B"));
    }

    #[test]
    fn a_provider_key_takes_the_place_of_the_token() {
        let service = ServiceAccess {
            id: "7",
            right: Right::ProviderKey("p&k"),
        };
        let target = authorize_target(
            &service,
            Endpoint::OauthAuthorize,
            &Application::AppId {
                id: b"a",
                key: None,
            },
            None,
        );
        assert_eq!(
            target,
            "/transactions/oauth_authorize.xml?provider_key=p%26k&service_id=7&app_id=a"
        );
        assert!(!format!("{service:?}").contains("p&k"));
    }

    #[test]
    fn a_referrer_cannot_become_a_parameter() {
        let target = authorize_target(
            &SERVICE,
            Endpoint::Authorize,
            &Application::UserKey(b"k"),
            Some(b"a&user_key=b"),
        );
        assert!(target.ends_with("&user_key=k&referrer=a%26user_key%3Db"));
    }

    #[test]
    fn keys_are_listed_only_where_applications_have_them() {
        assert!(!Identification::UserKey.options().contains("list_app_keys"));
        assert!(Identification::AppId.options().contains("list_app_keys=1"));
    }

    #[test]
    fn debug_output_shows_no_secret() {
        let application = Application::AppId {
            id: b"hidden",
            key: Some(b"hidden"),
        };
        let shown = format!(
            "{SERVICE:?} {application:?} {:?}",
            Application::UserKey(b"hidden")
        );
        assert!(shown.contains("1001"));
        assert!(!shown.contains("s3cret") && !shown.contains("hidden"));
        assert!(!shown.contains("104, 105"));
    }
}
