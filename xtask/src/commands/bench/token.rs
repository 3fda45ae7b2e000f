//! The token of the bench: signed here, with a key that protects nothing, and what Tollgate is
//! told of it.

use std::sync::LazyLock;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use p256::ecdsa::signature::Signer;
use p256::ecdsa::{Signature, SigningKey};
use serde_json::{Value, json};
use tollgate_harness::Plugin;

/// The filter's counter of requests of the service that it has let through.
pub const ADMITTED: &str = "wasmcustom.tollgate.1002.requests_admitted";
/// The filter's counter of signatures.
pub const VERIFICATIONS: &str = "wasmcustom.tollgate.1002.token_verifications";

static KEY: LazyLock<SigningKey> =
    LazyLock::new(|| SigningKey::from_slice(&[7; 32]).expect("a number below the order"));
static TOKEN: LazyLock<String> = LazyLock::new(|| {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.map_or(0, |since| since.as_secs());
    let claims = json!({
        "iss": "https://id.example.com", "aud": "orders", "azp": "limited", "iat": now,
        "exp": now + 86_400, "jti": "n-0S6_WzA2Mj-1234567890", "scope": "orders.read orders.write",
        "realm_access": { "roles": ["admin", "support", "offline_access"] },
    });
    let text = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let header = json!({ "alg": "ES256", "typ": "at+jwt", "kid": "bench" });
    let signed = format!("{}.{}", text(&header), text(&claims));
    let signature: Signature = KEY.sign(signed.as_bytes());
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.to_bytes()))
});

/// A token of the limited application, of about 450 bytes.
pub fn token() -> &'static str {
    &TOKEN
}

/// The shipped configuration, but the service has tokens. They stand where the keys of the
/// other variants do.
pub fn plugin() -> Plugin {
    let point = KEY.verifying_key().to_encoded_point(false);
    let text = |bytes: Option<&_>| bytes.map_or_else(String::new, |it| URL_SAFE_NO_PAD.encode(it));
    let jwk = json!({
        "kty": "EC", "crv": "P-256", "kid": "bench", "x": text(point.x()), "y": text(point.y()),
    });
    Plugin::Merge(json!({
        "services": [{
            "id": "1002",
            "token": { "env": "TG_SERVICE_TOKEN" },
            "hosts": ["*"],
            "credentials": { "token": {
                "issuers": [{
                    "issuer": "https://id.example.com",
                    "audiences": ["orders"],
                    "jwks": { "keys": [jwk] },
                }],
                "places": [{ "header": "x-api-key" }],
            } },
            "metrics": { "orders": { "parent": "hits" } },
            "mapping_rules": [
                { "method": "GET", "pattern": "/v1/orders", "usage": { "orders": 1 }, "last": true },
                { "method": "ANY", "pattern": "/v1/", "usage": { "hits": 1 } },
            ],
        }],
    }))
}
