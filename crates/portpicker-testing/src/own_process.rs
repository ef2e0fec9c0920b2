//! A test in a process of its own, and in a network of its own.

use std::any::type_name;
use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;

use crate::exit::{DEADLINE, Exit};
use crate::{network, skip};

/// The environment variable by which the child knows which test's body it is to run.
const INSIDE: &str = "PORTPICKER_TESTING_INSIDE";

/// What the library reads from the environment. Tests begin without it.
const PUBLIC_VARIABLES: [&str; 2] = ["PORTPICKER_PORTS", "PORTSERVER_ADDRESS"];

/// What unshare(1) needs for a pid namespace that ends with its caller.
pub const PID_NAMESPACE: &[&str] = &["--pid", "--fork", "--mount-proc", "--kill-child"];

/// Runs the body of a test in a private network namespace: see [`OwnProcess::network_namespace`].
pub fn in_network_namespace<F: FnOnce()>(test: F) {
    OwnProcess::new().network_namespace().run(test);
}

/// A process in which the body of a test runs, with nothing of the library's environment but
/// what is said here.
///
/// # Example
///
/// ```no_run
/// # use portpicker_testing::OwnProcess;
/// #[test]
/// fn ports_come_from_the_environment() {
///     OwnProcess::new().env("PORTPICKER_PORTS", "20000").network_namespace().run(|| {
///         assert_eq!(portpicker::pick_unused_port().unwrap(), 20_000);
///     });
/// }
/// ```
#[derive(Debug, Default)]
#[must_use = "nothing happens until `run`"]
pub struct OwnProcess {
    environment: Vec<(OsString, OsString)>,
    network_namespace: bool,
    pid_namespace: bool,
}

impl OwnProcess {
    /// Returns a process like this one, without the library's variables.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.environment
            .push((name.as_ref().into(), value.as_ref().into()));
        self
    }

    /// Gives the process a network namespace of its own, with [`network::OTHER_V4`] and
    /// [`network::OTHER_V6`] beside the loopback addresses: all ports are unused, and sysctls can
    /// be set.
    ///
    /// Below unshare(1), in a user namespace unless root runs the test. Where that is not
    /// permitted, the test is skipped.
    pub fn network_namespace(mut self) -> Self {
        self.network_namespace = true;
        self
    }

    /// Gives the process a pid namespace of its own as well, in which it is process 1.
    pub fn pid_namespace(mut self) -> Self {
        self.network_namespace = true;
        self.pid_namespace = true;
        self
    }

    /// Runs `test`, which must be a closure written in the test function itself: its type tells
    /// the function's name.
    ///
    /// The test binary is started again for this test alone, and `test` runs only there.
    ///
    /// # Panics
    ///
    /// If `test` panics, with the output of the process, or if it does not end in time.
    pub fn run<F: FnOnce()>(self, test: F) {
        let name = test_name::<F>();
        if env::var_os(INSIDE).is_some_and(|inside| inside == name) {
            if self.network_namespace {
                network::set_up();
            }
            test();
            return;
        }
        let wrapper = if self.network_namespace {
            match namespace_wrapper() {
                Ok(wrapper) if self.pid_namespace => [wrapper, PID_NAMESPACE].concat(),
                Ok(wrapper) => wrapper.to_vec(),
                Err(reason) => return skip(name, reason),
            }
        } else {
            Vec::new()
        };
        let Ended {
            status,
            stdout,
            stderr,
        } = self.start_again(name, &wrapper);
        for (_, line) in stderr
            .lines()
            .filter_map(|line| line.split_once("skipped: "))
        {
            // Said already, to an output that nobody has seen.
            let line = format!("skipped: {line}\n");
            let _ = io::stderr().write_all(line.as_bytes());
        }
        // A name that is not a test's would run nothing, successfully.
        let has_passed = status.is_some_and(|status| status.success())
            && stdout.contains("test result: ok. 1 passed");
        assert!(
            has_passed,
            "`{name}` failed in its own process ({}):\n{stdout}{stderr}",
            status.map_or("it did not end in time".into(), |status| status.to_string())
        );
    }

    fn start_again(&self, name: &str, wrapper: &[&str]) -> Ended {
        // Apart, so that what a child complains of does not stand in the middle of a result.
        let [mut stdout, mut stderr] =
            [(); 2].map(|()| tempfile::tempfile().expect("a temporary file can be made"));
        let copy = |file: &File| Stdio::from(file.try_clone().expect("a descriptor can be copied"));
        let mut child = command(wrapper)
            .args(["--exact", name])
            .args(["--nocapture", "--test-threads=1"])
            .env(INSIDE, name)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(copy(&stdout))
            .stderr(copy(&stderr))
            .spawn()
            .expect("the test binary can be started again");
        let status = wait(&mut child);
        Ended {
            status,
            stdout: read_from_start(&mut stdout),
            stderr: read_from_start(&mut stderr),
        }
    }
}

/// How a test ended in its own process.
struct Ended {
    /// `None` if it did not in time.
    status: Option<ExitStatus>,
    stdout: String,
    stderr: String,
}

