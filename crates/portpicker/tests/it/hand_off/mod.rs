//! Does a held port pass to another program, and to nobody else?
//!
//! | module         | question                                                               |
//! | -------------- | ---------------------------------------------------------------------- |
//! | `binds.rs`     | does every bind come to what it would come to by itself?               |
//! | `thieves.rs`   | does anybody else get in, before, between, or after?                   |
//! | `processes.rs` | threads, descendants, pools of workers; and when does the hold end?    |
//! | `calls.rs`     | what if the call is wrong, or made by an unusual thread?               |
//! | `interrupted.rs` | what if the caller is interrupted, or killed?                        |
//! | `refused.rs`   | what if the system refuses a part of it?                               |
//!
//! The command is a worker: this program, told what to bind. What depends on how a holder steps aside
//! is tested with and without CAP_NET_RAW ([`with_and_without_net_raw`]).
#![expect(
    clippy::unwrap_used,
    reason = "a test that meets what it does not expect has failed"
)]

mod binds;
mod calls;
mod interrupted;
mod processes;
mod refused;
mod thieves;

use std::cell::RefCell;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use portpicker::{Hold, Kind};
use portpicker_testing::worker::{Answer, Process, State};
use portpicker_testing::{Binding, Local, Worker};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
use socket2::{Domain, Protocol, Socket, Type};

use crate::{among, every_binding, is_probed, set};

const PORT: u16 = 20_000;

/// Longer than anything that happens, for waits that end with an event.
const LONG: Duration = Duration::from_secs(60);

