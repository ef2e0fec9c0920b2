"""Unused network ports that stay unused: for tests, scripts, and servers.

    import portpicker

    port = portpicker.pick_unused_port()        # until this process exits

    with portpicker.lease() as lease:           # for the time of a block
        start_server(lease.port)

    with portpicker.hold() as hold:             # nobody else can bind it
        listener = hold.listen()                # a socket.socket

The numbers are unused on TCP and UDP, IPv4 and IPv6. Each function says which of these it promises;
each includes the one before:

1. *unused*: a probe said so, a moment ago.
2. *leased*: nobody on this host who picks with portpicker, in whatever language, is given the port
   until its owner ends; and the kernel gives it to nobody by itself.
3. *held*: nobody at all can bind it.
4. *handed off*: held, until the program that it is for has bound it.

Google's portpicker 1.6.0 has these as well: `pick_unused_port`, `get_port_from_port_server`, `bind`,
`is_port_free`, `return_port`, and `add_reserved_port`, their old names `PickUnusedPort` and so on, and
`NoFreePortFoundError`. They may be patched as there. `docs/compatibility.md` says what differs.
"""

from __future__ import annotations

import os
import socket
import sys
from errno import EMFILE, ENFILE
from operator import index

from portpicker import _portpicker
from portpicker._portpicker import Hold, Lease, NoFreePortFoundError, PortServerError
from portpicker._portpicker import __version__ as __version__

# Not imported from `typing`, which takes as long to import as everything here together. Type
# checkers know the name.
TYPE_CHECKING = False
if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterable, Sequence
    from ipaddress import IPv4Address, IPv6Address
    from os import PathLike
    from typing import Any, Literal, SupportsIndex, TypedDict, Union, type_check_only

    # Type checkers bring it along; nobody has to install it.
    from typing_extensions import Unpack

    _Ports = Union[str, SupportsIndex, Iterable[SupportsIndex]]
    _Word = Union[str, bytes, PathLike[str], PathLike[bytes]]
    _Command = Union[_Word, Sequence[_Word]]
    _ServerAddress = Union[str, PathLike[str], Literal[False]]

    @type_check_only
    class PickOptions(TypedDict, total=False):
        """What a pick may be asked for besides its owner and its server; see `lease`."""

        ports: _Ports | None
        exclude: _Ports | None
        prefer: SupportsIndex | Iterable[SupportsIndex] | None
        transport: Literal["tcp", "udp"] | None
        address: str | IPv4Address | IPv6Address | None
        wait: float | None
        server_timeout: float | None
        tag: str | None

    @type_check_only
    class Options(PickOptions, total=False):
        """What a pick may be asked for; see `lease`."""

        pid: SupportsIndex | None
        portserver_address: _ServerAddress | None


__all__ = [
    "Bind",
    "GetPortFromPortServer",
    "Hold",
    "IsPortFree",
    "Lease",
    "NoFreePortFoundError",
    "PickUnusedPort",
    "PortServerError",
    "add_reserved_port",
    "bind",
    "bind_port",
    "find_unused_port",
    "get_port_from_port_server",
    "hold",
    "holds",
    "is_port_free",
    "lease",
    "leases",
    "pick_unused_port",
    "pick_unused_ports",
    "popen",
    "return_port",
    "wait_listening",
]

# Callers clear these sets, look into them, and put ports of their own there. So they decide which
# port is offered next and what may be returned; `_leases` only keeps what is leased.

#: Ports that may be given out before all others.
_free_ports: set[int] = set()

#: Ports from a port server, or reserved, that may be returned.
_owned_ports: set[int] = set()

#: Ports picked without a server, that may be returned.
_random_ports: set[int] = set()

# Where it is not None, callers' tests take the system for Windows.
_winapi = None

#: The leases of the ports that were picked without a server.
_leases: dict[int, Lease] = {}

#: Ports that port servers had granted to the parents of this process when it was forked.
_parents_ports: frozenset[int] = frozenset()

# Looked up once: the module is looked at while the interpreter shuts down, too.
_modules = sys.modules

#: Python's copy of the environment, unless a test puts another in its place.
_environ = os.environ


