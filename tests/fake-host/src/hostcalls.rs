//! The host functions: what a proxy-wasm module imports, under the names and
//! signatures of the ABI 0.2.1 with native pointers. Apart because these symbols are
//! what the filter links to, and because only this file dereferences its pointers.
//!
//! Which process and VM a call belongs to is a property of the thread that makes it.

use std::cell::{Cell, RefCell};
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Once};

use crate::Status;
use crate::process::LogLevel;
use crate::shared_data::SharedDataAccess;
use crate::stats::Kind;
use crate::vm::{Action, Call, Reply, State, Vm, readable};
use crate::wire::{self, Pairs};

thread_local! {
    static VM: RefCell<Option<Arc<Vm>>> = const { RefCell::new(None) };
    static IN_GUEST: Cell<bool> = const { Cell::new(false) };
}

/// Makes this thread `vm`'s.
pub(crate) fn enter(vm: &Arc<Vm>) {
    VM.set(Some(Arc::clone(vm)));
}

/// Whether this thread is `vm`'s.
pub(crate) fn is_current(vm: &Arc<Vm>) -> bool {
    VM.with_borrow(|current| {
        current
            .as_ref()
            .is_some_and(|current| Arc::ptr_eq(current, vm))
    })
}

/// Calls into the guest. A panic in there aborts the process, as nothing may unwind
/// through the boundary; the hook of [`install`] makes sure that its message is seen.
pub(crate) fn in_guest<R>(callback: impl FnOnce() -> R) -> R {
    let outer = IN_GUEST.replace(true);
    let result = callback();
    IN_GUEST.set(outer);
    result
}

/// Prepares the process for guests that panic: the test runner keeps messages back and
/// loses them when the process aborts, so they also go straight to standard error.
pub(crate) fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        std::hint::black_box(symbols());
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if IN_GUEST.try_with(Cell::get).unwrap_or(false) {
                let _ = writeln!(std::io::stderr(), "TRAP in the filter or its host: {panic}");
            }
            previous(panic);
        }));
    });
}

/// The name of a host function as faults are kept under. Panics if there is none.
pub(crate) fn name(name: &str) -> &'static str {
    let found = symbols().into_iter().find(|(known, _)| *known == name);
    found.unwrap_or_else(|| panic!("no host function {name}")).0
}

macro_rules! symbols {
    ($($function:ident),* $(,)?) => {
        /// Every host function by name. Also keeps them in the binary: nothing else here
        /// refers to them, and a linker that has passed this library does not come back.
        fn symbols() -> Vec<(&'static str, *const ())> {
            vec![$((stringify!($function), $function as *const ())),*]
        }
    };
}

symbols![
    proxy_log,
    proxy_get_log_level,
    proxy_get_current_time_nanoseconds,
    proxy_set_tick_period_milliseconds,
    proxy_get_buffer_bytes,
    proxy_get_header_map_pairs,
    proxy_get_header_map_value,
    proxy_replace_header_map_value,
    proxy_add_header_map_value,
    proxy_remove_header_map_value,
    proxy_get_property,
    proxy_set_property,
    proxy_get_shared_data,
    proxy_set_shared_data,
    proxy_register_shared_queue,
    proxy_resolve_shared_queue,
    proxy_enqueue_shared_queue,
    proxy_dequeue_shared_queue,
    proxy_http_call,
    proxy_continue_stream,
    proxy_close_stream,
    proxy_send_local_response,
    proxy_define_metric,
    proxy_increment_metric,
    proxy_record_metric,
    proxy_get_metric,
    proxy_set_effective_context,
    proxy_done,
    clock_time_get,
    random_get,
];

/// A host function's frame: finds the VM, lets a fault come first, never unwinds.
fn host(name: &str, function: impl FnOnce(&Vm) -> Result<(), Status>) -> u32 {
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let Ok(Some(vm)) = VM.try_with(|vm| vm.borrow().clone()) else {
            return Status::InternalFailure as u32;
        };
        if vm.is_dead() {
            return Status::InternalFailure as u32;
        }
        if let Some(status) = vm.process.faults.status(name) {
            return status;
        }
        match function(&vm) {
            Ok(()) => Status::Ok as u32,
            Err(status) => status as u32,
        }
    }));
    outcome.unwrap_or_else(|_| std::process::abort())
}

