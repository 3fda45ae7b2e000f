//! What no filter like Tollgate can do without, and nothing else: it is told which
//! configuration a stream belongs to, reads the request's headers and the clock, and writes
//! a record of 400 bytes to shared data. `cargo xtask bench` measures Tollgate beside it, so
//! that what the host costs is told apart from what the filter does. It stands apart from the
//! other filters because a module has only one set of exports.

#![allow(
    unsafe_code,
    reason = "the ABI is calls by pointer, and its names must be exported as they are"
)]

use std::cell::UnsafeCell;
use std::ptr;

/// The ABI's number of the request's headers.
const REQUEST_HEADERS: u32 = 0;
/// The clock that never goes backwards, by its number in WASI.
const MONOTONIC: u32 = 1;
/// As long as Tollgate's keys are: the longest for which the host needs no memory.
const KEY: &[u8; 22] = b"tollgate/bench/floor/1";
/// Writes whatever has been written meanwhile; a token costs the host no more.
const OVERWRITE: u32 = 0;

#[link(wasm_import_module = "env")]
unsafe extern "C" {
    fn proxy_get_header_map_pairs(map: u32, data: *mut *mut u8, size: *mut usize) -> u32;
    fn proxy_set_shared_data(
        key: *const u8,
        key_size: usize,
        value: *const u8,
        value_size: usize,
        cas: u32,
    ) -> u32;
}

#[link(wasm_import_module = "wasi_snapshot_preview1")]
unsafe extern "C" {
    fn clock_time_get(clock: u32, precision: u64, time: *mut u64) -> u16;
}

/// Memory that the host may write to, used again for each request.
struct Room(UnsafeCell<[u8; 65_536]>);

// SAFETY: a VM has one thread.
unsafe impl Sync for Room {}

static ROOM: Room = Room(UnsafeCell::new([0; 65_536]));
static RECORD: [u8; 400] = [0; 400];

/// The version of the ABI, which Envoy reads from this name.
#[unsafe(no_mangle)]
extern "C" fn proxy_abi_version_0_2_1() {}

/// Null, which the host takes for a failure, where the headers are longer than all this room.
#[unsafe(no_mangle)]
extern "C" fn proxy_on_memory_allocate(size: usize) -> *mut u8 {
    if size <= 65_536 {
        ROOM.0.get().cast()
    } else {
        ptr::null_mut()
    }
}

/// Tollgate has to know which configuration decides about a stream.
#[unsafe(no_mangle)]
extern "C" fn proxy_on_context_create(_context: u32, _parent: u32) {}

/// Lets the request pass: 0 is the ABI's Continue.
#[unsafe(no_mangle)]
extern "C" fn proxy_on_request_headers(_stream: u32, _headers: u32, _end_of_stream: u32) -> u32 {
    let (mut data, mut size, mut time) = (ptr::null_mut(), 0, 0);
    // SAFETY: all pointers are valid for the calls, and the host keeps none of them.
    unsafe {
        proxy_get_header_map_pairs(REQUEST_HEADERS, &raw mut data, &raw mut size);
        clock_time_get(MONOTONIC, 1, &raw mut time);
        proxy_set_shared_data(
            KEY.as_ptr(),
            KEY.len(),
            RECORD.as_ptr(),
            RECORD.len(),
            OVERWRITE,
        );
    }
    0
}
