//! What is compared: each variant is one Envoy with one worker, and proof that its filters
//! did the work that is measured.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use anyhow::{Result, ensure};
use clap::ValueEnum;
use serde_json::{Value, json};
use tollgate_harness::{Envoy, EnvoyOptions, Plugin, connection_manager, wasm_filter};

/// In the order in which they are reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Variant {
    /// Envoy without any filter but the router.
    None,
    /// One callback that lets the request pass: what the host costs by itself.
    Raw,
    /// The host calls that a decision needs, and no decision.
    Floor,
    /// A filter on the stock SDK that reads one header.
    Hello,
    /// Envoy's own `api_key_auth` and `local_ratelimit`.
    Native,
    /// Tollgate, with an application that has no limits.
    Unlimited,
    /// Tollgate, with an application that has a limit it does not reach.
    Limited,
    /// The same, known by a token that has been verified before.
    Token,
}

impl Variant {
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Raw => "raw",
            Self::Floor => "floor",
            Self::Hello => "hello",
            Self::Native => "native",
            Self::Unlimited => "unlimited",
            Self::Limited => "limited",
            Self::Token => "token",
        }
    }

    /// The package whose module it loads.
    pub fn package(self) -> Option<&'static str> {
        match self {
            Self::None | Self::Native => None,
            Self::Raw => Some("raw"),
            Self::Floor => Some("floor"),
            Self::Hello => Some("hello-world"),
            Self::Unlimited | Self::Limited | Self::Token => Some("tollgate"),
        }
    }

    /// The consumer's key: every request of every variant carries one.
    pub fn key(self) -> &'static str {
        match self {
            Self::Token => super::token::token(),
            Self::Limited => super::backend::LIMITED,
            _ => super::backend::UNLIMITED,
        }
    }

    /// What its Envoy is started with. `module` is that of [`package`](Self::package);
    /// Tollgate asks `service_management`.
    pub fn options(
        self,
        module: Option<PathBuf>,
        upstream: SocketAddr,
        service_management: SocketAddr,
    ) -> EnvoyOptions {
        let filters = match (self, &module) {
            (Self::Unlimited | Self::Limited | Self::Token, _) => None,
            (Self::Native, _) => Some(native()),
            (Self::Raw | Self::Floor | Self::Hello, Some(module)) => {
                Some(vec![wasm_filter(self.name(), module)])
            }
            (Self::None | Self::Raw | Self::Floor | Self::Hello, _) => Some(Vec::new()),
        };
        let plugin = match self {
            Self::Token => super::token::plugin(),
            _ => Plugin::Shipped,
        };
        EnvoyOptions {
            module,
            filters,
            plugin,
            upstream: Some(upstream),
            service_management: Some(service_management),
            ..quiet()
        }
    }

    /// Fails unless `requests` requests, all that were answered, went the way that the
    /// variant is there to measure. `before` and `after` are all stats of its Envoy. Up to
    /// `under_way` requests more may have been begun: the load generator hangs up at the end.
    pub fn prove(
        self,
        before: &BTreeMap<String, u64>,
        after: &BTreeMap<String, u64>,
        requests: u64,
        under_way: u64,
    ) -> Result<()> {
        let rose = |name: &str| get(after, name).saturating_sub(get(before, name));
        let all = rose("http.ingress.downstream_rq_completed");
        ensure!(
            all == requests,
            "{}: of {all} requests, {requests} were answered with 200",
            self.name()
        );
        let counters: &[&str] = match self {
            Self::None => &[],
            Self::Raw | Self::Floor | Self::Hello => {
                ensure!(
                    get(after, "wasm.envoy.wasm.runtime.v8.active") > 0,
                    "{}: no module is loaded",
                    self.name()
                );
                &[]
            }
            Self::Native => &[
                "http.ingress.api_key_auth.allowed",
                "native.http_local_rate_limit.ok",
            ],
            Self::Unlimited | Self::Limited => &[super::backend::ADMITTED],
            Self::Token => {
                let verified = rose(super::token::VERIFICATIONS);
                ensure!(verified <= 1, "token: {verified} signatures were looked at");
                &[super::token::ADMITTED]
            }
        };
        for counter in counters {
            let done = rose(counter);
            ensure!(
                (requests.saturating_sub(KEPT_BACK)..=requests + under_way + KEPT_BACK)
                    .contains(&done),
                "{}: {counter} rose by {done} for {requests} requests",
                self.name()
            );
        }
        Ok(())
    }
}

/// Requests of which the filter's counter may be short, or be told late: each VM adds what it
/// admitted by the dozen, and on its ticks.
const KEPT_BACK: u64 = 64;

/// The API behind all variants: an Envoy that replies itself. It costs the machine less
/// than the proxies in front of it, and needs no optimized build of ours.
pub async fn upstream(envoy: &Path) -> Result<Envoy> {
    let reply = |listener: &mut Value| {
        connection_manager(listener)["route_config"]["virtual_hosts"][0]["routes"] = json!([{
            "match": { "prefix": "/" },
            "direct_response": { "status": 200, "body": { "inline_string": "ok\n" } },
        }]);
    };
    Envoy::start(EnvoyOptions {
        executable: Some(envoy.to_owned()),
        filters: Some(Vec::new()),
        listener: Some(Arc::new(reply)),
        processor: beside(),
        ..quiet()
    })
    .await
}

/// The processor of what is measured: it is not to be moved about, nor to wait for the load.
/// `None` where there is but one.
fn measured() -> Option<usize> {
    thread::available_parallelism()
        .is_ok_and(|processors| processors.get() > 1)
        .then_some(0)
}

/// The processor of the load and of the API behind: another one.
pub fn beside() -> Option<usize> {
    measured().map(|processor| processor + 1)
}

/// One worker, and nothing written while it works.
pub fn quiet() -> EnvoyOptions {
    EnvoyOptions {
        concurrency: 1,
        processor: measured(),
        access_log: false,
        log_level: "warning".into(),
        ..EnvoyOptions::default()
    }
}

fn native() -> Vec<Value> {
    let always = json!({ "default_value": { "numerator": 100, "denominator": "HUNDRED" } });
    vec![
        json!({
            "name": "api_key_auth",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.api_key_auth.v3.ApiKeyAuth",
                "credentials": [{ "key": super::backend::UNLIMITED, "client": "bench" }],
                "key_sources": [{ "header": "x-api-key" }],
            },
        }),
        json!({
            "name": "local_ratelimit",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit",
                "stat_prefix": "native",
                "token_bucket": { "max_tokens": 100_000_000, "tokens_per_fill": 100_000_000, "fill_interval": "1s" },
                "filter_enabled": always,
                "filter_enforced": always,
            },
        }),
    ]
}

pub fn get(stats: &BTreeMap<String, u64>, name: &str) -> u64 {
    stats.get(name).copied().unwrap_or_default()
}
