"""Conversations from files: NDJSON lines, or the uniform format with labelled evidence.

An NDJSON line is `{"session_id","role","content","created_at"?,"speaker"?,"id"?}`. The uniform
format is a list of `{"conversation_id","user_id","sessions":[{"session_id","datetime",
"turns":[{"turn_id","speaker","role","text"}]}], "questions":[…]}`; one conversation is one
user's memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from memory.errors import InvalidInput
from memory.log.transitions import Incoming

BATCH = 200
MAX_LINE_BYTES = 1_000_000


class Line(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    session_id: str
    role: str
    content: str
    created_at: datetime | None = None
    speaker: str | None = None
    id: str | None = None


class SourceTurn(msgspec.Struct, frozen=True):
    turn_id: str
    speaker: str
    role: str
    text: str


class SourceSession(msgspec.Struct, frozen=True):
    session_id: str
    datetime: datetime
    turns: list[SourceTurn]


class SourceQuestion(msgspec.Struct, frozen=True):
    question_id: str
    category: str
    question: str
    evidence: list[str] = []
    answer: Any = None


class Conversation(msgspec.Struct, frozen=True):
    conversation_id: str
    user_id: str
    sessions: list[SourceSession]
    questions: list[SourceQuestion] = []


class Batch(NamedTuple):
    """Messages of one session in their order. `place` says where in the source they stand,
    `lines` in which line each does, if it is a file of lines."""

    user: str
    session_id: str
    messages: list[Incoming]
    place: str
    lines: tuple[int, ...] = ()


def read_lines(path: Path, *, user: str) -> Iterator[Batch]:
    """NDJSON as batches, read line by line. Raises InvalidInput naming the line."""
    decoder = msgspec.json.Decoder(Line)
    pending: list[Incoming] = []
    lines: list[int] = []
    session, first = "", 1
    with path.open("rb") as file:
        number = 0
        while raw := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if not raw.strip():
                continue
            try:
                if len(raw) > MAX_LINE_BYTES:
                    raise ValueError(f"longer than {MAX_LINE_BYTES} bytes")
                line = decoder.decode(raw)
                created_at = aware(line.created_at)
            except (ValueError, InvalidInput) as error:  # msgspec's and Unicode's are ValueErrors
                if pending:
                    yield Batch(user, session, pending, f"line {first}", tuple(lines))
                raise InvalidInput(f"line {number}", str(error)) from error
            if pending and (line.session_id != session or len(pending) >= BATCH):
                yield Batch(user, session, pending, f"line {first}", tuple(lines))
                pending, lines = [], []
            if not pending:
                session, first = line.session_id, number
            lines.append(number)
            pending.append(
                Incoming(
                    role=line.role,
                    content=line.content,
                    created_at=created_at,
                    speaker=line.speaker,
                    id=line.id,
                )
            )
    if pending:
        yield Batch(user, session, pending, f"line {first}", tuple(lines))


def load_conversations(path: Path) -> list[Conversation]:
    """The uniform format, whole. Raises InvalidInput naming the place."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[Conversation])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(path.name, str(error)) from error


def batches(conversation: Conversation, *, user: str | None = None) -> Iterator[Batch]:
    """One conversation's messages, session by session, in order."""
    for session in conversation.sessions:
        messages = [
            Incoming(
                role=turn.role,
                content=turn.text,
                created_at=aware(session.datetime),
                speaker=None if turn.speaker.casefold() == turn.role else turn.speaker,
                id=turn.turn_id,
            )
            for turn in session.turns
            if turn.text.strip()
        ]
        for start in range(0, len(messages), BATCH):
            yield Batch(
                user or conversation.user_id,
                session.session_id,
                messages[start : start + BATCH],
                f"session {session.session_id}",
            )


def aware(moment: datetime | None) -> datetime | None:
    """UTC, cut to milliseconds; a moment without a zone is taken as UTC. Raises InvalidInput."""
    if moment is None:
        return None
    try:
        moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except OverflowError:
        raise InvalidInput("time", "lies outside the years 1 to 9999 in UTC") from None
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)
