"""A running answer as its reader gets it: events as they come, and the HTTP response of them.

The only file that uses how Litestar sends the body of a stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from typing import Any

from litestar.response import Stream
from litestar.response.streaming import ASGIStreamingResponse
from litestar.types import HTTPResponseBodyEvent, Receive, Send

from service.streaming.events import BEGINNING, Cursor, Event, EventEncoder, after
from service.streaming.generation import Generation

Feed = AsyncGenerator[Sequence[Event], None]
_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


async def live(generation: Generation, cursor: Cursor = BEGINNING) -> Feed:
    """All events after `cursor`, as they come; nothing in a while is an empty list."""
    if cursor.ended:
        return
    with generation.reading() as answer:
        cursor = cursor._replace(characters=min(cursor.characters, answer.length))
        while not cursor.ended:
            events, cursor = after(cursor, answer)
            if events:
                yield events
            elif not cursor.ended and not await answer.changed():
                yield []


async def ended(generation: Generation, receive: Receive) -> bool:
    """Wait for the answer as one of its readers; False when the client has left before."""

    async def wait() -> None:
        with generation.reading() as answer:
            while not answer.ended:
                await answer.changed()

    tasks = {asyncio.create_task(wait()), asyncio.create_task(_left(receive))}
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return generation.answer.ended


class EventStream(Stream):
    """The response that sends a feed of events, encoded, and calls `on_end` at its end."""

    def __init__(
        self,
        events: Feed,
        encoder: EventEncoder,
        on_end: Callable[[], None],
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__((), media_type=encoder.media_type, headers={**_HEADERS, **(headers or {})})
        self._events = events
        self._encoder = encoder
        self._on_end = on_end

    def to_asgi_response(self, *_: Any, **given: Any) -> ASGIStreamingResponse:
        response = _EventResponse(
            iterator=(),
            headers=self.headers,
            media_type=self.media_type,
            status_code=given.get("status_code"),
        )
        response.events, response.encoder = self._events, self._encoder
        response.on_end = self._on_end
        return response


class _EventResponse(ASGIStreamingResponse):
    """Ends when the client has left, and closes its feed then; Litestar's own leaves that to the
    garbage collector. One task watches the client: an answer may be open for long, and there are
    many."""

    events: Feed
    encoder: EventEncoder
    on_end: Callable[[], None]

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.on_end()

    async def send_body(self, send: Send, receive: Receive) -> None:
        events, encode, ping = self.events, self.encoder.encode, self.encoder.ping

        def end(_: asyncio.Task[None]) -> None:
            with suppress(RuntimeError):  # the stream has ended by itself
                reading.reschedule(0)

        leaving = asyncio.create_task(_left(receive), name="client")
        try:
            async with asyncio.timeout(None) as reading:
                leaving.add_done_callback(end)
                async for some in events:
                    await send(_part(encode(some) if some else ping, more=True))
                await send(_part(b"", more=False))
        except TimeoutError:
            if not reading.expired():
                raise
        finally:
            leaving.cancel()
            await events.aclose()


def _part(body: bytes, *, more: bool) -> HTTPResponseBodyEvent:
    return {"type": "http.response.body", "body": body, "more_body": more}


async def _left(receive: Receive) -> None:
    """Return when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass
