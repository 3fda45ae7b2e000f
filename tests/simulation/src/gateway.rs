//! One gateway: the filter's core, driven as `src/host/root` drives it.

use crate::random::Random;
use tollgate::authorization::{
    Accuracy, Ahead, Applications, Identity, KeyRule, Learned, Lifetimes, Next, Question, Referrer,
    Refresher, Shown, Slot, Verdict,
};
use tollgate::config::Uncertain;
use tollgate::credentials::{Digest, Kind};
use tollgate::mapping::{Metrics, Usage};
use tollgate::moment::Moment;
use tollgate::service_management::{Authorization, ReportAnswer, Right, ServiceAccess};
use tollgate::usage::{Flusher, MOST_LOOKS, Report, Settings, Terms, Urgent, UrgentCalls};
use tollgate_shared_data::Memory;

const SCOPE: u64 = 7;
const SERVICE: ServiceAccess<'_> = ServiceAccess {
    id: "1001",
    right: Right::ServiceToken("svc-token"),
};

/// Room in a gateway's table for so many applications at least. In a table that is hardly larger than
/// needed now and then more applications fall on one set than it has slots; one without a slot is
/// decided by asking for each request, which is not simulated.
const LEAST_ROOM: u32 = 512;

/// What comes with a `user_key`.
const SHOWN: Shown<'_> = Shown {
    rule: KeyRule::IfAny,
    app_key: None,
    referrer: Referrer::Ignored,
};

/// A call that the gateway makes.
pub enum Call {
    /// A report: batch and body.
    Report(u64, Vec<u8>),
    /// A question about a known application.
    Ask {
        slot: Slot,
        digest: Digest,
        application: usize,
    },
}

/// See the module's description.
pub struct Gateway {
    data: Memory,
    applications: Applications,
    flusher: Flusher,
    refresher: Refresher,
    urgent: Option<Urgent>,
    urgent_calls: UrgentCalls,
    metrics: Metrics,
    accuracy: Accuracy,
    settings: Settings,
    ttl: u64,
    seed: u64,
    random: Random,
    next_full_tick: u64,
    usage: Usage,
}

impl Gateway {
    pub fn new(accuracy: Accuracy, interval: u64, ttl: u64, applications: u32, seed: u64) -> Self {
        let data = Memory::default();
        let metrics = Metrics::new([("hits".to_owned(), None)]).unwrap();
        let mut random = Random::new(seed);
        let mut usage = Usage::new();
        usage.add(metrics.id("hits").unwrap(), 1);
        Self {
            applications: Applications::open(&data, applications.saturating_mul(4).max(LEAST_ROOM)),
            data,
            flusher: Flusher::new(SCOPE, random.next()),
            refresher: Refresher::new(SCOPE),
            urgent: Urgent::wanted(SCOPE, accuracy),
            urgent_calls: UrgentCalls::default(),
            metrics,
            accuracy,
            settings: Settings {
                interval,
                timeout: 5_000,
                batch: 100,
                uncertain: Uncertain::Resend,
                ahead: Ahead {
                    least: (ttl / 4).max(interval * 2).min(ttl / 2),
                    round: interval,
                },
            },
            ttl,
            seed,
            random,
            next_full_tick: 0,
            usage,
        }
    }

    fn lifetimes(&self) -> Lifetimes {
        let urgent = self.urgent.as_ref();
        let accuracy = urgent.map_or(self.accuracy, |urgent| urgent.accuracy(self.accuracy));
        Lifetimes {
            ttl: self.ttl,
            negative_ttl: 10_000,
            stale_if_error: 600_000,
            accuracy,
        }
    }

    /// The digest of an application, which is another in every process.
    fn digest(&self, application: usize) -> Digest {
        let mut random = Random::new(self.seed ^ ((application as u64 + 1) << 20));
        let mut digest = [0; 16];
        digest[..8].copy_from_slice(&random.next().to_le_bytes());
        digest[8..].copy_from_slice(&random.next().to_le_bytes());
        Digest(digest)
    }

    pub fn decide(&mut self, application: usize, now: Moment) -> Verdict {
        let key = application.to_string();
        let identity = Identity {
            digest: self.digest(application),
            scope: SCOPE,
            kind: Kind::UserKey,
            value: key.as_bytes(),
            shown: SHOWN,
            tells: false,
        };
        let decided =
            self.applications
                .decide(&self.data, &identity, &self.usage, &self.metrics, now);
        decided.unwrap()
    }

