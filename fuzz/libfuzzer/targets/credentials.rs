//! See `tollgate_fuzz::credentials`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tollgate_fuzz::credentials(data));
