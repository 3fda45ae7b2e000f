//! The module's side of the ABI as a table of functions. Apart because the host's own
//! tests run small scripted guests, and scenarios run the real filter.

/// The functions that a proxy-wasm module exports. Those in an `Option` need not be
/// exported: Envoy skips callbacks that a module does not have.
///
/// Context ids, tokens and sizes are as in proxy-wasm 0.2.1; results that are bool
/// there are 0 or 1 here.
#[derive(Clone, Copy)]
#[allow(missing_docs, reason = "named as in the ABI, less the prefix")]
pub struct Guest {
    pub initialize: Option<unsafe extern "C" fn()>,
    pub on_memory_allocate: unsafe extern "C" fn(size: usize) -> *mut u8,
    pub on_vm_start: Option<unsafe extern "C" fn(root: u32, size: usize) -> u32>,
    pub on_context_create: Option<unsafe extern "C" fn(context: u32, root: u32)>,
    pub on_configure: Option<unsafe extern "C" fn(root: u32, size: usize) -> u32>,
    pub on_tick: Option<unsafe extern "C" fn(root: u32)>,
    pub on_queue_ready: Option<unsafe extern "C" fn(root: u32, token: u32)>,
    pub on_http_call_response: Option<
        unsafe extern "C" fn(root: u32, token: u32, headers: usize, body: usize, trailers: usize),
    >,
    pub on_request_headers:
        Option<unsafe extern "C" fn(context: u32, headers: usize, end_of_stream: u32) -> u32>,
    pub on_request_body:
        Option<unsafe extern "C" fn(context: u32, size: usize, end_of_stream: u32) -> u32>,
    pub on_request_trailers: Option<unsafe extern "C" fn(context: u32, trailers: usize) -> u32>,
    pub on_done: Option<unsafe extern "C" fn(context: u32) -> u32>,
    pub on_log: Option<unsafe extern "C" fn(context: u32)>,
    pub on_delete: Option<unsafe extern "C" fn(context: u32)>,
}
