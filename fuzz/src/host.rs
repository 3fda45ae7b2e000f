//! The whole filter in the fake Envoy: whoever sends what, nothing panics, the filter does
//! nothing that Envoy dies of, and no secret comes out.
//!
//! An input is read as a story: which configuration, and then what happens, one thing after
//! the other.

use std::time::Duration;

use arbitrary::{Result, Unstructured};
use tollgate::authorization::{Landing, Message};
use tollgate::credentials::Digest;
use tollgate::shared_data::Key;
use tollgate_fake_host::{
    Answer, Call, Failure, FakeEnvoy, Outcome, StreamId, Worker, accepted, authorized, denied,
    error,
};

const TOKEN: &str = "t0ken-0f-the-service";
/// Every way to have credentials, and limits that are shared. Few services: each has so many
/// stats that defining them takes longest of all.
const CONFIGURATIONS: [&str; 3] = [
    include_str!("host/keys.json"),
    include_str!("host/applications.json"),
    include_str!("host/shared.json"),
];
/// Kinds of keys in shared data.
const KINDS: &[u8] = b"fpabcneqrzlk";
/// Host functions that may fail.
const FUNCTIONS: [&str; 12] = [
    "proxy_get_buffer_bytes",
    "proxy_get_header_map_pairs",
    "proxy_replace_header_map_value",
    "proxy_add_header_map_value",
    "proxy_get_property",
    "proxy_get_shared_data",
    "proxy_set_shared_data",
    "proxy_register_shared_queue",
    "proxy_enqueue_shared_queue",
    "proxy_http_call",
    "proxy_send_local_response",
    "proxy_continue_stream",
];
const HOSTS: [&str; 8] = [
    "keys.example.com",
    "body.example.com",
    "apps.example.com",
    "oauth.example.com",
    "shared.example.com:8080",
    "KEYS.example.com.",
    "x:y.example.com",
    "",
];
const PATHS: [&str; 8] = [
    "/v1/orders?user_key=alice",
    "/v1/orders/7?app_id=a&app_key=k",
    "/v1/../%2e%2e/x?user_key=%ff",
    "/?access_token=alice&x=1",
    "/v1/free",
    "*",
    "",
    "?",
];
const HEADERS: [(&str, &str); 14] = [
    ("x-api-key", "alice"),
    ("app-id", "a"),
    ("app-key", "k"),
    ("app-key", "other"),
    ("authorization", "Basic YTpr"),
    ("authorization", "Basic ////"),
    ("authorization", "Bearer alice"),
    ("cookie", "user_key=alice; app_id=a"),
    ("referer", "https://good.example.com/"),
    ("content-type", "application/x-www-form-urlencoded"),
    ("content-type", "application/grpc"),
    ("content-length", "18446744073709551616"),
    ("ratelimit-limit", "1000000"),
    ("x-api-key", ""),
];
const BODIES: [&str; 5] = [
    "user_key=alice",
    "user_key=",
    "a=b&user_key=%ff",
    "&&&",
    "{}",
];

/// Nothing panics, nothing is misused, and no token is logged or told.
///
/// # Panics
/// If that is not so.
pub fn host(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let (Ok(configuration), Ok(workers)) =
        (input.choose(&CONFIGURATIONS), input.int_in_range(1..=2))
    else {
        return;
    };
    let mut story = Story::begin(configuration, workers);
    // It ends where the input does.
    let _ = story.tell(&mut input);
    story.end();
}

struct Story {
    envoy: FakeEnvoy,
    workers: Vec<Worker>,
    /// Requests that wait, by worker.
    waiting: Vec<(usize, StreamId)>,
}

impl Story {
    fn begin(configuration: &str, workers: usize) -> Self {
        let envoy = FakeEnvoy::new().cluster("service-management");
        envoy.show_bodies();
        let workers = (0..workers)
            .map(|_| envoy.configured_worker(configuration))
            .collect();
        Self {
            envoy,
            workers,
            waiting: Vec::new(),
        }
    }

    fn tell(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        while !input.is_empty() {
            let worker = usize::from(input.arbitrary::<u8>()? % 2);
            match input.int_in_range(0..=13_u8)? {
                0..=3 => self.request(worker, input)?,
                4 => self.body(input)?,
                5..=7 => self.answer(worker, input)?,
                8 => self.time(worker, input)?,
                9 => self.message(input)?,
                10 => self.value(input)?,
                11 => self.accident(worker, input)?,
                12 => {
                    if let Some(gone) = self.pick(input)? {
                        let (worker, stream) = self.waiting.remove(gone);
                        if let Some(worker) = self.workers.get(worker) {
                            worker.end_stream(stream);
                        }
                    }
                }
                _ => self.look(),
            }
        }
        Ok(())
    }

