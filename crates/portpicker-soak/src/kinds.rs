//! The kinds of actors, and how one of each is started.

use std::path::Path;
use std::process::Command;

use crate::crew::Crew;
use crate::place::Server;
use crate::random::Random;

/// The kinds, and how often each is started beside the others.
pub(crate) const KINDS: [(&str, usize); 15] = [
    ("library", 20),
    ("server", 14),
    ("environment", 9),
    ("original", 7),
    ("connection", 5),
    ("timed", 4),
    ("few-descriptors", 3),
    ("shell", 9),
    ("shell-json", 5),
    ("shell-server", 7),
    ("run", 8),
    ("python", 5),
    ("squatter", 1),
    ("stranger", 1),
    ("churn", 2),
];

/// Tells whether such actors pick no ports, but are in the way of those who do. One of each is enough.
pub(crate) fn is_bystander(kind: &str) -> bool {
    matches!(kind, "squatter" | "stranger" | "churn")
}

/// What the shell's scripts begin with. `fail STATUS ALLOWED…` says that there is no port, and why.
const PRELUDE: &str = r#"
say() { echo "$SOAK $*"; }
now() { read -r up rest </proc/uptime; echo "${up%.*}${up#*.}$1"; }
fail() {
    status=$1; shift
    for allowed; do [ "$status" = "$allowed" ] && say none exit status "$status" && exit; done
    say trouble portpicker: exit status "$status"
    exit
}
say picking "$(now 0000)"
"#;

/// Returns the command of an actor. `python` has the package, if there are such actors.
pub(crate) fn command(
    kind: &str,
    crew: &Crew,
    random: &mut Random,
    python: Option<&Path>,
) -> Command {
    let server = random.one_of(&Server::ALL);
    let seed = random.below(1 << 30).to_string();
    let millis = random.below(1500);
    let shell = |script: &str| {
        let mut command = Command::new("sh");
        crew.prepare(&mut command);
        let script = format!("{PRELUDE}{script}");
        command.args(["-c", &script, "sh", &millis.to_string()]);
        command
    };
    match kind {
        "shell" => shell(
            r#"ports=$(portpicker $$) || fail $? 1
            say leased lock "$(now 9999)" $ports
            [ $(($1 % 2)) = 0 ] && exec soak bind "$1" $ports
            soak bind "$1" $ports"#,
        ),
        "shell-json" => shell(
            r#"json=$(portpicker pick -n 3 --json --owner $$) || fail $? 1
            ports=${json#*[}; ports=$(echo "${ports%%]*}" | tr , ' ')
            keeper=${json##*:}; keeper=${keeper%\}}
            say leased lock "$(now 9999)" $ports
            soak bind "$1" $ports
            say keeper "$keeper" $ports
            exec soak bind 1000"#,
        ),
        "shell-server" => {
            // 3 and 4: the server was killed, or stopped, while it was asked.
            let mut command = shell(
                r#"ports=$(portpicker $$) || fail $? 1 3 4
                say leased either:$SERVER "$(now 9999)" $ports
                soak bind "$1" $ports"#,
            );
            command
                .env("PORTSERVER_ADDRESS", server.address().to_string())
                .env("SERVER", server.name());
            command
        }
        "run" => {
            let mut command =
                shell(r#"exec portpicker run -n 2 -- soak actor served "$SEED" shaken"#);
            command.env("SEED", seed);
            command
        }
        "python" => {
            let mut command = Command::new(python.expect("there is Python"));
            crew.prepare(&mut command);
            command.arg(crew.folder.join("bin/actor.py")).arg(seed);
            if millis.is_multiple_of(2) {
                command
                    .env("PORTSERVER_ADDRESS", server.address().to_string())
                    .env("SOAK_EITHER", server.name());
            }
            command
        }
        kind => {
            let mut command = crew.command("soak");
            command.args(["actor", kind, &seed, server.name()]);
            if kind == "environment" {
                command.env("PORTSERVER_ADDRESS", server.address().to_string());
            }
            command
        }
    }
}
