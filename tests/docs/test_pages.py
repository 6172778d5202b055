"""What the pages say of the code is so: files, names, tests, keys, and what is generated."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from pydantic import BaseModel
from system.process import ROOT

from docs.blocks import PAGES
from service.config.settings import Settings

DOCS = ROOT / "docs"
TESTS = ROOT / "tests"
_PATH = re.compile(r"`((?:memory|service|evals|tests|examples|docs)/[\w./-]*)(?:::(\w+))?`")
_PAGE = re.compile(r"(?<![\w/])(?:docs/[\w-]+|[A-Z]{2,})\.md\b")
_QUESTION = re.compile(r"^\| (.*\?) \| `([^`]+)` \| `([^`]+)` \|$", re.MULTILINE)
_PROMISE = re.compile(r"^### ([RS]\d+) .*\n\n(.*)\n((?:\n- `[^`]+`)*)", re.MULTILINE)
NUMBERS = [f"R{n}" for n in range(1, 24)] + [f"S{n}" for n in range(1, 12)]
# R13 belongs to a cache and R16 to routes that do not exist yet.
NAMED = {f"R{n}" for n in range(1, 21)} - {"R13", "R16"}


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"docs_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _defined(path: Path) -> set[str]:
    """Names of the functions, classes and constants of a file, its classes' methods included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
    return found


def test_every_path_that_a_page_names_exists() -> None:
    wrong = []
    for page in [*PAGES, ROOT / "CHANGELOG.md"]:
        for path, name in _PATH.findall(page.read_text("utf-8")):
            there = ROOT / path
            if not there.exists() or (name and name not in _defined(there)):
                wrong.append(f"{page.name}: {path} {name}")
    assert not wrong, "\n".join(wrong)


def test_every_page_that_the_code_names_exists() -> None:
    for folder in ("memory", "service", "evals", "tests", "examples"):
        for path in (ROOT / folder).rglob("*.py"):
            for page in _PAGE.findall(path.read_text("utf-8")):
                assert (ROOT / page).exists(), f"{path.relative_to(ROOT)}: {page}"


def test_a_strangers_questions_are_answered_by_one_file_each() -> None:
    found = _QUESTION.findall((DOCS / "architecture.md").read_text("utf-8"))
    assert len(found) > 12
    wrong = [
        f"{question} {path} defines no {name}"
        for question, path, name in found
        if not (ROOT / path).is_file() or name not in _defined(ROOT / path)
    ]
    assert not wrong, "\n".join(wrong)


def test_every_promise_stands_there_with_its_tests_or_as_not_built() -> None:
    found = _PROMISE.findall((DOCS / "promises.md").read_text("utf-8"))
    assert [number for number, _, _ in found] == NUMBERS
    for number, text, tests in found:
        built = not re.match(r"\*\*Not ", text)
        assert tests.strip() or not built, (
            f"{number} has no test and does not say that it lacks one"
        )


def _words(path: Path) -> Iterator[str]:
    """The name and docstring of each test of a file."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name[:5] == "test_":
            yield f"{node.name} {ast.get_docstring(node) or ''}"


def test_every_promise_has_a_test_that_carries_its_number() -> None:
    """A promise without one is only a wish."""
    texts = [text for path in TESTS.rglob("test_*.py") for text in _words(path)]
    named = {number for text in texts for number in re.findall(r"\bR\d{1,2}\b", text)}
    assert NAMED - named == set()


def test_every_configuration_key_stands_on_its_page() -> None:
    page = (DOCS / "configuration.md").read_text("utf-8")
    for group, field in Settings.model_fields.items():
        model = field.annotation
        assert isinstance(model, type)
        assert issubclass(model, BaseModel)
        for key in model.model_fields:
            assert re.search(rf"`(?:{group}\.)?{key}`", page), f"{group}.{key}"


@pytest.mark.filterwarnings("default")
def test_what_is_generated_is_as_the_code_is_now() -> None:
    for path, text in _module(DOCS / "generate.py").outputs().items():
        assert path.read_text("utf-8") == text, f"{path.name} is old: `make docs` renews it"


def test_pictures_hold_text_and_load_nothing() -> None:
    for path in DOCS.rglob("*.svg"):
        svg = path.read_text("utf-8")
        assert "<text" in svg, path
        loaded = re.findall(r"(?:href|src)=|url\(\s*[\"']?http|@import|@font-face", svg)
        assert not loaded, f"{path}: {loaded}"
        assert path.stat().st_size < 60_000, path


def test_metrics_on_the_page_are_those_of_the_service() -> None:
    page = (DOCS / "operations.md").read_text("utf-8")
    named = re.findall(r"`(strata_\w+?)(?:_total)?(?:\{(\w+)\})?`", page)
    made = (ROOT / "service" / "observability" / "metrics.py").read_text("utf-8")
    assert {name for name, _ in named} == set(re.findall(r'"(strata_\w+)"', made))
    assert all(f'["{label}"]' in made for _, label in named if label)


def test_hooks_call_tools_that_the_project_installs() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))
    for repo in config["repos"]:
        assert repo["repo"] == "local"
        for hook in repo["hooks"]:
            program = hook["entry"].split()[0]
            assert program.startswith(".venv/bin/")
            assert (Path(sys.prefix) / "bin" / Path(program).name).exists(), program


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 140
