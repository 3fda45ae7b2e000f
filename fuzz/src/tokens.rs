//! Tokens: whatever is sent, what it claims, and what is required of that.
//!
//! An input is text: a line with the number of a signing key (`-`: the token is as it stands), a
//! line with a header, and the payload; or a token. Signed ones get past the signature, so that what
//! stands behind it is reached, too. What `jwt_authn` hands on is read from the same bytes.

use std::rc::Rc;
use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use p256::ecdsa::signature::Signer;
use p256::ecdsa::{Signature, SigningKey};
use tollgate::credentials::HeaderName;
use tollgate::tokens::{
    ClaimCondition, ClaimPath, Handover, Issuer, KeySet, KeySource, LONGEST_TOKEN, Policy,
    Requirement, Requirements, Verified,
};

use crate::cut;

const NOW: u64 = 1_700_000_000;

static KEY: LazyLock<SigningKey> =
    LazyLock::new(|| SigningKey::from_slice(&[7; 32]).expect("a key"));

/// A token is refused, or signed and of its time; its application and its headers are fit to be
/// sent on; and a token with another signature is never good.
///
/// # Panics
/// If that is not so.
pub fn tokens(data: &[u8]) {
    let policy = policy();
    let (first, rest) = cut(data, b'\n');
    if first == b"-" {
        check(&policy, rest, false);
    } else {
        let (header, payload) = cut(rest, b'\n');
        let signed = format!(
            "{}.{}",
            URL_SAFE_NO_PAD.encode(header),
            URL_SAFE_NO_PAD.encode(payload)
        );
        let signature: Signature = KEY.sign(signed.as_bytes());
        let mut signature = signature.to_bytes();
        let forged = first.first().is_some_and(|byte| byte % 2 == 1);
        if forged {
            signature[first.len() % 64] ^= 1;
        }
        let token = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature));
        check(&policy, token.as_bytes(), !forged);
    }
    if let Ok(Some(claims)) = Handover::new("jwt").claims(data)
        && let Ok(verified) = policy.vouched(&claims, NOW)
    {
        fit(&policy, &verified);
        assert_eq!(verified.key, None);
    }
}

fn check(policy: &Policy, token: &[u8], signed: bool) {
    let Ok(candidate) = policy.look(token, NOW) else {
        return;
    };
    assert!(token.len() <= LONGEST_TOKEN);
    let KeySource::Inline(keys) = &policy.issuers[candidate.issuer].keys else {
        unreachable!("all are inline")
    };
    assert!(candidate.tries(keys) <= candidate.cost(keys));
    let Ok(key) = candidate.verify(keys) else {
        return;
    };
    assert!(signed, "a signature that nobody has made");
    assert!(keys.has(key));
    if let Ok(verified) = policy.verified(&candidate, key) {
        fit(policy, &verified);
        assert_eq!(verified.key, Some(key));
    }
}

fn fit(policy: &Policy, verified: &Verified) {
    let issuer = &policy.issuers[verified.issuer.expect("one of the policy's")];
    assert!(verified.expires > NOW && verified.expires >= issuer.leeway);
    assert_eq!(verified.headers.len(), policy.headers.len());
    for header in verified.headers.iter().flatten() {
        assert!((1..=4_096).contains(&header.len()));
        assert!(header.bytes().all(|byte| (b' '..=b'~').contains(&byte)));
    }
    // The second requires what the first does, and more.
    let has = |number| {
        let wanted = Requirements::default().with(number);
        verified.meets.has_all(wanted)
    };
    assert!(!has(1) || has(0));
}

fn policy() -> Policy {
    let point = KEY.verifying_key().to_encoded_point(false);
    let part = |part: Option<&p256::FieldBytes>| URL_SAFE_NO_PAD.encode(part.expect("a part"));
    let jwk = format!(
        r#"{{"keys":[{{"kty":"EC","crv":"P-256","kid":"1","x":"{}","y":"{}"}}]}}"#,
        part(point.x()),
        part(point.y())
    );
    let keys = Rc::new(KeySet::parse(jwk.as_bytes()).expect("a set"));
    let path = |names: &[&str]| ClaimPath::new(names.iter().copied()).expect("a path");
    let issuer = |name: &str, leeway| Issuer {
        name: name.into(),
        audiences: vec!["a".into(), "b".into()],
        keys: KeySource::Inline(Rc::clone(&keys)),
        application: vec![path(&["azp"]), path(&["r", "a"])],
        leeway,
        algorithms: Vec::new(),
    };
    let condition = |any_of: &[&str], all_of: &[&str]| ClaimCondition {
        path: path(&["r", "r"]),
        any_of: any_of.iter().map(|it| (*it).into()).collect(),
        all_of: all_of.iter().map(|it| (*it).into()).collect(),
    };
    let header = |name: &str| HeaderName::new(name).expect("a name");
    Policy {
        issuers: vec![issuer("i", 5), issuer("j", 0)],
        handover: None,
        requirements: vec![
            Requirement {
                scopes: vec!["s".into()],
                claims: vec![condition(&["x", "y"], &[])],
            },
            Requirement {
                scopes: vec!["s".into(), "t".into()],
                claims: vec![condition(&["x", "y"], &["x", "1"])],
            },
        ],
        headers: vec![
            (header("x-a"), path(&["azp"])),
            (header("x-r"), path(&["r", "r"])),
        ],
        verifications_per_second: 1,
        remembered: 2,
    }
}
