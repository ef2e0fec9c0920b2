//! A port server for tests: no flags to speak of, no files but the state, a plain log.
//!
//! `serve ADDRESS PORTS [state=FILE] [limit=N] [tcp=PORT] [http=ADDRESS]` prints `ready` when it listens, and writes
//! its log to stderr, a line for each event. It ends when its input does.

#![expect(clippy::print_stdout, reason = "the test waits for a line")]

use std::fmt::{Debug, Write as _};
use std::io::Write as _;
use std::process::ExitCode;

use portserver::{Address, Options, serve};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

fn main() -> ExitCode {
    // The test that has started it may be killed.
    std::thread::spawn(|| {
        _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        std::process::abort();
    });
    _ = tracing::subscriber::set_global_default(Log);
    match options(std::env::args().skip(1)) {
        Ok(options) => match serve(options, || println!("ready")) {
            Ok(_legacy) => ExitCode::SUCCESS,
            Err(err) => {
                log(&format!(
                    "error: {err}: {:?}",
                    std::error::Error::source(&err)
                ));
                ExitCode::FAILURE
            }
        },
        Err(err) => {
            log(&err);
            ExitCode::from(2)
        }
    }
}

fn options(mut arguments: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut next = || arguments.next().ok_or("an argument is missing");
    let address: Address = next()?.parse().map_err(|err| format!("{err}"))?;
    let ports = next()?.parse().map_err(|err| format!("{err}"))?;
    let mut options = Options::new(ports);
    options.addresses.push(address);
    for argument in arguments {
        let number = |value: &str| value.parse().map_err(|err| format!("{value}: {err}"));
        match argument.split_once('=') {
            Some(("state", file)) => options.state = Some(file.into()),
            Some(("limit", limit)) => options.user_limit = Some(number(limit)?),
            Some(("tcp", port)) => options
                .addresses
                .push(Address::Loopback(number(port)? as u16)),
            Some(("http", address)) => {
                let address = address.parse();
                options.http = Some(address.map_err(|err| format!("{argument}: {err}"))?);
            }
            _ => return Err(format!("`{argument}` is not an option")),
        }
    }
    Ok(options)
}

/// Writes each event of the server as a line.
struct Log;

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::INFO && metadata.target().starts_with("portserver")
    }

    fn event(&self, event: &Event<'_>) {
        let mut message = Message(String::new());
        event.record(&mut message);
        let level = event.metadata().level().as_str().to_lowercase();
        log(&format!("{level}: {}", message.0));
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            _ = write!(self.0, "{value:?}");
        }
    }
}

fn log(line: &str) {
    // A test that has ended already does not want to know.
    _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}
