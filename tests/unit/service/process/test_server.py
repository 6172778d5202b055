"""Canary: what `_Server` overrides and uses of uvicorn's own."""

from __future__ import annotations

import asyncio
import inspect

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from waiting import eventually

from service.process.connection import Connection
from service.process.server import _Server, new_event_loop


def test_uvicorn_still_has_what_is_overridden() -> None:
    for name in ("startup", "handle_exit"):
        ours = inspect.signature(getattr(_Server, name))
        theirs = inspect.signature(getattr(uvicorn.Server, name))
        assert list(ours.parameters) == list(theirs.parameters), name
    assert issubclass(Connection, HttpToolsProtocol)
    assert list(inspect.signature(HttpToolsProtocol.connection_made).parameters) == [
        "self",
        "transport",
    ]


async def test_uvicorn_still_stops_as_it_is_asked_to() -> None:
    async def app(scope: object, receive: object, send: object) -> None:
        raise AssertionError("nobody asks")

    server = uvicorn.Server(
        uvicorn.Config(app, port=0, lifespan="off", log_config=None, timeout_graceful_shutdown=1)
    )
    assert [server.started, server.should_exit, server.force_exit] == [False] * 3
    serving = asyncio.create_task(server._serve())
    await eventually(lambda: server.started)
    assert server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    await asyncio.wait_for(serving, 10)


def test_the_serving_loop_is_uvloops() -> None:
    loop = new_event_loop()
    try:
        assert type(loop).__module__.startswith("uvloop")
    finally:
        loop.close()
