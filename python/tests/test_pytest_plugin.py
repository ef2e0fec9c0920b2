"""The fixtures for pytest, in runs of pytest of their own."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import portpicker
from support import DEADLINE, Portserver, program, skip, unused_name

pytest_plugins = ["pytester"]

DOCUMENTS = Path(__file__).resolve().parents[2]


#: What the tests of the inner runs need. `is_leased`: somebody has the port's lock.
HELPERS = """
import errno, socket, subprocess, sys
import pytest
import portpicker
from portpicker.pytest_plugin import PortFactory

def is_leased(port):
    lock = portpicker._portpicker.take_lock(port)
    if lock is not None:
        lock.release()
    return lock is None

def can_bind(port, kind=socket.SOCK_STREAM):
    with socket.socket(type=kind) as sock:
        try:
            sock.bind(("127.0.0.1", port))
            return True
        except OSError as error:
            assert error.errno == errno.EADDRINUSE
            return False
"""


def run(
    pytester: pytest.Pytester, tests: str, *arguments: str, expect: str = "passed"
) -> pytest.RunResult:
    """Run `tests` with a pytest of their own, of which all pass, or do what is expected."""
    pytester.makepyfile(HELPERS + tests)
    result = pytester.runpytest_subprocess("-W", "error", *arguments, timeout=DEADLINE)
    outcomes = result.parseoutcomes()
    assert set(outcomes) == set(expect.split()), outcomes
    return result


# --- The fixtures ---------------------------------------------------------------------------------


def test_leased_port_is_an_int_that_can_be_bound(pytester: pytest.Pytester) -> None:
    run(
        pytester,
        """
def test(leased_port):
    assert type(leased_port) is int
    assert is_leased(leased_port)
    assert portpicker.is_port_free(leased_port) == leased_port
    assert can_bind(leased_port) and can_bind(leased_port, socket.SOCK_DGRAM)
""",
    )


def test_leased_ports_are_picked_by_number(pytester: pytest.Pytester) -> None:
    run(
        pytester,
        """
def test(leased_ports):
    assert isinstance(leased_ports, PortFactory)
    ports = leased_ports(3) + leased_ports(1) + leased_ports(0)
    assert len(set(ports)) == 4 and all(map(is_leased, ports))
    first, *others = leased_ports(4, contiguous=True)
    assert others == [first + 1, first + 2, first + 3]
""",
    )


def test_a_name_stands_for_one_port_of_a_test(pytester: pytest.Pytester) -> None:
    run(
        pytester,
        """
@pytest.fixture
def server(leased_ports):
    return leased_ports("http")["http"]

@pytest.mark.parametrize("n", [1, 2])
def test(leased_ports, server, n):
    ports = leased_ports("grpc", "http")
    assert list(ports) == ["grpc", "http"] and ports["grpc"] != ports["http"] == server
    assert leased_ports("http", "admin").items() >= {("http", server)}
""",
    )


def test_a_name_stands_for_one_port_in_all_threads(pytester: pytest.Pytester) -> None:
    run(
        pytester,
        """
from threading import Barrier, Thread

