//! The proxy-wasm ABI 0.2.1, as a safe layer: every host function that the filter
//! calls, with every status as a value.
//!
//! Apart from the rest of `host` because it holds the crate's only `unsafe` code.
//! The stock SDK is not used here: it panics on statuses that it does not expect,
//! reads strings as UTF-8, and ties a call to the stream that made it, whose
//! answer is then lost when the stream ends first.

#![allow(unsafe_code)]

use smallvec::SmallVec;
use std::ptr;

/// What a host function returned. Numbers are those of the ABI; any number that
/// the ABI does not name is [`Status::Other`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// The key, map or property does not exist.
    NotFound,
    /// An argument is not acceptable: an unknown cluster, a stream that has ended.
    BadArgument,
    /// There is no message in the queue.
    Empty,
    /// Somebody else changed the value meanwhile.
    CasMismatch,
    /// Anything else, by number.
    Other(u32),
}

/// The result of a host call that returns `T`.
pub type HostResult<T> = Result<T, Status>;

/// Severity of a log line, by ABI number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum LogLevel {
    /// Every step.
    Trace = 0,
    /// For debugging.
    Debug = 1,
    /// Normal events.
    Info = 2,
    /// Somebody should look.
    Warn = 3,
    /// Something is broken.
    Error = 4,
}

/// A kind of metric, by ABI number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum MetricType {
    /// Only ever rises.
    Counter = 0,
    /// Is set.
    Gauge = 1,
}

/// A header map, by ABI number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum MapType {
    /// Headers of the request.
    RequestHeaders = 0,
    /// Headers of the answer to a call.
    CallResponseHeaders = 6,
}

/// A buffer, by ABI number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum BufferType {
    /// What has arrived of the request's body, while a callback about it runs.
    RequestBody = 0,
    /// Body of the answer to a call.
    CallResponseBody = 4,
    /// The plugin's configuration.
    PluginConfiguration = 7,
}

/// Going on or waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The stream goes on.
    Continue,
    /// The stream waits for `continue_request` or a local reply.
    Pause,
    /// The stream waits for the rest of its body.
    AwaitBody,
}

impl Action {
    /// What `proxy_on_request_headers` returns, by Envoy's number of the header status.
    ///
    /// A pause is `StopAllIterationAndWatermark`, which the SDK has no name for. The SDK's
    /// 1 is `StopIteration`, and what that means is up to the plugin's
    /// `allow_on_headers_stop_iteration`: where it is true, the body comes nevertheless, and a
    /// stream whose body is let through goes on, headers and all, whoever it waits for.
    #[must_use]
    pub const fn headers_status(self) -> u32 {
        match self {
            Self::Continue => 0,
            Self::Pause => 4,
            Self::AwaitBody => 1,
        }
    }

    /// What `proxy_on_request_body` returns, by Envoy's number of the data status: the body
    /// is kept, up to the connection's limit, while the stream waits.
    #[must_use]
    pub const fn body_status(self) -> u32 {
        match self {
            Self::Continue => 0,
            Self::Pause | Self::AwaitBody => 1,
        }
    }
}

/// `proxy_continue_stream`'s number for the request's direction.
const REQUEST_STREAM: u32 = 0;
/// `clock_time_get`'s number for the clock that never goes backwards.
const MONOTONIC: u32 = 1;
/// "No gRPC status" in a local reply.
const NO_GRPC_STATUS: i32 = -1;

