//! Manual pages and completions: generated, and understood by the programs they are for.

use std::io::Write;
use std::process::{Command, Stdio};

use crate::support::{portpicker, run};

fn generated(arguments: &[&str]) -> String {
    let ended = run(&mut portpicker(arguments));
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
    ended.stdout
}

/// Feeds `text` to `program`, which must be content with it; `None` if there is no such program.
fn feed(program: &str, arguments: &[&str], text: &str) -> Option<String> {
    let child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match child {
        Err(err) if err.kind() == std::io::ErrorKind::NotFound => return None,
        child => child.unwrap(),
    };
    child
        .stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    let complaints = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.success() && complaints.is_empty(),
        "{program}: {complaints}"
    );
    Some(String::from_utf8(output.stdout).unwrap())
}

#[test]
fn bash_completes_an_option() {
    let script = generated(&["completions", "bash"])
        + "\nCOMP_WORDS=(portpicker pick --cont) COMP_CWORD=2\n\
           _portpicker portpicker --cont pick\necho \"${COMPREPLY[@]}\"\n";
    match feed("bash", &[], &script) {
        Some(reply) => assert_eq!(reply.trim(), "--contiguous"),
        None => portpicker_testing::skip("bash_completes_an_option", "there is no bash"),
    }
}

#[test]
fn zsh_reads_its_completions() {
    if feed("zsh", &["-n"], &generated(&["completions", "zsh"])).is_none() {
        portpicker_testing::skip("zsh_reads_its_completions", "there is no zsh");
    }
}

#[test]
fn fish_completes_an_option() {
    let script = generated(&["completions", "fish"]) + "\ncomplete -C 'portpicker pick --cont'\n";
    match feed("fish", &["--no-config"], &script) {
        Some(reply) => assert!(reply.starts_with("--contiguous"), "{reply}"),
        None => portpicker_testing::skip("fish_completes_an_option", "there is no fish"),
    }
}

#[test]
fn man_shows_the_pages() {
    for (arguments, heading) in [
        (&["manual"][..], "portpicker(1)"),
        (&["manual", "pick"], "portpicker-pick(1)"),
        (&["manual", "manual"], "portpicker-manual(1)"),
    ] {
        match feed("man", &["-l", "-"], &generated(arguments)) {
            Some(page) => assert!(page.contains(heading), "{page}"),
            None => return portpicker_testing::skip("man_shows_the_pages", "there is no man"),
        }
    }
}
