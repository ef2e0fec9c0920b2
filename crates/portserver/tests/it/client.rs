//! Clients that send what a test says, byte for byte, and processes that own ports.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::process::{Child, ChildStdin, Command, Stdio};

use portpicker::ServerAddress;
use serde_json::Value;

use crate::LONG;

/// A connection to a server.
#[derive(Debug)]
pub(crate) struct Client {
    stream: UnixStream,
    reader: BufReader<UnixStream>,
}

impl Client {
    pub(crate) fn connect(address: &ServerAddress) -> Self {
        Self::try_connect(address).unwrap()
    }

    pub(crate) fn try_connect(address: &ServerAddress) -> std::io::Result<Self> {
        let text = address.to_string();
        let stream = match text.strip_prefix('@') {
            Some(name) => UnixStream::connect_addr(&SocketAddr::from_abstract_name(name)?)?,
            None => UnixStream::connect(text)?,
        };
        stream.set_read_timeout(Some(LONG))?;
        stream.set_write_timeout(Some(LONG))?;
        let reader = BufReader::new(stream.try_clone()?);
        Ok(Self { stream, reader })
    }

    /// Sends bytes, as one write if the server reads.
    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        self.stream.write_all(bytes.as_ref()).unwrap();
        self
    }

    /// Sends bytes; the server may have closed.
    pub(crate) fn try_send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Says that nothing more will come.
    pub(crate) fn half_close(&mut self) -> &mut Self {
        self.stream.shutdown(Shutdown::Write).unwrap();
        self
    }

    /// Says that nothing more will come; the server may have closed.
    pub(crate) fn try_half_close(&mut self) -> std::io::Result<()> {
        self.stream.shutdown(Shutdown::Write)
    }

    /// Returns another handle to write to the connection, for another thread.
    pub(crate) fn writer(&self) -> UnixStream {
        self.stream.try_clone().unwrap()
    }

    /// Reads until the server closes. Hanging up on bytes that it has not read is closing too.
    pub(crate) fn end(&mut self) -> Vec<u8> {
        self.try_end().unwrap()
    }

    pub(crate) fn try_end(&mut self) -> std::io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        match self.reader.read_to_end(&mut bytes) {
            Err(err) if err.kind() != ErrorKind::ConnectionReset => Err(err),
            _ => Ok(bytes),
        }
    }

    /// Reads the next line of the extended protocol.
    pub(crate) fn answer(&mut self) -> Value {
        let mut line = String::new();
        self.reader.read_line(&mut line).unwrap();
        assert!(line.ends_with('\n'), "the server has closed: `{line}`");
        serde_json::from_str(&line).unwrap()
    }

    /// Sends one line, and reads one.
    pub(crate) fn tell(&mut self, line: &str) -> Value {
        assert!(!line.contains('\n'));
        self.send(format!("{line}\n")).answer()
    }

    /// Sends a request that succeeds.
    pub(crate) fn ok(&mut self, line: &str) -> Value {
        let answer = self.tell(line);
        assert_eq!(answer["ok"], true, "{line}: {answer}");
        answer
    }

    /// Sends a request that fails, and returns the code.
    pub(crate) fn error(&mut self, line: &str) -> String {
        let answer = self.tell(line);
        assert_eq!(answer["ok"], false, "{line}: {answer}");
        assert!(
            answer["message"]
                .as_str()
                .is_some_and(|text| !text.is_empty())
        );
        answer["error"].as_str().unwrap().to_owned()
    }

    /// Sends a `lease` with these members, and returns the ports.
    pub(crate) fn lease(&mut self, members: &str) -> Vec<u16> {
        ports(&self.ok(&lease(members)))
    }
}

/// Returns a request for a lease with these members besides the usual.
pub(crate) fn lease(members: &str) -> String {
    let comma = if members.is_empty() { "" } else { "," };
    format!(r#"{{"v":1,"op":"lease"{comma}{members}}}"#)
}

/// Returns the ports of an answer.
pub(crate) fn ports(answer: &Value) -> Vec<u16> {
    let leases = answer["leases"].as_array();
    let leases = leases.unwrap_or_else(|| panic!("no leases: {answer}"));
    let port = |lease: &Value| u16::try_from(lease["port"].as_u64().unwrap()).unwrap();
    leases.iter().map(port).collect()
}

/// Asks for a port for `owner` by the original protocol. Every answer but a port, or nothing, is a
/// failure.
pub(crate) fn ask(address: &ServerAddress, owner: &str) -> Option<u16> {
    port(&Client::connect(address).send(format!("{owner}\n")).end())
}

/// Reads an answer of the original protocol.
pub(crate) fn port(bytes: &[u8]) -> Option<u16> {
    if bytes.is_empty() {
        return None;
    }
    let text = std::str::from_utf8(bytes).unwrap();
    let number = text.strip_suffix('\n').expect(text);
    let port = number.parse().expect(text);
    assert_eq!(format!("{port}\n"), text);
    Some(port)
}

/// A process that runs until it is killed, and owns ports.
#[derive(Debug)]
pub(crate) struct Owner(Child);

impl Owner {
    pub(crate) fn start() -> Self {
        Self::run(&mut Command::new("cat"))
    }

    /// Starts a command that ends with its input.
    pub(crate) fn run(command: &mut Command) -> Self {
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        Self(child.unwrap())
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Writes to its input.
    pub(crate) fn say(&mut self, line: &str) {
        let input = self.0.stdin.as_mut().unwrap();
        input.write_all(line.as_bytes()).unwrap();
    }

    /// Reads a line of its output.
    pub(crate) fn hear(&mut self) -> String {
        let mut line = Vec::new();
        let mut byte = [0];
        let output = self.0.stdout.as_mut().unwrap();
        while output.read(&mut byte).unwrap() > 0 && byte != *b"\n" {
            line.push(byte[0]);
        }
        String::from_utf8(line).unwrap()
    }

    /// Kills it, and reaps it.
    pub(crate) fn kill(mut self) {
        self.end();
    }

    /// Kills it, and reaps it. Its input does not end until what is returned is dropped.
    pub(crate) fn kill_and_keep_input(mut self) -> ChildStdin {
        let input = self.0.stdin.take().unwrap();
        self.end();
        input
    }

    /// Kills it and leaves it as a zombie until this is dropped.
    pub(crate) fn become_zombie(&mut self) {
        let exit = portpicker_testing::Exit::of(self.pid());
        self.0.kill().unwrap();
        exit.wait();
    }

    fn end(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.end();
    }
}
