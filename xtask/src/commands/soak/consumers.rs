//! Who sends requests, what they cost, and what may be answered to them. Apart from the traffic
//! because this decides what is right.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use tollgate_simulation::Random;

/// The service whose applications are known by user keys.
pub const USER_KEYS: &str = "1001";
/// The service whose applications are known by ids, and have keys.
pub const APP_IDS: &str = "1002";
pub const SERVICES: [&str; 2] = [USER_KEYS, APP_IDS];
/// All metrics: a method comes before its parent.
pub const METRICS: [&str; 2] = ["orders", "hits"];

const FREE: u64 = 25;
const LIMITED: u64 = 8;
const SUSPENDED: u64 = 3;
/// Applications that nobody has used yet.
const NEW: u64 = 400;
/// What an application with limits may use a minute, of each of [`METRICS`].
const MAXIMA: [u64; 2] = [90, 300];

/// Path and what a request for it costs, of each of [`METRICS`] without what it means for its parent.
const COSTS: [(&str, [u64; 2]); 3] = [
    ("/v1/items", [0, 1]),
    ("/v1/orders", [3, 0]),
    ("/v1/bulk", [0, 25]),
];

/// What sort of request it is: with what may be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sort {
    /// Of a known application without limits. Nothing may keep it out.
    Known,
    /// Of a known application with limits.
    Limited,
    /// Of an application that may be unknown yet, or by a key that was not asked about.
    New,
    /// Of an application that is suspended.
    Suspended,
    /// With a key of nobody.
    Stranger,
    /// With a wrong key of a known application.
    WrongKey,
    /// Without a credential.
    Anonymous,
    /// For what has no price.
    NoRule,
}

impl Sort {
    pub const fn may_be(self, status: u16) -> bool {
        match self {
            Self::Known => status == 200,
            Self::Limited => matches!(status, 200 | 429),
            Self::New => matches!(status, 200 | 503),
            Self::Suspended | Self::Stranger | Self::WrongKey => matches!(status, 403 | 503),
            Self::Anonymous => status == 401,
            Self::NoRule => status == 404,
        }
    }
}

/// One request.
#[derive(Clone, Debug)]
pub struct Request {
    pub sort: Sort,
    pub service: &'static str,
    /// Whose it is; of those who are nobody, too.
    pub application: String,
    pub app_key: Option<&'static str>,
    pub path: &'static str,
    /// Of each of [`METRICS`].
    pub cost: [u64; 2],
}

impl Request {
    pub fn host(&self) -> &'static str {
        host(self.service)
    }

    pub fn headers(&self) -> Vec<(&'static str, &str)> {
        if self.sort == Sort::Anonymous {
            return Vec::new();
        }
        let id = if self.service == USER_KEYS {
            "x-api-key"
        } else {
            "x-app-id"
        };
        let key = self.app_key.map(|key| ("x-app-key", key));
        [(id, self.application.as_str())]
            .into_iter()
            .chain(key)
            .collect()
    }

    /// What it counts for each of [`METRICS`] at service management: a method is its parent, too.
    pub const fn counted(cost: [u64; 2]) -> [u64; 2] {
        [cost[0], cost[0] + cost[1]]
    }
}

const fn host(service: &str) -> &'static str {
    // The last digit tells them apart.
    if service.as_bytes()[3] == b'1' {
        "a.example.com"
    } else {
        "b.example.com"
    }
}

/// Makes requests up.
pub struct Consumers(Random);

impl Consumers {
    pub const fn new(seed: u64) -> Self {
        Self(Random::new(seed ^ 0x7261_6666_6963))
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.0.next() % bound
    }

