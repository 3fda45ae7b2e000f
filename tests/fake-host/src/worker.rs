//! The driver: a worker thread of the fake Envoy, requests to it, and answers to the
//! calls that its VM makes. Apart because this is what scenarios are written in.

use std::any::Any;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use crate::answers::Answer;
use crate::hostcalls;
use crate::process::Process;
use crate::vm::{Action, Call, Reply, Root, Stream, Vm, readable};
use crate::wire::Pairs;

/// A worker thread with its VM. Clones are the same worker.
///
/// The VM lives on a thread of its own, because the filter's state is the thread's. All
/// methods can be called from any thread and return when the VM is done; one after the
/// other, unless the callers are threads of their own.
#[derive(Clone)]
pub struct Worker(Arc<Inner>);

struct Inner {
    process: Arc<Process>,
    number: usize,
    vm: Mutex<VmThread>,
}

struct VmThread {
    vm: Arc<Vm>,
    jobs: Sender<Job>,
    thread: Option<JoinHandle<()>>,
}

type Job = Box<dyn FnOnce(&Arc<Vm>) + Send>;

impl VmThread {
    fn start(process: Arc<Process>, worker: usize) -> Self {
        let vm = Arc::new(Vm::new(process, worker));
        let (jobs, inbox) = channel::<Job>();
        let thread = std::thread::Builder::new().name(format!("worker {worker}"));
        let of_thread = Arc::clone(&vm);
        let thread = thread.spawn(move || {
            hostcalls::enter(&of_thread);
            for job in inbox {
                job(&of_thread);
            }
        });
        Self {
            vm,
            jobs,
            thread: Some(thread.expect("a thread")),
        }
    }
}

impl Drop for VmThread {
    fn drop(&mut self) {
        self.vm.kill();
        let (closed, _) = channel();
        self.jobs = closed;
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != std::thread::current().id()
        {
            let _ = thread.join();
        }
    }
}

/// A request that waits in the filter: its stream's context id in its VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub u32);

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It went on to the next filter.
    Continued(Forwarded),
    /// It waits.
    Paused(StreamId),
    /// The filter answered it.
    Replied(Reply),
    /// The filter reset it.
    Reset,
}

/// A request that went on, as the filter left it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forwarded {
    /// Its headers, names in lower case.
    pub headers: Vec<(String, String)>,
    /// What the filter set with `set_property`, under `wasm.<name>`.
    pub filter_state: BTreeMap<String, Vec<u8>>,
}

impl Outcome {
    /// Whether the request went on.
    pub fn continued(&self) -> bool {
        matches!(self, Self::Continued(_))
    }

    /// The status of the filter's own reply, if it made one.
    pub fn status(&self) -> Option<u32> {
        match self {
            Self::Replied(reply) => Some(reply.status),
            _ => None,
        }
    }

    /// The stream of a request that waits. Panics if it does not.
    #[track_caller]
    pub fn paused(self) -> StreamId {
        match self {
            Self::Paused(stream) => stream,
            other => panic!("not paused: {other:?}"),
        }
    }

    /// The filter's own reply. Panics if it made none.
    #[track_caller]
    pub fn reply(self) -> Reply {
        match self {
            Self::Replied(reply) => reply,
            other => panic!("not replied to: {other:?}"),
        }
    }

    /// The request as it went on. Panics if it did not.
    #[track_caller]
    pub fn forwarded(self) -> Forwarded {
        match self {
            Self::Continued(forwarded) => forwarded,
            other => panic!("not continued: {other:?}"),
        }
    }
}

impl Worker {
    pub(crate) fn new(process: Arc<Process>, number: usize) -> Self {
        let vm = Mutex::new(VmThread::start(Arc::clone(&process), number));
        Self(Arc::new(Inner {
            process,
            number,
            vm,
        }))
    }

    /// Its number in the process, from 0.
    pub fn number(&self) -> usize {
        self.0.number
    }

