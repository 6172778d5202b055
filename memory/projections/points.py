"""Pure: finished turns as points of the index, each passage with its two keys.

A passage is found by its own words and by those of its neighbours, so a new passage also changes
the sparse vector of the one before it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from memory.embeddings import SparseVector, sparse_document
from memory.indexes.base import Document, Point
from memory.indexes.features import Payload, name_hashes
from memory.models import Message, Turn, now
from memory.text import cut, dense_key, lexical_key, point_id
from memory.tokens import TokenCounter


class Passage(NamedTuple):
    """Passage `number` of a message of a turn."""

    message: Message
    turn: Turn
    number: int
    text: str

    @property
    def id(self) -> str:
        return point_id(self.message.id, self.number)

    @property
    def dense_key(self) -> str:
        return dense_key(self.message, self.text)


def passages_of(turns: Iterable[Turn]) -> list[Passage]:
    """Every passage of the messages that have not expired, in order."""
    found = []
    moment = now()
    for turn in turns:
        if turn.expires_at <= moment:
            continue
        for message in turn.messages:
            if not message.content or message.status == "forgotten":
                continue
            spans = cut(message.content)
            found += [
                Passage(message, turn, n, message.content[span.start : span.end])
                for n, span in enumerate(spans)
            ]
    return found


def sparse_vector(line: Sequence[Passage], position: int) -> SparseVector:
    """The document weights of one passage with its neighbours in `line`."""
    near = line[max(0, position - 1) : position + 2]
    day = line[position].message.created_at.date()
    return sparse_document(lexical_key(day, [(p.message, p.text) for p in near]))


def make_points(
    earlier: Sequence[Passage],
    new: Sequence[Passage],
    vectors: Sequence[list[float] | None],
    counter: TokenCounter,
    *,
    following: Sequence[Passage] = (),
    with_text: bool = False,
) -> list[Point]:
    """Points of the `new` passages, which stand between the `earlier` and the `following` ones
    in their session; with their `Document` if `with_text`."""
    line = [*earlier, *new, *following]
    return [
        Point(
            p.id,
            _payload(p, counter),
            sparse_vector(line, position),
            vector,
            _document(p) if with_text else None,
        )
        for position, (p, vector) in enumerate(zip(new, vectors, strict=True), start=len(earlier))
    ]


def _payload(passage: Passage, counter: TokenCounter) -> Payload:
    message, turn = passage.message, passage.turn
    return Payload(
        user=turn.user_key,
        session=turn.session_key,
        message=message.id,
        role=message.role,
        speakers=name_hashes(turn.user_key, message.speaker) if message.speaker else [],
        day=message.created_at.toordinal(),
        tokens=counter.count(passage.text),
        passage=passage.number,
        expires_at=math.ceil(turn.expires_at.timestamp()),
    )


def _document(passage: Passage) -> Document:
    message, turn = passage.message, passage.turn
    metadata = {
        "user": turn.user_key,
        "session_id": turn.session_id,
        "message_id": message.id,
        "role": message.role,
        "created_at": message.created_at.isoformat(),
    }
    if message.speaker:
        metadata["speaker"] = message.speaker
    return Document(page_content=passage.text, metadata=metadata)
