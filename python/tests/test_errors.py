"""What happens when something is wrong: with an argument, a server, the system, or the moment?"""

from __future__ import annotations

import copy
import errno
import math
import os
import pickle
import signal
import socket
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import portpicker
from support import (
    DEADLINE,
    FakeServer,
    Portserver,
    fresh as fresh,
    occupy,
    python,
    start_python,
    unused_name,
)

pytestmark = pytest.mark.usefixtures("fresh")

PORTS = "a port, an iterable of ports, or a text such as '20000-20999,21500'"
ADDRESS = "is not a server address: those are the path of a socket or `@name`, of at most 107 bytes"


def broken_ports() -> Any:
    yield 1 // 0


def too_long() -> int:
    return 10**400


class Interrupted:
    """A number whose reader presses ^C."""

    def __index__(self) -> int:
        raise KeyboardInterrupt


def name(value: Any) -> str:
    """Return the id of a parameter of a test: the options; the rest follows from them."""
    if isinstance(value, dict):
        return ",".join(f"{key}={getattr(value, '__name__', value)}" for key, value in value.items())
    return ""


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"port": 1}, TypeError, "'port' is not an option, but these are: pid, portserver_address, "
         "ports, exclude, prefer, transport, address, wait, server_timeout, tag"),
        ({"ports": "http"}, ValueError,
         "ports: `http` is neither a port nor a range such as `20000-20999`"),
        ({"ports": "2-1"}, ValueError, "ports: `2-1`: the range ends before it starts"),
        ({"ports": "70000"}, ValueError, "ports: `70000`: the highest port is 65535"),
        ({"ports": []}, ValueError, "ports must not be empty"),
        ({"ports": 0}, OverflowError, "ports: a port must be from 1 to 65535, not 0"),
        ({"ports": [-1]}, OverflowError, "ports: a port must be from 1 to 65535, not -1"),
        ({"ports": 10**30}, OverflowError, f"ports: a port must be from 1 to 65535, not {10**30}"),
        ({"ports": 8080.0}, TypeError, f"ports must be {PORTS}, not float"),
        ({"ports": b"80"}, TypeError, f"ports must be {PORTS}, not bytes"),
        ({"ports": ["80"]}, TypeError, "ports: a port must be an int, not str"),
        ({"ports": broken_ports}, ZeroDivisionError, "integer division or modulo by zero"),
        ({"exclude": [70000]}, OverflowError, "exclude: a port must be from 1 to 65535, not 70000"),
        ({"prefer": "80"}, TypeError, "prefer must be a port or an iterable of ports, not str"),
        ({"transport": "sctp"}, ValueError, "transport must be 'tcp' or 'udp', not 'sctp'"),
        ({"transport": 6}, ValueError, "transport must be 'tcp' or 'udp', not 6"),
        ({"address": "localhost"}, ValueError,
         "address must be an IPv4 or IPv6 address, not 'localhost'"),
        ({"wait": -1}, ValueError, "wait must be a number of seconds from 0 up, not -1"),
        ({"wait": math.nan}, ValueError, "wait must be a number of seconds from 0 up, not nan"),
        ({"wait": too_long}, OverflowError, "int too large to convert to float"),
        ({"wait": "5"}, TypeError, "wait must be a number of seconds, not str"),
        ({"server_timeout": -0.5}, ValueError,
         "server_timeout must be a number of seconds from 0 up, not -0.5"),
        ({"pid": 0}, ValueError,
         "pid must be the number of a process, from 1 to 2147483647, not 0"),
        ({"pid": Interrupted}, KeyboardInterrupt, ""),
        ({"pid": "1"}, TypeError, "pid must be an int, not str"),
        ({"pid": 1}, portpicker.PortServerError, "a lease for another process (1) needs a port "
         "server: without one, a port belongs to the process that picks it"),
        ({"tag": 5}, TypeError, "tag must be a str, not int"),
        ({"portserver_address": True}, TypeError,
         "portserver_address must be a path, '@name', or False, not bool"),
        ({"portserver_address": "\udcff"}, ValueError, r'portserver_address: "\xFF" is not UTF-8'),
        ({"portserver_address": "@"}, ValueError, f"portserver_address: `@` {ADDRESS}"),
        ({"portserver_address": "x" * 108}, ValueError,
         f"portserver_address: `{'x' * 108}` {ADDRESS}"),
    ],
    ids=name,
)  # fmt: skip
@pytest.mark.parametrize(
    "pick",
    [portpicker.lease, portpicker.hold, partial(portpicker.pick_unused_ports, 1)],
    ids=["lease", "hold", "pick"],
)
def test_an_option_that_makes_no_sense_is_named(
    pick: Callable[..., Any], options: dict[str, Any], error: type[BaseException], text: str
) -> None:
    options = {key: value() if callable(value) else value for key, value in options.items()}
    with pytest.raises(error) as raised:
        pick(**options)
    assert str(raised.value) == text
    assert type(raised.value) is error
    assert not hasattr(raised.value, "__notes__")


