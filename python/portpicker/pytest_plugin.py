"""Fixtures for pytest: ports that are a test's own until it ends, or its session does.

    def test_two_servers(leased_ports):
        ports = leased_ports("http", "grpc")
        start_server(http=ports["http"], grpc=ports["grpc"])

pytest finds them by itself where portpicker is installed; `-p no:portpicker` leaves them out.
Nobody on this host who picks with portpicker is given the same port meanwhile: no other test, in
whatever worker of pytest-xdist or run of pytest, and no program in another language. The report of
a test that fails names the ports that the test had. `docs/python-testing.md` has examples.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any, Generic, TypeVar, Union, overload
from weakref import WeakKeyDictionary

import pytest

import portpicker
from portpicker import Hold, Lease

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator

    from typing_extensions import Self, Unpack

    from portpicker import Options

__all__ = ["PortFactory"]

#: What a fixture gives for a port: an int or a Hold.
Port = TypeVar("Port")

#: What keeps a port.
Kept = Union[Lease, Hold]


@pytest.fixture
def leased_port(request: pytest.FixtureRequest) -> Iterator[int]:
    """An unused port, as an int, that is the test's own until it ends.

    It is leased: nobody else who picks with portpicker is given it, and the kernel gives it to
    nobody by itself. A marker has options for it, such as @pytest.mark.portpicker(transport="tcp");
    they are those of portpicker.lease().
    """
    with _leased(request) as ports:
        yield ports(1)[0]


@pytest.fixture
def leased_ports(request: pytest.FixtureRequest) -> Iterator[PortFactory[int]]:
    """Picks unused ports, by number or by name, that are the test's own until it ends.

    leased_ports(3) returns a list of three ports. leased_ports("http", "grpc") returns a dictionary
    of ports by name, and the same ports whenever the test or another fixture asks for these names
    again. Options follow by keyword, as in leased_ports(4, contiguous=True), or are in the marker.
    """
    with _leased(request) as ports:
        yield ports


@pytest.fixture
def held_port(request: pytest.FixtureRequest) -> Iterator[Hold]:
    """An unused port, as a portpicker.Hold, that nobody else can bind until the test ends.

    Its .port is the number. .listen(), .take_tcp(), and .take_udp() return its sockets, for servers
    that accept one; .open_door() lets in servers that set SO_REUSEADDR. Options are in the marker,
    as for leased_port.
    """
    with _held(request) as ports:
        yield ports(1)[0]


@pytest.fixture
def held_ports(request: pytest.FixtureRequest) -> Iterator[PortFactory[Hold]]:
    """Picks held ports, by number or by name, until the test ends: a portpicker.Hold for each.

    It is called as leased_ports is.
    """
    with _held(request) as ports:
        yield ports


@pytest.fixture(scope="session")
def session_leased_port(request: pytest.FixtureRequest) -> Iterator[int]:
    """An unused port, as an int: one for the session.

    Each worker of pytest-xdist has a session, and so a port, of its own.
    """
    with _leased(request) as ports:
        yield ports(1)[0]


@pytest.fixture(scope="session")
def session_leased_ports(request: pytest.FixtureRequest) -> Iterator[PortFactory[int]]:
    """Picks unused ports that are the session's own: a name stands for one port all along.

    It is called as leased_ports is. Each worker of pytest-xdist has a session, and so ports, of its
    own.
    """
    with _leased(request) as ports:
        yield ports


@pytest.fixture(scope="session")
def session_held_port(request: pytest.FixtureRequest) -> Iterator[Hold]:
    """An unused port, as a portpicker.Hold, that nobody else can bind: one for the session."""
    with _held(request) as ports:
        yield ports(1)[0]


@pytest.fixture(scope="session")
def session_held_ports(request: pytest.FixtureRequest) -> Iterator[PortFactory[Hold]]:
    """Picks held ports that are the session's own: a name stands for one port all along.

    It is called as leased_ports is, and returns a portpicker.Hold for each.
    """
    with _held(request) as ports:
        yield ports


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "portpicker(**options): what the ports of a test are to be, such as transport='tcp' or "
        "ports='20000-20999'; the options are those of portpicker.lease()",
    )


# The new kind of wrapper needs pytest 8.
@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, Any, None]:
    report: pytest.TestReport = (yield).get_result()
    if report.failed:
        lines = _lines(_picked_for(item))
        if lines:
            report.sections.append(("ports", "\n".join(lines)))
    if report.when == "teardown":
        # A plugin may run the test again: with other ports.
        _PORTS.pop(item, None)


class PortFactory(Generic[Port]):
    """Picks ports for a test or a session, and keeps them until it ends.

    The fixtures `leased_ports` and `session_leased_ports` are a `PortFactory[int]`, `held_ports`
    and `session_held_ports` a `PortFactory[Hold]`.
    """

    def __init__(
        self,
        request: pytest.FixtureRequest,
        pick: Callable[..., list[Any]],
        give: Callable[[Any], Port],
    ) -> None:
        self._pick = pick
        self._give = give
        self._options = {"tag": _tag(request), **_marked(request)}
        self._named: dict[str, tuple[Kept, dict[str, Any]]] = {}
        # A name stands for one port in all threads of a test.
        self._naming = threading.Lock()
        self.fixture = request.fixturename or ""
        self.picked: list[tuple[str, Kept]] = []
        _PORTS.setdefault(request.node, []).append(self)

    @overload
    def __call__(
        self, count: int, /, *, contiguous: bool = ..., **options: Unpack[Options]
    ) -> list[Port]: ...
    @overload
    def __call__(self, *names: str, **options: Unpack[Options]) -> dict[str, Port]: ...
    def __call__(self, *wanted: Any, **options: Any) -> list[Port] | dict[str, Port]:
        """Pick `count` ports, or one for each of `names`: all or none.

        A name that has a port already keeps it.

        Args:
            count: how many.
            names: what to call them.
            contiguous: whether a count of ports must be neighbours, in ascending order.
            options: as for `portpicker.lease`; they come before those of the marker.

        Raises:
            TypeError: neither a count nor names, or options that do not exist.
            ValueError: a negative count, a name twice, or a name with other options than it was
                first picked with.
            NoFreePortFoundError, PortServerError, OSError: as `portpicker.lease`.
        """
        # A misuse is shown where it is in the test, and not in here.
        __tracebackhide__ = True
        if wanted and all(isinstance(name, str) and name for name in wanted):
            return self._by_name(wanted, options)
        if len(wanted) == 1 and isinstance(wanted[0], int):
            ports = self._keep(wanted[0], options)
            self.picked += [(self.fixture, port) for port in ports]
            return [self._give(port) for port in ports]
        raise TypeError(
            f"{self.fixture} takes a count, as in {self.fixture}(2), "
            f"or names, as in {self.fixture}('http', 'grpc')"
        )

    def _by_name(self, names: tuple[str, ...], options: dict[str, Any]) -> dict[str, Port]:
        __tracebackhide__ = True
        if "contiguous" in options:
            raise TypeError("neighbours have no names: ask for a count of contiguous ports")
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"{name!r} is there twice, and a name stands for one port")
        with self._naming:
            for name in names:
                if name in self._named and options and options != self._named[name][1]:
                    raise ValueError(f"{name!r} has a port already, picked with other options")
            new = [name for name in names if name not in self._named]
            for name, port in zip(new, self._keep(len(new), options)):
                self._named[name] = (port, options)
                self.picked.append((f"{self.fixture}[{name!r}]", port))
            return {name: self._give(self._named[name][0]) for name in names}

    def _keep(self, count: int, options: dict[str, Any]) -> list[Kept]:
        __tracebackhide__ = True
        ports: list[Kept] = self._pick(count, **{**self._options, **options})
        return ports

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        for _, port in self.picked:
            port.release()


#: What the fixtures of a test, and of a session, have picked. pytest has a place for that, the node's
#: stash, but not before 7: there, a plugin that needs it would break every run.
_PORTS: WeakKeyDictionary[object, list[PortFactory[Any]]] = WeakKeyDictionary()


def _leased(request: pytest.FixtureRequest) -> PortFactory[int]:
    return PortFactory(request, portpicker.leases, lambda lease: lease.port)


def _held(request: pytest.FixtureRequest) -> PortFactory[Hold]:
    return PortFactory(request, portpicker.holds, lambda hold: hold)


def _tag(request: pytest.FixtureRequest) -> str:
    """Return what `portpicker status` shows for a port server's leases."""
    if request.scope == "session":
        worker = getattr(request.config, "workerinput", {}).get("workerid", "")
        return f"pytest {request.config.rootpath} {worker}".rstrip()
    return str(request.node.nodeid)