mod imports {
    #[cfg_attr(target_family = "wasm", link(wasm_import_module = "env"))]
    unsafe extern "C" {
        pub fn proxy_log(level: u32, message: *const u8, size: usize) -> u32;
        pub fn proxy_get_log_level(level: *mut u32) -> u32;
        pub fn proxy_get_current_time_nanoseconds(time: *mut u64) -> u32;
        pub fn proxy_set_tick_period_milliseconds(period: u32) -> u32;
        pub fn proxy_get_buffer_bytes(
            buffer: u32,
            start: usize,
            max_size: usize,
            data: *mut *mut u8,
            size: *mut usize,
        ) -> u32;
        pub fn proxy_get_header_map_pairs(map: u32, data: *mut *mut u8, size: *mut usize) -> u32;
        pub fn proxy_replace_header_map_value(
            map: u32,
            key: *const u8,
            key_size: usize,
            value: *const u8,
            value_size: usize,
        ) -> u32;
        pub fn proxy_add_header_map_value(
            map: u32,
            key: *const u8,
            key_size: usize,
            value: *const u8,
            value_size: usize,
        ) -> u32;
        pub fn proxy_remove_header_map_value(map: u32, key: *const u8, key_size: usize) -> u32;
        pub fn proxy_get_property(
            path: *const u8,
            path_size: usize,
            data: *mut *mut u8,
            size: *mut usize,
        ) -> u32;
        pub fn proxy_set_property(
            path: *const u8,
            path_size: usize,
            value: *const u8,
            value_size: usize,
        ) -> u32;
        pub fn proxy_get_shared_data(
            key: *const u8,
            key_size: usize,
            data: *mut *mut u8,
            size: *mut usize,
            cas: *mut u32,
        ) -> u32;
        pub fn proxy_set_shared_data(
            key: *const u8,
            key_size: usize,
            value: *const u8,
            value_size: usize,
            cas: u32,
        ) -> u32;
        pub fn proxy_register_shared_queue(
            name: *const u8,
            name_size: usize,
            token: *mut u32,
        ) -> u32;
        pub fn proxy_enqueue_shared_queue(token: u32, message: *const u8, size: usize) -> u32;
        pub fn proxy_dequeue_shared_queue(token: u32, data: *mut *mut u8, size: *mut usize) -> u32;
        pub fn proxy_http_call(
            cluster: *const u8,
            cluster_size: usize,
            headers: *const u8,
            headers_size: usize,
            body: *const u8,
            body_size: usize,
            trailers: *const u8,
            trailers_size: usize,
            timeout_milliseconds: u32,
            token: *mut u32,
        ) -> u32;
        pub fn proxy_set_effective_context(context_id: u32) -> u32;
        pub fn proxy_continue_stream(stream: u32) -> u32;
        pub fn proxy_send_local_response(
            status: u32,
            details: *const u8,
            details_size: usize,
            body: *const u8,
            body_size: usize,
            headers: *const u8,
            headers_size: usize,
            grpc_status: i32,
        ) -> u32;
        pub fn proxy_define_metric(
            metric_type: u32,
            name: *const u8,
            name_size: usize,
            id: *mut u32,
        ) -> u32;
        pub fn proxy_increment_metric(id: u32, offset: i64) -> u32;
        pub fn proxy_record_metric(id: u32, value: u64) -> u32;
        pub fn proxy_get_metric(id: u32, value: *mut u64) -> u32;
    }

    // The standard library has no absolute monotonic time, and lifetimes are
    // shared between VMs; so WASI's clock is read directly.
    #[cfg_attr(
        target_family = "wasm",
        link(wasm_import_module = "wasi_snapshot_preview1")
    )]
    unsafe extern "C" {
        pub fn clock_time_get(clock: u32, precision: u64, time: *mut u64) -> u16;
        pub fn random_get(buffer: *mut u8, size: usize) -> u16;
    }
}

fn checked(status: u32) -> HostResult<()> {
    match status {
        0 => Ok(()),
        1 => Err(Status::NotFound),
        2 => Err(Status::BadArgument),
        7 => Err(Status::Empty),
        8 => Err(Status::CasMismatch),
        other => Err(Status::Other(other)),
    }
}

/// Takes over memory that the host filled after asking `proxy_on_memory_allocate` for it.
fn taken(data: *mut u8, size: usize) -> Vec<u8> {
    if data.is_null() || size == 0 {
        return Vec::new();
    }
    // SAFETY: the host got this block from `proxy_on_memory_allocate(size)`, which
    // made it as a boxed slice of exactly `size` bytes and gave up its ownership;
    // the host has filled it and keeps no pointer to it.
    unsafe { Vec::from_raw_parts(data, size, size) }
}

