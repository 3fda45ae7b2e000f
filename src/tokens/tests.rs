//! The check of tokens as a whole: what is accepted, and every way to be refused.

use super::testing::{self, Signing};
use super::*;
use std::rc::Rc;
#[cfg(all(target_family = "wasm", target_os = "unknown"))]
use wasm_bindgen_test::wasm_bindgen_test as test;

const NOW: u64 = 1_700_000_000;

fn paths(paths: &[&[&str]]) -> Vec<ClaimPath> {
    let path = |path: &&[&str]| ClaimPath::new(path.iter().copied()).unwrap();
    paths.iter().map(path).collect()
}

fn set(keys: &[String]) -> KeySet {
    KeySet::parse(format!(r#"{{"keys":[{}]}}"#, keys.join(",")).as_bytes()).unwrap()
}

fn policy() -> Policy {
    let issuer = |name: &str, keys: KeySet| Issuer {
        name: name.into(),
        audiences: vec!["orders".into(), "search".into()],
        keys: KeySource::Inline(Rc::new(keys)),
        application: paths(&[&["azp"], &["client_id"]]),
        leeway: 5,
        algorithms: Vec::new(),
    };
    Policy {
        issuers: vec![
            issuer("https://one", set(&[Signing::new(1).jwk()])),
            issuer(
                "https://two",
                set(&[Signing::new(2).jwk(), Signing::new(3).jwk()]),
            ),
        ],
        handover: None,
        requirements: vec![
            Requirement {
                scopes: vec!["read".into()],
                claims: Vec::new(),
            },
            Requirement {
                scopes: vec!["write".into()],
                claims: Vec::new(),
            },
        ],
        headers: vec![
            (
                crate::credentials::HeaderName::new("x-roles").unwrap(),
                paths(&[&["r", "roles"]]).remove(0),
            ),
            (
                crate::credentials::HeaderName::new("x-sub").unwrap(),
                paths(&[&["sub"]]).remove(0),
            ),
        ],
        verifications_per_second: 100,
        remembered: 100,
    }
}

fn checked(token: &str) -> Result<Verified, Flaw> {
    let policy = policy();
    let candidate = policy.look(token.as_bytes(), NOW)?;
    let KeySource::Inline(keys) = &policy.issuers[candidate.issuer].keys else {
        return Err(Flaw::Key);
    };
    let key = candidate.verify(keys).map_err(|why| match why {
        Unverified::Signature => Flaw::Signature,
        Unverified::NoKey => Flaw::Key,
    })?;
    policy.verified(&candidate, key)
}

fn claims(changes: &str) -> String {
    let mut claims = serde_json::json!({
        "iss": "https://one", "aud": "orders", "azp": "app", "exp": NOW + 60, "iat": NOW - 60, "nbf": NOW - 60,
    });
    let changes: serde_json::Value = serde_json::from_str(changes).unwrap();
    for (name, value) in changes.as_object().unwrap() {
        claims[name] = value.clone();
    }
    claims.to_string()
}

fn with(changes: &str) -> Result<Verified, Flaw> {
    checked(&Signing::new(1).token(&claims(changes)))
}

#[test]
fn a_good_token_names_its_application_and_what_it_may_do() {
    let verified =
        with(r#"{"scope":"read x","r":{"roles":["a","b c"]},"sub":"s\r\nx: y"}"#).unwrap();
    assert_eq!(&*verified.application, "app");
    assert_eq!((verified.expires, verified.issuer), (NOW + 65, Some(0)));
    assert!(verified.meets.has_all(Requirements::default().with(0)));
    assert!(!verified.meets.has_all(Requirements::default().with(1)));
    // What could end a header is left out.
    assert_eq!(*verified.headers, [Some("a,b c".into()), None]);
}

#[test]
fn the_first_claim_that_is_there_names_the_application() {
    let application = |changes| with(changes).map(|it| it.application.into_string());
    assert_eq!(
        application(r#"{"client_id":"other"}"#),
        Ok("app".to_owned())
    );
    assert_eq!(
        application(r#"{"azp":null,"client_id":"other"}"#),
        Ok("other".to_owned())
    );
    assert_eq!(application(r#"{"azp":["one"]}"#), Ok("one".to_owned()));
    assert_eq!(application(r#"{"azp":7}"#), Ok("7".to_owned()));
    for nobody in [
        r#"{"azp":null}"#,
        r#"{"azp":["a","b"],"client_id":"c"}"#,
        r#"{"azp":{}}"#,
        r#"{"azp":[]}"#,
    ] {
        assert_eq!(application(nobody), Err(Flaw::Application), "{nobody}");
    }
}

#[test]
fn times_are_held_to_the_leeway_and_no_further() {
    let at = |name: &str, value: u64| with(&format!(r#"{{"{name}":{value}}}"#)).map(|_| ());
    assert_eq!(at("exp", NOW - 4), Ok(()));
    assert_eq!(at("exp", NOW - 5), Err(Flaw::Expired));
    assert_eq!(at("nbf", NOW + 5), Ok(()));
    assert_eq!(at("nbf", NOW + 6), Err(Flaw::Premature));
    assert_eq!(at("iat", NOW + 5), Ok(()));
    assert_eq!(at("iat", NOW + 6), Err(Flaw::Premature));
    assert_eq!(with(r#"{"exp":null}"#), Err(Flaw::Malformed));
    assert_eq!(with(r#"{"exp":"1700000060"}"#), Err(Flaw::Malformed));
    let without = claims("{}").replace(r#""exp""#, r#""ex""#);
    assert_eq!(
        checked(&Signing::new(1).token(&without)),
        Err(Flaw::NoExpiry)
    );
}

#[test]
fn issuer_and_audience_are_compared_exactly() {
    for issuer in [
        r#""https://one/""#,
        r#""https://ONE""#,
        r#""https://three""#,
        "1",
        r#"["https://one"]"#,
        "null",
    ] {
        assert_eq!(
            with(&format!(r#"{{"iss":{issuer}}}"#)),
            Err(Flaw::Issuer),
            "{issuer}"
        );
    }
    for audience in [r#""order""#, r#""orders/""#, r#"["x"]"#, "null", "[]"] {
        assert_eq!(
            with(&format!(r#"{{"aud":{audience}}}"#)),
            Err(Flaw::Audience),
            "{audience}"
        );
    }
    assert!(with(r#"{"aud":["x","search"]}"#).is_ok());
}

#[test]
fn one_issuers_key_signs_no_token_of_another() {
    let of_two = claims(r#"{"iss":"https://two"}"#);
    assert!(checked(&Signing::new(2).token(&of_two)).is_ok());
    assert!(checked(&Signing::new(3).token(&of_two)).is_ok());
    assert_eq!(checked(&Signing::new(1).token(&of_two)), Err(Flaw::Key));
    let posing = Signing::new(1).token_with(r#"{"alg":"ES256","kid":"2"}"#, &of_two);
    assert_eq!(checked(&posing), Err(Flaw::Signature));
}

#[test]
fn without_a_kid_every_key_that_fits_is_tried() {
    let of_two = claims(r#"{"iss":"https://two"}"#);
    let header = r#"{"alg":"ES256"}"#;
    assert!(checked(&Signing::new(3).token_with(header, &of_two)).is_ok());
    assert_eq!(
        checked(&Signing::new(1).token_with(header, &of_two)),
        Err(Flaw::Key)
    );
}

#[test]
fn a_changed_byte_anywhere_is_refused() {
    let token = Signing::new(1).token(&claims("{}"));
    assert!(checked(&token).is_ok());
    for index in 0..token.len() {
        for byte in [b'A', b'Q', b'.', b'=', 0xff] {
            let mut bytes = token.clone().into_bytes();
            if bytes[index] == byte {
                continue;
            }
            bytes[index] = byte;
            let policy = policy();
            if let Ok(candidate) = policy.look(&bytes, NOW) {
                let keys = set(&[Signing::new(1).jwk()]);
                assert!(candidate.verify(&keys).is_err(), "{index} {byte}");
            }
        }
    }
}

#[test]
fn a_key_in_the_tokens_own_header_is_not_looked_at() {
    let attacker = Signing::new(9);
    let header = format!(r#"{{"alg":"ES256","kid":"1","jwk":{}}}"#, attacker.jwk());
    assert_eq!(
        checked(&attacker.token_with(&header, &claims("{}"))),
        Err(Flaw::Signature)
    );
}

#[test]
fn an_issuer_may_be_held_to_its_algorithms() {
    let mut policy = policy();
    policy.issuers[0].algorithms = vec![Algorithm::Rs256];
    let token = Signing::new(1).token(&claims("{}"));
    assert_eq!(
        policy.look(token.as_bytes(), NOW).err(),
        Some(Flaw::Algorithm)
    );
}

#[test]
fn the_published_examples_verify() {
    for (jwks, token) in [
        (testing::RSA_JWKS, testing::RSA_TOKEN),
        (testing::JWKS, testing::EC_TOKEN),
        (testing::ED_JWKS, testing::ED_TOKEN),
    ] {
        let verifies = |token: &str| {
            let keys = KeySet::parse(jwks.as_bytes()).unwrap();
            let compact = Compact::parse(token.as_bytes()).unwrap();
            let key = keys.candidates(compact.algorithm, None).next().unwrap();
            key.public()
                .verifies(compact.algorithm, compact.signed, &compact.signature)
        };
        assert!(verifies(token), "{token}");
        let (signed, signature) = token.rsplit_once('.').unwrap();
        assert!(!verifies(&format!("{signed}.B{}", &signature[1..])));
        assert!(!verifies(&format!("{signed}.")));
    }
    // RFC 7515, A.1 (HS256) and A.5, which is RFC 7519, 6.1 (none).
    for (token, flaw) in [
        (
            "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.eyJpc3MiOiJqb2UifQ.dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk",
            Flaw::Algorithm,
        ),
        (
            "eyJhbGciOiJub25lIn0.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.",
            Flaw::Algorithm,
        ),
        // A.4 (ES512), which is not among the algorithms here.
        ("eyJhbGciOiJFUzUxMiJ9.UGF5bG9hZA.AdwM", Flaw::Algorithm),
        // RFC 7515, 4.1.11: its own example of a critical extension, beside an accepted algorithm.
        (
            "eyJhbGciOiJFUzI1NiIsImNyaXQiOlsiZXhwIl0sImV4cCI6MTM2MzI4NDAwMH0.e30.AA",
            Flaw::Critical,
        ),
    ] {
        assert_eq!(
            Compact::parse(token.as_bytes()).err(),
            Some(flaw),
            "{token}"
        );
    }
}

#[test]
fn a_key_is_used_for_what_it_is_for() {
    let jwk = Signing::new(1).jwk();
    let of = |members: &str| format!("{{{members},{}", &jwk[1..]);
    let usable = |jwk: &str| KeySet::parse(format!(r#"{{"keys":[{jwk}]}}"#).as_bytes()).map(|_| ());
    for good in [
        r#""use":"sig""#,
        r#""alg":"ES256""#,
        r#""key_ops":["verify"]"#,
        r#""x5c":["x"],"d":"secret""#,
    ] {
        assert_eq!(usable(&of(good)), Ok(()), "{good}");
    }
    for bad in [
        r#""use":"enc""#,
        r#""use":null"#,
        r#""alg":"ES384""#,
        r#""alg":"HS256""#,
        r#""alg":"none""#,
        r#""alg":1"#,
        r#""key_ops":["sign"]"#,
        r#""key_ops":"verify""#,
    ] {
        assert_eq!(usable(&of(bad)), Err(KeySetError::NoneUsable), "{bad}");
    }
    for bad in [
        r#"{"kty":"oct","k":"AAAA"}"#,
        r#"{"kty":"EC","crv":"P-521","x":"AA","y":"AA"}"#,
        r#"{"kty":"EC","crv":"secp256k1","x":"AA","y":"AA"}"#,
        r#"{"kty":"OKP","crv":"X25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#,
        r#"{"kty":"OKP","crv":"Ed25519","x":"AAAA"}"#,
        r#"{}"#,
    ] {
        assert_eq!(usable(bad), Err(KeySetError::NoneUsable), "{bad}");
        // Beside one that is usable it does no harm.
        assert_eq!(usable(&format!("{bad},{jwk}")), Ok(()), "{bad}");
    }
}

#[test]
fn a_point_that_is_not_on_the_curve_is_no_key() {
    let zeros = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    let one = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAE";
    for (x, y) in [
        (zeros, zeros),
        (zeros, one),
        (one, one),
        ("f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU", zeros),
        ("", ""),
    ] {
        let jwks = format!(r#"{{"keys":[{{"kty":"EC","crv":"P-256","x":"{x}","y":"{y}"}}]}}"#);
        assert_eq!(
            KeySet::parse(jwks.as_bytes()).err(),
            Some(KeySetError::NoneUsable),
            "{x} {y}"
        );
    }
}

#[test]
fn an_rsa_key_has_2048_to_8192_bits_and_an_odd_exponent() {
    // The top bit and the lowest, so that it has exactly so many bits and is odd.
    let modulus = |bits: usize| {
        let mut bytes = vec![0; bits.div_ceil(8)];
        bytes[0] = 1 << ((bits - 1) % 8);
        *bytes.last_mut().unwrap() |= 1;
        bytes
    };
    for (bits, is) in [
        (1_024, false),
        (2_047, false),
        (2_048, true),
        (4_096, true),
        (4_097, true),
        (8_192, true),
        (8_193, false),
        (16_384, false),
        (8, false),
    ] {
        assert_eq!(
            PublicKey::rsa(&modulus(bits), &[1, 0, 1]).is_some(),
            is,
            "{bits}"
        );
    }
    for (bits, cost) in [(2_048, 1), (3_072, 4), (4_096, 4), (8_192, 16)] {
        let key = PublicKey::rsa(&modulus(bits), &[1, 0, 1]).unwrap();
        assert_eq!(key.cost(), cost, "{bits}");
    }
    for exponent in [
        &[][..],
        &[0],
        &[1],
        &[2],
        &[1, 0, 0],
        &[0xff; 8],
        &[0xff; 9],
    ] {
        assert!(
            PublicKey::rsa(&modulus(2_048), exponent).is_none(),
            "{exponent:?}"
        );
    }
    assert!(PublicKey::rsa(&[], &[3]).is_none());
    let mut even = modulus(2_048);
    *even.last_mut().unwrap() = 2;
    assert!(PublicKey::rsa(&even, &[1, 0, 1]).is_none());
}

#[test]
fn a_set_is_bounded() {
    let jwk = Signing::new(1).jwk();
    let of = |count: usize| format!(r#"{{"keys":[{}]}}"#, vec![jwk.clone(); count].join(","));
    assert_eq!(
        KeySet::parse(of(64).as_bytes()).map(|keys| keys.len()).ok(),
        Some(64)
    );
    assert_eq!(
        KeySet::parse(of(65).as_bytes()).err(),
        Some(KeySetError::TooMany)
    );
    let long = format!(r#"{{"x":"{}","keys":[{jwk}]}}"#, "x".repeat(LONGEST_SET));
    assert_eq!(
        KeySet::parse(long.as_bytes()).err(),
        Some(KeySetError::TooLong)
    );
    for shape in [
        "",
        "[]",
        "{}",
        r#"{"keys":{}}"#,
        r#"{"keys":[1]}"#,
        r#"{"keys":[],"keys":[]}"#,
    ] {
        assert_eq!(
            KeySet::parse(shape.as_bytes()).err(),
            Some(KeySetError::Shape),
            "{shape}"
        );
    }
    // Of many keys with one name, four are tried.
    let token = Signing::new(1).token(&claims("{}"));
    let policy = policy();
    let candidate = policy.look(token.as_bytes(), NOW).unwrap();
    assert_eq!(
        candidate.tries(&KeySet::parse(of(64).as_bytes()).unwrap()),
        4
    );
}