/// Writes each test twice: as who may free TCP sockets from their interfaces, and as who may not.
///
/// The holder steps aside by different means then: see `hand_off/admission.rs` of the library.
macro_rules! with_and_without_net_raw {
    ($($(#[$attribute:meta])* fn $name:ident() $body:block)*) => {
        mod with_net_raw {
            use super::*;
            $(
                #[test]
                $(#[$attribute])*
                fn $name() {
                    portpicker_testing::in_network_namespace(|| $body);
                }
            )*
        }
        mod without_net_raw {
            use super::*;
            $(
                #[test]
                $(#[$attribute])*
                fn $name() {
                    portpicker_testing::in_network_namespace(|| {
                        crate::hand_off::drop_net_raw();
                        $body
                    });
                }
            )*
        }
    };
}
use with_and_without_net_raw;

/// Takes CAP_NET_RAW from this thread and those that it starts.
fn drop_net_raw() {
    let mut sets = capabilities(None).expect("a thread has capabilities");
    sets.effective.remove(CapabilitySet::NET_RAW);
    sets.permitted.remove(CapabilitySet::NET_RAW);
    sets.inheritable.remove(CapabilitySet::NET_RAW);
    set_capabilities(None, sets).expect("whoever has one may drop it");
}

fn has_net_raw() -> bool {
    let sets = capabilities(None).expect("a thread has capabilities");
    sets.effective.contains(CapabilitySet::NET_RAW)
}

/// Holds [`PORT`], once the one has ended who had it before.
fn held() -> Hold {
    let hold = among("20000").wait(LONG).hold();
    hold.expect("nobody has it for long")
}

/// Starts a worker that [`PORT`] is handed off to.
fn handed_off() -> Worker {
    Worker::spawn_handed_off(vec![held()])
}

fn in_use<T>() -> Answer<T> {
    Err(io::ErrorKind::AddrInUse.to_string())
}

fn of_kind(kind: Kind) -> impl Iterator<Item = Binding> {
    every_binding().filter(move |binding| binding.kind == kind)
}

/// Returns addresses by which somebody on this host reaches a server on `local`.
fn ways_to(local: Local) -> Vec<IpAddr> {
    let loopback_v4 = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let loopback_v6 = IpAddr::V6(Ipv6Addr::LOCALHOST);
    match local {
        Local::ALL_V4 => vec![loopback_v4],
        Local::ALL_V6 => vec![loopback_v6],
        Local::DUAL => vec![loopback_v4, loopback_v6],
        Local { address, .. } => vec![address.to_canonical()],
    }
}

/// Checks that the worker's socket number `index` is reached, at each of its addresses.
fn assert_is_reached(worker: &mut Worker, index: usize, binding: Binding, port: u16) {
    for address in ways_to(binding.local) {
        let server = SocketAddr::new(address, port);
        match binding.kind {
            Kind::Tcp => {
                let client = TcpStream::connect(server)
                    .unwrap_or_else(|err| panic!("{binding} at {server}: {err}"));
                let peer = worker.tell(&format!("accept {index}"));
                let client = client.local_addr().unwrap().port();
                assert_eq!(peer, Ok(client.to_string()), "{binding}");
            }
            Kind::Udp => {
                let client = UdpSocket::bind((address, 0)).unwrap();
                // More than one, in case somebody else gets every other one.
                for text in ["one", "two", "three"] {
                    client.send_to(text.as_bytes(), server).unwrap();
                    let received = worker.tell(&format!("receive {index}"));
                    assert_eq!(received.as_deref(), Ok(text), "{binding} at {address}");
                }
            }
        }
    }
}

thread_local! {
    /// The workers that a worker has started itself.
    static NESTED: RefCell<Vec<Worker>> = const { RefCell::new(Vec::new()) };
}

/// The commands that a worker of these tests has besides the harness's.
pub(crate) fn command(state: &mut State, line: &str) -> Option<Answer<String>> {
    let (command, argument) = line.split_once(' ').unwrap_or((line, ""));
    Some(match command {
        "listen" => listen(state),
        "listen_again" => listen_again(state, argument.parse().expect("a count")),
        "accept" => accept(socket(state, argument)),
        "receive" => receive(socket(state, argument)),
        "meet" => meet(socket(state, argument)),
        "bind_at_once" => bind_at_once(argument),
        "options" => Ok(options(socket(state, argument))),
        "try" => {
            let (port, binding) = port_and_binding(argument);
            let result = binding.bind(port);
            result.map(|_| String::new()).map_err(|err| err.to_string())
        }
        "multipath" => {
            let (port, binding) = port_and_binding(argument);
            multipath(binding, port).map_or_else(
                |err| Err(err.to_string()),
                |socket| {
                    state.sockets().push(socket);
                    Ok(String::new())
                },
            )
        }
        "unix" => match UnixListener::bind(argument) {
            Ok(listener) => {
                state.sockets().push(OwnedFd::from(listener).into());
                Ok(String::new())
            }
            Err(err) => Err(err.to_string()),
        },
        "steal" => Ok(steal(argument.parse().expect("a port"))),
        "nested" => {
            // What libtest complains of when nobody reads its output any more is no news.
            let silent = |mut command: Command| command.stderr(Stdio::null()).spawn();
            let worker = Worker::spawn_by(&[], |command| silent(command).map(Process::Child));
            let worker = worker.expect("the test binary can be started again");
            let pid = worker.pid().to_string();
            NESTED.with_borrow_mut(|nested| nested.push(worker));
            Ok(pid)
        }
        "nested_hand_off" => {
            let hold = among(argument).hold().expect("the port is unused");
            let worker = Worker::spawn_handed_off(vec![hold]);
            NESTED.with_borrow_mut(|nested| nested.push(worker));
            Ok(String::new())
        }
        "entrust" => {
            let ports = set(argument);
            let holds = among(argument).holds(ports.len()).expect("they are unused");
            let holders: Vec<_> = holds.iter().flat_map(Hold::descriptors).collect();
            calls::outcome(portpicker::hand_off::entrust(&holders))
        }
        "tell" => {
            let (index, line) = argument.split_once(' ').expect("an index and a line");
            let index: usize = index.parse().expect("an index");
            NESTED.with_borrow_mut(|nested| nested[index].tell(line))
        }
        "leave" => {
            NESTED.with_borrow_mut(|nested| nested.drain(..).for_each(std::mem::forget));
            Ok(String::new())
        }
        _ => return calls::command(line).or_else(|| interrupted::command(line)),
    })
}

fn socket<'s>(state: &'s mut State, index: &str) -> &'s Socket {
    &state.sockets()[index.parse::<usize>().expect("an index")]
}

fn port_and_binding(argument: &str) -> (u16, Binding) {
    let (port, binding) = argument.split_once(' ').expect("a port and a binding");
    (
        port.parse().expect("a port"),
        binding.parse().expect("a binding"),
    )
}

/// Listens as `binding` says, with multipath TCP, as Go's programs do.
fn multipath(binding: Binding, port: u16) -> io::Result<Socket> {
    let address = SocketAddr::new(binding.local.address, port);
    let domain = Domain::for_address(address);
    let socket = Socket::new(domain, Type::STREAM, Some(Protocol::MPTCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(!binding.local.dual)?;
    }
    binding.options.set_on(&socket)?;
    socket.bind(&address.into())?;
    socket.listen(16)?;
    Ok(socket)
}

/// Makes the last socket listen.
fn listen(state: &mut State) -> Answer<String> {
    let socket = state.sockets().last().expect("it has bound one");
    match socket.listen(64) {
        Ok(()) => Ok(String::new()),
        Err(err) => Err(err.kind().to_string()),
    }
}

/// Makes the last socket listen again and again, while it accepts all that comes.
fn listen_again(state: &mut State, count: usize) -> Answer<String> {
    let socket = state.sockets().last().expect("it has bound one");
    socket.set_nonblocking(true).expect("a socket has modes");
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                // Clients reset their connections. If we did too, one that is slow to look might
                // take it for a refusal.
                _ = socket.accept();
            }
        });
        let result = (0..count).try_for_each(|_| socket.listen(4096));
        is_over.store(true, Ordering::Relaxed);
        calls::outcome(result)
    })
}

