"""Events are read as they were sent, however the bytes arrive."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import httpx
import pytest

from service.cli.clients.http import parse_events

# Python's own splitlines() would break the line at three of these.
ODD = "你好\u2028\x85 🌊\x1c\\n\t"
EVENTS = [
    ("t.1:a", "accepted", {"turn_id": "t"}),
    ("t.1:t7", "token", {"text": ODD}),
    ("t.1:e", "done", {"usage": None}),
]
STREAM = b": ping\n\n".join(
    f"id: {id_}\nevent: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n".encode()
    for id_, name, data in EVENTS
)


def response(*chunks: bytes) -> httpx.Response:
    async def sent() -> AsyncIterator[bytes]:
        for chunk in chunks:
            yield chunk

    return httpx.Response(200, headers={"content-type": "text/event-stream"}, content=sent())


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 1000])
async def test_events_are_the_same_in_chunks_of_any_size(size: int) -> None:
    """Comments between them are passed over."""
    chunks = (STREAM[at : at + size] for at in range(0, len(STREAM), size))
    assert [event async for event in parse_events(response(*chunks))] == EVENTS


async def test_an_event_that_broke_off_is_none() -> None:
    """Its id must not be asked for: what came before it is what has been read."""
    found = [event async for event in parse_events(response(STREAM[:-1]))]
    assert found == EVENTS[:-1]
