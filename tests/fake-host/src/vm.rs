//! One VM as the host sees it: contexts, the effective context, actions that wait for
//! the end of a callback, and outstanding calls. Apart because this is where Envoy's
//! less obvious rules are kept.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::Status;
use crate::process::Process;
use crate::stats::Ids;
use crate::wire::Pairs;

/// A VM on one worker. Dies with its thread or by [`Vm::kill`].
pub(crate) struct Vm {
    pub(crate) process: Arc<Process>,
    pub(crate) worker: usize,
    dead: AtomicBool,
    state: Mutex<State>,
}

/// What the host keeps for a VM. Context ids start at 1 in every VM and are never
/// used again within it.
pub(crate) struct State {
    /// The context whose callback runs; 0 outside of callbacks.
    current: u32,
    /// The context chosen with `set_effective_context`; 0 if none was.
    effective: u32,
    next_context: u32,
    next_token: u32,
    pub(crate) roots: BTreeMap<u32, Root>,
    pub(crate) streams: BTreeMap<u32, Stream>,
    pub(crate) calls: BTreeMap<u32, Call>,
    pub(crate) metrics: Ids,
    /// The answer that is being delivered: its headers and body.
    pub(crate) delivering: Option<(Pairs, Vec<u8>)>,
    deferred: Vec<(u32, Action)>,
    /// Set by a local reply: the filter callback that runs stops its stream, whatever it
    /// returns, and whichever stream the reply was for.
    stop_iteration: bool,
    random: u64,
}

/// A root context: one plugin configuration in one VM.
#[derive(Default)]
pub(crate) struct Root {
    pub(crate) configuration: Vec<u8>,
    /// The configuration can only be read while it is being given.
    pub(crate) configuring: bool,
    pub(crate) tick_period_ms: u32,
}

/// A stream context: one request.
#[derive(Default)]
pub(crate) struct Stream {
    pub(crate) root: u32,
    pub(crate) headers: Pairs,
    /// Request headers can be read until the stream goes on.
    pub(crate) headers_readable: bool,
    pub(crate) properties: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(crate) filter_state: BTreeMap<String, Vec<u8>>,
    /// Whether a body is still to come to the filter: the headers were stopped by
    /// `StopIteration` alone.
    pub(crate) body_comes: bool,
    /// What has come of the body; it can be read while a callback about it runs.
    pub(crate) body: Vec<u8>,
    pub(crate) body_readable: bool,
    pub(crate) decided: Option<Action>,
}

/// What was decided for a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Continue,
    Reply(Reply),
    Reset,
}

/// A reply that the filter made itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The HTTP status.
    pub status: u32,
    /// The headers that the filter added, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
    /// The response-code detail for the access log.
    pub details: String,
    /// The gRPC status, if the filter gave one. Envoy heeds it for gRPC requests only.
    pub grpc_status: Option<i32>,
}

impl Reply {
    /// The first value of a header, by its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(header, _)| header == name);
        found.map(|(_, value)| value.as_str())
    }

    /// The body as text; what is not UTF-8 is replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// A call that the filter made and that waits for its answer.
#[derive(Clone, Debug)]
pub struct Call {
    /// Its number in this VM, from 1.
    pub token: u32,
    /// The root context that the answer goes to.
    pub root: u32,
    /// The cluster.
    pub cluster: String,
    /// The request's headers, pseudo headers among them.
    pub headers: Vec<(String, String)>,
    /// The request's body.
    pub body: Vec<u8>,
    /// The timeout in milliseconds; 0 is never.
    pub timeout_ms: u32,
}

impl Call {
    /// The first value of a header, by its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(header, _)| header == name);
        found.map(|(_, value)| value.as_str())
    }

    /// The path with the query.
    pub fn path(&self) -> &str {
        self.header(":path").unwrap_or_default()
    }

    /// The HTTP method.
    pub fn method(&self) -> &str {
        self.header(":method").unwrap_or_default()
    }

    /// The body as text; what is not UTF-8 is replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Header pairs as text, names in lower case as Envoy makes them.
pub(crate) fn readable(pairs: &Pairs) -> Vec<(String, String)> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    pairs
        .iter()
        .map(|(name, value)| (text(name).to_ascii_lowercase(), text(value)))
        .collect()
}

