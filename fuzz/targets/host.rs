//! libFuzzer's way to the target `host`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| serin::proxy::fuzz::host(input));
