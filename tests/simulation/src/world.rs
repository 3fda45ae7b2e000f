//! Gateways, the backend between them, the load on them; and the figures.

use crate::backend::Backend;
use crate::gateway::{Call, Gateway};
use crate::random::Random;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use tollgate::authorization::{Accuracy, Period, Refusal, Slot, Verdict};
use tollgate::credentials::Digest;
use tollgate::moment::Moment;
use tollgate::service_management::Authorization;

/// 2026-11-21 20:47:00 UTC, the first second of a minute.
const START: u64 = 1_795_294_020_000;
/// Milliseconds from a gateway to the backend, and as many back.
const ONE_WAY: u64 = 5;
/// Milliseconds between ticks.
const TICK: u64 = 100;

/// How the gateways share the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Report every 10 seconds and look every 10 seconds.
    FixedFlush,
    /// `authorization.accuracy: eager`.
    Eager,
    /// `authorization.accuracy: strict`.
    Strict,
}

/// How the load is spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// As much on each gateway.
    Even,
    /// Half of it on the first, half of the rest on the second, and so on.
    Uneven,
    /// All of it on one gateway, and then on the next.
    Moving {
        /// For so many milliseconds.
        every: u64,
    },
}

/// What to simulate.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// 1 to 1,024.
    pub gateways: u16,
    /// How many each is told that there are, if that is another number.
    pub told: Option<u16>,
    /// What each application may use in a window, on all gateways together.
    pub limit: u64,
    /// The windows.
    pub period: Period,
    /// Requests a second, on all gateways together.
    pub rate: f64,
    /// How they are spread over the gateways.
    pub load: Load,
    /// Applications; each has as much of the load.
    pub applications: u32,
    /// Milliseconds until the backend applies a report that it has acknowledged.
    pub lag: u64,
    /// How the limit is shared.
    pub mode: Mode,
    /// Whole windows to simulate, after half of one that does not count.
    pub windows: u32,
    /// Another seed is another course of the same thing.
    pub seed: u64,
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Figures {
    /// Admitted of each application in each window.
    pub admitted: Vec<u64>,
    /// Offered to each application in each window.
    pub offered: Vec<u64>,
    /// Requests refused because nothing was granted, though something was left.
    pub early: u64,
    /// Requests in all.
    pub requests: u64,
    /// Calls to the backend a second and gateway.
    pub calls: f64,
    /// The most calls of one gateway within one second.
    pub most_calls: u32,
    limit: u64,
}

impl Figures {
    /// Admitted over the limit, as a part of it: of all windows in which it was reached.
    #[must_use]
    pub fn overrun(&self) -> f64 {
        let over = self.admitted.iter().map(|it| self.over(*it));
        over.sum::<f64>() / self.admitted.len().max(1) as f64
    }

    /// The same of the worst window.
    #[must_use]
    pub fn worst_overrun(&self) -> f64 {
        let over = self.admitted.iter().map(|it| self.over(*it));
        over.fold(0.0, f64::max)
    }

    fn over(&self, admitted: u64) -> f64 {
        (admitted as f64 / self.limit as f64 - 1.0).max(0.0)
    }

    /// The part of what could have been admitted, of limit and offer the smaller, that was not.
    #[must_use]
    pub fn unused(&self) -> f64 {
        let windows = self.admitted.iter().zip(&self.offered);
        let (unused, all) = windows.fold((0, 0), |(unused, all), (admitted, offered)| {
            let most = self.limit.min(*offered);
            (unused + most.saturating_sub(*admitted), all + most)
        });
        unused as f64 / all.max(1) as f64
    }

    /// Early refusals, as a part of all requests.
    #[must_use]
    pub fn early(&self) -> f64 {
        self.early as f64 / self.requests.max(1) as f64
    }
}

enum Event {
    Request,
    Tick(usize),
    /// At the backend.
    Reported(usize, u64, Vec<u8>),
    Asked(usize, (Slot, Digest), usize, u64),
    FirstAsked(usize, usize),
    /// Back at the gateway.
    Acknowledged(usize, u64),
    Answered(usize, (Slot, Digest), Authorization, u64),
    Learned(usize, usize, Authorization, u64),
}

