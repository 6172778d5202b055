"""The JSON that goes out: one struct for each answer of the contract."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

import msgspec

from memory.errors import NotFound
from memory.models import NEVER, Message, Recollection, Session, Turn, TurnError
from memory.receipt import ChatMessage, Receipt
from service.http.bodies import TurnBody
from service.http.problems import Problem
from service.streaming.generation import Generation

_ERROR_STATUS = {
    "model_error": 502,
    "model_timeout": 504,
    "not_persisted": 503,
    "shutting_down": 503,
    "erased": 409,
    "interrupted": 503,
}


class RecordedOut(msgspec.Struct, frozen=True):
    accepted: int
    duplicates: int
    last_seq: int


class HistoryOut(msgspec.Struct, frozen=True):
    messages: list[Message]
    next_before: int | None


class ContextOut(msgspec.Struct, frozen=True):
    messages: list[ChatMessage]
    receipt: Receipt


class SummaryOut(msgspec.Struct, frozen=True):
    text: str
    version: int
    covers_through: int


class SessionOut(msgspec.Struct, frozen=True, kw_only=True):
    session_id: str
    title: str
    created_at: datetime
    updated_at: datetime
    expires_at: datetime | None
    messages: int
    summary: SummaryOut
    lexical_through: int
    dense_through: int
    facts_through: int
    metadata: dict[str, Any]


class SessionsOut(msgspec.Struct, frozen=True):
    sessions: list[SessionOut]
    next_cursor: str | None


class DeletedOut(msgspec.Struct, frozen=True):
    deleted_turns: int


class MemoryOut(msgspec.Struct, frozen=True, kw_only=True):
    message_id: str
    session_id: str
    seq: int
    role: str
    content: str
    created_at: datetime
    score: float
    dense_rank: int | None
    lexical_rank: int | None


class MemoriesOut(msgspec.Struct, frozen=True):
    memories: list[MemoryOut]
    degraded: list[str]


class MessageOut(msgspec.Struct, frozen=True, kw_only=True):
    """A message; ids and times are null when nothing is stored (`memory` false or "read")."""

    id: str | None = None
    client_id: str | None = None
    seq: int | None = None
    role: str
    content: str
    speaker: str | None = None
    status: str
    tokens: int
    created_at: datetime | None = None
    recorded_at: datetime | None = None
    turn_id: str | None = None


class TurnOut(msgspec.Struct, frozen=True, kw_only=True):
    turn_id: str | None
    session_id: str
    status: str
    attempt: int
    user: MessageOut
    assistant: MessageOut
    receipt: Receipt | None
    usage: dict[str, int] | None
    finish_reason: str | None
    error: TurnError | None
    metadata: dict[str, Any] | None
    model: str | None


class CancelOut(msgspec.Struct, frozen=True):
    turn_id: str
    status: str  # as it was found


def session_out(session: Session) -> SessionOut:
    summary = session.summary
    return SessionOut(
        session_id=session.session_id,
        title=session.title,
        created_at=session.created_at,
        updated_at=session.updated_at,
        expires_at=None if session.expires_at >= NEVER else session.expires_at,
        messages=max(0, session.last_seq - session.first_seq + 1),
        summary=SummaryOut(summary.text, summary.version, summary.covers_through),
        lexical_through=session.lexical_through,
        dense_through=session.dense_through,
        facts_through=session.facts_through,
        metadata=session.metadata,
    )


def memory_out(found: Recollection) -> MemoryOut:
    message = found.message
    return MemoryOut(
        message_id=message.id,
        session_id=found.session_id,
        seq=message.seq,
        role=message.role,
        content=message.content,
        created_at=message.created_at,
        score=round(found.score, 4),
        dense_rank=found.dense_rank,
        lexical_rank=found.lexical_rank,
    )


def message_out(message: Message) -> MessageOut:
    return MessageOut(**msgspec.structs.asdict(message))


def turn_out(turn: Turn) -> TurnOut:
    assert turn.user is not None
    assert turn.assistant is not None
    return TurnOut(
        turn_id=turn.id,
        session_id=turn.session_id,
        status=turn.status,
        attempt=turn.attempt,
        user=message_out(turn.user),
        assistant=message_out(turn.assistant),
        receipt=turn.receipt,
        usage=turn.usage,
        finish_reason=turn.finish_reason,
        error=turn.error,
        metadata=turn.metadata,
        model=turn.model,
    )


def answer_out(
    generation: Generation, session_id: str, body: TurnBody, *, count: Callable[[str], int]
) -> TurnOut:
    """The turn of an answer that has ended. Raises Problem with the status of what went wrong,
    NotFound when it was stopped without an end. `count` is that of tokens."""
    answer = generation.answer
    if isinstance(answer.end, TurnError):
        raise _problem(answer.end, generation.accepted_turn)
    if generation.ended_turn is not None:
        return turn_out(generation.ended_turn)
    if answer.end is None:
        raise NotFound("turn")
    asked, text = body.message, answer.text
    return TurnOut(
        turn_id=None,
        session_id=session_id,
        status=generation.status,
        attempt=1,
        user=MessageOut(role="user", content=asked, status="done", tokens=count(asked)),
        assistant=MessageOut(
            role="assistant", content=text, status=generation.status, tokens=count(text)
        ),
        receipt=answer.receipt,
        usage=answer.end.usage,
        finish_reason=answer.end.finish_reason,
        error=None,
        metadata=body.metadata,
        model=answer.end.model,
    )


def _problem(error: TurnError, turn: Turn | None) -> Problem:
    return Problem(
        _ERROR_STATUS.get(error.code, 502),
        error.message,
        code=error.code,
        retry_after_seconds=error.retry_after_s,
        turn_id=turn.id if turn else None,
        retryable=error.retryable,
    )