def pick_unused_port(
    pid: int | None = None,
    portserver_address: _ServerAddress | None = None,
    **options: Unpack[PickOptions],
) -> int:
    """Pick a port that stays this process's until it ends or calls `return_port`.

    Promise 2, *leased*. In this order: a port that was returned or reserved in this process; the
    port server at `portserver_address`; the one in `PORTSERVER_ADDRESS`, read at each call; none. A
    server that fails is named on stderr, and the next way is tried.

    Args:
        pid: the process that a port server is to lease the port to. This one by default. Without a
            server, the port is always this process's.
        portserver_address: a path, or a name in the abstract namespace after an `@`. `None` and
            `""` mean no server but the one in the environment, and `False` none at all.
        options: as for `lease`. With any of them, returned and reserved ports are passed over, a
            server at `portserver_address` is the only way, and `pid` needs a server.

    Returns:
        A port that is unused on TCP and UDP, IPv4 and IPv6.

    Raises:
        NoFreePortFoundError: no port could be had; the text says what was tried.
        OSError: the system failed: too many open files, for example. Each port that is picked
            without a server takes a descriptor.
        ValueError: `PORTPICKER_PORTS` is not a set of ports.
        TypeError: `portserver_address` is not a path.
        With options, also what `lease` raises.
    """
    if options:
        return pick_unused_ports(1, pid=pid, portserver_address=portserver_address, **options)[0]
    if _free_ports:
        port = _take_free_port()
        if port is not None:
            return port
    port = _portpicker.pick_offered_port()
    if port is not None:
        _owned_ports.add(port)
        return port
    if portserver_address:
        port = get_port_from_port_server(portserver_address, pid=pid)
        if port:
            return port
    # The process's environment is asked first: to find nothing in Python's copy takes longer than
    # all else here.
    if portserver_address is not False and (
        _portpicker.environment_has_server() or os.environ is not _environ
    ):
        port = get_port_from_port_server(os.environ.get("PORTSERVER_ADDRESS"), pid=pid)
        if port:
            return port
    return _pick_unused_port_without_server()


def _pick_unused_port_without_server() -> int:
    lease = _portpicker.lease_locally()
    port = lease.port
    _leases[port] = lease
    _random_ports.add(port)
    return port


def _take_free_port() -> int | None:
    """Take a port that was returned or reserved, and is not in use."""
    others = []
    try:
        while True:
            # Popped before it is looked at: threads pick side by side.
            port = _free_ports.pop()
            others.append(port)
            if _portpicker.probe(port):
                others.remove(port)
                _owned_ports.add(port)
                return port
    except KeyError:
        return None
    finally:
        _free_ports.update(others)


def pick_unused_ports(
    count: int, contiguous: bool = False, **options: Unpack[Options]
) -> list[int]:
    """Pick `count` ports that stay this process's, all or none.

    Promise 2, *leased*. Returned and reserved ports are passed over. See `leases` for the arguments
    and the exceptions; the leases last until the process ends or calls `return_port`.
    """
    ports = []
    for lease in leases(count, contiguous, **options):
        port = lease.port
        if lease.server is None:
            _leases[port] = lease
            _random_ports.add(port)
        else:
            # The server sees when this process ends, and is not told.
            _portpicker.keep(lease)
            _owned_ports.add(port)
        ports.append(port)
    return ports


def get_port_from_port_server(
    portserver_address: str | PathLike[str] | None, pid: int | None = None
) -> int | None:
    """Ask a port server for a port, by the original protocol.

    Promise 2, *leased*, as far as that server's pool goes. What goes wrong is said on stderr. It
    waits as long as the server takes to answer; `lease` has a timeout.

    Args:
        portserver_address: a path, or a name in the abstract namespace after an `@`.
        pid: the process that is to own the port; this one by default.

    Returns:
        The port, or `None` if there is no server or it granted none.

    Raises:
        TypeError: `portserver_address` is not a path, or `pid` not a number.
    """
    if not portserver_address:
        return None
    if pid is None:
        pid = os.getpid()
    address = os.fspath(portserver_address)
    if address[0] == "@":
        address = "\0" + address[1:]
    try:
        # Python's own sockets, because callers' tests put others in their place; and of those no
        # more than these calls, which is what they know.
        server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            server.connect(address)
            server.sendall(b"%d\n" % pid)
            answer = server.recv(1024)
        finally:
            server.close()
    except OSError as error:
        print("Socket error when connecting to portserver:", error, file=sys.stderr)
        return None
    try:
        port = int(answer.split(b"\n")[0])
    except ValueError:
        port = 0
    if not 0 < port < 65536:
        print("Portserver failed to find a port.", file=sys.stderr)
        return None
    _owned_ports.add(port)
    return port


