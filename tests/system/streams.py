"""Turns as a client sees them: server-sent events over a real socket."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import httpx


class Event(NamedTuple):
    """`at` is `time.monotonic()` of its arrival."""

    name: str
    id: str
    data: Any
    at: float


def parse(block: str) -> Event | None:
    """One event of its lines; None for a comment."""
    fields: dict[str, list[str]] = {}
    for line in block.split("\n"):
        name, _, value = line.partition(":")
        if name:
            fields.setdefault(name, []).append(value.removeprefix(" "))
    if not fields:
        return None
    assert set(fields) == {"event", "id", "data"}, block
    assert len(fields["data"]) == 1, block
    return Event(
        fields["event"][0], fields["id"][0], json.loads(fields["data"][0]), time.monotonic()
    )


def parse_all(text: str) -> list[Event]:
    assert text.endswith("\n\n"), text[-100:]
    return [event for block in text.split("\n\n") if block and (event := parse(block))]


async def read_events(response: httpx.Response) -> AsyncIterator[Event]:
    """The events of a stream as they arrive."""
    rest = b""
    async for part in response.aiter_bytes():
        *blocks, rest = (rest + part).split(b"\n\n")
        for block in blocks:
            if event := parse(block.decode("utf-8")):
                yield event
    assert not rest, f"cut inside an event: {rest!r}"


def body_of(message: str, more: dict[str, Any]) -> dict[str, Any]:
    return {"message": message, "stream": True, **more}


@asynccontextmanager
async def asking(
    client: httpx.AsyncClient, session: str, message: str, **more: Any
) -> AsyncIterator[AsyncIterator[Event]]:
    """The running stream of one turn; leaving the block closes the connection."""
    url, body = f"/v1/sessions/{session}/turns", body_of(message, more)
    async with client.stream("POST", url, json=body) as response:
        if response.status_code != 200:
            await response.aread()
            raise AssertionError(f"{response.status_code}: {response.text}")
        yield read_events(response)


async def read_until(
    events: AsyncIterator[Event], reached: str | Callable[[list[Event]], bool]
) -> list[Event]:
    """The events up to the first of this name, or until they are enough for `reached`."""
    found: list[Event] = []
    async for event in events:
        found.append(event)
        if event.name == reached if isinstance(reached, str) else reached(found):
            break
    return found


async def ask(client: httpx.AsyncClient, session: str, message: str, **more: Any) -> list[Event]:
    """One turn to the end of its stream."""
    async with asking(client, session, message, **more) as events:
        return [event async for event in events]


async def answer(client: httpx.AsyncClient, session: str, message: str, **more: Any) -> Any:
    """One turn as JSON, which must succeed."""
    response = await client.post(
        f"/v1/sessions/{session}/turns", json={"message": message, "stream": False, **more}
    )
    assert response.status_code == 200, response.text
    return response.json()


async def queued(
    client: httpx.AsyncClient, session: str, message: str
) -> asyncio.Task[httpx.Response]:
    """A turn that waits for its session: the service takes up what it is sent in order of arrival,
    and what the store is asked for, too."""
    sent = asyncio.Event()

    async def trace(name: str, _: Any) -> None:
        if name == "http11.send_request_body.complete":
            sent.set()

    body = body_of(message, {"stream": False})
    request = client.post(f"/v1/sessions/{session}/turns", json=body, extensions={"trace": trace})
    task = asyncio.create_task(request)
    await sent.wait()
    for _ in range(3):
        await history(client, session)
    return task


async def asked(
    client: httpx.AsyncClient, session: str, message: str, *, key: str, **more: Any
) -> httpx.Response:
    """The whole answer to one turn that has an idempotency key, whatever it is."""
    return await client.post(
        f"/v1/sessions/{session}/turns",
        json={"message": message, "stream": False, **more},
        headers={"Idempotency-Key": key},
    )


def said(response: httpx.Response) -> str:
    """The answer's text, in whatever form it came."""
    assert response.status_code == 200, response.text
    if response.headers["content-type"].startswith("text/event-stream"):
        return text_of(parse_all(response.text))
    content: str = response.json()["assistant"]["content"]
    return content


async def history(client: httpx.AsyncClient, session: str) -> list[Any]:
    response = await client.get(f"/v1/sessions/{session}/messages", params={"limit": 1000})
    assert response.status_code == 200, response.text
    found: list[Any] = response.json()["messages"]
    return found


def text_of(events: list[Event]) -> str:
    return "".join(event.data["text"] for event in events if event.name == "token")


def named(events: list[Event], name: str) -> Iterator[Event]:
    return (event for event in events if event.name == name)
