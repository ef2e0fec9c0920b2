//! A request of the extended protocol and, on the next line, an answer.
//!
//! Each side reads what it is sent here, and what the other one makes of it.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let request = portpicker::fuzzing::extended(bytes);
    let answer = portserver::fuzzing::extended(bytes);
    assert!(portserver::fuzzing::understands(&request));
    assert!(portpicker::fuzzing::understands(&answer));
});