    /// The next request.
    pub fn next(&mut self) -> Request {
        let service = SERVICES[usize::from(self.below(3) == 0)];
        let sort = match self.below(100) {
            0..60 => Sort::Known,
            60..80 => Sort::Limited,
            80..85 => Sort::New,
            85..89 => Sort::Suspended,
            89..95 => Sort::Stranger,
            95..98 if service == APP_IDS => Sort::WrongKey,
            95..98 => Sort::Stranger,
            98 => Sort::Anonymous,
            _ => Sort::NoRule,
        };
        let (path, cost) = match self.below(20) {
            0..13 => COSTS[0],
            13..18 => COSTS[1],
            _ => COSTS[2],
        };
        let (kind, number) = match sort {
            Sort::Known | Sort::NoRule | Sort::WrongKey | Sort::Anonymous => {
                ("free", self.below(FREE))
            }
            Sort::Limited => ("limited", self.below(LIMITED)),
            Sort::New => ("new", self.below(NEW)),
            Sort::Suspended => ("suspended", self.below(SUSPENDED)),
            Sort::Stranger => ("stranger", self.0.next()),
        };
        let app_key = (service == APP_IDS).then_some(match sort {
            Sort::WrongKey => "wrong",
            _ => "first",
        });
        Request {
            sort,
            service,
            application: format!("{kind}-{number}"),
            app_key,
            path: if sort == Sort::NoRule {
                "/nothing"
            } else {
                path
            },
            cost: if sort == Sort::NoRule { [0; 2] } else { cost },
        }
    }

    /// One request of everybody who is to be known before anything happens.
    pub fn acquaintances() -> Vec<Request> {
        let of = |service, sort, kind: &str, number| Request {
            sort,
            service,
            application: format!("{kind}-{number}"),
            app_key: (service == APP_IDS).then_some("first"),
            path: COSTS[0].0,
            cost: COSTS[0].1,
        };
        let all = SERVICES.into_iter().flat_map(|service| {
            let free = (0..FREE).map(move |number| of(service, Sort::Known, "free", number));
            let limited =
                (0..LIMITED).map(move |number| of(service, Sort::Limited, "limited", number));
            free.chain(limited)
        });
        all.collect()
    }
}

/// The maximum a minute of each of [`METRICS`], for those that have any.
pub const fn limits() -> [u64; 2] {
    MAXIMA
}

/// All applications whose usage service management may hold.
pub fn applications() -> Vec<String> {
    let named = |kind, count| (0..count).map(move |number| format!("{kind}-{number}"));
    named("free", FREE)
        .chain(named("limited", LIMITED))
        .chain(named("new", NEW))
        .collect()
}

/// What service management knows.
pub fn dataset() -> Value {
    let service = |version: &str, credential: fn(&str) -> (String, Value)| {
        let mut applications = Map::new();
        let mut add = |kind: &str, count: u64, plan: &str, state: &str| {
            for number in 0..count {
                let name = format!("{kind}-{number}");
                let (field, value) = credential(&name);
                let application = json!({ "plan": plan, "state": state, field: value });
                applications.insert(name, application);
            }
        };
        add("free", FREE, "free", "active");
        add("limited", LIMITED, "limited", "active");
        add("new", NEW, "free", "active");
        add("suspended", SUSPENDED, "free", "suspended");
        json!({ "backend_version": version, "applications": applications })
    };
    let maxima: BTreeMap<_, _> = METRICS
        .into_iter()
        .zip(MAXIMA)
        .map(|(metric, maximum)| (metric, json!({ "minute": maximum })))
        .collect();
    json!({
        "service_token": "svc-token",
        "metrics": { "hits": null, "orders": "hits" },
        "plans": { "free": {}, "limited": maxima },
        "services": {
            USER_KEYS: service("1", |name| ("user_key".into(), json!(name))),
            APP_IDS: service("2", |_| ("app_keys".into(), json!(["first", "second"]))),
        },
    })
}

/// The filter's configuration of the services.
pub fn services() -> Value {
    let rules: Vec<Value> = COSTS
        .into_iter()
        .map(|(path, cost)| {
            let usage: Map<String, Value> = METRICS
                .into_iter()
                .zip(cost)
                .filter(|(_, delta)| *delta > 0)
                .map(|(metric, delta)| (metric.to_owned(), json!(delta)))
                .collect();
            json!({ "pattern": path, "usage": usage, "last": true })
        })
        .collect();
    let service = |id: &str, credentials: Value| {
        json!({
            "id": id,
            "token": { "env": "TG_SERVICE_TOKEN" },
            "hosts": [host(id)],
            "credentials": credentials,
            "metrics": { "orders": { "parent": "hits" } },
            "mapping_rules": rules,
        })
    };
    json!([
        service(
            USER_KEYS,
            json!({ "user_key": [{ "header": "x-api-key" }] })
        ),
        service(
            APP_IDS,
            json!({ "app_id": [{ "header": "x-app-id" }], "app_key": [{ "header": "x-app-key" }] }),
        ),
    ])
}
