//! libFuzzer's way to the target `forwarded`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| serin::proxy::fuzz::forwarded(input));
