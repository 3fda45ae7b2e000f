//! A native stand-in for Envoy's side of the proxy-wasm ABI.
//!
//! The library defines the host functions that a proxy-wasm module imports
//! (`proxy_log`, `proxy_get_shared_data` and so on) as ordinary symbols, so that the
//! filter, linked natively, calls them as it calls Envoy's; and it calls the filter's
//! exports as Envoy does. Time, random numbers, answers and faults are the test's.
//!
//! [`FakeEnvoy`] is a process, [`Worker`] one of its threads with a VM of its own. The
//! filter's state belongs to a thread, so each VM has one, and a VM that trapped is
//! replaced by a new thread.
//!
//! The rules are those of proxy-wasm-cpp-host and Envoy, read in their sources; what is
//! left to a real Envoy is memory limits, traps, bodies, responses and the network.

mod answers;
mod filter;
mod guest;
#[allow(clippy::too_many_arguments, reason = "the ABI's signatures")]
mod hostcalls;
mod process;
mod queues;
mod shared_data;
mod stats;
mod status;
mod vm;
mod wire;
mod worker;

pub use answers::{
    Answer, Authorization, Failure, Report, Transaction, accepted, authorized, denied, error,
    metrics_of, with_usage,
};
pub use guest::Guest;
pub use process::{FakeEnvoy, LogLevel, LogLine, run_at_once};
pub use shared_data::{Claim, CompareAndSets, SharedDataAccess, shared_data_contract};
pub use status::Status;
pub use vm::{Call, Reply};
pub use worker::{Forwarded, Outcome, Request, StreamId, Worker};
