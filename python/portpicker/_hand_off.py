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
from typing import TYPE_CHECKING, Any

from portpicker import Hold, _portpicker
from portpicker.__main__ import folders

if TYPE_CHECKING:
    from portpicker import _Command


def popen(
    args: _Command,
    holds: Sequence[Hold],
    *,
    strict: bool = False,
    **options: Any,
) -> subprocess.Popen[Any]:
    """See `portpicker.popen`."""
    if not isinstance(holds, Sequence) or not all(isinstance(hold, Hold) for hold in holds):
        raise TypeError(f"holds must be a sequence of holds, not {holds!r}")
    if not holds:
        raise ValueError("popen needs at least one hold")
    if options.pop("executable", None) is not None:
        raise TypeError("popen cannot start another program than that in its arguments: executable")
    variables = options.pop("env", None)
    environment = dict(os.environ if variables is None else variables)
    environment["PORT"] = str(holds[0].port)
    means, reason = _portpicker.hand_off_means()
    if reason is not None and strict:
        raise OSError(errno.ENOTSUP, reason)
    if reason is not None:
        warnings.warn(f"{reason}: the ports are held less than they should be", stacklevel=3)
    if means == "supervise":
        return _supervised(args, holds, strict, environment, options)
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
    args: _Command,
    holds: Sequence[Hold],
    strict: bool,
    environment: dict[str, str],
    options: dict[str, Any],
) -> subprocess.Popen[Any]:
    """Start the command by way of one that can be told apart between fork and exec."""
    # Python runs no code of ours there safely (`preexec_fn`), once a process has threads.
    command: list[Any] = [args] if isinstance(args, (str, bytes, os.PathLike)) else list(args)
    if options.pop("shell", False):
        command = ["/bin/sh", "-c", *command]
    _check_program(command[0], environment.get("PATH", os.defpath), options.get("cwd"))
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
        supervision.supervise(holds, bool(strict))
    except BaseException:
        process.kill()
        process.wait()
        raise
    return process


def _check_program(program: Any, path: str, cwd: Any) -> None:
    """Raise what Popen would raise, which only sees that our own program can be started."""
    place = os.fsdecode(program)
    if os.path.dirname(place) and cwd is not None:
        place = os.path.join(os.fsdecode(cwd), place)
    if shutil.which(place, path=path) is None:
        number = errno.EACCES if os.path.dirname(place) and os.path.exists(place) else errno.ENOENT
        raise OSError(number, os.strerror(number), program)


def _program() -> str:
    """Return the command `portpicker` of this installation."""
    for folder in folders():
        program = os.path.join(folder, "portpicker")
        if os.access(program, os.X_OK):
            return program
    raise FileNotFoundError(
        errno.ENOENT, "the command that should have been installed with the package", "portpicker"
    )