def test(leased_ports):
    names = [f"name-{n}" for n in range(20)]
    barrier = Barrier(8)
    seen = set()

    def ask():
        for name in names:
            barrier.wait()
            seen.add((name, leased_ports(name)[name]))

    threads = [Thread(target=ask) for _ in range(8)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert [name for name, _ in sorted(seen)] == sorted(names)
""",
    )


def test_held_port_cannot_be_bound_but_by_its_test(pytester: pytest.Pytester) -> None:
    run(
        pytester,
        """
def test(held_port):
    assert isinstance(held_port, portpicker.Hold)
    assert not can_bind(held_port.port) and not can_bind(held_port.port, socket.SOCK_DGRAM)
    with held_port.listen() as listener:
        socket.create_connection(("127.0.0.1", held_port.port)).close()
        listener.accept()[0].close()
""",
    )


def test_held_ports_are_picked_by_number_or_name(pytester: pytest.Pytester) -> None:
    run(
        pytester,
        """
def test(held_ports):
    holds = held_ports(2) + list(held_ports("a", "b").values())
    assert all(isinstance(hold, portpicker.Hold) for hold in holds)
    assert held_ports("b") == {"b": holds[3]}
    assert len({hold.port for hold in holds}) == 4
    assert not any(can_bind(hold.port) for hold in holds)
""",
    )


def test_a_session_has_the_same_ports_all_along(pytester: pytest.Pytester) -> None:
    run(
        pytester,
        """
seen = []

@pytest.mark.parametrize("n", [1, 2, 3])
def test(session_leased_port, session_leased_ports, session_held_port, session_held_ports, n):
    leased = [session_leased_port, *session_leased_ports("a", "b").values()]
    held = [session_held_port.port, session_held_ports("a")["a"].port]
    assert len({*leased, *held}) == 5
    assert is_leased(leased[0]) and not can_bind(held[0])
    seen.append(leased + held)
    assert seen[-1] == seen[0]
""",
    )


def test_ports_are_released_when_their_scope_ends(pytester: pytest.Pytester) -> None:
    """And are leased until the fixtures that use them have been torn down."""
    pytester.makeconftest(
        HELPERS
        + """
def pytest_unconfigure(config):
    for name in ("session_leased_port", "session_leased_ports"):
        assert not is_leased(had[name])
    for name in ("session_held_port", "session_held_ports"):
        assert can_bind(had[name])
    print("the session's ports are released")

had = {}

@pytest.fixture
def user(leased_port, held_port):
    yield
    assert is_leased(leased_port) and not can_bind(held_port.port)
"""
    )
    result = run(
        pytester,
        """
from conftest import had

def test_first(user, leased_port, leased_ports, held_port, held_ports,
        session_leased_port, session_leased_ports, session_held_port, session_held_ports):
    had.update(locals())
    had.update(leased_ports=leased_ports(1)[0], session_leased_ports=session_leased_ports("a")["a"],
        held_port=held_port.port, session_held_port=session_held_port.port,
        held_ports=held_ports("a")["a"].port, session_held_ports=session_held_ports(1)[0].port)
    if "fail" in sys.argv: assert False

def test_second():
    for name in ("leased_port", "leased_ports"):
        assert not is_leased(had[name])
    for name in ("held_port", "held_ports"):
        assert can_bind(had[name])
    assert is_leased(had["session_leased_port"]) and is_leased(had["session_leased_ports"])
    assert not can_bind(had["session_held_port"]) and not can_bind(had["session_held_ports"])
""",
        "-s",
    )
    result.stdout.fnmatch_lines(["*the session's ports are released*"])


def test_a_marker_has_options_for_the_ports_of_its_tests(pytester: pytest.Pytester) -> None:
    """The closest marker counts, for each option; what the test says itself comes before it."""
    run(
        pytester,
        """
with portpicker.lease() as lease, portpicker.lease() as other:
    FIRST, SECOND = lease.port, other.port

pytestmark = pytest.mark.portpicker(prefer=SECOND, transport="tcp")

@pytest.mark.portpicker(prefer=FIRST)
class Test:
    def test_marked(self, leased_port, held_port):
        assert leased_port == FIRST
        held_port.take_tcp().close()
        with pytest.raises(ValueError, match="no UDP socket"):
            held_port.take_udp()

    @pytest.mark.portpicker(transport="udp")
    def test_closest(self, held_port):
        held_port.take_udp().close()

    def test_said(self, leased_ports):
        assert leased_ports(1, prefer=SECOND) == [SECOND]

def test_module(leased_port, session_leased_port):
    assert leased_port == SECOND
""",
        "--strict-markers",
    )


@pytest.mark.parametrize(
    "call, error",
    [
        (
            "leased_ports()",
            "TypeError: leased_ports takes a count, as in leased_ports(2), or names",
        ),
        ("held_ports(1, 2)", "TypeError: held_ports takes a count, as in held_ports(2), or names"),
        ("leased_ports(2, 'http')", "TypeError: leased_ports takes a count"),
        ("leased_ports(['http'])", "TypeError: leased_ports takes a count"),
        ("leased_ports('')", "TypeError: leased_ports takes a count"),
        ("leased_ports(1.5)", "TypeError: leased_ports takes a count"),
        ("leased_ports(-1)", "ValueError: count must be from 0 to 65535, not -1"),
        ("leased_ports('a', 'b', 'a')", "ValueError: 'a' is there twice"),
        ("leased_ports('a', contiguous=True)", "TypeError: neighbours have no names"),
        ("[held_ports('a'), held_ports('a', wait=1)]", "ValueError: 'a' has a port already"),
        ("leased_ports(1, colour='red')", "TypeError: *colour*"),
        ("leased_ports(2, ports='1-0')", "ValueError: *1-0*"),
        ("leased_ports(2, ports=held_ports(1))", "portpicker.NoFreePortFoundError: *"),
    ],
)
def test_a_misuse_is_explained_where_it_happened(
    pytester: pytest.Pytester, call: str, error: str
) -> None:
    result = run(pytester, f"def test(leased_ports, held_ports):\n    {call}\n", expect="failed")
    result.stdout.fnmatch_lines([f">   *{call.replace('[', '[[]')}", f"E   *{error}*"])


def test_a_marker_without_names_for_its_options_is_explained(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        "@pytest.mark.portpicker('20000-20999')\ndef test(leased_port): pass",
        expect="errors",
    )
    result.stdout.fnmatch_lines(["E*TypeError: the marker portpicker takes options by keyword*"])


def test_the_fixtures_and_the_marker_are_described(pytester: pytest.Pytester) -> None:
    shown = pytester.runpytest_subprocess("--fixtures", "-v").stdout.str()
    section = shown.partition("fixtures defined from portpicker.pytest_plugin")[2]
    described = re.findall(r"^(\w*(?:leased|held)_ports?)\b.*\n    \w+", section, re.MULTILINE)
    names = ["leased_port", "leased_ports", "held_port", "held_ports"]
    assert set(described) == {*names, *(f"session_{name}" for name in names)}
    markers = pytester.runpytest_subprocess("--markers").stdout
    markers.fnmatch_lines(["@pytest.mark.portpicker(*): what the ports of a test are to be*"])


def test_the_plugin_can_be_left_out(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import sys
        import pytest

        def test(request):
            assert "portpicker" not in sys.modules
            with pytest.raises(pytest.FixtureLookupError):
                request.getfixturevalue("leased_port")
        """
    )
    result = pytester.runpytest_subprocess("-p", "no:portpicker", timeout=DEADLINE)
    result.assert_outcomes(passed=1)


