"""`python3 -m portpicker`: the command `portpicker`, which is installed with the package."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator


def folders() -> Iterator[str]:
    """Where installers put programs, the likeliest first."""
    # Links are not followed: they may lead into an installer's cache.
    folder = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if folder.endswith("-packages"):
        # PREFIX/lib/python3.X/site-packages, or dist-packages; Bazel has it right below PREFIX.
        prefix = folder
        for _ in range(3):
            prefix = os.path.dirname(prefix)
            yield os.path.join(prefix, "bin")
    # `pip install --target`.
    yield os.path.join(folder, "bin")
    # An editable package may be anywhere. Not imported before it is needed: it takes a while.
    import sysconfig

    yield sysconfig.get_path("scripts")
    yield sysconfig.get_path("scripts", f"{os.name}_user")


def main() -> None:
    """Start the command in the place of this interpreter, so that its parent is the caller."""
    failures = []
    for folder in folders():
        program = os.path.join(folder, "portpicker")
        try:
            os.execv(program, ["portpicker", *sys.argv[1:]])
        except OSError as error:
            failures.append(f"\n  {program}: {error.strerror}")
    print(
        "portpicker: cannot start the command, which should have been installed with the package",
        *failures,
        sep="",
        file=sys.stderr,
    )
    sys.exit(6)  # the command's exit code for a failure of the system


if __name__ == "__main__":
    main()
