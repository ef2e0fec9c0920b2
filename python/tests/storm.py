"""A storm of picks: many pytest workers bind what they pick, while others bind and connect.

    python python/tests/storm.py --picks 20000
    python python/tests/storm.py --picks 20000 --module google

Several pytest runs with several workers each pick ports and bind them with plain sockets: TCP and
UDP, IPv4 and IPv6. Meanwhile, in the same network, processes bind port 0 and connect as fast as
they can, and shell scripts pick with the command `portpicker` and have their ports bound too. A
pick fails if one of its binds does, or if the port has been given to somebody else who has not
given it back.

All of it happens in a network namespace of its own, which takes Linux and unshare(1), and ends
after a number of picks or of seconds. Google's portpicker, for comparison, is fetched by pip.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import fcntl
import importlib.metadata
import json
import os
import select
import shlex
import shutil
import socket
import struct
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import pytest

PICKS_PER_TEST = 5

#: Google's module, and what it needs.
GOOGLES = ["portpicker==1.6.0", "psutil==7.0.0"]

#: Sockets that a process of the storm keeps open at a time.
OPEN = 300

# What all processes of one storm know, from the environment: where results and marks are, what is
# picked with, and how many tests a run of pytest has.
FOLDER = "STORM_FOLDER"
MODULE = "STORM_MODULE"
TESTS = "STORM_TESTS"


def run(
    picks: int,
    module: str = "portpicker",
    runs: int = 4,
    workers: int = 8,
    limit: float = 900,
    command: str | None = None,
) -> dict[str, Any]:
    """Let a storm loose, and return what came of it.

    Args:
        picks: how many, at least: rounded up to whole tests.
        module: `"portpicker"` as it is installed, or `"google"` for Google's.
        runs: pytest runs at once.
        workers: workers of pytest-xdist in each run.
        limit: seconds after which everything is ended.
        command: the command `portpicker` for the shell scripts. There are none without it, and none
            beside Google's module, which knows nothing of their leases.

    Returns:
        `version`, of what was picked with; `seconds`; `picks`, of pytest, with how many `failures`:
        ports `in_use`, ports `shared` with somebody else, or `none` at all; `shell`, the same of
        the shell scripts; and how often processes of the storm did `bind` and `connect`.

    Raises:
        RuntimeError: a process could not do its work, or did not within `limit`.
        subprocess.CalledProcessError: Google's module could not be fetched.
    """
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, FOLDER: folder, MODULE: module}
        for name in ("PORTSERVER_ADDRESS", "PORTPICKER_PORTS"):
            environment.pop(name, None)
        if module == "google":
            command = None
            packages = f"{folder}/google"
            path = os.environ.get("PYTHONPATH")
            environment["PYTHONPATH"] = os.pathsep.join([packages, *([path] if path else [])])
            pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
            subprocess.run([*pip, "install", "--target", packages, *GOOGLES], check=True)
        options = {"picks": picks, "runs": runs, "workers": workers, "limit": limit}
        in_namespace = subprocess.run(
            [*namespace(), *role("storm", json.dumps({**options, "command": command}))],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        if in_namespace.returncode != 0:
            raise RuntimeError("the storm failed; the reason is on standard error")
        came: dict[str, Any] = json.loads(in_namespace.stdout)
        return came


def describe(came: dict[str, Any]) -> str:
    """Return in words what `run` returned."""
    shell = came["shell"]
    scripts = f"; {shell['failures']} of {shell['picks']:,} picks of shell scripts failed"
    return (
        f"portpicker {came['version']}: {came['failures']} of {came['picks']:,} picks failed "
        f"({came['in_use']} in use, {came['shared']} given to two at once, {came['none']} without "
        f"a port) in {came['seconds']:.1f} s\n"
        f"meanwhile: {came['bind']:,} bind(0), {came['connect']:,} connect()"
        f"{scripts if shell['picks'] else ''}"
    )


def namespace() -> list[str]:
    """Return the command that runs another one in a network namespace of its own."""
    return ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--net"]


# --- What a run of pytest does --------------------------------------------------------------------


@pytest.mark.parametrize("number", range(int(os.environ.get(TESTS, "0"))))
def test_picked_ports_can_be_bound(number: int, request: pytest.FixtureRequest) -> None:
    results: Counter[str] = Counter()
    with _picked(number, request, results) as ports, _Binder(results) as binder:
        for port in ports:
            binder.bind(port)
    _record("pytest", results)
    assert not results["failures"], dict(results)


@contextlib.contextmanager
def _picked(
    number: int, request: pytest.FixtureRequest, results: Counter[str]
) -> Iterator[list[int]]:
    """Pick with the fixture and the function by turns; Google's module has only the latter."""
    import portpicker

    results["picks"] = PICKS_PER_TEST
    if os.environ[MODULE] == "portpicker" and number % 2:
        yield request.getfixturevalue("leased_ports")(PICKS_PER_TEST)
        return
    ports = []
    for _ in range(PICKS_PER_TEST):
        try:
            ports.append(portpicker.pick_unused_port())
        except portpicker.NoFreePortFoundError:
            results["none"] += 1
            results["failures"] += 1
    yield ports
    for port in ports:
        portpicker.return_port(port)


