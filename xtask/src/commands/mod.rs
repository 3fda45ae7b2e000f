//! One module per command, each with a `run`.

pub mod bench;
pub mod build;
pub mod demo;
pub mod lint;
pub mod setup;
pub mod test;