    /// Runs `job` on the VM's thread. A panic in it is the caller's.
    fn on_vm<R: Send + 'static>(&self, job: impl FnOnce(&Arc<Vm>) -> R + Send + 'static) -> R {
        let (vm, jobs) = {
            let thread = self.0.vm.lock().unwrap_or_else(PoisonError::into_inner);
            (Arc::clone(&thread.vm), thread.jobs.clone())
        };
        if hostcalls::is_current(&vm) {
            return job(&vm);
        }
        let (result, outcome) = channel::<Result<R, Box<dyn Any + Send>>>();
        let job: Job = Box::new(move |vm| {
            let _ = result.send(catch_unwind(AssertUnwindSafe(|| job(vm))));
        });
        jobs.send(job).expect("the VM's thread runs");
        match outcome.recv().expect("the VM's thread runs") {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Runs `job` on the thread of the VM, where the methods of this worker need no
    /// change of thread.
    pub fn run<R: Send + 'static>(&self, job: impl FnOnce() -> R + Send + 'static) -> R {
        self.on_vm(|_| job())
    }

    /// Gives the VM a plugin configuration; starts the VM before the first. A further
    /// configuration gets a root context of its own: new requests go to the newest, and the
    /// older ones keep ticking until [`Worker::drain`]. False: the filter refused it.
    pub fn configure(&self, configuration: &str) -> bool {
        let configuration = configuration.as_bytes().to_vec();
        self.on_vm(move |vm| configure(vm, configuration))
    }

    /// Starts a request: GET / for api.example.com, without a body.
    pub fn request(&self) -> Request<'_> {
        Request {
            worker: self,
            method: b"GET".to_vec(),
            path: b"/".to_vec(),
            host: b"api.example.com".to_vec(),
            headers: Vec::new(),
            properties: BTreeMap::new(),
            with_body: false,
        }
    }

    /// More of a paused request's body arrives, or the end of it. See [`Request::with_body`].
    pub fn body(&self, stream: StreamId, bytes: impl AsRef<[u8]>, end_of_stream: bool) -> Outcome {
        let bytes = bytes.as_ref().to_vec();
        self.on_vm(move |vm| body(vm, stream.0, &bytes, end_of_stream))
    }

    /// Trailers end a paused request, behind its body.
    pub fn trailers(&self, stream: StreamId) -> Outcome {
        self.on_vm(move |vm| trailers(vm, stream.0))
    }

    /// What became of a request that was paused. Notifications that wait for this worker are
    /// delivered first. A decided stream ends with this.
    pub fn poll(&self, stream: StreamId) -> Outcome {
        self.deliver();
        self.on_vm(move |vm| outcome(vm, stream.0))
    }

    /// The downstream client goes away.
    pub fn end_stream(&self, stream: StreamId) {
        self.on_vm(move |vm| end(vm, stream.0));
    }

    /// Whether a request still waits, or is yet to be polled.
    pub fn waits(&self, stream: StreamId) -> bool {
        self.on_vm(move |vm| vm.state().streams.contains_key(&stream.0))
    }

    /// How many requests wait.
    pub fn waiting(&self) -> usize {
        self.on_vm(|vm| vm.state().streams.len())
    }

    /// One tick of each root context that asked for ticks, oldest first. Returns how many.
    pub fn tick(&self) -> usize {
        self.on_vm(|vm| {
            let due: Vec<u32> = {
                let state = vm.state();
                let ticking = state
                    .roots
                    .iter()
                    .filter(|(_, root)| root.tick_period_ms > 0);
                ticking.map(|(id, _)| *id).collect()
            };
            if let Some(on_tick) = vm.process.guest.on_tick {
                for root in &due {
                    // SAFETY: the guest's function, called on its VM's thread.
                    call(vm, *root, || unsafe { on_tick(*root) });
                }
            }
            answer_by_itself(vm);
            due.len()
        })
    }

    /// One tick of the oldest root context alone, as when the others' periods are longer.
    pub fn tick_oldest(&self) {
        self.on_vm(|vm| {
            let oldest = vm.state().roots.keys().next().copied();
            if let (Some(on_tick), Some(root)) = (vm.process.guest.on_tick, oldest) {
                // SAFETY: the guest's function, called on its VM's thread.
                call(vm, root, || unsafe { on_tick(root) });
            }
            answer_by_itself(vm);
        });
    }

    /// The tick period of the newest root context, in milliseconds; 0 is none.
    pub fn tick_period_ms(&self) -> u32 {
        self.on_vm(|vm| {
            let state = vm.state();
            state
                .roots
                .values()
                .last()
                .map_or(0, |root| root.tick_period_ms)
        })
    }

    /// Delivers what other workers have put into queues that this worker registered.
    /// Returns how many notifications there were.
    pub fn deliver(&self) -> usize {
        let number = self.0.number;
        self.on_vm(move |vm| {
            let mut delivered = 0;
            while let Some(ready) = vm.process.queues.next_notification(number) {
                delivered += 1;
                let exists = vm.state().roots.contains_key(&ready.root);
                if let Some(on_queue_ready) = vm.process.guest.on_queue_ready
                    && exists
                {
                    // SAFETY: the guest's function, called on its VM's thread.
                    call(vm, ready.root, || unsafe {
                        on_queue_ready(ready.root, ready.token);
                    });
                }
            }
            delivered
        })
    }

    /// The calls that wait for an answer, oldest first.
    pub fn calls(&self) -> Vec<Call> {
        self.on_vm(|vm| vm.state().calls.values().cloned().collect())
    }

    /// The one call that waits for an answer. Panics if there is another number of them.
    #[track_caller]
    pub fn only_call(&self) -> Call {
        let mut calls = self.calls();
        assert_eq!(calls.len(), 1, "calls that wait: {calls:#?}");
        calls.remove(0)
    }

    /// Answers a call. Panics if no such call waits.
    pub fn answer(&self, token: u32, answer: impl Into<Answer>) {
        let answer = answer.into();
        self.on_vm(move |vm| {
            deliver_answer(vm, token, answer);
            answer_by_itself(vm);
        });
    }

    /// Answers every call that waits, also those that are made meanwhile, with what `with`
    /// says. Returns the calls. Panics after a thousand, as they do not end by themselves.
    pub fn answer_all<A: Into<Answer>>(&self, mut with: impl FnMut(&Call) -> A) -> Vec<Call> {
        let mut answered = Vec::new();
        while let Some(call) = self.calls().first().cloned() {
            assert!(answered.len() < 1000, "calls without end: {call:#?}");
            self.answer(call.token, with(&call));
            answered.push(call);
        }
        answered
    }

    /// A trap and the new VM that `FAIL_RELOAD` brings: what the guest had in memory is
    /// lost, its calls and streams are gone, context ids and tokens start again. Shared
    /// data, queues and stats stay; notifications that wait go to the new VM. The new VM
    /// has no configuration yet: Envoy configures it with the next request.
    ///
    /// Panics on the VM's own thread.
    pub fn restart_vm(&self) {
        let mut thread = self.0.vm.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(
            !hostcalls::is_current(&thread.vm),
            "a VM cannot replace itself"
        );
        *thread = VmThread::start(Arc::clone(&self.0.process), self.0.number);
    }

    /// The listeners of older configurations have drained: their root contexts end.
    pub fn drain(&self) {
        self.on_vm(|vm| {
            let roots: Vec<u32> = vm.state().roots.keys().copied().collect();
            for root in roots.iter().rev().skip(1) {
                end(vm, *root);
            }
        });
    }

    /// The configuration is gone altogether: every root context is told, and ends.
    pub fn shut_down(&self) {
        self.on_vm(|vm| {
            let roots: Vec<u32> = vm.state().roots.keys().copied().collect();
            for root in roots {
                end(vm, root);
            }
        });
    }
}

