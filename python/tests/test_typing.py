"""Do type checkers accept what is right and reject what is wrong?

That the stubs tell the truth is what `python/tests/run` has stubtest look at.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import DEADLINE, python, skip

RIGHT = """
from __future__ import annotations

import asyncio
import ipaddress
import pathlib
import socket
from typing import TYPE_CHECKING

import portpicker
from portpicker import Hold, Lease, pick_unused_port

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from portpicker import Options


def google() -> None:
    port: int = portpicker.pick_unused_port()
    port = portpicker.pick_unused_port(1234, "@unittest-portserver")
    port = portpicker.pick_unused_port(pid=None, portserver_address=None)
    port = portpicker.PickUnusedPort(portserver_address="")
    maybe: int | None = portpicker.get_port_from_port_server("/run/portserver", pid=1)
    maybe = portpicker.get_port_from_port_server(None)
    maybe = portpicker.is_port_free(port)
    maybe = portpicker.bind(port, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    portpicker.return_port(port)
    portpicker.add_reserved_port(port)
    portpicker._random_ports.clear()
    try:
        pick_unused_port()
    except portpicker.NoFreePortFoundError as error:
        print(error)


def options() -> None:
    portpicker.lease(ports="20000-20999,30000", exclude=[20001], prefer=20002)
    portpicker.lease(ports=range(20000, 21000), exclude={20001, 20002}, prefer=(20003, 20004))
    portpicker.lease(ports=20000, exclude=(port for port in [20001]))
    portpicker.lease(transport="tcp", address="127.0.0.1", wait=5, server_timeout=0.5, tag="db")
    portpicker.lease(address=ipaddress.ip_address("::1"), portserver_address=False, pid=None)
    portpicker.lease(portserver_address=pathlib.Path("/run/portserver"))
    portpicker.pick_unused_port(ports="20000-20999")
    ports: list[int] = portpicker.pick_unused_ports(3, contiguous=True, wait=1.5)
    leases: list[Lease] = portpicker.leases(len(ports), True, transport="udp")
    holds: list[Hold] = portpicker.holds(2, ports=leases, exclude=leases[0])
    print(holds)


def wrapper(count: int, **options: Unpack[Options]) -> list[Lease]:
    return portpicker.leases(count, **options)


def objects() -> None:
    with portpicker.lease() as lease:
        number: int = lease.port
        server: str | None = lease.server
        print(number, server, lease.released, int(lease), portpicker.is_port_free(lease))
    with portpicker.hold() as hold:
        tcp: socket.socket = hold.listen(backlog=5)
        udp: socket.socket = hold.take_udp()
        hold.open_door()
        hold.shut_door()
        kept: Lease = hold.into_lease()
        kept.release()
        print(tcp, udp)


def command(hold: Hold) -> None:
    process = hold.popen([pathlib.Path("/bin/true"), "word", b"bytes"])
    portpicker.popen("exit 3", [hold], strict=True, shell=True)
    listens: bool = portpicker.wait_listening(hold.port, timeout=5, transport="udp")
    print(process.wait(), listens)


async def serve(hold: Hold) -> None:
    await asyncio.start_server(lambda reader, writer: None, sock=hold.listen())


def cpython() -> None:
    port: int = portpicker.find_unused_port(socket.AF_INET6, socket.SOCK_DGRAM)
    port = portpicker.find_unused_port(family=socket.AF_INET)
    with socket.socket() as sock:
        port = portpicker.bind_port(sock, host="localhost")
    version: str = portpicker.__version__
    print(port, version)
"""

#: Each line is an error, of this kind.
WRONG = """
import portpicker
portpicker.pick_unused_port("8080")  # arg-type
portpicker.pick_unused_port(port=1)  # call-arg
portpicker.pick_unused_ports()  # call-arg
portpicker.pick_unused_ports("3")  # arg-type
portpicker.lease(transport="sctp")  # arg-type
portpicker.lease(ports=8080.0)  # arg-type
portpicker.lease(ports=["8080"])  # list-item
portpicker.lease(prefer="8080")  # arg-type
portpicker.lease(wait="5")  # arg-type
portpicker.lease(address=5)  # arg-type
portpicker.lease(portserver_address=True)  # arg-type
portpicker.lease(tags="db")  # call-arg
portpicker.lease(20000)  # call-arg
portpicker.is_port_free("8080")  # arg-type
portpicker.is_port_free(8080) + 1  # operator
portpicker.lease().port = 1  # misc
portpicker.lease().server.upper()  # union-attr
portpicker.hold().server  # attr-defined
portpicker.bind_port(5)  # arg-type
class Derived(portpicker.Lease): pass  # misc
portpicker.no_such_name  # attr-defined
"""


@pytest.fixture(scope="module", autouse=True)
def mypy() -> None:
    if importlib.util.find_spec("mypy") is None:
        skip("test_typing.py", "mypy is not installed")


def check(tmp_path: Path, code: str, *options: str) -> list[str]:
    """Return the errors of mypy about the code of a user."""
    (tmp_path / "code.py").write_text(code)
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", *options, "code.py"]
    checked = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=5 * DEADLINE, check=False
    )
    assert checked.stderr == ""
    return checked.stdout.splitlines()


@pytest.mark.parametrize("version", ["3.10", "3.13"])
def test_right_code_is_accepted(version: str, tmp_path: Path) -> None:
    assert check(tmp_path, RIGHT, f"--python-version={version}") == []


def test_wrong_code_is_rejected(tmp_path: Path) -> None:
    expected = {
        number: line.rpartition("# ")[2]
        for number, line in enumerate(WRONG.splitlines(), start=1)
        if "# " in line
    }
    found = {}
    for line in check(tmp_path, WRONG):
        error = re.match(r"code\.py:(\d+): error: .*\[(.*)\]$", line)
        if error:
            found[int(error[1])] = error[2]
    assert found == expected


def test_nothing_of_it_is_needed_to_run() -> None:
    ended = python(
        """
import sys
before = set(sys.modules)
sys.modules["typing_extensions"] = None
import portpicker
portpicker.lease(transport="tcp")
print({"typing", "ipaddress", "logging"} & (set(sys.modules) - before))
"""
    )
    assert (ended.stdout, ended.stderr) == ("set()\n", "")


def test_everything_public_has_a_documentation() -> None:
    import portpicker

    public = [getattr(portpicker, name) for name in portpicker.__all__]
    for kind in (portpicker.Lease, portpicker.Hold):
        public += [getattr(kind, name) for name in vars(kind) if not name.startswith("_")]
    undocumented = [thing for thing in public if not thing.__doc__]
    assert undocumented == []
