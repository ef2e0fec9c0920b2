"""The build backend of PEP 517: maturin's, and then the commands are added to the wheel.

maturin makes wheels of an extension module or of programs, and not of both. So the programs are
built here, by cargo, and become scripts of the wheel: installed as they are, they start without an
interpreter.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

import maturin
from maturin import (
    build_sdist,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    get_requires_for_build_wheel,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

ROOT = Path(__file__).resolve().parents[2]

# The names that callers know besides those of the programs; each starts the program without `.py`.
SCRIPTS = ["portpicker.py", "portserver.py"]


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    return _with_commands(maturin.build_wheel, wheel_directory, config_settings, metadata_directory)


def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    return _with_commands(
        maturin.build_editable, wheel_directory, config_settings, metadata_directory
    )


def _with_commands(build, wheel_directory, config_settings, metadata_directory):
    if (ROOT / "PKG-INFO").exists():
        # An unpacked sdist. All its files have the same time, long ago, and by the time of a file
        # cargo tells whether it has changed: in a folder that is shared with other builds, what
        # those have built would be taken for built of these files.
        os.environ["CARGO_TARGET_DIR"] = str(ROOT / "target")
    commands = {program.name: program.read_bytes() for program in _programs(config_settings)}
    for name in SCRIPTS:
        commands[name] = Path(__file__).with_name("command.py").read_bytes()
    wheel = build(wheel_directory, config_settings, metadata_directory)
    _add_scripts(Path(wheel_directory, wheel), commands)
    return wheel


def _programs(config_settings):
    """Build the programs, and return their paths."""
    if not shutil.which("cargo"):
        try:
            # maturin requires it where there is no cargo, unless it was told not to.
            from puccinialin import setup_rust
        except ImportError:
            sys.exit("there is no cargo to build the commands with: see https://rustup.rs")
        os.environ.update(setup_rust())
    # For the processor and the system that maturin is told to build for.
    options = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    options.add_argument("--target")
    target = options.parse_known_args(maturin.get_maturin_pep517_args(config_settings))[0].target
    command = ["cargo", "build", "--release", "--locked", "--package=portpicker-cli", "--bins"]
    command += [f"--target={target}"] if target else []
    command += ["--message-format=json-render-diagnostics"]
    built = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=False)
    if built.returncode != 0:
        sys.exit(f"the commands cannot be built: `{' '.join(command)}` has failed")
    messages = map(json.loads, built.stdout.splitlines())
    return [Path(message["executable"]) for message in messages if message.get("executable")]


def _add_scripts(path, scripts):
    """Add files, as a dictionary of their contents, to the scripts of the wheel at `path`."""
    written = path.with_suffix(".new")
    with ZipFile(path) as old, ZipFile(written, "w", ZIP_DEFLATED) as new:
        (record,) = (info for info in old.infolist() if info.filename.endswith("/RECORD"))
        lines = old.read(record).decode().splitlines()
        for info in old.infolist():
            if info is not record:
                new.writestr(info, old.read(info))
        data = record.filename.replace(".dist-info/RECORD", ".data/scripts")
        for name, content in sorted(scripts.items()):
            info = ZipInfo(f"{data}/{name}", record.date_time)
            info.external_attr = 0o100755 << 16
            info.compress_type = ZIP_DEFLATED
            new.writestr(info, content)
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
            lines.append(f"{info.filename},sha256={digest},{len(content)}")
        new.writestr(record, "\n".join(lines) + "\n")
    written.replace(path)
