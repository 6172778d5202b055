"""What the commands talk to: a running service over HTTP, or the stores opened here."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol
from uuid import uuid4

import httpx
import msgspec

from memory import Incoming, User
from memory.errors import InvalidInput, NotFound, StrataError
from memory.models import Message
from memory.stores.sqlite.lock import is_locked
from service.auth.keys import NAME, Keyring, owner
from service.config.settings import Settings
from service.http.bodies import TurnBody
from service.http.shapes import HistoryOut, SessionOut, SessionsOut, session_out
from service.process.server import serve_file
from service.process.workers import http_url
from service.services import Services, open_services
from service.streaming.events import builtins_of
from service.streaming.response import live

BODY_BYTES = 100_000  # well below what limits.body is anywhere
SESSIONS = 200  # a page
PAUSES_SECONDS = (0.1, 0.3, 1.0, 3.0)  # before a broken connection is taken up again
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}


class RemoteError(StrataError):
    """The service answered with a problem."""


class Client(Protocol):
    def turn(self, session_id: str, message: str) -> AsyncIterator[tuple[str, Any]]:
        """The turn's events as (name, data)."""
        ...

    async def record(
        self, user: str, session_id: str, messages: Sequence[Incoming]
    ) -> tuple[int, int]:
        """(accepted, duplicates)"""
        ...

    async def sessions(self, cursor: Any) -> tuple[list[str], Any]:
        """The ids on a page, newest activity first; and the cursor of the next, or None."""
        ...

    async def messages(
        self, session_id: str, *, before: int | None, limit: int
    ) -> tuple[list[Message], bool]:
        """The newest page before `before` by `seq`, and whether there are older ones. A session
        that does not exist has none."""
        ...

    async def count(self, session_id: str) -> int:
        """How many numbers the session's messages span."""
        ...

    async def ready(self) -> dict[str, Any]: ...

    async def settled(self) -> None: ...


class HttpClient:
    """A running service: takes the user from the key if it asks for keys, else from the header."""

    def __init__(self, client: httpx.AsyncClient, user: str, *, with_key: bool = False) -> None:
        self._client = client
        self._user = user
        self._with_key = with_key
        self._recorded: set[str] = set()

    async def turn(self, session_id: str, message: str) -> AsyncIterator[tuple[str, Any]]:
        """A connection that breaks is taken up again: by the key it is one turn, by the id of the
        last event one answer."""
        asking = ("POST", f"/v1/sessions/{session_id}/turns")
        body: Any = {"message": message, "stream": True}
        headers = {**_as(self._user), "Idempotency-Key": uuid4().hex}
        broken = 0
        while True:
            try:
                async with self._client.stream(*asking, json=body, headers=headers) as response:
                    if response.status_code != 200:
                        problem = await response.aread()
                        if not (turn_id := _running(problem)):
                            raise RemoteError(_detail(problem))
                        asking, body = ("GET", f"/v1/turns/{turn_id}/events"), None
                        continue
                    async for id_, name, data in parse_events(response.aiter_bytes()):
                        if name == "accepted":
                            asking, body = ("GET", f"/v1/turns/{data['turn_id']}/events"), None
                        broken, headers["Last-Event-ID"] = 0, id_
                        yield name, data
                        if name in ("done", "error"):
                            return
            except httpx.TransportError as error:
                nobody = isinstance(error, httpx.ConnectError) and body is not None
                if nobody or broken == len(PAUSES_SECONDS):
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

    async def settled(self) -> None:
        """The service goes on with its projections by itself."""


class LocalClient:
    """The stores, opened here."""

    def __init__(self, services: Services, user: User) -> None:
        self._services = services
        self._user = user

    async def turn(self, session_id: str, message: str) -> AsyncIterator[tuple[str, Any]]:
        body = TurnBody(message=message)
        generation = await self._services.answers.begin_turn(self._user, session_id, body)
        async for events in live(generation):
            for event in events:
                yield builtins_of(event)

    async def record(
        self, user: str, session_id: str, messages: Sequence[Incoming]
    ) -> tuple[int, int]:
        whose = User(self._user.tenant, user)
        done = await self._services.strata.memory.record(whose, session_id, messages)
        return done.accepted, done.duplicates

    async def sessions(self, cursor: Any) -> tuple[list[str], Any]:
        history = self._services.strata.history
        page, after = await history.sessions(self._user, before=cursor, limit=SESSIONS)
        return [session.session_id for session in page], after

    async def messages(
        self, session_id: str, *, before: int | None, limit: int
    ) -> tuple[list[Message], bool]:
        history = self._services.strata.history
        try:
            page, older = await history.messages(self._user, session_id, before=before, limit=limit)
        except NotFound:
            return [], False
        return page, older is not None

    async def count(self, session_id: str) -> int:
        try:
            session = await self._services.strata.history.session(self._user, session_id)
        except NotFound:
            return 0
        return session_out(session).messages

    async def ready(self) -> dict[str, Any]:
        from service.observability.probes import probe

        await self._services.strata.embeddings_loaded.wait()
        return {"status": "ready", **await probe(self._services)}

    async def settled(self) -> None:
        await self._services.strata.caught_up()


@asynccontextmanager
async def connect(
    settings: Settings,
    *,
    url: str | None,
    user: str | None = None,
    tenant: str | None = None,
    key: str | None = None,
) -> AsyncIterator[Client]:
    """HTTP when `url` is given or a running `serve` holds the data folder, else the stores.

    Raises InvalidInput for a user, tenant and key that do not go together.
    """
    whose = owner(settings.auth, user=user, tenant=tenant, key=key)
    running = None if url else running_url(settings)
    target = url or running
    if target is None:
        if key and settings.auth.mode == "keys" and not Keyring(settings.auth.keys).find(key):
            raise InvalidInput("--key", "is not one of auth.keys")
        async with open_services(settings) as services:
            yield LocalClient(services, whose)
        return
    if tenant is not None and not key:
        raise InvalidInput("--tenant", f"{target} takes the tenant from the key: give --key")
    if key and not NAME.match(key):
        raise InvalidInput("--key", "is not one: a key is visible ASCII characters")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    if running and settings.server.allowed_hosts:
        headers["Host"] = settings.server.allowed_hosts[0]
    timeout = httpx.Timeout(10.0, read=settings.model.turn_timeout)
    async with httpx.AsyncClient(
        base_url=target, headers=headers, timeout=timeout, trust_env=False
    ) as client:
        try:
            yield HttpClient(client, whose.name, with_key=bool(key))
        except httpx.HTTPError as error:
            raise RemoteError(f"{target}: {type(error).__name__}: {error}") from error


def running_url(settings: Settings) -> str | None:
    """The address of the `serve` that holds this data folder, if one does."""
    path = serve_file(settings)
    if path is None or not path.exists():
        return None
    if not is_locked(path.parent):
        return None  # the file was left by a crash
    told = json.loads(path.read_text())
    host = _EVERYWHERE.get(told["host"], told["host"])
    return http_url(host, told["port"])


async def parse_events(chunks: AsyncIterator[bytes]) -> AsyncIterator[tuple[str, str, Any]]:
    """Server-sent events as (id, name, decoded data); comments are passed over."""
    rest = b""
    async for chunk in chunks:
        *blocks, rest = (rest + chunk).split(b"\n\n")
        for block in blocks:
            fields = dict(
                line.split(b": ", 1) for line in block.split(b"\n") if not line.startswith(b":")
            )
            if b"data" in fields:
                yield fields[b"id"].decode(), fields[b"event"].decode(), json.loads(fields[b"data"])


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
    """The id of the turn that the key of the request runs already, if that is the problem."""
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
