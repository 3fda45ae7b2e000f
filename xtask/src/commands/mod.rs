//! One module per command, each with a `run`.

pub mod build;
pub mod lint;
pub mod setup;
pub mod test;
