//! A service whose applications show access tokens of an OpenID provider, and requests with these.
//!
//! Apart from [`Gateway`] because service management is in OAuth mode here, Envoy has a cluster for
//! the provider, and the same service is told apart only by who verifies the tokens.

use anyhow::Result;
use serde_json::{Value, json};
use tollgate_harness::{Client, EnvoyOptions, ListenerPatch, Reply};

use crate::gateway::{Gateway, SERVICE, Setup, merge};
use crate::provider::Provider;

/// Every application is named like a client of the provider. `limited` may be used five times.
const DATASET: &str = r#"
service_token: svc-token
metrics: { hits: null, orders: hits }
plans: { free: {}, five: { hits: { eternity: 5 } } }
services:
  "1001":
    backend_version: oauth
    applications:
      free: { plan: free, app_keys: [k] }
      other: { plan: free, app_keys: [k] }
      limited: { plan: five, app_keys: [k] }
"#;

/// What refuses a token (RFC 6750, section 3.1): the status and the challenge.
pub const INVALID_TOKEN: (u16, &str) = (401, "Bearer realm=\"api\", error=\"invalid_token\"");
/// What refuses a token without a scope that a mapping rule requires.
pub const INSUFFICIENT_SCOPE: (u16, &str) =
    (403, "Bearer realm=\"api\", error=\"insufficient_scope\"");

/// The service. To order takes the scope `orders.write`; everything else is a hit.
pub struct TokenService {
    /// Its `credentials`, which may name the provider's cluster, `id`.
    pub credentials: Value,
    /// A merge patch on the service.
    pub patch: Value,
    /// What is changed in Envoy's listener.
    pub listener: Option<ListenerPatch>,
}

impl TokenService {
    /// The service with these credentials and nothing else changed.
    #[must_use]
    pub fn new(credentials: Value) -> Self {
        Self {
            credentials,
            patch: json!({}),
            listener: None,
        }
    }

    /// Starts its gateway, beside this provider.
    pub async fn start(self, provider: &Provider) -> Result<Gateway> {
        let mut service = json!({
            "id": SERVICE,
            "token": "svc-token",
            "hosts": ["*"],
            "credentials": self.credentials,
            "mapping_rules": [
                { "method": "POST", "pattern": "/orders", "usage": { "orders": 1 }, "last": true,
                  "require": { "scopes": ["orders.write"] } },
                { "pattern": "/", "usage": { "hits": 1 } },
            ],
            "metrics": { "orders": { "parent": "hits" } },
        });
        merge(&mut service, &self.patch);
        Gateway::start(Setup {
            dataset: DATASET.to_owned(),
            plugin: json!({
                "service_management": { "timeout": "30s" },
                "services": [service],
                "authorization": { "ttl": "1h", "negative_ttl": "1h" },
            }),
            envoy: EnvoyOptions {
                clusters: vec![("id".to_owned(), provider.address)],
                listener: self.listener,
                ..EnvoyOptions::default()
            },
        })
        .await
    }
}

/// A hit with this token.
pub async fn get(client: &Client, token: &str) -> Result<Reply> {
    get_at(client, "/", token).await
}

/// A hit with this token at a path of its own.
pub async fn get_at(client: &Client, path: &str, token: &str) -> Result<Reply> {
    let bearer = format!("Bearer {token}");
    client.get(path, &[("authorization", &bearer)]).await
}

/// An order with this token.
pub async fn order(client: &Client, token: &str) -> Result<Reply> {
    let bearer = format!("Bearer {token}");
    let headers = [("authorization", bearer.as_str())];
    let post = reqwest::Method::POST;
    client.send(post, "/orders", &headers, Vec::new()).await
}

/// A reply's status and challenge, `-` without one.
#[must_use]
pub fn challenge(reply: &Reply) -> (u16, &str) {
    (
        reply.status,
        reply.header("www-authenticate").unwrap_or("-"),
    )
}
