//! Where an issuer's keys are: OpenID Connect Discovery 1.0 and RFC 8414 (the same document).
//!
//! Apart from the keyring because this is about what is asked and believed: an issuer's document
//! may only speak of itself, and name keys on its own host.

use std::hash::Hasher;
use std::time::Duration;

use serde_json::Value;
use siphasher::sip::SipHasher13;
use thiserror::Error;

use super::json;

/// The most bytes of a URL.
const LONGEST_URL: usize = 2_048;
/// The most bytes of a discovery document.
const LONGEST_DOCUMENT: usize = 131_072;
/// Where the document stands (OpenID Connect Discovery 1.0, 4).
const WELL_KNOWN: &str = "/.well-known/openid-configuration";

/// How the keys of an issuer are fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Discovery {
    /// The Envoy cluster of the issuer; not empty.
    pub cluster: String,
    /// What is asked first.
    pub start: Start,
    /// How long one call may take.
    pub timeout: Duration,
    /// How old keys become before they are fetched again.
    pub refresh: Duration,
    /// At least so long lies between two fetches for keys that nobody knows.
    pub interval: Duration,
    /// How long keys are good for that cannot be fetched again.
    pub kept: Duration,
}

/// What is asked first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// The issuer's document, which says where its keys are.
    Document(Url),
    /// The keys: the operator says where they are.
    Keys(Url),
}

/// A URL, as a call needs it.
///
/// Invariant: visible ASCII, `http` or `https`, a host, no user, no fragment; the path begins with
/// a slash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    /// Whether it is `https`. How calls are really made is the cluster's.
    pub secure: bool,
    /// Host, perhaps with a port, in lower case.
    pub authority: String,
    /// Path and query.
    pub path: String,
}

/// Why a text is no URL that can be called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("must be a URL like https://id.example.com/keys, without a user and a fragment")]
pub struct UrlError;

/// Why a discovery document is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DiscoveryError {
    /// Not JSON, or too long.
    #[error("its discovery document is no JSON object")]
    Shape,
    /// `issuer` is not the issuer (OpenID Connect Discovery 1.0, 4.3).
    #[error("its discovery document is about another issuer")]
    Issuer,
    /// `jwks_uri` is no URL.
    #[error("its discovery document names no jwks_uri")]
    NoKeys,
    /// `jwks_uri` is elsewhere.
    #[error("its jwks_uri is on another host: name it in discovery.jwks_uri if that is right")]
    Elsewhere,
}

impl Url {
    /// Reads a URL.
    ///
    /// # Errors
    /// That it is none, or none of these.
    pub fn parse(text: &str) -> Result<Self, UrlError> {
        let (secure, rest) = match (text.strip_prefix("https://"), text.strip_prefix("http://")) {
            (Some(rest), _) => (true, rest),
            (None, Some(rest)) => (false, rest),
            (None, None) => return Err(UrlError),
        };
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at_checked(end).ok_or(UrlError)?;
        let host = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte);
        let visible = text
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && byte != b'#');
        if text.len() > LONGEST_URL
            || !visible
            || authority.is_empty()
            || authority.starts_with(':')
            || !authority.bytes().all(host)
        {
            return Err(UrlError);
        }
        let slash = if path.starts_with('/') { "" } else { "/" };
        Ok(Self {
            secure,
            authority: authority.to_ascii_lowercase(),
            path: format!("{slash}{path}"),
        })
    }

    /// Where the document of an issuer is.
    ///
    /// # Errors
    /// That the issuer is no URL, or has a query.
    pub fn of_document(issuer: &str) -> Result<Self, UrlError> {
        let url = Self::parse(issuer)?;
        if url.path.contains('?') {
            return Err(UrlError);
        }
        let path = url.path.strip_suffix('/').unwrap_or(&url.path);
        Ok(Self {
            path: format!("{path}{WELL_KNOWN}"),
            ..url
        })
    }
}

impl Discovery {
    /// Where the keys are, by the document that was asked for.
    ///
    /// # Errors
    /// Why it is not believed.
    pub fn keys_by(&self, issuer: &str, document: &[u8]) -> Result<Url, DiscoveryError> {
        if document.len() > LONGEST_DOCUMENT {
            return Err(DiscoveryError::Shape);
        }
        let document = json::object(document).ok_or(DiscoveryError::Shape)?;
        if document.get("issuer").and_then(Value::as_str) != Some(issuer) {
            return Err(DiscoveryError::Issuer);
        }
        let keys = document.get("jwks_uri").and_then(Value::as_str);
        let keys = keys.and_then(|keys| Url::parse(keys).ok());
        let keys = keys.ok_or(DiscoveryError::NoKeys)?;
        let (Start::Document(own) | Start::Keys(own)) = &self.start;
        // The port belongs to the host. That a secure issuer has its keys in the open is refused, too.
        if keys.authority != own.authority || (own.secure && !keys.secure) {
            return Err(DiscoveryError::Elsewhere);
        }
        Ok(keys)
    }

