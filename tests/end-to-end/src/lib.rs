//! tollgate-end-to-end: to be filled in.
