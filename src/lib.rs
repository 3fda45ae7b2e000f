//! Tollgate: an Envoy filter for API management, compiled to WebAssembly.
//!
//! A request comes in through [`host`], the only room that talks to Envoy. It is
//! matched to a service ([`config`]), its caller is found ([`credentials`]), its
//! price is looked up ([`mapping`]), and the application's record in shared data
//! decides ([`authorization`]). What was admitted leaves later, in batches
//! ([`usage`]), over the wire format of [`service_management`].
//!
//! Everything outside `host` takes time, bytes and answers and returns decisions
//! and calls to make, so it runs natively, on wasm32 and in simulations alike.
//!
//! Nothing here may panic: a trap in the filter is an outage of the gateway.

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::unreachable,
    clippy::todo,
    clippy::unimplemented,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_possible_wrap
)]
#![cfg_attr(
    test,
    allow(
        clippy::arithmetic_side_effects,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_possible_wrap,
        clippy::string_slice
    )
)]

pub mod authorization;
pub mod config;
pub mod credentials;
#[cfg(not(all(target_family = "wasm", target_os = "unknown")))]
pub mod host;
pub mod mapping;
pub mod moment;
pub mod request;
pub mod service_management;
pub mod shared_data;
pub mod tokens;
pub mod usage;
