//! What a run was made on, and of.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde::{Deserialize, Serialize};

use crate::tools::{Package, Places};

/// The machine that a run was made on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// As the processor calls itself.
    pub processor: String,
    /// How many of them this process may use.
    pub processors: usize,
    /// Whether they are a hypervisor's.
    pub is_virtual: bool,
    /// In GiB.
    pub memory: u64,
    /// The system and its version, without what a distribution adds to it.
    pub kernel: String,
}

impl Machine {
    /// Returns the machine that this process runs on.
    pub fn this() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let (cpus, memory) = (read("/proc/cpuinfo"), read("/proc/meminfo"));
        let kibibytes = field(&memory, "MemTotal").and_then(|text| {
            let number = text.split(' ').next()?;
            number.parse::<u64>().ok()
        });
        let release = read("/proc/sys/kernel/osrelease");
        let version = release.split(['-', '+']).next().unwrap_or_default();
        Self {
            processor: field(&cpus, "model name").unwrap_or("unknown").to_owned(),
            processors: std::thread::available_parallelism().map_or(1, usize::from),
            is_virtual: field(&cpus, "flags")
                .is_some_and(|flags| flags.split(' ').any(|flag| flag == "hypervisor")),
            memory: (kibibytes.unwrap_or(0) + (1 << 19)) >> 20,
            kernel: format!("Linux {}", version.trim()),
        }
    }

    /// Returns a line for people.
    pub fn summary(&self) -> String {
        let kind = if self.is_virtual { "virtual " } else { "" };
        let plural = if self.processors == 1 { "" } else { "s" };
        let name = self.processor.replace("(R)", "").replace("(TM)", "");
        let name = name.split_whitespace().collect::<Vec<_>>().join(" ");
        format!(
            "{} {kind}processor{plural} ({name}), {} GiB, {}",
            self.processors, self.memory, self.kernel
        )
    }
}

/// Returns the value of the first line `name: value`.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then_some(value.trim())
    })
}

/// Returns the commit of this project, with `+` behind it if files differ from it.
pub fn commit() -> String {
    let git = |arguments: &[&str]| -> Option<String> {
        let output = Command::new("git")
            .arg("-C")
            .arg(env!("CARGO_MANIFEST_DIR"))
            .args(arguments)
            .output()
            .ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| text.trim().to_owned())
    };
    let Some(commit) = git(&["rev-parse", "--short=10", "HEAD"]) else {
        return "unknown".to_owned();
    };
    // Results of an earlier run are no difference.
    let changes = git(&[
        "status",
        "--porcelain",
        "--",
        ":/",
        ":(exclude,top)bench/results",
    ]);
    match changes.as_deref() {
        Some("") => commit,
        _ => commit + "+",
    }
}

/// Returns the versions of the languages, as their programs say them.
pub fn languages(places: &Places) -> BTreeMap<String, String> {
    let python = places.folder.join("peers/bin/python");
    let programs = [
        ("Node", Path::new("node")),
        ("Python", &python),
        ("Rust", Path::new("rustc")),
    ];
    let version = |program: &Path| {
        let output = Command::new(program).arg("--version").output().ok()?;
        version_in(&String::from_utf8(output.stdout).ok()?)
    };
    programs
        .into_iter()
        .filter_map(|(name, program)| Some((name.to_owned(), version(program)?)))
        .collect()
}

/// Returns the first word that has a number and a dot.
fn version_in(text: &str) -> Option<String> {
    let number = |word: &&str| word.starts_with(|c: char| c.is_ascii_digit()) && word.contains('.');
    text.split_whitespace()
        .map(|word| word.trim_start_matches('v'))
        .find(number)
        .map(str::to_owned)
}

/// Returns the version of a tool, as the files say that decide which one is fetched.
pub fn version(package: Package) -> Option<String> {
    match package {
        Package::Ours => in_cargo_lock("portpicker", false),
        Package::Crate(name) => in_cargo_lock(name, true),
        Package::Python(name) => include_str!("../drivers/python/requirements.txt")
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix("=="))
            .and_then(|rest| rest.split_whitespace().next())
            .map(str::to_owned),
        Package::Node(name) => {
            let lock: serde_json::Value =
                serde_json::from_str(include_str!("../drivers/node/package-lock.json")).ok()?;
            let version = &lock["packages"][format!("node_modules/{name}")]["version"];
            version.as_str().map(str::to_owned)
        }
        Package::None => None,
    }
}

/// Returns the version of a package, which is fetched or from this project's folder.
fn in_cargo_lock(name: &str, is_fetched: bool) -> Option<String> {
    include_str!("../Cargo.lock")
        .split("[[package]]")
        .find_map(|package| {
            let value = |key: &str| {
                package.lines().find_map(|line| {
                    let value = line.strip_prefix(key)?.strip_prefix(" = \"")?;
                    value.strip_suffix('"')
                })
            };
            let is_it = value("name") == Some(name) && value("source").is_some() == is_fetched;
            is_it.then(|| value("version").map(str::to_owned)).flatten()
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tools::TOOLS;

    #[test]
    fn each_package_has_a_version() {
        for tool in TOOLS {
            let version = version(tool.package);
            assert_eq!(
                version.is_none(),
                tool.package == Package::None,
                "{}",
                tool.id
            );
        }
        assert_eq!(version(Package::Crate("portpicker")).unwrap(), "0.1.1");
        assert_ne!(version(Package::Ours).unwrap(), "0.1.1");
    }

    #[test]
    fn a_version_is_found_in_what_programs_say_of_themselves() {
        assert_eq!(version_in("v20.1.2\n").unwrap(), "20.1.2");
        assert_eq!(
            version_in("rustc 1.95.0 (f2d3ce0bd 2026-03-21)").unwrap(),
            "1.95.0"
        );
        assert_eq!(version_in("usage: python"), None);
    }

    #[test]
    fn the_lock_file_does_not_say_where_packages_came_from() {
        assert!(!include_str!("../drivers/node/package-lock.json").contains("resolved"));
    }
}
