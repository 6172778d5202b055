"""Writes what the documentation takes from the code: `python docs/generate.py`, and `make docs`.

openapi.json, the table of configuration.md, packages.md (the first sentences of the modules'
docstrings), and the diagrams. images/chat.svg is made by picture.py, from a real chat.
"""

from __future__ import annotations

import ast
import asyncio
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import structlog

from service.app import create_app
from service.config.settings import Settings

DOCS = Path(__file__).parent
ROOT = DOCS.parent
sys.path.insert(0, str(DOCS))  # for what stands beside this file
_GENERATED = re.compile(r"(<!-- generated -->\n).*?(<!-- /generated -->)", re.DOTALL)


def openapi() -> str:
    """The OpenAPI document as the application serves it, one key a line."""

    async def ask() -> Any:
        transport = httpx.ASGITransport(create_app(Settings.model_construct()))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            response = await client.get("/schema/openapi.json")
            response.raise_for_status()
            return response.json()

    return json.dumps(asyncio.run(ask()), indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def configuration(page: str) -> str:
    """`page` with the table of all groups and keys as the code defines them now."""
    from reference import markdown_reference

    return _GENERATED.sub(lambda m: f"{m[1]}{markdown_reference().strip()}\n{m[2]}", page)


def packages() -> str:
    """Every module of the three packages with the first sentence of its docstring."""
    return "\n".join(_packages()) + "\n"


def _packages() -> Iterator[str]:
    yield "# Package map"
    yield ""
    yield (
        "One line for every file, taken from its docstring. [Architecture](architecture.md) says "
        "how they play together."
    )
    folder = None
    for path in _modules():
        docstring = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
        if not docstring:
            continue
        here = path.parent.relative_to(ROOT).as_posix()
        if here != folder:
            folder = here
            yield from ("", f"## {here}/", "", "| file | what it is |", "|---|---|")
        first = re.split(r"\n\n", docstring)[0].replace("\n", " ").replace("|", "\\|")
        yield f"| `{path.name}` | {first} |"


def _modules() -> Iterator[Path]:
    for package in ("memory", "service", "evals"):
        found = (ROOT / package).rglob("*.py")
        yield from sorted(found, key=lambda path: (path.parent.as_posix(), path.name))


def _pictures() -> dict[Path, str]:
    import diagrams

    return {
        DOCS / "images" / "turn.svg": diagrams.turn_sequence(),
        DOCS / "images" / "states.svg": diagrams.turn_states(),
    }


def outputs() -> dict[Path, str]:
    """Every generated file with what should stand in it now."""
    page = DOCS / "configuration.md"
    return {
        DOCS / "openapi.json": openapi(),
        page: configuration(page.read_text("utf-8")),
        DOCS / "packages.md": packages(),
        **_pictures(),
    }


def main() -> None:
    quiet = structlog.make_filtering_bound_logger(30)
    structlog.configure(wrapper_class=quiet)  # no line for the request to /schema
    for path, text in outputs().items():
        if not path.exists() or path.read_text("utf-8") != text:
            path.write_text(text, "utf-8")
            print(f"written: {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
