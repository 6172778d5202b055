"""The JSON bodies of requests, and what the library is given for them."""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from memory.config import BudgetConfig
from memory.durations import parse_duration
from memory.errors import InvalidInput
from memory.interchange.batch import aware
from memory.log.transitions import Incoming
from memory.models import RecallScope
from service.http.request import check_metadata, check_text

MAX_MESSAGES = 1000
MAX_SPEAKER = 100
MAX_MESSAGE_ID = 255


class Body(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Unknown fields are refused: a misspelt one would be ignored silently."""


class Options(Body, frozen=True):
    """What a request asks of the model; what is None is left to the server of the model."""

    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    stop: Annotated[list[str], Meta(max_length=4)] | None = None


class TurnBody(Body, frozen=True):
    """`memory`: True reads and stores, "read" stores nothing, False does neither. `stream` None
    leaves the form of the answer to the Accept header."""

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
    title: Annotated[str, Meta(max_length=200)] | UnsetType = UNSET
    ttl: str | float | UnsetType | None = UNSET
    metadata: dict[str, Any] | UnsetType = UNSET


def body_hash(session_id: str, body: TurnBody) -> str:
    """SHA-256 of what two requests with one idempotency key must share: everything but whether
    the answer is streamed."""
    same = msgspec.structs.replace(body, stream=None)
    return hashlib.sha256(msgspec.json.encode([session_id, same], order="sorted")).hexdigest()


def check_message(where: str, message: MessageBody | Incoming, *, max_bytes: int) -> None:
    """Raises InvalidInput or Problem 413 for a message that must not be recorded; the field that
    is named begins with `where`."""
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
    """The messages to record. Raises InvalidInput naming the first bad one, Problem 413."""
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
    """The configured budget with the values of the request. Raises InvalidInput for a value that
    is higher than the configured one."""
    values = {}
    for name in BudgetBody.__struct_fields__:
        value = getattr(asked, name)
        if value is None:
            continue
        configured = getattr(budget, name)
        if value > configured and not (name == "answer_tokens" and configured == 0):
            raise InvalidInput(f"budget.{name}", f"may only lower the configured {configured}")
        values[name] = value
    # Unchecked: layers that exceed a lowered context_tokens together share what there is.
    return budget.model_copy(update=values)


def session_changes(body: SessionBody) -> dict[str, Any]:
    """The fields of Session to change. Raises InvalidInput."""
    changes: dict[str, Any] = {}
    if body.title is not UNSET:
        changes["title"] = check_text("title", body.title, max_bytes=1000)
    if body.metadata is not UNSET:
        changes["metadata"] = check_metadata(body.metadata)
    if body.ttl is not UNSET:
        try:
            # JSON has no infinity; a time beyond the calendar counts as "never" all the same.
            ttl = None if body.ttl is None else min(parse_duration(body.ttl), 1e12)
            changes["ttl_seconds"] = ttl
        except ValueError as error:
            raise InvalidInput("ttl", str(error)) from None
    return changes
