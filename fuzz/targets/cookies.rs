//! libFuzzer's way to the target `cookies`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| serin::proxy::fuzz::cookies(input));
