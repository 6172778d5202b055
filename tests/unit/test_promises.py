"""Every promise of the design has a test that names it: a promise without one is only a wish."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
# R13 belongs to a cache that does not exist yet.
PROMISES = {f"R{number}" for number in range(1, 21)} - {"R13", "R16"}
NUMBER = re.compile(r"\bR\d{1,2}\b")


def told(path: Path) -> Iterator[str]:
    """The name and docstring of each test of a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name[:5] == "test_":
            yield f"{node.name} {ast.get_docstring(node) or ''}"


def test_every_promise_has_a_test_that_carries_its_number() -> None:
    texts = [text for path in TESTS.rglob("test_*.py") for text in told(path)]
    named = {number for text in texts for number in NUMBER.findall(text)}
    assert PROMISES - named == set()
