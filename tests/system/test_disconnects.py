"""R8: the last reader leaves; the answer goes on for `session.detach`, then it is closed."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import pytest
from waiting import assert_quick, eventually

from system.conftest import BY_WORDS
from system.process import Model, Service, serving
from system.streams import Event, ask, asking, history, read_until, text_of

LONG = "word " * 400


@pytest.fixture(scope="module")
def detaching(
    model_process: Model, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Service]]:
    """Services by their `session.detach`."""
    running: dict[str, Any] = {}

    def of(detach: str) -> Service:
        if detach not in running:
            context = serving(
                tmp_path_factory.mktemp(f"detach{detach}"),
                fake=model_process,
                embedding=BY_WORDS,
                session={"detach": detach},
            )
            running[detach] = (context, context.__enter__())
        service: Service = running[detach][1]
        return service

    yield of
    for context, _ in running.values():
        context.__exit__(None, None, None)


@pytest.fixture
async def clients(
    detaching: Callable[[str], Service], session: str
) -> AsyncIterator[Callable[[str], httpx.AsyncClient]]:
    opened: list[httpx.AsyncClient] = []

    def of(detach: str) -> httpx.AsyncClient:
        opened.append(detaching(detach).client(f"user-{session}"))
        return opened[-1]

    yield of
    for client in opened:
        await client.aclose()


async def warm(client: httpx.AsyncClient, model: Model) -> httpx.AsyncClient:
    """What is made at first use is made; the model answers at length."""
    await ask(client, "warm", "up")
    model.forget()
    model.mode("slow", delay=0.05, text=LONG)
    return client


async def read_tokens(client: httpx.AsyncClient, session: str, count: int) -> list[Event]:
    """The events until `count` tokens have come; then the connection is closed."""
    async with asking(client, session, "tell me everything") as events:
        return await read_until(
            events, lambda found: sum(e.name == "token" for e in found) >= count
        )


async def ended(client: httpx.AsyncClient, events: list[Event]) -> Any:
    """The turn, once it does not run any more."""

    async def turn() -> Any:
        found = (await client.get(f"/v1/turns/{events[0].data['turn_id']}")).json()
        return found if found["status"] != "running" else None

    return await eventually(turn)


@pytest.mark.parametrize("tokens", [0, 1, 7])
async def test_without_detach_the_model_connection_closes_within_a_second(
    clients: Callable[[str], httpx.AsyncClient], model: Model, session: str, tokens: int
) -> None:
    client = await warm(clients("0"), model)
    found = await read_tokens(client, session, tokens)
    left_at = time.monotonic()
    turn = await ended(client, found)
    assert turn["status"] == "partial"
    assert turn["error"] is None
    await closed_within(model, left_at, 1.0)
    (request,) = model.requests()
    stored = turn["assistant"]["content"]
    assert stored.startswith(text_of(found)), "stored text = streamed text or longer"
    assert request["sent"].startswith(stored)
    assert turn["assistant"]["status"] == "partial"
    model.forget()
    assert (await ask(client, session, "and now?"))[-1].name == "done"


async def closed_within(
    model: Model, left_at: float, seconds: float, *, after: float = 0.0
) -> None:
    """The connection to the model was closed in time after the reader had left."""

    async def closed() -> float | None:
        (request,) = model.requests()
        at: float | None = request["disconnected_at"]
        return at

    took = await eventually(closed) - left_at
    assert took > after
    assert_quick(took, seconds)


async def test_the_answer_goes_on_while_detached_and_is_stored(
    clients: Callable[[str], httpx.AsyncClient], model: Model, session: str
) -> None:
    client = clients("30s")
    model.mode("slow", delay=0.05, text="one two three four five six seven eight nine ten")
    found = await read_tokens(client, session, 2)
    turn = await ended(client, found)
    assert turn["status"] == "done"
    assert turn["assistant"]["content"] == "one two three four five six seven eight nine ten"
    (request,) = model.requests()
    assert request["disconnected_at"] is None
    assert [m["status"] for m in await history(client, session)] == ["done", "done"]


async def test_after_detach_the_answer_is_stopped_and_kept_as_partial(
    clients: Callable[[str], httpx.AsyncClient], model: Model, session: str
) -> None:
    client = await warm(clients("1s"), model)
    found = await read_tokens(client, session, 3)
    left_at = time.monotonic()
    turn = await ended(client, found)
    await closed_within(model, left_at, 2.0, after=0.9)
    assert turn["status"] == "partial"
    assert len(turn["assistant"]["content"]) > len(text_of(found)) + 20, "it went on for a while"


async def test_a_reader_of_json_that_leaves_counts_too(
    clients: Callable[[str], httpx.AsyncClient], model: Model, session: str
) -> None:
    client = await warm(clients("0"), model)
    url, body = f"/v1/sessions/{session}/turns", {"message": "tell me", "stream": False}
    reading = asyncio.create_task(client.post(url, json=body))
    await eventually(lambda: model.requests() and model.requests()[0]["sent"])
    reading.cancel()
    left_at = time.monotonic()
    await closed_within(model, left_at, 1.0)

    async def stored() -> bool:
        return (await history(client, session))[1]["status"] == "partial"

    await eventually(stored)


async def test_a_stateless_call_ends_when_its_reader_leaves(
    clients: Callable[[str], httpx.AsyncClient], model: Model, session: str
) -> None:
    client = clients("0")
    model.mode("slow", delay=0.05, text=LONG)
    async with asking(client, session, "tell me", memory=False) as events:
        await read_until(events, "token")
    left_at = time.monotonic()
    await closed_within(model, left_at, 1.0)


async def test_a_reader_who_never_reads_and_then_leaves_is_noticed(
    detaching: Callable[[str], Service],
    clients: Callable[[str], httpx.AsyncClient],
    model: Model,
    session: str,
) -> None:
    """R8 with full socket buffers: the answer is not held back, and ends with its reader."""
    client = clients("0")
    model.mode("slow", delay=0.002, text=f"{'word,' * 1000} " * 1000)
    body = b'{"message":"tell me","stream":true}'
    head = (
        f"POST /v1/sessions/{session}/turns HTTP/1.1\r\nHost: localhost\r\nX-User-Id: "
        f"user-{session}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with socket.socket() as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.connect(("127.0.0.1", int(client.base_url.port or 0)))
        raw.sendall(head.encode() + body)

        async def well_ahead() -> bool:
            requests = model.requests()
            return bool(requests) and len(requests[0]["sent"]) > 3_000_000

        await eventually(well_ahead)
    left_at = time.monotonic()
    await closed_within(model, left_at, 1.0)


async def test_many_readers_leave_and_nothing_is_left_behind(
    clients: Callable[[str], httpx.AsyncClient],
    detaching: Callable[[str], Service],
    model: Model,
    session: str,
) -> None:
    """R8: the task count is back to its base; here seen as turns, connections and sessions."""
    client = clients("0")
    model.mode("slow", delay=0.03, text=LONG)
    found = await asyncio.gather(
        *(read_tokens(client, f"{session}-{n}", n % 5 + 1) for n in range(20))
    )
    for events in found:
        assert (await ended(client, events))["status"] == "partial"

    async def all_closed() -> bool:
        return all(request["disconnected_at"] for request in model.requests())

    await eventually(all_closed)
    model.forget()
    again = await asyncio.gather(*(ask(client, f"{session}-{n}", "again") for n in range(20)))
    assert {events[-1].name for events in again} == {"done"}
