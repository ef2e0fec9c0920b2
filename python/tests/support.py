"""What several tests need: other processes, port servers that answer as told, and honest skips."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import threading
import uuid
from collections.abc import Iterable, Iterator
from typing import NoReturn

import pytest

import portpicker

#: Seconds after which a process that a test has started has failed.
DEADLINE = 60


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No port server, no candidates of the user's, and no ports from the tests before."""
    for variable in ("PORTSERVER_ADDRESS", "PORTPICKER_PORTS"):
        monkeypatch.delenv(variable, raising=False)
    yield
    for port in list(portpicker._random_ports):
        portpicker.return_port(port)
    portpicker._owned_ports.clear()
    portpicker._free_ports.clear()


def skip(name: str, reason: str) -> NoReturn:
    """Skip the running test by name, as the Rust tests do; fail where everything has to run."""
    if os.environ.get("PORTPICKER_NO_SKIP") == "1":
        pytest.fail(f"`{name}` cannot run here, and PORTPICKER_NO_SKIP is set: {reason}")
    path = os.environ.get("PORTPICKER_SKIPPED")
    if path:
        with open(path, "a") as skipped:
            reason = reason.strip().replace("\n", "; ")
            skipped.write(f"skipped: {name}: {reason}\n")
    pytest.skip(f"{name}: {reason}")


def environment(**variables: str) -> dict[str, str]:
    """Return this process's environment without what would change a pick, and with `variables`."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in ("PORTSERVER_ADDRESS", "PORTPICKER_PORTS")
    }
    return {**kept, **variables}


def python(
    code: str, *arguments: str, executable: str = sys.executable, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run `code` in a Python of its own, with the installed package."""
    return subprocess.run(
        [executable, "-c", code, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        cwd="/",  # not where the source tree would be imported from
        env=environment(**variables),
        check=False,
    )


def start_python(code: str, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    """Start `code` in a Python of its own, with pipes to talk to it."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd="/",
        env=environment(**variables),
    )


def unused_ports(count: int) -> list[int]:
    """Return ports that were unused just now, in ascending order, and that the test does not keep."""
    with contextlib.ExitStack() as leases:
        picked = portpicker.leases(count, portserver_address=False)
        return sorted(leases.enter_context(lease).port for lease in picked)


def program(name: str) -> str:
    """Return the path of a command that was installed with the package, or skip."""
    path = shutil.which(name, path=sysconfig.get_path("scripts"))
    if path is None:
        skip(name, "the installed package has no such command")
    return path


def unused_name() -> str:
    """Return the address of a server in the abstract namespace that nobody else has."""
    return f"@portpicker-test-{uuid.uuid4().hex}"


class FakeServer:
    """A port server of the original protocol that gives these answers, one for each connection.

    Then it hangs up without one, as for a refusal. Requests are kept. It is for the time of a `with`
    block.
    """

    def __init__(self, answers: Iterable[bytes], address: str | None = None) -> None:
        self.address = address or unused_name()
        self.requests: list[bytes] = []
        self._answers = iter(answers)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(self.address.replace("@", "\0", 1))
        self._listener.listen(16)
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> FakeServer:
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        # Wakes the thread, which closing would not.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(DEADLINE)
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                self.requests.append(connection.recv(1000))
                connection.sendall(next(self._answers, b""))


class Portserver:
    """The installed port server, with a pool of so many ports, for the time of a `with` block."""

    def __init__(self, count: int = 20) -> None:
        # Whoever takes one of them meanwhile has leased it.
        self.ports = unused_ports(count)
        self.address = unused_name()

    def __enter__(self) -> Portserver:
        pool = ",".join(map(str, self.ports))
        command = [program("portserver"), "--address", self.address, "--no-state", "--pool", pool]
        ready = unused_name()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notification:
            notification.bind(ready.replace("@", "\0", 1))
            notification.settimeout(DEADLINE)
            self.process = subprocess.Popen(
                command, env=environment(NOTIFY_SOCKET=ready), stderr=subprocess.DEVNULL
            )
            while b"READY=1" not in notification.recv(1000):
                pass
        return self

    def __exit__(self, *_exception: object) -> None:
        self.process.terminate()
        self.process.wait(timeout=DEADLINE)


def bind_with_every_option(port: int) -> None:
    """Bind `port` as servers do: each family and transport, with and without SO_REUSEADDR."""
    for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            for options in ((), ("SO_REUSEADDR",), ("SO_REUSEPORT",)):
                with socket.socket(family, kind) as sock:
                    for option in options:
                        sock.setsockopt(socket.SOL_SOCKET, getattr(socket, option), 1)
                    sock.bind((address, port))
                    if kind == socket.SOCK_STREAM:
                        sock.listen()


def occupy(port: int, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
    """Bind `port` on loopback, as a server does that has nothing to do with portpicker."""
    sock = socket.socket(socket.AF_INET, kind)
    sock.bind(("127.0.0.1", port))
    return sock