/// The guest's bytes at `data`.
///
/// # Safety
/// `data` is null or points to `size` bytes that stay as they are for the call.
unsafe fn bytes<'a>(data: *const u8, size: usize) -> Result<&'a [u8], Status> {
    match (data.is_null(), size) {
        (_, 0) => Ok(&[]),
        (true, _) => Err(Status::InvalidMemoryAccess),
        // SAFETY: as promised by the caller.
        (false, _) => Ok(unsafe { std::slice::from_raw_parts(data, size) }),
    }
}

/// Writes `value` to the guest's memory at `target`.
///
/// # Safety
/// `target` is null or can be written to.
unsafe fn write<T>(target: *mut T, value: T) -> Result<(), Status> {
    if target.is_null() {
        return Err(Status::InvalidMemoryAccess);
    }
    // SAFETY: as promised by the caller.
    unsafe { target.write(value) };
    Ok(())
}

/// Gives `value` to the guest in memory that it allocates. An empty value is a null pointer.
///
/// # Safety
/// `data` and `size` are null or can be written to.
unsafe fn give(vm: &Vm, value: &[u8], data: *mut *mut u8, size: *mut usize) -> Result<(), Status> {
    let mut block = std::ptr::null_mut();
    if !value.is_empty() {
        // SAFETY: the guest's allocator takes any size; it returns a block of it, or null.
        block = unsafe { (vm.process.guest.on_memory_allocate)(value.len()) };
        if block.is_null() {
            return Err(Status::InvalidMemoryAccess);
        }
        // SAFETY: the block is new and has room for the value.
        unsafe { block.copy_from_nonoverlapping(value.as_ptr(), value.len()) };
    }
    // SAFETY: as promised by the caller.
    unsafe {
        write(data, block)?;
        write(size, value.len())
    }
}

/// Writes a log line. Levels beyond critical are refused.
///
/// # Safety
/// Pointers and sizes are the guest's own, as in every function below.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn proxy_log(level: u32, message: *const u8, size: usize) -> u32 {
    host("proxy_log", |vm| {
        let level = LogLevel::from_number(level).ok_or(Status::BadArgument)?;
        // SAFETY: the guest's own string.
        vm.process
            .log(vm.worker, level, unsafe { bytes(message, size) }?);
        Ok(())
    })
}

/// # Safety
/// As for [`proxy_log`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn proxy_get_log_level(level: *mut u32) -> u32 {
    host("proxy_get_log_level", |vm| {
        // SAFETY: the guest's own variable.
        unsafe { write(level, vm.process.log_level() as u32) }
    })
}

/// The calendar clock.
///
/// # Safety
/// As for [`proxy_log`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn proxy_get_current_time_nanoseconds(time: *mut u64) -> u32 {
    host("proxy_get_current_time_nanoseconds", |vm| {
        // SAFETY: the guest's own variable.
        unsafe { write(time, vm.process.wall_nanoseconds()) }
    })
}

/// WASI's clock: 0 is the calendar, 1 is monotonic; others are not supported (58).
///
/// # Safety
/// As for [`proxy_log`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_time_get(clock: u32, _precision: u64, time: *mut u64) -> u16 {
    const NOT_SUPPORTED: u16 = 58;
    const FAULT: u16 = 21;
    if clock > 1 {
        return NOT_SUPPORTED;
    }
    let status = host("clock_time_get", |vm| {
        let now = match clock {
            0 => vm.process.wall_nanoseconds(),
            _ => vm.process.monotonic_nanoseconds(),
        };
        // SAFETY: the guest's own variable.
        unsafe { write(time, now) }
    });
    if status == 0 { 0 } else { FAULT }
}

/// WASI's random numbers; here from a seed, other ones for each VM.
///
/// # Safety
/// As for [`proxy_log`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn random_get(buffer: *mut u8, size: usize) -> u16 {
    const FAULT: u16 = 21;
    let status = host("random_get", |vm| {
        if buffer.is_null() {
            return Err(Status::InvalidMemoryAccess);
        }
        let mut state = vm.state();
        for at in 0..size {
            let [random, ..] = state.random().to_le_bytes();
            // SAFETY: the guest's own buffer, within its size.
            unsafe { buffer.add(at).write(random) };
        }
        Ok(())
    });
    if status == 0 { 0 } else { FAULT }
}

