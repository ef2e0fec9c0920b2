//! What a process is told of the descriptors that it inherits.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    portpicker_cli::fuzzing::inherited(bytes);
});
