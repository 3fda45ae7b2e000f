//! One module per command, each with a `run`.

pub mod bench;
pub mod build;
pub mod conformance;
pub mod curves;
pub mod decisions;
pub mod demo;
pub mod fuzz;
pub mod gateways;
pub mod lint;
pub mod mapping_cases;
pub mod setup;
pub mod soak;
pub mod test;