/// A request that is being put together.
#[must_use = "a request is made with send()"]
pub struct Request<'a> {
    worker: &'a Worker,
    method: Vec<u8>,
    path: Vec<u8>,
    host: Vec<u8>,
    headers: Pairs,
    properties: BTreeMap<Vec<u8>, Vec<u8>>,
    with_body: bool,
}

impl Request<'_> {
    /// Announces a body. If the request is paused, [`Worker::body`] brings it.
    pub fn with_body(mut self) -> Self {
        self.with_body = true;
        self
    }

    /// Sets method GET and the path, with the query.
    pub fn get(self, path: impl AsRef<[u8]>) -> Self {
        self.method("GET", path)
    }

    /// Sets method POST and the path, with the query.
    pub fn post(self, path: impl AsRef<[u8]>) -> Self {
        self.method("POST", path)
    }

    /// Sets the method and the path, with the query.
    pub fn method(mut self, method: impl AsRef<[u8]>, path: impl AsRef<[u8]>) -> Self {
        self.method = method.as_ref().to_vec();
        self.path = path.as_ref().to_vec();
        self
    }

    /// Sets the authority.
    pub fn host(mut self, host: impl AsRef<[u8]>) -> Self {
        self.host = host.as_ref().to_vec();
        self
    }

    /// Adds a header. Envoy makes names lower case; values are any bytes.
    pub fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        let name = name.to_ascii_lowercase().into_bytes();
        self.headers.push((name, value.as_ref().to_vec()));
        self
    }

    /// Sets a property, its path separated by dots.
    pub fn property(mut self, path: &str, value: impl AsRef<[u8]>) -> Self {
        let path = path.replace('.', "\0").into_bytes();
        self.properties.insert(path, value.as_ref().to_vec());
        self
    }

    /// Sends the request through the newest configuration of the worker. If the filter
    /// decides at once, the stream ends with this. Panics if there is no configuration.
    pub fn send(self) -> Outcome {
        let mut headers: Pairs = [
            (":authority", &*self.host),
            (":path", &*self.path),
            (":method", &*self.method),
            (":scheme", b"http"),
            ("x-forwarded-proto", b"http"),
            ("x-request-id", b"4c0f3a1e-6d0a-4b4c-9a7e-2f1d5b8c9e01"),
        ]
        .map(|(name, value)| (name.as_bytes().to_vec(), value.to_vec()))
        .into();
        headers.extend(self.headers);
        let mut properties = self.properties;
        let mut default = |path: &str, value: &[u8]| {
            let path = path.replace('.', "\0").into_bytes();
            properties.entry(path).or_insert_with(|| value.to_vec());
        };
        default("source.address", b"127.0.0.1:40000");
        default("request.path", &self.path);
        default("request.method", &self.method);
        default("request.host", &self.host);
        default("request.scheme", b"http");
        default("request.protocol", b"HTTP/1.1");
        let with_body = self.with_body;
        self.worker
            .on_vm(move |vm| send(vm, headers, properties, with_body))
    }
}

