//! How fast are port servers, and how large?

use std::env;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::epoll;
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::plan::Effort;
use crate::port_server::PortServer;
use crate::report::PoolState;
use crate::tools::{Places, Tool};

/// A round of requests begins no new ones after this.
const ROUND: Duration = Duration::from_secs(2);

/// How many processes own the ports that are leased.
const OWNERS: usize = 4;

/// What was found of one server.
#[derive(Debug, Serialize, Deserialize)]
pub struct Found {
    /// For each number of clients.
    pub rounds: Vec<Round>,
    /// In bytes.
    pub memory: u64,
}

/// The requests of one client process.
#[derive(Debug, Serialize, Deserialize)]
pub struct Round {
    /// How many were under way at once.
    pub clients: usize,
    /// From the first connect to the last answer.
    pub seconds: f64,
    /// From the connect to the answer, of each.
    pub micros: Vec<f64>,
    /// How many got a port.
    granted: usize,
}

/// Fills the server's pool to `state`, and asks it for ports.
pub fn measure(tool: &Tool, state: PoolState, effort: &Effort, places: &Places) -> Result<Found> {
    let kind = tool.server.ok_or("it is no server")?;
    let first = tool.range.0;
    let server = PortServer::start(kind, (first, first + (effort.pool - 1)), places)?;
    let pool = usize::from(effort.pool);
    let leased = match state {
        PoolState::Empty => 0,
        PoolState::Nearly => pool - pool / 20,
        PoolState::Full => pool,
    };
    let _owners = lease(leased)?;
    // What is asked for must be there.
    let requests = match state {
        PoolState::Full => effort.requests,
        _ => effort.requests.min((pool - leased) / 2),
    };
    let clients = clients(state, effort);
    let mut rounds = Vec::new();
    for &clients in clients {
        let round = Client::start(clients, requests, false)?.answer()?;
        let expected = match state {
            PoolState::Full => 0,
            _ => round.micros.len(),
        };
        if round.granted != expected {
            let (granted, asked) = (round.granted, round.micros.len());
            return Err(format!("{granted} grants instead of {expected}, of {asked}").into());
        }
        rounds.push(round);
    }
    Ok(Found {
        rounds,
        memory: server.memory()?,
    })
}

/// Returns how many clients there are at once, one number for each round.
pub fn clients(state: PoolState, effort: &Effort) -> &[usize] {
    match state {
        PoolState::Empty => &effort.clients,
        PoolState::Nearly | PoolState::Full => &effort.crowded_clients,
    }
}

/// Leases so many ports to a few processes, until what is returned is dropped.
fn lease(count: usize) -> Result<Vec<Client>> {
    let mut owners = Vec::new();
    for owner in 0..OWNERS {
        let share = count / OWNERS + usize::from(owner < count % OWNERS);
        if share == 0 {
            continue;
        }
        let mut client = Client::start(8, share, true)?;
        let granted = client.answer()?.granted;
        if granted != share {
            return Err(format!("{granted} ports were leased instead of {share}").into());
        }
        owners.push(client);
    }
    Ok(owners)
}

/// A process that asks for ports and owns what it gets. Dropping it ends the process.
struct Client(Child);

impl Client {
    /// Starts a process that asks for `requests` ports, `clients` at a time; all of them, however
    /// long that takes, if it `stays` to be their owner.
    fn start(clients: usize, requests: usize, stays: bool) -> Result<Self> {
        let process = Command::new(env::current_exe()?)
            .args(["client", &clients.to_string(), &requests.to_string()])
            .args(stays.then_some("--stay"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        Ok(Self(process))
    }

    /// Waits until all requests are answered.
    fn answer(&mut self) -> Result<Round> {
        let output = self.0.stdout.take().ok_or("it was asked before")?;
        let round = serde_json::Deserializer::from_reader(output)
            .into_iter()
            .next();
        Ok(round.ok_or("the client has ended")??)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

/// Is the client: asks for ports, prints what came of it, and stays until its input ends if it is to.
pub fn be_client(clients: usize, requests: usize, stays: bool) -> Result<()> {
    let round = ask(clients, requests, stays)?;
    serde_json::to_writer(io::stdout().lock(), &round)?;
    io::stdout().flush()?;
    if stays {
        io::stdin().read_to_end(&mut Vec::new())?;
    }
    Ok(())
}

/// Keeps so many connections under way, each with one request, from one `epoll`.
fn ask(clients: usize, requests: usize, without_end: bool) -> Result<Round> {
    let address = PortServer::address()?;
    let request = format!("{}\n", std::process::id());
    let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let mut slots: Vec<Option<(UnixStream, Instant)>> = (0..clients).map(|_| None).collect();
    let start = Instant::now();
    let mut asked = 0;
    let mut ask = |slot: usize, slots: &mut [Option<_>]| -> Result<()> {
        if asked == requests || (start.elapsed() > ROUND && !without_end) {
            return Ok(());
        }
        let began = Instant::now();
        let mut stream = UnixStream::connect_addr(&address)?;
        stream.write_all(request.as_bytes())?;
        let data = epoll::EventData::new_u64(slot as u64);
        epoll::add(&poll, &stream, data, epoll::EventFlags::IN)?;
        slots[slot] = Some((stream, began));
        asked += 1;
        Ok(())
    };
    for slot in 0..clients {
        ask(slot, &mut slots)?;
    }
    let mut micros = Vec::with_capacity(requests);
    let mut granted = 0;
    let mut events = Vec::with_capacity(clients);
    while slots.iter().any(Option::is_some) {
        events.clear();
        epoll::wait(&poll, rustix::buffer::spare_capacity(&mut events), None)?;
        for event in &events {
            let slot = event.data.u64() as usize;
            let (mut stream, began) = slots[slot].take().ok_or("an answer to no request")?;
            // A refusal is an end without a byte.
            let length = stream.read(&mut [0; 32])?;
            micros.push(began.elapsed().as_secs_f64() * 1e6);
            granted += usize::from(length > 0);
            drop(stream);
            ask(slot, &mut slots)?;
        }
    }
    Ok(Round {
        clients,
        seconds: start.elapsed().as_secs_f64(),
        micros,
        granted,
    })
}
