//! One VM: the root contexts alive in it and what they share.
//!
//! Apart from the root because a VM outlives configurations: while a listener drains, its
//! old root context and the new one are alive side by side.

use super::abi::{self, Action, BufferType};
use super::clock;
use super::local_reply::Reply;
use super::logger::{self, Seldom};
use super::root::bodies::{Bodies, LARGEST_BODY, is_too_large};
use super::root::{Root, tick_period};
use super::seed;
use super::shared_data::{HostSharedData, keep_counter};
use crate::authorization::{Applications, Flights};
use crate::config::{Configuration, Replies};
use crate::credentials::Body;
use crate::mapping::Usage;

use log::{error, info, warn};
use std::collections::HashMap;

/// Largest plugin configuration that is read: 16 MiB.
const MAX_CONFIGURATION: usize = 16 * 1_024 * 1_024;
/// A root context that has not ticked for so long (milliseconds) while another has is
/// gone: its listener has drained. Its memory is then given back. No tick period is longer
/// than a second.
const GONE_MILLISECONDS: u64 = 600_000;
/// One that has not ticked for so long meanwhile no longer gets ticks of its own, and has a part in
/// those of the others: what it alone can report, of services that no other configuration has, is
/// not lost with its listener.
const SILENT_MILLISECONDS: u64 = 10_000;

/// What the root contexts of a VM share.
pub struct Shared {
    /// Envoy's shared data.
    pub data: HostSharedData,
    /// The records.
    pub applications: Applications,
    /// The questions under way.
    pub flights: Flights,
    /// What the current request costs; its memory is used again.
    pub usage: Usage,
    /// The bits this VM offers as the key of the digests.
    pub offer: [u8; 16],
    random: u64,
}

impl Shared {
    /// A number that is random enough to spread retries and to name batches.
    pub const fn random(&mut self) -> u64 {
        // xorshift64: never 0 once it is not.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }
}

/// The state of a VM.
pub struct Vm {
    shared: Option<Shared>,
    roots: Vec<Root>,
    /// The root of each stream that was created and not yet decided, unless it is the
    /// only one.
    parents: HashMap<u32, u32>,
    /// The streams that are decided at the end of their body.
    bodies: Bodies,
    late: Seldom,
}

impl Vm {
    /// A VM without a configuration.
    pub fn new() -> Self {
        Self {
            shared: None,
            roots: Vec::new(),
            parents: HashMap::new(),
            bodies: Bodies::default(),
            late: Seldom::default(),
        }
    }

    /// A new configuration for a root context. False: refused, and the old one stays.
    pub fn on_configure(&mut self, root_id: u32) -> bool {
        logger::install();
        let configuration = match read_configuration() {
            Ok(configuration) => configuration,
            Err(why) => {
                error!("configuration refused: {why}");
                return false;
            }
        };
        if self.shared.is_none() {
            self.shared = open(configuration.authorization.capacity);
        }
        let Some(shared) = &mut self.shared else {
            error!("configuration refused: Envoy gives no random numbers or no shared data");
            return false;
        };
        let slots = shared.applications.slots();
        if slots / 2 < configuration.authorization.capacity {
            warn!(
                "authorization.capacity is {}, but this Envoy process keeps the {} it started \
                 with until it ends",
                configuration.authorization.capacity,
                slots / 2
            );
        }
        let tick = tick_period(&configuration);
        let Some(root) = Root::new(root_id, configuration, shared, clock::now()) else {
            error!("configuration refused: shared data is not available");
            return false;
        };
        if abi::set_tick_period(tick).is_err() {
            error!("configuration refused: Envoy gives no ticks, so usage would not be reported");
            return false;
        }
        info!("configured with {} services", root.services());
        self.roots.retain(|root| root.id() != root_id);
        self.roots.push(root);
        true
    }

    /// A stream begins.
    pub fn on_stream_create(&mut self, stream_id: u32, root_id: u32) {
        let only = self.roots.len() == 1 && self.roots.iter().all(|root| root.id() == root_id);
        if !only {
            self.parents.insert(stream_id, root_id);
        }
    }

    /// Decides about a request, unless that takes its body.
    pub fn on_request_headers(&mut self, stream_id: u32, end_of_stream: bool) -> Action {
        // Usually empty, and then not worth a hash.
        let parent = if self.parents.is_empty() {
            None
        } else {
            self.parents.remove(&stream_id)
        };
        let parent = parent.or_else(|| self.roots.last().map(Root::id));
        let body = if end_of_stream {
            Body::None
        } else {
            Body::Ahead
        };
        let action = self.decide(stream_id, parent, body);
        if action == Action::AwaitBody {
            let now = clock::now();
            let root = parent.unwrap_or_default();
            if !self.bodies.insert(stream_id, root, now) {
                Reply::Overloaded.send(&Replies::default(), false, None, now);
                return Action::Pause;
            }
        }
        action
    }

