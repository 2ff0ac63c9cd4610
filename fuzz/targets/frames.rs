//! libFuzzer's way to the target `frames`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| serin::proxy::fuzz::frames(input));