    fn request(&mut self, number: usize, input: &mut Unstructured<'_>) -> Result<()> {
        // Without a configuration, for all may have been refused, a worker gets no requests.
        let configured = |worker: &&Worker| worker.tick_period_ms() > 0;
        let Some(worker) = self.workers.get(number).filter(configured) else {
            return Ok(());
        };
        let method = bytes_or(input, &["GET", "POST", "get", ""])?;
        let path = bytes_or(input, &PATHS)?;
        let host = bytes_or(input, &HOSTS)?;
        let mut request = worker.request().method(method, path).host(host);
        for _ in 0..input.int_in_range(0..=4_u8)? {
            let (name, value) = input.choose(&HEADERS)?;
            let value = if input.ratio(1, 4)? {
                some_bytes(input)?
            } else {
                value.as_bytes().to_vec()
            };
            request = request.header(name, value);
        }
        if input.arbitrary()? {
            request = request.with_body();
        }
        if input.ratio(1, 4)? {
            request = request.property("xds.route_name", some_bytes(input)?);
        }
        let outcome = request.send();
        self.became(number, outcome);
        Ok(())
    }

    fn body(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        let Some(index) = self.pick(input)? else {
            return Ok(());
        };
        let (number, stream) = self.waiting.remove(index);
        let Some(worker) = self.workers.get(number) else {
            return Ok(());
        };
        let outcome = match input.int_in_range(0..=3_u8)? {
            0 => worker.trailers(stream),
            1 => worker.body(stream, some_bytes(input)?, false),
            _ => worker.body(stream, bytes_or(input, &BODIES)?, true),
        };
        self.became(number, outcome);
        Ok(())
    }

    fn answer(&mut self, number: usize, input: &mut Unstructured<'_>) -> Result<()> {
        let Some(worker) = self.workers.get(number) else {
            return Ok(());
        };
        let calls = worker.calls();
        if calls.is_empty() {
            return Ok(());
        }
        let call = input.choose(&calls)?;
        worker.answer(call.token, reply(call, self.envoy.wall_ms(), input)?);
        self.look();
        Ok(())
    }

    fn time(&mut self, number: usize, input: &mut Unstructured<'_>) -> Result<()> {
        let milliseconds = *input.choose(&[0, 250, 1_000, 5_000, 61_000, 600_000, 90_000_000])?;
        if input.ratio(1, 16)? {
            self.envoy
                .set_wall_ms(input.int_in_range(0..=4_000_000_000_000)?);
        }
        if input.ratio(1, 16)? {
            self.envoy
                .set_monotonic_ms(input.int_in_range(0..=4_000_000_000)?);
        }
        self.envoy.advance(Duration::from_millis(milliseconds));
        if let Some(worker) = self.workers.get(number) {
            worker.tick();
        }
        self.look();
        Ok(())
    }

    fn message(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        let bytes = if input.arbitrary()? {
            some_bytes(input)?
        } else {
            let message = Message {
                owner: input.arbitrary()?,
                digest: Digest(input.arbitrary()?),
                landing: Landing::Uncached,
            };
            message.encode()
        };
        self.envoy.post(&bytes);
        self.look();
        Ok(())
    }

    /// Somebody else writes into shared data.
    fn value(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        let keys = self.envoy.shared_keys();
        let mut key = input.choose(&keys)?.clone();
        let data = self.envoy.shared_data();
        let mut value = data.get(&key).map_or_else(Vec::new, |(value, _)| value);
        let at = usize::from(input.arbitrary::<u16>()?);
        match input.int_in_range(0..=5_u8)? {
            0 => value.truncate(at),
            1 => {
                if let Some(byte) = value.get_mut(at) {
                    *byte = input.arbitrary()?;
                }
            }
            2 => {
                if let Some(word) = value.get_mut(at..).and_then(<[u8]>::first_chunk_mut::<8>) {
                    *word = input.arbitrary::<u64>()?.to_le_bytes();
                }
            }
            3 => value = some_bytes(input)?,
            4 => {
                let other = input.choose(&keys)?;
                value = data.get(other).map_or_else(Vec::new, |(value, _)| value);
            }
            _ => {
                let kind = *input.choose(KINDS)?;
                let number = input.int_in_range(0..=255)?;
                key = Key::new(kind, 0, number).as_bytes().to_vec();
            }
        }
        data.set(&key, &value, 0);
        Ok(())
    }