/// A callback of `context`, on the VM's thread.
fn call<R>(vm: &Vm, context: u32, callback: impl FnOnce() -> R) -> (R, bool) {
    vm.callback(context, || hostcalls::in_guest(callback))
}

fn configure(vm: &Vm, configuration: Vec<u8>) -> bool {
    let guest = vm.process.guest;
    let size = configuration.len();
    let (root, first) = {
        let mut state = vm.state();
        let first = state.roots.is_empty();
        let root = state.new_context();
        let configuration = Root {
            configuration,
            ..Root::default()
        };
        state.roots.insert(root, configuration);
        (root, first)
    };
    let configuring = |now: bool| {
        if let Some(root) = vm.state().roots.get_mut(&root) {
            root.configuring = now;
        }
    };
    // SAFETY, here and below: the guest's functions, called on its VM's thread.
    if let Some(initialize) = guest.initialize
        && first
    {
        hostcalls::in_guest(|| unsafe { initialize() });
    }
    if let Some(on_context_create) = guest.on_context_create {
        call(vm, root, || unsafe { on_context_create(root, 0) });
    }
    let started = match guest.on_vm_start {
        Some(on_vm_start) if first => call(vm, root, || unsafe { on_vm_start(root, 0) }).0 != 0,
        _ => true,
    };
    let accepted = match guest.on_configure {
        Some(on_configure) if started => {
            configuring(true);
            let (accepted, _) = call(vm, root, || unsafe { on_configure(root, size) });
            configuring(false);
            accepted != 0
        }
        _ => started,
    };
    if !accepted {
        end(vm, root);
    }
    accepted
}

fn send(
    vm: &Vm,
    headers: Pairs,
    properties: BTreeMap<Vec<u8>, Vec<u8>>,
    with_body: bool,
) -> Outcome {
    let guest = vm.process.guest;
    let count = headers.len();
    let (root, stream) = {
        let mut state = vm.state();
        let root = state.roots.keys().last().copied();
        let root = root.expect("a worker without a configuration gets no requests");
        let stream = state.new_context();
        let new = Stream {
            root,
            headers,
            headers_readable: true,
            properties,
            ..Stream::default()
        };
        state.streams.insert(stream, new);
        (root, stream)
    };
    // SAFETY, here and below: the guest's functions, called on its VM's thread.
    if let Some(on_context_create) = guest.on_context_create {
        call(vm, stream, || unsafe { on_context_create(stream, root) });
    }
    let end_of_stream = u32::from(!with_body);
    let (status, stopped) = match guest.on_request_headers {
        Some(on_request_headers) => call(vm, stream, || unsafe {
            on_request_headers(stream, count, end_of_stream)
        }),
        None => (0, false),
    };
    if status == 0 && !stopped {
        go_on(vm, stream);
    }
    let body_comes = status == 1 && vm.process.shows_bodies();
    if let Some(stream) = vm.state().streams.get_mut(&stream) {
        stream.body_comes = body_comes;
    }
    outcome(vm, stream)
}

/// A filter callback has let the stream go on.
fn go_on(vm: &Vm, stream: u32) {
    if let Some(stream) = vm.state().streams.get_mut(&stream) {
        stream.headers_readable = false;
        stream.decided.get_or_insert(Action::Continue);
    }
}

