//! Thieves: threads that want a port, by every way to have one.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::ops::AddAssign;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use portpicker::Kind;
use socket2::{Domain, Protocol, Socket, Type};

use crate::sockets::{Binding, port_of};

/// What thieves have got, and how often they have tried.
#[derive(Clone, Copy, Debug, Default)]
pub struct Loot {
    /// Attempts: binds of the number, `bind(0)`, and connections to elsewhere.
    pub attempts: u64,
    /// How often the port was bound by them, by whatever means.
    pub bound: u64,
    /// How often they listened on it, or received its datagrams.
    pub served: u64,
}

impl AddAssign for Loot {
    fn add_assign(&mut self, more: Self) {
        self.attempts += more.attempts;
        self.bound += more.bound;
        self.served += more.served;
    }
}

/// Threads that want a port whenever they are let loose.
#[derive(Debug)]
pub struct Thieves {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    /// The port to be robbed; 0 while nobody is let loose.
    port: AtomicU16,
    /// Whether they set SO_REUSEPORT too.
    share: AtomicBool,
    is_over: AtomicBool,
    /// Where all meet before they are let loose, and when they have been called back.
    gate: Barrier,
    attempts: AtomicU64,
    bound: AtomicU64,
    served: AtomicU64,
    /// Whether they keep what they get until they are called back.
    keep: bool,
    /// Something to connect to.
    elsewhere: SocketAddr,
}

impl Thieves {
    /// Hires `count` thieves, who wait. What they get they `keep`, or let go at once.
    pub fn hire(count: usize, keep: bool) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is unused");
        let shared = Arc::new(Shared {
            port: AtomicU16::new(0),
            share: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
            gate: Barrier::new(count + 1),
            attempts: AtomicU64::new(0),
            bound: AtomicU64::new(0),
            served: AtomicU64::new(0),
            keep,
            elsewhere: listener.local_addr().expect("a socket has an address"),
        });
        // Whoever connects is accepted; it ends with the process.
        thread::spawn(move || listener.incoming().for_each(drop));
        let threads = (0..count)
            .map(|number| {
                let shared = Arc::clone(&shared);
                thread::spawn(move || shared.work(number))
            })
            .collect();
        Self { shared, threads }
    }

    /// Lets them loose on `port`. When this returns, all are at work.
    ///
    /// Those who `share` set SO_REUSEPORT as well: beside a server that sets it, the kernel takes them
    /// for its workers, as they are the same user's.
    pub fn rob(&mut self, port: u16, share: bool) {
        self.shared.share.store(share, Ordering::SeqCst);
        self.shared.port.store(port, Ordering::SeqCst);
        self.shared.gate.wait();
    }

    /// Calls them back. When this returns, they have let go of all they had.
    pub fn call_back(&mut self) -> Loot {
        self.shared.port.store(0, Ordering::SeqCst);
        self.shared.gate.wait();
        Loot {
            attempts: self.shared.attempts.swap(0, Ordering::SeqCst),
            bound: self.shared.bound.swap(0, Ordering::SeqCst),
            served: self.shared.served.swap(0, Ordering::SeqCst),
        }
    }
}

impl Drop for Thieves {
    fn drop(&mut self) {
        if thread::panicking() {
            // They may be at work, and end with the process.
            return;
        }
        self.shared.is_over.store(true, Ordering::SeqCst);
        self.shared.gate.wait();
        for thread in self.threads.drain(..) {
            thread.join().expect("a thief does not panic");
        }
    }
}

impl Shared {
    fn work(&self, number: usize) {
        // All begin elsewhere, and go through all ways in an order that is not that of the others.
        let mut turn = number * 13;
        loop {
            self.gate.wait();
            if self.is_over.load(Ordering::SeqCst) {
                return;
            }
            let share = self.share.load(Ordering::SeqCst);
            let ways: Vec<Binding> = Binding::every()
                .filter(|way| share || !way.options.reuse_port())
                .collect();
            let mut loot = Vec::new();
            loop {
                let port = self.port.load(Ordering::SeqCst);
                if port == 0 {
                    break;
                }
                turn += 29;
                self.try_once(port, ways[turn % ways.len()], turn, &mut loot);
            }
            loot.clear();
            self.gate.wait();
        }
    }

    fn try_once(&self, port: u16, way: Binding, turn: usize, loot: &mut Vec<(Binding, Socket)>) {
        self.attempts.fetch_add(1, Ordering::Relaxed);
        let got = match turn / 7 % 8 {
            0 => way.bind(0).ok(),
            1 => self.connect().ok(),
            // Bound at least, though perhaps not listening.
            _ => bind(way, port).ok(),
        };
        if let Some(socket) = got.filter(|socket| port_of(socket) == port) {
            // A bind that was under way when it was over is no theft.
            if self.port.load(Ordering::SeqCst) != port {
                return;
            }
            self.bound.fetch_add(1, Ordering::Relaxed);
            if way.kind == Kind::Udp {
                self.served.fetch_add(1, Ordering::Relaxed);
            }
            loot.push((way, socket));
        }
        for (way, socket) in &*loot {
            let listens = socket.is_listener().unwrap_or(false);
            if way.kind == Kind::Tcp && !listens && socket.listen(1).is_ok() {
                self.served.fetch_add(1, Ordering::Relaxed);
            }
        }
        if !self.keep {
            loot.clear();
        }
        thread::yield_now();
    }

    fn connect(&self) -> std::io::Result<Socket> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
        // Reset when it closes, so that no TIME-WAIT is left of so many.
        socket.set_linger(Some(Duration::ZERO))?;
        socket.connect(&self.elsewhere.into())?;
        Ok(socket)
    }
}

fn bind(way: Binding, port: u16) -> std::io::Result<Socket> {
    let socket = way.open()?;
    socket.bind(&SocketAddr::new(way.local.address, port).into())?;
    Ok(socket)
}
