"""Makes images/chat.svg from a real chat in the terminal: `python docs/picture.py`.

`strata chat` twice over a new folder, with the shipped offline model; what is typed is given here.
"""

from __future__ import annotations

import asyncio
import io
import os
import re
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console

from service.cli.chat import chat
from service.cli.clients import connect
from service.config.loading import load_settings
from service.observability.logging import configure_logging

PICTURE = Path(__file__).parent / "images" / "chat.svg"
MONDAY = ["My dog is called Biscuit, she is a whippet.", "I am allergic to peanuts."]
FRIDAY = ["What is my dog called?", "/context"]
COLUMNS = 92


class Typed(Console):
    """A terminal at which these lines are typed."""

    def __init__(self, lines: list[str], **more: Any) -> None:
        super().__init__(width=COLUMNS, file=io.StringIO(), force_terminal=True, **more)
        self._lines = iter(lines)

    def input(self, prompt: Any = "", **_: Any) -> str:
        line = next(self._lines, None)
        if line is None:
            raise EOFError
        self.print(prompt, end="")
        self.print(line, markup=False, highlight=False, style="bold")
        return line


async def main() -> None:
    configure_logging("error")
    shown = Typed(FRIDAY, record=True)
    async with connect(load_settings(), url=None, user="anna") as client:
        await chat(client, "monday", Typed(MONDAY))
        await client.settled()
        await chat(client, "friday", shown)
    svg = shown.export_svg(title="strata chat friday")
    # rich names web fonts, which a reader's browser would fetch; any monospace font will do.
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
    PICTURE.write_text(svg.replace("Fira Code, monospace", "monospace"), "utf-8")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for name in [name for name in os.environ if name.startswith(("STRATA_", "OPENAI_"))]:
            del os.environ[name]
        asyncio.run(main())
