//! The one entry point for every command of this repository.
fn main() {}
