//! What is found in requests of any bytes.
//!
//! Apart from the other tests because these cannot run on wasm32.

use super::*;
use crate::request::Headers;
use percent_encoding::{NON_ALPHANUMERIC, percent_encode};
use proptest::prelude::*;

proptest! {
    #[test]
    fn no_request_is_too_strange(
        target in proptest::collection::vec(any::<u8>(), 0..400),
        value in proptest::collection::vec(any::<u8>(), 0..400),
        rest in "(Basic |Bearer )?[ k=;&%+\"A-Za-z0-9/_-]{0,40}",
        which in 0..4_usize,
    ) {
        let name: &[u8] = [b"k".as_slice(), b"cookie", b"authorization", b"referer"][which];
        let pairs: &[(&[u8], &[u8])] = &[
            (name, &value),
            (name, rest.as_bytes()),
            (b"content-type", b"application/x-www-form-urlencoded"),
        ];
        let request = Request {
            method: b"GET",
            authority: b"",
            target: &target,
            headers: Headers { pairs },
        };
        let parameter = || ParameterName::new("k").unwrap();
        let app_id = vec![
            Source::Query(parameter()),
            Source::Header(HeaderName::new("k").unwrap()),
            Source::Basic(BasicPart::Username),
        ];
        let app_key = vec![
            Source::Cookie(CookieName::new("k").unwrap()),
            Source::Bearer,
            Source::Basic(BasicPart::Password),
        ];
        let credentials = Credentials::new(Sources::AppId { app_id, app_key }).unwrap();
        let credentials = credentials.with_referrer().stripped().unwrap();
        let in_body = Credentials::user_key(vec![Source::Body(parameter())]).unwrap();
        let found = [
            credentials.find(&request, Body::None),
            in_body.find(&request, Body::Whole(&value)),
            in_body.find(&request, Body::Whole(rest.as_bytes())),
        ];
        for found in found {
            if let Found::Credential(credential) = found {
                let parts = [Some(credential.expose()), credential.app_key(), credential.referrer()];
                for part in parts.into_iter().flatten() {
                    prop_assert!((1..=MAXIMUM_BYTES).contains(&part.len()));
                    prop_assert!(!part.chars().any(char::is_control));
                }
            }
        }
        // What is stripped holds nothing any more.
        let stripped = credentials.strip(&request).unwrap();
        let mut left: Vec<(&[u8], &[u8])> = pairs
            .iter()
            .copied()
            .filter(|(name, _)| stripped.headers.iter().all(|gone| gone.name != *name))
            .collect();
        for header in &stripped.headers {
            left.extend(header.values.iter().map(|value| (header.name, &**value)));
        }
        let request = Request {
            target: stripped.target.as_deref().unwrap_or(&target),
            headers: Headers { pairs: &left },
            ..request
        };
        prop_assert_eq!(credentials.find(&request, Body::None), Found::Missing);
    }

    #[test]
    fn what_was_encoded_is_found_as_it_was(key in "[^\\p{Cc}]{0,60}[^\\p{Cc} ]") {
        let target = format!("/?user_key={}", percent_encode(key.as_bytes(), NON_ALPHANUMERIC));
        let request = Request {
            method: b"GET",
            authority: b"",
            target: target.as_bytes(),
            headers: Headers { pairs: &[] },
        };
        let expected = Credential::new(Kind::UserKey, Cow::Borrowed(key.as_bytes())).unwrap();
        let credentials = Credentials::default();
        prop_assert_eq!(credentials.find(&request, Body::None), Found::Credential(expected));
    }
}
