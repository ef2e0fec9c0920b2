"""What is in the wheel and in the sdist."""

from __future__ import annotations

import base64
import csv
import email
import hashlib
import importlib.metadata
import io
import os
import re
import subprocess
import sys
import tarfile
import venv
from pathlib import Path
from zipfile import ZipFile

import pytest
from support import environment

import portpicker

VERSION = importlib.metadata.version("portpicker")
INFO = f"portpicker-{VERSION}.dist-info"
SCRIPTS = f"portpicker-{VERSION}.data/scripts"

#: Seconds in which all that is in the sdist is built.
BUILD = 600


def distribution(pattern: str) -> Path:
    """Return the file that python/tests/run has made."""
    (path,) = Path(os.environ["PORTPICKER_DIST"]).glob(pattern)
    return path


@pytest.fixture(scope="module")
def wheel() -> ZipFile:
    return ZipFile(distribution("*.whl"))


@pytest.fixture(scope="module")
def sdist() -> dict[str, bytes]:
    """The contents by path, below the folder that everything is in."""
    with tarfile.open(distribution("*.tar.gz")) as archive:
        contents = {}
        for member in archive.getmembers():
            folder, _, path = member.name.partition("/")
            assert folder == f"portpicker-{VERSION}"
            assert member.isfile(), "no links, and nothing special"
            contents[path] = archive.extractfile(member).read()
        return contents


def test_the_tests_are_of_the_installed_package() -> None:
    for module in (portpicker, portpicker._portpicker):
        assert Path(module.__file__).is_relative_to(sys.prefix)
    assert sys.prefix != sys.base_prefix


def test_the_wheel_has_the_package_and_the_commands_and_nothing_else(
    wheel: ZipFile, sdist: dict[str, bytes]
) -> None:
    sources = "python/portpicker/"
    package = [path[len("python/") :] for path in sdist if path.startswith(sources)]
    assert {"portpicker/__init__.py", "portpicker/py.typed"} < set(package)
    assert sorted(wheel.namelist()) == sorted(
        [
            *package,
            "portpicker/_portpicker.abi3.so",
            f"{SCRIPTS}/portpicker",
            f"{SCRIPTS}/portpicker.py",
            f"{SCRIPTS}/portserver",
            f"{SCRIPTS}/portserver.py",
            f"{INFO}/METADATA",
            f"{INFO}/RECORD",
            f"{INFO}/WHEEL",
            f"{INFO}/entry_points.txt",
            f"{INFO}/licenses/LICENSE-APACHE",
            f"{INFO}/licenses/LICENSE-MIT",
        ]
    )
    for info in wheel.infolist():
        is_program = info.filename.endswith(".so") or info.filename.startswith(SCRIPTS)
        assert info.external_attr >> 16 == (0o100755 if is_program else 0o100644), info.filename
    for name in ("portpicker.py", "portserver.py"):
        # Installers put the path of their interpreter there.
        assert wheel.read(f"{SCRIPTS}/{name}").startswith(b"#!python\n")


def test_the_wheel_is_for_every_python(wheel: ZipFile) -> None:
    text = wheel.read(f"{INFO}/WHEEL").decode()
    (tag,) = re.findall("^Tag: (.*)$", text, re.M)
    assert tag.startswith("cp39-abi3-")
    assert distribution("*.whl").name == f"portpicker-{VERSION}-{tag}.whl"


def test_the_record_is_true(wheel: ZipFile) -> None:
    record = csv.reader(io.StringIO(wheel.read(f"{INFO}/RECORD").decode()))
    recorded = {path: (digest, size) for path, digest, size in record}
    assert recorded.pop(f"{INFO}/RECORD") == ("", "")
    assert {*recorded, f"{INFO}/RECORD"} == set(wheel.namelist())
    for path, (digest, size) in recorded.items():
        content = wheel.read(path)
        expected = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode()
        assert (digest, size) == (f"sha256={expected.rstrip('=')}", str(len(content))), path


