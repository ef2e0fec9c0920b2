//! Sets of ports.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    portpicker::fuzzing::port_set(bytes);
});
