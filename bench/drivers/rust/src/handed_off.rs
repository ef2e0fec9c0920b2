//! `portpicker run`: each port is that of a program of its own, which it is handed to.

use std::collections::HashMap;
use std::env;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use socket2::{Domain, Protocol, Socket, Type};

use crate::{How, Result, Tool};

/// Runs a program below `portpicker run` for each pick. The time of a pick is that until the program
/// has its port.
pub(crate) struct Runner {
    portpicker: String,
    programs: HashMap<u16, Program>,
}

/// A program that has its port, and waits for the word to bind it.
struct Program {
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Runner {
    /// Returns the runner that uses this command.
    pub(crate) fn new(arguments: &[String]) -> Result<Self> {
        let [portpicker] = arguments else {
            return Err("run what?".into());
        };
        Ok(Self {
            portpicker: portpicker.clone(),
            programs: HashMap::new(),
        })
    }

    fn start(&self) -> Result<(u16, Program)> {
        let mut process = Command::new(&self.portpicker)
            .args(["run", "--"])
            .arg(env::current_exe()?)
            .arg("server")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut program = Program {
            input: process.stdin.take().ok_or("no input")?,
            output: BufReader::new(process.stdout.take().ok_or("no output")?),
            process,
        };
        let port = program.read()?.parse()?;
        Ok((port, program))
    }
}

impl Tool for Runner {
    fn pick(&mut self) -> Option<u16> {
        let (port, program) = self.start().ok()?;
        self.programs.insert(port, program);
        Some(port)
    }

    fn bind(&mut self, port: u16, how: How) -> bool {
        let told = |mut program: Program| program.tell(how).unwrap_or(false);
        self.programs.remove(&port).is_some_and(told)
    }
}

impl Program {
    /// Has it bind its port, and returns whether it could. Then it ends.
    fn tell(&mut self, how: How) -> Result<bool> {
        writeln!(self.input, "{}", how.word())?;
        let answer = self.read()?;
        self.process.wait()?;
        Ok(answer == "bound")
    }

    fn read(&mut self) -> Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }
}

/// Is the program: says its port, binds it when it is told to, and says whether it could.
pub(crate) fn serve() -> Result<()> {
    let port = env::var("PORT")?;
    println!("{port}");
    let Some(how) = io::stdin().lines().next() else {
        return Ok(()); // whoever wanted the port has ended
    };
    let how = How::from_word(&how?)?;
    let is_bound = bind(port.parse()?, how).is_ok();
    println!("{}", if is_bound { "bound" } else { "refused" });
    Ok(())
}

fn bind(port: u16, how: How) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(matches!(how, How::Reuse))?;
    socket.bind(&SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port).into())?;
    socket.listen(16)?;
    Ok(socket)
}
