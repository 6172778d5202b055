"""Imports point one way, heavy ones stay in their place, and files stay small."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import memory

PACKAGE = Path(memory.__file__).parent
ROOT = PACKAGE.parent
TIERS = (
    ("models", "errors"),
    ("config", "tokens", "passages", "language", "sparse", "question", "packing", "lifetimes",
     "ask", "gates", "breaker", "scoring", "points", "documents", "stores.base",
     "indexes.base"),
    ("window", "summary", "recall", "context", "stores", "indexes", "embeddings"),
    ("rereading", "folding", "indexing", "steps", "projection", "erasing", "sweeper", "library",
     "accepted", "composing", "orchestrator", "opening", "idempotency", "recording",
     "conversations", "sessions", "factory", "langchain"),
)  # fmt: skip
WEB = {"litestar", "starlette", "uvicorn", "fastapi", "granian", "service", "evals"}
ONLY_IN = {
    "motor": ("stores/connection.py",),
    "pymongo": ("stores/connection.py",),
    "bson": ("stores/connection.py",),
    "qdrant_edge": ("indexes/", "sparse.py"),
    "qdrant_client": ("indexes/", "sparse.py"),
    "sqlite3": (
        "stores/sqlite.py",
        "stores/sqlite_pending.py",
        "stores/database.py",
        "stores/rows.py",
    ),
    "fastembed": ("embeddings.py",),
    "tiktoken": ("tokens.py",),
}
LATE = {"fastembed", "langchain_openai", "openai", "onnxruntime", "qdrant_client", "numpy"}
MOST_LINES = 400

FILES = sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def tier_of(module: str) -> int | None:
    """The tier of `memory.<module>`; None for the package itself."""
    if not module:
        return None
    for tier, names in enumerate(TIERS):
        if module in names:
            return tier
    family = module.partition(".")[0]
    return next(tier for tier, names in enumerate(TIERS) if family in names)


def imports(path: Path, *, at_the_top: bool = False) -> set[str]:
    """Dotted names of what a file imports; with `at_the_top`, when it is itself imported."""
    tree = ast.parse(path.read_text())
    nodes = _executed(tree.body) if at_the_top else ast.walk(tree)
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            module = node.module or ""
            found |= {module} if module != "memory" else {f"memory.{a.name}" for a in node.names}
    return found


def _executed(body: list[ast.stmt]) -> list[ast.stmt]:
    found = []
    for node in body:
        found.append(node)
        checking = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if isinstance(node, ast.If | ast.Try | ast.With | ast.ClassDef) and not checking:
            found += _executed(node.body)
    return found


def test_every_module_has_its_tier() -> None:
    for path in FILES:
        tier_of(name_of(path))


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_point_one_way(path: Path) -> None:
    own = tier_of(name_of(path))
    for imported in imports(path):
        package, _, module = imported.partition(".")
        if package == "memory" and own is not None:
            tier = tier_of(module)
            assert tier is not None, f"{name_of(path)} imports the package itself"
            assert tier <= own, f"{name_of(path)} must not import {module}"


def test_no_module_imports_itself_by_a_detour() -> None:
    known = {name_of(path): path for path in FILES if name_of(path)}
    graph = {
        name: {i.removeprefix("memory.") for i in imports(path)} & known.keys()
        for name, path in known.items()
    }
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " → ".join((*way, name))
        if name not in done:
            for other in sorted(graph[name]):
                visit(other, (*way, name))
            done.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_the_library_knows_no_web_framework_and_each_driver_has_its_place(path: Path) -> None:
    place = path.relative_to(PACKAGE).as_posix()
    for imported in imports(path):
        top = imported.partition(".")[0]
        assert top not in WEB, f"{place} imports {imported}"
        assert place.startswith(ONLY_IN.get(top, ("",))), f"{place} imports {imported}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_heavy_libraries_are_imported_late(path: Path) -> None:
    heavy = {i for i in imports(path, at_the_top=True) if i.partition(".")[0] in LATE}
    assert not heavy


def test_files_stay_small() -> None:
    for folder in ("memory", "service", "evals"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            place = path.relative_to(ROOT).as_posix()
            lines = len(path.read_text().splitlines())
            assert lines <= MOST_LINES, f"{place} has {lines} lines"
