#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| beanpole_bundle::fuzz::deltas(bytes));
