"""Do the same calls have the same results as with Google's portpicker 1.6.0?

It is fetched with pip, from the index or from pip's cache, into a virtual environment of its own. Its
tests are fetched too, and run against this module. Neither becomes part of the project.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from support import DEADLINE, environment, python, skip

PACKAGES = ["portpicker==1.6.0", "psutil==7.0.0"]

#: What a call does, by the name of the call. Each records its result, what it prints and logs, and
#: the module's sets, in terms that do not depend on which port it was.
CALLS = r'''
import contextlib, io, json, logging, os, resource, socket, threading
from unittest import mock

import portpicker

STREAM = (socket.SOCK_STREAM, socket.IPPROTO_TCP)
DATAGRAM = (socket.SOCK_DGRAM, socket.IPPROTO_UDP)


class FakeServer:
    """Answers each connection, and keeps the requests."""

    def __init__(self, *answers, address=None):
        self.address = address or f"@portpicker-test-{os.getpid()}-{id(self)}"
        self.requests = []
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.address.replace("@", "\0"))
        self.listener.listen()
        self.thread = threading.Thread(target=self.serve, args=answers)
        self.thread.start()

    def serve(self, *answers):
        for answer in answers:
            connection, _ = self.listener.accept()
            self.requests.append(connection.recv(1000))
            connection.sendall(answer)
            connection.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.thread.join(10)
        self.listener.close()


class Logs(logging.Handler):
    def emit(self, record):
        print("log:", record.levelname, record.name, record.getMessage())


def occupied(kind, *options):
    """Returns a socket on a port, with options, as a server has it."""
    sock = socket.socket(socket.AF_INET, kind)
    for option in options:
        sock.setsockopt(socket.SOL_SOCKET, option, 1)
    sock.bind(("127.0.0.1", 0))
    if kind == socket.SOCK_STREAM:
        sock.listen()
    return sock


def describe(value, known):
    """Returns a value in words, with ports that are not known left out."""
    if isinstance(value, bool) or value is None:
        return repr(value)
    if isinstance(value, int):
        return repr(value) if value in known or not 1024 < value < 65536 else "a port"
    if isinstance(value, (list, tuple)):
        return [describe(each, known) for each in value]
    return f"{type(value).__name__} {value!r}"


calls = {}


def call(function):
    calls[function.__name__.replace("_", " ")] = function


# --- picking ---------------------------------------------------------------------------------------

@call
def a_pick():
    port = portpicker.pick_unused_port()
    return port, port in portpicker._random_ports

@call
def a_pick_by_position():
    return portpicker.pick_unused_port(123, None)

@call
def a_pick_by_keywords():
    return portpicker.pick_unused_port(pid=None, portserver_address="")

@call
def a_pick_with_too_many_arguments():
    return portpicker.pick_unused_port(1, None, 3)

@call
def twenty_picks_differ():
    return len({portpicker.pick_unused_port() for _ in range(20)}) == 20

@call
def a_picked_port_is_free():
    port = portpicker.pick_unused_port()
    return portpicker.is_port_free(port) == port

@call
def the_private_pick():
    return portpicker._pick_unused_port_without_server()

@call
def a_pick_when_there_is_no_port():
    with mock.patch.object(portpicker, "_pick_unused_port_without_server",
                           side_effect=portpicker.NoFreePortFoundError()):
        portpicker.pick_unused_port()

@call
def the_exception():
    error = portpicker.NoFreePortFoundError()
    return repr(error), [base.__name__ for base in type(error).__mro__], type(error).__module__

@call
def old_names():
    return [getattr(portpicker, old) is getattr(portpicker, new) for old, new in (
        ("Bind", "bind"), ("IsPortFree", "is_port_free"), ("PickUnusedPort", "pick_unused_port"),
        ("GetPortFromPortServer", "get_port_from_port_server"))]

@call
def the_state():
    return [f"{type(ports).__name__} {len(ports)}" for ports in
            (portpicker._free_ports, portpicker._owned_ports, portpicker._random_ports)]

@call
def windows():
    return portpicker._winapi

# --- asking ----------------------------------------------------------------------------------------

@call
def a_tcp_server():
    with occupied(socket.SOCK_STREAM) as server:
        port = server.getsockname()[1]
        return [portpicker.is_port_free(port), portpicker.bind(port, *STREAM)]

@call
def a_tcp_server_with_reuse_address():
    with occupied(socket.SOCK_STREAM, socket.SO_REUSEADDR) as server:
        port = server.getsockname()[1]
        return [portpicker.is_port_free(port), portpicker.bind(port, *STREAM)]

@call
def a_udp_server():
    with occupied(socket.SOCK_DGRAM) as server:
        port = server.getsockname()[1]
        return [portpicker.is_port_free(port), portpicker.bind(port, *DATAGRAM)]

@call
def a_udp_server_with_reuse_address():
    with occupied(socket.SOCK_DGRAM, socket.SO_REUSEADDR) as server:
        port = server.getsockname()[1]
        return [portpicker.is_port_free(port), portpicker.bind(port, *DATAGRAM)]

@call
def a_port_that_is_bound_and_does_not_listen():
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("", 0))
        port = holder.getsockname()[1]
        return [portpicker.is_port_free(port), portpicker.bind(port, *STREAM)]

@call
def a_port_in_time_wait():
    with occupied(socket.SOCK_STREAM, socket.SO_REUSEADDR) as server:
        port = server.getsockname()[1]
        with socket.create_connection(server.getsockname()) as client:
            server.accept()[0].close()
            client.recv(1)
    return [portpicker.is_port_free(port), portpicker.bind(port, *STREAM)]

@call
def a_bind():
    port = portpicker.pick_unused_port()
    return [portpicker.bind(port, *STREAM) == port, portpicker.bind(port, *DATAGRAM) == port]

@call
def a_bind_of_port_0():
    return [portpicker.bind(0, *STREAM), portpicker.bind(0, *DATAGRAM)]

@call
def a_bind_of_no_such_socket():
    return portpicker.bind(0, 99, 99)

@call
def is_port_0_free():
    return portpicker.is_port_free(0)

@call
def a_port_that_another_process_has_picked():
    ready, tell = os.pipe()
    go_on, let_go = os.pipe()
    if os.fork() == 0:
        os.write(tell, b"%5d" % portpicker.pick_unused_port())
        os.read(go_on, 1)
        os._exit(0)
    port = portpicker.is_port_free(int(os.read(ready, 5)))
    os.write(let_go, b"x")
    os.wait()
    return port

@call
def patches_of_bind():
    port = portpicker.pick_unused_port()
    with mock.patch.object(portpicker, "bind", return_value=None):
        return portpicker.is_port_free(port) is None

@call
def other_names():
    return sorted({"main", "_bind", "_is_port_free", "_pick_unused_port"} & set(vars(portpicker)))

@call
def a_lack_of_descriptors():
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        return portpicker.pick_unused_port()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)

@call
def a_socket_that_cannot_be_made():
    port = portpicker.pick_unused_port()
    with mock.patch.object(socket, "socket", side_effect=OSError("fake socket error", 0)):
        return [portpicker.is_port_free(port), portpicker.bind(0, *STREAM)]

for name, port in {"a text": "8080", "a float": 8080.5, "None": None, "70000": 70000,
                   "a negative number": -1, "a huge number": 10**30, "a list": []}.items():
    calls[f"is {name} free"] = lambda port=port: portpicker.is_port_free(port)
    calls[f"a bind of {name}"] = lambda port=port: portpicker.bind(port, *STREAM)
    calls[f"a return of {name}"] = lambda port=port: portpicker.return_port(port)
    calls[f"a reservation of {name}"] = lambda port=port: portpicker.add_reserved_port(port)

# --- returning -------------------------------------------------------------------------------------

@call
def a_return():
    port = portpicker.pick_unused_port()
    return portpicker.return_port(port), port in portpicker._random_ports | portpicker._free_ports

@call
def a_return_of_a_foreign_port():
    return portpicker.return_port(4321)

@call
def a_second_return():
    port = portpicker.pick_unused_port()
    portpicker.return_port(port)
    with mock.patch.object(logging, "info") as info:
        portpicker.return_port(port)
        return info.call_args[0][0] % 1

@call
def a_return_of_a_reserved_port_that_nobody_picked():
    portpicker.add_reserved_port(4321)
    return portpicker.return_port(4321)

@call
def a_reserved_port():
    port = portpicker.pick_unused_port()
    portpicker.return_port(port)
    portpicker.add_reserved_port(port)
    for _ in range(3):
        assert portpicker.pick_unused_port() == port
        portpicker.return_port(port)
    return portpicker.pick_unused_port() == port, portpicker._owned_ports == {port}

@call
def a_reserved_port_in_use():
    with occupied(socket.SOCK_STREAM) as server:
        port = server.getsockname()[1]
        portpicker.add_reserved_port(port)
        return portpicker.pick_unused_port() == port

# --- a server --------------------------------------------------------------------------------------

@call
def no_address():
    return [portpicker.get_port_from_port_server(address) for address in (None, "")]

@call
def a_grant():
    with FakeServer(b"4321\n") as server:
        port = portpicker.get_port_from_port_server(server.address, pid=77)
    return port, server.requests, sorted(portpicker._owned_ports)

@call
def a_grant_at_a_path():
    path = f"/tmp/portpicker-test-{os.getpid()}"
    try:
        with FakeServer(b"4321\n", address=path) as server:
            return portpicker.get_port_from_port_server(path, 77), server.requests
    finally:
        os.unlink(path)

@call
def the_default_process():
    with FakeServer(b"4321\n") as server, mock.patch.object(os, "getpid", return_value=9876):
        port = portpicker.get_port_from_port_server(server.address)
    return port, server.requests

@call
def odd_processes():
    with FakeServer(b"4321\n", b"4321\n", b"4321\n") as server:
        for pid in (-1, 1.5, True):
            portpicker.get_port_from_port_server(server.address, pid)
    return server.requests

@call
def a_process_that_is_a_text():
    with FakeServer(b"") as server:
        return portpicker.get_port_from_port_server(server.address, pid="77")

for name, answer in {"an empty answer": b"", "no number": b"no\n", "no newline": b"4321",
                     "blanks": b" 4321 \n", "two lines": b"4321\n4322\n",
                     "an empty line": b"\n", "bytes that are no text": b"\xff\n"}.items():
    def ask(answer=answer):
        with FakeServer(answer) as server:
            return portpicker.get_port_from_port_server(server.address)
    calls[f"an answer: {name}"] = ask

for name, answer in {"0": b"0\n", "-1": b"-1\n", "70000": b"70000\n"}.items():
    def ask(answer=answer):
        with FakeServer(answer) as server:
            return portpicker.get_port_from_port_server(server.address)
    calls[f"an answer: {name}"] = ask

for name, address in {"nobody": "@portpicker-test-nobody", "no file": "/no/such/file",
                      "localhost": "localhost", "a long path": "x" * 200}.items():
    calls[f"a server that is not there: {name}"] = (
        lambda address=address: portpicker.get_port_from_port_server(address))
    calls[f"a pick without the server: {name}"] = (
        lambda address=address: portpicker.pick_unused_port(portserver_address=address))

calls["an address that is a number"] = lambda: portpicker.get_port_from_port_server(5)

@call
def a_pick_from_a_server():
    with FakeServer(b"4321\n") as server:
        return portpicker.pick_unused_port(77, server.address), server.requests

@call
def a_pick_from_the_environments_server():
    with FakeServer(b"4321\n") as server:
        with mock.patch.dict(os.environ, PORTSERVER_ADDRESS=server.address):
            return portpicker.pick_unused_port(pid=77), server.requests

@call
def a_pick_from_one_server_and_not_from_the_other():
    with FakeServer(b"4321\n") as server:
        with mock.patch.dict(os.environ, PORTSERVER_ADDRESS="@portpicker-test-nobody"):
            return portpicker.pick_unused_port(portserver_address=server.address)

@call
def a_pick_from_the_second_server():
    with FakeServer(b"4321\n") as server:
        with mock.patch.dict(os.environ, PORTSERVER_ADDRESS=server.address):
            return portpicker.pick_unused_port(portserver_address="@portpicker-test-nobody")

@call
def a_pick_that_both_servers_refuse():
    with FakeServer(b"") as first, FakeServer(b"") as second:
        with mock.patch.dict(os.environ, PORTSERVER_ADDRESS=second.address):
            return portpicker.pick_unused_port(portserver_address=first.address)

@call
def a_pick_with_an_empty_environment_variable():
    with mock.patch.dict(os.environ, PORTSERVER_ADDRESS=""):
        return portpicker.pick_unused_port()

@call
def a_pick_with_false_for_a_server():
    with mock.patch.dict(os.environ, PORTSERVER_ADDRESS="@portpicker-test-nobody"):
        return portpicker.pick_unused_port(portserver_address=False)

@call
def a_servers_port_is_picked_again():
    with FakeServer(b"4321\n") as server:
        portpicker.pick_unused_port(portserver_address=server.address)
    portpicker.return_port(4321)
    free, owned = set(portpicker._free_ports), set(portpicker._owned_ports)
    return sorted(free), sorted(owned), portpicker.pick_unused_port()

@call
def calls_on_a_servers_socket():
    server = mock.Mock()
    server.recv.return_value = b"42768\n"
    with mock.patch.object(socket, "socket", return_value=server) as sockets:
        port = portpicker.get_port_from_port_server("@name", pid=1234)
    return str(port), str(sockets.mock_calls), str(server.mock_calls)

@call
def names_that_a_star_imports():
    names = {}
    exec("from portpicker import *", names)
    return sorted(name for name in ("bind", "is_port_free", "pick_unused_port", "return_port",
                                    "add_reserved_port", "get_port_from_port_server")
                  if name in names)

@call
def a_forked_child_after_a_return():
    port = portpicker.pick_unused_port()
    portpicker.return_port(port)
    portpicker.add_reserved_port(port)
    if os.fork() == 0:
        os._exit(portpicker.pick_unused_port() == port)
    return os.wait()[1]


logging.getLogger().addHandler(Logs())
logging.getLogger().setLevel(logging.INFO)
for name, function in calls.items():
    for ports in (portpicker._free_ports, portpicker._owned_ports, portpicker._random_ports):
        ports.clear()
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            result = describe(function(), {4321, 4322})
        except BaseException as error:
            result = [type(error).__name__, str(error)]
    print(json.dumps([name, result, out.getvalue(), err.getvalue()]))
'''

#: Calls with other results, and why. docs/compatibility.md says the same to users.
DIFFERENT = {
    "a udp server with reuse address": "it is not free",
    "a port that is bound and does not listen": "it is not free",
    "a port in time wait": "not every server can bind it",
    "a port that another process has picked": "it is that process's",
    "patches of bind": "they have an effect",
    "other names": "they are not part of the interface",
    "a lack of descriptors": "it says nothing about ports",
    "is port 0 free": "nobody can have port 0",
    "a reserved port in use": "a port in use is not given out",
    "an answer: 0": "it is the word for a refusal, and not a port",
    "an answer: -1": "it is not a port",
    "an answer: 70000": "it is not a port",
    "a forked child after a return": "the returned port stays the parent's",
    "is 70000 free": "the text names the number",
    "is a negative number free": "the text names the number",
    "is a huge number free": "the text names the number",
    "a reservation of a text": "it would be given out, and is not a port",
    "a reservation of a float": "it would be given out, and is not a port",
    "a reservation of None": "it would be given out, and is not a port",
    "a reservation of a list": "the text differs",
    "a reservation of 70000": "it would be given out, and is not a port",
    "a reservation of a negative number": "it would be given out, and is not a port",
    "a reservation of a huge number": "it would be given out, and is not a port",
    "a pick with false for a server": "it means that none is asked",
    "an address that is a number": "paths may be objects, and the text says so",
}

#: Google's tests that do not pass, and why.
FAILING = {
    "PortpickerCommandLineTests.test_command_line_help": "-h is a success, with a text of ours",
    "PortpickerCommandLineTests.test_command_line_help_text_dedented": "the same",
    "PortpickerCommandLineTests.test_command_line_interface_no_portserver_bind_timeout": (
        "the port is held without listening, so that the caller's server can"
    ),
}


@pytest.fixture(scope="module")
def googles(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Python with Google's portpicker."""
    folder = tmp_path_factory.mktemp("googles")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True, timeout=DEADLINE)
    interpreter = str(folder / "bin" / "python")
    pip(interpreter, "install", *PACKAGES)
    return interpreter


