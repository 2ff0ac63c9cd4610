//! libFuzzer's way to the target `proxy_protocol`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| serin::proxy::fuzz::proxy_protocol(input));
