"""Picks ports with one Python package when the benchmark asks for them.

    python driver.py TOOL [FIRST-LAST]

The conversation is in bench/README.md, "Drivers".
"""

from __future__ import annotations

import sys
import time


def tool(name: str, ports: str | None):
    """Return the function that picks a port, as its documentation shows it first."""
    if name == "portpicker":  # this project's, or Google's: whichever the environment has
        import portpicker

        return portpicker.pick_unused_port
    if name == "port-for":
        import port_for

        if ports is None:
            return port_for.select_random
        first, last = map(int, ports.split("-"))
        # A set of its own for each call: the function changes what it is given.
        return lambda: port_for.select_random(set(range(first, last + 1)))
    if name == "ephemeral-port-reserve":
        import ephemeral_port_reserve

        return ephemeral_port_reserve.reserve
    raise SystemExit(f"there is no tool `{name}`")


def main() -> None:
    name, *rest = sys.argv[1:]
    pick = tool(name, rest[0] if rest else None)
    print("ready", flush=True)
    for line in sys.stdin:
        word, count = line.split()
        if word != "pick":
            raise SystemExit(f"`{line}`?")
        picked = ["picked"]
        for _ in range(int(count)):
            start = time.perf_counter_ns()
            try:
                port = pick()
            except Exception:  # each package has its own, for the same: it found none
                port = None
            end = time.perf_counter_ns()
            picked.append("-" if port is None else f"{port}:{end - start}")
        print(*picked, flush=True)


main()
