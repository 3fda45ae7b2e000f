//! What issuers answer: sets of keys, and the documents that say where these are.

use std::time::Duration;

use tollgate::tokens::{Algorithm, Discovery, KeySet, LONGEST_SET, Start, Url};

const ISSUER: &str = "https://id.example";
const ALGORITHMS: [&str; 9] = [
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA",
];

/// A set is bounded, and none of its keys verifies what nobody signed; a document leads to its
/// issuer's own host.
///
/// # Panics
/// If that is not so.
pub fn keys(data: &[u8]) {
    if let Ok(set) = KeySet::parse(data) {
        assert!(data.len() <= LONGEST_SET && !set.is_empty() && set.len() <= 64);
        for name in ALGORITHMS {
            let algorithm = Algorithm::named(name).expect("an algorithm");
            for key_id in [None, Some("1")] {
                let mut count = 0;
                for key in set.candidates(algorithm, key_id) {
                    count += 1;
                    assert!(set.has(key.fingerprint()));
                    assert!((1..=16).contains(&key.public().cost()));
                    // One is enough for each: large keys take their time.
                    if count == 1 && key_id.is_none() {
                        let signature = [1; 64];
                        assert!(!key.public().verifies(algorithm, b"signed", &signature));
                    }
                }
                assert!(count <= 4);
            }
        }
    }
    let start = Url::of_document(ISSUER).expect("a URL");
    let discovery = Discovery {
        cluster: "id".to_owned(),
        start: Start::Document(start),
        timeout: Duration::from_secs(1),
        refresh: Duration::from_secs(1),
        interval: Duration::from_secs(1),
        kept: Duration::from_secs(1),
    };
    if let Ok(url) = discovery.keys_by(ISSUER, data) {
        assert!(url.secure);
        assert_eq!(url.authority, "id.example");
        check(&url);
    }
    if let Ok(text) = std::str::from_utf8(data) {
        for url in [Url::parse(text), Url::of_document(text)].iter().flatten() {
            check(url);
        }
    }
}

/// It can stand in a request's `:authority` and `:path`.
fn check(url: &Url) {
    assert!(!url.authority.is_empty() && url.path.starts_with('/'));
    let visible = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
    assert!(visible(&url.authority) && visible(&url.path));
    assert!(!url.authority.contains(['@', '/', '?', '#']) && !url.path.contains('#'));
}