struct World {
    setup: Setup,
    now: u64,
    /// When the first window begins that counts, and how long each is (milliseconds).
    first: u64,
    length: u64,
    gateways: Vec<Gateway>,
    backend: Backend,
    events: HashMap<u64, Event>,
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    scheduled: u64,
    waiting: HashMap<(usize, usize), u32>,
    random: Random,
    next_request: f64,
    admitted: HashMap<(usize, u64), u64>,
    offered: HashMap<(usize, u64), u64>,
    figures: Figures,
}

/// Simulates.
#[must_use]
pub fn run(setup: Setup) -> Figures {
    World::new(setup).run()
}

impl World {
    fn new(setup: Setup) -> Self {
        let told = setup.told.unwrap_or(setup.gateways);
        let strict = Accuracy::Strict {
            gateways: told,
            settled_after: 0,
        };
        let eager = Accuracy::Eager { gateways: told };
        let (accuracy, ttl) = match setup.mode {
            Mode::FixedFlush => (Accuracy::Exact, 10_000),
            // One gateway knows everything.
            _ if told == 1 => (Accuracy::Exact, 60_000),
            Mode::Eager => (eager, 60_000),
            Mode::Strict => (strict, 60_000),
        };
        let first = setup.period.window_at(START / 1_000);
        let length = (first.end - first.start) * 1_000;
        let count = usize::from(setup.gateways);
        let mut random = Random::new(setup.seed);
        let gateways = (0..count)
            .map(|_| Gateway::new(accuracy, 10_000, ttl, setup.applications, random.next()))
            .collect();
        let mut world = Self {
            setup,
            // Begin half a window early.
            now: first.end * 1_000 - length / 2,
            first: first.end * 1_000,
            length,
            gateways,
            backend: Backend::new(setup.limit, setup.period, setup.lag, count),
            events: HashMap::new(),
            queue: BinaryHeap::new(),
            scheduled: 0,
            waiting: HashMap::new(),
            random,
            next_request: 0.0,
            admitted: HashMap::new(),
            offered: HashMap::new(),
            figures: Figures {
                limit: setup.limit,
                ..Figures::default()
            },
        };
        for gateway in 0..count {
            let phase = world.random.next() % TICK;
            world.after(phase, Event::Tick(gateway));
        }
        world.after(0, Event::Request);
        world
    }

    fn after(&mut self, milliseconds: u64, event: Event) {
        self.scheduled += 1;
        self.events.insert(self.scheduled, event);
        self.queue
            .push(Reverse((self.now + milliseconds, self.scheduled)));
    }

    fn run(mut self) -> Figures {
        let (first, length) = (self.first, self.length);
        let end = first + length * u64::from(self.setup.windows);
        while let Some(Reverse((at, number))) = self.queue.pop() {
            if at >= end {
                break;
            }
            self.now = at;
            let event = self.events.remove(&number).unwrap();
            self.happen(event);
        }
        let seconds = (end - first) / 1_000;
        let calls = self.backend.calls.iter().flat_map(|of| {
            of.iter()
                .filter(|(second, _)| **second >= first / 1_000)
                .map(|(_, calls)| *calls)
        });
        self.figures.most_calls = calls.clone().max().unwrap_or_default();
        let calls: u64 = calls.map(u64::from).sum();
        self.figures.calls = calls as f64 / seconds as f64 / self.gateways.len() as f64;
        for application in 0..self.setup.applications as usize {
            for window in 0..u64::from(self.setup.windows) {
                let key = (application, (first + window * length) / 1_000);
                self.figures
                    .admitted
                    .push(self.admitted.get(&key).copied().unwrap_or_default());
                self.figures
                    .offered
                    .push(self.offered.get(&key).copied().unwrap_or_default());
            }
        }
        self.figures
    }

