//! Servers as people have them, from distributions and registries, unmodified.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use socket2::SockRef;

/// How long an answer may take before it is asked for again.
const PATIENCE: Duration = Duration::from_secs(5);

const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

/// A server: how it is started, and how it is known.
#[derive(Debug)]
pub struct Server {
    /// What people call it.
    pub name: &'static str,
    /// The programs that it takes, found by PATH and in a few folders besides.
    programs: &'static [&'static str],
    /// Whether it does not run for root.
    refuses_root: bool,
    /// Whether it sets SO_REUSEPORT.
    pub(super) shares: bool,
    /// Makes what it needs in a folder, and returns its command line, with `{}` for the port.
    prepare: fn(&Path) -> Vec<String>,
    /// Where it is asked what only it can answer.
    questions: &'static [Question],
}

#[derive(Debug)]
struct Question {
    address: IpAddr,
    is_udp: bool,
    text: &'static [u8],
    /// A part of the answer.
    answer: &'static str,
}

const fn tcp(address: IpAddr, text: &'static [u8], answer: &'static str) -> Question {
    Question {
        address,
        is_udp: false,
        text,
        answer,
    }
}

const fn http(address: IpAddr, answer: &'static str) -> Question {
    tcp(address, b"GET / HTTP/1.0\r\n\r\n", answer)
}

/// All of them.
pub const SERVERS: &[Server] = &[
    Server {
        name: "redis",
        programs: &["redis-server"],
        refuses_root: false,
        shares: false,
        prepare: |folder| {
            let folder = folder
                .to_str()
                .expect("a temporary folder has a plain name");
            words("redis-server --port {} --save --appendonly no --bind 127.0.0.1 ::1 --dir")
                .chain([folder.to_owned()])
                .collect()
        },
        questions: &[tcp(V4, b"PING\r\n", "+PONG"), tcp(V6, b"PING\r\n", "+PONG")],
    },
    Server {
        name: "postgresql",
        programs: &["initdb", "postgres"],
        refuses_root: true,
        shares: false,
        prepare: prepare_postgresql,
        // A request for TLS: `S` or `N` is the whole answer.
        questions: &[
            tcp(V4, &[0, 0, 0, 8, 4, 210, 22, 47], "N"),
            tcp(V6, &[0, 0, 0, 8, 4, 210, 22, 47], "N"),
        ],
    },
    Server {
        name: "nginx",
        programs: &["nginx"],
        refuses_root: false,
        shares: false,
        prepare: |folder| prepare_nginx(folder, ""),
        questions: &[http(V4, "Server: nginx"), http(V6, "Server: nginx")],
    },
    Server {
        name: "nginx reuseport",
        programs: &["nginx"],
        refuses_root: false,
        shares: true,
        prepare: |folder| prepare_nginx(folder, " reuseport"),
        questions: &[http(V4, "Server: nginx"), http(V6, "Server: nginx")],
    },
    Server {
        name: "memcached",
        programs: &["memcached"],
        refuses_root: false,
        shares: false,
        prepare: |_| {
            let user = if may_become_nobody() {
                "nobody"
            } else {
                "root"
            };
            words(&format!(
                "memcached -p {{}} -U {{}} -l 127.0.0.1,::1 -u {user}"
            ))
            .collect()
        },
        questions: &[
            tcp(V4, b"version\r\n", "VERSION"),
            tcp(V6, b"version\r\n", "VERSION"),
            Question {
                address: V4,
                is_udp: true,
                text: b"\0\x01\0\0\0\x01\0\0version\r\n",
                answer: "VERSION",
            },
        ],
    },
    Server {
        name: "node http",
        programs: &["node"],
        refuses_root: false,
        shares: false,
        prepare: |_| {
            let script = "require('http').createServer((_, answer) => answer.end('from node'))\
                          .listen(+process.argv[1])";
            ["node", "-e", script, "{}"].map(str::to_owned).into()
        },
        questions: &[http(V4, "from node"), http(V6, "from node")],
    },
    Server {
        name: "python http.server",
        programs: &["python3"],
        refuses_root: false,
        shares: false,
        prepare: |_| words("python3 -m http.server {} --bind 127.0.0.1").collect(),
        questions: &[http(V4, "Server: SimpleHTTP")],
    },
    Server {
        name: "python socketserver",
        programs: &["python3"],
        refuses_root: false,
        shares: false,
        // Without SO_REUSEADDR, as it comes.
        prepare: |_| {
            let script = "
import socketserver, sys

class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        self.rfile.readline()
        self.wfile.write(b'from socketserver')

socketserver.TCPServer(('', int(sys.argv[1])), Handler).serve_forever()
";
            ["python3", "-c", script, "{}"].map(str::to_owned).into()
        },
        questions: &[tcp(V4, b"hello\n", "from socketserver")],
    },
    Server {
        name: "java http",
        programs: &["javac", "java"],
        refuses_root: false,
        shares: false,
        prepare: prepare_java,
        questions: &[http(V4, "from java"), http(V6, "from java")],
    },
    Server {
        name: "go net/http",
        programs: &["go"],
        refuses_root: false,
        shares: false,
        prepare: prepare_go,
        questions: &[http(V4, "from go"), http(V6, "from go")],
    },
];