    /// A number that stands for this source of an issuer's keys in shared data. It comes from the
    /// operator, so nobody chooses it to collide.
    #[must_use]
    pub fn number(&self, issuer: &str) -> u64 {
        let (Start::Document(url) | Start::Keys(url)) = &self.start;
        let mut hasher = SipHasher13::new();
        for part in [issuer, &self.cluster, &url.authority, &url.path] {
            hasher.write(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_le_bytes());
            hasher.write(part.as_bytes());
        }
        hasher.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    fn parsed(text: &str) -> Option<String> {
        let url = Url::parse(text).ok()?;
        Some(format!("{} {} {}", url.secure, url.authority, url.path))
    }

    #[test]
    fn a_url_has_a_host_and_a_path() {
        assert_eq!(
            parsed("https://ID.example.com:8443/a?b=c"),
            Some("true id.example.com:8443 /a?b=c".to_owned())
        );
        assert_eq!(
            parsed("http://[::1]:80"),
            Some("false [::1]:80 /".to_owned())
        );
        assert_eq!(parsed("https://a?x"), Some("true a /?x".to_owned()));
        for bad in [
            "",
            "id.example.com",
            "ftp://a/",
            "https://",
            "https:///x",
            "https://u@a/",
            "https://a/#x",
            "https://a b/",
            "https://a/\n",
            "HTTPS://a/",
            "https://:80/",
            "https://\u{fc}/",
        ] {
            assert_eq!(parsed(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn the_document_stands_below_the_issuer() {
        let path = |issuer| Url::of_document(issuer).map(|url| url.path);
        assert_eq!(
            path("https://a"),
            Ok("/.well-known/openid-configuration".to_owned())
        );
        assert_eq!(
            path("https://a/"),
            Ok("/.well-known/openid-configuration".to_owned())
        );
        assert_eq!(
            path("https://a/realms/x"),
            Ok("/realms/x/.well-known/openid-configuration".to_owned())
        );
        assert_eq!(path("https://a/?tenant=x"), Err(UrlError));
    }

    fn keys(document: &str) -> Result<String, DiscoveryError> {
        let issuer = "https://id.example.com/x";
        let discovery = Discovery {
            cluster: "id".to_owned(),
            start: Start::Document(Url::of_document(issuer).unwrap()),
            timeout: Duration::from_secs(1),
            refresh: Duration::from_secs(1),
            interval: Duration::from_secs(1),
            kept: Duration::from_secs(1),
        };
        discovery
            .keys_by(issuer, document.as_bytes())
            .map(|url| url.path)
    }

    #[test]
    fn a_document_is_believed_about_its_own_issuer_and_host_only() {
        let of = |issuer: &str, keys_at: &str| {
            keys(&format!(
                r#"{{"issuer":"{issuer}","jwks_uri":"{keys_at}","x":[]}}"#
            ))
        };
        let issuer = "https://id.example.com/x";
        assert_eq!(
            of(issuer, "https://id.example.com/jwks"),
            Ok("/jwks".to_owned())
        );
        assert_eq!(
            of("https://id.example.com/x/", "https://id.example.com/jwks"),
            Err(DiscoveryError::Issuer)
        );
        for elsewhere in [
            "https://evil.example.com/jwks",
            "https://id.example.com:444/jwks",
            "http://id.example.com/jwks",
        ] {
            assert_eq!(
                of(issuer, elsewhere),
                Err(DiscoveryError::Elsewhere),
                "{elsewhere}"
            );
        }
        assert_eq!(of(issuer, "/jwks"), Err(DiscoveryError::NoKeys));
        assert_eq!(
            keys(r#"{"issuer":"https://id.example.com/x"}"#),
            Err(DiscoveryError::NoKeys)
        );
        assert_eq!(keys("<html>"), Err(DiscoveryError::Shape));
        assert_eq!(
            keys(r#"{"issuer":"https://id.example.com/x","issuer":"y"}"#),
            Err(DiscoveryError::Shape)
        );
    }
}
