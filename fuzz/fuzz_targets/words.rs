//! What people type and set variables to: addresses, hosts, pids, names, seconds.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    portpicker::fuzzing::words(bytes);
    portpicker_cli::fuzzing::words(bytes);
    portserver::fuzzing::words(bytes);
});