@pytest.mark.parametrize(
    "pick",
    [portpicker.leases, portpicker.holds, portpicker.pick_unused_ports],
    ids=lambda pick: pick.__name__,
)
def test_a_count_is_a_number_from_0_to_65535(pick: Callable[..., Any]) -> None:
    for count in (-1, 65536, 10**30):
        with pytest.raises(ValueError, match=f"^count must be from 0 to 65535, not {count}$"):
            pick(count)
    with pytest.raises(TypeError, match="^count must be an int, not float$"):
        pick(1.0)
    assert pick(0) == []


class TestPort:
    @pytest.mark.parametrize("port", [-1, 65536, 10**30])
    def test_one_out_of_range_overflows(self, port: int) -> None:
        with pytest.raises(OverflowError, match=f"^a port must be from 0 to 65535, not {port}$"):
            portpicker.is_port_free(port)
        with pytest.raises(OverflowError, match=f"^a port must be from 1 to 65535, not {port}$"):
            portpicker.add_reserved_port(port)
        with pytest.raises(OverflowError):
            portpicker.bind(port, socket.SOCK_STREAM, 0)

    @pytest.mark.parametrize("port", ["8080", 8080.0, None])
    def test_anything_but_an_int_is_of_the_wrong_type(self, port: Any) -> None:
        for function in (portpicker.is_port_free, portpicker.add_reserved_port):
            with pytest.raises(TypeError, match="cannot be interpreted as an integer"):
                function(port)
        assert not portpicker._free_ports

    def test_port_0_is_never_free_nor_reserved(self) -> None:
        assert portpicker.is_port_free(0) is None
        with pytest.raises(OverflowError):
            portpicker.add_reserved_port(0)

    def test_one_given_back_twice_is_only_logged(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level("INFO")
        (port,) = portpicker.pick_unused_ports(1)
        portpicker.return_port(port)
        portpicker.return_port(port)
        assert caplog.messages == [f"Returning a port that wasn't given by portpicker: {port}"]

        caplog.clear()
        portpicker.add_reserved_port(port)
        portpicker.return_port(port)
        assert caplog.messages == [f"Returning a port that was already returned: {port}"]
        assert portpicker.pick_unused_port() == port
        assert portpicker.pick_unused_port() != port

    def test_a_reserved_one_is_picked_as_an_int(self) -> None:
        with portpicker.lease() as lease:
            portpicker.add_reserved_port(lease)
            assert type(portpicker.pick_unused_port()) is int
            assert portpicker._owned_ports == {lease.port}

    def test_one_that_was_returned_in_use_is_not_given_out(self) -> None:
        with portpicker.lease() as lease:
            portpicker.add_reserved_port(lease.port)
            with occupy(lease.port):
                assert portpicker.pick_unused_port() != lease.port
            assert portpicker.pick_unused_port() == lease.port


class TestExhausted:
    def test_the_text_says_what_was_tried(self) -> None:
        leases = portpicker.leases(3)
        ports = [lease.port for lease in leases]
        with pytest.raises(portpicker.NoFreePortFoundError) as raised:
            portpicker.lease(ports=ports)
        assert str(raised.value) == "no unused port among 3 candidates: 3 leased, 0 in use"
        leases[0].release()
        with occupy(ports[0]), pytest.raises(portpicker.NoFreePortFoundError) as raised:
            portpicker.leases(2, ports=ports)
        assert str(raised.value) == "not 2 unused ports among 3 candidates: 2 leased, 1 in use"
        with pytest.raises(portpicker.NoFreePortFoundError) as raised:
            portpicker.leases(4, ports=ports)
        assert str(raised.value) == "4 ports wanted, but only 3 to choose from"
        with pytest.raises(portpicker.NoFreePortFoundError) as raised:
            portpicker.lease(ports=ports, exclude=ports)
        assert str(raised.value) == "1 wanted, but no port is left: all are excluded"

    def test_a_pick_says_so_too(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with portpicker.lease() as lease:
            monkeypatch.setenv("PORTPICKER_PORTS", str(lease.port))
            with pytest.raises(
                portpicker.NoFreePortFoundError,
                match="^no unused port among 1 candidate: 1 leased, 0 in use$",
            ):
                portpicker.pick_unused_port()

    def test_candidates_that_are_none_are_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PORTPICKER_PORTS", "20000-2x")
        for pick in (portpicker.pick_unused_port, portpicker.lease, portpicker.find_unused_port):
            with pytest.raises(ValueError) as raised:
                pick()
            assert str(raised.value) == (
                "PORTPICKER_PORTS is not a set of ports: `20000-2x` is neither a port nor a range "
                "such as `20000-20999`"
            )

    def test_an_address_of_another_host_is_named(self) -> None:
        with pytest.raises(OSError) as raised:
            portpicker.lease(address="192.0.2.1")
        assert raised.value.errno == errno.EADDRNOTAVAIL
        assert raised.value.strerror == (
            "bind(2) failed for local address 192.0.2.1 (which is not one of this host's): "
            "Cannot assign requested address"
        )

    def test_a_lack_of_descriptors_is_told_from_a_lack_of_ports(self) -> None:
        ended = python(
            """
import resource, socket
import portpicker

portpicker.is_port_free(portpicker.pick_unused_port())
resource.setrlimit(resource.RLIMIT_NOFILE, (30, 30))
ports = []
try:
    while True:
        ports.append(portpicker.pick_unused_port())
except OSError as error:
    print(error)
files = []
try:
    while True:
        files.append(open("/dev/null"))
except OSError:
    pass
for use in (
    portpicker.lease,
    lambda: portpicker.is_port_free(12345),
    lambda: portpicker.is_port_free(ports[0]),
    lambda: portpicker.bind(0, socket.SOCK_STREAM, 0),
):
    try:
        use()
    except OSError as error:
        print(error)
files.clear()
portpicker.return_port(ports.pop())
print(portpicker.pick_unused_port() > 0)
"""
        )
        assert ended.stderr == ""
        *texts, plain, plain_too, again = ended.stdout.splitlines()
        advice = "(each leased port takes a descriptor: raise the limit with `ulimit -n`)"
        assert len(texts) == 3
        for text in texts:
            assert text.startswith("[Errno 24] ")
            assert text.endswith(f" {advice}: Too many open files")
        assert plain == plain_too == "[Errno 24] Too many open files"
        assert again == "True"


class TestServer:
    @pytest.mark.parametrize(
        ("address", "reason"),
        [
            ("@portpicker-test-nobody", "[Errno 111] Connection refused"),
            ("/no/such/folder/server", "[Errno 2] No such file or directory"),
            ("x" * 200, "AF_UNIX path too long"),
        ],
        ids=["abstract", "path", "too long"],
    )
    def test_one_that_is_not_there_is_named_and_passed_over(
        self, address: str, reason: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert portpicker.get_port_from_port_server(address) is None
        assert portpicker.pick_unused_port(portserver_address=address) > 0
        message = f"Socket error when connecting to portserver: {reason}\n"
        assert capsys.readouterr() == ("", 2 * message)

    @pytest.mark.parametrize("answer", [b"", b"0\n", b"-1\n", b"65536\n", b"no\n"], ids=repr)
    def test_one_that_grants_no_port_is_passed_over(
        self, answer: bytes, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with FakeServer([answer]) as server:
            monkeypatch.setenv("PORTSERVER_ADDRESS", server.address)
            assert portpicker.pick_unused_port() in portpicker._random_ports
            assert len(server.requests) == 1
        assert capsys.readouterr() == ("", "Portserver failed to find a port.\n")
        assert not portpicker._owned_ports

    def test_one_that_had_to_be_asked_is_an_error(self) -> None:
        address = unused_name()
        with pytest.raises(portpicker.PortServerError) as raised:
            portpicker.lease(portserver_address=address)
        assert str(raised.value) == (
            f"cannot talk to the port server at `{address}`: Connection refused"
        )

    def test_one_that_is_silent_is_given_up_in_time(self, tmp_path: Path) -> None:
        path = str(tmp_path / "silent")
        with socket.socket(socket.AF_UNIX) as silent:
            silent.bind(path)
            silent.listen()
            begin = time.monotonic()
            with pytest.raises(portpicker.PortServerError) as raised:
                portpicker.lease(portserver_address=path, server_timeout=0.1)
            assert 0.1 <= time.monotonic() - begin < DEADLINE
        assert str(raised.value) == (
            f"cannot talk to the port server at `{path}`: no answer in time"
        )

    def test_one_that_refuses_is_quoted(self) -> None:
        with FakeServer([]) as server, pytest.raises(portpicker.NoFreePortFoundError) as raised:
            portpicker.lease(portserver_address=server.address)
        assert str(raised.value) == (
            f"the port server at `{server.address}` refused a port to process {os.getpid()}: "
            "it may have exited, or all ports are leased"
        )

    def test_one_that_cannot_do_what_is_asked_says_so(self) -> None:
        with FakeServer([]) as server, pytest.raises(portpicker.PortServerError) as raised:
            portpicker.lease(portserver_address=server.address, transport="tcp")
        assert str(raised.value) == (
            f"the port server at `{server.address}` speaks the original protocol, which cannot "
            "ask for one transport"
        )

    def test_a_full_one_says_why(self) -> None:
        with Portserver(1) as server, portpicker.lease(portserver_address=server.address):
            with pytest.raises(portpicker.NoFreePortFoundError, match="refused a port to process"):
                portpicker.lease(portserver_address=server.address, transport="tcp")


class TestObjects:
    @pytest.mark.parametrize("pick", [portpicker.lease, portpicker.hold], ids=["lease", "hold"])
    def test_they_stay_in_their_process(self, pick: Callable[[], Any]) -> None:
        with pick() as kept:
            what = type(kept).__name__.lower()
            text = (
                f"a {what} belongs to the process that made it and cannot be copied or pickled: "
                f"pass on its port, {kept.port}"
            )
            for duplicate in (pickle.dumps, copy.copy, copy.deepcopy):
                with pytest.raises(TypeError) as raised:
                    duplicate(kept)
                assert str(raised.value) == text

    @pytest.mark.parametrize("kind", [portpicker.Lease, portpicker.Hold])
    def test_only_a_pick_makes_them(self, kind: Any) -> None:
        with pytest.raises(TypeError, match="^cannot create 'portpicker"):
            kind()
        with pytest.raises(TypeError, match="is not an acceptable base type"):
            type("Derived", (kind,), {})

    def test_a_released_lease_is_not_entered(self) -> None:
        with portpicker.lease() as lease:
            pass
        with pytest.raises(ValueError, match=f"^the lease of port {lease.port} has been released$"):
            lease.__enter__()

    def test_exceptions_cross_processes(self) -> None:
        for kind in (portpicker.NoFreePortFoundError, portpicker.PortServerError):
            assert repr(pickle.loads(pickle.dumps(kind("why")))) == f"{kind.__name__}('why')"
            assert kind.__module__ == "portpicker"
            assert issubclass(kind, Exception)


class TestThreads:
    def test_no_two_are_given_one_port(self) -> None:
        picked: list[int] = []

        def pick() -> None:
            for _ in range(50):
                picked.append(portpicker.pick_unused_port())
                picked.append(portpicker.lease(transport="tcp").port)
                picked.extend(portpicker.pick_unused_ports(2))

        begin = len(portpicker._leases)
        threads = [threading.Thread(target=pick) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(picked) == 8 * 50 * 4
        assert len(portpicker._random_ports) == 8 * 50 * 3
        assert len(portpicker._leases) - begin == 8 * 50 * 3

    def test_a_returned_port_is_picked_by_one_of_them(self) -> None:
        reserved = [lease.port for lease in portpicker.leases(20)]
        for port in reserved:
            portpicker.add_reserved_port(port)
        picked: list[int] = []

        def pick() -> None:
            for _ in range(5):
                picked.append(portpicker.pick_unused_port())

        threads = [threading.Thread(target=pick) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(set(picked)) == len(picked) == 40
        assert set(reserved) < set(picked)


class TestForks:
    def test_children_are_never_given_the_same_port(self) -> None:
        """Not one that the parent has returned, and not in the same random order either."""
        ended = python(
            """
import os, signal, sys
import portpicker

signal.alarm(60)
leases = portpicker.leases(3)
for lease in leases:
    portpicker.add_reserved_port(lease.port)
picked = {portpicker.pick_unused_port()}
read, write = os.pipe()
end, begin = os.pipe()
for _ in range(8):
    if os.fork() == 0:
        os.close(begin)
        assert not portpicker._owned_ports | portpicker._free_ports | portpicker._random_ports
        for _ in range(5):
            os.write(write, b"%5d" % portpicker.pick_unused_port())
        os.read(end, 1)  # until nobody picks any more
        os._exit(0)
for lease in leases:
    picked.add(portpicker.pick_unused_port())
for _ in range(8 * 5):
    picked.add(int(os.read(read, 5)))
os.close(begin)
for _ in range(8):
    os.wait()
print(len(picked))
""",
        )
        assert (ended.stdout, ended.stderr) == (f"{1 + 3 + 8 * 5}\n", "")

    def test_a_child_may_use_its_parents_ports(self) -> None:
        ended = python(
            """
import os
import portpicker

port = portpicker.pick_unused_port()
with portpicker.lease() as lease, portpicker.lease() as reserved:
    portpicker.add_reserved_port(reserved.port)
    if os.fork() == 0:
        ports = [port, lease.port, reserved.port]
        print([portpicker.is_port_free(port) == port for port in ports])
    else:
        os.wait()
"""
        )
        assert (ended.stdout, ended.stderr) == ("[True, True, True]\n", "")

    def test_a_lease_lasts_as_long_as_a_child_that_has_it(self) -> None:
        ended = python(
            """
import os
import portpicker

lease = portpicker.lease()
end, begin = os.pipe()
if os.fork() == 0:
    os.close(begin)
    os.read(end, 1)
    os._exit(0)
lease.release()
try:
    portpicker.lease(ports=lease.port)
except portpicker.NoFreePortFoundError:
    print("the child has it")
os.close(begin)
os.wait()
print(portpicker.lease(ports=lease.port).port == lease.port)
"""
        )
        assert (ended.stdout, ended.stderr) == ("the child has it\nTrue\n", "")

    def test_a_fork_in_the_middle_of_picks_leaves_nothing_locked(self) -> None:
        """Threads pick as fast as they can, and each child picks and returns in every way."""
        ended = python(
            """
import os, signal, sys, threading, warnings
import portpicker

warnings.simplefilter("ignore")  # of forks and threads
signal.alarm(60)  # for the parent; each child has its own
ends = False

def pick():
    while not ends:
        portpicker.return_port(portpicker.pick_unused_port())
        portpicker.lease(wait=0.001).release()
        portpicker.leases(2, transport="tcp")

threads = [threading.Thread(target=pick) for _ in range(4)]
for thread in threads:
    thread.start()
statuses = set()
for _ in range(100):
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        try:
            portpicker.return_port(portpicker.pick_unused_port())
            with portpicker.lease(wait=0.001), portpicker.hold() as hold:
                assert not portpicker.is_port_free(hold.port)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    statuses.add(os.waitpid(child, 0)[1])
ends = True
for thread in threads:
    thread.join()
print(statuses)
"""
        )
        assert (ended.stdout, ended.stderr) == ("{0}\n", "")


class TestInterrupts:
    def test_a_wait_for_a_port_ends_with_control_c(self) -> None:
        with portpicker.lease() as lease:
            self.interrupt({"ports": lease.port, "wait": float("inf")}, lease)

    def test_a_wait_in_a_servers_queue_ends_with_control_c(self) -> None:
        with Portserver(1) as server, portpicker.lease(portserver_address=server.address) as lease:
            self.interrupt({"portserver_address": server.address, "wait": 3600}, lease)

    @staticmethod
    def interrupt(options: dict[str, Any], lease: portpicker.Lease) -> None:
        """Interrupt a process that waits for the leased port, and see whether it takes it later."""
        process = start_python(
            """
import ast, sys
import portpicker

inf = float("inf")
try:
    portpicker.lease(**eval(sys.argv[1]))
except KeyboardInterrupt:
    print("interrupted", flush=True)
sys.stdin.readline()
""",
            repr(options),
        )
        with process:
            tasks = Path(f"/proc/{process.pid}/task")
            give_up = time.monotonic() + DEADLINE
            while "portpicker\n" not in [task.read_text() for task in tasks.glob("*/comm")]:
                assert time.monotonic() < give_up, "it does not wait"
            process.send_signal(signal.SIGINT)
            assert process.stdout is not None
            assert process.stdout.readline() == "interrupted\n"
            # While that process lives on.
            lease.release()
            wanted = portpicker.lease(
                portserver_address=options.get("portserver_address"),
                ports=lease.port,
                wait=DEADLINE,
            )
            assert wanted.port == lease.port
            assert process.communicate("\n", timeout=DEADLINE) == ("", "")
            assert process.returncode == 0

    def test_a_handler_that_returns_lets_the_wait_go_on(self) -> None:
        lease = portpicker.lease()
        before = signal.signal(signal.SIGALRM, lambda *_: lease.release())
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            assert portpicker.lease(ports=lease.port, wait=DEADLINE).port == lease.port
        finally:
            signal.signal(signal.SIGALRM, before)


class TestShutdown:
    def test_leases_and_holds_may_be_left_to_the_interpreter(self) -> None:
        ended = python(
            """
import portpicker

leases, holds = portpicker.leases(3), portpicker.holds(3)
cycle = [portpicker.lease()]
cycle.append(cycle)
ports = portpicker.pick_unused_ports(3)
print("ended")
"""
        )
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, "ended\n", "")

    def test_a_thread_may_still_be_waiting(self) -> None:
        ended = python(
            """
import pathlib, threading
import portpicker

lease = portpicker.lease()
wait = dict(ports=lease.port, wait=3600)
threading.Thread(target=portpicker.lease, kwargs=wait, daemon=True).start()
names = pathlib.Path("/proc/self/task")
while "portpicker\\n" not in [task.read_text() for task in names.glob("*/comm")]:
    pass
print("ended")
"""
        )
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, "ended\n", "")

    def test_a_server_that_hangs_does_not_delay_it(self) -> None:
        """Nor is it told: it sees the exit by itself."""
        with Portserver() as server:
            process = start_python(
                """
import portpicker

for _ in range(15):
    portpicker.pick_unused_ports(1, tag="a request of its own for each")
print("picked", flush=True)
input()
""",
                PORTSERVER_ADDRESS=server.address,
            )
            with process:
                assert process.stdout is not None
                assert process.stdout.readline() == "picked\n"
                server.process.send_signal(signal.SIGSTOP)
                try:
                    # A second for each, if it were told.
                    assert process.communicate("\n", timeout=10) == ("", "")
                finally:
                    server.process.send_signal(signal.SIGCONT)
                    process.kill()
