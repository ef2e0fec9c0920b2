//! The README says nothing that does not work.

use std::fs;
use std::process::Stdio;

use crate::support::shell;

fn project(path: &str) -> String {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../../");
    fs::read_to_string(format!("{root}{path}")).unwrap()
}

/// Returns the blocks of code in the README that are marked with `language`.
fn blocks(language: &str) -> Vec<String> {
    let readme = project("README.md");
    let start = format!("```{language}\n");
    readme
        .split(&start)
        .skip(1)
        .map(|rest| rest.split("```").next().unwrap().to_owned())
        .collect()
}

#[test]
fn every_shell_command_in_the_readme_works() {
    let scripts = [blocks("sh"), blocks("bash")].concat();
    assert!(scripts.len() >= 3, "the blocks are found");
    for script in scripts {
        let mut command = shell("exec bash -eu");
        let mut child = command
            .env("BASH_ENV", "")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), script.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let complaints = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success() && complaints.is_empty(),
            "{script}\n{complaints}"
        );
    }
}

/// The tests cannot run these two, since they are part of the second; the Makefile runs the first.
#[test]
fn the_first_two_commands_are_those_that_make_test_runs() {
    assert_eq!(
        blocks("console"),
        ["$ cargo run --release -- $$\n$ make test\n"]
    );
    let makefile = project("Makefile");
    assert!(makefile.contains("\n\tcargo run --release -- $$$$\n"));
    assert!(project(".ci/run").ends_with("\nmake test\n"));
}
