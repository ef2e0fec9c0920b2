//! Does anybody else get in, before, between, or after?

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use portpicker::Kind;
use portpicker_testing::worker::Answer;
use portpicker_testing::{Binding, Local, Options, Worker};

use super::{PORT, handed_off, of_kind, with_and_without_net_raw};
use crate::{every_binding, is_probed};

/// Has `thief` try every way to bind the port. The answer says which have succeeded.
fn stolen(thief: &mut Worker) -> Answer<String> {
    thief.tell(&format!("steal {PORT}"))
}

fn nothing() -> Answer<String> {
    Ok(String::new())
}

with_and_without_net_raw! {
    fn nobody_gets_in_before_between_or_after() {
        let mut thief = Worker::spawn();
        let mut command = handed_off();
        assert_eq!(stolen(&mut thief), nothing(), "before");
        for binding in every_binding().filter(|binding| !binding.listens) {
            assert_eq!(command.bind(PORT, binding), Ok(()), "{binding}");
            if binding.kind == Kind::Udp && binding.options.reuse_port() {
                // The thieves are of the same user: who sets it wants to share with them.
                let answer = stolen(&mut thief).unwrap();
                assert!(answer.split(", ").all(|it| it.contains("RP")), "{binding}: {answer}");
            } else {
                assert_eq!(stolen(&mut thief), nothing(), "{binding}");
            }
            if binding.kind == Kind::Tcp {
                assert_eq!(command.tell("listen"), nothing(), "{binding}");
                assert_eq!(stolen(&mut thief), nothing(), "{binding}, listening");
            }
            command.unbind();
            assert_eq!(stolen(&mut thief), nothing(), "{binding}, closed");
        }
    }

    /// While thieves try all the time, and not only before and after.
    fn nobody_gets_in_while_a_server_of_the_loopback_address_does() {
        let ways: Vec<_> = every_binding().filter(|it| !it.options.reuse_port()).collect();
        let mut command = handed_off();
        let is_over = AtomicBool::new(false);
        thread::scope(|scope| {
            let thieves = [0, ways.len() / 2].map(|first| {
                let (ways, is_over) = (&ways, &is_over);
                scope.spawn(move || {
                    let mut ways = ways.iter().cycle().skip(first);
                    while !is_over.load(Ordering::Relaxed) {
                        let way = ways.next().expect("a cycle has no end");
                        assert!(way.bind(PORT).is_err(), "{way}");
                    }
                })
            });
            for server in ways.iter().filter(|way| way.local.address.is_loopback()).cycle().take(400) {
                assert_eq!(command.bind(PORT, *server), Ok(()), "{server}");
                command.unbind();
            }
            is_over.store(true, Ordering::Relaxed);
            for thief in thieves {
                thief.join().expect("no way was open");
            }
        });
    }

    /// Two on one port, one of which goes: what the kernel remembers is the other one's.
    fn nobody_gets_in_beside_what_remains() {
        let mut thief = Worker::spawn();
        let mut command = handed_off();
        let visitors = of_kind(Kind::Tcp).filter(|binding| binding.local == Local::LOOPBACK_V4);
        for visitor in visitors {
            let server = Binding::listening(Local::ALL_V4, Options::Both);
            if command.bind(PORT, server).is_err() || command.bind(PORT, visitor).is_err() {
                command.unbind();
                continue;
            }
            assert_eq!(stolen(&mut thief), nothing(), "{visitor} beside {server}");
            command.unbind();
            assert_eq!(stolen(&mut thief), nothing(), "{visitor}");
        }
    }

    /// As nginx opens its sockets: of each address, one for each worker.
    fn nobody_gets_in_beside_a_pool_of_all_addresses() {
        let mut thief = Worker::spawn();
        for options in [Options::ReusePort, Options::Both] {
            let mut command = handed_off();
            for round in 0..3 {
                for local in [Local::ALL_V4, Local::ALL_V6].into_iter().filter(|it| is_probed(*it)) {
                    let binding = Binding::listening(local, options);
                    assert_eq!(command.bind(PORT, binding), Ok(()), "{binding}");
                    assert_eq!(stolen(&mut thief), nothing(), "{binding}, number {round}");
                }
            }
        }
    }

    fn a_bind_that_fails_lets_nobody_in() {
        let mut thief = Worker::spawn();
        let mut command = handed_off();
        for kind in [Kind::Tcp, Kind::Udp] {
            let binding = Binding {
                kind,
                local: Local::ALL_V4,
                options: Options::None,
                listens: kind == Kind::Tcp,
            };
            assert_eq!(command.bind(PORT, binding), Ok(()), "{binding}");
            for options in Options::ALL {
                let second = Binding { options, ..binding };
                assert!(command.bind(PORT, second).is_err(), "{second}");
                assert_eq!(stolen(&mut thief), nothing(), "{second}");
            }
            command.unbind();
            assert_eq!(stolen(&mut thief), nothing(), "{kind:?}");
        }
    }
}
