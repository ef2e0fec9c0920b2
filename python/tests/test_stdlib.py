"""Do CPython's own network tests pass with our ports as well as with its own?

`find_unused_port` and `bind_port` of `test.support.socket_helper` are replaced by ours, and the tests
run with and without that at the same time: what fails with ours must fail without. A test that fails
once is run again, with little else going on, because many of them depend on time.

Not all interpreters ship CPython's tests: Debian's python3 does not. To run all of them that an
interpreter has, instead of those below, which takes long and reaches for the network:

    python python/tests/test_stdlib.py -u all
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import pytest
from support import environment, skip

#: The tests that use the helpers, or that servers of the standard library have, as far as a version of
#: Python has them. The longest come first.
MODULES = [
    "test_socket",
    "test_ssl",
    "test_ftplib",
    "test_imaplib",
    "test_asyncio.test_events",
    "test_poplib",
    "test_httpservers",
    "test_asyncio.test_sendfile",
    "test_asyncio.test_server",
    "test_asyncio.test_streams",
    "test_asyncio.test_unix_events",
    "test_asynchat",
    "test_asyncore",
    "test_httplib",
    "test_nntplib",
    "test_smtplib",
    "test_socketserver",
    "test_support",
    "test_telnetlib",
]

#: Those that want leave to use the network, and use the loopback interface.
NETWORK = ["test_socketserver"]

#: Long ones without a port, and sockets that do not answer on some virtual machines.
IGNORED = ["*SCMRights*", "*signal*", "*subprocess*", "*VSOCK*"]

#: Tests at a time: they wait much more than they compute.
PARALLEL = 8

#: The environment variable that names the file for the number of calls.
CALLS = "PORTPICKER_TEST_CALLS"

#: Seconds for one module.
LIMIT = 300


class Outcome(NamedTuple):
    """What came of the tests of a module."""

    #: The tests that failed, and why.
    failed: dict[str, str]
    #: How often each of our functions was called.
    calls: dict[str, int]


def exists(module: str) -> bool:
    """Tell whether this interpreter has the module."""
    try:
        return importlib.util.find_spec(f"test.{module}") is not None
    except ImportError:
        return False


def run(module: str, folder: Path, ours: bool, only: str | None = None) -> Outcome:
    """Run the tests of a module, or one of them."""
    folder.mkdir(parents=True)
    report, calls = folder / "report.xml", folder / "calls.json"
    command = [sys.executable, *([__file__] if ours else ["-m", "test"]), "-v"]
    command += ["--junit-xml", str(report), *(f"--ignore={name}" for name in IGNORED)]
    command += ["-u", "network"] if module in NETWORK else []
    command += ["-m", only] if only else []
    with open(folder / "output", "w+") as output:
        subprocess.run(
            [*command, module],
            cwd=folder,
            env=environment(**{CALLS: str(calls)}),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            timeout=LIMIT,
            check=False,
        )
        output.seek(0)
        text = output.read()
    cases = report.exists() and list(ElementTree.parse(report).getroot().iter("testcase"))
    assert cases, f"no tests of {module} were run:\n{text}"
    return Outcome(
        failed={
            case.get("name", ""): trouble.text or trouble.tag
            for case in cases
            for trouble in case
            if trouble.tag in ("failure", "error")
        },
        calls=json.loads(calls.read_text()) if ours else {},
    )


@pytest.fixture(scope="module")
def outcomes(
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[tuple[str, bool], Future[Outcome]]:
    """What failed in each module, with ours and without."""
    folder = tmp_path_factory.mktemp("stdlib")
    with ThreadPoolExecutor(PARALLEL) as pool:
        return {
            (module, ours): pool.submit(
                run, module, folder / module / ("ours" if ours else "its own"), ours
            )
            for module in MODULES
            if exists(module)
            for ours in (True, False)
        }


@pytest.fixture(scope="module", autouse=True)
def tests_of_cpython() -> None:
    if not exists("libregrtest") or not exists("test_socket"):
        skip("CPython's network tests", f"{sys.executable} comes without CPython's tests")


@pytest.mark.parametrize("module", [module for module in MODULES if exists(module)])
def test_what_passes_without_ours_passes_with_it(
    module: str, outcomes: dict[tuple[str, bool], Future[Outcome]], tmp_path: Path
) -> None:
    failed = outcomes[module, True].result().failed
    for name in failed.keys() - outcomes[module, False].result().failed.keys():
        alone = name.rpartition(".")[2]
        if run(module, tmp_path / alone / "ours", True, alone).failed:
            assert run(module, tmp_path / alone / "its own", False, alone).failed, failed[name]


def test_our_functions_were_called(outcomes: dict[tuple[str, bool], Future[Outcome]]) -> None:
    calls = [outcome.result().calls for (_, ours), outcome in outcomes.items() if ours]
    for function in ("find_unused_port", "bind_port"):
        assert sum(counts[function] for counts in calls) > 20


def main() -> None:
    """Run CPython's tests with our functions; the arguments are those of `python -m test`."""
    import atexit
    import runpy

    # Not the folder of this file, which Python puts in front.
    sys.path.pop(0)
    from test.support import socket_helper  # type: ignore[import-not-found]

    import portpicker

    calls = {"find_unused_port": 0, "bind_port": 0}

    def find_unused_port(*arguments: int, **keywords: int) -> int:
        calls["find_unused_port"] += 1
        return portpicker.find_unused_port(*arguments, **keywords)

    def bind_port(*arguments: object, **keywords: object) -> int:
        calls["bind_port"] += 1
        return portpicker.bind_port(*arguments, **keywords)  # type: ignore[arg-type]

    socket_helper.find_unused_port = find_unused_port
    socket_helper.bind_port = bind_port
    # CPython's tests fork, and their children are to leave the file alone.
    pid = os.getpid()

    def write_calls() -> None:
        if CALLS in os.environ and os.getpid() == pid:
            Path(os.environ[CALLS]).write_text(json.dumps(calls))

    atexit.register(write_calls)
    runpy.run_module("test", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
