"""The JSON of the contract: bodies that come in (strict), shapes that go out."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from memory.config import BudgetConfig
from memory.durations import parse_duration
from memory.errors import InvalidInput
from memory.log.transitions import Incoming
from memory.models import NEVER, Message, RecallScope, Session, Turn, TurnError
from memory.receipt import ChatMessage, Receipt

SESSION_ID = re.compile(r"\A[A-Za-z0-9._:-]{1,128}\Z")
MAX_MESSAGES = 1000
MAX_SPEAKER = 100
MAX_MESSAGE_ID = 255
MAX_METADATA_BYTES = 16_000


class Body(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Unknown fields are refused: a misspelt one would else be ignored silently."""


class Options(Body, frozen=True):
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    stop: Annotated[list[str], Meta(max_length=4)] | None = None


class TurnBody(Body, frozen=True):
    message: str
    memory: bool | Literal["read"] = True
    recall: RecallScope = "user"
    stream: bool | None = None
    system: str = ""
    options: Options = Options()
    metadata: dict[str, Any] | None = None


class MessageBody(Body, frozen=True):
    role: str
    content: str
    created_at: datetime | None = None
    speaker: Annotated[str, Meta(min_length=1, max_length=MAX_SPEAKER)] | None = None
    id: Annotated[str, Meta(min_length=1, max_length=MAX_MESSAGE_ID)] | None = None


class MessagesBody(Body, frozen=True):
    messages: Annotated[list[MessageBody], Meta(min_length=1, max_length=MAX_MESSAGES)]


class BudgetBody(Body, frozen=True):
    context_tokens: Annotated[int, Meta(ge=1)] | None = None
    answer_tokens: Annotated[int, Meta(ge=0)] | None = None
    window_tokens: Annotated[int, Meta(ge=0)] | None = None
    summary_tokens: Annotated[int, Meta(ge=0)] | None = None
    recall_tokens: Annotated[int, Meta(ge=0)] | None = None
    facts_tokens: Annotated[int, Meta(ge=0)] | None = None


class ContextBody(Body, frozen=True):
    query: str
    budget: BudgetBody = BudgetBody()
    recall: RecallScope = "user"
    system: str = ""


class SessionBody(Body, frozen=True):
    title: Annotated[str, Meta(max_length=200)] | msgspec.UnsetType = msgspec.UNSET
    ttl: str | float | msgspec.UnsetType | None = msgspec.UNSET
    metadata: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET


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


def check_session_id(session_id: str) -> str:
    if not SESSION_ID.match(session_id):
        raise InvalidInput("session_id", "1 to 128 of the characters A-Z a-z 0-9 . _ : -")
    return session_id


def check_text(field: str, text: str, *, max_bytes: int, blank: bool = False) -> str:
    """`text` if it can be stored and read: no NUL, no lone surrogate, not blank, not too large."""
    from service.http.problems import Problem

    if "\0" in text:
        raise InvalidInput(field, "must not contain NUL characters")
    try:
        size = len(text.encode("utf-8"))
    except UnicodeEncodeError:
        raise InvalidInput(field, "contains a lone surrogate; send valid Unicode") from None
    if size > max_bytes:
        raise Problem(413, f"{field}: {size} bytes, the limit is {max_bytes} (limits.message)")
    if not blank and not text.strip():
        raise InvalidInput(field, "must not be empty or blank")
    return text


def check_metadata(metadata: dict[str, Any] | None) -> dict[str, Any] | None:
    if metadata is not None and len(msgspec.json.encode(metadata)) > MAX_METADATA_BYTES:
        raise InvalidInput("metadata", f"larger than {MAX_METADATA_BYTES} bytes as JSON")
    return metadata


def check_message(where: str, message: MessageBody | Incoming, *, max_bytes: int) -> None:
    """Raises InvalidInput, Problem 413 for what must not be recorded; `where` goes before the
    name of the field."""
    if message.role not in ("user", "assistant"):
        raise InvalidInput(f"{where}role", "must be user or assistant")
    check_text(f"{where}content", message.content, max_bytes=max_bytes)
    for field, most in (("speaker", MAX_SPEAKER), ("id", MAX_MESSAGE_ID)):
        value = getattr(message, field)
        if value is not None:
            check_text(f"{where}{field}", value, max_bytes=4 * most)
            if len(value) > most or not value.isprintable():
                raise InvalidInput(f"{where}{field}", f"at most {most} printable characters")


def incoming(body: MessagesBody, *, max_bytes: int) -> list[Incoming]:
    """The messages to record. Raises InvalidInput naming the first bad one."""
    from memory.interchange.conversations import aware

    found = []
    for index, message in enumerate(body.messages):
        where = f"messages[{index}]."
        try:
            check_message(where, message, max_bytes=max_bytes)
            created_at = aware(message.created_at)
        except InvalidInput as error:
            field = error.field if error.field.startswith(where) else f"{where}created_at"
            problem = str(error).removeprefix(f"{error.field}: ")
            raise InvalidInput(field, problem, done=0) from None
        found.append(
            Incoming(
                role=message.role,
                content=message.content,
                created_at=created_at,
                speaker=message.speaker,
                id=message.id,
            )
        )
    return found


def lowered(budget: BudgetConfig, asked: BudgetBody) -> BudgetConfig:
    """The configured budget with what the request asks for; it may only ask for less."""
    values = {}
    for name in BudgetBody.__struct_fields__:
        value = getattr(asked, name)
        if value is None:
            continue
        configured = getattr(budget, name)
        if value > configured and not (name == "answer_tokens" and configured == 0):
            raise InvalidInput(f"budget.{name}", f"may only lower the configured {configured}")
        values[name] = value
    # Layers that no longer fit a lowered whole get what is left, so no check of the sum here.
    return budget.model_copy(update=values)


def session_changes(body: SessionBody) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    if body.title is not msgspec.UNSET:
        changes["title"] = check_text("title", body.title, max_bytes=1000)
    if body.metadata is not msgspec.UNSET:
        changes["metadata"] = check_metadata(body.metadata)
    if body.ttl is not msgspec.UNSET:
        try:
            # JSON has no infinity; what is longer than the calendar is "never" all the same.
            ttl = None if body.ttl is None else min(parse_duration(body.ttl), 1e12)
            changes["ttl_seconds"] = ttl
        except ValueError as error:
            raise InvalidInput("ttl", str(error)) from None
    return changes


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