impl Server {
    /// Returns why it cannot run here, if it cannot.
    pub fn obstacle(&self) -> Option<String> {
        let missing = self.programs.iter().find(|program| find(program).is_none());
        match missing {
            Some(program) => Some(format!("there is no `{program}` here")),
            None if self.refuses_root && is_root() && !may_become_nobody() => {
                Some("it refuses root, and root here may not become another user".to_owned())
            }
            None => None,
        }
    }

    /// Makes what it needs in `folder`, and returns its command line, with `{}` for the port.
    pub fn prepare(&self, folder: &Path) -> Vec<String> {
        let mut line = (self.prepare)(folder);
        if let Some(program) = find(&line[0]) {
            line[0] = program;
        }
        line
    }

    /// Asks the server on `port`: all that it should answer, at each of its addresses.
    ///
    /// # Errors
    ///
    /// What a socket reports, or that somebody else has answered.
    pub fn is_up(&self, port: u16) -> io::Result<()> {
        self.questions.iter().try_for_each(|it| it.ask(port))
    }
}

impl Question {
    fn ask(&self, port: u16) -> io::Result<()> {
        let server = SocketAddr::new(self.address, port);
        let mut answer = Vec::new();
        if self.is_udp {
            let socket = UdpSocket::bind((self.address, 0))?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.connect(server)?;
            socket.send(self.text)?;
            answer.resize(1500, 0);
            let length = socket.recv(&mut answer)?;
            answer.truncate(length);
        } else {
            let mut stream = TcpStream::connect(server)?;
            // Reset when it closes: a server without SO_REUSEADDR could not be started again beside
            // what would remain in TIME-WAIT.
            SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(self.text)?;
            let mut part = [0; 1500];
            while !self.is_in(&answer) {
                match stream.read(&mut part)? {
                    0 => break,
                    length => answer.extend(&part[..length]),
                }
            }
        }
        if self.is_in(&answer) {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&answer).into_owned();
        Err(io::Error::other(format!("{server} answers `{text}`")))
    }

    fn is_in(&self, answer: &[u8]) -> bool {
        String::from_utf8_lossy(answer).contains(self.answer)
    }
}

fn words(text: &str) -> impl Iterator<Item = String> {
    text.split(' ').map(str::to_owned)
}

/// Returns the path of a program: by PATH, or where Debian keeps what is not in it.
fn find(program: &str) -> Option<String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<_> = std::env::split_paths(&path).collect();
    folders.extend(["/usr/sbin", "/usr/lib/go/bin"].map(Into::into));
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    folders.extend(versions.filter_map(|entry| Some(entry.ok()?.path().join("bin"))));
    folders
        .into_iter()
        .map(|folder| folder.join(program))
        .find(|path| path.is_file())
        .and_then(|path| path.to_str().map(str::to_owned))
}

fn run(command: &mut Command) {
    let output = command.output().expect("the program is here");
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Tells whether we are root, and not by name only, as in a user namespace of an ordinary user's.
fn may_become_nobody() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let knows_nobody = |line: &str| {
        let numbers: Vec<u32> = line.split_whitespace().flat_map(str::parse).collect();
        matches!(numbers[..], [first, _, count] if (first..=first.saturating_add(count - 1)).contains(&NOBODY))
    };
    is_root() && map.lines().any(knows_nobody)
}

const NOBODY: u32 = 65_534;

