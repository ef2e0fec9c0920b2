"""Commands that bind held ports: `portpicker.popen` and `Hold.popen`.

Imported when it is needed: most who import portpicker start no command with it.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import warnings
from collections.abc import Sequence
from typing import Any

from portpicker import Hold, _portpicker
from portpicker.__main__ import folders


def popen(
    args: str | Sequence[str],
    holds: Sequence[Hold],
    *,
    strict: bool = False,
    **options: Any,
) -> subprocess.Popen[Any]:
    """See `portpicker.popen`."""
    if not holds:
        raise ValueError("popen needs at least one hold")
    if "executable" in options:
        raise TypeError("popen cannot start another program than that in its arguments: executable")
    environment = dict(options.pop("env", None) or os.environ)
    environment["PORT"] = str(holds[0].port)
    means, reason = _portpicker.hand_off_means()
    if reason is not None and strict:
        raise OSError(errno.ENOTSUP, reason)
    if reason is not None:
        warnings.warn(f"{reason}: the ports are held less than they should be", stacklevel=3)
    if means == "supervise":
        return _supervised(args, holds, environment, options)
    kept: Any = holds
    if means == "entrust":
        kept = _portpicker.Entrusted(holds)
    else:
        for hold in holds:
            hold.open_door()
    process = subprocess.Popen(args, env=environment, **options)
    process._portpicker = kept  # type: ignore[attr-defined]  # as long as anybody waits for it
    return process


def _supervised(
    args: str | Sequence[str],
    holds: Sequence[Hold],
    environment: dict[str, str],
    options: dict[str, Any],
) -> subprocess.Popen[Any]:
    """Start the command by way of one that can be told apart between fork and exec."""
    # Python runs no code of ours there safely (`preexec_fn`), once a process has threads.
    if options.pop("shell", False):
        command = ["/bin/sh", "-c", *([args] if isinstance(args, str) else args)]
    else:
        command = [args] if isinstance(args, (str, bytes, os.PathLike)) else list(args)
    # It is not Popen that starts the command, so it would not say this.
    if shutil.which(command[0], path=environment.get("PATH", os.defpath)) is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), command[0])
    supervision = _portpicker.Supervision()
    socket = supervision.fileno()
    process = subprocess.Popen(
        [_program(), "begin", f"--socket={socket}", *command],
        env=environment,
        pass_fds=(*options.pop("pass_fds", ()), socket),
        **options,
    )
    process.args = args
    try:
        supervision.supervise(holds)
    except BaseException:
        process.kill()
        process.wait()
        raise
    return process


def _program() -> str:
    """Return the command `portpicker` of this installation."""
    for folder in folders():
        program = os.path.join(folder, "portpicker")
        if os.access(program, os.X_OK):
            return program
    raise FileNotFoundError(
        errno.ENOENT, "the command that should have been installed with the package", "portpicker"
    )
