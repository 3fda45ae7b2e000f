//! The backend as far as limits go: counters by window, and reports that are applied some
//! time after their acknowledgement.

use std::collections::{HashMap, VecDeque};
use tollgate::authorization::Period;
use tollgate::service_management::{Authorization, UsageReport};

/// Usage of one application at one time.
struct Usage {
    application: usize,
    at: u64,
    delta: u64,
}

/// See the module's description.
pub struct Backend {
    maximum: u64,
    period: Period,
    lag: u64,
    queue: VecDeque<(u64, Vec<Usage>)>,
    counters: HashMap<(usize, u64), u64>,
    /// Calls by gateway and second.
    pub calls: Vec<HashMap<u64, u32>>,
}

impl Backend {
    pub fn new(maximum: u64, period: Period, lag: u64, gateways: usize) -> Self {
        Self {
            maximum,
            period,
            lag,
            queue: VecDeque::new(),
            counters: HashMap::new(),
            calls: vec![HashMap::new(); gateways],
        }
    }

    /// Takes a report, to be applied later.
    pub fn report(&mut self, gateway: usize, body: &[u8], now: u64) {
        self.called(gateway, now);
        let mut usage: Vec<Usage> = Vec::new();
        for (name, value) in form_urlencoded::parse(body) {
            let Some(rest) = name.strip_prefix("transactions[") else {
                continue;
            };
            let (index, field) = rest.split_once(']').unwrap();
            let index: usize = index.parse().unwrap();
            if usage.len() <= index {
                usage.push(Usage {
                    application: 0,
                    at: 0,
                    delta: 0,
                });
            }
            let of = &mut usage[index];
            match field {
                "[user_key]" => of.application = value.parse().unwrap(),
                "[timestamp]" => of.at = value.parse().unwrap(),
                "[usage][hits]" => of.delta = value.parse().unwrap(),
                other => panic!("{other}"),
            }
        }
        self.queue.push_back((now + self.lag, usage));
    }

    /// What it says of an application now (milliseconds).
    pub fn authorize(&mut self, gateway: usize, application: usize, now: u64) -> Authorization {
        self.called(gateway, now);
        while self.queue.front().is_some_and(|(due, _)| *due <= now) {
            for usage in self.queue.pop_front().unwrap().1 {
                let window = self.period.window_at(usage.at);
                *self
                    .counters
                    .entry((usage.application, window.start))
                    .or_default() += usage.delta;
            }
        }
        let window = self.period.window_at(now / 1_000);
        let current = self.counters.get(&(application, window.start));
        Authorization {
            limits: vec![UsageReport {
                metric: "hits".to_owned(),
                period: self.period,
                window,
                maximum: self.maximum,
                current: current.copied().unwrap_or_default(),
            }],
            hierarchy: Vec::new(),
            app_keys: None,
        }
    }

    fn called(&mut self, gateway: usize, now: u64) {
        *self.calls[gateway].entry(now / 1_000).or_default() += 1;
    }
}