# --- The report of a failure ----------------------------------------------------------------------


def section(result: pytest.RunResult) -> str:
    """Return the one section "ports", with letters for its numbers."""
    found = re.findall(r"^-+ ports -+\n((?:\d.*\n)+)", result.stdout.str(), re.MULTILINE)
    assert len(found) == 1, result.stdout.str()
    text = re.sub(r"^\d{5} ", "PORT ", found[0], flags=re.MULTILINE)
    return re.sub(r"\bpid \d+", "pid PID", text)


def test_a_failure_names_the_ports_of_the_test(pytester: pytest.Pytester) -> None:
    """Also those of its fixtures and of the session, and not those of other tests."""
    result = run(
        pytester,
        """
@pytest.fixture(scope="session")
def database(session_leased_ports):
    return session_leased_ports("db")

@pytest.fixture
def server(leased_ports, database):
    return leased_ports("http", "grpc")

def test_passes(leased_ports, session_held_port, server):
    leased_ports(3)

def test_fails(server, leased_port, held_port, held_ports):
    held_ports(2)
    held_port.release()
    can_bind(leased_port)
    assert False
""",
        expect="passed failed",
    )
    assert section(result) == (
        "PORT  leased_ports['http']\n"
        "PORT  leased_ports['grpc']\n"
        "PORT  leased_port\n"
        "PORT  held_port                   released\n"
        "PORT  held_ports\n"
        "PORT  held_ports\n"
        "PORT  session_leased_ports['db']\n"
    )


def test_a_failure_names_the_number_that_the_test_saw(pytester: pytest.Pytester) -> None:
    result = run(pytester, "def test(leased_port): assert not leased_port", expect="failed")
    number = re.search(r"^leased_port = (\d+)$", result.stdout.str(), re.MULTILINE)
    assert number
    result.stdout.re_match_lines([rf"^{number[1]}  leased_port$"])


SERVER = """
SERVER = '''
import socket, sys
sockets = [socket.socket(type=kind) for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM)]
for sock in sockets: sock.bind(("127.0.0.1", int(sys.argv[1])))
sockets[0].listen()
print("ready", flush=True)
sys.stdin.read()
'''

@pytest.fixture
def server(leased_port):
    command = [sys.executable, "-c", SERVER, str(leased_port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        yield
        process.communicate()
"""