    /// More of a body is here, `size` bytes in all. Only a stream that waits for it is stopped.
    pub fn on_request_body(&mut self, stream_id: u32, size: usize, end_of_stream: bool) -> Action {
        if !self.bodies.waits(stream_id) {
            return Action::Continue;
        }
        if !end_of_stream && !is_too_large(size) {
            return Action::AwaitBody;
        }
        self.decide_by_body(stream_id)
    }

    /// The body is behind, and trailers end the stream.
    pub fn on_request_trailers(&mut self, stream_id: u32) -> Action {
        if !self.bodies.waits(stream_id) {
            return Action::Continue;
        }
        self.decide_by_body(stream_id)
    }

    fn decide_by_body(&mut self, stream_id: u32) -> Action {
        let Some(root) = self.bodies.take(stream_id) else {
            return Action::Pause;
        };
        // One byte more tells that it is too large.
        match abi::buffer(BufferType::RequestBody, LARGEST_BODY.saturating_add(1)) {
            Ok(body) => self.decide(stream_id, Some(root), Body::Whole(&body)),
            Err(_) => {
                Reply::Contended.send(&Replies::default(), false, None, clock::now());
                Action::Pause
            }
        }
    }

    fn decide(&mut self, stream_id: u32, root: Option<u32>, body: Body<'_>) -> Action {
        let root = root.and_then(|id| self.roots.iter_mut().find(|root| root.id() == id));
        match (root, &mut self.shared) {
            (Some(root), Some(shared)) => root.on_request(stream_id, body, shared),
            // Envoy sends no request to a plugin without a configuration. Were it to, or to
            // one that was taken for gone, nobody could decide about the request.
            _ => {
                Reply::Misconfigured.send(&Replies::default(), false, None, clock::now());
                Action::Pause
            }
        }
    }

    /// Time has passed for a root context.
    pub fn on_tick(&mut self, root_id: u32) {
        let Some(shared) = &mut self.shared else {
            return;
        };
        let now = clock::now();
        if keep_counter() {
            shared.applications.table().begin_again();
        }
        let late = self.bodies.expire(root_id, &self.roots, now);
        if late > 0
            && let Some(withheld) = self.late.due(now.monotonic)
        {
            warn!(
                "{late} requests waited for a body with their credential, in vain. If this happens to \
                 all such requests, the plugin lacks allow_on_headers_stop_iteration: true \
                 ({withheld} such lines withheld)"
            );
        }
        let Some(root) = self.roots.iter_mut().find(|root| root.id() == root_id) else {
            return;
        };
        let before = root.ticked_at;
        // A clock that cannot be read is 0; it takes nothing back.
        root.ticked_at = before.max(now.monotonic);
        root.on_tick(shared, now);
        // Its calls are this root's to Envoy, and find back to it by their tokens.
        for other in &mut self.roots {
            if before.saturating_sub(other.ticked_at) > SILENT_MILLISECONDS {
                other.on_tick(shared, now);
            }
        }
        // By this root's tick before: when the worker has stood still, the others' ticks
        // are late by as much, and come between this root's first tick and its second.
        self.roots
            .retain(|root| before.saturating_sub(root.ticked_at) <= GONE_MILLISECONDS);
    }

    /// There is a message in a queue. Of another VM, when this one has taken the place of
    /// one that trapped, or Envoy's main thread is told what the VM was that tried a
    /// configuration out.
    pub fn on_queue_ready(&mut self, queue: u32) {
        let Some(shared) = &mut self.shared else {
            return;
        };
        if let Some(root) = self.roots.iter_mut().find(|root| root.listens_to(queue)) {
            root.on_queue_ready(queue, shared);
        }
    }

    /// A call was answered, or failed.
    pub fn on_call_response(&mut self, root_id: u32, token: u32) {
        let Some(shared) = &mut self.shared else {
            return;
        };
        // Not by the root that Envoy names, unless nobody waits: a call that was made for a silent
        // root, in the tick of another, is that other's to Envoy.
        let waits = self.roots.iter().position(|root| root.waits_for(token));
        let named = || self.roots.iter().position(|root| root.id() == root_id);
        if let Some(root) = waits.or_else(named).and_then(|at| self.roots.get_mut(at)) {
            root.on_call_response(token, shared);
        }
    }
}

fn read_configuration() -> Result<Configuration, String> {
    let bytes = abi::buffer(BufferType::PluginConfiguration, MAX_CONFIGURATION)
        .map_err(|status| format!("Envoy does not hand it out ({status:?})"))?;
    Configuration::parse(&bytes, &|name| std::env::var(name).ok())
        .map_err(|error| error.to_string())
}

fn open(capacity: u32) -> Option<Shared> {
    let offer = seed::draw()?;
    let random = u64::from_le_bytes(abi::random_bytes().ok()?).max(1);
    let data = HostSharedData;
    Some(Shared {
        data,
        applications: Applications::open(&data, capacity),
        flights: Flights::default(),
        usage: Usage::new(),
        offer,
        random,
    })
}
