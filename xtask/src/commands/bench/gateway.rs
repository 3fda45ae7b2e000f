//! Gateways of any size: the configuration that makes one, and a service management that
//! knows every application and costs the machine little.
//!
//! Apart from the variants, which are the shipped configuration, because these grow.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
use serde_json::{Value, json};
use tollgate_harness::{Envoy, EnvoyOptions, Plugin, connection_manager};

use super::variant::quiet;

/// What an application may use, for ever: a limit that no bench reaches. Eternity has no
/// window, so the answer is the same at any time.
const AUTHORIZED: &str = concat!(
    r#"<?xml version="1.0" encoding="UTF-8"?><status><authorized>true</authorized>"#,
    r#"<plan>bench</plan><usage_reports><usage_report metric="hits" period="eternity">"#,
    "<max_value>1000000000000</max_value><current_value>0</current_value>",
    "</usage_report></usage_reports></status>"
);

/// A gateway's size. Its requests are those of a [`Cycle`](super::load::Cycle).
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Services, each with a host of its own.
    pub services: u64,
    /// Mapping rules of each; the one that matches stands in the middle.
    pub rules: u64,
    /// Applications that there is room for.
    pub capacity: u32,
    /// Questions about unknown applications that may be asked in a second.
    pub unknown_calls: u32,
}

impl Default for Size {
    fn default() -> Self {
        Self {
            services: 1,
            rules: 2,
            capacity: 16_384,
            unknown_calls: 1_000_000,
        }
    }
}

impl Size {
    /// The configuration. Nothing is asked again, and reports are as rare as they may be, so
    /// that rounds are about requests.
    pub fn plugin(self) -> Plugin {
        let rules: Vec<Value> = (0..self.rules)
            .map(|number| match number {
                _ if number == self.rules / 2 => json!({
                    "method": "GET", "pattern": "/v1/orders", "usage": { "orders": 1 },
                    "last": true,
                }),
                // As REST APIs have them: two for each resource.
                _ if number % 2 == 0 => json!({
                    "method": "GET", "pattern": format!("/v1/resource{number}/{{id}}$"),
                    "usage": { "hits": 1 },
                }),
                _ => json!({
                    "method": "POST", "pattern": format!("/v1/resource{}$", number - 1),
                    "usage": { "hits": 1 },
                }),
            })
            .collect();
        let services: Vec<Value> = (0..self.services)
            .map(|number| {
                json!({
                    "id": (1001 + number).to_string(),
                    "token": { "env": "TG_SERVICE_TOKEN" },
                    "hosts": [format!("h{number}.example.com")],
                    "credentials": { "user_key": [{ "header": "x-api-key" }] },
                    "metrics": { "orders": { "parent": "hits" }, "hits": {} },
                    "mapping_rules": rules,
                })
            })
            .collect();
        Plugin::Replace(json!({
            "service_management": { "cluster": "service-management", "authority": "backend" },
            "services": services,
            "authorization": {
                "ttl": "1d", "capacity": self.capacity,
                "unknown_calls_per_second": self.unknown_calls,
            },
            "reporting": { "interval": "60s" },
        }))
    }
}

/// Tollgate of this size.
pub fn options(
    module: PathBuf,
    plugin: Plugin,
    upstream: SocketAddr,
    service_management: SocketAddr,
) -> EnvoyOptions {
    EnvoyOptions {
        module: Some(module),
        plugin,
        upstream: Some(upstream),
        service_management: Some(service_management),
        ..quiet()
    }
}

/// A service management that authorizes everybody and takes every report: an Envoy that
/// replies itself.
pub async fn service_management(envoy: &Path) -> Result<Envoy> {
    let reply = |path: &str, status: u16, body: &str| {
        json!({
            "match": { "path": path },
            "direct_response": { "status": status, "body": { "inline_string": body } },
            "response_headers_to_add": [{ "header": {
                "key": "content-type", "value": "application/vnd.3scale-v2.0+xml",
            }, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD" }],
        })
    };
    let routes = json!([
        reply("/transactions/authorize.xml", 200, AUTHORIZED),
        reply("/transactions.xml", 202, ""),
    ]);
    let listener = move |listener: &mut Value| {
        connection_manager(listener)["route_config"]["virtual_hosts"][0]["routes"] = routes.clone();
    };
    Envoy::start(EnvoyOptions {
        executable: Some(envoy.to_owned()),
        // A reply to half of a report would end the connection.
        filters: Some(vec![json!({
            "name": "buffer",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.buffer.v3.Buffer",
                "max_request_bytes": 1_048_576,
            },
        })]),
        listener: Some(Arc::new(listener)),
        ..quiet()
    })
    .await
}

/// What has happened in an Envoy so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Requests answered, whatever with.
    pub completed: u64,
    /// Answered with 2xx.
    pub ok: u64,
    /// Over all services: admitted by Tollgate.
    pub admitted: u64,
    /// Questions about applications.
    pub questions: u64,
    /// Reports.
    pub reports: u64,
    /// Answers for applications that found no place.
    pub uncached: u64,
}

impl Counts {
    /// Reads them from the admin port, and no other stats: there are some ten thousand of a
    /// thousand services.
    pub async fn read(envoy: &Envoy) -> Result<Self> {
        let filter = "/stats?filter=(requests_(admitted|uncached)|(authorize|refresh|report)_calls|http.ingress.downstream_rq_(completed|2xx))$";
        let text = envoy.admin(filter).await?;
        let mut counts = Self::default();
        let values: BTreeMap<&str, u64> = text
            .lines()
            .filter_map(|line| line.split_once(": "))
            .filter_map(|(name, value)| Some((name, value.parse().ok()?)))
            .collect();
        for (name, value) in values {
            let (of, what) = name.rsplit_once('.').unwrap_or_default();
            // Envoy counts requests by listener, too: those would count twice.
            let sum = match (of, what) {
                ("http.ingress", "downstream_rq_completed") => &mut counts.completed,
                ("http.ingress", "downstream_rq_2xx") => &mut counts.ok,
                (_, "requests_admitted") => &mut counts.admitted,
                (_, "authorize_calls" | "refresh_calls") => &mut counts.questions,
                (_, "report_calls") => &mut counts.reports,
                (_, "requests_uncached") => &mut counts.uncached,
                _ => continue,
            };
            *sum += value;
        }
        Ok(counts)
    }

    /// What has happened since.
    pub fn since(self, before: Self) -> Self {
        Self {
            completed: self.completed.saturating_sub(before.completed),
            ok: self.ok.saturating_sub(before.ok),
            admitted: self.admitted.saturating_sub(before.admitted),
            questions: self.questions.saturating_sub(before.questions),
            reports: self.reports.saturating_sub(before.reports),
            uncached: self.uncached.saturating_sub(before.uncached),
        }
    }
}