/// Sets the tick period of the effective context's root; 0 ends the ticks.
#[unsafe(no_mangle)]
pub extern "C" fn proxy_set_tick_period_milliseconds(period: u32) -> u32 {
    host("proxy_set_tick_period_milliseconds", |vm| {
        let mut state = vm.state();
        let root = state.effective_root().ok_or(Status::InternalFailure)?;
        if let Some(root) = state.roots.get_mut(&root) {
            root.tick_period_ms = period;
        }
        Ok(())
    })
}

/// The request's body, VM configuration (always empty), plugin configuration, or the body of the answer that is
/// being delivered. A buffer that is empty leaves the results alone, as in Envoy.
///
/// # Safety
/// As for [`proxy_log`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn proxy_get_buffer_bytes(
    buffer: u32,
    start: usize,
    max_size: usize,
    data: *mut *mut u8,
    size: *mut usize,
) -> u32 {
    host("proxy_get_buffer_bytes", |vm| {
        let content = {
            let state = vm.state();
            let root = state.roots.get(&state.effective());
            match buffer {
                0 => state
                    .streams
                    .get(&state.effective())
                    .filter(|stream| stream.body_readable)
                    .map(|stream| stream.body.clone()),
                4 => state.delivering.as_ref().map(|(_, body)| body.clone()),
                6 => Some(Vec::new()),
                7 => root
                    .filter(|root| root.configuring)
                    .map(|root| root.configuration.clone()),
                1..=8 => None,
                _ => return Err(Status::BadArgument),
            }
        }
        .ok_or(Status::NotFound)?;
        let end = start.checked_add(max_size).ok_or(Status::BadArgument)?;
        let end = end.min(content.len());
        let part = content.get(start..end).ok_or(Status::BadArgument)?;
        if part.is_empty() {
            return Ok(());
        }
        // SAFETY: the guest's own variables.
        unsafe { give(vm, part, data, size) }
    })
}

/// The headers that can be read now: of the request until it goes on, of the answer while
/// it is delivered.
fn map(state: &mut State, map: u32) -> Result<Option<&Pairs>, Status> {
    match map {
        0 => {
            let stream = state
                .effective_stream()
                .filter(|stream| stream.headers_readable);
            Ok(stream.map(|stream| &stream.headers))
        }
        6 => Ok(state.delivering.as_ref().map(|(headers, _)| headers)),
        1..=7 => Ok(None),
        _ => Err(Status::BadArgument),
    }
}

/// A whole header map. One that does not exist in this phase is empty, as in Envoy.
///
/// # Safety
/// As for [`proxy_log`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn proxy_get_header_map_pairs(
    number: u32,
    data: *mut *mut u8,
    size: *mut usize,
) -> u32 {
    host("proxy_get_header_map_pairs", |vm| {
        let pairs = map(&mut vm.state(), number)?.map(wire::encode);
        // SAFETY: the guest's own variables.
        unsafe { give(vm, &pairs.unwrap_or_default(), data, size) }
    })
}

/// The first value of a header.
///
/// # Safety
/// As for [`proxy_log`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn proxy_get_header_map_value(
    number: u32,
    key: *const u8,
    key_size: usize,
    data: *mut *mut u8,
    size: *mut usize,
) -> u32 {
    host("proxy_get_header_map_value", |vm| {
        // SAFETY: the guest's own string.
        let key = unsafe { bytes(key, key_size) }?.to_ascii_lowercase();
        let value = {
            let mut state = vm.state();
            let pairs = map(&mut state, number)?.ok_or(Status::BadArgument)?;
            let found = pairs.iter().find(|(name, _)| *name == key);
            found.map(|(_, value)| value.clone())
        };
        // SAFETY: the guest's own variables.
        unsafe { give(vm, &value.ok_or(Status::NotFound)?, data, size) }
    })
}

/// Changes the headers of the effective context's request, while they can be read.
fn change(vm: &Vm, number: u32, change: impl FnOnce(&mut Pairs)) -> Result<(), Status> {
    let mut state = vm.state();
    let stream = state
        .effective_stream()
        .filter(|stream| number == 0 && stream.headers_readable);
    change(&mut stream.ok_or(Status::BadArgument)?.headers);
    Ok(())
}

