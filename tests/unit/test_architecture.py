"""What import-linter and ruff (pyproject.toml, `make lint`) cannot see: what is imported late, and
the size of files and classes."""

from __future__ import annotations

import ast
from pathlib import Path

import grimp
import pytest

import memory

ROOT = Path(memory.__file__).parents[1]
LATE = {"fastembed", "langchain_openai", "openai", "onnxruntime", "qdrant_client", "numpy"}
MOST_LINES = 300
MOST_LINES_OF_A_CLASS = 200

LIBRARY = sorted((ROOT / "memory").rglob("*.py"))
FILES = [
    *LIBRARY,
    *(path for folder in ("service", "evals") for path in sorted((ROOT / folder).rglob("*.py"))),
]


def place(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imported_with(path: Path) -> set[str]:
    """Dotted names of what is imported when the file itself is."""
    found: set[str] = set()
    for node in _executed(ast.parse(path.read_text()).body):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


def _executed(body: list[ast.stmt]) -> list[ast.stmt]:
    found = []
    for node in body:
        found.append(node)
        checking = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if isinstance(node, ast.If | ast.Try | ast.With | ast.ClassDef) and not checking:
            found += _executed(node.body)
    return found


@pytest.mark.parametrize("path", LIBRARY, ids=place)
def test_heavy_libraries_are_imported_late(path: Path) -> None:
    assert not {name for name in imported_with(path) if name.partition(".")[0] in LATE}


def test_the_library_does_not_import_its_own_door() -> None:
    """`memory/__init__.py` imports most of the library: a part that imported it would be last."""
    graph = grimp.build_graph("memory", cache_dir=None)
    assert graph.find_modules_that_directly_import("memory") == set()


@pytest.mark.parametrize("path", FILES, ids=place)
def test_files_and_classes_stay_small(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= MOST_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            assert lines <= MOST_LINES_OF_A_CLASS, f"{node.name} has {lines} lines"
