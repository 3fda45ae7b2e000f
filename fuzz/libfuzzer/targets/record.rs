//! See `tollgate_fuzz::record`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tollgate_fuzz::record(data));
