//! Requests at a steady rate, whatever becomes of them.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::consumers::Consumers;
use super::tally::{Became, Tally};
use super::world::World;

/// Requests under way at most: more means that the machine is too slow.
const MOST_AT_ONCE: usize = 500;

/// Sends so many requests a second until then, and waits for what is under way.
pub async fn send(
    world: &World,
    tally: &Tally,
    consumers: &mut Consumers,
    rate: u32,
    until: Instant,
) -> Result<()> {
    let room = Arc::new(Semaphore::new(MOST_AT_ONCE));
    let mut ticks = interval(Duration::from_secs(1) / rate);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut sent = JoinSet::new();
    while Instant::now() < until {
        ticks.tick().await;
        let request = consumers.next();
        let Ok(room) = Arc::clone(&room).try_acquire_owned() else {
            tally.behind();
            continue;
        };
        let client = world.client();
        sent.spawn(async move {
            let became = Became::of(&client, &request).await;
            drop(room);
            (request, became)
        });
        while let Some(done) = sent.try_join_next() {
            let (request, became) = done?;
            tally.add(&request, became);
        }
    }
    while let Some(done) = sent.join_next().await {
        let (request, became) = done?;
        tally.add(&request, became);
    }
    Ok(())
}
