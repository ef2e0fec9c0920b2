//! The crates that pick ports, each by the call that its documentation shows first.

use std::collections::HashMap;
use std::net::{Ipv4Addr, TcpListener};
use std::ops::RangeInclusive;

use openport::PortReservation;
use portpicker::{Hold, Picker};
use reserve_port::ReservedPort;

use crate::{How, Result, Tool};

/// Returns the tool called `name`. Those that can be given a range pick from `range`, if there is one.
pub(crate) fn tool(name: &str, range: Option<&str>) -> Result<Box<dyn Tool>> {
    let range = range.map(parse_range).transpose()?;
    Ok(match name {
        "lease" => Box::new(Call(|| portpicker::pick_unused_port().ok())),
        "hold" => Box::new(Holds(HashMap::new())),
        "by-hand" => Box::new(Call(any_port)),
        "portpicker-rs" => Box::new(Call(portpicker_rs::pick_unused_port)),
        "openport" => Box::new(Call(openport::pick_random_unused_port)),
        "openport-reservation" => Box::new(Reservation(match range {
            // The crate's type has an exclusive end.
            Some(range) => PortReservation::new(*range.start()..range.end().saturating_add(1)),
            None => PortReservation::default(),
        })),
        "port-selector" => Box::new(Call(port_selector::random_free_port)),
        "reserve-port" => Box::new(Guards(Vec::new())),
        "reserve-port-tcp" => Box::new(Listeners(HashMap::new())),
        _ => return Err(format!("there is no tool `{name}`").into()),
    })
}

fn parse_range(text: &str) -> Result<RangeInclusive<u16>> {
    let (first, last) = text.split_once('-').ok_or("a range is FIRST-LAST")?;
    Ok(first.parse()?..=last.parse()?)
}

/// A function that keeps what it has to keep by itself.
struct Call(fn() -> Option<u16>);

impl Tool for Call {
    fn pick(&mut self) -> Option<u16> {
        self.0()
    }
}

/// What most people write by hand.
fn any_port() -> Option<u16> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    Some(listener.local_addr().ok()?.port())
}

/// This project's holds.
struct Holds(HashMap<u16, Hold>);

impl Tool for Holds {
    fn pick(&mut self) -> Option<u16> {
        let hold = Picker::new().hold().ok()?;
        let port = hold.port();
        self.0.insert(port, hold);
        Some(port)
    }

    fn bind(&mut self, port: u16, how: How) -> bool {
        let Some(mut hold) = self.0.remove(&port) else {
            return false;
        };
        match how {
            How::Plain => hold.listen(16).is_ok(),
            // std's listener sets the option.
            How::Reuse => {
                hold.open_door().is_ok() && TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok()
            }
        }
    }
}

struct Reservation(PortReservation);

impl Tool for Reservation {
    fn pick(&mut self) -> Option<u16> {
        self.0.reserve_port()
    }
}

struct Guards(Vec<ReservedPort>);

impl Tool for Guards {
    fn pick(&mut self) -> Option<u16> {
        let guard = ReservedPort::random().ok()?;
        let port = guard.port();
        self.0.push(guard);
        Some(port)
    }
}

/// Guards with the listener that comes with them, which is the server.
struct Listeners(HashMap<u16, (ReservedPort, TcpListener)>);

impl Tool for Listeners {
    fn pick(&mut self) -> Option<u16> {
        let (guard, listener) = ReservedPort::random_with_tcp(Ipv4Addr::UNSPECIFIED).ok()?;
        let port = guard.port();
        self.0.insert(port, (guard, listener));
        Some(port)
    }

    fn bind(&mut self, port: u16, _how: How) -> bool {
        self.0.remove(&port).is_some()
    }
}