class _Binder:
    """Binds ports until the end of a block, and counts those that it could not."""

    def __init__(self, results: Counter[str]) -> None:
        self.results = results
        self.closing = contextlib.ExitStack()

    def __enter__(self) -> _Binder:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.closing.close()

    def bind(self, port: int) -> None:
        in_use = shared = 0
        # Two who were given the same port may bind it one after the other, with luck.
        mark = Path(os.environ[FOLDER], f"port-{port}")
        try:
            mark.touch(exist_ok=False)
            self.closing.callback(mark.unlink)
        except FileExistsError:
            shared = 1
        # The wildcard of both families, or the loopback of each, by turns.
        for host in ["::"] if port % 2 else ["127.0.0.1", "::1"]:
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                # No options: whoever else is bound to the port is noticed.
                sock = self.closing.enter_context(socket.socket(_family(host), kind))
                try:
                    sock.bind((host, port))
                    if kind == socket.SOCK_STREAM:
                        sock.listen()
                except OSError as error:
                    if error.errno != errno.EADDRINUSE:
                        raise
                    in_use = 1
        self.results["in_use"] += in_use
        self.results["shared"] += shared
        self.results["failures"] += in_use | shared


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


# --- What others do meanwhile ---------------------------------------------------------------------


def bind_storm() -> None:
    """Bind port 0: on several addresses, on both transports, with and without SO_REUSEADDR."""
    open_sockets: deque[socket.socket] = deque()
    results: Counter[str] = Counter()
    for count in _until_stopped():
        host = ("0.0.0.0", "::", "127.0.0.1", "::1")[count % 4]
        kind = (socket.SOCK_STREAM, socket.SOCK_DGRAM)[count // 4 % 2]
        sock = socket.socket(_family(host), kind)
        open_sockets.append(sock)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, count // 8 % 2)
        # The kernel may have no port left for now.
        with contextlib.suppress(OSError):
            sock.bind((host, 0))
            results["done"] += 1
        if len(open_sockets) > OPEN:
            open_sockets.popleft().close()
    _record("bind", results)


def connect_storm() -> None:
    """Connect on both transports, to a server of this process."""
    server = socket.create_server(("127.0.0.1", 0))
    open_sockets: deque[socket.socket] = deque()
    results: Counter[str] = Counter()
    for count in _until_stopped():
        kind = (socket.SOCK_DGRAM, *[socket.SOCK_STREAM] * 3)[count % 4]
        client = socket.socket(type=kind)
        open_sockets.append(client)
        if count % 10:
            # Reset when it is closed: TIME-WAIT, which the others end in, would use up all ports.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with contextlib.suppress(OSError):
            client.connect(server.getsockname())
            results["done"] += 1
            if kind == socket.SOCK_STREAM:
                open_sockets.append(server.accept()[0])
        while len(open_sockets) > OPEN:
            open_sockets.popleft().close()
    _record("connect", results)


def shell_storm(command: str) -> None:
    """Bind what shell scripts pick, for as long as each script runs."""
    command = shlex.quote(command)
    script = f"set -e; {command} $$; {command} pick -n 2 --owner $$; echo; read -r end"
    for _ in _until_stopped():
        results: Counter[str] = Counter()
        shell = subprocess.Popen(
            ["sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        with shell, _Binder(results) as binder:
            assert shell.stdout is not None
            for line in iter(shell.stdout.readline, "\n"):
                # A script without a port has said why, and ended.
                binder.bind(int(line))
                results["picks"] += 1
        _record("shell", results)


def _until_stopped() -> Iterator[int]:
    """Count from 0 until standard input ends."""
    count = 0
    while not select.select([sys.stdin], [], [], 0)[0]:
        yield count
        count += 1


# --- The storm ------------------------------------------------------------------------------------


def storm(text: str) -> None:
    """Do what `run` is to do in this network namespace, and print what it is to return."""
    options = json.loads(text)
    _set_loopback_up()
    others = [["bind_storm"], ["connect_storm"]]
    if options["command"]:
        others.append(["shell_storm", options["command"]])
    tests = -(-options["picks"] // (PICKS_PER_TEST * options["runs"]))
    pytest_run = [
        *[sys.executable, "-m", "pytest", __file__, "-n", str(options["workers"])],
        *["-q", "--tb=line", "--noconftest", "-p", "no:cacheprovider"],
        *["-c", os.devnull, "--rootdir", os.environ[FOLDER]],
        # The plugin is not Google's, and cannot be loaded with Google's module.
        *(["-p", "no:portpicker"] if os.environ[MODULE] == "google" else []),
    ]
    start = time.monotonic()
    with contextlib.ExitStack() as processes:
        stormers = [processes.enter_context(_Process(role(*other))) for other in others]
        pytests = []
        for number in range(options["runs"]):
            # pytest's own folder is another user's, for a root who is none outside.
            folder = f"--basetemp={os.environ[FOLDER]}/run-{number}"
            process = _Process([*pytest_run, folder], {TESTS: str(tests)})
            pytests.append(processes.enter_context(process))
        for process in pytests:
            # 1: a test has failed. The results say why.
            process.wait(start + options["limit"], (0, 1))
        seconds = time.monotonic() - start
        for process in stormers:
            process.stop()
            process.wait(time.monotonic() + 60, (0,))
        results = _recorded("pytest")
        if results["picks"] != tests * options["runs"] * PICKS_PER_TEST:
            raise RuntimeError(f"only {results['picks']} picks were made: {pytests[0].said()}")
    kinds = ("picks", "failures", "in_use", "shared", "none")
    came = {
        "version": importlib.metadata.version("portpicker"),
        "seconds": seconds,
        **{kind: results[kind] for kind in kinds},
        "shell": {kind: _recorded("shell")[kind] for kind in kinds},
        "bind": _recorded("bind")["done"],
        "connect": _recorded("connect")["done"],
    }
    print(json.dumps(came))


class _Process:
    """A process that has ended, or is killed, at the end of a block."""

    def __init__(self, command: list[str], environment: dict[str, str] | None = None) -> None:
        self.output: TextIO = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=self.output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
        )

    def __enter__(self) -> _Process:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.process.kill()
        self.process.communicate()
        self.output.close()

    def stop(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()

    def wait(self, deadline: float, allowed: tuple[int, ...]) -> None:
        try:
            status = self.process.wait(max(0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"{self.process.args!r} takes too long: {self.said()}") from None
        if status not in allowed:
            raise RuntimeError(f"{self.process.args!r} ended with {status}: {self.said()}")

    def said(self) -> str:
        self.output.seek(0)
        return self.output.read()[-4000:]


def role(*arguments: str) -> list[str]:
    """Return the command that calls a function of this file in a process of its own."""
    return [sys.executable, __file__, *arguments]


def _record(who: str, results: Counter[str]) -> None:
    with open(Path(os.environ[FOLDER], f"{who}-{os.getpid()}"), "a") as file:
        file.write(json.dumps(results) + "\n")


def _recorded(who: str) -> Counter[str]:
    results: Counter[str] = Counter()
    for file in Path(os.environ[FOLDER]).glob(f"{who}-*"):
        for line in file.read_text().splitlines():
            results.update(json.loads(line))
    return results


def _set_loopback_up() -> None:
    SIOCSIFFLAGS, IFF_UP = 0x8914, 1
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", IFF_UP))


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Pick and bind ports in a storm.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--picks", type=int, default=20_000, help="how many")
    parser.add_argument(
        "--module",
        choices=("portpicker", "google"),
        default="portpicker",
        help="what to pick with: portpicker as it is installed, or Google's 1.6.0",
    )
    parser.add_argument("--runs", type=int, default=4, help="pytest runs at once")
    parser.add_argument("--workers", type=int, default=8, help="workers in each run")
    parser.add_argument("--limit", type=float, default=900, help="seconds, at most")
    parser.add_argument(
        "--command",
        default=shutil.which("portpicker", path=sysconfig.get_path("scripts")),
        help="what shell scripts pick with, if the module is not Google's",
    )
    options = parser.parse_args()
    came = run(**vars(options))
    print(describe(came))
    failures = came["failures"] + came["shell"]["failures"]
    return 1 if failures and options.module != "google" else 0


if __name__ == "__main__":
    roles = {act.__name__: act for act in (storm, bind_storm, connect_storm, shell_storm)}
    if sys.argv[1:] and sys.argv[1] in roles:
        roles[sys.argv[1]](*sys.argv[2:])
    else:
        sys.exit(main())
