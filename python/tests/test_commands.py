"""The commands that are installed with the package, under all their names."""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import DEADLINE, Portserver, environment, occupy, python

import portpicker

#: Runs a Python script from the folder of the commands.
RunScript = Callable[..., "subprocess.CompletedProcess[str]"]

#: How the command `portpicker` is started.
PICKERS = ["portpicker", "portpicker.py", "python3 portpicker.py", "python3 -m portpicker"]

#: How the command `portserver` is started.
SERVERS = ["portserver", "portserver.py", "python3 portserver.py"]


def command_line(form: str, scripts: Path) -> list[str]:
    """Return the words of a form, with the paths of this environment."""
    words = form.split()
    if "-m" not in words:
        words[-1] = str(scripts / words[-1])
    return [sys.executable if word == "python3" else word for word in words]


@pytest.fixture(params=PICKERS)
def picker(request: pytest.FixtureRequest, scripts: Path) -> list[str]:
    return command_line(request.param, scripts)


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest, scripts: Path) -> list[str]:
    return command_line(request.param, scripts)


@pytest.fixture
def owner() -> Iterator[subprocess.Popen[bytes]]:
    """A process that runs until its input ends."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        yield process


def run(*command: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        cwd="/",
        env=environment(**variables),
        check=False,
    )


def shell(script: str, *arguments: str) -> subprocess.Popen[str]:
    """Start a shell that does not give its place to its last command."""
    return subprocess.Popen(
        ["sh", "-c", f"{script}; read line", "sh", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd="/",
        env=environment(),
    )


def without_suffix(ended: subprocess.CompletedProcess[str]) -> list[str]:
    """Return the output. Under "Usage:" it has the name that the command was started by."""
    suffix = re.compile(r"^(Usage: \w+)\.py", re.M)
    return [suffix.sub(r"\1", text) for text in (ended.stdout, ended.stderr)]


def wait_until_unused(port: int) -> None:
    portpicker.lease(ports=port, portserver_address=False, wait=DEADLINE).release()


def test_a_port_and_a_newline_are_all_that_is_printed(
    picker: list[str], owner: subprocess.Popen[bytes]
) -> None:
    ended = run(*picker, str(owner.pid))
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == f"{int(ended.stdout)}\n"
    port = int(ended.stdout)
    assert port > 10_000
    assert portpicker.is_port_free(port) is None, "it is leased"
    owner.communicate()
    wait_until_unused(port)


@pytest.mark.parametrize("script", ['port=$("$@" $$); echo $port', '"$@"'], ids=["$$", "parent"])
def test_a_shells_port_is_kept_as_long_as_the_shell_runs(picker: list[str], script: str) -> None:
    with shell(script, *picker) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        assert portpicker.is_port_free(port) is None, "the shell is there"
        process.communicate()
    wait_until_unused(port)


def test_with_seconds_only_servers_that_set_reuse_address_get_in(
    picker: list[str], owner: subprocess.Popen[bytes]
) -> None:
    port = int(run(*picker, str(owner.pid), "1000").stdout)
    with pytest.raises(OSError, match="in use"):
        occupy(port)
    with socket.create_server(("127.0.0.1", port)):
        pass


def test_the_port_server_in_the_environment_is_asked(
    picker: list[str], owner: subprocess.Popen[bytes], scripts: Path
) -> None:
    with Portserver() as server:
        port = run(*picker, str(owner.pid), PORTSERVER_ADDRESS=server.address).stdout.strip()
        status = run(scripts / "portpicker", "status", "--server", server.address, "--json")
    (lease,) = json.loads(status.stdout)["leases"]
    assert (lease["port"], lease["pid"]) == (int(port), owner.pid)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ("-h", 0),
        ("--help", 0),
        ("--version", 0),
        ("pick --help", 0),
        ("x", 2),
        ("0", 2),
        ("$$ -1", 2),
        ("pick -n 0", 2),
        ("no-such-command --json", 2),
        ("999999999", 5),
        ("pick --server @portpicker-test-nobody", 3),
    ],
)
def test_every_form_says_and_returns_the_same(
    picker: list[str], scripts: Path, arguments: str, code: int
) -> None:
    ended = run(*picker, *arguments.split())
    native = run(scripts / "portpicker", *arguments.split())
    assert ended.returncode == native.returncode == code
    assert without_suffix(ended) == [native.stdout, native.stderr]


def test_without_an_unused_port_the_exit_code_is_1(picker: list[str]) -> None:
    with occupy(0) as sock:
        ended = run(*picker, PORTPICKER_PORTS=str(sock.getsockname()[1]))
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith("portpicker: no unused port")


def test_the_commands_are_programs(scripts: Path) -> None:
    for name in ("portpicker", "portserver"):
        assert (scripts / name).read_bytes()[:4] == b"\x7fELF", "no interpreter starts"
        assert os.access(scripts / name, os.X_OK)


# The server.


def test_a_server_is_the_process_that_was_started(
    server: list[str], server_address: str, tmp_path: Path
) -> None:
    """As callers of portserver.py do it: its options, its signals, its statistics."""
    options = ["--portserver_address", server_address, "--portserver_static_pool", "15000-24999"]
    process = subprocess.Popen(
        [*server, *options],
        stderr=subprocess.PIPE,
        text=True,
        cwd="/",
        # Where the server has its state file.
        env=environment(XDG_RUNTIME_DIR=str(tmp_path), STATE_DIRECTORY=str(tmp_path)),
    )
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if "managing 10000 ports" in line:
                break
        program = os.readlink(f"/proc/{process.pid}/exe")
        assert program == os.path.realpath(server[-1].removesuffix(".py"))
        port = portpicker.get_port_from_port_server(server_address)
        assert port in range(15000, 25000)
        portpicker.return_port(port)
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=DEADLINE)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    assert process.returncode == 0
    statistics = [line.rsplit(" ", 2)[-2:] for line in log.splitlines()[-5:]]
    assert [name for name, _ in statistics] == [
        "client-request-errors",
        "denied-allocations",
        "num-ports-managed",
        "num-ports-checked-for-last-request",
        "total-allocations",
    ]
    assert statistics[-1][1] == "1"


def test_a_daemon_listens_when_the_command_returns(
    server: list[str], server_address: str, tmp_path: Path
) -> None:
    pidfile, log = tmp_path / "pid", tmp_path / "log"
    options = ["--daemon", "--portserver_address", server_address, "--no-state"]
    options += ["--pidfile", str(pidfile), "--log", str(log)]
    subprocess.run([*server, *options], check=True, timeout=DEADLINE)
    daemon = os.pidfd_open(int(pidfile.read_text()))
    try:
        port = portpicker.get_port_from_port_server(server_address)
        assert port in range(15000, 25000)
        portpicker.return_port(port)
    finally:
        signal.pidfd_send_signal(daemon, signal.SIGTERM)
        ended, _, _ = select.select([daemon], [], [], DEADLINE)
        os.close(daemon)
    assert ended
    assert not pidfile.exists()
    assert log.read_text().endswith("total-allocations 1\n")
    with pytest.raises(OSError, match="refused"), socket.socket(socket.AF_UNIX) as client:
        client.connect(server_address.replace("@", "\0"))


@pytest.mark.parametrize("form", ["portserver.py", "python3 portserver.py"])
def test_portserver_py_says_and_returns_the_same(form: str, scripts: Path) -> None:
    for arguments in (["--version"], ["--help"], ["--no-such-option"], ["--pool", "x"]):
        ended = run(*command_line(form, scripts), *arguments)
        native = run(scripts / "portserver", *arguments)
        assert ended.returncode == native.returncode
        assert without_suffix(ended) == [native.stdout, native.stderr]


# Scripts that start a program which is somewhere else, or not there at all.


def test_a_link_to_a_script_starts_the_program_beside_the_script(
    scripts: Path, tmp_path: Path
) -> None:
    link = tmp_path / "link"
    link.symlink_to(scripts / "portserver.py")
    assert run(link, "--version").stdout.startswith("portserver ")
    assert run(sys.executable, link, "--version").stdout.startswith("portserver ")


@pytest.mark.parametrize("name", ["portpicker", "portserver"])
def test_a_script_without_its_program_says_so(scripts: Path, tmp_path: Path, name: str) -> None:
    script = Path(shutil.copy(scripts / f"{name}.py", tmp_path))
    ended = run(script)
    assert (ended.returncode, ended.stdout) == (6, "")
    program = tmp_path / name
    assert ended.stderr == f"{name}: cannot start `{program}`: No such file or directory\n"
    program.write_text("")
    assert run(script).stderr == f"{name}: cannot start `{program}`: Permission denied\n"


@pytest.mark.parametrize(
    ("package", "program"),
    [
        ("lib/python3.11/site-packages", "bin"),
        ("lib/python3/dist-packages", "bin"),
        ("site-packages", "bin"),
        ("target", "target/bin"),
    ],
)
def test_python_m_starts_the_program_that_belongs_to_the_package(
    tmp_path: Path, package: str, program: str
) -> None:
    """And not the one of this environment."""
    installed = tmp_path / package
    shutil.copytree(Path(portpicker.__file__).parent, installed / "portpicker")
    script = tmp_path / program / "portpicker"
    script.parent.mkdir(exist_ok=True)
    script.write_text('#!/bin/sh\necho "$0" "$@"\n')
    script.chmod(0o755)
    ended = run(sys.executable, "-m", "portpicker", "1 2", "-x", PYTHONPATH=str(installed))
    assert ended.stdout == f"{script} 1 2 -x\n"


def test_python_m_finds_the_program_of_this_environment(tmp_path: Path) -> None:
    """For an editable package, which can be anywhere."""
    shutil.copytree(Path(portpicker.__file__).parent, tmp_path / "portpicker")
    ended = run(sys.executable, "-m", "portpicker", "--version", PYTHONPATH=str(tmp_path))
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == f"portpicker {portpicker._portpicker.__version__}\n"


def test_python_m_without_the_program_says_where_it_has_looked(tmp_path: Path) -> None:
    code = """
        import sysconfig
        from portpicker import __main__
        folder = sys.argv[1]
        sysconfig.get_path = lambda *names: "/".join([folder, *names])
        __main__.__file__ = f"{folder}/target/portpicker/__main__.py"
        __main__.main()
    """
    ended = python("import sys" + textwrap.dedent(code), str(tmp_path))
    assert (ended.returncode, ended.stdout) == (6, "")
    places = ["target/bin", "scripts", "scripts/posix_user"]
    assert ended.stderr == (
        "portpicker: cannot start the command, which should have been installed with the package\n"
        + "".join(
            f"  {tmp_path}/{place}/portpicker: No such file or directory\n" for place in places
        )
    )


# Imports by Python scripts in the folder of the commands, where `portpicker.py` is found first.


@pytest.fixture
def run_script(scripts: Path) -> Iterator[RunScript]:
    """Runs a Python script from the folder of the commands, as pytest and others are."""
    path = scripts / f"portpicker-test-{os.getpid()}"

    def run_it(code: str, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
        path.write_text("import sys\nassert sys.path[0] == sys.argv[1]\n" + textwrap.dedent(code))
        return run(sys.executable, *options, path, str(scripts), **variables)

    yield run_it
    path.unlink()


def test_a_script_beside_portpicker_py_imports_the_package(run_script: RunScript) -> None:
    ended = run_script(
        """
        before = list(sys.path)
        import portpicker
        print(portpicker.__file__)

        # It is the package in every respect.
        import importlib.util, pickle
        assert sys.path == before
        assert sys.modules["portpicker"] is portpicker
        assert importlib.util.find_spec("portpicker") is portpicker.__spec__
        assert portpicker.__spec__.origin == portpicker.__file__ == portpicker.__loader__.path
        assert portpicker.__package__ == portpicker.__spec__.parent == "portpicker"
        assert portpicker.__cached__ == portpicker.__spec__.cached
        assert "portpicker.py" not in portpicker.__cached__
        assert portpicker.__doc__.startswith("Unused network ports")
        assert not {"_start", "_become_what_is_hidden"} & set(vars(portpicker))
        for thing in (portpicker.pick_unused_port, portpicker.NoFreePortFoundError):
            assert pickle.loads(pickle.dumps(thing)) is thing
        from portpicker import _portpicker, pytest_plugin
        assert pytest_plugin.portpicker is portpicker

        # And stays it.
        first = portpicker.pick_unused_port
        assert importlib.reload(portpicker) is portpicker is sys.modules["portpicker"]
        assert portpicker.pick_unused_port is not first
        assert portpicker.__spec__.origin == portpicker.__file__
        del sys.modules["portpicker"]
        import portpicker as again
        assert again is not portpicker and again.__file__ == portpicker.__file__
        assert again.is_port_free(again.pick_unused_port())
        """
    )
    assert ended.stderr == ""
    assert ended.stdout == f"{portpicker.__file__}\n"


def test_threads_that_import_at_once_get_the_whole_package(run_script: RunScript) -> None:
    ended = run_script(
        """
        import importlib, threading
        sys.setswitchinterval(1e-6)
        THREADS = 8
        barrier = threading.Barrier(THREADS)
        names = []
        def use():
            barrier.wait()
            names.append(importlib.import_module("portpicker").PickUnusedPort.__name__)
        for _ in range(20):
            threads = [threading.Thread(target=use) for _ in range(THREADS)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            del sys.modules["portpicker"]
        print(len(names), set(names))
        """
    )
    assert (ended.stdout, ended.stderr) == ("160 {'pick_unused_port'}\n", "")


def test_without_the_package_a_script_finds_none(run_script: RunScript) -> None:
    ended = run_script(
        """
        for name in ("portpicker", "portserver"):
            try:
                __import__(name)
            except ModuleNotFoundError as error:
                print(error, error.name, name in sys.modules)
        """,
        "-S",  # without site-packages
    )
    assert ended.stderr == ""
    assert ended.stdout == "".join(
        f"No module named '{name}' {name} False\n" for name in ("portpicker", "portserver")
    )


def test_a_script_imports_whichever_portpicker_comes_first(
    run_script: RunScript, tmp_path: Path
) -> None:
    """Google's is a module, and not a package."""
    (tmp_path / "portpicker.py").write_text("WHO = 'another'\n")
    ended = run_script(
        """
        import portpicker
        print(portpicker.WHO, portpicker.__file__, hasattr(portpicker, "__path__"))
        """,
        PYTHONPATH=str(tmp_path),
    )
    assert (ended.stdout, ended.stderr) == (f"another {tmp_path}/portpicker.py False\n", "")


def test_pytest_by_its_command_has_the_package_and_its_plugin(
    scripts: Path, tmp_path: Path
) -> None:
    test = tmp_path / "test_it.py"
    test.write_text(
        "import portpicker, sys\n"
        "def test_it(leased_port):\n"
        f"    assert portpicker.__file__ == {portpicker.__file__!r}\n"
        f"    assert sys.path[1] == {str(scripts)!r}\n"
    )
    ended = run(scripts / "pytest", "-p", "no:cacheprovider", "-n", "2", test)
    assert ended.returncode == 0, ended.stdout
