from __future__ import annotations

import asyncio
from typing import Any

import pytest
from litestar import Litestar, get
from litestar.response.base import ASGIResponse
from litestar.response.streaming import ASGIStreamingResponse

from service.streaming.events import Done, SseEncoder, Token
from service.streaming.response import EventStream, Feed

DONE = Done("turn", "message", "stop", None, "model")
SCOPE = {
    "type": "http", "http_version": "1.1", "method": "GET", "scheme": "http", "path": "/",
    "raw_path": b"/", "query_string": b"", "root_path": "", "headers": [(b"host", b"here")],
    "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80), "asgi": {"version": "3.0"},
}  # fmt: skip


class Served:
    """One response of an application that answers with this feed."""

    def __init__(self, feed: Feed) -> None:
        self.parts: list[Any] = []
        self.ended = 0
        self.left = asyncio.Event()

        def end() -> None:
            self.ended += 1

        @get("/")
        async def show() -> EventStream:
            return EventStream(feed, SseEncoder("turn.1"), end, {"X-More": "yes"})

        self._app = Litestar([show], logging_config=None, openapi_config=None)
        self._asked = False

    async def receive(self) -> Any:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.parts.append(message)

    async def run(self) -> None:
        await self._app({**SCOPE, "state": {}}, self.receive, self.send)  # type: ignore[arg-type]

    @property
    def body(self) -> bytes:
        return b"".join(part.get("body", b"") for part in self.parts)


def test_litestar_still_sends_a_body_by_this_method() -> None:
    """Canary: `EventStream` replaces it."""
    for kind in (ASGIResponse, ASGIStreamingResponse):
        code = kind.send_body.__code__
        assert code.co_varnames[: code.co_argcount] == ("self", "send", "receive")
    assert "send_body" in ASGIResponse.__call__.__code__.co_names


async def test_events_are_encoded_and_silence_is_a_ping() -> None:
    async def feed() -> Feed:
        yield [Token(4, "text")]
        yield []
        yield [Token(5, "s"), DONE]

    served = Served(feed())
    await served.run()
    start, *parts = served.parts
    headers = dict(start["headers"])
    assert start["status"] == 200
    assert headers[b"content-type"].startswith(b"text/event-stream")
    assert (headers[b"cache-control"], headers[b"x-more"]) == (b"no-cache", b"yes")
    encode = SseEncoder("turn.1").encode
    assert [part["body"] for part in parts] == [
        encode([Token(4, "text")]), b": ping\n\n", encode([Token(5, "s"), DONE]), b"",
    ]  # fmt: skip
    assert [part["more_body"] for part in parts] == [True, True, True, False]
    assert served.ended == 1


@pytest.mark.parametrize("waiting", [True, False])
async def test_the_feed_is_closed_when_the_client_leaves(waiting: bool) -> None:
    """R20: wherever it is just then."""
    closed: list[bool] = []

    async def feed() -> Feed:
        try:
            while True:
                await (asyncio.Event().wait() if waiting else asyncio.sleep(0))
                yield [Token(1, "x")]
        finally:
            closed.append(True)

    served = Served(feed())
    running = asyncio.create_task(served.run())
    for _ in range(20):
        await asyncio.sleep(0)
    served.left.set()
    await asyncio.wait_for(running, 5)
    assert (closed, served.ended) == ([True], 1)