/// Returns the command that starts this test binary again, with a plain environment.
pub(crate) fn command(wrapper: &[&str]) -> Command {
    let binary = env::current_exe().expect("a process knows its own binary");
    with_plain_environment(match wrapper {
        [] => Command::new(binary),
        [program, arguments @ ..] => {
            let mut command = Command::new(program);
            command.args(arguments).arg("--").arg(binary);
            command
        }
    })
}

/// Takes from `command` what the library reads in the environment, and what this harness does.
pub(crate) fn with_plain_environment(mut command: Command) -> Command {
    for variable in PUBLIC_VARIABLES.into_iter().chain([INSIDE]) {
        command.env_remove(variable);
    }
    command
}

/// Waits until `child` exits. Kills it and returns `None` if it does not in time.
fn wait(child: &mut Child) -> Option<ExitStatus> {
    let in_time = Exit::of(child.id()).happens_within(DEADLINE);
    if !in_time {
        let _ = child.kill();
    }
    let status = child.wait().expect("a child can be waited for");
    in_time.then_some(status)
}

fn read_from_start(file: &mut File) -> String {
    let mut bytes = Vec::new();
    file.rewind().expect("a file can be rewound");
    file.read_to_end(&mut bytes).expect("a file can be read");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Returns the name of the test function in which the closure `F` is written, as libtest has it:
/// `module::function` of `crate::module::function::{{closure}}`.
fn test_name<F>() -> &'static str {
    let name = type_name::<F>();
    let name = name.split_once("::").map_or(name, |(_crate, name)| name);
    name.split_once("::{{closure}}")
        .map_or(name, |(name, _closure)| name)
}

/// Returns the command line below which a program has a network namespace of its own, or why
/// there is none.
pub fn namespace_wrapper() -> Result<&'static [&'static str], &'static str> {
    static FOUND: OnceLock<Result<&[&str], String>> = OnceLock::new();
    // Root without the capability, as in a container, may still be given a user namespace.
    const WRAPPERS: [&[&str]; 2] = [
        &["unshare", "--net"],
        &["unshare", "--user", "--map-root-user", "--net"],
    ];
    let found = FOUND.get_or_init(|| {
        let mut reason = String::new();
        for wrapper in WRAPPERS {
            match try_wrapper(wrapper) {
                Ok(()) => return Ok(wrapper),
                Err(err) => reason = err,
            }
        }
        Err(reason)
    });
    match found {
        Ok(wrapper) => Ok(wrapper),
        Err(reason) => Err(reason),
    }
}

/// Tries whether a program below `wrapper` may set the sysctls of its network.
fn try_wrapper(wrapper: &[&str]) -> Result<(), String> {
    const SYSCTL: &str = "/proc/sys/net/ipv4/ip_local_port_range";
    let output = Command::new(wrapper[0])
        .args(&wrapper[1..])
        .args(["--", "sh", "-c"])
        .arg(format!(
            "range=$(cat {SYSCTL}) && echo \"$range\" > {SYSCTL}"
        ))
        .stdin(Stdio::null())
        .output();
    match output {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(err) => Err(format!("unshare: {err}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::panic::catch_unwind;
    use std::process;

    #[test]
    fn the_body_runs_in_another_process_with_its_own_environment() {
        let outside = process::id().to_string();
        OwnProcess::new().env("OUTSIDE", &outside).run(|| {
            let parent = env::var("OUTSIDE").unwrap();
            assert_ne!(parent, process::id().to_string());
            for variable in PUBLIC_VARIABLES {
                assert_eq!(env::var_os(variable), None);
            }
        });
    }

    #[test]
    fn a_failure_inside_is_a_failure_outside() {
        let failed = catch_unwind(|| OwnProcess::new().run(|| panic!("on purpose")));
        if env::var_os(INSIDE).is_some() {
            // Not to be counted as passed.
            panic!("on purpose, once more");
        }
        let message = *failed.unwrap_err().downcast::<String>().unwrap();
        assert!(message.contains("on purpose"), "{message}");
    }

    #[test]
    fn a_body_that_does_not_run_is_a_failure() {
        fn elsewhere() -> impl FnOnce() {
            || ()
        }
        // Its type does not name this test.
        assert!(catch_unwind(|| OwnProcess::new().run(elsewhere())).is_err());
    }

    #[test]
    fn a_namespace_has_loopback_other_addresses_and_sysctls_of_its_own() {
        in_network_namespace(|| {
            for address in ["127.0.0.1".parse().unwrap(), network::OTHER_V4] {
                TcpListener::bind((address, 1)).unwrap();
            }
            if network::has_ipv6() {
                TcpListener::bind((network::OTHER_V6, 1)).unwrap();
            }
            network::set_ephemeral_range(20_000..=20_000);
            let socket = TcpListener::bind(("127.0.0.1", 0)).unwrap();
            assert_eq!(socket.local_addr().unwrap().port(), 20_000);
        });
    }
}
