//! Does this kernel behave as the design assumes? Only sockets here, and no picks.
//!
//! RA is SO_REUSEADDR, RP is SO_REUSEPORT.

use std::io;

use portpicker::Kind;
use portpicker_testing::network::{OTHER_V4, set_ephemeral_range};
use portpicker_testing::sockets::{leave_in_time_wait, port_of};
use portpicker_testing::{Binding, Local, Options, in_network_namespace};
use socket2::Socket;

const PORT: u16 = 20_000;

fn is_refused(binding: Binding) -> bool {
    match binding.bind(PORT) {
        Ok(_) => false,
        Err(err) if err.kind() == io::ErrorKind::AddrInUse => true,
        Err(err) => panic!("{binding}: {err}"),
    }
}

fn server(options: Options, local: Local) -> Binding {
    Binding::listening(local, options)
}

/// 108 of 108: why a probe binds one TCP and one UDP socket, and no more.
#[test]
fn one_plain_dual_bind_of_each_transport_meets_every_holder() {
    in_network_namespace(|| {
        let probes = [
            Binding::tcp(Local::DUAL, Options::None),
            Binding::udp(Local::DUAL, Options::None),
        ];
        for holder in Binding::every() {
            let held = holder.bind(PORT).unwrap();
            for probe in probes {
                let same_kind = probe.kind == holder.kind;
                assert_eq!(is_refused(probe), same_kind, "{holder}");
            }
            drop(held);
            for probe in probes {
                assert!(!is_refused(probe), "{holder} was the only one");
            }
        }
    });
}

/// Why a probe does not set RA.
#[test]
fn a_probe_with_reuse_address_misses_sockets_that_set_it() {
    in_network_namespace(|| {
        let option = Options::ReuseAddress;
        for holder in [
            Binding::tcp(Local::ALL_V4, option),
            Binding::udp(Local::ALL_V4, option),
        ] {
            let _held = holder.bind(PORT).unwrap();
            let plain = Binding {
                options: Options::None,
                ..holder
            };
            assert!(is_refused(plain), "{holder}");
            assert!(!is_refused(holder), "{holder}");
        }
    });
}

/// Why a hold covers both families at once.
#[test]
fn a_holder_of_one_family_does_not_protect_the_other() {
    in_network_namespace(|| {
        for (holder, other) in [
            (Local::ALL_V4, Local::LOOPBACK_V6),
            (Local::ALL_V6, Local::LOOPBACK_V4),
        ] {
            let _held = Binding::tcp(holder, Options::None).bind(PORT).unwrap();
            assert!(!is_refused(Binding::listening(other, Options::None)));
        }
    });
}

/// Why probing 127.0.0.1 alone is not enough.
#[test]
fn a_probe_of_one_address_misses_holders_of_others() {
    in_network_namespace(|| {
        let probe = Binding::listening(Local::LOOPBACK_V4, Options::None);
        let other = Local {
            address: OTHER_V4,
            dual: false,
        };
        for holder in [other, Local::LOOPBACK_V6, Local::ALL_V6] {
            let _held = Binding::listening(holder, Options::None)
                .bind(PORT)
                .unwrap();
            assert!(!is_refused(probe), "{holder}");
        }
    });
}

/// Why a hold sets no options.
#[test]
fn a_holder_without_options_shuts_everybody_out() {
    in_network_namespace(|| {
        let _held = [
            Binding::tcp(Local::DUAL, Options::None).bind(PORT).unwrap(),
            Binding::udp(Local::DUAL, Options::None).bind(PORT).unwrap(),
        ];
        for other in Binding::every() {
            assert!(is_refused(other), "{other}");
        }
    });
}

