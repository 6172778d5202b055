"""The fenced blocks of README.md, CONTRIBUTING.md and docs/, each with the mark that stands before
it: `<!-- KIND -->`, or `<!-- KIND: why it is not run here -->`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from system.process import ROOT

PAGES = sorted(
    [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")]
    + list((ROOT / "docs").glob("*.md"))
)
_BLOCK = re.compile(
    r"(?:^<!-- (?P<kind>\w+)(?:: (?P<reason>[^\n]+))? -->\n+)?"
    r"^```(?P<language>\w*)\n(?P<text>.*?)^```\n"
    r"(?:\n?^```text\n(?P<output>.*?)^```\n)?",
    re.DOTALL | re.MULTILINE,
)


class Block(NamedTuple):
    page: str
    kind: str | None
    reason: str | None
    language: str
    text: str
    output: str | None

    def commands(self) -> list[str]:
        """Its lines, continued ones joined, without comments."""
        joined = self.text.replace("\\\n", " ")
        lines = (re.sub(r"(^|\s)#.*$", "", line).strip() for line in joined.splitlines())
        return [line for line in lines if line]


def blocks(kind: str | None = None, pages: list[Path] | None = None) -> list[Block]:
    """All blocks, or those of one kind (at least one)."""
    found = [block for page in pages or PAGES for block in _of(page)]
    if kind is not None:
        found = [block for block in found if block.kind == kind]
        assert found, f"no page holds a block marked {kind}"
    return found


def _of(page: Path) -> Iterator[Block]:
    name = page.relative_to(ROOT).as_posix()
    for match in _BLOCK.finditer(page.read_text("utf-8")):
        yield Block(name, **match.groupdict())
