"""How far a measurement has come, on stderr: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Called after each step with the steps done and the steps in all.
Tell = Callable[[int, int], None]
PLAIN_LINES = 4


@contextmanager
def progress(label: str) -> Iterator[Tell]:
    if not sys.stderr.isatty():
        yield plain(label)
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def plain(label: str) -> Tell:
    """A line each time another quarter is done, so that a log stays short."""
    shown = 0

    def tell(done: int, total: int) -> None:
        nonlocal shown
        reached = PLAIN_LINES * done // total if total else PLAIN_LINES
        if reached > shown:
            shown = reached
            print(f"{label}: {done}/{total}", file=sys.stderr, flush=True)

    return tell
