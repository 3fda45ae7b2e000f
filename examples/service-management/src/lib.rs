//! service-management: to be filled in.
