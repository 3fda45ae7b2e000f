//! One VM: the root contexts alive in it and what they share.
//!
//! Apart from the root because a VM outlives configurations: while a listener drains, its
//! old root context and the new one are alive side by side.

use super::abi::{self, Action, BufferType};
use super::clock;
use super::local_reply::Reply;
use super::logger;
use super::root::{Root, tick_period};
use super::seed;
use super::shared_data::HostSharedData;
use crate::authorization::Applications;
use crate::config::Configuration;
use crate::mapping::Usage;
use log::{error, info, warn};
use std::collections::HashMap;

/// Largest plugin configuration that is read: 16 MiB.
const MAX_CONFIGURATION: usize = 16 * 1_024 * 1_024;
/// A root context that has not ticked for so long (milliseconds) while another has is
/// gone: its listener has drained. Its memory is then given back. No tick period is longer
/// than a second.
const GONE_MILLISECONDS: u64 = 600_000;

/// What the root contexts of a VM share.
pub struct Shared {
    /// Envoy's shared data.
    pub data: HostSharedData,
    /// The records.
    pub applications: Applications,
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
}

impl Vm {
    /// A VM without a configuration.
    pub fn new() -> Self {
        Self {
            shared: None,
            roots: Vec::new(),
            parents: HashMap::new(),
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

    /// Decides about a request.
    pub fn on_request_headers(&mut self, stream_id: u32) -> Action {
        // Usually empty, and then not worth a hash.
        let parent = if self.parents.is_empty() {
            None
        } else {
            self.parents.remove(&stream_id)
        };
        let root = match parent {
            Some(id) => self.roots.iter_mut().find(|root| root.id() == id),
            None => self.roots.last_mut(),
        };
        match (root, &mut self.shared) {
            (Some(root), Some(shared)) => root.on_request_headers(stream_id, shared),
            // Envoy sends no request to a plugin without a configuration. Were it to, or to
            // one that was taken for gone, nobody could decide about the request.
            _ => {
                Reply::Misconfigured.send(clock::now());
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
        let Some(root) = self.roots.iter_mut().find(|root| root.id() == root_id) else {
            return;
        };
        let before = root.ticked_at;
        // A clock that cannot be read is 0; it takes nothing back.
        root.ticked_at = before.max(now.monotonic);
        root.on_tick(shared, now);
        // By this root's tick before: when the worker has stood still, the others' ticks
        // are late by as much, and come between this root's first tick and its second.
        self.roots
            .retain(|root| before.saturating_sub(root.ticked_at) <= GONE_MILLISECONDS);
    }

    /// A call was answered, or failed.
    pub fn on_call_response(&mut self, root_id: u32, token: u32) {
        let Some(shared) = &mut self.shared else {
            return;
        };
        let root = self
            .roots
            .iter_mut()
            .find(|root| root.id() == root_id || root.waits_for(token));
        if let Some(root) = root {
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
        usage: Usage::new(),
        offer,
        random,
    })
}
