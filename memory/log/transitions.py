"""Pure: the states of a turn. Each function makes the document that the log writes next.

accepted (running) → answered: done, partial or failed · interrupted when its writer is gone ·
begun again (running, next attempt) from failed or interrupted. Recorded messages are born done.
"""

from __future__ import annotations

import secrets
from datetime import datetime
from typing import Any

import msgspec

from memory.ids import MessageId, SessionKey
from memory.models import (
    Message,
    MessageStatus,
    Turn,
    TurnStatus,
    User,
    expiry_of,
    keyless,
    now,
    session_key,
    turn_id,
)
from memory.tokens import TokenCounter
from memory.turn_request import TurnRequest

# Statuses of turns that a retry with the same idempotency key runs again.
RERUNNABLE = ("failed", "interrupted")


class Incoming(msgspec.Struct, frozen=True, kw_only=True):
    """A message to record. `id` makes it idempotent in its session."""

    role: str
    content: str
    created_at: datetime | None = None
    speaker: str | None = None
    id: str | None = None


def accepted_turn(
    request: TurnRequest,
    key: SessionKey,
    seq: int,
    *,
    ttl: float | str,
    lease_seconds: float,
    counter: TokenCounter,
) -> Turn:
    """A turn as it is accepted: the question, and the empty answer that takes the next seq."""
    moment = now()
    id_ = turn_id(key, seq)
    shared: dict[str, Any] = {"created_at": moment, "recorded_at": moment, "turn_id": id_}
    name = request.idempotency_key
    return Turn(
        id=id_,
        user_key=request.user.key,
        session_key=key,
        session_id=request.session_id,
        seq=seq,
        last_seq=seq + 1,
        status="running",
        fencing_token=secrets.token_hex(8),
        lease_until=expiry_of(moment, lease_seconds),
        user=Message(
            id=MessageId(f"{id_}.u"),
            seq=seq,
            role="user",
            content=request.question,
            status="done",
            tokens=counter.count(request.question),
            **shared,
        ),
        assistant=Message(
            id=MessageId(f"{id_}.a"),
            seq=seq + 1,
            role="assistant",
            content="",
            status="running",
            tokens=0,
            **shared,
        ),
        idempotency=keyless(id_) if name is None else user_turn_key(name),
        body_hash=request.body_hash or None,
        created_at=moment,
        recorded_at=moment,
        expires_at=expiry_of(moment, ttl),
        metadata=request.metadata,
        counter=counter.name,
    )


def recorded_turn(
    user: User,
    session_id: str,
    seq: int,
    incoming: Incoming,
    *,
    ttl: float | str,
    counter: TokenCounter,
) -> Turn:
    """A recorded message: a document of its own, without an answer."""
    moment = now()
    key = session_key(user.key, session_id)
    id_ = turn_id(key, seq)
    said = incoming.created_at or moment
    message = Message(
        id=MessageId(f"{id_}.{'u' if incoming.role == 'user' else 'a'}"),
        client_id=incoming.id,
        seq=seq,
        role="user" if incoming.role == "user" else "assistant",
        content=incoming.content,
        speaker=incoming.speaker,
        status="done",
        tokens=counter.count(incoming.content),
        created_at=said,
        recorded_at=moment,
    )
    return Turn(
        id=id_,
        user_key=user.key,
        session_key=key,
        session_id=session_id,
        seq=seq,
        last_seq=seq,
        status="done",
        fencing_token="",
        user=message if message.role == "user" else None,
        assistant=message if message.role == "assistant" else None,
        idempotency=keyless(id_) if incoming.id is None else client_key(key, incoming.id),
        created_at=said,
        recorded_at=moment,
        expires_at=expiry_of(moment, ttl),
        counter=counter.name,
    )


def user_turn_key(key: str) -> str:
    """A client's idempotency key as it stands in the unique index: it holds within its user."""
    return f"k{key}"


def client_key(session: str, client_id: str) -> str:
    """A client's message id as it stands in the unique index: it holds within its session."""
    return f"m{session}:{client_id}"


def answered(
    turn: Turn,
    text: str,
    *,
    status: TurnStatus,
    message_status: MessageStatus,
    counter: TokenCounter,
    **changes: Any,
) -> Turn:
    """The turn with this text as its answer."""
    assert turn.assistant is not None
    answer = msgspec.structs.replace(
        turn.assistant,
        content=text,
        status=message_status,
        tokens=counter.count(text),
        created_at=now(),
    )
    return msgspec.structs.replace(turn, assistant=answer, status=status, **changes)


def begun_again(turn: Turn, *, lease_seconds: float) -> Turn:
    """The next attempt at a turn that has failed: the same question, an empty answer."""
    moment = now()
    answer = turn.assistant and msgspec.structs.replace(
        turn.assistant, content="", tokens=0, status="running", created_at=moment
    )
    return msgspec.structs.replace(
        turn,
        assistant=answer,
        status="running",
        attempt=turn.attempt + 1,
        fencing_token=secrets.token_hex(8),
        lease_until=expiry_of(moment, lease_seconds),
        receipt=None,
        prefix_marks=(),
        usage=None,
        finish_reason=None,
        error=None,
        model=None,
    )


def interrupted(turn: Turn) -> Turn:
    """A running turn whose writer is gone."""
    answer = turn.assistant and msgspec.structs.replace(turn.assistant, status="interrupted")
    return msgspec.structs.replace(turn, status="interrupted", assistant=answer)


def recounted(turn: Turn, counter: TokenCounter) -> Turn:
    """The turn with tokens of this counter: another counter's figures would break the budget."""
    if turn.counter == counter.name:
        return turn
    user, assistant = (
        message and msgspec.structs.replace(message, tokens=counter.count(message.content))
        for message in (turn.user, turn.assistant)
    )
    return msgspec.structs.replace(turn, user=user, assistant=assistant, counter=counter.name)
