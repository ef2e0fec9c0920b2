//! Why a request is refused, in words.

use std::io;

use portpicker::Lease as Lock;

use crate::peer::Denied;
use crate::pool::Pool;
use crate::wire::{Code, Failure, Owner};

pub(super) fn exhausted(pool: &Pool<Lock>) -> Failure {
    Failure::new(
        Code::Exhausted,
        format!(
            "not enough unused ports: of {} in the pool, {} are leased and {} in use",
            pool.ports().len(),
            pool.leases().len(),
            pool.resting()
        ),
    )
}

pub(super) fn stopping() -> Failure {
    Failure::new(Code::Stopping, "the server is about to end")
}

pub(super) fn failed(err: io::Error) -> Failure {
    Failure::new(Code::Failed, err)
}

pub(super) fn denied(denied: Denied, owner: Owner) -> Failure {
    let who = match owner {
        Owner::Process(pid) => format!("process {pid}"),
        Owner::Peer | Owner::Connection => "the client".to_owned(),
    };
    match denied {
        Denied::NoProcess => {
            Failure::new(Code::NoProcess, format!("{who} is not a running process"))
        }
        Denied::Init => Failure::new(
            Code::NoProcess,
            "process 1 never ends, so it can own no port",
        ),
        Denied::Forbidden => {
            Failure::new(Code::Forbidden, format!("{who} belongs to another user"))
        }
        Denied::Invisible => Failure::new(
            Code::NoProcess,
            "the client is outside of the server's pid namespace, or has exited",
        ),
        Denied::Failed(err) => failed(err),
    }
}

pub(super) fn chain(err: &dyn std::error::Error) -> String {
    match err.source() {
        Some(source) => format!("{err}: {}", chain(source)),
        None => err.to_string(),
    }
}