/// Accepts a connection and returns the client's port.
fn accept(socket: &Socket) -> Answer<String> {
    let (connection, peer) = socket.accept().map_err(|err| err.to_string())?;
    // Reset when it closes: in TIME-WAIT, it would keep a server without options from restarting,
    // here as everywhere.
    connection
        .set_linger(Some(Duration::ZERO))
        .map_err(|err| err.to_string())?;
    Ok(peer.as_socket().expect("an IP socket").port().to_string())
}

fn receive(socket: &Socket) -> Answer<String> {
    let socket = socket.try_clone().map_err(|err| err.to_string())?;
    let mut datagram = [0; 64];
    let length = UdpSocket::from(socket)
        .recv(&mut datagram)
        .map_err(|err| err.to_string())?;
    Ok(String::from_utf8_lossy(&datagram[..length]).into_owned())
}

/// Returns how many have connected, or sent a datagram.
fn meet(socket: &Socket) -> Answer<String> {
    socket
        .set_nonblocking(true)
        .map_err(|err| err.to_string())?;
    let is_udp = socket.r#type().map_err(|err| err.to_string())? == Type::DGRAM;
    let next = || match is_udp {
        true => receive(socket).is_ok(),
        false => accept(socket).is_ok(),
    };
    Ok(std::iter::from_fn(|| next().then_some(()))
        .count()
        .to_string())
}

/// Binds all of a set of ports, each in a thread of its own.
fn bind_at_once(argument: &str) -> Answer<String> {
    let (ports, binding) = argument.split_once(' ').expect("ports and a binding");
    let binding: Binding = binding.parse().expect("a binding");
    let results = thread::scope(|scope| {
        let threads: Vec<_> = set(ports)
            .iter()
            .map(|port| scope.spawn(move || binding.bind(port)))
            .collect();
        let results = threads.into_iter().map(|it| it.join().expect("no panic"));
        results.collect::<io::Result<Vec<Socket>>>()
    });
    results
        .map(|_| String::new())
        .map_err(|err| err.to_string())
}

/// Returns what a program may have set on a socket and may look at.
fn options(socket: &Socket) -> String {
    format!(
        "RA={} RP={} device={:?}",
        socket.reuse_address().unwrap(),
        socket.reuse_port().unwrap(),
        socket.device().unwrap(),
    )
}

/// Tries to bind `port` in every way, and returns those that have succeeded.
fn steal(port: u16) -> String {
    every_binding()
        .filter(|binding| binding.bind(port).is_ok())
        .map(|binding| binding.to_string())
        .collect::<Vec<_>>()
        .join(", ")
}
