//! The traffic and what it shows, part by part. Each part continues where the one before
//! ended: applications that are known stay known, and all usage adds up in the end.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use service_management::{ApplicationChange, Endpoint};
use tollgate_harness::{Reply, eventually};

use super::checks::Checks;
use super::consumers::{Ask, Consumers, connections_by_worker, count, key_of, statuses};
use super::ledger::{Ledger, Usage};
use super::world::{FLUSH_INTERVAL, SERVICE, WORKERS, World};

/// Requests a minute in the plan `small` of the stand-in's data.
const SMALL_PLAN: usize = 5;
/// What must remain of a minute before a limit per minute is used up.
const ENOUGH_OF_A_MINUTE: u64 = 8_000;
/// How long things may take that take a second or two; machines are busy.
const PATIENCE: Duration = Duration::from_secs(15);

/// Who takes part in all of the story.
struct Story<'a> {
    world: &'a mut World,
    checks: &'a mut Checks,
    consumers: Consumers,
    ledger: Ledger,
}

/// Sends all traffic and checks what came of it. Errors are for what keeps the story
/// from going on; what went otherwise than claimed is in `checks`.
pub async fn tell(world: &mut World, checks: &mut Checks) -> Result<()> {
    let consumers = Consumers::connect(&world.envoy).await?;
    let mut ledger = Ledger::default();
    ledger.exempt = consumers.greetings;
    let mut story = Story {
        ledger,
        world,
        checks,
        consumers,
    };
    story.known_applications().await?;
    story.refusals().await?;
    story.a_limit().await?;
    story.an_outage().await?;
    story.the_usage().await?;
    story.the_sum().await
}

