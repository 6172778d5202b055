"""What the commands talk to: a running service over HTTP, or the stores opened here."""

from __future__ import annotations

import fcntl
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol

import httpx
import msgspec

from memory import Incoming, User
from memory.errors import StrataError
from service.auth import TENANT
from service.lifespan import Services, open_services
from service.schemas import TurnBody
from service.server import serve_file
from service.settings import Settings

BODY_BYTES = 100_000  # well below what limits.body is anywhere


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

    async def ready(self) -> dict[str, Any]: ...

    async def settled(self) -> None: ...


class HttpClient:
    def __init__(self, client: httpx.AsyncClient, user: str) -> None:
        self._client = client
        self._user = user

    async def turn(self, session_id: str, message: str) -> AsyncIterator[tuple[str, Any]]:
        async with self._client.stream(
            "POST",
            f"/v1/sessions/{session_id}/turns",
            json={"message": message, "stream": True},
            headers={"X-User-Id": self._user},
        ) as response:
            if response.status_code != 200:
                raise RemoteError(_detail(await response.aread()))
            async for event in parse_events(response.aiter_bytes()):
                yield event

    async def record(
        self, user: str, session_id: str, messages: Sequence[Incoming]
    ) -> tuple[int, int]:
        accepted = duplicates = 0
        for body in _bodies(messages):
            response = await self._client.post(
                f"/v1/sessions/{session_id}/messages",
                content=body,
                headers={"X-User-Id": user, "Content-Type": "application/json"},
            )
            if response.status_code != 201:
                raise RemoteError(_detail(response.content))
            answer = response.json()
            accepted += answer["accepted"]
            duplicates += answer["duplicates"]
        return accepted, duplicates

    async def ready(self) -> dict[str, Any]:
        answer: dict[str, Any] = (await self._client.get("/health/ready")).json()
        return answer

    async def settled(self) -> None:
        """The service goes on with its projections by itself."""


class LocalClient:
    def __init__(self, services: Services, user: str) -> None:
        self._services = services
        self._user = user

    async def turn(self, session_id: str, message: str) -> AsyncIterator[tuple[str, Any]]:
        from service.turns import begin_turn

        producer = await begin_turn(
            self._services, User(TENANT, self._user), session_id, TurnBody(message=message)
        )
        async for event in parse_events(producer.read()):
            yield event

    async def record(
        self, user: str, session_id: str, messages: Sequence[Incoming]
    ) -> tuple[int, int]:
        done = await self._services.strata.memory.record(User(TENANT, user), session_id, messages)
        return done.accepted, done.duplicates

    async def ready(self) -> dict[str, Any]:
        from service.health import probe

        await self._services.strata.model_loaded.wait()
        return {"status": "ready", **await probe(self._services)}

    async def settled(self) -> None:
        await self._services.strata.settled()


@asynccontextmanager
async def connect(settings: Settings, *, url: str | None, user: str) -> AsyncIterator[Client]:
    """HTTP when `url` is given or a running `serve` holds the data folder, else the stores."""
    target = url or running_url(settings)
    if target is not None:
        timeout = httpx.Timeout(10.0, read=settings.model.turn_timeout)
        async with httpx.AsyncClient(base_url=target, timeout=timeout, trust_env=False) as client:
            try:
                yield HttpClient(client, user)
            except httpx.HTTPError as error:
                raise RemoteError(f"{target}: {type(error).__name__}: {error}") from error
        return
    async with open_services(settings) as services:
        yield LocalClient(services, user)


def running_url(settings: Settings) -> str | None:
    """The address of the `serve` that holds this data folder, if one does."""
    path = serve_file(settings)
    if path is None or not path.exists():
        return None
    try:
        with (path.parent / "lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return None  # nobody holds it: the file was left by a crash
    except FileNotFoundError:
        return None
    except OSError:
        told = json.loads(path.read_text())
        host = f"[{told['host']}]" if ":" in told["host"] else told["host"]
        return f"http://{host}:{told['port']}"


async def parse_events(chunks: AsyncIterator[bytes]) -> AsyncIterator[tuple[str, Any]]:
    """Server-sent events as (name, decoded data); comments are passed over."""
    rest = b""
    async for chunk in chunks:
        *blocks, rest = (rest + chunk).split(b"\n\n")
        for block in blocks:
            fields = dict(
                line.split(b": ", 1) for line in block.split(b"\n") if not line.startswith(b":")
            )
            if b"data" in fields:
                yield fields[b"event"].decode(), json.loads(fields[b"data"])


def _bodies(messages: Sequence[Incoming]) -> Iterator[bytes]:
    """Requests to record them in order, each with as many as a body may well hold."""
    part: list[bytes] = []
    size = 0
    for encoded in (msgspec.json.encode(_plain(message)) for message in messages):
        if part and size + len(encoded) > BODY_BYTES:
            yield b'{"messages":[%b]}' % b",".join(part)
            part, size = [], 0
        part.append(encoded)
        size += len(encoded)
    if part:
        yield b'{"messages":[%b]}' % b",".join(part)


def _plain(message: Incoming) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.to_builtins(message)
    return {name: value for name, value in fields.items() if value is not None}


def _detail(body: bytes) -> str:
    try:
        problem = json.loads(body)
        return f"{problem.get('status')} {problem.get('code')}: {problem.get('detail')}"
    except (ValueError, AttributeError):
        return body[:200].decode("utf-8", "replace")