    fn accident(&mut self, number: usize, input: &mut Unstructured<'_>) -> Result<()> {
        let Some(worker) = self.workers.get(number) else {
            return Ok(());
        };
        match input.int_in_range(0..=5_u8)? {
            0 => {
                let name = input.choose(&FUNCTIONS)?;
                let status = *input.choose(&[1, 2, 8, 10, 12, 99])?;
                self.envoy
                    .fail_next(name, status, usize::from(input.arbitrary::<u8>()? % 4));
            }
            1 => {
                worker.restart_vm();
                self.waiting.retain(|(waits, _)| *waits != number);
                worker.configure(input.choose(&CONFIGURATIONS)?);
            }
            2 => {
                worker.configure(input.choose(&CONFIGURATIONS)?);
            }
            3 => {
                worker.drain();
                self.forget_ended();
            }
            4 => self
                .envoy
                .fail_next_compare_and_sets(usize::from(input.arbitrary::<u8>()?) * 2),
            _ => {
                let bytes = some_bytes(input)?;
                worker.configure(&String::from_utf8_lossy(&bytes));
            }
        }
        Ok(())
    }

    /// Takes in what became of a request.
    fn became(&mut self, worker: usize, outcome: Outcome) {
        match outcome {
            Outcome::Paused(stream) => self.waiting.push((worker, stream)),
            Outcome::Replied(reply) => {
                assert!((400..600).contains(&reply.status), "{reply:?}");
                let told = format!("{:?} {} {}", reply.headers, reply.text(), reply.details);
                assert!(!told.contains(TOKEN), "{told}");
            }
            Outcome::Continued(_) | Outcome::Reset => {}
        }
    }

    /// Looks after all that waits.
    fn look(&mut self) {
        for worker in &self.workers {
            worker.deliver();
        }
        for (number, stream) in std::mem::take(&mut self.waiting) {
            if let Some(worker) = self.workers.get(number) {
                let outcome = worker.poll(stream);
                self.became(number, outcome);
            }
        }
    }

    /// Those that went with their root context.
    fn forget_ended(&mut self) {
        let workers = &self.workers;
        self.waiting.retain(|(number, stream)| {
            workers
                .get(*number)
                .is_some_and(|worker| worker.waits(*stream))
        });
    }

    fn pick(&self, input: &mut Unstructured<'_>) -> Result<Option<usize>> {
        if self.waiting.is_empty() {
            return Ok(None);
        }
        input.choose_index(self.waiting.len()).map(Some)
    }

    /// Time passes, and everything is over.
    fn end(mut self) {
        for _ in 0..3 {
            self.envoy.advance(Duration::from_secs(20));
            for worker in &self.workers {
                worker.tick();
            }
            self.look();
        }
        assert_eq!(self.envoy.misuses(), Vec::<String>::new());
        for line in self.envoy.logs() {
            assert!(!line.message.contains(TOKEN), "{}", line.message);
        }
    }
}

/// What comes back on a call: what belongs there, something else, or a part of it.
fn reply(call: &Call, wall: u64, input: &mut Unstructured<'_>) -> Result<Answer> {
    let answer = match input.int_in_range(0..=9_u8)? {
        0..=2 if call.method() == "POST" => accepted(),
        0 => authorized().at(wall),
        1 => authorized()
            .limit("hits", "minute", 2, 0)
            .limit("orders", "eternity", 5, input.int_in_range(0..=6)?)
            .hierarchy("hits", "orders ads")
            .at(wall),
        2 => authorized().key("k").key("l").at(wall),
        3 => denied(input.choose(&["application_not_active", "application_key_invalid", "?"])?)
            .list_keys()
            .at(wall),
        4 => error(
            *input.choose(&[403, 404, 422])?,
            input.choose(&[
                "user_key_invalid",
                "service_token_invalid",
                "metric_invalid",
                "x",
            ])?,
        ),
        5 => Answer::from(*input.choose(&[
            Failure::ConnectionRefused,
            Failure::Overflow,
            Failure::Timeout,
            Failure::Reset,
            Failure::ConnectionTermination,
        ])?),
        6 => Answer::status(input.arbitrary::<u16>()?).body(some_bytes(input)?),
        7 => Answer::from(Failure::Reset)
            .header(":status", some_bytes(input)?)
            .body(some_bytes(input)?),
        8 => Answer::status(200)
            .header("content-type", "text/html")
            .body(
                [
                    b"<status><authorized>true</authorized>",
                    &*some_bytes(input)?,
                    b"</status>",
                ]
                .concat(),
            ),
        _ => Answer::status(409)
            .header("3scale-rejection-reason", some_bytes(input)?)
            .body(some_bytes(input)?),
    };
    Ok(answer)
}

fn bytes_or(input: &mut Unstructured<'_>, usual: &[&str]) -> Result<Vec<u8>> {
    if input.ratio(1, 4)? {
        some_bytes(input)
    } else {
        Ok(input.choose(usual)?.as_bytes().to_vec())
    }
}

fn some_bytes(input: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let length = usize::from(input.arbitrary::<u8>()?);
    let bytes = input.bytes(length.min(input.len()))?;
    // Long ones by repetition: inputs are short.
    let times = *input.choose(&[1, 1, 1, 1, 1, 2, 300, 1_000])?;
    Ok(bytes.repeat(times))
}
