//! The filter itself as a guest: its exports by their names, as Envoy finds them. Apart
//! because nothing else in the host knows which module it runs.

use crate::guest::Guest;

unsafe extern "C" {
    fn _initialize();
    fn proxy_on_memory_allocate(size: usize) -> *mut u8;
    fn proxy_on_vm_start(root: u32, size: usize) -> u32;
    fn proxy_on_context_create(context: u32, root: u32);
    fn proxy_on_configure(root: u32, size: usize) -> u32;
    fn proxy_on_tick(root: u32);
    fn proxy_on_queue_ready(root: u32, queue: u32);
    fn proxy_on_http_call_response(
        root: u32,
        token: u32,
        headers: usize,
        body: usize,
        trailers: usize,
    );
    fn proxy_on_request_headers(context: u32, headers: usize, end_of_stream: u32) -> u32;
    fn proxy_on_request_body(context: u32, size: usize, end_of_stream: u32) -> u32;
    fn proxy_on_request_trailers(context: u32, trailers: usize) -> u32;
}

/// Tollgate. What it does not export stays `None`; a test of the module's export list
/// belongs to the build.
pub(crate) fn tollgate() -> Guest {
    // The declarations above name symbols, not the crate: this reference brings it in.
    std::hint::black_box(tollgate::host::initialize as *const ());
    Guest {
        initialize: Some(_initialize),
        on_memory_allocate: proxy_on_memory_allocate,
        on_vm_start: Some(proxy_on_vm_start),
        on_context_create: Some(proxy_on_context_create),
        on_configure: Some(proxy_on_configure),
        on_tick: Some(proxy_on_tick),
        on_queue_ready: Some(proxy_on_queue_ready),
        on_http_call_response: Some(proxy_on_http_call_response),
        on_request_headers: Some(proxy_on_request_headers),
        on_request_body: Some(proxy_on_request_body),
        on_request_trailers: Some(proxy_on_request_trailers),
        on_done: None,
        on_log: None,
        on_delete: None,
    }
}