impl Vm {
    pub(crate) fn new(process: Arc<Process>, worker: usize) -> Self {
        let random = process.next_vm_seed();
        Self {
            process,
            worker,
            dead: AtomicBool::new(false),
            state: Mutex::new(State {
                current: 0,
                effective: 0,
                next_context: 1,
                next_token: 1,
                roots: BTreeMap::new(),
                streams: BTreeMap::new(),
                calls: BTreeMap::new(),
                metrics: Ids::default(),
                delivering: None,
                deferred: Vec::new(),
                stop_iteration: false,
                random,
            }),
        }
    }

    /// From now on host functions that this VM still calls do nothing.
    pub(crate) fn kill(&self) {
        self.dead.store(true, Ordering::SeqCst);
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.dead.load(Ordering::SeqCst)
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a callback of `context`, then what it deferred. Returns its result and
    /// whether a local reply stopped the iteration.
    pub(crate) fn callback<R>(&self, context: u32, callback: impl FnOnce() -> R) -> (R, bool) {
        let saved = {
            let mut state = self.state();
            let saved = (state.current, state.effective);
            (state.current, state.effective) = (context, 0);
            saved
        };
        let result = callback();
        let mut state = self.state();
        (state.current, state.effective) = saved;
        let stopped = std::mem::take(&mut state.stop_iteration);
        for (stream, action) in std::mem::take(&mut state.deferred) {
            if let Some(misuse) = state.perform(stream, action) {
                self.process.misuse(misuse);
            }
        }
        (result, stopped)
    }
}

impl State {
    pub(crate) fn new_context(&mut self) -> u32 {
        let context = self.next_context;
        self.next_context += 1;
        context
    }

    /// The context that host functions act on: the chosen one while it exists, else the
    /// one whose callback runs.
    pub(crate) fn effective(&self) -> u32 {
        if self.effective != 0 && self.exists(self.effective) {
            self.effective
        } else {
            self.current
        }
    }

    fn exists(&self, context: u32) -> bool {
        self.roots.contains_key(&context) || self.streams.contains_key(&context)
    }

    pub(crate) fn set_effective(&mut self, context: u32) -> Result<(), Status> {
        if !self.exists(context) {
            return Err(Status::BadArgument);
        }
        self.effective = context;
        Ok(())
    }

    /// The root of the effective context. Outside of any callback there is none.
    pub(crate) fn effective_root(&self) -> Option<u32> {
        let context = self.effective();
        match self.streams.get(&context) {
            Some(stream) => Some(stream.root),
            None => self.roots.contains_key(&context).then_some(context),
        }
    }

    pub(crate) fn effective_stream(&mut self) -> Option<&mut Stream> {
        let context = self.effective();
        self.streams.get_mut(&context)
    }

    /// Notes an action on the effective context for the end of the callback. On a root
    /// context Envoy says Ok and does nothing; the returned text says so.
    pub(crate) fn defer(&mut self, action: Action) -> Option<String> {
        let context = self.effective();
        if matches!(action, Action::Reply(_)) {
            self.stop_iteration = true;
        }
        let Some(stream) = self.streams.get_mut(&context) else {
            return Some(format!(
                "{action:?} on context {context}, which is no stream"
            ));
        };
        if action == Action::Continue {
            stream.headers_readable = false;
        }
        self.deferred.push((context, action));
        None
    }

    /// Carries out an action. The first decision for a stream stands; the text says what
    /// was wrong with a second one.
    fn perform(&mut self, context: u32, action: Action) -> Option<String> {
        let stream = self.streams.get_mut(&context)?;
        match &stream.decided {
            None => {
                stream.decided = Some(action);
                None
            }
            Some(first) => Some(format!(
                "{action:?} on stream {context}, for which there already was {first:?}"
            )),
        }
    }

    pub(crate) fn add_call(&mut self, mut call: Call) -> u32 {
        call.token = self.next_token;
        self.next_token += 1;
        let token = call.token;
        self.calls.insert(token, call);
        token
    }

    /// The next random number of this VM (SplitMix64).
    pub(crate) fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}