fn prepare_postgresql(folder: &Path) -> Vec<String> {
    let found = |program| find(program).expect("it is not missing");
    let data = folder.join("data");
    fs::create_dir(&data).expect("the folder is ours");
    let mut wrapper: Vec<String> = Vec::new();
    if is_root() {
        let user = format!("setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups --");
        wrapper.extend(words(&user));
        // Every user may enter; the data is the server's.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(folder, open).expect("the folder is ours");
        std::os::unix::fs::chown(&data, Some(NOBODY), Some(NOBODY)).expect("we are root");
    }
    let data = data.to_str().expect("a temporary folder has a plain name");
    let initdb = [&wrapper[..], &[found("initdb")], &[data.to_owned()]].concat();
    let options = [
        "--no-sync",
        "--auth=trust",
        "--username=postgres",
        "--no-instructions",
    ];
    run(Command::new(&initdb[0])
        .args(&initdb[1..])
        .args(options)
        .current_dir("/"));
    let server = format!(
        "{} -D {data} -k {data} -p {{}} -c listen_addresses=127.0.0.1,::1 -c fsync=off",
        found("postgres")
    );
    wrapper.into_iter().chain(words(&server)).collect()
}

fn prepare_nginx(folder: &Path, option: &str) -> Vec<String> {
    let root = folder.display();
    let user = if may_become_nobody() {
        "nobody nogroup"
    } else {
        "root root"
    };
    // The port is not known yet: the shell that starts it writes it into the file.
    let template = format!(
        "daemon off; user {user}; worker_processes 2; pid {root}/pid; error_log stderr;\n\
         events {{}}\n\
         http {{\n\
         access_log off;\n\
         client_body_temp_path {root}/a; proxy_temp_path {root}/b; fastcgi_temp_path {root}/c;\n\
         uwsgi_temp_path {root}/d; scgi_temp_path {root}/e;\n\
         server {{ listen 0.0.0.0:PORT{option}; listen [::]:PORT{option}; return 200 hello; }}\n\
         }}\n"
    );
    fs::write(folder.join("template"), template).expect("the folder is ours");
    let nginx = find("nginx").expect("it is not missing");
    let script = format!(
        "sed \"s/PORT/$1/g\" {root}/template > {root}/conf; \
         exec {nginx} -p {root} -e stderr -c {root}/conf"
    );
    ["sh", "-c", &script, "sh", "{}"].map(str::to_owned).into()
}

fn prepare_java(folder: &Path) -> Vec<String> {
    let source = folder.join("Hello.java");
    let text = "
        import com.sun.net.httpserver.HttpServer;
        import java.net.InetSocketAddress;

        public class Hello {
            public static void main(String[] arguments) throws Exception {
                int port = Integer.parseInt(arguments[0]);
                HttpServer server = HttpServer.create(new InetSocketAddress(port), 0);
                server.createContext(\"/\", exchange -> {
                    byte[] text = \"from java\".getBytes();
                    exchange.sendResponseHeaders(200, text.length);
                    exchange.getResponseBody().write(text);
                    exchange.close();
                });
                server.start();
            }
        }
    ";
    fs::write(&source, text).expect("the folder is ours");
    let folder = folder
        .to_str()
        .expect("a temporary folder has a plain name");
    run(Command::new("javac").args(["-d", folder]).arg(source));
    [
        "java",
        "-XX:TieredStopAtLevel=1",
        "-Xshare:auto",
        "-cp",
        folder,
        "Hello",
        "{}",
    ]
    .map(str::to_owned)
    .into()
}

fn prepare_go(folder: &Path) -> Vec<String> {
    let source = folder.join("hello.go");
    let text = "
        package main

        import (
            \"fmt\"
            \"net/http\"
            \"os\"
        )

        func main() {
            http.HandleFunc(\"/\", func(answer http.ResponseWriter, _ *http.Request) {
                fmt.Fprint(answer, \"from go\")
            })
            fmt.Println(http.ListenAndServe(\":\"+os.Args[1], nil))
            os.Exit(1)
        }
    ";
    fs::write(&source, text).expect("the folder is ours");
    let program = folder.join("hello");
    let go = find("go").expect("it is not missing");
    let mut build = Command::new(go);
    build.args(["build", "-o"]).arg(&program).arg(source);
    // Nothing is fetched: the standard library is all that it takes.
    run(build
        .env("GO111MODULE", "off")
        .env("GOFLAGS", "")
        .current_dir(folder));
    let program = program
        .to_str()
        .expect("a temporary folder has a plain name");
    [program, "{}"].map(str::to_owned).into()
}
