//! tollgate-fake-host: to be filled in.