def bind(port: int, socket_type: int, socket_proto: int) -> int | None:
    """Tell whether `port` is unused for one transport, on all addresses of IPv4 and IPv6.

    Promise 1, *unused*. It is a bind of a moment, which may make another's fail: ask about others'
    ports with `is_port_free`.

    Args:
        port: the port, from 1 to 65535, or 0 to let the kernel choose one.
        socket_type: such as `socket.SOCK_STREAM`.
        socket_proto: such as `socket.IPPROTO_TCP`.

    Returns:
        The port, or `None` if it is in use, or the system lacks such sockets.

    Raises:
        OverflowError: `port` is not from 0 to 65535.
        OSError: too many open files.
    """
    probe = _unbound(socket_type, socket_proto)
    if probe is None:
        return None
    with probe:
        # No SO_REUSEADDR: with it, a port that is held, or that a UDP server uses, seems unused.
        try:
            if probe.family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            probe.bind(("", port))
            bound: int = probe.getsockname()[1]
            return bound
        except OSError:
            return None


def _unbound(socket_type: int, socket_proto: int) -> socket.socket | None:
    """Return a socket for all addresses: of IPv6 and IPv4, or of IPv4 alone without IPv6."""
    for family in (socket.AF_INET6, socket.AF_INET):
        try:
            return socket.socket(family, socket_type, socket_proto)
        except OSError as error:
            # Says nothing about the port.
            if error.errno in (EMFILE, ENFILE):
                raise
    return None


def _probe(port: int) -> int | None:
    return bind(port, socket.SOCK_STREAM, socket.IPPROTO_TCP) and bind(
        port, socket.SOCK_DGRAM, socket.IPPROTO_UDP
    )


def is_port_free(port: SupportsIndex) -> int | None:
    """Tell whether `port` is unused on TCP and UDP, IPv4 and IPv6, and leased to nobody else.

    Promise 1, *unused*: a moment later it may be somebody's. A port that this process has leased
    and not bound is free; port 0 never is.

    Args:
        port: a number from 0 to 65535, or a lease.

    Returns:
        The port if it is free, else `None`.

    Raises:
        TypeError: `port` is not a whole number.
        OverflowError: `port` is not from 0 to 65535.
        OSError: too many open files, or the lock of the port cannot be tried.
    """
    port = index(port)
    if port == 0:
        return None
    if (
        port in _owned_ports
        or port in _free_ports
        or port in _parents_ports
        or _portpicker.is_leased_here(port)
    ):
        return _probe(port)
    # Without the lock, a probe could make the bind of a lease's owner fail.
    lock = _portpicker.take_lock(port)
    if lock is None:
        return None
    with lock:
        return _probe(port)


def return_port(port: int) -> None:
    """Give back a port that this process had picked.

    A port from a server, or a reserved one, is offered to this process's next picks, and not while
    it is in use; another one may be leased by anybody. Close the sockets that are bound to the port
    first. A port that was never picked, or returned already, is only logged.
    """
    if port in _random_ports:
        _random_ports.discard(port)
        lease = _leases.pop(port, None)
        if lease is not None:
            lease.release()
    elif port in _owned_ports:
        _owned_ports.discard(port)
        _free_ports.add(port)
    else:
        # Not imported here, which costs milliseconds and fails while the interpreter shuts down. If
        # nobody else has, nobody listens.
        logging = _modules.get("logging")
        if logging is None:
            return
        if port in _free_ports:
            logging.info("Returning a port that was already returned: %s", port)
        else:
            logging.info("Returning a port that wasn't given by portpicker: %s", port)


