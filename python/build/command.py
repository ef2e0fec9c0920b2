#!python
"""Starts the program next to this file that has its name without the `.py`.

It is installed as `portpicker.py` and as `portserver.py`, which is what some callers start.

It must get out of the way when it is imported, too: every Python script in this folder, such as
pytest, has the folder at the front of `sys.path`, and finds `portpicker.py` before the package.
"""

import os
import sys


def _start():
    program = os.path.realpath(__file__)[: -len(".py")]
    try:
        # In the place of the interpreter: signals reach the program, and the caller is its parent.
        os.execv(program, sys.argv)
    except OSError as error:
        name = os.path.basename(program)
        print(f"{name}: cannot start `{program}`: {error.strerror}", file=sys.stderr)
        sys.exit(6)  # the commands' exit code for a failure of the system


def _become_what_is_hidden():
    """Turns this module into the package that would have been found without it.

    It stays the same module, with the same spec: so it can be reloaded, and threads that import it
    meanwhile wait as they should.
    """
    from importlib.machinery import PathFinder
    from importlib.util import module_from_spec

    own = os.path.realpath(os.path.dirname(__file__))
    others = [entry for entry in sys.path if os.path.realpath(entry) != own]
    hidden = PathFinder.find_spec(__name__, others)
    if hidden is None or not hidden.has_location:
        raise ModuleNotFoundError(f"No module named {__name__!r}", name=__name__)
    for attribute in ("loader", "origin", "cached", "submodule_search_locations"):
        setattr(__spec__, attribute, getattr(hidden, attribute))
    namespace = globals()
    for name in ("_start", "_become_what_is_hidden"):
        del namespace[name]
    namespace.update(vars(module_from_spec(__spec__)))
    __spec__.loader.exec_module(sys.modules[__name__])


if __name__ == "__main__":
    _start()
else:
    _become_what_is_hidden()
