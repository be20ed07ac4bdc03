#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| beanpole_proxy::fuzz::chunked(bytes));
