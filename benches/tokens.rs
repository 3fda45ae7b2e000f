//! What the first verification of a token costs, by algorithm, and what finding a verified one
//! again costs. Prints medians in microseconds; nothing fails because it is slow. Natively: in
//! WebAssembly in Envoy it is several times as much (the end-to-end test
//! `what_a_first_verification_costs` prints that).

#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing)]

use std::hint::black_box;
use std::rc::Rc;
use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use p256::ecdsa::signature::{SignatureEncoding, Signer};
use rsa::RsaPrivateKey;
use rsa::rand_core::{CryptoRng, Error, RngCore};
use rsa::sha2::{Sha256, Sha512};
use rsa::traits::PublicKeyParts;
use serde_json::{Value, json};
use tollgate::credentials::HeaderName;
use tollgate::tokens::{Cache, ClaimPath, Issuer, KeySet, KeySource, Policy, Remembered};

const NOW: u64 = 1_700_000_000;

fn main() {
    println!("{:<16} {:>12}", "first", "us");
    let rsa_2048 = RsaPrivateKey::new(&mut Numbers(1), 2_048).unwrap();
    let rsa_4096 = RsaPrivateKey::new(&mut Numbers(2), 4_096).unwrap();
    for (name, key) in [("2048", &rsa_2048), ("4096", &rsa_4096)] {
        let jwk = json!({
            "kty": "RSA", "n": text(&key.n().to_bytes_be()), "e": text(&key.e().to_bytes_be()),
        });
        let rs = rsa::pkcs1v15::SigningKey::<Sha256>::new(key.clone());
        first(&format!("RS256 {name}"), "RS256", &jwk, |it| {
            rs.sign(it).to_vec()
        });
        let ps = rsa::pss::BlindedSigningKey::<Sha512>::new(key.clone());
        let ps = |it: &[u8]| {
            rsa::signature::RandomizedSigner::sign_with_rng(&ps, &mut Numbers(3), it).to_vec()
        };
        first(&format!("PS512 {name}"), "PS512", &jwk, ps);
    }
    let key = p256::ecdsa::SigningKey::from_slice(&[7; 32]).unwrap();
    let point = key.verifying_key().to_encoded_point(false);
    let jwk = json!({
        "kty": "EC", "crv": "P-256", "x": text(point.x().unwrap()), "y": text(point.y().unwrap()),
    });
    let sign = |it: &[u8]| -> Vec<u8> {
        let signature: p256::ecdsa::Signature = key.sign(it);
        signature.to_vec()
    };
    first("ES256", "ES256", &jwk, sign);
    let again = token("ES256", sign);
    let es256 = jwk;
    let key = p384::ecdsa::SigningKey::from_slice(&[7; 48]).unwrap();
    let point = key.verifying_key().to_encoded_point(false);
    let jwk = json!({
        "kty": "EC", "crv": "P-384", "x": text(point.x().unwrap()), "y": text(point.y().unwrap()),
    });
    first("ES384", "ES384", &jwk, |it| {
        let signature: p384::ecdsa::Signature = key.sign(it);
        signature.to_vec()
    });
    let pair = ed25519_compact::KeyPair::from_seed(ed25519_compact::Seed::new([7; 32]));
    let jwk = json!({ "kty": "OKP", "crv": "Ed25519", "x": text(pair.pk.as_slice()) });
    first("EdDSA", "EdDSA", &jwk, |it| pair.sk.sign(it, None).to_vec());

    let policy = policy(&es256);
    let mut cache = Cache::new([3; 16], 10_000);
    let verified = Rc::new(verify(&policy, &again));
    let digest = cache.digest(again.as_bytes());
    cache.verified(digest, verified);
    let nanoseconds = median(1_000, || {
        let digest = cache.digest(black_box(again.as_bytes()));
        assert!(matches!(
            cache.look_up(digest, NOW, 0),
            Remembered::Verified(_)
        ));
    });
    println!(
        "{:<16} {:>12.2}  ({} bytes)",
        "again",
        nanoseconds / 1e3,
        again.len()
    );
}

fn first(name: &str, algorithm: &str, jwk: &Value, sign: impl Fn(&[u8]) -> Vec<u8>) {
    let policy = policy(jwk);
    let token = token(algorithm, sign);
    let nanoseconds = median(50, || {
        black_box(verify(&policy, black_box(&token)));
    });
    println!("{name:<16} {:>12.1}", nanoseconds / 1e3);
}

fn token(algorithm: &str, sign: impl Fn(&[u8]) -> Vec<u8>) -> String {
    let claims = json!({
        "iss": "https://id.example.com", "aud": "api", "azp": "app", "exp": NOW + 3_600, "iat": NOW,
        "jti": "n-0S6_WzA2Mj-1234567890", "scope": "orders.read orders.write",
        "realm_access": { "roles": ["admin", "support", "offline_access"] },
    });
    let signed = format!(
        "{}.{}",
        text(json!({ "alg": algorithm }).to_string().as_bytes()),
        text(claims.to_string().as_bytes())
    );
    let signature = sign(signed.as_bytes());
    format!("{signed}.{}", text(&signature))
}

fn policy(jwk: &Value) -> Policy {
    let keys = KeySet::parse(json!({ "keys": [jwk] }).to_string().as_bytes()).unwrap();
    Policy {
        issuers: vec![Issuer {
            name: "https://id.example.com".into(),
            audiences: vec!["api".into()],
            keys: KeySource::Inline(Rc::new(keys)),
            application: vec![ClaimPath::new(["azp"]).unwrap()],
            leeway: 5,
            algorithms: Vec::new(),
        }],
        handover: None,
        requirements: Vec::new(),
        headers: vec![(
            HeaderName::new("x-app").unwrap(),
            ClaimPath::new(["azp"]).unwrap(),
        )],
        verifications_per_second: 1,
        remembered: 2,
    }
}

fn verify(policy: &Policy, token: &str) -> tollgate::tokens::Verified {
    let candidate = policy.look(token.as_bytes(), NOW).unwrap();
    let KeySource::Inline(keys) = &policy.issuers[0].keys else {
        panic!("no keys");
    };
    let key = candidate.verify(keys).unwrap();
    policy.verified(&candidate, key).unwrap()
}

fn text(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// The median of several runs of so many rounds, in nanoseconds for a round.
fn median(rounds: u32, mut round: impl FnMut()) -> f64 {
    let mut runs: Vec<f64> = (0..11)
        .map(|_| {
            let start = Instant::now();
            for _ in 0..rounds {
                round();
            }
            start.elapsed().as_secs_f64() * 1e9 / f64::from(rounds)
        })
        .collect();
    runs.sort_by(f64::total_cmp);
    runs[runs.len() / 2]
}

/// Numbers that are the same in each run (SplitMix64), for keys that protect nothing.
struct Numbers(u64);

impl RngCore for Numbers {
    fn next_u32(&mut self) -> u32 {
        (self.next_u64() >> 32) as u32
    }

    fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn fill_bytes(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let number = self.next_u64().to_le_bytes();
            chunk.copy_from_slice(&number[..chunk.len()]);
        }
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Error> {
        self.fill_bytes(bytes);
        Ok(())
    }
}

impl CryptoRng for Numbers {}
