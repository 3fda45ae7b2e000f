//! See `tollgate_fuzz::replies`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tollgate_fuzz::replies(data));
