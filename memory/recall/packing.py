"""Pure: the best recollections as one fenced, chronological text within a token budget."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from datetime import date
from typing import NamedTuple

from memory.models import Message, Recollection
from memory.text import Span, cut, written_day
from memory.tokens import TokenCounter

OPEN, CLOSE = "<memory>", "</memory>"
WHOLE_PASSAGES = 3
MAX_SKIPS = 30

_FENCE = re.compile(r"<(?=\s*(?:/\s*)?(?:memory|summary|facts)\b)", re.IGNORECASE)


def quoted(text: str) -> str:
    """`text` with anything that looks like one of our fences made harmless."""
    return _FENCE.sub("‹", text)


class Packed(NamedTuple):
    """`text` is the fenced block ("" when nothing fits); `items` stand in it, best first."""

    text: str
    items: tuple[Recollection, ...]
    left_out: int


class _Choice(NamedTuple):
    best: Recollection
    passages: list[int]  # of the message, in order; all of them when it is taken whole


def pack(
    recollections: Iterable[Recollection],
    *,
    budget_tokens: int,
    counter: TokenCounter,
    measure: Callable[[str], int] | None = None,
) -> Packed:
    """Take recollections in their order while they fit; render; drop the last while it is over.

    A message of at most three passages is taken whole when that fits, else the passage.
    `measure` tells what the rendered block costs where it will stand (alone by default).
    """
    measure = measure or counter.count
    chosen: dict[str, _Choice] = {}
    spans: dict[str, list[Span]] = {}
    used = counter.count(f"{OPEN}\n{CLOSE}")
    headers: set[tuple[str, date]] = set()
    names: dict[str, int] = {}
    skips = left_out = 0
    order: list[tuple[str, int]] = []  # what was added, to take back from the end
    for item in recollections:
        message = item.message
        of_message = spans.setdefault(message.id, cut(message.content))
        known = chosen.get(message.id)
        if item.passage >= len(of_message) or (known and item.passage in known.passages):
            continue
        if skips >= MAX_SKIPS:
            left_out += 1
            continue
        whole = range(len(of_message)) if len(of_message) <= WHOLE_PASSAGES else None
        where = _where(item)
        for wanted in (whole, (item.passage,)):
            if wanted is None:
                continue
            added = [n for n in wanted if known is None or n not in known.passages]
            cost = _cost(item, of_message, added, names, counter)
            if where not in headers:
                cost += counter.count(_header(item) + "\n")
            if used + cost <= budget_tokens:
                used += cost
                headers.add(where)
                kept = known.passages if known else []
                best = known.best if known else item
                chosen[message.id] = _Choice(best, sorted({*kept, *added}))
                added.sort(key=lambda n: n != item.passage)  # what was found leaves last
                order += [(message.id, n) for n in added]
                break
        else:
            skips += 1
            left_out += 1
    text = _render(chosen.values(), spans)
    while order and measure(text) > budget_tokens:
        message_id, passage = order.pop()
        choice = chosen[message_id]
        rest = [n for n in choice.passages if n != passage]
        if rest:
            chosen[message_id] = _Choice(choice.best, rest)
        else:
            del chosen[message_id]
            left_out += 1
        text = _render(chosen.values(), spans)
    if not chosen:
        return Packed("", (), left_out)
    return Packed(text, tuple(choice.best for choice in chosen.values()), left_out)


def _cost(
    item: Recollection,
    spans: Sequence[Span],
    passages: Sequence[int],
    names: dict[str, int],
    counter: TokenCounter,
) -> int:
    """About what a line costs; for whole messages from the counts that are stored with them.
    The whole text is counted at the end, so this need not be exact."""
    if len(passages) < len(spans):
        return counter.count(_line(item, spans, passages) + "\n")
    name = _name(item.message)
    if name not in names:
        names[name] = counter.count(f"{name}: \n")
    return item.message.tokens + names[name]


def _name(message: Message) -> str:
    return message.speaker or message.role.capitalize()


def _header(item: Recollection) -> str:
    return f"{written_day(item.message.created_at.date())}:"


def _line(item: Recollection, spans: Sequence[Span], passages: Sequence[int]) -> str:
    """`Name: text`, runs of neighbouring passages as they stand, `…` for what is left out."""
    text = item.message.content
    parts: list[str] = []
    for n in passages:
        span = spans[n]
        if parts and n - 1 in passages:
            parts.append(text[spans[n - 1].end : span.start])
        elif n > 0:
            parts.append(" … " if parts else "… ")
        parts.append(text[span.start : span.end])
    if passages[-1] < len(spans) - 1:
        parts.append(" …")
    return quoted(f"{_name(item.message)}: {''.join(parts).strip()}")


def _render(choices: Iterable[_Choice], spans: dict[str, list[Span]]) -> str:
    lines = [OPEN]
    previous = None
    for choice in sorted(choices, key=lambda c: _when(c.best)):
        item = choice.best
        where = _where(item)
        if where != previous:
            lines.append(_header(item))
            previous = where
        lines.append(_line(item, spans[item.message.id], choice.passages))
    return "\n".join([*lines, CLOSE])


def _where(item: Recollection) -> tuple[str, date]:
    """What shares one header line."""
    return item.session_id, item.message.created_at.date()


def _when(item: Recollection) -> tuple[object, ...]:
    return (item.message.created_at.date(), item.session_id, item.message.seq)
