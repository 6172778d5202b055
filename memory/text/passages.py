"""Pure: a message as passages, and the two texts by which each passage is found.

Numbers from docs/recall.md: what was measured is a message of at most 520 characters
as one passage, longer ones in pieces of at most 400 at line or sentence ends.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from datetime import date
from typing import NamedTuple

from memory.ids import MessageId
from memory.models import Message

WHOLE_CHARACTERS = 520
PIECE_CHARACTERS = 400
TAIL_CHARACTERS = 100

_NAMESPACE = uuid.UUID("5d0c2c1e-6f0e-5a39-9a43-6d2f0f3f7a10")
# Not after "17." of a German date, nor after the commonest short forms.
_SENTENCE_END = re.compile(
    r"\n+|(?<=[.!?…])(?<!\b\d\.)(?<!\b\d\d\.)(?<!\b[DMS][rst]\.)(?<!\bMrs\.)(?<!\bNr\.)\s+"
    r"|(?<=[。！？])"
)
_MONTHS = (
    "january february march april may june july august september october november december"
).split()


class Span(NamedTuple):
    """A slice of a text, in characters."""

    start: int
    end: int


def cut(text: str) -> list[Span]:
    """The passages of `text` in order; together they hold everything but space between them."""
    if len(text) <= WHOLE_CHARACTERS:
        return [Span(0, len(text))]
    spans: list[Span] = []
    start = end = 0
    for sentence in sentences(text, longest=PIECE_CHARACTERS):
        if end > start and sentence.end - start > PIECE_CHARACTERS:
            spans.append(Span(start, end))
            start = sentence.start
        elif end == start:
            start = sentence.start
        end = sentence.end
    if end > start:
        spans.append(Span(start, end))
    if len(spans) > 1:
        before, tail = spans[-2:]
        # With much space between them, the two would make an endless passage.
        if tail.end - tail.start < TAIL_CHARACTERS and tail.end - before.start <= WHOLE_CHARACTERS:
            spans[-2:] = [Span(before.start, tail.end)]
    return spans


def sentences(text: str, *, longest: int) -> list[Span]:
    """Sentences and lines, none longer than `longest` characters (else cut at a space)."""
    found: list[Span] = []
    start = 0
    for match in (*_SENTENCE_END.finditer(text), None):
        end = match.start() if match else len(text)
        while end - start > longest:
            space = text.rfind(" ", start + 1, start + longest)
            split = space if space > start else start + longest
            found.append(Span(start, split))
            start = split + (1 if space > start else 0)
        if text[start:end].strip():
            found.append(Span(start, end))
        start = match.end() if match else end
    return found


def point_id(message_id: MessageId, passage: int) -> str:
    """The UUID of a passage in every index: derived, so that writing it again replaces it."""
    return str(uuid.uuid5(_NAMESPACE, f"{message_id}#{passage}"))


def speaker_of(message: Message) -> str:
    """The speaker's name if the message carries one, else the role."""
    return message.speaker or message.role


def dense_key(message: Message, passage: str) -> str:
    """The text that is embedded: `speaker: passage`, without a date and without neighbours."""
    return f"{speaker_of(message)}: {passage}"


def written_day(day: date) -> str:
    """`8 May 2023`, as dates stand in prompts."""
    return f"{day.day} {_MONTHS[day.month - 1].capitalize()} {day.year}"


def lexical_key(day: date, neighbours: Sequence[tuple[Message, str]]) -> str:
    """The text that is searched by words: the day, then the previous, this and the next passage."""
    lines = [written_day(day).lower()]
    lines += [f"{speaker_of(message)} {passage}" for message, passage in neighbours]
    return "\n".join(lines)
