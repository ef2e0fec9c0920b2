"""What the tests share: an environment without the user's settings, and where the commands are."""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path

import pytest
from support import unused_name

# What the user has set for other programs is not for the tests.
for variable in ("PORTSERVER_ADDRESS", "PORTPICKER_PORTS"):
    os.environ.pop(variable, None)


@pytest.fixture(scope="session")
def scripts() -> Path:
    """The folder with the commands that were installed with the package."""
    return Path(sysconfig.get_path("scripts"))


@pytest.fixture
def server_address() -> str:
    """The address of a port server in the abstract namespace that nobody else has."""
    return unused_name()
