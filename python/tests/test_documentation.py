"""Does the Python code in the documentation run?"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support import python

ROOT = Path(__file__).resolve().parents[2]

DOCUMENTS = ["README.md", "docs/compatibility.md"]


def blocks(document: str) -> list[str]:
    """Return the blocks of Python code in a document."""
    text = (ROOT / document).read_text()
    return re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize(
    ("document", "number"),
    [(document, number) for document in DOCUMENTS for number in range(len(blocks(document)))],
)
def test_a_block_runs(document: str, number: int) -> None:
    code = blocks(document)[number]
    ended = python(code)
    assert (ended.returncode, ended.stderr) == (0, ""), code
