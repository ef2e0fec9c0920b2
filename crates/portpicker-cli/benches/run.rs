//! What does `portpicker run` cost: its start, a bind, a listen, and any other call?
//!
//! A command is started by turns directly and by `portpicker run`. The second one is this program
//! again, which times its own calls. `cargo bench -p portpicker-cli --bench run`; with `--quick`, a few
//! rounds that only show that it works.
#![expect(clippy::print_stdout, reason = "the result")]
#![expect(
    clippy::unwrap_used,
    reason = "a benchmark that cannot run says why and ends"
)]

use std::env;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use socket2::{Domain, SockRef, Socket, Type};

/// What a started program is told to be the command.
const CALLS: &str = "--calls";

/// The calls that are timed, in this order.
const NAMES: [&str; 6] = [
    "bind, TCP, the port",
    "listen, the port",
    "bind, UDP, the port",
    "bind, another port",
    "accept and close",
    "send",
];

/// How many connections are accepted, and datagrams sent, one after another.
const IN_A_ROW: usize = 64;

fn main() {
    let arguments: Vec<String> = env::args().collect();
    if let [_, mode, rounds] = arguments.as_slice()
        && mode == CALLS
    {
        return time_calls(rounds.parse().unwrap());
    }
    let is_quick = arguments.iter().any(|it| it == "--quick" || it == "--test");
    let (starts, processes, rounds) = if is_quick { (5, 2, 20) } else { (500, 20, 200) };
    let program = env::current_exe().unwrap();
    let program = program.to_str().unwrap();
    let run = [env!("CARGO_BIN_EXE_portpicker"), "run", "--no-server"];
    let strict = [&run[..], &["--hand-off=strict", "--"]].concat();

    let [mut directly, mut by_run] = [const { Vec::new() }; 2];
    for _ in 0..starts {
        directly.push(start(&["true"]).0);
        by_run.push(start(&[&strict[..], &["true"]].concat()).0);
    }
    println!(
        "{:<24} {:>10} {:>10} {:>10}",
        "µs", "directly", "by run", "more"
    );
    println!(
        "{}",
        Row("start of `true`", median(directly), median(by_run))
    );

    let calls = [program, CALLS, &rounds.to_string()];
    let [mut directly, mut by_run] = [const { Vec::<Vec<f64>>::new() }; 2];
    for _ in 0..processes {
        directly.push(figures(&start(&calls).1));
        by_run.push(figures(&start(&[&strict[..], &calls].concat()).1));
    }
    for (index, name) in NAMES.into_iter().enumerate() {
        let column = |of: &[Vec<f64>]| median(of.iter().map(|it| it[index]).collect());
        println!("{}", Row(name, column(&directly), column(&by_run)));
    }
}

/// A line of the table: what, and how many microseconds it takes directly and by `portpicker run`.
struct Row<'n>(&'n str, f64, f64);

impl fmt::Display for Row<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(name, directly, by_run) = self;
        let more = by_run - directly;
        write!(f, "{name:<24} {directly:>10.2} {by_run:>10.2} {more:>10.2}")
    }
}

/// Runs a command line. Returns how many microseconds it took, and what it has printed.
fn start(line: &[&str]) -> (f64, String) {
    let begin = Instant::now();
    let output = Command::new(line[0])
        .args(&line[1..])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .env_remove("PORT")
        .env_remove("PORTPICKER_PORTS")
        .output()
        .unwrap();
    let time = micros(begin.elapsed());
    assert!(output.status.success(), "{line:?}: {}", output.status);
    (time, String::from_utf8(output.stdout).unwrap())
}

fn figures(text: &str) -> Vec<f64> {
    let figures: Vec<f64> = text.lines().map(|line| line.parse().unwrap()).collect();
    assert_eq!(figures.len(), NAMES.len(), "{text}");
    figures
}

/// Times each of the calls `rounds` times, on the port that PORT names, and prints the medians.
fn time_calls(rounds: usize) {
    let port = match env::var("PORT") {
        Ok(port) => port.parse().unwrap(),
        Err(_) => portpicker::pick_unused_port().unwrap(),
    };
    let mut times = [const { Vec::new() }; NAMES.len()];
    for _ in 0..rounds {
        let tcp = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let udp = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
        let other = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
        times[0].push(time(|| tcp.bind(&loopback(port).into()).unwrap()));
        times[1].push(time(|| tcp.listen(IN_A_ROW as i32).unwrap()));
        times[2].push(time(|| udp.bind(&loopback(port).into()).unwrap()));
        times[3].push(time(|| other.bind(&loopback(0).into()).unwrap()));

        // Many in a row, so that what the calls above have left in the caches does not count.
        let listener = TcpListener::from(tcp);
        let connect = |_| TcpStream::connect(loopback(port)).unwrap();
        let clients: Vec<TcpStream> = (0..IN_A_ROW).map(connect).collect();
        times[4].push(time_many(|| drop(listener.accept().unwrap())));
        for client in &clients {
            // Reset when it closes: nothing is left of so many.
            SockRef::from(client)
                .set_linger(Some(Duration::ZERO))
                .unwrap();
        }
        let (receiver, sender) = (UdpSocket::from(udp), UdpSocket::from(other));
        sender.connect(receiver.local_addr().unwrap()).unwrap();
        times[5].push(time_many(|| _ = sender.send(b"hello").unwrap()));
    }
    for times in times {
        println!("{}", median(times));
    }
}

/// Returns how many microseconds a call takes on average, of [`IN_A_ROW`] of them.
fn time_many(call: impl Fn()) -> f64 {
    time(|| (0..IN_A_ROW).for_each(|_| call())) / IN_A_ROW as f64
}

fn time(call: impl FnOnce()) -> f64 {
    let begin = Instant::now();
    call();
    micros(begin.elapsed())
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