def add_reserved_port(port: SupportsIndex) -> None:
    """Offer a port from elsewhere to the next picks of this process.

    The caller knows that the port is this process's, although somebody else may have leased it:
    the shell that started it, for example. It is not given out while it is in use.

    Args:
        port: a number from 1 to 65535, or a lease.

    Raises:
        TypeError: `port` is not a whole number.
        OverflowError: it is not from 1 to 65535.
    """
    port = index(port)
    if not 0 < port < 65536:
        raise OverflowError(f"a port must be from 1 to 65535, not {port}")
    _free_ports.add(port)


def lease(**options: Unpack[Options]) -> Lease:
    """Lease a port for the time of a `with` block, or until `release` or the garbage collector.

    Promise 2, *leased*.

    Args:
        pid: the process that a port server is to lease it to, until that exits. Only a server can
            do that for another process than this one.
        portserver_address: the server that must be asked. By default the one in
            `PORTSERVER_ADDRESS`, if it grants a port, and else none; `False` for none at all.
        ports: what to choose from: `"20000-20999,21500"`, a port, or any iterable of ports. By
            default `PORTPICKER_PORTS`, or else the ports from 10001 up that nobody else hands out
            or is known for.
        exclude: ports that are never picked, as for `ports`.
        prefer: a port, or several, that are tried first, in this order. They need not be among
            `ports`.
        transport: `"tcp"` or `"udp"` if the other does not matter.
        address: the one local address that matters, such as `"127.0.0.1"`.
        wait: seconds to wait for a port if there is none now. Not at all by default.
        server_timeout: seconds that an exchange with a port server may take; 10 by default.
        tag: what the port is for, for people who look at a port server's leases. At most 200
            bytes; what is longer is cut off.

    Raises:
        NoFreePortFoundError: no port could be had; the text says what was tried.
        PortServerError: the server at `portserver_address` could not be reached, or cannot do what
            was asked for; or there is no server for another process's port.
        OSError: the system failed: too many open files, for example, or `address` is not one of
            this host's.
        TypeError, ValueError, OverflowError: an option, or `PORTPICKER_PORTS`, makes no sense.
    """
    return _portpicker.leases(1, False, options)[0]


def leases(count: int, contiguous: bool = False, **options: Unpack[Options]) -> list[Lease]:
    """Lease `count` ports, all or none: from 0 to 65535, neighbours in ascending order if `contiguous`.

    Promise 2, *leased*. See `lease` for the options and the exceptions.
    """
    return _portpicker.leases(count, bool(contiguous), options)


def hold(**options: Unpack[Options]) -> Hold:
    """Hold a port for the time of a `with` block, or until `release` or the garbage collector.

    Promise 3, *held*: TCP and UDP sockets of the hold are bound to it and do not listen. See `Hold`
    for how a server gets in, and `lease` for the options and the exceptions.
    """
    return _portpicker.holds(1, False, options)[0]


def holds(count: int, contiguous: bool = False, **options: Unpack[Options]) -> list[Hold]:
    """Hold `count` ports, all or none: from 0 to 65535, neighbours in ascending order if `contiguous`.

    Promise 3, *held*. See `hold`, and `lease` for the options and the exceptions.
    """
    return _portpicker.holds(count, bool(contiguous), options)


def popen(
    args: _Command,
    holds: Sequence[Hold],
    *,
    strict: bool = False,
    **options: Any,
) -> subprocess.Popen[Any]:
    """Start a command that binds the ports of `holds`, and return its `subprocess.Popen`.

    Promise 4, *handed off*: nobody else can bind the ports before the command does, nor while its
    server restarts, until the last of its processes has ended. The command needs no options and no
    privileges; it cannot gain any by set-uid programs. The holds are the command's from then on.

    Where the system refuses what that needs, a warning says so, and the ports are held less: let go of
    at the moment of the bind, or held with the door open (see `Hold.open_door`). `docs/safety.md` has
    the order.

    Args:
        args: the command and its arguments, as for `subprocess.Popen`.
        holds: what `hold()` and `holds()` return. The number of the first is in the command's
            environment as `PORT`.
        strict: rather fail than step down. If it turns out later that a bind of the command cannot
            be carried out, that bind fails.
        options: as for `subprocess.Popen`, without `executable`.

    Raises:
        FileNotFoundError, PermissionError: there is no such command, or it may not be executed.
        OSError: the command cannot be started; `ENOTSUP` if it would have to be less than `strict`.
        ValueError: a hold was released, or there is none.
        TypeError: `holds` are not holds, or an option is not one of `subprocess.Popen`'s.
    """
    from portpicker import _hand_off

    return _hand_off.popen(args, holds, strict=strict, **options)


