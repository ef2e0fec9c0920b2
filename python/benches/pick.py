"""What do a pick and an import cost from Python, beside Rust's and Google's?

    python python/benches/pick.py            # half a minute; on an idle machine
    python python/benches/pick.py --quick    # does it still work?

Run it with a Python that has the wheel installed. It builds the Rust pick with cargo, and fetches
Google's portpicker with pip; without the network, that is left out.

All are processes that take turns in small batches. Printed are the least times, which other programs
on the machine disturb least, and the medians.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GOOGLES = ["portpicker==1.6.0", "psutil==7.0.0"]

#: Picks as many ports as each line of its input says, and prints how many nanoseconds that took.
PICKS = """
import sys, time
import portpicker

for line in sys.stdin:
    count = range(int(line))
    pick, now, ports = portpicker.pick_unused_port, time.perf_counter_ns, []
    start = now()
    for _ in count:
        ports.append(pick())
    print(now() - start, flush=True)
    for port in ports:
        portpicker.return_port(port)
"""


class Picker:
    """A process that picks."""

    def __init__(self, *command: str) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/"
        )
        self.micros: list[float] = []

    def pick(self, count: int) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        print(count, file=self._process.stdin, flush=True)
        self.micros.append(int(self._process.stdout.readline()) / 1000 / count)

    def end(self) -> None:
        self._process.communicate()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="only see that it works")
    quick = parser.parse_args().quick
    for variable in ("PORTSERVER_ADDRESS", "PORTPICKER_PORTS"):
        os.environ.pop(variable, None)
    with tempfile.TemporaryDirectory() as folder:
        pythons = {"this module": sys.executable, "Google's module": googles(folder)}
        pythons = {name: python for name, python in pythons.items() if python}
        compare_picks(pythons, rounds=20 if quick else 3000)
        compare_imports(pythons, rounds=3 if quick else 100)


def compare_picks(pythons: dict[str, str], rounds: int) -> None:
    """Print what a pick costs."""
    pickers = {"Rust": Picker(rust())}
    for name, python in pythons.items():
        pickers[name] = Picker(python, "-c", PICKS)
    for turn in range(rounds):
        # Nobody always goes first.
        order = list(pickers.values())
        for picker in order[turn % len(order) :] + order[: turn % len(order)]:
            picker.pick(20)
    print("a pick, kept                    least µs    median µs        goal")
    for name, picker in pickers.items():
        picker.end()
        least, median = min(picker.micros), statistics.median(picker.micros)
        goal = ""
        if name == "this module":
            goal = f"{1.25 * min(pickers['Rust'].micros) + 1:.2f}"
        print(f"  {name:<28} {least:9.2f}    {median:9.2f}    {goal:>8}")
    print()


def compare_imports(pythons: dict[str, str], rounds: int) -> None:
    """Print what an import costs, above what the interpreter costs without it."""
    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in pythons}
    for _ in range(rounds):
        for name, python in pythons.items():
            for code, column in zip(("", "import portpicker"), times[name]):
                start = time.perf_counter()
                subprocess.run([python, "-I", "-c", code], check=True, cwd="/")
                column.append((time.perf_counter() - start) * 1e3)
    print("an import                       least ms    median ms        goal")
    least = {name: min(used) - min(bare) for name, (bare, used) in times.items()}
    for name, (bare, used) in times.items():
        median = statistics.median(used) - statistics.median(bare)
        goal = least.get("Google's module") if name == "this module" else None
        text = f"{goal:.2f}" if goal else ""
        print(f"  {name:<28} {least[name]:9.2f}    {median:9.2f}    {text:>8}")


def rust() -> str:
    """Build the Rust pick as the wheel is built, and return its path."""
    command = ["cargo", "build", "--profile=wheel", "--package=portpicker-python"]
    command += ["--example=picks", "--message-format=json-render-diagnostics"]
    built = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    for line in built.stdout.splitlines():
        executable = json.loads(line).get("executable")
        if executable:
            return str(executable)
    raise RuntimeError("cargo built no program")


def googles(folder: str) -> str | None:
    """Return a Python with Google's portpicker, or `None` if it cannot be had."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = str(Path(folder, "bin", "python"))
    installed = subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *GOOGLES],
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if installed.returncode != 0:
        print(f"without Google's, which pip cannot have: {installed.stderr}", file=sys.stderr)
        return None
    return python


if __name__ == "__main__":
    main()
