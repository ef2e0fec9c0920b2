//! A server's state file.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    portserver::fuzzing::state(bytes);
});