/// Allocates memory for the host to return data in; `taken` takes it over. Not zeroed:
/// the host fills all of it before anybody reads it.
pub fn allocate(size: usize) -> *mut u8 {
    Box::into_raw(Box::<[u8]>::new_uninit_slice(size)).cast()
}

/// Writes a line to Envoy's log.
pub fn log(level: LogLevel, message: &str) {
    // SAFETY: pointer and length are of a live string.
    let _ = unsafe { imports::proxy_log(level as u32, message.as_ptr(), message.len()) };
}

/// The level below which Envoy drops the log lines of this filter, by ABI number.
pub fn log_level() -> HostResult<u32> {
    let mut level = 0;
    // SAFETY: the out-pointer is valid for the call.
    checked(unsafe { imports::proxy_get_log_level(&raw mut level) })?;
    Ok(level)
}

/// The calendar clock, in nanoseconds since 1970 in UTC.
pub fn wall_nanoseconds() -> HostResult<u64> {
    let mut time = 0;
    // SAFETY: the out-pointer is valid for the call.
    checked(unsafe { imports::proxy_get_current_time_nanoseconds(&raw mut time) })?;
    Ok(time)
}

/// The clock that never goes backwards, in nanoseconds; the same for all VMs of a process.
pub fn monotonic_nanoseconds() -> HostResult<u64> {
    let mut time = 0;
    // SAFETY: the out-pointer is valid for the call.
    let code = unsafe { imports::clock_time_get(MONOTONIC, 1, &raw mut time) };
    if code == 0 {
        Ok(time)
    } else {
        Err(Status::Other(u32::from(code)))
    }
}

/// Random bytes from the host.
pub fn random_bytes<const N: usize>() -> HostResult<[u8; N]> {
    let mut bytes = [0; N];
    // SAFETY: the buffer is valid for writes of its own length.
    let code = unsafe { imports::random_get(bytes.as_mut_ptr(), N) };
    if code == 0 {
        Ok(bytes)
    } else {
        Err(Status::Other(u32::from(code)))
    }
}

/// Asks for `proxy_on_tick` on the current root context, every so many milliseconds.
pub fn set_tick_period(milliseconds: u32) -> HostResult<()> {
    // SAFETY: no pointers.
    checked(unsafe { imports::proxy_set_tick_period_milliseconds(milliseconds) })
}

/// The bytes of a buffer, at most `max_size`; empty if there is none.
pub fn buffer(buffer: BufferType, max_size: usize) -> HostResult<Vec<u8>> {
    let (mut data, mut size) = (ptr::null_mut(), 0);
    // SAFETY: the out-pointers are valid for the call.
    let status = unsafe {
        imports::proxy_get_buffer_bytes(buffer as u32, 0, max_size, &raw mut data, &raw mut size)
    };
    match checked(status) {
        Ok(()) => Ok(taken(data, size)),
        Err(Status::NotFound) => Ok(Vec::new()),
        Err(status) => Err(status),
    }
}

/// A header map, serialized as `parse_pairs` reads it.
pub fn header_map(map: MapType) -> HostResult<Vec<u8>> {
    let (mut data, mut size) = (ptr::null_mut(), 0);
    // SAFETY: the out-pointers are valid for the call.
    let status =
        unsafe { imports::proxy_get_header_map_pairs(map as u32, &raw mut data, &raw mut size) };
    checked(status)?;
    Ok(taken(data, size))
}

/// Gives the current request this header in place of all of this name. `BadArgument`: the
/// request has gone on.
pub fn replace_request_header(name: &[u8], value: &[u8]) -> HostResult<()> {
    // SAFETY: name and value are live.
    checked(unsafe {
        imports::proxy_replace_header_map_value(
            MapType::RequestHeaders as u32,
            name.as_ptr(),
            name.len(),
            value.as_ptr(),
            value.len(),
        )
    })
}

