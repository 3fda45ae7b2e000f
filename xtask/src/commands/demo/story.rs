//! The traffic and what it shows, part by part. Each part continues where the one before
//! ended: applications that are known stay known, and all usage adds up in the end.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use service_management::{ApplicationChange, Endpoint};
use tollgate_harness::{Reply, eventually};

use super::checks::Checks;
use super::consumers::{Ask, Consumers, connections_by_worker, count, key_of, statuses};
use super::ledger::Ledger;
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
    story.the_books().await
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
        let calls = self.calls(Endpoint::Authorize);
        // Each worker may ask once before it can know what another one is being told.
        let most = 3 * u64::from(WORKERS);
        self.checks.holds(
            "calls to service management that this took",
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
                "erin, whose plan has no reports",
                Ask::by("erin", "/v1/reports"),
                403,
            ),
            (
                "an operation without a mapping rule",
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
                    "  and it says how to do better",
                    "a header WWW-Authenticate",
                    header.map_or("none".to_owned(), |value| {
                        format!("WWW-Authenticate: {value}")
                    }),
                    header.is_some(),
                );
            }
        }
        let before = self.calls(Endpoint::Authorize);
        let again = vec![Ask::by("stranger", "/v1/orders/1"); 50];
        let replies = self.send_all(again).await?;
        self.checks.equal(
            "the unknown key, 50 times more",
            "403 × 50".to_owned(),
            statuses(&replies),
        );
        let calls = self.calls(Endpoint::Authorize) - before;
        // The first of them can have met only one worker.
        let most = u64::from(WORKERS) - 1;
        self.checks.holds(
            "  further calls that this took",
            format!("at most {most}"),
            calls,
            calls <= most,
        );
        let reply = self.consumers.send(&Ask::anonymous("/healthz")).await?;
        self.ledger.exempt += 1;
        self.checks
            .equal("an exempt path, without a credential", 200, reply.status);
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
            &format!("{all} requests of {application}, all at once"),
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
            "  Retry-After of every 429, the time to the end of the minute",
            format!("{least} to {most} s"),
            shown,
            right && !waits.is_empty(),
        );
    }

    /// Service management goes away and comes back.
    async fn an_outage(&mut self) -> Result<()> {
        self.checks.headline("Service management is down");
        self.sign_up("zoe", "unlimited")?;
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
            "400 requests of alice and erin, who are known",
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
            "reports that could not be delivered, so that their usage is kept",
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
                "zoe, request {tries} since, {:.1} s later",
                back.elapsed().as_secs_f64()
            ),
            200,
            status,
        );
        Ok(())
    }

    /// What was admitted, what arrived, and what it took.
    async fn the_books(&mut self) -> Result<()> {
        self.checks.headline("Usage, after a flush");
        let start = Instant::now();
        // Whether it arrives is checked below.
        let _ = eventually("usage to arrive", PATIENCE, async || {
            self.ledger
                .usage()
                .all(|(application, metric, expected)| self.held(application, metric) == expected)
                .then_some(())
        })
        .await;
        let arrived = start.elapsed().as_secs_f64();
        // What is complete could still be reported again.
        tokio::time::sleep(FLUSH_INTERVAL + FLUSH_INTERVAL / 2).await;
        let usage: Vec<_> = self
            .ledger
            .usage()
            .map(|(application, metric, expected)| {
                let held = self.held(application, metric);
                (format!("{application:<6} {metric:<7}"), expected, held)
            })
            .collect();
        for (what, expected, held) in usage {
            self.checks.holds(
                &what,
                expected,
                format!("{expected:>4} admitted, {held:>4} at service management"),
                expected == held,
            );
        }
        self.checks.remark(format!(
            "complete {arrived:.1} s after the last request, unchanged by the next flush"
        ));

        self.checks.headline("The sum");
        let admitted = self.ledger.admitted;
        self.checks.equal(
            "requests that reached the API: those admitted and those exempt",
            admitted + self.ledger.exempt,
            self.world.api.requests(),
        );
        let counted = self.world.counter("requests_admitted").await?;
        self.checks.equal(
            "the filter's counter of admitted requests",
            admitted,
            counted,
        );
        let acknowledged = self.world.counter("usage_acknowledged").await?;
        self.checks.equal(
            "its counter of usage that service management acknowledged",
            admitted,
            acknowledged,
        );
        let (authorize, report) = (
            self.calls(Endpoint::Authorize),
            self.calls(Endpoint::Report),
        );
        let requests = self.ledger.requests;
        self.checks.holds(
            "calls to service management",
            format!("less than a twentieth of {requests} requests"),
            format!(
                "{authorize} to authorize and {report} to report, for {requests} requests with usage or refusal"
            ),
            (authorize + report) * 20 < requests,
        );
        Ok(())
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
    fn held(&self, application: &str, metric: &str) -> u64 {
        let usage = self.world.service_management.usage();
        usage.total(SERVICE, application, metric)
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
