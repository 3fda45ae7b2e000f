//! The only room that touches Envoy: callbacks in, host calls out, over the
//! proxy-wasm ABI. It moves bytes, clocks and answers between Envoy and the rooms that
//! decide, and decides nothing that they could.
//!
//! The way of a callback: `exports` receives it, `vm` finds the root context that it
//! belongs to, `root` does the work of one configuration. `abi` is the layer of host
//! functions below.

#![cfg_attr(test, allow(dead_code))]

pub mod abi;
mod calls;
mod clock;
// The unit tests link the SDK beside this, to compare numbers, and it exports the same names.
#[cfg(not(test))]
mod exports;
mod local_reply;
mod logger;
mod root;
mod seed;
mod shared_data;
mod stats;
#[cfg(feature = "trap-for-tests")]
mod trap;
mod vm;

#[cfg(not(test))]
pub use exports::initialize;