/// Gives the current request one more header. `BadArgument`: the request has gone on.
pub fn add_request_header(name: &[u8], value: &[u8]) -> HostResult<()> {
    // SAFETY: name and value are live.
    checked(unsafe {
        imports::proxy_add_header_map_value(
            MapType::RequestHeaders as u32,
            name.as_ptr(),
            name.len(),
            value.as_ptr(),
            value.len(),
        )
    })
}

/// Takes every header of this name from the current request. `BadArgument`: the request has
/// gone on.
pub fn remove_request_header(name: &[u8]) -> HostResult<()> {
    // SAFETY: the name is live.
    checked(unsafe {
        imports::proxy_remove_header_map_value(
            MapType::RequestHeaders as u32,
            name.as_ptr(),
            name.len(),
        )
    })
}

/// A property of the effective context's stream; the parts of its path are separated by NUL.
pub fn property(path: &[u8]) -> HostResult<Vec<u8>> {
    let (mut data, mut size) = (ptr::null_mut(), 0);
    // SAFETY: the path is live and the out-pointers are valid for the call.
    let status = unsafe {
        imports::proxy_get_property(path.as_ptr(), path.len(), &raw mut data, &raw mut size)
    };
    checked(status)?;
    Ok(taken(data, size))
}

/// Sets the filter state `wasm.NAME` of the effective context's stream.
pub fn set_filter_state(name: &str, value: &str) -> HostResult<()> {
    // SAFETY: name and value are live.
    checked(unsafe {
        imports::proxy_set_property(name.as_ptr(), name.len(), value.as_ptr(), value.len())
    })
}

/// A value of shared data and its compare-and-set token.
pub fn shared_data(key: &[u8]) -> HostResult<(Vec<u8>, u32)> {
    let (mut data, mut size, mut cas) = (ptr::null_mut(), 0, 0);
    // SAFETY: the key is live and the out-pointers are valid for the call.
    let status = unsafe {
        imports::proxy_get_shared_data(
            key.as_ptr(),
            key.len(),
            &raw mut data,
            &raw mut size,
            &raw mut cas,
        )
    };
    checked(status)?;
    Ok((taken(data, size), cas))
}

/// Sets a value of shared data. A `cas` of 0 overwrites; any other must be the
/// token that was read, or the key must be absent.
pub fn set_shared_data(key: &[u8], value: &[u8], cas: u32) -> HostResult<()> {
    // SAFETY: key and value are live.
    checked(unsafe {
        imports::proxy_set_shared_data(key.as_ptr(), key.len(), value.as_ptr(), value.len(), cas)
    })
}

/// Lets the root of the effective context listen to the queue of this name, instead of
/// whoever did; `proxy_on_queue_ready` is called on it for each message that comes from now
/// on. Returns the queue's token. Messages that are in it stay.
pub fn register_queue(name: &[u8]) -> HostResult<u32> {
    let mut token = 0;
    // SAFETY: the name is live and the out-pointer is valid for the call.
    checked(unsafe {
        imports::proxy_register_shared_queue(name.as_ptr(), name.len(), &raw mut token)
    })?;
    Ok(token)
}

/// Puts a message into a queue and wakes whoever listens to it, on another thread too.
pub fn enqueue(token: u32, message: &[u8]) -> HostResult<()> {
    // SAFETY: the message is live.
    checked(unsafe { imports::proxy_enqueue_shared_queue(token, message.as_ptr(), message.len()) })
}

/// Takes the next message out of a queue. `Empty`: there is none.
pub fn dequeue(token: u32) -> HostResult<Vec<u8>> {
    let (mut data, mut size) = (ptr::null_mut(), 0);
    // SAFETY: the out-pointers are valid for the call.
    let status =
        unsafe { imports::proxy_dequeue_shared_queue(token, &raw mut data, &raw mut size) };
    checked(status)?;
    Ok(taken(data, size))
}

