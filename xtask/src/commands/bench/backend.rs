//! The side of service management in the bench: the applications, and what Tollgate counts.

/// The key of the application without limits.
pub const UNLIMITED: &str = "bench-unlimited";
/// The key of the application with a limit that no bench reaches.
pub const LIMITED: &str = "bench-limited";
/// The filter's counter of requests that it has let through.
pub const ADMITTED: &str = "wasmcustom.tollgate.1001.requests_admitted";
