"""Does the module serve the programs in the field that call it, each in its own way?"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import unittest
from pathlib import Path
from unittest import mock

import pytest

import portpicker
from portpicker import pick_unused_port
from support import (
    DEADLINE,
    FakeServer,
    Portserver,
    bind_with_every_option,
    environment,
    fresh as fresh,
    occupy,
    program,
    python,
)

pytestmark = pytest.mark.usefixtures("fresh")


def test_tensorflow_picks_until_it_has_new_ports_above_10000() -> None:
    """Its multi-worker tests, and Keras's."""

    def pick_unused_port_tensorflow() -> int:
        try:
            while True:
                port = portpicker.pick_unused_port()
                if port > 10000 and port not in assigned:
                    assigned.add(port)
                    return port
        except portpicker.NoFreePortFoundError:
            raise unittest.SkipTest("no ports") from None

    assigned: set[int] = set()
    rejected = 0
    with mock.patch.object(
        portpicker, "pick_unused_port", wraps=portpicker.pick_unused_port
    ) as pick:
        for _ in range(50):
            pick_unused_port_tensorflow()
        rejected = pick.call_count - 50
    assert len(assigned) == 50
    assert rejected == 0, "each pick is above 10000 and new"
    assert issubclass(portpicker.NoFreePortFoundError, Exception)


def test_jax_passes_an_address_that_may_be_none() -> None:
    assert "JAX_PORTSERVER_ADDRESS" not in os.environ
    address = os.environ.get("JAX_PORTSERVER_ADDRESS")
    assert portpicker.pick_unused_port(portserver_address=address) > 0
    with FakeServer([b"4321\n"]) as server:
        assert portpicker.pick_unused_port(portserver_address=server.address) == 4321


def test_jax_starts_a_daemon_that_bazel_tests_find_by_its_address(tmp_path: Path) -> None:
    """Its CI script: --daemon, --pidfile, and PORTSERVER_ADDRESS in the tests' environment."""
    address, pidfile = f"@jax-{os.getpid()}", tmp_path / "pid"
    lease = portpicker.lease()
    lease.release()  # its number, for the pool
    subprocess.run(
        [sys.executable, program("portserver.py"), "--daemon", f"--pidfile={pidfile}",
         f"--portserver_address={address}", f"--portserver_static_pool={lease.port}-{lease.port}"],
        check=True,
        timeout=DEADLINE,
        env=environment(XDG_STATE_HOME=str(tmp_path), XDG_RUNTIME_DIR=str(tmp_path)),
    )  # fmt: skip
    try:
        test = python(
            "import portpicker; print(portpicker.pick_unused_port())", PORTSERVER_ADDRESS=address
        )
        assert (test.stdout, test.stderr) == (f"{lease.port}\n", "")
    finally:
        os.kill(int(pidfile.read_text()), 15)


def test_tf_agents_names_a_server_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert portpicker.pick_unused_port(portserver_address="localhost") > 0
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("Socket error when connecting to portserver: ")


@pytest.mark.parametrize("logs", [True, False], ids=["with logging", "without logging"])
@pytest.mark.parametrize("kept_by", ["__main__", "a cycle", "builtins"])
def test_reverb_returns_ports_when_the_interpreter_shuts_down(logs: bool, kept_by: str) -> None:
    """Its server has `return_port` in `__del__`, also for a port that the user has chosen."""
    ended = python(
        f"""
{"import logging" if logs else ""}
import builtins, os
import portpicker

class Server:
    def __init__(self, port=None):
        self.port = port or portpicker.pick_unused_port()

    def __del__(self, write=os.write):
        portpicker.return_port(self.port)
        write(1, b"returned\\n")

servers = [Server(), Server(12345)]
if {kept_by!r} == "a cycle":
    servers.append(servers)
if {kept_by!r} == "builtins":
    builtins.servers = servers
if {kept_by!r} != "__main__":
    del servers
"""
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "returned\nreturned\n", "")


