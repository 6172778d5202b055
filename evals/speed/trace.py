"""How far one streamed turn walks through the code: files it touches, moves between them, climbs.

A profile lists the calls of one turn, task by task. Going from a call to the next in the same
task is a move when the file changes, and a move is a climb when the file before did not make the
call: the walk went back up first, as a reader who follows the turn has to. The same is counted of
the calls that carry the question in an argument.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from evals.speed import traced
from evals.speed.processes import ROOT, python_of

MOST_ENTERED = 8


class Call(msgspec.Struct, frozen=True):
    """One call into memory/ or service/; `caller` is the file of the project that led to it."""

    task: int | str
    file: str
    function: str
    caller: str | None
    carries: bool


class Walk(msgspec.Struct, frozen=True):
    """What some calls of a turn amount to. `entries` counts how often each file is come to."""

    calls: int
    moves: int
    climbs: int
    entries: dict[str, int]


def run(checkout: Path = ROOT) -> list[Call]:
    """The calls of one turn in a checkout. Raises OSError when it could not be taken."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("STRATA_", "OPENAI_"))}
    done = subprocess.run(
        [python_of(checkout), "-P", "-B", traced.__file__],
        cwd=checkout,
        env={**inherited, "PYTHONHASHSEED": "0"},
        capture_output=True,
        check=False,
    )
    if done.returncode != 0:
        raise OSError(f"no turn in {checkout}: {done.stderr.decode(errors='replace')[-2000:]}")
    return [msgspec.json.decode(line, type=Call) for line in done.stdout.splitlines()]


def walk(calls: Iterable[Call]) -> Walk:
    """Counted in each task by itself, so that it does not matter how tasks take turns."""
    of_task: dict[int | str, list[Call]] = defaultdict(list)
    for call in calls:
        of_task[call.task].append(call)
    moves = climbs = 0
    entries: Counter[str] = Counter()
    for one in of_task.values():
        at = None
        for call in one:
            if call.file != at:
                moves += 1
                entries[call.file] += 1
                climbs += at is not None and call.caller != at
            at = call.file
    return Walk(sum(map(len, of_task.values())), moves, climbs, dict(entries.most_common()))


def files(calls: Iterable[Call]) -> list[str]:
    return sorted({call.file for call in calls})


def table(calls: Sequence[Call], *, names: bool = False) -> str:
    """The figures as Markdown; with `names` also every file."""
    touched, tasks = files(calls), len({call.task for call in calls})
    lines = [
        f"One streamed turn touches {len(touched)} files, in {tasks} tasks and threads.",
        "",
        "| calls | number | moves between files | climbs back up | entered most often |",
        "|---|---|---|---|---|",
    ]
    for name, part in (("all", calls), ("with the question", [c for c in calls if c.carries])):
        found = walk(part)
        often = ", ".join(f"{f} {n}×" for f, n in list(found.entries.items())[:MOST_ENTERED])
        lines.append(f"| {name} | {found.calls} | {found.moves} | {found.climbs} | {often} |")
    lines += ["", *(f"- {file}" for file in touched)] if names else []
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(table(run(Path(sys.argv[1]) if sys.argv[1:] else ROOT)))