def test_a_failure_names_who_else_has_the_port(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        SERVER
        + """
def test(leased_port, server):
    assert False
""",
        expect="failed",
    )
    command = f"{sys.executable} -c {' '.join(SERVER.split()[3:])}"[:80]
    assert section(result) == f"PORT  leased_port  TCP and UDP: pid PID ({command})\n"


def test_a_failure_names_connections_that_nobody_has_any_more(pytester: pytest.Pytester) -> None:
    """Such as those in TIME-WAIT, which keep a server from starting again."""
    result = run(
        pytester,
        """
def test(leased_port):
    with socket.create_server(("127.0.0.1", leased_port)) as listener:
        with socket.create_connection(("127.0.0.1", leased_port)) as client:
            connection, _ = listener.accept()
            # Who closes first has TIME-WAIT afterwards.
            connection.close()
            client.recv(1)
    assert False
""",
        expect="failed",
    )
    assert section(result) == "PORT  leased_port  TCP: a connection that is being closed\n"


def test_another_users_process_is_named_by_its_user() -> None:
    """Its files may not be looked into."""
    if os.geteuid() != 0:
        skip("processes of other users", "only root can become another user")
    from portpicker import pytest_plugin

    with portpicker.hold() as hold, hold.listen():
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                # What it has inherited would be its own.
                os.closerange(3, writer)
                os.closerange(writer + 1, 1000)
                os.setgid(65534)
                os.setuid(65534)
                os.write(writer, repr(pytest_plugin._users({hold.port})).encode())
            finally:
                os._exit(0)
        os.close(writer)
        with open(reader) as said:
            text = said.read()
        os.waitpid(child, 0)
        assert text == repr({hold.port: ["TCP and UDP: a process of user 0"]})


@pytest.mark.parametrize("when", ["setup", "teardown"])
def test_a_failure_outside_the_test_names_the_ports_too(
    pytester: pytest.Pytester, when: str
) -> None:
    result = run(
        pytester,
        f"""
@pytest.fixture
def server(leased_port):
    assert "{when}" != "setup"
    yield
    assert False

def test(server): pass
""",
        expect="errors" if when == "setup" else "passed errors",
    )
    after = "  released" if when == "teardown" else ""
    assert section(result) == f"PORT  leased_port{after}\n"