@pytest.fixture(scope="module")
def googles_tests(tmp_path_factory: pytest.TempPathFactory, googles: str) -> Path:
    """A folder with Google's tests."""
    folder = tmp_path_factory.mktemp("tests")
    pip(googles, "download", "--no-deps", "--no-binary=:all:", f"--dest={folder}", PACKAGES[0])
    (archive,) = folder.glob("*.tar.gz")
    subprocess.run(["tar", "-xf", archive, "-C", folder], check=True, timeout=DEADLINE)
    (tests,) = folder.glob("*/src/tests")
    return tests


def pip(interpreter: str, *arguments: str) -> None:
    done = subprocess.run(
        [interpreter, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments],
        capture_output=True,
        text=True,
        timeout=5 * DEADLINE,
        check=False,
    )
    if done.returncode != 0:
        skip("side by side with Google's portpicker", f"pip cannot have it: {done.stderr}")


def results(interpreter: str) -> dict[str, Any]:
    ended = python(CALLS, executable=interpreter)
    assert ended.returncode == 0, ended.stderr
    lines = [json.loads(line) for line in ended.stdout.splitlines()]
    return {name: result for name, *result in lines}


def test_the_same_calls_have_the_same_results(googles: str) -> None:
    theirs, ours = results(googles), results(sys.executable)
    assert theirs.keys() == ours.keys() and len(ours) > 60
    different = {name: (theirs[name], ours[name]) for name in ours if ours[name] != theirs[name]}
    assert different.keys() == DIFFERENT.keys(), json.dumps(
        {name: different.get(name, "the same") for name in different.keys() ^ DIFFERENT.keys()},
        indent=2,
    )


