//! What goes wrong meanwhile: one thing after another, out of the seed.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use serde::Serialize;
use service_management::{Fault, FaultRule, FaultScope};
use tokio::time::{Instant, sleep, sleep_until};
use tollgate_simulation::Random;

use super::world::World;

/// Makes things go wrong.
pub struct Accidents {
    random: Random,
    figures: Figures,
}

/// How often what went wrong.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Figures {
    pub faults: u64,
    pub by_kind: BTreeMap<&'static str, u64>,
    /// New configurations and new modules.
    pub reloads: u64,
    pub modules: u64,
}

impl Accidents {
    pub fn new(seed: u64) -> Self {
        Self {
            random: Random::new(seed ^ 0x6163_6369_6465),
            figures: Figures::default(),
        }
    }

    pub fn figures(&self) -> Figures {
        self.figures.clone()
    }

    fn between(&mut self, least: u64, most: u64) -> u64 {
        least + self.random.next() % (most - least + 1)
    }

    /// Lets things go wrong until then, and leaves everything mended.
    pub async fn befall(&mut self, world: &World, until: Instant) -> Result<()> {
        loop {
            world.say("all is well".into());
            let pause = Duration::from_millis(self.between(500, 4_000));
            let begin = Instant::now() + pause;
            if begin + Duration::from_secs(1) >= until {
                sleep_until(until).await;
                return Ok(());
            }
            sleep(pause).await;
            match self.between(0, 9) {
                0 | 1 => self.reload(world).await?,
                2 => self.refuse(world, until).await?,
                _ => self.fault(world, until).await?,
            }
        }
    }

    fn length(&mut self, until: Instant) -> Instant {
        (Instant::now() + Duration::from_millis(self.between(300, 8_000))).min(until)
    }

    async fn reload(&mut self, world: &World) -> Result<()> {
        self.figures.reloads += 1;
        if self.between(0, 2) == 0 {
            self.figures.modules += 1;
            world.say("a new module".into());
            return world.replace_module(self.figures.modules).await;
        }
        world.say("a new configuration".into());
        // Another ttl each time, or Envoy would find nothing new.
        let ttl = 4_000 + self.figures.reloads;
        let interval = self.between(2, 10) * 100;
        world.reconfigure(ttl, interval).await
    }

    async fn refuse(&mut self, world: &World, until: Instant) -> Result<()> {
        self.count("refused");
        let until = self.length(until);
        world.say("service management is down".into());
        world.backend.lock().await.stop().await;
        sleep_until(until).await;
        Ok(world.backend.lock().await.restart().await?)
    }

    async fn fault(&mut self, world: &World, until: Instant) -> Result<()> {
        let (name, fault) = match self.between(0, 7) {
            0 => ("500", Fault::Status(500)),
            1 => ("503 after", Fault::StatusAfter(503)),
            2 => ("403", Fault::Status(403)),
            3 => ("hang", Fault::Hang),
            4 => ("reset before", Fault::ResetBefore),
            5 => ("reset after", Fault::ResetAfter),
            6 => ("delay", Fault::DelayMs(self.between(50, 1_500))),
            _ => ("lag", Fault::LagMs(self.between(500, 5_000))),
        };
        let scope = match self.between(0, 2) {
            0 => FaultScope::Authorize,
            1 => FaultScope::Report,
            _ => FaultScope::Any,
        };
        self.count(name);
        world.say(format!("{name} on {scope:?}"));
        let until = self.length(until);
        let rule = FaultRule::always(scope, fault);
        world.backend.lock().await.set_faults(vec![rule]);
        sleep_until(until).await;
        world.backend.lock().await.clear_faults();
        Ok(())
    }

    fn count(&mut self, name: &'static str) {
        self.figures.faults += 1;
        *self.figures.by_kind.entry(name).or_default() += 1;
    }
}
