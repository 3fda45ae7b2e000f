//! The least that a filter can be: one callback, which lets the request pass. `cargo xtask
//! bench` measures Tollgate beside it, so that what the host costs by itself is known. It
//! stands apart from the other filters because a module has only one set of exports.

#![allow(
    unsafe_code,
    reason = "the ABI's names must be exported as they are, which the language takes for unsafe"
)]

/// The version of the ABI, which Envoy reads from this name.
#[unsafe(no_mangle)]
extern "C" fn proxy_abi_version_0_2_1() {}

/// Envoy loads no module that cannot give it memory. Nobody asks this one for any.
#[unsafe(no_mangle)]
extern "C" fn proxy_on_memory_allocate(_size: u32) -> u32 {
    0
}

/// Lets the request pass: 0 is the ABI's Continue.
#[unsafe(no_mangle)]
extern "C" fn proxy_on_request_headers(_stream: u32, _headers: u32, _end_of_stream: u32) -> u32 {
    0
}
