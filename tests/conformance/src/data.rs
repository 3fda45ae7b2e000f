//! The captures' data, as somebody reads it who configures a gateway or makes up requests.
//!
//! Apart from the stand-in's own reading of the same file, which keeps what it makes of it
//! to itself.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde::Deserialize;

/// Metrics with their parents.
pub type Metrics = BTreeMap<String, Option<String>>;

/// All of it.
#[derive(Clone, Debug, Deserialize)]
pub struct Data {
    /// Whose the services are.
    pub provider_key: String,
    /// The token of every service.
    pub service_token: String,
    /// Every service's metrics.
    pub metrics: Metrics,
    /// Plans: metric, period, maximum.
    pub plans: BTreeMap<String, BTreeMap<String, BTreeMap<String, u64>>>,
    /// Services by id.
    pub services: BTreeMap<String, Service>,
}

/// A service.
#[derive(Clone, Debug, Deserialize)]
pub struct Service {
    /// `1` user_key, `2` app_id, `oauth`.
    pub backend_version: String,
    /// Whether it is the provider's, if none is named.
    #[serde(default)]
    pub default_service: bool,
    /// `active` or `suspended`.
    #[serde(default = "active")]
    pub state: String,
    /// Whether a referrer is looked at.
    #[serde(default)]
    pub referrer_filters_required: bool,
    /// Applications by id.
    pub applications: BTreeMap<String, Application>,
}

/// An application.
#[derive(Clone, Debug, Deserialize)]
pub struct Application {
    /// Its plan.
    pub plan: String,
    /// `active` or `suspended`.
    #[serde(default = "active")]
    pub state: String,
    /// Its key in a service of user keys.
    pub user_key: Option<String>,
    /// Its keys in the other services.
    #[serde(default)]
    pub app_keys: Vec<String>,
    /// Where it may be used, with `*` for any text.
    #[serde(default)]
    pub referrer_filters: Vec<String>,
    /// Where an OAuth client may be sent back to.
    pub redirect_url: Option<String>,
}

fn active() -> String {
    "active".to_owned()
}

impl Data {
    /// Reads `tests/data/dataset.yaml`.
    ///
    /// # Errors
    /// It is not of this shape.
    pub fn read() -> Result<Self> {
        serde_yaml::from_str(crate::captures::dataset()).context("tests/data/dataset.yaml")
    }
}
