"""A running service, over HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any
from uuid import uuid4

import httpx
import msgspec
from httpx_sse import EventSource

from memory import Incoming
from memory.errors import InvalidInput, NotFound
from memory.models import Message
from service.auth.keys import NAME
from service.cli.clients.base import SESSIONS, RemoteError
from service.http.shapes import HistoryOut, SessionOut, SessionsOut

BODY_BYTES = 100_000  # well below what limits.body is anywhere
PAUSES_SECONDS = (0.1, 0.3, 1.0, 3.0)  # before a broken connection is taken up again


class HttpClient:
    """One user's memory in a running service. With a key the key decides the user, else a header
    names it."""

    def __init__(self, client: httpx.AsyncClient, user: str, *, with_key: bool = False) -> None:
        self._client = client
        self._user = user
        self._with_key = with_key
        self._recorded: set[str] = set()

    async def turn(self, session_id: str, message: str) -> AsyncIterator[tuple[str, Any]]:
        """A broken connection is taken up again: the idempotency key makes it one turn, the id of
        the last event makes it one answer."""
        body = {"message": message, "stream": True}
        asking: dict[str, Any] = {
            "method": "POST",
            "url": f"/v1/sessions/{session_id}/turns",
            "json": body,
            "headers": {**_as(self._user), "Idempotency-Key": uuid4().hex},
        }
        broken = 0
        while True:
            try:
                async with self._client.stream(**asking) as response:
                    if response.status_code != 200:
                        problem = await response.aread()
                        if not (turn_id := _running(problem)):
                            raise RemoteError(_detail(problem))
                        _ask_for_events(asking, turn_id)
                        continue
                    async for id_, name, data in parse_events(response):
                        if name == "accepted":
                            _ask_for_events(asking, data["turn_id"])
                        broken, asking["headers"]["Last-Event-ID"] = 0, id_
                        yield name, data
                        if name in ("done", "error"):
                            return
            except httpx.TransportError as error:
                no_service = isinstance(error, httpx.ConnectError) and asking["method"] == "POST"
                if no_service or broken == len(PAUSES_SECONDS):
                    raise
            if broken == len(PAUSES_SECONDS):
                raise RemoteError("the answer ended before its end, again and again")
            await asyncio.sleep(PAUSES_SECONDS[broken])
            broken += 1

    async def record(
        self, user: str, session_id: str, messages: Sequence[Incoming]
    ) -> tuple[int, int]:
        self._recorded.add(user)
        if self._with_key and len(self._recorded) > 1:
            # They would all become messages of the key's one user.
            raise RemoteError("a key is of one user, the file of several: import with --user")
        accepted = duplicates = 0
        for body in _bodies(messages):
            response = await self._client.post(
                f"/v1/sessions/{session_id}/messages",
                content=body,
                headers={**_as(user), "Content-Type": "application/json"},
            )
            if response.status_code != 201:
                raise RemoteError(_detail(response.content))
            answer = response.json()
            accepted += answer["accepted"]
            duplicates += answer["duplicates"]
        return accepted, duplicates

    async def sessions(self, cursor: Any) -> tuple[list[str], Any]:
        params = {"limit": str(SESSIONS)} | ({"cursor": cursor} if cursor else {})
        page = msgspec.json.decode(await self._get("/v1/sessions", params), type=SessionsOut)
        return [session.session_id for session in page.sessions], page.next_cursor

    async def messages(
        self, session_id: str, *, before: int | None, limit: int
    ) -> tuple[list[Message], bool]:
        params = {"limit": str(limit)} | ({"before": str(before)} if before else {})
        try:
            found = await self._get(f"/v1/sessions/{session_id}/messages", params)
        except NotFound:
            return [], False
        page = msgspec.json.decode(found, type=HistoryOut)
        return page.messages, page.next_before is not None

    async def count(self, session_id: str) -> int:
        try:
            found = await self._get(f"/v1/sessions/{session_id}", {})
        except NotFound:
            return 0
        return msgspec.json.decode(found, type=SessionOut).messages

    async def _get(self, path: str, params: dict[str, str]) -> bytes:
        """Raises NotFound, RemoteError."""
        response = await self._client.get(path, params=params, headers=_as(self._user))
        if response.status_code == 404:
            raise NotFound(path)
        if response.status_code != 200:
            raise RemoteError(_detail(response.content))
        return response.content

    async def ready(self) -> dict[str, Any]:
        answer: dict[str, Any] = (await self._client.get("/health/ready")).json()
        return answer

    async def caught_up(self) -> None:
        """The service goes on with its projections by itself."""


async def parse_events(response: httpx.Response) -> AsyncIterator[tuple[str, str, Any]]:
    """Server-sent events as (id, name, decoded data); comments are passed over."""
    async for event in EventSource(response).aiter_sse():
        if event.data:  # the library makes an empty event of a comment
            yield event.id, event.event, json.loads(event.data)


def _ask_for_events(asking: dict[str, Any], turn_id: str) -> None:
    """Make of a request for a turn one for the events of this turn."""
    asking.update(method="GET", url=f"/v1/turns/{turn_id}/events", json=None)


def _as(user: str) -> dict[str, str]:
    if not NAME.match(user):
        raise InvalidInput("user", "over HTTP 1 to 256 visible ASCII characters")
    return {"X-User-Id": user}


def _bodies(messages: Sequence[Incoming]) -> Iterator[bytes]:
    """Requests to record them in order, each with as many as a body may well hold."""
    part: list[bytes] = []
    size = 0
    for message in messages:
        fields: dict[str, Any] = msgspec.to_builtins(message)
        encoded = msgspec.json.encode({k: v for k, v in fields.items() if v is not None})
        if part and size + len(encoded) > BODY_BYTES:
            yield b'{"messages":[%b]}' % b",".join(part)
            part, size = [], 0
        part.append(encoded)
        size += len(encoded)
    if part:
        yield b'{"messages":[%b]}' % b",".join(part)


def _running(body: bytes) -> str | None:
    """The turn's id, when the problem is that the request's key has a turn that still runs."""
    try:
        problem = json.loads(body)
        return problem["turn_id"] if problem["code"] == "turn_running" else None
    except (ValueError, TypeError, KeyError):
        return None


def _detail(body: bytes) -> str:
    try:
        problem = json.loads(body)
        hint = " (--key or STRATA_KEY)" if problem.get("status") == 401 else ""
        return f"{problem.get('status')} {problem.get('code')}: {problem.get('detail')}{hint}"
    except (ValueError, AttributeError):
        return body[:200].decode("utf-8", "replace")
