//! `portpicker run` and `portpicker wait`, as their users meet them.
//!
//! | module          | question                                                           |
//! | --------------- | ------------------------------------------------------------------ |
//! | `command.rs`    | how is a command told its ports, and how does it end?               |
//! | `signals.rs`    | what comes of signals, and of a terminal?                          |
//! | `modes.rs`      | how do the ports pass, and what if the system refuses?             |
//! | `listen.rs`     | sockets by LISTEN_FDS                                              |
//! | `background.rs` | commands that go on: `--wait-listening`, and daemons               |
//! | `wait.rs`       | `portpicker wait`                                                  |
//! | `servers.rs`    | do real servers get their ports under a storm of thieves?          |
//! | `messages.rs`   | the texts                                                          |

mod background;
mod command;
mod listen;
mod messages;
mod modes;
mod servers;
mod signals;
mod wait;

use std::net::{Ipv4Addr, SocketAddr};

use socket2::{Domain, Socket, Type};

/// A server without options. It says `listening`, and for each line that it reads, it closes its
/// sockets, opens them again, and says so again. It ends at the end of its input, or when it cannot
/// have its port, or when it reads `exit`.
const SERVER: &str = "
import os, socket, sys

def listen():
    tcp = socket.socket()
    udp = socket.socket(type=socket.SOCK_DGRAM)
    for server in (tcp, udp):
        server.bind(('127.0.0.1', int(os.environ['PORT'])))
    tcp.listen()
    print('listening', flush=True)
    return tcp, udp

sockets = listen()
for line in sys.stdin:
    if line == 'exit\\n':
        break
    for server in sockets:
        server.close()
    sockets = listen()
";

/// Tells whether anybody can bind `port` for TCP, without options.
fn is_bindable(port: u16) -> bool {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    socket.bind(&address.into()).is_ok()
}
