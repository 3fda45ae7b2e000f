//! tollgate-harness: to be filled in.
