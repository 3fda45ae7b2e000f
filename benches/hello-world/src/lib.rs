//! hello-world: to be filled in.
