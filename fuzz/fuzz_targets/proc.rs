//! Files of `/proc`, and `/etc/services`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    portserver::fuzzing::proc(bytes);
    portpicker::fuzzing::proc(bytes);
});
