//! A short soak, as a test that it works and finds nothing.

use std::fs;
use std::process::Command;

use portpicker_soak::soak::wrapper;
use portpicker_testing::skip;

#[test]
fn twenty_seconds_of_everything_at_once_violate_nothing() {
    let name = "twenty_seconds_of_everything_at_once_violate_nothing";
    if let Err(reason) = wrapper() {
        return skip(name, &reason);
    }
    let folder = tempfile::tempdir().unwrap();
    let report = folder.path().join("report");
    let output = Command::new(env!("CARGO_BIN_EXE_soak"))
        .args(["--minutes", "0.33", "--actors", "16", "--report"])
        .arg(&report)
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    let report = fs::read_to_string(report).unwrap_or_default();
    assert!(
        output.status.success(),
        "{}: {stderr}\n{report}",
        output.status
    );
    for part in [
        "**0 violations**",
        "| server killed |",
        "no process is left",
    ] {
        assert!(report.contains(part), "{report}");
    }
}
