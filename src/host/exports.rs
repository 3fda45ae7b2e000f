//! What Envoy calls: the exports of the module, each a line that enters the VM.
//!
//! Only what is needed is exported. A stream is decided on its request headers, or at the
//! end of its body, and leaves no state behind, so `proxy_on_done`, `proxy_on_log`, `proxy_on_delete` and
//! the response's callbacks are not: Envoy skips what a module does not export, and each
//! callback costs a request about a microsecond.

#![allow(unsafe_code)]

use super::abi::{self, Action};
use super::vm::Vm;
use std::cell::RefCell;

thread_local! {
    // One thread is one VM: in Envoy because wasm has one thread, in native tests
    // because each worker of the fake host is a thread.
    static VM: RefCell<Vm> = RefCell::new(Vm::new());
}

/// Runs a callback on the VM's state. The host calls back into the module only to
/// allocate memory, which does not touch that state, so it is never borrowed twice; if
/// it were, the callback would be dropped rather than the VM.
fn with_vm<T>(callback: impl FnOnce(&mut Vm) -> T) -> Option<T> {
    VM.with(|vm| vm.try_borrow_mut().ok().map(|mut vm| callback(&mut vm)))
}

/// Gives the current thread a new VM, as a trap and reload does. For native tests.
pub fn initialize() {
    with_vm(|vm| *vm = Vm::new());
}

#[cfg(target_os = "wasi")]
unsafe extern "C" {
    fn __wasm_call_ctors();
}

#[unsafe(no_mangle)]
extern "C" fn _initialize() {
    // SAFETY: a reactor's constructors run once, here, before anything else. Without this
    // call the linker would run them at every export.
    #[cfg(target_os = "wasi")]
    unsafe {
        __wasm_call_ctors();
    }
    initialize();
}

#[unsafe(no_mangle)]
extern "C" fn proxy_abi_version_0_2_1() {}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_memory_allocate(size: usize) -> *mut u8 {
    abi::allocate(size)
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_context_create(context_id: u32, parent_id: u32) {
    if parent_id != 0 {
        with_vm(|vm| vm.on_stream_create(context_id, parent_id));
    }
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_vm_start(_root_id: u32, _configuration_size: usize) -> u32 {
    1
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_configure(root_id: u32, _configuration_size: usize) -> u32 {
    u32::from(with_vm(|vm| vm.on_configure(root_id)).unwrap_or(false))
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_tick(root_id: u32) {
    with_vm(|vm| vm.on_tick(root_id));
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_queue_ready(_root_id: u32, queue: u32) {
    with_vm(|vm| vm.on_queue_ready(queue));
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_request_headers(stream_id: u32, _headers: usize, end_of_stream: u32) -> u32 {
    // Paused without a reply, the stream would end at its timeout; never let through.
    let action = with_vm(|vm| vm.on_request_headers(stream_id, end_of_stream != 0));
    action.unwrap_or(Action::Pause).headers_status()
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_request_body(stream_id: u32, size: usize, end_of_stream: u32) -> u32 {
    let action = with_vm(|vm| vm.on_request_body(stream_id, size, end_of_stream != 0));
    action.unwrap_or(Action::Pause).body_status()
}

// A body with trailers behind it does not end its stream, and what does not stop the
// trailers lets the stream go on.
#[unsafe(no_mangle)]
extern "C" fn proxy_on_request_trailers(stream_id: u32, _trailers: usize) -> u32 {
    let action = with_vm(|vm| vm.on_request_trailers(stream_id));
    action.unwrap_or(Action::Pause).body_status()
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_http_call_response(
    root_id: u32,
    token: u32,
    _headers: usize,
    _body_size: usize,
    _trailers: usize,
) {
    with_vm(|vm| vm.on_call_response(root_id, token));
}
