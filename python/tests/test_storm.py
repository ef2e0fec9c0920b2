"""Many pick, bind, and connect at once, and nobody gets in another's way.

This is a shorter storm than `python python/tests/storm.py --picks 20000`.
"""

from __future__ import annotations

import subprocess
from typing import Any

import pytest

import storm
from support import program, skip

PICKS = 2000


@pytest.fixture(autouse=True)
def namespaces() -> None:
    """A test here needs a network of its own, where only the storm is."""
    try:
        subprocess.run([*storm.namespace(), "true"], capture_output=True, text=True, check=True)
    except FileNotFoundError:
        skip("storm", "there is no unshare(1)")
    except subprocess.CalledProcessError as error:
        skip("storm", f"there are no network namespaces: {error.stderr}")


def test_what_is_picked_in_a_storm_can_be_bound(capsys: pytest.CaptureFixture[str]) -> None:
    came = storm.run(PICKS, command=program("portpicker"))
    say(came, capsys)
    assert came["failures"] == 0
    assert came["shell"]["failures"] == 0
    for others in (came["shell"]["picks"], came["bind"], came["connect"]):
        assert others > 10, "that was no storm"


def test_how_often_googles_picks_fail_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        came = storm.run(PICKS, module="google")
    except subprocess.CalledProcessError:
        skip("storm with Google's module", f"pip cannot fetch {storm.GOOGLES[0]}")
    say(came, capsys)
    assert f"portpicker=={came['version']}" == storm.GOOGLES[0]


def say(came: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"\n{storm.describe(came)}")
