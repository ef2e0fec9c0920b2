"""A command that binds a held port, started from Python."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import portpicker
import pytest

from support import DEADLINE, skip

# A server that sets no options, on all that a hold covers; it ends with its standard input.
SERVER = """
import os, socket, sys
port = int(os.environ["PORT"])
for _ in range(3):
    with socket.socket() as tcp, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        tcp.bind(("127.0.0.1", port))
        tcp.listen()
        udp.bind(("", port))
print("bound", flush=True)
tcp = socket.socket()
tcp.bind(("", port))
tcp.listen()
print("listening", flush=True)
sys.stdin.read()
"""


def start(hold: portpicker.Hold, **options: object) -> subprocess.Popen[str]:
    return hold.popen(
        [sys.executable, "-c", SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        **options,
    )


def assert_nobody_can_bind(port: int) -> None:
    for family in (socket.AF_INET, socket.AF_INET6):
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            with socket.socket(family, kind) as thief:
                thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                with pytest.raises(OSError) as refusal:
                    thief.bind(("", port))
                assert refusal.value.errno == errno.EADDRINUSE


def test_a_command_without_options_binds_a_port_that_nobody_else_can() -> None:
    hold = portpicker.hold()
    with start(hold) as server:
        assert server.stdout is not None and server.stdin is not None
        assert server.stdout.readline() == "bound\n"
        assert server.stdout.readline() == "listening\n"
        assert portpicker.wait_listening(hold.port, timeout=60)
        socket.create_connection(("127.0.0.1", hold.port)).close()
        assert_nobody_can_bind(hold.port)
        assert hold.released, "it is the command's"
        server.stdin.close()
        assert server.wait() == 0


def test_the_port_is_free_when_the_command_has_ended() -> None:
    hold = portpicker.hold()
    with hold.popen(["true"]) as command:
        assert command.wait() == 0
    assert command.args == ["true"]
    # The thread that answers sees the end a moment later.
    portpicker.lease(ports=hold.port, portserver_address=False, wait=60).release()


def test_the_environment_and_the_shell_are_as_popen_has_them() -> None:
    with portpicker.hold().popen(
        "echo $PORT $OTHER", shell=True, env={"OTHER": "other"}, stdout=subprocess.PIPE
    ) as command:
        assert command.stdout is not None
        port, other = command.stdout.read().split()
    assert 0 < int(port) < 65536 and other == b"other"
    command = portpicker.hold().popen(b"exit 3", shell=True)
    assert command.wait() == 3
    with portpicker.hold() as hold:
        command = hold.popen(["env"], env={}, stdout=subprocess.PIPE, text=True)
        assert command.communicate()[0] == f"PORT={hold.port}\n"


def test_a_command_may_be_relative_to_its_folder(tmp_path: Path) -> None:
    (tmp_path / "command").symlink_to("/bin/true")
    names: tuple[Any, ...] = ("./command", b"./command", Path(".") / ".." / tmp_path.name / "command")
    for name in names:
        assert portpicker.hold().popen([name], cwd=tmp_path).wait() == 0
    with pytest.raises(FileNotFoundError, match="'./command'"):
        portpicker.hold().popen(["./command"], cwd="/")


def test_several_ports_go_to_one_command() -> None:
    script = "import os, socket, sys; [socket.create_server(('', int(p))) for p in sys.argv[1:]]"
    holds = portpicker.holds(3)
    ports = [hold.port for hold in holds]
    with portpicker.popen([sys.executable, "-c", script, *map(str, ports)], holds) as command:
        assert command.wait() == 0


def test_below_another_hand_off_the_outer_one_carries_out_the_binds() -> None:
    script = (
        "import portpicker, subprocess, sys\n"
        "inner = portpicker.hold()\n"
        "server = 'import socket, os; s = socket.socket(); s.bind((\"\", int(os.environ[\"PORT\"])));'\n"
        "sys.exit(inner.popen([sys.executable, '-c', server], strict=True).wait())"
    )
    with portpicker.hold().popen([sys.executable, "-W", "error", "-c", script]) as command:
        assert command.wait() == 0


def test_what_cannot_be_started_says_so_and_the_hold_goes_on() -> None:
    with portpicker.hold() as hold:
        with pytest.raises(FileNotFoundError, match="no-such-command"):
            hold.popen(["no-such-command"])
        with pytest.raises(TypeError, match="executable"):
            hold.popen(["true"], executable="/bin/true")
        with pytest.raises(ValueError, match="at least one hold"):
            portpicker.popen(["true"], [])
        for wrong in (hold, [hold, hold.port], None):
            with pytest.raises(TypeError, match="^holds must be a sequence of holds, not "):
                portpicker.popen(["true"], wrong)  # type: ignore[arg-type]
        with pytest.raises(PermissionError, match="/etc/passwd"):
            hold.popen(["/etc/passwd"])
        assert not hold.released
        assert_nobody_can_bind(hold.port)


def test_a_strict_hand_off_lets_go_of_no_port() -> None:
    command = (
        "import ctypes, os, socket\n"
        "ctypes.CDLL(None).prctl(4, 0)\n"  # PR_SET_DUMPABLE: nobody may copy its sockets
        "socket.socket().bind(('127.0.0.1', int(os.environ['PORT'])))"
    )
    script = (
        "import portpicker, subprocess, sys\n"
        "for strict in (False, True):\n"
        "    command = portpicker.hold().popen([sys.executable, '-c', sys.argv[1]], strict=strict,\n"
        "                                      stderr=subprocess.PIPE, text=True)\n"
        "    print('in use' if 'Address already in use' in command.communicate()[1] else 'bound')"
    )
    # Root could.
    unprivileged = ["setpriv", "--bounding-set=-sys_ptrace"]
    if os.geteuid() == 0 and shutil.which("setpriv") is None:
        skip("a strict hand-off", "there is no setpriv(1)")
    ended = subprocess.run(
        [*(unprivileged if os.geteuid() == 0 else []), sys.executable, "-c", script, command],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert (ended.stdout, ended.stderr) == ("bound\nin use\n", "")


def test_a_hold_that_was_released_starts_nothing() -> None:
    hold = portpicker.hold()
    hold.release()
    with pytest.raises(ValueError, match="released"):
        hold.popen(["true"])


def test_waiting_for_somebody_who_listens_ends() -> None:
    with portpicker.lease() as lease:
        assert not portpicker.wait_listening(lease.port, timeout=0)
        with socket.create_server(("127.0.0.1", lease.port)):
            assert portpicker.wait_listening(lease.port)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
            assert not portpicker.wait_listening(lease.port, 0, "udp")
            server.bind(("127.0.0.1", lease.port))
            assert portpicker.wait_listening(lease.port, 60, transport="udp")


def test_it_is_the_installed_program_that_starts_commands() -> None:
    from portpicker import _hand_off

    assert os.path.dirname(_hand_off._program()) == os.path.dirname(sys.executable)
