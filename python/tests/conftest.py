"""What the tests share: where the installed commands are, and port servers of their own."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import DEADLINE, unused_name

# What the user has set for other programs is not for the tests.
for variable in ("PORTSERVER_ADDRESS", "PORTPICKER_PORTS"):
    os.environ.pop(variable, None)


class Server:
    """A port server in the background."""

    def __init__(self, command: list[str | Path], address: str, folder: Path) -> None:
        self.address = address
        self.pidfile = folder / f"{address}.pid"
        self.log = folder / f"{address}.log"
        options = ["--daemon", "--portserver_address", address, "--no-state"]
        options += ["--pidfile", str(self.pidfile), "--log", str(self.log)]
        # When this returns, it listens.
        subprocess.run([*command, *options], check=True, timeout=DEADLINE)
        self.pid = int(self.pidfile.read_text())
        self._pidfd = os.pidfd_open(self.pid)

    def end(self) -> None:
        """End the server, if it has not ended, and wait until it has."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGTERM)
        assert select.select([self._pidfd], [], [], DEADLINE)[0], "the server has not ended"


@pytest.fixture(scope="session")
def scripts() -> Path:
    """The folder with the commands that were installed with the package."""
    return Path(sysconfig.get_path("scripts"))


@pytest.fixture
def server_address() -> str:
    """The address of a port server in the abstract namespace that nobody else has."""
    return unused_name()


@pytest.fixture
def start_portserver(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts port servers by a command line; they run until the test ends."""
    servers = []

    def start(*command: str | Path) -> Server:
        server = Server(list(command), unused_name(), tmp_path)
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.end()


@pytest.fixture
def portserver(start_portserver: Callable[..., Server], scripts: Path) -> Server:
    """A port server that runs until the test ends."""
    return start_portserver(scripts / "portserver")