def _marked(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Return the options in the test's markers, the closest of which comes first."""
    options: dict[str, Any] = {}
    for marker in request.node.iter_markers("portpicker"):
        if marker.args:
            raise TypeError(
                "the marker portpicker takes options by keyword, "
                "as in @pytest.mark.portpicker(transport='tcp')"
            )
        options = {**marker.kwargs, **options}
    return options


# What is below looks at the ports of a test that has failed. It must not fail itself, and must bind
# nothing: what the test has started may go on.


def _picked_for(item: pytest.Item) -> list[tuple[str, Kept]]:
    """Return the ports that a test's fixtures have picked, with what the test calls them."""
    used = getattr(item, "fixturenames", ())
    of_session = [ports for ports in _PORTS.get(item.session, []) if ports.fixture in used]
    return [port for ports in _PORTS.get(item, []) + of_session for port in ports.picked]


def _lines(picked: list[tuple[str, Kept]]) -> list[str]:
    users = _users({port.port for _, port in picked}) if picked else {}
    width = max((len(label) for label, _ in picked), default=0)
    lines = []
    for label, port in picked:
        now = [*(["released"] if port.released else []), *users.get(port.port, [])]
        lines.append(f"{port.port:5}  {label:{width}}  {'; '.join(now)}".rstrip())
    return lines


def _users(ports: set[int]) -> dict[int, list[str]]:
    """Return who else has sockets on the ports, as far as the system lets us see it."""
    sockets = [socket for socket in _sockets() if socket[1] in ports]
    processes = _processes({inode for _, _, _, inode in sockets}) if sockets else {}
    users: dict[int, dict[str, list[str]]] = {}
    for transport, port, uid, inode in sockets:
        if inode == "0":
            who = ["a connection that is being closed"]
        elif inode in processes:
            who = [_process(pid) for pid in processes[inode] if pid != os.getpid()]
        else:
            who = [f"a process of user {uid}"]
        for user in who:
            transports = users.setdefault(port, {}).setdefault(user, [])
            if transport not in transports:
                transports.append(transport)
    return {
        port: [f"{' and '.join(transports)}: {user}" for user, transports in of_port.items()]
        for port, of_port in users.items()
    }


def _sockets() -> Iterator[tuple[str, int, str, str]]:
    """Yield transport, local port, user, and inode of all sockets, where Linux lists them."""
    for table in ("tcp", "tcp6", "udp", "udp6"):
        try:
            with open(f"/proc/net/{table}") as lines:
                next(lines)
                for line in lines:
                    fields = line.split()
                    port = int(fields[1].rpartition(":")[2], 16)
                    yield table[:3].upper(), port, fields[7], fields[9]
        except (OSError, ValueError, IndexError, StopIteration):
            continue


def _processes(inodes: set[str]) -> dict[str, list[int]]:
    """Return which processes have which of the sockets, for those that may be looked into."""
    links = {f"socket:[{inode}]": inode for inode in inodes}
    processes: dict[str, list[int]] = {}
    for pid in _numbers("/proc"):
        for fd in _numbers(f"/proc/{pid}/fd"):
            try:
                inode = links.get(os.readlink(f"/proc/{pid}/fd/{fd}"))
            except OSError:
                continue
            if inode is not None and pid not in processes.setdefault(inode, []):
                processes[inode].append(pid)
    return processes


def _numbers(folder: str) -> Iterable[int]:
    try:
        return [int(name) for name in os.listdir(folder) if name.isdigit()]
    except OSError:
        return []


def _process(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", errors="replace") as file:
            command = file.read(1000)
    except OSError:
        command = ""
    # It is another's text, and may be shown on a terminal: no control characters.
    command = "".join(letter if letter.isprintable() else " " for letter in command)
    command = " ".join(command.split())
    return f"pid {pid}" + (f" ({command[:80]})" if command else "")
