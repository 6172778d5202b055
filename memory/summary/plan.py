"""Pure: which turns are compacted, and in how many passes a model reads them."""

from __future__ import annotations

from collections.abc import Sequence

from memory.models import Message, Turn
from memory.tokens import TokenCounter
from memory.window import shown, turn_tokens

# Compaction begins when the turns after the summary take more than this share of the window.
COMPACT_AT = 0.85


def plan(
    turns: Sequence[Turn], *, window_tokens: int, compact_to: float, counter: TokenCounter
) -> list[Turn]:
    """The oldest finished turns to compact. `turns` are all turns after the summary, oldest first.

    Nothing while they take at most 85 % of the window; else as many as leave `compact_to` of
    it, but never the newest finished one and none from the first running one on.
    """
    costs = [turn_tokens(turn, counter) for turn in turns]
    total = sum(costs)
    if total <= COMPACT_AT * window_tokens:
        return []
    running = next((i for i, turn in enumerate(turns) if turn.status == "running"), len(turns))
    taken = 0
    while taken < running - 1 and total > compact_to * window_tokens:
        total -= costs[taken]
        taken += 1
    return list(turns[:taken])


def passes(turns: Sequence[Turn], *, max_tokens: int, counter: TokenCounter) -> list[list[Message]]:
    """The messages of these turns in order, in runs of at most `max_tokens` for the model to read;
    a message that is longer is a run of its own."""
    runs: list[list[Message]] = [[]]
    used = 0
    for message in (m for turn in turns for m in shown(turn)):
        if runs[-1] and used + message.tokens > max_tokens:
            runs.append([])
            used = 0
        runs[-1].append(message)
        used += message.tokens
    return [run for run in runs if run]
