//! How a command is told its ports: by name, in its environment and its arguments.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::str::FromStr;

/// The name of a port: letters, digits, `-`, and `_`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Name(String);

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if !text.is_empty() && text.bytes().all(is_of_name) {
            Ok(Self(text.to_owned()))
        } else {
            Err("a name is made of letters, digits, `-`, and `_`".to_owned())
        }
    }
}

fn is_of_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_'
}

/// The ports of a command, each with its name.
#[derive(Debug)]
pub(crate) struct NamedPorts(Vec<(Name, u16)>);

impl NamedPorts {
    /// Gives each of `ports` its name. Those without are called by their numbers from 1.
    pub(crate) fn new(names: &[Name], ports: &[u16]) -> Self {
        let numbers = (1..).map(|number: usize| Name(number.to_string()));
        let names = names.iter().cloned().chain(numbers);
        Self(names.zip(ports.iter().copied()).collect())
    }

    /// Returns two of `names` that would be one variable, if there are such.
    pub(crate) fn clash(names: &[Name]) -> Option<(&str, &str)> {
        names.iter().enumerate().find_map(|(index, name)| {
            let other = names[..index]
                .iter()
                .find(|other| other.variable() == name.variable())?;
            Some((other.0.as_str(), name.0.as_str()))
        })
    }

    pub(crate) fn ports(&self) -> impl Iterator<Item = u16> + '_ {
        self.0.iter().map(|&(_, port)| port)
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| name.0.as_str())
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, u16)> {
        self.0.iter().map(|(name, port)| (name.0.as_str(), *port))
    }

    /// Returns the variables that say the ports.
    pub(crate) fn environment(&self) -> impl Iterator<Item = (String, String)> + '_ {
        let first = self.0.first().map(|(_, port)| ("PORT".to_owned(), *port));
        let named = self.0.iter().map(|(name, port)| (name.variable(), *port));
        first
            .into_iter()
            .chain(named)
            .map(|(variable, port)| (variable, port.to_string()))
    }

    /// Returns `argument` with the ports in place of `{}` and `{name}`. Other braces stay.
    pub(crate) fn replace(&self, argument: &OsStr) -> OsString {
        let mut rest = argument.as_bytes();
        let mut replaced = Vec::with_capacity(rest.len());
        while let Some(open) = rest.iter().position(|&byte| byte == b'{') {
            let (before, from_brace) = rest.split_at(open);
            replaced.extend(before);
            let inside = &from_brace[1..];
            // No further than a name goes: a long argument of open braces would take seconds.
            let name = inside.iter().take_while(|byte| is_of_name(**byte)).count();
            let port = match inside.get(name) {
                Some(b'}') => self.port(&inside[..name]),
                _ => None,
            };
            rest = match port {
                Some(port) => {
                    replaced.extend(port.to_string().bytes());
                    &inside[name + 1..]
                }
                None => {
                    replaced.push(b'{');
                    inside
                }
            };
        }
        replaced.extend(rest);
        OsString::from_vec(replaced)
    }

    fn port(&self, name: &[u8]) -> Option<u16> {
        self.0
            .iter()
            .find(|(known, _)| name.is_empty() || known.0.as_bytes() == name)
            .map(|&(_, port)| port)
    }
}

impl Name {
    fn variable(&self) -> String {
        format!("PORT_{}", self.0.to_ascii_uppercase().replace('-', "_"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(texts: &[&str]) -> Vec<Name> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn names_are_plain() {
        for text in ["", "a b", "a=b", "é", "{x}", "a/b"] {
            assert!(text.parse::<Name>().is_err(), "{text}");
        }
    }

    #[test]
    fn names_that_would_be_one_variable_are_found() {
        assert_eq!(NamedPorts::clash(&names(&["a", "b"])), None);
        assert_eq!(NamedPorts::clash(&names(&["a", "A"])), Some(("a", "A")));
        assert_eq!(
            NamedPorts::clash(&names(&["x", "a-b", "a_b"])),
            Some(("a-b", "a_b"))
        );
    }

    #[test]
    fn the_environment_says_the_ports() {
        let ports = NamedPorts::new(&names(&["http", "my-db"]), &[20_001, 20_002]);
        let text = |(variable, value)| format!("{variable}={value}");
        assert_eq!(
            ports.environment().map(text).collect::<Vec<_>>(),
            ["PORT=20001", "PORT_HTTP=20001", "PORT_MY_DB=20002"]
        );
        let ports = NamedPorts::new(&[], &[7, 8]);
        assert_eq!(
            ports.environment().map(text).collect::<Vec<_>>(),
            ["PORT=7", "PORT_1=7", "PORT_2=8"]
        );
    }

    #[test]
    fn braces_are_replaced_where_they_mean_a_port() {
        let ports = NamedPorts::new(&names(&["http", "db"]), &[81, 82]);
        for (argument, replaced) in [
            ("{}", "81"),
            ("{http}:{db}/{}", "81:82/81"),
            ("{other} {http", "{other} {http"),
            ("{{db}}", "{82}"),
            ("{\"a\": {}}", "{\"a\": 81}"),
            ("", ""),
        ] {
            assert_eq!(ports.replace(OsStr::new(argument)), replaced, "{argument}");
        }
        let bytes = OsStr::from_bytes(b"\xff{}\xfe");
        assert_eq!(ports.replace(bytes).as_bytes(), b"\xff81\xfe");
        // As long as an argument can be.
        let open = "{".repeat(128 * 1024);
        assert_eq!(ports.replace(OsStr::new(&open)), &*open);
    }
}
