//! The compact serialization of a signed token (RFC 7515, 7.1): three parts and a header.
//!
//! Apart from what the payload says because this is the part that is read of bytes which
//! nobody has vouched for yet: it is bounded before any work, and says nothing but which
//! key is to be asked.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;

use super::algorithm::Algorithm;
use super::{Flaw, json};

/// The longest token, in bytes. Envoy takes 60 KiB of headers by default; tokens with many
/// roles have some thousand bytes.
pub const LONGEST_TOKEN: usize = 16_384;
/// The longest header, encoded.
const LONGEST_HEADER: usize = 4_096;
/// The longest `kid`.
pub(super) const LONGEST_KEY_ID: usize = 512;

/// A token taken apart. Nothing of it is true before its signature is verified.
///
/// Invariant: the header names an algorithm of the list and no critical extension.
pub struct Compact<'a> {
    /// How it says that it is signed.
    pub algorithm: Algorithm,
    /// The key that it says it is signed with.
    pub key_id: Option<String>,
    /// What is signed: header and payload as they were sent.
    pub signed: &'a [u8],
    /// The payload, decoded.
    pub payload: Vec<u8>,
    /// The signature, decoded.
    pub signature: Vec<u8>,
}

impl<'a> Compact<'a> {
    /// Takes a token apart. Its base64 is that of RFC 7515, 2 and nothing else: the URL's
    /// alphabet, no padding, no bits that say nothing.
    ///
    /// # Errors
    /// [`Flaw::Malformed`], [`Flaw::Algorithm`] or [`Flaw::Critical`].
    pub fn parse(token: &'a [u8]) -> Result<Self, Flaw> {
        if token.len() > LONGEST_TOKEN {
            return Err(Flaw::Malformed);
        }
        let mut dots = token.iter().enumerate().filter(|(_, byte)| **byte == b'.');
        let (Some((first, _)), Some((second, _)), None) = (dots.next(), dots.next(), dots.next())
        else {
            return Err(Flaw::Malformed);
        };
        let mut parts = token.split(|byte| *byte == b'.');
        let mut part = || parts.next().unwrap_or_default();
        let (header, payload, signature) = (part(), part(), part());
        if first > LONGEST_HEADER {
            return Err(Flaw::Malformed);
        }
        let decode = |part: &[u8]| URL_SAFE_NO_PAD.decode(part).map_err(|_| Flaw::Malformed);
        let header = json::object(&decode(header)?).ok_or(Flaw::Malformed)?;
        // RFC 7515, 4.1.11: what is critical and not understood makes a token invalid, and
        // nothing is understood here. An empty list is not allowed either.
        if header.contains_key("crit") {
            return Err(Flaw::Critical);
        }
        let algorithm = match header.get("alg") {
            Some(Value::String(name)) => Algorithm::named(name).ok_or(Flaw::Algorithm)?,
            _ => return Err(Flaw::Malformed),
        };
        let key_id = match header.get("kid") {
            None => None,
            Some(Value::String(id)) if id.len() <= LONGEST_KEY_ID => Some(id.clone()),
            Some(_) => return Err(Flaw::Malformed),
        };
        Ok(Self {
            algorithm,
            key_id,
            signed: token.get(..second).unwrap_or_default(),
            payload: decode(payload)?,
            signature: decode(signature)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    fn parsed(header: &str) -> Result<(Algorithm, Option<String>), Flaw> {
        let token = format!("{}.e30.AA", URL_SAFE_NO_PAD.encode(header));
        Compact::parse(token.as_bytes()).map(|compact| (compact.algorithm, compact.key_id))
    }

    #[test]
    fn a_header_names_an_algorithm_and_perhaps_a_key() {
        assert_eq!(parsed(r#"{"alg":"ES256"}"#), Ok((Algorithm::Es256, None)));
        assert_eq!(
            parsed(
                r#"{"typ":"at+jwt","kid":"1","alg":"EdDSA","jwk":{"kty":"RSA"},"jku":"https://x"}"#
            ),
            Ok((Algorithm::EdDsa, Some("1".to_owned())))
        );
    }

    #[test]
    fn none_and_symmetric_algorithms_are_refused_as_such() {
        for name in ["none", "NonE", "HS256", "HS512", "ES512", ""] {
            let header = format!(r#"{{"alg":"{name}"}}"#);
            assert_eq!(parsed(&header), Err(Flaw::Algorithm), "{name}");
        }
    }

    #[test]
    fn a_critical_extension_is_refused_whatever_it_is() {
        for critical in [r#"["b64"]"#, "[]", "null", "1"] {
            let header = format!(r#"{{"alg":"ES256","crit":{critical},"b64":false}}"#);
            assert_eq!(parsed(&header), Err(Flaw::Critical), "{critical}");
        }
    }

    #[test]
    fn a_header_that_is_none_is_malformed() {
        for header in [
            "",
            "{}",
            "[]",
            r#"{"alg":1}"#,
            r#"{"alg":["ES256"]}"#,
            r#"{"alg":"none","alg":"ES256"}"#,
            r#"{"alg":"ES256","kid":1}"#,
            r#"{"alg":"ES256","kid":null}"#,
        ] {
            assert_eq!(parsed(header), Err(Flaw::Malformed), "{header}");
        }
        let long = format!(r#"{{"alg":"ES256","kid":"{}"}}"#, "k".repeat(513));
        assert_eq!(parsed(&long), Err(Flaw::Malformed));
        let long = format!(r#"{{"alg":"ES256","x":"{}"}}"#, "k".repeat(4_000));
        assert_eq!(parsed(&long), Err(Flaw::Malformed));
    }

    #[test]
    fn a_token_has_three_parts_of_strict_base64() {
        let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"ES256"}"#);
        let malformed = |token: String| {
            let found = Compact::parse(token.as_bytes()).err();
            assert_eq!(found, Some(Flaw::Malformed), "{token}");
        };
        for rest in [
            "",
            ".",
            ".e30",
            ".e30.AA.",
            ".e30.AA.AA.AA",
            ".e3=.AA",
            ".e30.AB",
            ".e3+.AA",
            ". e30.AA",
            ".e30.A",
        ] {
            malformed(format!("{header}{rest}"));
        }
        malformed(format!(".{header}.e30.AA"));
        malformed(format!("{header}.{}.AA", "e30".repeat(6_000)));
        let compact = Compact::parse(b"eyJhbGciOiJFUzI1NiJ9.e30.AA").ok();
        let compact = compact.map(|it| (it.signed.to_vec(), it.payload, it.signature));
        assert_eq!(
            compact,
            Some((
                b"eyJhbGciOiJFUzI1NiJ9.e30".to_vec(),
                b"{}".to_vec(),
                vec![0]
            ))
        );
    }
}
