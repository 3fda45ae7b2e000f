//! The claims of a token that Envoy's `jwt_authn` filter has verified, as it hands them on.
//!
//! Apart from [`super::jws`] because nothing here is a token any more: it is what another filter
//! of the same chain says that one claimed. It comes in the stream's dynamic metadata, which only
//! filters write. The other way that `jwt_authn` has, a header (`forward_payload_header`), is not
//! taken: it removes what the client sent under that name where it runs, but where a route has
//! switched it off, the client's own header passes as it is, and nobody behind can tell.
//!
//! All of the metadata is read, as its protobuf (`envoy.config.core.v3.Metadata`), rather than the
//! payload alone: Envoy serializes a part of it without types, and then a text of eight bytes is
//! a number, and a text that looks like a list is one.

use std::collections::BTreeMap;

use prost::Message;
use prost_types::value::Kind;
use prost_types::{Struct, Value as Any};
use serde_json::{Map, Number, Value};

use super::{Claims, Flaw};

/// The name under which `jwt_authn` keeps its metadata, whatever the filter is called in the chain.
const NAMESPACE: &str = "envoy.filters.http.jwt_authn";
/// The most metadata that is read, in bytes. Tokens come in headers, of which Envoy takes 60 KiB
/// by default; other filters have metadata, too.
const LONGEST_METADATA: usize = 262_144;
/// Whole numbers below this are exact in metadata, where all numbers are floating-point.
const FIRST_INEXACT: f64 = 9_007_199_254_740_992.0;

/// Where verified claims are handed on: the `payload_in_metadata` of a `jwt_authn` provider.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handover(Box<str>);

/// `envoy.config.core.v3.Metadata`; `typed_filter_metadata` is passed over.
#[derive(Clone, PartialEq, Message)]
struct Metadata {
    #[prost(btree_map = "string, message", tag = "1")]
    filter_metadata: BTreeMap<String, Struct>,
}

impl Handover {
    /// Claims that are handed on under this name.
    #[must_use]
    pub fn new(payload_in_metadata: &str) -> Self {
        Self(payload_in_metadata.into())
    }

    /// The claims that a stream's metadata has, from its protobuf. `None`: no token was verified.
    ///
    /// # Errors
    /// [`Flaw::Malformed`]: this is no metadata, or too much.
    pub fn claims(&self, metadata: &[u8]) -> Result<Option<Claims>, Flaw> {
        if metadata.len() > LONGEST_METADATA {
            return Err(Flaw::Malformed);
        }
        let mut metadata = Metadata::decode(metadata).map_err(|_| Flaw::Malformed)?;
        let handed = metadata.filter_metadata.get_mut(NAMESPACE);
        let payload = handed.and_then(|handed| handed.fields.remove(&*self.0));
        match payload.and_then(|payload| payload.kind) {
            None => Ok(None),
            Some(Kind::StructValue(payload)) => Ok(Some(Claims::of(members(payload)))),
            Some(_) => Err(Flaw::Malformed),
        }
    }
}

fn members(payload: Struct) -> Map<String, Value> {
    let fields = payload.fields.into_iter();
    fields.map(|(name, any)| (name, value(any))).collect()
}

/// As JSON. prost has bounded how deep it goes.
fn value(any: Any) -> Value {
    match any.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::BoolValue(truth)) => Value::Bool(truth),
        Some(Kind::StringValue(text)) => Value::String(text),
        Some(Kind::NumberValue(number)) => numeral(number),
        Some(Kind::StructValue(payload)) => Value::Object(members(payload)),
        Some(Kind::ListValue(list)) => Value::Array(list.values.into_iter().map(value).collect()),
    }
}