def wait_listening(
    port: SupportsIndex, timeout: float | None = None, transport: Literal["tcp", "udp"] = "tcp"
) -> bool:
    """Wait until something listens on `port`, on whatever address.

    It is seen in the kernel's tables: nobody connects, so no server sees a client that says nothing.
    Whose socket it is, is not asked.

    Args:
        port: a number from 0 to 65535, or a lease or a hold.
        timeout: seconds to wait at most, 0 for a look; for ever if `None`.
        transport: `"tcp"`, or `"udp"` for a socket that is bound to it.

    Returns:
        Whether something listens.

    Raises:
        OSError: the kernel's tables cannot be read.
        TypeError, ValueError, OverflowError: an argument makes no sense.
    """
    return _portpicker.wait_listening(port, timeout, transport)


def find_unused_port(
    family: int = socket.AF_INET, socktype: int = socket.SOCK_STREAM
) -> int:
    """Pick a port that is unused for one family and kind of socket, as CPython's test helper does.

    Promise 2, *leased*, until this process ends or calls `return_port`; other families and
    transports may use the number. Where you have the socket, `bind_port` is better.

    Raises:
        ValueError: `family` is not `AF_INET` or `AF_INET6`, or `socktype` not `SOCK_STREAM` or
            `SOCK_DGRAM`.
        NoFreePortFoundError, OSError: as for `pick_unused_port`.
    """
    if family not in _UNSPECIFIED:
        raise ValueError(f"family must be AF_INET or AF_INET6, not {family!r}")
    if socktype not in _TRANSPORTS:
        raise ValueError(f"socktype must be SOCK_STREAM or SOCK_DGRAM, not {socktype!r}")
    return pick_unused_ports(
        1,
        portserver_address=False,
        address=_UNSPECIFIED[family],
        transport=_TRANSPORTS[socktype],
    )[0]


_UNSPECIFIED: dict[int, str] = {socket.AF_INET: "0.0.0.0", socket.AF_INET6: "::"}
_TRANSPORTS: dict[int, Literal["tcp", "udp"]] = {
    socket.SOCK_STREAM: "tcp",
    socket.SOCK_DGRAM: "udp",
}


def bind_port(sock: socket.socket, host: str = "localhost") -> int:
    """Bind `sock` to a port of `host` that nobody else uses, and return the port.

    Stronger than every promise: the port is bound, and stays the caller's until `sock` is closed.
    The kernel chooses it, from the ephemeral range.

    Raises:
        ValueError: it is a TCP socket with SO_REUSEADDR or SO_REUSEPORT set: others could share its
            port.
        OSError: the bind failed.
    """
    if sock.family in _UNSPECIFIED and sock.type == socket.SOCK_STREAM:
        for option in ("SO_REUSEADDR", "SO_REUSEPORT"):
            number = getattr(socket, option, None)
            if number is not None and sock.getsockopt(socket.SOL_SOCKET, number):
                raise ValueError(f"the TCP socket has {option} set: others could share its port")
        if hasattr(socket, "SO_EXCLUSIVEADDRUSE"):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
    sock.bind((host, 0))
    port: int = sock.getsockname()[1]
    return port


def _forget_after_fork() -> None:
    """Start a forked child without its parent's ports: two children must not pick the same one."""
    global _parents_ports
    _parents_ports |= _owned_ports | _free_ports
    _owned_ports.clear()
    _free_ports.clear()
    _random_ports.clear()
    # `_leases` stays: the parent's leases are the child's too, in that it keeps their locks, so
    # that a port lasts as long as the last of them.


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)

# The names before portpicker 1.1.
Bind = bind
GetPortFromPortServer = get_port_from_port_server
IsPortFree = is_port_free
PickUnusedPort = pick_unused_port