fn body(vm: &Vm, stream: u32, bytes: &[u8], end_of_stream: bool) -> Outcome {
    let (size, comes) = {
        let mut state = vm.state();
        let known = state.streams.get_mut(&stream);
        let known = known.unwrap_or_else(|| panic!("stream {stream} has ended"));
        known.body.extend_from_slice(bytes);
        known.body_readable = known.body_comes;
        (known.body.len(), known.body_comes)
    };
    // What is not shown is kept for the next filter.
    if comes {
        let (status, stopped) = match vm.process.guest.on_request_body {
            // SAFETY, here and below: the guest's function, called on its VM's thread.
            Some(on_request_body) => call(vm, stream, || unsafe {
                on_request_body(stream, size, u32::from(end_of_stream))
            }),
            None => (0, false),
        };
        // Headers that were only stopped go on with the body.
        if status == 0 && !stopped {
            go_on(vm, stream);
        }
        body_was_shown(vm, stream);
    }
    outcome(vm, stream)
}

fn trailers(vm: &Vm, stream: u32) -> Outcome {
    let comes = {
        let mut state = vm.state();
        let known = state.streams.get_mut(&stream);
        let known = known.unwrap_or_else(|| panic!("stream {stream} has ended"));
        known.body_readable = known.body_comes;
        known.body_comes
    };
    if comes {
        let (status, stopped) = match vm.process.guest.on_request_trailers {
            Some(on_request_trailers) => {
                call(vm, stream, || unsafe { on_request_trailers(stream, 1) })
            }
            None => (0, false),
        };
        if status == 0 && !stopped {
            go_on(vm, stream);
        }
        body_was_shown(vm, stream);
    }
    outcome(vm, stream)
}

fn body_was_shown(vm: &Vm, stream: u32) {
    if let Some(stream) = vm.state().streams.get_mut(&stream) {
        stream.body_readable = false;
    }
}

/// What was decided for a stream, which ends if something was.
fn outcome(vm: &Vm, stream: u32) -> Outcome {
    let outcome = {
        let state = vm.state();
        let known = state.streams.get(&stream);
        let known = known.unwrap_or_else(|| panic!("stream {stream} has ended"));
        match &known.decided {
            None => return Outcome::Paused(StreamId(stream)),
            Some(Action::Continue) => Outcome::Continued(Forwarded {
                headers: readable(&known.headers),
                filter_state: known.filter_state.clone(),
            }),
            Some(Action::Reply(reply)) => Outcome::Replied(reply.clone()),
            Some(Action::Reset) => Outcome::Reset,
        }
    };
    end(vm, stream);
    outcome
}

/// Ends a context, a stream or a root. A root takes its calls with it.
fn end(vm: &Vm, context: u32) {
    let guest = vm.process.guest;
    // SAFETY, here and below: the guest's functions, called on its VM's thread.
    if let Some(on_done) = guest.on_done {
        call(vm, context, || unsafe { on_done(context) });
    }
    let is_stream = vm.state().streams.contains_key(&context);
    if let Some(on_log) = guest.on_log
        && is_stream
    {
        call(vm, context, || unsafe { on_log(context) });
    }
    if let Some(on_delete) = guest.on_delete {
        call(vm, context, || unsafe { on_delete(context) });
    }
    let mut state = vm.state();
    state.streams.remove(&context);
    if state.roots.remove(&context).is_some() {
        state.calls.retain(|_, call| call.root != context);
        state.streams.retain(|_, stream| stream.root != context);
    }
}

fn deliver_answer(vm: &Vm, token: u32, answer: Answer) {
    let answered = vm.state().calls.remove(&token);
    let root = answered
        .unwrap_or_else(|| panic!("no call {token} waits"))
        .root;
    let (headers, body) = answer.into_parts();
    let (header_count, body_size) = (headers.len(), body.len());
    vm.state().delivering = Some((headers, body));
    if let Some(on_http_call_response) = vm.process.guest.on_http_call_response {
        // SAFETY: the guest's function, called on its VM's thread.
        call(vm, root, || unsafe {
            on_http_call_response(root, token, header_count, body_size, 0);
        });
    }
    vm.state().delivering = None;
}

/// Answers the calls that the process answers by itself.
fn answer_by_itself(vm: &Vm) {
    loop {
        let calls: Vec<Call> = vm.state().calls.values().cloned().collect();
        let mut answers = calls
            .iter()
            .filter_map(|call| Some((call.token, vm.process.answer(call)?)));
        let Some((token, answer)) = answers.next() else {
            return;
        };
        deliver_answer(vm, token, answer);
    }
}