/// A number that is whole again if it certainly was. A larger one stays what it is, and so is
/// nobody's name: two of them may have become one on their way.
fn numeral(number: f64) -> Value {
    if number.abs() < FIRST_INEXACT
        && number.fract() == 0.0
        && let Ok(whole) = format!("{number:.0}").parse::<i64>()
    {
        return Value::Number(whole.into());
    }
    Number::from_f64(number).map_or(Value::Null, Value::Number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokens::ClaimPath;
    use prost_types::ListValue;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    fn any(kind: Kind) -> Any {
        Any { kind: Some(kind) }
    }

    fn text(text: &str) -> Any {
        any(Kind::StringValue(text.to_owned()))
    }

    fn object(members: &[(&str, Any)]) -> Any {
        any(Kind::StructValue(structure(members)))
    }

    fn structure(members: &[(&str, Any)]) -> Struct {
        let fields = members.iter().cloned();
        Struct {
            fields: fields.map(|(name, it)| (name.to_owned(), it)).collect(),
        }
    }

    /// Metadata with a payload of these claims under a filter's name.
    fn metadata(filter: &str, name: &str, payload: Any) -> Vec<u8> {
        let other = ("other".to_owned(), structure(&[(name, text("x"))]));
        let own = (filter.to_owned(), structure(&[(name, payload)]));
        let filter_metadata = [other, own].into();
        Metadata { filter_metadata }.encode_to_vec()
    }

    fn claim(payload: Any, path: &[&str]) -> Option<String> {
        let bytes = metadata(NAMESPACE, "jwt", payload);
        let claims = Handover::new("jwt").claims(&bytes).unwrap().unwrap();
        let path = ClaimPath::new(path.iter().copied()).unwrap();
        claims.at(&path).map(ToString::to_string)
    }

    #[test]
    fn claims_keep_their_types() {
        let list = ListValue {
            values: vec![text("a"), any(Kind::BoolValue(true))],
        };
        let payload = object(&[
            ("azp", text("8 bytes.")),
            (
                "realm_access",
                object(&[("roles", any(Kind::ListValue(list)))]),
            ),
            ("null", any(Kind::NullValue(0))),
            ("n", any(Kind::NumberValue(1_300_819_380.0))),
        ]);
        for (path, expected) in [
            (&["azp"][..], Some(r#""8 bytes.""#)),
            (&["realm_access", "roles"], Some(r#"["a",true]"#)),
            (&["null"], None),
            (&["n"], Some("1300819380")),
            (&["other"], None),
        ] {
            assert_eq!(
                claim(payload.clone(), path).as_deref(),
                expected,
                "{path:?}"
            );
        }
    }

    #[test]
    fn a_number_that_may_have_been_another_is_not_whole() {
        for (number, expected) in [
            (-7.0, "-7"),
            (1.5, "1.5"),
            (9_007_199_254_740_991.0, "9007199254740991"),
            (9_007_199_254_740_992.0, "9007199254740992.0"),
            (1e300, "1e+300"),
        ] {
            let payload = object(&[("n", any(Kind::NumberValue(number)))]);
            assert_eq!(claim(payload, &["n"]).as_deref(), Some(expected));
        }
        let infinite = object(&[("n", any(Kind::NumberValue(f64::INFINITY)))]);
        assert_eq!(claim(infinite, &["n"]), None);
    }

    #[test]
    fn only_what_jwt_authn_says_under_the_name_counts() {
        let payload = object(&[("azp", text("app"))]);
        let found = |bytes: &[u8]| {
            let found = Handover::new("jwt").claims(bytes);
            found.map(|claims| claims.is_some())
        };
        assert_eq!(
            found(&metadata(NAMESPACE, "jwt", payload.clone())),
            Ok(true)
        );
        assert_eq!(
            found(&metadata("jwt_authn", "jwt", payload.clone())),
            Ok(false)
        );
        assert_eq!(found(&metadata(NAMESPACE, "JWT", payload)), Ok(false));
        assert_eq!(
            found(&metadata(NAMESPACE, "jwt", text("app"))),
            Err(Flaw::Malformed)
        );
        assert_eq!(found(b""), Ok(false));
        assert_eq!(found(b"\xff"), Err(Flaw::Malformed));
        assert_eq!(found(&vec![0; LONGEST_METADATA + 1]), Err(Flaw::Malformed));
    }

    #[test]
    fn depth_is_bounded() {
        let mut payload = text("deep");
        for _ in 0..200 {
            payload = object(&[("a", payload)]);
        }
        let bytes = metadata(NAMESPACE, "jwt", payload);
        assert_eq!(
            Handover::new("jwt").claims(&bytes).err(),
            Some(Flaw::Malformed)
        );
    }
}
