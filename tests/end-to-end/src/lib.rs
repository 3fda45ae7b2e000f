//! Nothing: the tests are in `tests/`. They stand in a crate of their own because they need
//! servers that the filter's crate must not depend on.