def test_the_metadata_are_those_of_the_project(wheel: ZipFile, scripts: Path) -> None:
    metadata = email.message_from_bytes(wheel.read(f"{INFO}/METADATA"))
    assert metadata["Name"] == "portpicker"
    assert metadata["Version"] == portpicker._portpicker.__version__
    for command in ("portpicker", "portserver"):
        printed = subprocess.check_output([scripts / command, "--version"], text=True)
        assert printed == f"{command} {VERSION}\n"
    assert metadata["Summary"].startswith("Unused network ports that stay unused")
    assert metadata["Requires-Python"] == ">=3.9"
    assert metadata["License-Expression"] == "MIT OR Apache-2.0"
    assert metadata.get_all("License-File") == ["LICENSE-APACHE", "LICENSE-MIT"]
    assert metadata["Description-Content-Type"].startswith("text/markdown")
    assert metadata.get_payload().lstrip().startswith("# portpicker\n")
    assert metadata.get_all("Requires-Dist") is None, "it needs nothing else"
    assert metadata.get_all("Author") is None


def test_the_sdist_has_the_workspace_and_nothing_that_was_built(sdist: dict[str, bytes]) -> None:
    for path in (
        "PKG-INFO",
        "Cargo.toml",
        "Cargo.lock",
        "LICENSE-APACHE",
        "LICENSE-MIT",
        "README.md",
        "pyproject.toml",
        "python/build/backend.py",
        "python/build/command.py",
        "python/portpicker/__main__.py",
        "python/tests/run",
        "python/tests/test_packaging.py",
        "crates/portpicker-cli/src/bin/portserver.rs",
    ):
        assert path in sdist, path
    tops = {path.split("/")[0] for path in sdist}
    assert tops <= {
        *("Cargo.toml", "Cargo.lock", "LICENSE-APACHE", "LICENSE-MIT", "PKG-INFO", "README.md"),
        *("crates", "pyproject.toml", "python"),
    }
    kinds = {Path(path).suffix for path in sdist}
    assert not kinds & {".so", ".pyc", ".whl", ".gz", ".rlib"}
    assert not any("/target/" in path or "__pycache__" in path for path in sdist)


def test_the_sdist_builds_into_the_same_wheel(wheel: ZipFile, tmp_path: Path) -> None:
    """In a fresh virtual environment, and from nothing."""
    fresh = tmp_path / "venv"
    venv.create(fresh, with_pip=True)
    variables = {
        # What cargo has built of other sources would be taken for built of these.
        "CARGO_TARGET_DIR": str(tmp_path / "must not be used"),
        # Quick to build; and what the package does is tested with the other wheel.
        "CARGO_PROFILE_RELEASE_OPT_LEVEL": "0",
        "CARGO_PROFILE_RELEASE_LTO": "off",
        "CARGO_PROFILE_RELEASE_CODEGEN_UNITS": "16",
    }
    pip = [fresh / "bin/pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--wheel-dir", tmp_path, distribution("*.tar.gz")],
        check=True,
        cwd="/",
        env=environment(**variables),
        timeout=BUILD,
    )
    assert not Path(variables["CARGO_TARGET_DIR"]).exists()
    (path,) = tmp_path.glob("*.whl")
    with ZipFile(path) as built:
        assert path.name == distribution("*.whl").name
        assert built.namelist() == wheel.namelist()
        for name in wheel.namelist():
            if name.endswith((".py", ".pyi", ".txt", "METADATA", "WHEEL", "typed")):
                assert built.read(name) == wheel.read(name), name

    subprocess.run([*pip, "install", "--no-deps", "--no-index", path], check=True, cwd="/")
    command = [fresh / "bin/python", "-m", "portpicker", str(os.getpid())]
    assert int(subprocess.check_output(command, cwd="/")) > 10_000
    subprocess.run([*pip, "uninstall", "--yes", "portpicker"], check=True, cwd="/")
    assert not [*fresh.rglob("portpicker*"), *fresh.rglob("portserver*")]