/// # Safety
/// As for [`proxy_log`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn proxy_replace_header_map_value(
    number: u32,
    key: *const u8,
    key_size: usize,
    value: *const u8,
    value_size: usize,
) -> u32 {
    host("proxy_replace_header_map_value", |vm| {
        // SAFETY: the guest's own strings.
        let (key, value) = unsafe { (bytes(key, key_size)?, bytes(value, value_size)?) };
        change(vm, number, |headers| {
            headers.retain(|(name, _)| !name.eq_ignore_ascii_case(key));
            headers.push((key.to_ascii_lowercase(), value.to_vec()));
        })
    })
}

/// # Safety
/// As for [`proxy_log`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn proxy_add_header_map_value(
    number: u32,
    key: *const u8,
    key_size: usize,
    value: *const u8,
    value_size: usize,
) -> u32 {
    host("proxy_add_header_map_value", |vm| {
        // SAFETY: the guest's own strings.
        let (key, value) = unsafe { (bytes(key, key_size)?, bytes(value, value_size)?) };
        change(vm, number, |headers| {
            headers.push((key.to_ascii_lowercase(), value.to_vec()));
        })
    })
}

/// # Safety
/// As for [`proxy_log`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn proxy_remove_header_map_value(
    number: u32,
    key: *const u8,
    key_size: usize,
) -> u32 {
    host("proxy_remove_header_map_value", |vm| {
        // SAFETY: the guest's own string.
        let key = unsafe { bytes(key, key_size) }?;
        change(vm, number, |headers| {
            headers.retain(|(name, _)| !name.eq_ignore_ascii_case(key));
        })
    })
}

/// A property of the effective context's stream. Path elements are separated by NUL.
///
/// # Safety
/// As for [`proxy_log`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn proxy_get_property(
    path: *const u8,
    path_size: usize,
    data: *mut *mut u8,
    size: *mut usize,
) -> u32 {
    host("proxy_get_property", |vm| {
        // SAFETY: the guest's own string.
        let path = unsafe { bytes(path, path_size) }?;
        let value = {
            let mut state = vm.state();
            let stream = state.effective_stream().ok_or(Status::NotFound)?;
            stream
                .properties
                .get(path)
                .cloned()
                .ok_or(Status::NotFound)?
        };
        // SAFETY: the guest's own variables.
        unsafe { give(vm, &value, data, size) }
    })
}

/// Sets the filter state `wasm.<name>` of the effective context's stream.
///
/// # Safety
/// As for [`proxy_log`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn proxy_set_property(
    path: *const u8,
    path_size: usize,
    value: *const u8,
    value_size: usize,
) -> u32 {
    host("proxy_set_property", |vm| {
        // SAFETY: the guest's own strings.
        let (path, value) = unsafe { (bytes(path, path_size)?, bytes(value, value_size)?) };
        let mut state = vm.state();
        let stream = state.effective_stream().ok_or(Status::NotFound)?;
        let name = format!("wasm.{}", String::from_utf8_lossy(path));
        stream.filter_state.insert(name, value.to_vec());
        Ok(())
    })
}

/// # Safety
/// As for [`proxy_log`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn proxy_get_shared_data(
    key: *const u8,
    key_size: usize,
    data: *mut *mut u8,
    size: *mut usize,
    cas: *mut u32,
) -> u32 {
    host("proxy_get_shared_data", |vm| {
        // SAFETY: the guest's own string.
        let key = unsafe { bytes(key, key_size) }?;
        let (value, current) = vm.process.shared_data.get(key).ok_or(Status::NotFound)?;
        // SAFETY: the guest's own variables.
        unsafe {
            give(vm, &value, data, size)?;
            write(cas, current)
        }
    })
}

/// # Safety
/// As for [`proxy_log`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn proxy_set_shared_data(
    key: *const u8,
    key_size: usize,
    value: *const u8,
    value_size: usize,
    cas: u32,
) -> u32 {
    host("proxy_set_shared_data", |vm| {
        // SAFETY: the guest's own strings.
        let (key, value) = unsafe { (bytes(key, key_size)?, bytes(value, value_size)?) };
        if cas != 0 && vm.process.faults.before_compare_and_set() {
            return Err(Status::CasMismatch);
        }
        match vm.process.shared_data.set(key, value, cas) {
            Status::Ok => Ok(()),
            status => Err(status),
        }
    })
}

