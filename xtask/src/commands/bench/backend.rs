//! The side of service management in the bench: the applications, and what Tollgate counts.

use anyhow::Result;
use service_management::{Dataset, Options, StandIn};

/// The key of the application without limits.
pub const UNLIMITED: &str = "bench-unlimited";
/// The key of the application with a limit that no bench reaches.
pub const LIMITED: &str = "bench-limited";
/// The filter's counter of requests that it has let through.
pub const ADMITTED: &str = "wasmcustom.tollgate.1001.requests_admitted";

/// What service 1001 of the shipped configuration knows; the token is the harness's.
const DATASET: &str = r#"
service_token: svc-token
metrics: { hits: null, orders: hits }
plans:
  unlimited: {}
  limited: { hits: { minute: 1000000000 } }
services:
  "1001":
    backend_version: "1"
    applications:
      unlimited: { plan: unlimited, user_key: bench-unlimited }
      limited: { plan: limited, user_key: bench-limited }
  "1002":
    backend_version: oauth
    applications:
      limited: { plan: limited }
"#;

/// The stand-in that all variants with Tollgate ask.
pub async fn start() -> Result<StandIn> {
    let dataset = Dataset::from_yaml(DATASET)?;
    Ok(StandIn::start(dataset, Options::default()).await?)
}