/// Starts an HTTP call from the effective context and returns its token.
/// The timeout is in milliseconds; 0 would mean never, so it becomes 1.
pub fn http_call(
    cluster: &str,
    headers: &[(&[u8], &[u8])],
    body: &[u8],
    timeout_milliseconds: u32,
) -> HostResult<u32> {
    let headers = serialize_pairs(headers);
    let trailers = serialize_pairs(&[]);
    let mut token = 0;
    // SAFETY: all slices are live and the out-pointer is valid for the call.
    let status = unsafe {
        imports::proxy_http_call(
            cluster.as_ptr(),
            cluster.len(),
            headers.as_ptr(),
            headers.len(),
            body.as_ptr(),
            body.len(),
            trailers.as_ptr(),
            trailers.len(),
            timeout_milliseconds.max(1),
            &raw mut token,
        )
    };
    checked(status)?;
    Ok(token)
}

/// Makes later calls act on another context of this VM. `BadArgument`: it has ended.
pub fn set_effective_context(context_id: u32) -> HostResult<()> {
    // SAFETY: no pointers.
    checked(unsafe { imports::proxy_set_effective_context(context_id) })
}

/// Lets the paused request of the effective context go on.
pub fn continue_request() -> HostResult<()> {
    // SAFETY: no pointers.
    checked(unsafe { imports::proxy_continue_stream(REQUEST_STREAM) })
}

/// Answers the effective context's request without asking upstream.
/// `details` becomes Envoy's response code details. A request that Envoy takes for gRPC gets
/// HTTP 200 with `grpc_status` (or, without, what Envoy makes of the HTTP status), and the
/// body as the message.
pub fn local_reply(
    status: u32,
    grpc_status: Option<i32>,
    details: &str,
    headers: &[(&[u8], &[u8])],
    body: &[u8],
) -> HostResult<()> {
    let headers = serialize_pairs(headers);
    // SAFETY: all slices are live.
    checked(unsafe {
        imports::proxy_send_local_response(
            status,
            details.as_ptr(),
            details.len(),
            body.as_ptr(),
            body.len(),
            headers.as_ptr(),
            headers.len(),
            grpc_status.unwrap_or(NO_GRPC_STATUS),
        )
    })
}

/// Defines a metric of that name, or finds it, and returns its id.
pub fn define_metric(metric_type: MetricType, name: &str) -> HostResult<u32> {
    let mut id = 0;
    // SAFETY: the name is live and the out-pointer is valid for the call.
    checked(unsafe {
        imports::proxy_define_metric(metric_type as u32, name.as_ptr(), name.len(), &raw mut id)
    })?;
    Ok(id)
}

/// Adds to a counter.
pub fn increment_metric(id: u32, by: i64) {
    // SAFETY: no pointers. An unknown id is refused by the host and harms nobody.
    let _ = unsafe { imports::proxy_increment_metric(id, by) };
}

/// Sets a gauge.
pub fn record_metric(id: u32, value: u64) {
    // SAFETY: no pointers. An unknown id is refused by the host and harms nobody.
    let _ = unsafe { imports::proxy_record_metric(id, value) };
}

/// The value of a counter or gauge, of the whole process.
pub fn get_metric(id: u32) -> HostResult<u64> {
    let mut value = 0;
    // SAFETY: the out-pointer is valid for the call.
    checked(unsafe { imports::proxy_get_metric(id, &raw mut value) })?;
    Ok(value)
}

/// Serializes header pairs as the ABI has them: count, then both lengths of each
/// pair (all u32, little-endian), then the bytes, each followed by a NUL.
fn serialize_pairs(pairs: &[(&[u8], &[u8])]) -> Vec<u8> {
    let length = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes();
    let mut out = Vec::with_capacity(256);
    out.extend_from_slice(&u32::try_from(pairs.len()).unwrap_or(0).to_le_bytes());
    for (name, value) in pairs {
        out.extend_from_slice(&length(name));
        out.extend_from_slice(&length(value));
    }
    for (name, value) in pairs {
        for part in [name, value] {
            out.extend_from_slice(part);
            out.push(0);
        }
    }
    out
}

