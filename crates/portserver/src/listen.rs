//! Where the server listens: addresses, and how they are taken.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{SocketAddr as UnixAddress, UnixListener, UnixStream};
use std::path::{self, Path, PathBuf};
use std::str::FromStr;

use socket2::{Domain, SockAddr, Socket, Type};
use tracing::{info, warn};

/// As many connections may wait to be accepted as the kernel allows (`net.core.somaxconn`).
const BACKLOG: i32 = i32::MAX;

/// An address to listen at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A name in the abstract namespace, written `@name`.
    Abstract(String),
    /// The path of a Unix socket.
    Path(PathBuf),
    /// A TCP port on the loopback addresses, for clients that know no Unix sockets.
    Loopback(u16),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Abstract(name) => write!(f, "@{name}"),
            Self::Path(path) => path.display().fmt(f),
            Self::Loopback(port) => write!(f, "localhost:{port}"),
        }
    }
}

impl FromStr for Address {
    type Err = portpicker::ParseServerAddressError;

    /// Reads `@name` or a path.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let address: portpicker::ServerAddress = text.parse()?;
        Ok(match address.to_string().strip_prefix('@') {
            Some(name) => Self::Abstract(name.to_owned()),
            None => Self::Path(text.into()),
        })
    }
}

/// Who may connect to the path of a socket.
#[derive(Clone, Copy, Debug)]
pub struct Access {
    /// Permission bits: to connect takes the permission to write.
    pub mode: u32,
    /// The owner's user id; unchanged if there is none.
    pub user: Option<u32>,
    /// The group's id; unchanged if there is none.
    pub group: Option<u32>,
}

impl Default for Access {
    /// Everybody: as in the abstract namespace, where there are no permissions.
    fn default() -> Self {
        Self {
            mode: 0o666,
            user: None,
            group: None,
        }
    }
}

/// A socket that listens already: from systemd, for example.
#[derive(Debug)]
#[non_exhaustive]
pub enum Inherited {
    /// A Unix socket. Its file, if it has one, is not removed when the server ends.
    Unix(UnixListener),
    /// A TCP socket.
    Tcp(TcpListener),
}

impl Inherited {
    /// Returns where the socket listens, as people write it.
    ///
    /// # Errors
    ///
    /// [`io::Error`] if the system does not say.
    pub fn address(&self) -> io::Result<String> {
        Ok(match self {
            Self::Unix(listener) => {
                let address = listener.local_addr()?;
                match (address.as_pathname(), address.as_abstract_name()) {
                    (Some(path), _) => path.display().to_string(),
                    (None, Some(name)) => format!("@{}", name.escape_ascii()),
                    (None, None) => "an unnamed socket".to_owned(),
                }
            }
            Self::Tcp(listener) => listener.local_addr()?.to_string(),
        })
    }
}

impl TryFrom<OwnedFd> for Inherited {
    type Error = io::Error;

    /// Takes a socket that listens, of a family that the server serves.
    fn try_from(descriptor: OwnedFd) -> io::Result<Self> {
        let socket = Socket::from(descriptor);
        let not_this = |what| Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        if socket.r#type()? != Type::STREAM || !socket.is_listener()? {
            return not_this("it is not a stream socket that listens");
        }
        match socket.domain()? {
            Domain::UNIX => Ok(Self::Unix(OwnedFd::from(socket).into())),
            Domain::IPV4 | Domain::IPV6 => Ok(Self::Tcp(OwnedFd::from(socket).into())),
            _ => not_this("it is neither a Unix nor a TCP socket"),
        }
    }
}

/// A socket that listens.
#[derive(Debug)]
pub(crate) enum Listener {
    Unix {
        listener: UnixListener,
        path: Option<SocketFile>,
    },
    Tcp(TcpListener),
}

impl From<Inherited> for Listener {
    fn from(inherited: Inherited) -> Self {
        match inherited {
            Inherited::Unix(listener) => Self::Unix {
                listener,
                path: None,
            },
            Inherited::Tcp(listener) => {
                if !listener
                    .local_addr()
                    .is_ok_and(|address| address.ip().is_loopback())
                {
                    warn!("clients of other hosts can connect to the TCP socket");
                }
                Self::Tcp(listener)
            }
        }
    }
}

/// The file of a socket, removed when the server ends.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    inode: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Not if another server has put its own there.
        if fs::symlink_metadata(&self.path).is_ok_and(|data| (data.dev(), data.ino()) == self.inode)
        {
            _ = fs::remove_file(&self.path);
        }
    }
}

/// Listens at `address`; at two sockets, if that is one for IPv4 and one for IPv6.
pub(crate) fn listen(address: &Address, access: Access) -> io::Result<Vec<Listener>> {
    match address {
        Address::Abstract(name) => {
            let listener = UnixListener::bind_addr(&UnixAddress::from_abstract_name(name)?)?;
            info!("listening at @{name}");
            Ok(vec![Listener::Unix {
                listener,
                path: None,
            }])
        }
        Address::Path(path) => {
            let listener = listen_at_path(path, access)?;
            info!("listening at {}", path.display());
            Ok(vec![listener])
        }
        Address::Loopback(port) => {
            let v4 = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, *port)))?;
            let port = v4.local_addr()?.port();
            let mut listeners = vec![Listener::Tcp(v4)];
            match TcpListener::bind(SocketAddr::from((Ipv6Addr::LOCALHOST, port))) {
                Ok(v6) => listeners.push(Listener::Tcp(v6)),
                // A host without IPv6, or with its addresses switched off.
                Err(err) if err.kind() == io::ErrorKind::AddrNotAvailable => {}
                Err(err)
                    if err.raw_os_error()
                        == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error()) => {}
                Err(err) => return Err(err),
            }
            info!("listening at localhost:{port}");
            Ok(listeners)
        }
    }
}

/// Listens at a path. A socket file that nobody listens at is replaced, any other file is not.
fn listen_at_path(path: &Path, access: Access) -> io::Result<Listener> {
    // Two servers that start at once must not take each other's new socket for a stale one.
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let starting = File::open(folder)?;
    starting.lock()?;
    match fs::symlink_metadata(path) {
        Ok(data) if data.file_type().is_socket() => match UnixStream::connect(path) {
            Err(err) if err.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)?,
            _ => return Err(in_use("another server listens there")),
        },
        Ok(_) => return Err(in_use("there is a file, and it is not a socket")),
        Err(err) if err.kind() == io::ErrorKind::NotFound => {}
        Err(err) => return Err(err),
    }
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.bind(&SockAddr::unix(path)?)?;
    let data = fs::symlink_metadata(path)?;
    let file = SocketFile {
        // The working directory may be another one at the end.
        path: path::absolute(path)?,
        inode: (data.dev(), data.ino()),
    };
    std::os::unix::fs::chown(path, access.user, access.group)?;
    fs::set_permissions(path, fs::Permissions::from_mode(access.mode))?;
    // Only now: before, whoever the umask lets in could connect.
    socket.listen(BACKLOG)?;
    Ok(Listener::Unix {
        listener: OwnedFd::from(socket).into(),
        path: Some(file),
    })
}

fn in_use(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::AddrInUse, reason)
}