    fn moment(&self, milliseconds: u64) -> Moment {
        Moment {
            wall: milliseconds,
            monotonic: milliseconds - START + 100_000_000,
        }
    }

    fn happen(&mut self, event: Event) {
        let now = self.moment(self.now);
        match event {
            Event::Request => {
                let gateway = self.pick_gateway();
                let application =
                    (self.random.next() % u64::from(self.setup.applications)) as usize;
                self.request(gateway, application);
                self.next_request += self.random.pause(self.setup.rate / 1_000.0);
                let pause = self.next_request.floor();
                self.next_request -= pause;
                self.after(pause as u64, Event::Request);
            }
            Event::Tick(gateway) => {
                let calls = self.gateways[gateway].tick(now);
                self.call(gateway, calls);
                self.after(TICK, Event::Tick(gateway));
            }
            Event::Reported(gateway, batch, body) => {
                self.backend.report(gateway, &body, self.now);
                self.after(ONE_WAY, Event::Acknowledged(gateway, batch));
            }
            Event::Asked(gateway, at, application, asked) => {
                let answer = self.backend.authorize(gateway, application, self.now);
                self.after(ONE_WAY, Event::Answered(gateway, at, answer, asked));
            }
            Event::FirstAsked(gateway, application) => {
                let answer = self.backend.authorize(gateway, application, self.now);
                let asked = self.now - ONE_WAY;
                self.after(ONE_WAY, Event::Learned(gateway, application, answer, asked));
            }
            Event::Acknowledged(gateway, batch) => {
                let calls = self.gateways[gateway].reported(batch, now);
                self.call(gateway, calls);
            }
            Event::Answered(gateway, at, answer, asked) => {
                let asked = self.moment(asked);
                let calls = self.gateways[gateway].answered(at, &answer, asked, now);
                self.call(gateway, calls);
            }
            Event::Learned(gateway, application, answer, asked) => {
                let asked = self.moment(asked);
                self.gateways[gateway].learn(application, &answer, asked);
                let waiting = self.waiting.remove(&(gateway, application));
                for _ in 0..waiting.unwrap_or_default() {
                    self.request(gateway, application);
                }
            }
        }
    }

    fn pick_gateway(&mut self) -> usize {
        let count = self.gateways.len();
        match self.setup.load {
            Load::Even => (self.random.next() % count as u64) as usize,
            Load::Uneven => {
                let mut gateway = 0;
                while gateway + 1 < count && self.random.next().is_multiple_of(2) {
                    gateway += 1;
                }
                gateway
            }
            Load::Moving { every } => (self.now / every.max(1)) as usize % count,
        }
    }

    fn request(&mut self, gateway: usize, application: usize) {
        let now = self.moment(self.now);
        let verdict = self.gateways[gateway].decide(application, now);
        if verdict == Verdict::Unknown {
            let waiting = self.waiting.entry((gateway, application)).or_default();
            *waiting += 1;
            if *waiting == 1 {
                self.after(ONE_WAY, Event::FirstAsked(gateway, application));
            }
            return;
        }
        let window = self.setup.period.window_at(now.seconds()).start;
        *self.offered.entry((application, window)).or_default() += 1;
        if let Verdict::Admitted { .. } = verdict {
            *self.admitted.entry((application, window)).or_default() += 1;
        }
        if self.now >= self.first {
            self.figures.requests += 1;
            self.figures.early += u64::from(verdict == Verdict::Refused(Refusal::Early));
        }
    }

    fn call(&mut self, gateway: usize, calls: Vec<Call>) {
        for call in calls {
            match call {
                Call::Report(batch, body) => {
                    self.after(ONE_WAY, Event::Reported(gateway, batch, body));
                }
                Call::Ask {
                    slot,
                    digest,
                    application,
                    ..
                } => {
                    let asked = self.now;
                    self.after(
                        ONE_WAY,
                        Event::Asked(gateway, (slot, digest), application, asked),
                    );
                }
            }
        }
    }
}
