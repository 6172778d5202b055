"""The table of a torture run, in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from torture.scenarios import Row

HEAD = (
    "promise", "store", "rounds", "faults injected", "turns", "acknowledged", "lost", "doubled",
    "out of order", "mixed up",
)  # fmt: skip


def table(rows: Sequence[Row], not_shown: Sequence[tuple[str, str]] = ()) -> str:
    """One line a row; `not_shown` are promises and the reason."""
    lines = [list(HEAD), ["---"] * len(HEAD)]
    for row in rows:
        v = row.verdict
        wrong = [len(found) for found in (v.lost, v.doubled, v.disordered, v.mixed)]
        numbers = [v.turns, v.acknowledged, *wrong]
        lines.append(
            [row.promise, row.store, f"{row.rounds:,}", row.faults, *(f"{n:,}" for n in numbers)]
        )
    for promise, why in not_shown:
        lines.append([promise, "", "0", f"not shown: {why}", *[""] * (len(HEAD) - 4)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def totals(rows: Sequence[Row]) -> str:
    kills = sum(row.kills for row in rows)
    turns = sum(row.verdict.turns for row in rows)
    acknowledged = sum(row.verdict.acknowledged for row in rows)
    again = sum(row.verdict.repeated_calls for row in rows)
    wrong = sum(len(row.verdict.wrong) for row in rows)
    return (
        f"{kills} kills of the service, {turns:,} turns of clients that talk at once, "
        f"{acknowledged:,} acknowledged, {wrong} lost, doubled, out of order or mixed up; "
        f"{again} model calls were repeated, each after a fault."
    )