impl Story<'_> {
    /// Many requests of few applications: service management is asked once for each.
    async fn known_applications(&mut self) -> Result<()> {
        self.checks.headline("Applications that may pass");
        let mut asks = Vec::new();
        for number in 0..500 {
            asks.push(Ask::by("alice", &format!("/v1/orders/{number}")));
            asks.push(Ask::by("erin", "/v1/items"));
            // Dave's plan: 60 requests a minute, 10 orders of them.
            if number % 10 == 0 {
                asks.push(Ask::by("dave", "/v1/items"));
            }
        }
        let total = asks.len();
        let workers = connections_by_worker(&self.world.envoy).await?;
        let workers: Vec<_> = workers.values().map(u64::to_string).collect();
        self.checks.remark(format!(
            "{total} requests of alice, erin and dave on {} connections, {} on the workers",
            self.consumers.connections(),
            workers.join(" and ")
        ));
        let start = Instant::now();
        let replies = self.send_all(asks).await?;
        let seconds = start.elapsed().as_secs_f64();
        self.checks.equal("admitted", total, count(&replies, 200));
        let calls = self.questions();
        // Each worker may ask once before it can know what another one is being told.
        let most = 3 * u64::from(WORKERS);
        self.checks.holds(
            "calls to service management",
            format!("3 to {most}: one for each application, at most one on each worker"),
            calls,
            (3..=most).contains(&calls),
        );
        self.checks.remark(format!(
            "one call per request would have been {total}; {seconds:.1} s, {:.0} requests/s",
            total as f64 / seconds
        ));
        Ok(())
    }

    /// One request for each reason to be refused, and one that needs no key.
    async fn refusals(&mut self) -> Result<()> {
        self.checks.headline("Requests that may not");
        let refusals = [
            ("no credential", Ask::anonymous("/v1/orders/1"), 401),
            ("unknown key", Ask::by("stranger", "/v1/orders/1"), 403),
            (
                "carol, who is suspended",
                Ask::by("carol", "/v1/orders/1"),
                403,
            ),
            (
                "erin, whose plan is without reports",
                Ask::by("erin", "/v1/reports"),
                403,
            ),
            (
                "alice, an operation without a rule",
                Ask::by("alice", "/v2/orders/1"),
                404,
            ),
        ];
        for (what, ask, expected) in refusals {
            let reply = self.send(&ask).await?;
            self.refused(what, expected, &reply);
            if expected == 401 {
                let header = reply.header("www-authenticate");
                self.checks.holds(
                    "  and how to do better",
                    "a header WWW-Authenticate",
                    header.map_or("none".to_owned(), |value| {
                        format!("WWW-Authenticate: {value}")
                    }),
                    header.is_some(),
                );
            }
        }
        let before = self.questions();
        let again = vec![Ask::by("stranger", "/v1/orders/1"); 50];
        let replies = self.send_all(again).await?;
        self.checks.equal(
            "unknown key, 50 times more",
            "403 × 50".to_owned(),
            statuses(&replies),
        );
        let calls = self.questions() - before;
        // The first of them can have met only one worker.
        let most = u64::from(WORKERS) - 1;
        self.checks.holds(
            "  further calls to service management",
            format!("at most {most}"),
            calls,
            calls <= most,
        );
        let reply = self.consumers.send(&Ask::anonymous("/healthz")).await?;
        self.ledger.exempt += 1;
        self.checks
            .equal("an exempt path, no credential", 200, reply.status);
        Ok(())
    }

    /// A limit per minute, used up by all workers together.
    async fn a_limit(&mut self) -> Result<()> {
        self.checks.headline(&format!(
            "A limit: {SMALL_PLAN} requests a minute, over {WORKERS} workers"
        ));
        let mut application = "bob".to_owned();
        for further in 2.. {
            let remaining = until_next_minute();
            if remaining < ENOUGH_OF_A_MINUTE {
                self.checks.remark(format!(
                    "the minute ends in {:.1} s: waiting for the next one",
                    remaining as f64 / 1e3
                ));
                tokio::time::sleep(Duration::from_millis(remaining + 100)).await;
            }
            let (minute, before) = (this_minute(), until_next_minute());
            let replies = self
                .send_all(vec![Ask::by(&application, "/v1/items"); 40])
                .await?;
            let (still, after) = (this_minute(), until_next_minute());
            if minute == still {
                self.limited(
                    &application,
                    &replies,
                    after.div_ceil(1_000)..=before.div_ceil(1_000),
                );
                return Ok(());
            }
            self.checks
                .remark("the minute ended meanwhile: again, with another application");
            application = format!("bob-{further}");
            self.sign_up(&application, "small")?;
        }
        Ok(())
    }

    /// `to_end` are the seconds that remained of the minute while the replies came.
    fn limited(
        &mut self,
        application: &str,
        replies: &[Reply],
        to_end: std::ops::RangeInclusive<u64>,
    ) {
        let all = replies.len();
        self.checks.equal(
            &format!("{all} requests of {application} at once"),
            format!("200 × {SMALL_PLAN}, 429 × {}", all - SMALL_PLAN),
            statuses(replies),
        );
        let waits: Vec<_> = replies
            .iter()
            .filter(|reply| reply.status == 429)
            .map(|reply| {
                reply
                    .header("retry-after")
                    .and_then(|text| text.parse().ok())
            })
            .collect();
        let shown = match (waits.iter().flatten().min(), waits.iter().flatten().max()) {
            (Some(least), Some(most)) if least == most => format!("{most} s"),
            (Some(least), Some(most)) => format!("{least} to {most} s"),
            _ => "none".to_owned(),
        };
        // The filter's clock and this one are the same, but for rounding.
        let (least, most) = (to_end.start().saturating_sub(1), to_end.end() + 1);
        let right = waits
            .iter()
            .all(|wait| wait.is_some_and(|seconds: u64| (least..=most).contains(&seconds)));
        self.checks.holds(
            "  Retry-After, to the end of the minute",
            format!("{least} to {most} s"),
            shown,
            right && !waits.is_empty(),
        );
    }

    /// Service management goes away and comes back.
    async fn an_outage(&mut self) -> Result<()> {
        self.checks.headline("Service management is down");
        self.sign_up("zoe", "unlimited")?;
        // A report that is cut off by the stop may have been counted and would be sent
        // again: the policy for what is uncertain, but not what is shown here.
        self.usage_arrives().await;
        self.world.service_management.stop().await;
        let asks = (0..200)
            .flat_map(|_| {
                [
                    Ask::by("alice", "/v1/orders/1"),
                    Ask::by("erin", "/v1/items"),
                ]
            })
            .collect();
        let replies = self.send_all(asks).await?;
        self.checks.equal(
            "400 requests of alice and erin, known",
            "200 × 400".to_owned(),
            statuses(&replies),
        );
        let zoe = Ask::by("zoe", "/v1/items");
        let reply = self.send(&zoe).await?;
        self.refused("zoe, a new customer", 503, &reply);
        let wait = retry_after(&reply);
        self.checks.holds(
            "  Retry-After",
            "1 s or more",
            wait.map_or("none".to_owned(), |wait| format!("{} s", wait.as_secs())),
            wait.is_some_and(|wait| !wait.is_zero()),
        );
        // Usage must survive a report that fails.
        let failed = eventually("a report that fails", PATIENCE, async || {
            let failed = self.world.counter("reports_not_delivered").await.ok()?;
            (failed > 0).then_some(failed)
        })
        .await
        .unwrap_or(0);
        self.checks.holds(
            "reports that failed; their usage is kept",
            "at least 1",
            failed,
            failed > 0,
        );

        self.checks.headline("Service management is back");
        self.world.service_management.restart().await?;
        let back = Instant::now();
        let mut tries = 0;
        let status = loop {
            let reply = self.send(&zoe).await?;
            tries += 1;
            match retry_after(&reply) {
                Some(wait) if back.elapsed() + wait < PATIENCE => tokio::time::sleep(wait).await,
                _ => break reply.status,
            }
        };
        self.checks.equal(
            &format!(
                "zoe, request {tries}, {:.1} s later",
                back.elapsed().as_secs_f64()
            ),
            200,
            status,
        );
        Ok(())
    }

    /// What was admitted, beside what service management holds.
    async fn the_usage(&mut self) -> Result<()> {
        self.checks.headline("Usage, after a flush");
        let start = Instant::now();
        self.usage_arrives().await;
        let seconds = start.elapsed().as_secs_f64();
        // What is complete could still be reported again.
        tokio::time::sleep(FLUSH_INTERVAL + FLUSH_INTERVAL / 2).await;
        let (admitted, held) = (self.ledger.usage(), self.held()?);
        // Also what was held and never admitted.
        let all: BTreeSet<_> = admitted.keys().chain(held.keys()).collect();
        for of in all {
            let value = |usage: &Usage| usage.get(of).copied().unwrap_or(0);
            let (admitted, held) = (value(admitted), value(&held));
            let (application, metric) = of;
            self.checks.holds(
                &format!("{application}, {metric}"),
                admitted,
                format!("{admitted} admitted, {held} at service management"),
                admitted == held,
            );
        }
        self.checks.remark(format!(
            "complete after {seconds:.1} s, and the same after another flush"
        ));
        Ok(())
    }

    /// What everybody counted, and what it took.
    async fn the_sum(&mut self) -> Result<()> {
        self.checks.headline("The sum");
        let (requests, admitted) = (self.ledger.requests, self.ledger.admitted);
        let passed = admitted + self.ledger.exempt;
        self.checks
            .equal("requests at the API", passed, self.world.api.requests());
        self.checks.remark(format!(
            "{admitted} were admitted, {} exempt; none that was refused got through",
            self.ledger.exempt
        ));
        // Workers add to it on their ticks.
        let _ = eventually("the filter's counter", PATIENCE, async || {
            let counted = self.world.counter("requests_admitted").await.ok()?;
            (counted >= admitted).then_some(())
        })
        .await;
        let counted = self.world.counter("requests_admitted").await?;
        self.checks
            .equal("admitted, by the filter's counter", admitted, counted);
        let acknowledged = self.world.counter("usage_acknowledged").await?;
        self.checks
            .equal("usage acknowledged, by its counter", admitted, acknowledged);
        let all = usize::try_from(requests + self.ledger.exempt)?;
        // It is written a little later than the replies are sent.
        let _ = eventually("the access log", PATIENCE, async || {
            (self.world.envoy.access_log().ok()?.len() >= all).then_some(())
        })
        .await;
        let log = self.world.envoy.access_log()?;
        self.checks
            .equal("requests in the access log", all, log.len());
        let mut decisions = BTreeMap::<_, usize>::new();
        for line in &log {
            let details = line["details"].as_str().unwrap_or_default();
            *decisions.entry(details).or_default() += 1;
        }
        for (details, count) in decisions {
            self.checks.remark(format!("{count:>5} {details}"));
        }
        let authorize = self.calls(Endpoint::Authorize);
        let report = self.calls(Endpoint::Report);
        self.checks.holds(
            "calls to service management",
            format!("less than a twentieth of {requests}"),
            format!("{authorize} to authorize and {report} to report, for {requests} requests"),
            (authorize + report) * 20 < requests,
        );
        Ok(())
    }

    /// Waits until service management holds all usage so far, but not forever: whether it
    /// does is for others to check.
    async fn usage_arrives(&self) {
        let _ = eventually("usage to arrive", PATIENCE, async || {
            (self.held().ok()? == *self.ledger.usage()).then_some(())
        })
        .await;
    }

    async fn send(&mut self, ask: &Ask) -> Result<Reply> {
        let reply = self.consumers.send(ask).await?;
        self.ledger.note(ask, reply.status);
        Ok(reply)
    }

    async fn send_all(&mut self, asks: Vec<Ask>) -> Result<Vec<Reply>> {
        let replies = self.consumers.send_all(asks.clone()).await?;
        for (ask, reply) in asks.iter().zip(&replies) {
            self.ledger.note(ask, reply.status);
        }
        Ok(replies)
    }

    /// Checks the status and shows what the caller reads.
    fn refused(&mut self, what: &str, expected: u16, reply: &Reply) {
        self.checks.holds(
            what,
            expected,
            format!("{} {}", reply.status, reply.body.trim()),
            reply.status == expected,
        );
    }

    /// Makes an application at service management, of which the gateway knows nothing.
    fn sign_up(&self, application: &str, plan: &str) -> Result<()> {
        let mut change = ApplicationChange::plan(plan);
        change.user_key = Some(key_of(application));
        let backend = &self.world.service_management;
        Ok(backend.put_application(SERVICE, application, change)?)
    }

    /// Usage as service management holds it.
    fn held(&self) -> Result<Usage> {
        let usage = serde_json::to_value(self.world.service_management.usage())?;
        let total: BTreeMap<String, BTreeMap<String, u64>> = match usage["total"].get(SERVICE) {
            Some(applications) => serde_json::from_value(applications.clone())?,
            None => BTreeMap::new(),
        };
        Ok(total
            .into_iter()
            .flat_map(|(application, metrics)| {
                metrics
                    .into_iter()
                    .map(move |(metric, value)| ((application.clone(), metric), value))
            })
            .collect())
    }

    /// How often service management was asked about an application, not about metrics.
    fn questions(&self) -> u64 {
        self.world.service_management.calls().questions()
    }

    /// How often service management was called.
    fn calls(&self, endpoint: Endpoint) -> u64 {
        self.world.service_management.calls().count(endpoint)
    }
}

fn retry_after(reply: &Reply) -> Option<Duration> {
    let seconds = reply.header("retry-after")?.parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// Milliseconds since 1970.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}

fn this_minute() -> u64 {
    now() / 60_000
}

/// Milliseconds.
fn until_next_minute() -> u64 {
    60_000 - now() % 60_000
}
