//! Does every bind come to what it would come to by itself?

use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use portpicker::Kind;
use portpicker_testing::worker::Answer;
use portpicker_testing::{Binding, Local, Options, Worker};
use rustix::thread::{CapabilitySet, capabilities};
use socket2::{Domain, Protocol, Socket, Type};

use super::{
    LONG, PORT, assert_is_reached, handed_off, has_net_raw, in_use, of_kind,
    with_and_without_net_raw,
};
use crate::{among, every_binding, is_probed};

with_and_without_net_raw! {
    fn every_server_is_reached_and_can_be_restarted() {
        if cfg!(portpicker_force = "ipv4") {
            // A hold of IPv4's alone has no socket that a server of both could come beside.
            return;
        }
        let mut command = handed_off();
        for binding in every_binding() {
            for _ in 0..2 {
                assert_eq!(command.bind(PORT, binding), Ok(()), "{binding}");
                if binding.listens || binding.kind == Kind::Udp {
                    assert_is_reached(&mut command, 0, binding, PORT);
                }
                command.unbind();
            }
        }
    }

    fn a_socket_has_the_options_that_the_command_has_set_and_no_others() {
        let mut command = handed_off();
        let mut other = Worker::spawn();
        for binding in every_binding() {
            assert_eq!(command.bind(PORT, binding), Ok(()), "{binding}");
            // Another port of the same worker, which nobody supervises.
            assert_eq!(other.bind(PORT + 1, binding), Ok(()), "{binding}");
            let mut options = other.tell("options 0");
            let is_loopback = binding.local.address.to_canonical().is_loopback();
            if binding.kind == Kind::Tcp && is_loopback && !has_net_raw() {
                // It cannot leave the interface by which it came in.
                options = options.map(|it| it.replace("None", &format!("{:?}", Some(b"lo"))));
            }
            assert_eq!(command.tell("options 0"), options, "{binding}");
            command.unbind();
            other.unbind();
        }
    }

    fn one_port_has_room_for_a_socket_on_each_address() {
        let mut command = handed_off();
        let locals = || {
            let wide = [Local::ALL_V4, Local::ALL_V6, Local::DUAL];
            let mapped = |local: Local| local.dual;
            Local::EVERY.into_iter().filter(move |local| {
                is_probed(*local) && !wide.contains(local) && !mapped(*local)
            })
        };
        let bindings: Vec<_> = locals()
            .map(|local| Binding::listening(local, Options::None))
            .chain(locals().map(|local| Binding::udp(local, Options::None)))
            .collect();
        for &binding in &bindings {
            assert_eq!(command.bind(PORT, binding), Ok(()), "{binding}");
        }
        for (index, &binding) in bindings.iter().enumerate() {
            assert_is_reached(&mut command, index, binding, PORT);
        }
    }

    fn both_families_are_bound_one_after_the_other() {
        let mut command = handed_off();
        let mut index = 0;
        for local in [Local::ALL_V4, Local::ALL_V6].into_iter().filter(|it| is_probed(*it)) {
            for binding in [
                Binding::listening(local, Options::ReuseAddress),
                Binding::udp(local, Options::None),
            ] {
                assert_eq!(command.bind(PORT, binding), Ok(()), "{binding}");
                assert_is_reached(&mut command, index, binding, PORT);
                index += 1;
            }
        }
    }

    fn sockets_may_be_bound_first_and_listen_later() {
        let mut command = handed_off();
        for binding in of_kind(Kind::Tcp).filter(|binding| !binding.listens) {
            assert_eq!(command.bind(PORT, binding), Ok(()), "{binding}");
            assert_eq!(command.tell("listen"), Ok(String::new()), "{binding}");
            // As who changes the number of those that may wait.
            assert_eq!(command.tell("listen"), Ok(String::new()), "{binding}, again");
            let listening = Binding { listens: true, ..binding };
            assert_is_reached(&mut command, 0, listening, PORT);
            command.unbind();
        }
    }

    fn who_listens_again_misses_no_client() {
        let mut command = handed_off();
        let server = Binding::listening(Local::LOOPBACK_V4, Options::None);
        assert_eq!(command.bind(PORT, server), Ok(()));
        assert_eq!(command.tell("listen_again 1"), Ok(String::new()));
        let again = thread::spawn(move || {
            let answer = command.tell("listen_again 5000");
            (answer, command)
        });
        while !again.is_finished() {
            let client = TcpStream::connect((Ipv4Addr::LOCALHOST, PORT)).map(Socket::from);
            // Reset when it closes: nothing is left of so many.
            client.unwrap().set_linger(Some(Duration::ZERO)).unwrap();
        }
        let (answer, _command) = again.join().unwrap();
        assert_eq!(answer, Ok(String::new()));
    }

    fn what_the_command_has_bound_it_cannot_bind_again() {
        if cfg!(portpicker_force = "ipv4") {
            // A hold of IPv4's alone has no socket that a server of both could come beside.
            return;
        }
        let mut command = handed_off();
        for kind in [Kind::Tcp, Kind::Udp] {
            for local in Local::EVERY.into_iter().filter(|local| is_probed(*local)) {
                let binding = Binding {
                    kind,
                    local,
                    options: Options::None,
                    listens: kind == Kind::Tcp,
                };
                assert_eq!(command.bind(PORT, binding), Ok(()), "{binding}");
                assert_eq!(command.bind(PORT, binding), in_use(), "{binding}");
                // And is none the worse for it.
                assert_is_reached(&mut command, 0, binding, PORT);
                command.unbind();
            }
        }
    }

    fn several_ports_are_handed_off_together() {
        let holds = among("20000-20002").holds(3).unwrap();
        let ports: Vec<u16> = holds.iter().map(|hold| hold.port()).collect();
        let mut command = Worker::spawn_handed_off(holds);
        let binding = Binding::listening(Local::LOOPBACK_V4, Options::None);
        for (index, &port) in ports.iter().enumerate() {
            assert_eq!(command.bind(port, binding), Ok(()));
            assert_is_reached(&mut command, index, binding, port);
        }
    }

    fn a_hold_of_one_transport_leaves_the_other_to_everybody() {
        for kind in [Kind::Tcp, Kind::Udp] {
            let hold = among("20000").only(kind).wait(LONG).hold().unwrap();
            let mut command = Worker::spawn_handed_off(vec![hold]);
            let mut other = Worker::spawn();
            for binding in every_binding() {
                let is_held = binding.kind == kind;
                let expected = if is_held { in_use() } else { Ok(()) };
                assert_eq!(other.bind(PORT, binding), expected, "{binding}");
                other.unbind();
                assert_eq!(command.bind(PORT, binding), Ok(()), "{binding}");
                command.unbind();
            }
        }
    }

    fn two_binds_of_the_command_come_to_what_they_would_by_themselves() {
        let mut command = handed_off();
        let mut other = Worker::spawn();
        for kind in [Kind::Tcp, Kind::Udp] {
            for first in of_kind(kind) {
                assert_eq!(command.bind(PORT, first), Ok(()), "{first}");
                for second in of_kind(kind) {
                    // Each time anew: the kernel remembers that it has let in somebody who shares.
                    other.unbind();
                    assert_eq!(other.bind(PORT + 1, first), Ok(()), "{first}");
                    let expected = other.tell(&format!("try {} {second}", PORT + 1));
                    if expected.is_err() && !may_change_devices() && kind == Kind::Tcp {
                        // It takes a tenth of a second each time until the command is told so.
                        continue;
                    }
                    let answer = command.tell(&format!("try {PORT} {second}"));
                    assert_eq!(answer, expected, "{second} beside {first}");
                }
                command.unbind();
                other.unbind();
            }
        }
    }

    fn other_ports_are_none_of_our_business() {
        let mut command = handed_off();
        let [mut other, mut third] = [(); 2].map(|()| Worker::spawn());
        for binding in every_binding() {
            assert_eq!(command.bind(0, binding), Ok(()), "{binding}");
            for second in [&mut command, &mut third] {
                let port = PORT + 1;
                assert_eq!(other.bind(port, binding), Ok(()), "{binding}");
                let answer = second.bind(port, binding);
                other.unbind();
                assert_eq!(second.bind(PORT + 2, binding), Ok(()), "{binding}");
                second.unbind();
                assert_eq!(answer, beside(binding), "{binding}");
            }
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        assert_eq!(command.tell(&format!("unix {}", path.display())), Ok(String::new()));
        assert!(UnixStream::connect(path).is_ok());
    }

    fn multipath_tcp_is_tcp() {
        if Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::MPTCP)).is_err() {
            portpicker_testing::skip("hand_off::binds::multipath_tcp_is_tcp", "no MPTCP here");
            return;
        }
        let mut command = handed_off();
        for binding in of_kind(Kind::Tcp).filter(|binding| binding.listens) {
            for _ in 0..2 {
                let answer = command.tell(&format!("multipath {PORT} {binding}"));
                assert_eq!(answer, Ok(String::new()), "{binding}");
                assert_is_reached(&mut command, 0, binding, PORT);
                command.unbind();
            }
        }
    }
}

/// What comes of it if two processes of one user bind a port in the same way.
fn beside(binding: Binding) -> Answer<()> {
    let share = match (binding.kind, binding.options) {
        (_, Options::None) => false,
        (Kind::Tcp, Options::ReuseAddress) => !binding.listens,
        _ => true,
    };
    if share { Ok(()) } else { in_use() }
}

fn may_change_devices() -> bool {
    capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::NET_RAW))
}