def test_reverb_logs_the_return_of_a_foreign_port(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    portpicker.return_port(12345)
    assert caplog.messages == ["Returning a port that wasn't given by portpicker: 12345"]


def test_launchpad_formats_ports_and_sets_the_server_late(monkeypatch: pytest.MonkeyPatch) -> None:
    first = f"localhost:{portpicker.pick_unused_port()}"
    assert first.partition(":")[2].isdigit()
    with FakeServer([b"4321\n"]) as server:
        monkeypatch.setenv("PORTSERVER_ADDRESS", server.address)
        assert "localhost:{}".format(portpicker.pick_unused_port()) == "localhost:4321"


def test_pysc2_looks_for_neighbours_itself() -> None:
    """Picks, drops `None`, asks about the following ports, and returns some that it never picked."""

    def pick_contiguous(count: int) -> list[int]:
        for _ in range(100):
            start = portpicker.pick_unused_port()
            following = range(start + 1, start + count)
            if all(portpicker.is_port_free(port) for port in following):
                return [start, *following]
            portpicker.return_port(start)
        raise AssertionError("no neighbours")

    ports: set[int | None] = {portpicker.pick_unused_port() for _ in range(5)}
    ports.discard(None)
    assert len(ports) == 5
    run = pick_contiguous(4)
    for port in run:
        bind_with_every_option(port)
    for port in run:
        portpicker.return_port(port)
    portpicker.return_port(run[1])  # it was never picked


def test_python_sc2_picks_seven_and_scans_upwards() -> None:
    class Portconfig:
        def __init__(self) -> None:
            self.ports = [portpicker.pick_unused_port() for _ in range(7)]

        def clean(self) -> None:
            while self.ports:
                portpicker.return_port(self.ports.pop())

    def next_free(lowest: int) -> int:
        while not portpicker.is_port_free(lowest):
            lowest += 1
        return lowest

    config = Portconfig()
    with occupy(config.ports[0]):
        assert next_free(config.ports[0]) > config.ports[0]
    assert next_free(config.ports[1]) == config.ports[1]
    config.clean()
    assert not portpicker._random_ports


def test_mobly_patches_both_names() -> None:
    with mock.patch("portpicker.PickUnusedPort", return_value=1111):
        assert portpicker.PickUnusedPort() == 1111
    with mock.patch("portpicker.pick_unused_port", return_value=2222) as pick:
        assert portpicker.pick_unused_port() == 2222
        pick.assert_called_once_with()
    assert portpicker.PickUnusedPort is portpicker.pick_unused_port is pick_unused_port


def test_the_app_engine_sdk_uses_the_old_names() -> None:
    port = portpicker.PickUnusedPort()
    assert str(port) == f"{port}" == "%d" % port
    assert type(port) is int
    assert portpicker.IsPortFree(port)
    assert portpicker.Bind(port, socket.SOCK_STREAM, socket.IPPROTO_TCP) == port
    with FakeServer([b"4321\n"]) as server:
        assert portpicker.GetPortFromPortServer(server.address, pid=77) == 4321
        assert server.requests == [b"77\n"]


def test_gcloud_asks_whether_the_port_it_has_picked_is_free() -> None:
    """Then its tunnel, or an emulator, binds it."""
    port = portpicker.pick_unused_port()
    assert portpicker.is_port_free(port)
    bind_with_every_option(port)
    assert portpicker.is_port_free(port), "a bind that is over leaves nothing behind"


def test_gcloud_asks_about_a_port_of_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    with Portserver() as server:
        monkeypatch.setenv("PORTSERVER_ADDRESS", server.address)
        port = portpicker.pick_unused_port()
        assert port in server.ports
        assert portpicker.is_port_free(port), "its lock is the server's, and its lease ours"
        bind_with_every_option(port)


def test_the_spectrum_access_system_scans_a_range() -> None:
    """And returns what it has picked when it is done."""
    port = portpicker.pick_unused_port()
    free = [other for other in range(port - 20, port + 20) if portpicker.is_port_free(other)]
    assert port in free
    with occupy(port, socket.SOCK_DGRAM):
        assert port not in [p for p in range(port - 1, port + 2) if portpicker.is_port_free(p)]
    portpicker.return_port(port)
    assert port not in portpicker._random_ports


def test_oppia_has_a_server_at_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "portserver.sock")
    with FakeServer([b"4321\n", b"4322\n"], path):
        monkeypatch.setenv("PORTSERVER_ADDRESS", path)
        assert portpicker.pick_unused_port() == 4321
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("PORTSERVER_ADDRESS", "portserver.sock")
        assert portpicker.pick_unused_port() == 4322


def test_phoenix_patches_what_it_imports_by_name() -> None:
    with mock.patch("portpicker.pick_unused_port", return_value=5432):
        from portpicker import pick_unused_port as patched

        assert patched() == 5432
    assert pick_unused_port() != 5432


@pytest.mark.parametrize("command", ["port=`{} -m portpicker $$`", "port=$({} -m portpicker)"])
def test_shell_scripts_run_the_module(command: str) -> None:
    program("portpicker")
    script = command.format(sys.executable) + "; echo $port"
    shell = subprocess.run(
        ["bash", "-c", script],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        cwd="/",
        env=environment(),
        check=True,
    )
    assert shell.stderr == ""
    assert int(shell.stdout) > 10000


def test_intrinsic_takes_the_variable_as_a_sign_of_a_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """It stays in the environment, for the C++ code and the processes below."""
    with FakeServer([b"4321\n"]) as server:
        monkeypatch.setenv("PORTSERVER_ADDRESS", server.address)
        assert portpicker.pick_unused_port() == 4321
        seen = subprocess.run(
            ["printenv", "PORTSERVER_ADDRESS"], capture_output=True, text=True, check=True
        )
        assert seen.stdout == f"{server.address}\n"


