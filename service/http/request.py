"""What a request must be before a controller sees it, and what controllers are given beside it.

What cannot be right is refused here, with a status and the name of the field.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

import msgspec
from litestar import Request
from litestar.datastructures import Headers, State
from litestar.exceptions import InternalServerException
from litestar.params import QueryParameter

from memory import User
from memory.errors import InvalidInput
from service.http.problems import Problem

PageLimit = Annotated[int, QueryParameter(ge=1, le=1000)]
EVENT_STREAM = "text/event-stream"
MAX_METADATA_BYTES = 16_000
_SESSION_ID = re.compile(r"\A[A-Za-z0-9._:-]{1,128}\Z")
_KEY_TEXT = re.compile(r"\A[\x21-\x7e]{1,255}\Z")


class StrictRequest(Request[User, Any, State]):
    """A request whose body must be a JSON object that says so: else 400 or 415."""

    @property
    def headers(self) -> Headers:
        """Made anew at each access: Litestar's own cache of them is as large as the request, and
        lives as long as its stream."""
        return Headers(self.scope["headers"])

    async def body(self) -> bytes:
        try:
            return await super().body()
        except InternalServerException:  # how Litestar reports a client that left
            raise Problem(400, "the body broke off") from None

    async def json(self) -> Any:
        media_type = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != "application/json":
            raise Problem(415, "send the body as application/json")
        try:
            value = msgspec.json.decode(await self.body())
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Problem(400, f"the body is not JSON: {error}") from None
        if not isinstance(value, dict):
            raise Problem(400, "the body must be a JSON object")
        return value


async def provide_services(request: Request[Any, Any, Any]) -> Any:
    """The Services that the application's lifespan opened."""
    return request.app.state.services


def wants_stream(asked: bool | None, accept: str | None) -> bool:
    """Whether to answer with events: the body's `stream` decides, else the Accept header.

    Raises Problem 406 when Accept names neither form.
    """
    if asked is not None:
        return asked
    named = [part.partition(";")[0].strip().lower() for part in (accept or "*/*").split(",")]
    if EVENT_STREAM in named:
        return True
    if "application/json" in named or "application/*" in named:
        return False
    if "*/*" in named or "text/*" in named:
        return True
    raise Problem(406, "Accept must name text/event-stream or application/json")


def idempotency_key(request: StrictRequest, *, stored: bool) -> str | None:
    """The value of the Idempotency-Key header, if there is one; only a turn that is `stored` may
    have one. Raises InvalidInput."""
    given = request.headers.getall("idempotency-key", [])
    if not given:
        return None
    if len(given) > 1 or not _KEY_TEXT.match(given[0]):
        raise InvalidInput("Idempotency-Key", "once, 1 to 255 visible ASCII characters")
    if not stored:
        raise InvalidInput("Idempotency-Key", "needs `memory: true`: nothing else is stored")
    return given[0]


def check_session_id(session_id: str) -> str:
    """The id itself. Raises InvalidInput."""
    if not _SESSION_ID.match(session_id):
        raise InvalidInput("session_id", "1 to 128 of the characters A-Z a-z 0-9 . _ : -")
    return session_id


def check_text(field: str, text: str, *, max_bytes: int, blank: bool = False) -> str:
    """The text itself, if every store and client can hold it.

    Raises InvalidInput for a NUL, a lone surrogate, or (unless `blank`) nothing but white space;
    Problem 413 for more than `max_bytes` of UTF-8.
    """
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
    """The metadata itself. Raises InvalidInput beyond 16,000 bytes of JSON."""
    if metadata is not None and len(msgspec.json.encode(metadata)) > MAX_METADATA_BYTES:
        raise InvalidInput("metadata", f"larger than {MAX_METADATA_BYTES} bytes as JSON")
    return metadata
