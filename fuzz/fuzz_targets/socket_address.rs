//! A socket address in the memory of a program that is handed a port.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    portpicker::fuzzing::socket_address(bytes);
});
