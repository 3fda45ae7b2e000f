//! Whether Tollgate decides as 3scale does: captures, recordings and tables of the real
//! thing, held against the code that is built here.
//!
//! Apart from the tests of each room because two things go through these checks, the
//! filter and the stand-in that most other tests rely on, and because what is checked
//! may be from elsewhere: `cargo xtask conformance`, `cargo xtask decisions` and
//! `cargo xtask mapping-cases` run the same code on any backend, recording or table.
//!
//! - [`replay`]: [`captures`] of the real backend, sent again to the stand-in or to any other
//!   backend ([`server`], [`load`]).
//! - [`comparison`]: the filter in a real Envoy, and the backend that it asks: both decide
//!   about the same requests ([`cases`], of the captures' [`data`]).
//! - [`decisions`]: calls recorded from the real backend, replayed in virtual time
//!   against the stand-in ([`stand_in`]) and against the filter's rooms put together as a
//!   gateway without Envoy ([`gateway`]).
//! - [`mapping_cases`]: mapping rules, requests, and whether they match.

pub mod captures;
pub mod cases;
pub mod comparison;
pub mod data;
pub mod decisions;
pub mod document;
pub mod gateway;
pub mod load;
pub mod mapping_cases;
pub mod recording;
pub mod replay;
pub mod server;
pub mod stand_in;
