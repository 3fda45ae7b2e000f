//! Puts the captures' data into a real backend, through its internal API.
//!
//! Apart from the comparison, which needs the public protocol only: whoever has filled the
//! backend in another way leaves this out.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use reqwest::Method;
use serde_json::{Value, json};

use crate::data::{Data, Metrics};

/// A user of the internal API (`CONFIG_INTERNAL_API_USER` and `_PASSWORD` of the backend).
pub struct User {
    /// The name.
    pub name: String,
    /// The password.
    pub password: String,
}

/// Makes services, tokens, metrics, limits and applications as the data says; leaves
/// everything else as it is. May be done again.
///
/// # Errors
/// The backend does not take something. The message names the path.
pub async fn load(url: &str, user: &User) -> Result<()> {
    let data = Data::read()?;
    let internal = Internal {
        url: format!("{}/internal", url.trim_end_matches('/')),
        user,
        http: reqwest::Client::builder().no_proxy().build()?,
    };
    let ids = metric_ids(&data.metrics);
    for (id, service) in &data.services {
        let attributes = json!({ "service": {
            "id": id,
            "provider_key": data.provider_key,
            "backend_version": service.backend_version,
            "state": service.state,
            "referrer_filters_required": service.referrer_filters_required,
            "default_service": service.default_service,
        } });
        let place = format!("/services/{id}");
        internal.send(Method::PUT, &place, attributes).await?;
        let tokens = json!({ "service_tokens": { (&data.service_token): { "service_id": id } } });
        internal
            .send(Method::POST, "/service_tokens/", tokens)
            .await?;
        for (metric, id) in &ids {
            let parent = data.metrics.get(*metric).cloned().flatten();
            let parent = parent.and_then(|parent| ids.get(parent.as_str()));
            let attributes = json!({ "metric": { "name": metric, "parent_id": parent } });
            internal
                .send(Method::PUT, &format!("{place}/metrics/{id}"), attributes)
                .await?;
        }
        for (plan, limits) in &data.plans {
            for (metric, periods) in limits {
                for (period, maximum) in periods {
                    let metric = ids.get(metric.as_str()).context(metric.clone())?;
                    let limit = format!("{place}/plans/{plan}/usagelimits/{metric}/{period}");
                    let attributes = json!({ "usagelimit": { period: maximum } });
                    internal.send(Method::PUT, &limit, attributes).await?;
                }
            }
        }
        for (id, application) in &service.applications {
            let place = format!("{place}/applications/{id}");
            let attributes = json!({ "application": {
                "state": application.state,
                "plan_id": application.plan,
                "plan_name": format!("Plan {} & <co>", application.plan),
                "redirect_url": application.redirect_url,
            } });
            internal.send(Method::PUT, &place, attributes).await?;
            if let Some(key) = &application.user_key {
                let place = format!("{place}/key/{key}");
                internal.send(Method::PUT, &place, json!({})).await?;
            }
            for key in &application.app_keys {
                let key = json!({ "application_key": { "value": key } });
                internal
                    .send(Method::POST, &format!("{place}/keys/"), key)
                    .await?;
            }
            for filter in &application.referrer_filters {
                let filter = json!({ "referrer_filter": filter });
                internal
                    .send(Method::POST, &format!("{place}/referrer_filters"), filter)
                    .await?;
            }
        }
    }
    Ok(())
}

/// Metrics and the ids that they are given: numbers, by name.
fn metric_ids(metrics: &Metrics) -> BTreeMap<&str, String> {
    (1..)
        .zip(metrics.keys())
        .map(|(number, name): (u32, _)| (name.as_str(), number.to_string()))
        .collect()
}

struct Internal<'a> {
    url: String,
    user: &'a User,
    http: reqwest::Client,
}

impl Internal<'_> {
    async fn send(&self, method: Method, path: &str, body: Value) -> Result<()> {
        let response = self
            .http
            .request(method, format!("{}{path}", self.url))
            .basic_auth(&self.user.name, Some(&self.user.password))
            .header("content-type", "application/json")
            .body(body.to_string())
            .send()
            .await
            .with_context(|| path.to_owned())?;
        let status = response.status();
        let text = response.text().await?;
        ensure!(status.is_success(), "{path}: {status} {text}");
        Ok(())
    }
}