/// # Safety
/// As for [`proxy_log`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn proxy_register_shared_queue(
    name: *const u8,
    name_size: usize,
    token: *mut u32,
) -> u32 {
    host("proxy_register_shared_queue", |vm| {
        // SAFETY: the guest's own string.
        let name = unsafe { bytes(name, name_size) }?;
        let root = vm.state().effective_root().ok_or(Status::InternalFailure)?;
        let registered = vm.process.queues.register(name, vm.worker, root);
        // SAFETY: the guest's own variable.
        unsafe { write(token, registered) }
    })
}

/// The token of a queue of this vm_id, which is empty here as the argument may be.
///
/// # Safety
/// As for [`proxy_log`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn proxy_resolve_shared_queue(
    vm_id: *const u8,
    vm_id_size: usize,
    name: *const u8,
    name_size: usize,
    token: *mut u32,
) -> u32 {
    host("proxy_resolve_shared_queue", |vm| {
        // SAFETY: the guest's own strings.
        let (vm_id, name) = unsafe { (bytes(vm_id, vm_id_size)?, bytes(name, name_size)?) };
        if !vm_id.is_empty() {
            return Err(Status::NotFound);
        }
        let resolved = vm.process.queues.resolve(name)?;
        // SAFETY: the guest's own variable.
        unsafe { write(token, resolved) }
    })
}

/// # Safety
/// As for [`proxy_log`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn proxy_enqueue_shared_queue(
    token: u32,
    value: *const u8,
    value_size: usize,
) -> u32 {
    host("proxy_enqueue_shared_queue", |vm| {
        // SAFETY: the guest's own string.
        let value = unsafe { bytes(value, value_size) }?;
        vm.process.queues.enqueue(token, value)
    })
}

/// # Safety
/// As for [`proxy_log`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn proxy_dequeue_shared_queue(
    token: u32,
    data: *mut *mut u8,
    size: *mut usize,
) -> u32 {
    host("proxy_dequeue_shared_queue", |vm| {
        let message = vm.process.queues.dequeue(token)?;
        // SAFETY: the guest's own variables.
        unsafe { give(vm, &message, data, size) }
    })
}

/// Sends a call from the effective context's root: that is whom the answer goes to, also
/// when a stream's callback made the call, so it arrives when the stream has ended.
///
/// # Safety
/// As for [`proxy_log`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn proxy_http_call(
    cluster: *const u8,
    cluster_size: usize,
    headers: *const u8,
    headers_size: usize,
    body: *const u8,
    body_size: usize,
    trailers: *const u8,
    trailers_size: usize,
    timeout_ms: u32,
    token: *mut u32,
) -> u32 {
    host("proxy_http_call", |vm| {
        // SAFETY: the guest's own strings.
        let (cluster, headers, body) = unsafe {
            bytes(trailers, trailers_size)?;
            let cluster = String::from_utf8_lossy(bytes(cluster, cluster_size)?);
            (
                cluster,
                bytes(headers, headers_size)?,
                bytes(body, body_size)?,
            )
        };
        // SAFETY: the guest's own variable. Envoy also writes it when it refuses the call.
        unsafe { write(token, 0) }?;
        let headers = readable(&wire::decode(headers));
        let needed = [":path", ":method", ":authority"];
        let complete = needed
            .iter()
            .all(|needed| headers.iter().any(|(name, _)| name == needed));
        let negative = i32::try_from(timeout_ms).is_err();
        if negative || !complete || !vm.process.has_cluster(&cluster) {
            return Err(Status::BadArgument);
        }
        if timeout_ms == 0 {
            let misuse = format!("a call to {cluster} without a timeout");
            vm.process.misuse(misuse);
        }
        let mut state = vm.state();
        let root = state.effective_root().ok_or(Status::InternalFailure)?;
        let new = state.add_call(Call {
            token: 0,
            root,
            cluster: cluster.into_owned(),
            headers,
            body: body.to_vec(),
            timeout_ms,
        });
        // SAFETY: the guest's own variable.
        unsafe { write(token, new) }
    })
}

