//! A request of the original protocol, or an answer.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    portserver::fuzzing::original(bytes);
    portpicker::fuzzing::original(bytes);
});