    pub fn learn(&mut self, application: usize, answer: &Authorization, now: Moment) {
        let key = application.to_string();
        let identity = Identity {
            digest: self.digest(application),
            scope: SCOPE,
            kind: Kind::UserKey,
            value: key.as_bytes(),
            shown: SHOWN,
            tells: false,
        };
        let lifetimes = self.lifetimes();
        let learned = self.applications.learn(
            &self.data,
            &identity,
            answer,
            &self.metrics,
            now,
            &lifetimes,
        );
        assert!(matches!(learned, Ok(Learned::Remembered)), "no slot");
    }

    /// As `Root::on_tick`.
    pub fn tick(&mut self, now: Moment) -> Vec<Call> {
        let mut calls = Vec::new();
        if let Some(urgent) = &mut self.urgent {
            let due = urgent.next(
                &self.data,
                &mut self.applications,
                now,
                self.settings.batch,
                &mut self.urgent_calls,
            );
            self.flusher.urge(&due.report, urgent.held(), now);
            for slot in due.ask.iter().rev() {
                self.refresher.add_first(*slot, now);
            }
        }
        if now.monotonic >= self.next_full_tick {
            self.next_full_tick = now.monotonic + self.settings.interval.min(1_000);
            self.refresher.take_marks(&self.data, &self.applications);
            let (data, applications) = (&self.data, &mut self.applications);
            let ahead = self.settings.ahead;
            let mut looks = MOST_LOOKS;
            self.refresher
                .list_marked(data, applications, ahead, now, &mut looks);
        }
        self.flush(now, &mut calls);
        self.refresh(now, &mut calls);
        calls
    }

    fn flush(&mut self, now: Moment, calls: &mut Vec<Call>) {
        let terms = Terms {
            metrics: &self.metrics,
            settings: self.settings,
            now,
        };
        let (reports, _) = self.flusher.next(
            &self.data,
            &mut self.applications,
            &SERVICE,
            &terms,
            &mut MOST_LOOKS.clone(),
        );
        for (slot, wanted) in self.flusher.take_due() {
            self.refresher.add(slot, wanted, now);
        }
        for Report { batch, body, .. } in reports {
            calls.push(Call::Report(batch, body));
        }
    }

    fn refresh(&mut self, now: Moment, calls: &mut Vec<Call>) {
        loop {
            let next = self.refresher.next(
                &self.data,
                &mut self.applications,
                self.settings.ahead,
                now,
                || true,
            );
            match next {
                Next::Ask(Question {
                    slot,
                    digest,
                    value,
                    ..
                }) => calls.push(Call::Ask {
                    slot,
                    digest,
                    application: String::from_utf8(value).unwrap().parse().unwrap(),
                }),
                Next::NotWanted(_) => {}
                Next::Nobody | Next::OverBudget { .. } => break,
            }
        }
    }

    /// A report was acknowledged.
    pub fn reported(&mut self, batch: u64, now: Moment) -> Vec<Call> {
        let jitter = self.random.next();
        let terms = Terms {
            metrics: &self.metrics,
            settings: self.settings,
            now,
        };
        self.flusher.answered(
            &self.data,
            &mut self.applications,
            batch,
            &ReportAnswer::Acknowledged,
            &terms,
            jitter,
        );
        let mut calls = Vec::new();
        self.flush(now, &mut calls);
        calls
    }

    /// A question was answered.
    pub fn answered(
        &mut self,
        (slot, digest): (Slot, Digest),
        answer: &Authorization,
        asked: Moment,
        now: Moment,
    ) -> Vec<Call> {
        let lifetimes = self.lifetimes();
        let look = self
            .applications
            .refresh(
                &self.data,
                (slot, digest, &SHOWN),
                Ok(answer),
                &self.metrics,
                asked,
                &lifetimes,
            )
            .unwrap();
        self.refresher.answered(slot);
        if let Some(urgent) = &mut self.urgent {
            urgent.answered(slot, look.late, now);
            self.flusher.urge(&[], urgent.held(), now);
        }
        let mut calls = Vec::new();
        self.refresh(now, &mut calls);
        calls
    }
}