/// Why a hold that waits for its server needs a door, and why that is RA and not RP.
#[test]
fn a_holder_with_an_option_lets_in_who_sets_it_too() {
    in_network_namespace(|| {
        let lets_in = |holder: Options| {
            let _held = Binding::tcp(Local::DUAL, holder).bind(PORT).unwrap();
            Options::ALL.map(|options| !is_refused(server(options, Local::DUAL)))
        };
        // Servers with: none, RA, RP, both.
        assert_eq!(lets_in(Options::None), [false, false, false, false]);
        assert_eq!(lets_in(Options::ReuseAddress), [false, true, false, true]);
        assert_eq!(lets_in(Options::ReusePort), [false, false, true, true]);
    });
}

#[test]
fn reuse_address_can_be_switched_on_and_off_after_bind() {
    in_network_namespace(|| {
        let holder = Binding::tcp(Local::DUAL, Options::None).bind(PORT).unwrap();
        let newcomer = server(Options::ReuseAddress, Local::DUAL);
        assert!(is_refused(newcomer));
        holder.set_reuse_address(true).unwrap();
        assert!(!is_refused(newcomer));

        // Two that have bound while it was on; one listens.
        let bound = Binding::tcp(Local::DUAL, Options::ReuseAddress);
        let (listening, late) = (bound.bind(PORT).unwrap(), bound.bind(PORT).unwrap());
        listening.listen(1).unwrap();
        holder.set_reuse_address(false).unwrap();
        assert!(late.listen(1).is_err(), "the other has the port");
        assert!(is_refused(newcomer));
    });
}

#[test]
fn a_server_that_has_not_listened_when_the_holder_switches_reuse_address_off_cannot() {
    in_network_namespace(|| {
        let holder = Binding::tcp(Local::DUAL, Options::None).bind(PORT).unwrap();
        holder.set_reuse_address(true).unwrap();
        let bound = Binding::tcp(Local::DUAL, Options::ReuseAddress);
        let late = bound.bind(PORT).unwrap();
        holder.set_reuse_address(false).unwrap();
        assert!(late.listen(1).is_err());
    });
}

/// Beside an exclusive holder, a socket with both options makes the kernel remember that the port
/// is shared, and let others with RP pass unchecked. How to make it forget.
#[test]
fn a_bind_with_reuse_address_alone_shuts_out_reuse_port_again() {
    in_network_namespace(|| {
        for visitor in Local::EVERY {
            let holder = Binding::tcp(Local::DUAL, Options::None).bind(PORT).unwrap();
            holder.set_reuse_address(true).unwrap();
            drop(server(Options::Both, visitor).bind(PORT).unwrap());
            drop(
                Binding::tcp(Local::DUAL, Options::ReuseAddress)
                    .bind(PORT)
                    .unwrap(),
            );
            holder.set_reuse_address(false).unwrap();
            for other in Binding::every().filter(|other| other.kind == Kind::Tcp) {
                assert!(is_refused(other), "{other} after {visitor}");
            }
        }
    });
}

/// Why the UDP socket of a hold never sets RA, and closes when the door opens.
#[test]
fn the_kernel_itself_gives_away_a_udp_port_held_with_reuse_address() {
    in_network_namespace(|| {
        set_ephemeral_range(PORT..=PORT);
        let shared = Binding::udp(Local::ALL_V4, Options::ReuseAddress);
        let _held = shared.bind(PORT).unwrap();
        let given: Socket = shared.bind(0).unwrap();
        assert_eq!(port_of(&given), PORT);
    });
}

/// Why there is a second pass, and why its probe sets RA.
#[test]
fn a_port_in_time_wait_is_for_servers_that_set_reuse_address_as_its_own_did() {
    in_network_namespace(|| {
        leave_in_time_wait(PORT, Options::ReuseAddress);
        assert!(is_refused(server(Options::None, Local::DUAL)));
        assert!(is_refused(server(Options::ReusePort, Local::DUAL)));
        assert!(!is_refused(server(Options::ReuseAddress, Local::DUAL)));
    });
}

#[test]
fn a_port_in_time_wait_is_for_nobody_if_its_server_set_no_option() {
    in_network_namespace(|| {
        leave_in_time_wait(PORT, Options::None);
        for options in Options::ALL {
            assert!(is_refused(server(options, Local::DUAL)), "{options}");
        }
    });
}