def test_googles_own_tests_pass(googles_tests: Path) -> None:
    # They start their server by name, and look for listening ports with a program that may be
    # missing.
    path = [sysconfig.get_path("scripts"), os.environ["PATH"]]
    if shutil.which("netstat") is None:
        netstat = googles_tests / "netstat"
        netstat.write_text(NETSTAT)
        netstat.chmod(0o755)
        path.append(str(googles_tests))
    ended = subprocess.run(
        [sys.executable, "-c", RUN_TESTS],
        cwd=googles_tests,
        capture_output=True,
        text=True,
        timeout=2 * DEADLINE,
        env=environment(PATH=os.pathsep.join(path)),
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    outcomes: dict[str, str] = json.loads(ended.stdout.splitlines()[-1])
    assert len(outcomes) >= 18
    failed = {name: why for name, why in outcomes.items() if why != "passed" and "skip" not in why}
    unexpected = failed.keys() - FAILING.keys()
    assert not unexpected, "\n".join(failed[name] for name in unexpected)
    assert not {name for name in FAILING if outcomes.get(name) == "passed"}
    skipped = [f"{name}: {why}" for name, why in outcomes.items() if "skip" in why]
    if skipped:
        skip("Google's own tests", "; ".join(skipped))


NETSTAT = f"""#!{sys.executable}
for table in ("tcp", "tcp6"):
    for line in open(f"/proc/net/{{table}}"):
        _, local, _, state, *_ = line.split()
        if state == "0A":
            print(table, 0, 0, "*:%d" % int(local.rpartition(":")[2], 16), "*:*", "LISTEN")
"""

RUN_TESTS = """
import json, sys, unittest

class Result(unittest.TestResult):
    outcomes = {}

    def note(self, test, outcome):
        name = ".".join(test.id().split(".")[-2:])
        self.outcomes[name] = outcome

    def addSuccess(self, test):
        self.note(test, "passed")

    def addFailure(self, test, error):
        self.note(test, self._exc_info_to_string(error, test))

    addError = addFailure

    def addSkip(self, test, reason):
        self.note(test, "skipped: " + reason)

unittest.defaultTestLoader.loadTestsFromName("portpicker_test").run(result := Result())
print(json.dumps(result.outcomes))
"""