/// Names and values of headers. Those of a usual request need no memory of their own.
pub type Pairs<'a> = SmallVec<[(&'a [u8], &'a [u8]); 24]>;

/// Reads header pairs as the ABI has them; anything that does not fit ends the list.
pub fn parse_pairs(bytes: &[u8]) -> Pairs<'_> {
    let mut pairs = Pairs::new();
    let Some((count, lengths)) = bytes.split_first_chunk::<4>() else {
        return pairs;
    };
    let count = usize::try_from(u32::from_le_bytes(*count)).unwrap_or(0);
    let Some((sizes, mut data)) = count
        .checked_mul(8)
        .and_then(|size| lengths.split_at_checked(size))
    else {
        return pairs;
    };
    let (sizes, _) = sizes.as_chunks::<8>();
    // One extension writes them in a row; each push would look for room.
    pairs.extend(sizes.iter().map_while(|sizes| {
        let sizes = u64::from_le_bytes(*sizes);
        let (name, after) = part(data, sizes & u64::from(u32::MAX))?;
        let (value, after) = part(after, sizes >> 32)?;
        data = after;
        Some((name, value))
    }));
    pairs
}

/// Splits off one NUL-terminated part.
fn part(data: &[u8], size: u64) -> Option<(&[u8], &[u8])> {
    let (bytes, rest) = data.split_at_checked(usize::try_from(size).ok()?)?;
    Some((bytes, rest.split_first()?.1))
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(not(target_family = "wasm"))]
    use proxy_wasm::types;

    #[test]
    fn pairs_survive_the_abi() {
        let pairs: &[(&[u8], &[u8])] = &[(b":path", b"/\xff"), (b"x", b""), (b"", b"y")];
        assert_eq!(*parse_pairs(&serialize_pairs(pairs)), *pairs);
    }

    #[test]
    fn a_map_cut_short_ends_the_list() {
        let whole = serialize_pairs(&[(b"a", b"1"), (b"b", b"2")]);
        for length in 0..whole.len() {
            assert!(parse_pairs(&whole[..length]).len() < 2, "cut at {length}");
        }
        assert!(parse_pairs(&[0xff; 64]).is_empty());
    }

    #[cfg(not(target_family = "wasm"))]
    #[test]
    fn our_numbers_are_those_of_the_sdk() {
        assert_eq!(
            checked(types::Status::NotFound as u32),
            Err(Status::NotFound)
        );
        assert_eq!(
            checked(types::Status::BadArgument as u32),
            Err(Status::BadArgument)
        );
        assert_eq!(
            checked(types::Status::CasMismatch as u32),
            Err(Status::CasMismatch)
        );
        assert_eq!(checked(types::Status::Empty as u32), Err(Status::Empty));
        assert_eq!(
            MapType::RequestHeaders as u32,
            types::MapType::HttpRequestHeaders as u32
        );
        assert_eq!(
            MapType::CallResponseHeaders as u32,
            types::MapType::HttpCallResponseHeaders as u32
        );
        assert_eq!(
            BufferType::CallResponseBody as u32,
            types::BufferType::HttpCallResponseBody as u32
        );
        assert_eq!(
            BufferType::PluginConfiguration as u32,
            types::BufferType::PluginConfiguration as u32
        );
        assert_eq!(
            BufferType::RequestBody as u32,
            types::BufferType::HttpRequestBody as u32
        );
        assert_eq!(
            Action::Continue.headers_status(),
            types::Action::Continue as u32
        );
        assert_eq!(Action::Pause.body_status(), types::Action::Pause as u32);
        assert_eq!(LogLevel::Error as u32, types::LogLevel::Error as u32);
        assert_eq!(MetricType::Gauge as u32, types::MetricType::Gauge as u32);
    }
}