def test_a_test_that_runs_again_has_new_ports(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(
        """
from _pytest.runner import runtestprotocol

def pytest_runtest_protocol(item, nextitem):
    runtestprotocol(item, log=False, nextitem=nextitem)
    runtestprotocol(item, nextitem=nextitem)
    return True
"""
    )
    result = run(pytester, "def test(leased_port): assert False", expect="failed")
    assert section(result) == "PORT  leased_port\n"


def test_a_failure_without_ports_says_nothing_of_them(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
def test_passes(leased_port, session_leased_port): pass
def test_fails(leased_ports): assert False
@pytest.mark.xfail
def test_is_expected_to_fail(leased_port): assert False
""",
        "-rA",
        expect="passed failed xfailed",
    )
    result.stdout.no_re_match_line("-+ ports -+")


# --- Nobody else is given the ports ---------------------------------------------------------------


class Meeting:
    """Where processes meet: each brings a text, and none goes on before all have."""

    #: For the inner tests: brings `text` to the meeting, and waits for the others.
    MEET = """
def meet(text):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect("\\0" + {name!r})
        sock.sendall(f"{{text}}\\n".encode())
        assert sock.recv(1) == b"!"
"""

    def __init__(self) -> None:
        self.name = unused_name()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind("\0" + self.name)
        self._listener.listen(64)
        self._listener.settimeout(DEADLINE)

    def close(self) -> None:
        self._listener.close()

    def code(self) -> str:
        return self.MEET.format(name=self.name)

    def texts(self, count: int) -> list[str]:
        """Wait for `count` processes, and let them go on."""
        there = []
        texts = []
        for _ in range(count):
            connection, _ = self._listener.accept()
            connection.settimeout(DEADLINE)
            there.append(connection)
            with connection.makefile() as file:
                texts.append(file.readline().strip())
        for connection in there:
            with connection:
                connection.sendall(b"!")
        return texts


@pytest.fixture
def meeting() -> Iterator[Meeting]:
    meeting = Meeting()
    yield meeting
    meeting.close()


@pytest.mark.parametrize("runs, workers", [(1, 8), (3, 1), (2, 4)])
def test_workers_and_runs_that_want_one_port_get_different_ones(
    pytester: pytest.Pytester, meeting: Meeting, runs: int, workers: int
) -> None:
    """They are all at their tests at once, and each would rather have the same ports."""
    pytest.importorskip("xdist")
    with portpicker.lease() as first, portpicker.lease() as second:
        wanted = [first.port, second.port]
    pytester.makepyfile(
        HELPERS
        + meeting.code()
        + f"""
@pytest.mark.portpicker(prefer={wanted})
def test(leased_port, leased_ports, held_port, session_leased_ports):
    ports = [leased_port, *leased_ports(2), held_port.port]
    ports += session_leased_ports("db", prefer={wanted}).values()
    meet(" ".join(map(str, ports)))
    assert all(can_bind(port) for port in ports if port != held_port.port)
"""
    )
    # Each worker runs each test.
    command = [sys.executable, "-m", "pytest", "-n", str(workers), "--dist=each"]
    started = [
        pytester.popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for _ in range(runs)
    ]
    try:
        ports = " ".join(meeting.texts(runs * workers)).split()
    finally:
        outputs = [process.communicate(timeout=DEADLINE)[0] for process in started]
    assert [process.returncode for process in started] == [0] * runs, outputs
    assert len(ports) == len(set(ports)) == runs * workers * 5
    assert {str(port) for port in wanted} <= set(ports)


def test_a_tests_port_is_given_to_no_shell_script(pytester: pytest.Pytester) -> None:
    """Nor a shell script's to a test."""
    command = program("portpicker")
    run(
        pytester,
        f"""
def pick(prefer):
    command = [{command!r}, "pick", "--owner", str(os.getpid()), "--prefer", str(prefer)]
    return int(subprocess.run(command, check=True, capture_output=True).stdout)

import os

def test(leased_port, leased_ports, held_port):
    with portpicker.lease() as lease:
        unused = lease.port
    scripts = pick(unused)
    assert scripts == unused
    assert leased_ports(1, prefer=scripts) != [scripts]
    assert pick(leased_port) != leased_port
    assert pick(held_port.port) != held_port.port
""",
    )


def test_a_port_server_knows_which_test_has_a_port(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    status = [program("portpicker"), "status"]
    with Portserver() as server:
        monkeypatch.setenv("PORTSERVER_ADDRESS", server.address)
        result = run(
            pytester,
            f"""
def test_it(leased_port, leased_ports, held_port, session_leased_port):
    leased_ports("http")
    print(subprocess.run({status!r}, check=True, capture_output=True, text=True).stdout)
""",
            # A worker's tag names it too. What it prints is shown at the end.
            "-n1",
            "-rP",
        )
        left = subprocess.run(
            [program("portpicker"), "status"],
            env={**os.environ, "PORTSERVER_ADDRESS": server.address},
            capture_output=True,
            text=True,
            check=True,
        )
    test = "test_a_port_server_knows_which_test_has_a_port.py::test_it"
    lines = re.findall(r"^ *\d+ +\d+ .*  (\S.*)$", result.stdout.str(), re.MULTILINE)
    assert sorted(lines) == [f"pytest {pytester.path} gw0", test, test, test]
    assert left.stdout == "", "they are given back"


# --- What the documents say -----------------------------------------------------------------------


def examples() -> list[Any]:
    """Return the tests in the documents."""
    found = []
    for document in ("README.md", "docs/python-testing.md"):
        text = (DOCUMENTS / document).read_text()
        blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        tests = [block for block in blocks if "def test_" in block]
        found += [pytest.param(test, id=f"{document}-{n}") for n, test in enumerate(tests, 1)]
    return found


@pytest.mark.parametrize("example", examples())
def test_examples_of_the_documents_pass(pytester: pytest.Pytester, example: str) -> None:
    pytester.makepyfile(example)
    result = pytester.runpytest_subprocess(timeout=DEADLINE)
    result.assert_outcomes(passed=example.count("def test_"))