/// Keeps an action on the effective context until the callback ends.
fn defer(vm: &Vm, action: Action) {
    let misuse = vm.state().defer(action);
    if let Some(misuse) = misuse {
        vm.process.misuse(misuse);
    }
}

/// Lets the request (0) or the response (1) of the effective context go on.
#[unsafe(no_mangle)]
pub extern "C" fn proxy_continue_stream(stream: u32) -> u32 {
    host("proxy_continue_stream", |vm| match stream {
        0 => {
            defer(vm, Action::Continue);
            Ok(())
        }
        1 => Ok(()),
        _ => Err(Status::BadArgument),
    })
}

/// Resets the effective context's stream.
#[unsafe(no_mangle)]
pub extern "C" fn proxy_close_stream(stream: u32) -> u32 {
    host("proxy_close_stream", |vm| match stream {
        0 | 1 => {
            defer(vm, Action::Reset);
            Ok(())
        }
        2 | 3 => Ok(()),
        _ => Err(Status::BadArgument),
    })
}

/// Answers the effective context's request.
///
/// # Safety
/// As for [`proxy_log`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn proxy_send_local_response(
    status: u32,
    details: *const u8,
    details_size: usize,
    body: *const u8,
    body_size: usize,
    headers: *const u8,
    headers_size: usize,
    grpc_status: i32,
) -> u32 {
    host("proxy_send_local_response", |vm| {
        // SAFETY: the guest's own strings.
        let (details, body, headers) = unsafe {
            let details = bytes(details, details_size)?;
            (
                details,
                bytes(body, body_size)?,
                bytes(headers, headers_size)?,
            )
        };
        let reply = Reply {
            status,
            headers: readable(&wire::decode(headers)),
            body: body.to_vec(),
            details: String::from_utf8_lossy(details).into_owned(),
            grpc_status: Some(grpc_status).filter(|status| *status >= 0),
        };
        defer(vm, Action::Reply(reply));
        Ok(())
    })
}

/// # Safety
/// As for [`proxy_log`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn proxy_define_metric(
    kind: u32,
    name: *const u8,
    name_size: usize,
    id: *mut u32,
) -> u32 {
    host("proxy_define_metric", |vm| {
        let kind = Kind::from_number(kind).ok_or(Status::BadArgument)?;
        // SAFETY: the guest's own string.
        let name = String::from_utf8_lossy(unsafe { bytes(name, name_size) }?);
        vm.process.stats.define(kind, &name);
        let new = vm.state().metrics.define(kind, &name);
        // SAFETY: the guest's own variable.
        unsafe { write(id, new) }
    })
}

#[allow(missing_docs)]
#[unsafe(no_mangle)]
pub extern "C" fn proxy_increment_metric(id: u32, step: i64) -> u32 {
    host("proxy_increment_metric", |vm| {
        let (kind, name) = vm.state().metrics.get(id)?;
        vm.process.stats.increment(kind, &name, step)
    })
}

#[allow(missing_docs)]
#[unsafe(no_mangle)]
pub extern "C" fn proxy_record_metric(id: u32, value: u64) -> u32 {
    host("proxy_record_metric", |vm| {
        let metric = vm.state().metrics.get(id);
        let (kind, name) = metric.map_err(|_| Status::NotFound)?;
        vm.process.stats.record(kind, &name, value);
        Ok(())
    })
}

/// # Safety
/// As for [`proxy_log`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn proxy_get_metric(id: u32, value: *mut u64) -> u32 {
    host("proxy_get_metric", |vm| {
        let (kind, name) = vm.state().metrics.get(id)?;
        let current = vm.process.stats.get(kind, &name)?;
        // SAFETY: the guest's own variable.
        unsafe { write(value, current) }
    })
}

/// Lets the host functions that follow in this callback act on another context.
#[unsafe(no_mangle)]
pub extern "C" fn proxy_set_effective_context(context: u32) -> u32 {
    host("proxy_set_effective_context", |vm| {
        vm.state().set_effective(context)
    })
}

/// Says that a context that was not done is done now. No guest here delays its end.
#[unsafe(no_mangle)]
pub extern "C" fn proxy_done() -> u32 {
    host("proxy_done", |_| Err(Status::NotFound))
}
