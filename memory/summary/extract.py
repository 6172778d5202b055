"""Pure: a summary without a model, and the check of one that a model wrote."""

from __future__ import annotations

from collections.abc import Sequence

from memory.summary.statements import Statement, render
from memory.tokens import TokenCounter


def extract(
    known: Sequence[Statement], *, budget_tokens: int, counter: TokenCounter
) -> tuple[str, list[Statement]]:
    """A text of at most `budget_tokens` from statements given oldest first, and those left out.

    Newest first, and those with names, numbers or dates before the others; rendered in order.
    """
    order = sorted(range(len(known)), key=lambda i: (not known[i].marks, -i))
    chosen: set[int] = set()
    days: set[str] = set()
    used = 0
    for index in order:
        statement = known[index]
        cost = counter.count(statement.line + "\n")
        if statement.day not in days:
            cost += counter.count(statement.day + "\n")
        if used + cost > budget_tokens:
            if statement.marks:
                continue
            break
        used += cost
        chosen.add(index)
        days.add(statement.day)
    text = render([known[i] for i in sorted(chosen)])
    while chosen and counter.count(text) > budget_tokens:
        chosen.remove(min(chosen))
        text = render([known[i] for i in sorted(chosen)])
    return text, [known[i] for i in range(len(known)) if i not in chosen]


def lost(
    text: str, known: Sequence[Statement], *, budget_tokens: int, counter: TokenCounter
) -> tuple[list[Statement], int]:
    """What `text` does not hold of the statements with marks, given oldest first: those that would
    have fitted into `budget_tokens`, counted from the newest, and the number of the others."""
    held = text.casefold()
    missing, used, retired = [], 0, 0
    for statement in reversed(known):
        if not statement.marks:
            continue
        used += counter.count(statement.line + "\n")
        if all(mark in held for mark in statement.marks):
            continue
        if used <= budget_tokens:
            missing.append(statement)
        else:
            retired += 1
    return missing[::-1], retired
