from __future__ import annotations

import asyncio
import socket
import sys
import time
from typing import Any

import pytest
import uvicorn
from waiting import PATIENCE_SECONDS

from service.process import connection
from service.process.server import new_event_loop

STUCK_SECONDS = 1.0


async def endless(scope: Any, receive: Any, send: Any) -> None:
    """An answer that goes on until its client is gone."""
    await send({"type": "http.response.start", "status": 200})
    gone = asyncio.create_task(receive_disconnect(receive))
    while not gone.done():
        await send({"type": "http.response.body", "body": b"x" * 1000, "more_body": True})
        await asyncio.sleep(0)
    scope["state"]["gone"].set()


async def receive_disconnect(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has TCP_USER_TIMEOUT")
@pytest.mark.parametrize("reads", [False, True])
def test_a_client_that_takes_nothing_loses_its_place(
    monkeypatch: pytest.MonkeyPatch, reads: bool
) -> None:
    """R20: a slow one does not."""
    monkeypatch.setattr(connection, "STUCK_SECONDS", STUCK_SECONDS)
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        assert runner.run(is_lost(reads=reads)) != reads


async def is_lost(*, reads: bool) -> bool:
    """Whether a client that reads a little now and then, or nothing, is lost after a while."""
    config = uvicorn.Config(endless, http=connection.Connection, lifespan="off", log_config=None)
    config.load()
    gone = asyncio.Event()
    loop = asyncio.get_running_loop()
    state = uvicorn.server.ServerState()
    listening = await loop.create_server(
        lambda: connection.Connection(config, state, {"gone": gone}), "127.0.0.1", 0
    )
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        client.connect(listening.sockets[0].getsockname())
        client.sendall(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
        client.setblocking(False)
        ends = time.monotonic() + (4 * STUCK_SECONDS if reads else PATIENCE_SECONDS)
        while not gone.is_set() and time.monotonic() < ends:
            await asyncio.sleep(STUCK_SECONDS / 4)
            if reads:
                await loop.sock_recv(client, 10_000)
        lost = gone.is_set()
    await asyncio.wait_for(gone.wait(), PATIENCE_SECONDS)
    listening.close()
    await listening.wait_closed()
    return lost