def test_smac_replaces_functions_of_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    returned: list[int] = []
    monkeypatch.setattr(portpicker, "pick_unused_port", lambda: 1234)
    monkeypatch.setattr(portpicker, "return_port", returned.append)
    portpicker.return_port(portpicker.pick_unused_port())
    assert returned == [1234]
    portpicker.anything = 1  # type: ignore[attr-defined]
    del portpicker.anything  # type: ignore[attr-defined]


class TestMocksOfUnitTests:
    """What portpicker's own tests, and copies of them, put in the place of its parts."""

    def test_the_server_is_asked_through_pythons_sockets(self) -> None:
        server = mock.Mock()
        server.recv.return_value = b"42768\n"
        with mock.patch.object(socket, "socket", return_value=server) as sockets:
            assert portpicker.get_port_from_port_server("@name", pid=1234) == 42768
        sockets.assert_called_once_with(socket.AF_UNIX, socket.SOCK_STREAM)
        # These calls and no others: a fake that knows nothing else is enough.
        assert server.mock_calls == [
            mock.call.connect("\0name"),
            mock.call.sendall(b"1234\n"),
            mock.call.recv(1024),
            mock.call.close(),
        ]

    def test_the_process_is_the_one_that_python_reports(self) -> None:
        server = mock.Mock()
        server.recv.return_value = b"52768\n"
        with mock.patch.object(socket, "socket", return_value=server):
            with mock.patch.object(os, "getpid", return_value=9876):
                assert portpicker.get_port_from_port_server("portserver") == 52768
        server.sendall.assert_called_once_with(b"9876\n")

    @mock.patch.dict(os.environ, {"PORTSERVER_ADDRESS": "portserver"})
    def test_a_servers_port_is_picked_again_once_it_is_returned(self) -> None:
        granted = [portpicker.lease(portserver_address=False).port for _ in range(2)]
        server = mock.Mock()
        server.recv.side_effect = [b"%d\n" % port for port in granted]
        with mock.patch.object(socket, "socket", return_value=server):
            assert [portpicker.pick_unused_port() for _ in range(2)] == granted
            portpicker.return_port(granted[0])
            assert portpicker.pick_unused_port() == granted[0]

    def test_a_server_is_enough(self) -> None:
        with FakeServer([b"4321\n"]) as server, mock.patch.object(
            portpicker, "_pick_unused_port_without_server", side_effect=Exception("eek!")
        ):
            address = {"PORTSERVER_ADDRESS": server.address}
            with mock.patch.dict(os.environ, address):
                assert portpicker.pick_unused_port() == 4321
            with pytest.raises(Exception, match="eek!"):
                portpicker.pick_unused_port()

    def test_the_environment_may_be_changed_or_replaced(self) -> None:
        with FakeServer([b"%d\n" % port for port in range(4321, 4325)]) as server:
            address = {"PORTSERVER_ADDRESS": server.address}
            with mock.patch.dict(os.environ, address):
                assert portpicker.pick_unused_port() == 4321
            with mock.patch.dict("os.environ", address, clear=True):
                assert portpicker.pick_unused_port() == 4322
            with mock.patch.object(os, "environ", address):
                assert portpicker.pick_unused_port() == 4323
            with mock.patch("os.environ", dict(address)):
                assert portpicker.pick_unused_port() == 4324
                del os.environ["PORTSERVER_ADDRESS"]
                assert portpicker.pick_unused_port() in portpicker._random_ports
            assert portpicker.pick_unused_port() in portpicker._random_ports

    def test_without_a_server_this_is_called(self) -> None:
        with mock.patch.object(
            portpicker, "_pick_unused_port_without_server", return_value=1234
        ) as pick:
            assert portpicker.pick_unused_port() == 1234
        pick.assert_called_once_with()
        assert portpicker._pick_unused_port_without_server() in portpicker._random_ports

    def test_a_reserved_port_is_picked_again_and_again(self) -> None:
        port = portpicker.lease().port
        portpicker.add_reserved_port(port)
        for _ in range(3):
            assert portpicker.pick_unused_port() == port
            assert portpicker._owned_ports == {port} and not portpicker._free_ports
            portpicker.return_port(port)
            assert portpicker._free_ports == {port} and not portpicker._owned_ports

    def test_the_sets_may_be_cleared_filled_and_replaced(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        port = portpicker.pick_unused_port()
        assert portpicker._random_ports == {port}
        for ports in (portpicker._random_ports, portpicker._owned_ports, portpicker._free_ports):
            ports.clear()
        portpicker.return_port(port)
        assert not portpicker._free_ports, "a foreign port now"
        reserved = portpicker.lease().port
        monkeypatch.setattr(portpicker, "_free_ports", {reserved})
        assert portpicker.pick_unused_port() == reserved

    def test_a_socket_that_fails_is_a_port_in_use(self) -> None:
        port = portpicker.pick_unused_port()
        with mock.patch.object(socket, "socket", side_effect=OSError("fake", 0)):
            assert not portpicker.is_port_free(port)

    def test_nothing_is_known_of_windows_here(self) -> None:
        assert portpicker._winapi is None
