"""Limits on open answers, end to end: over them 429 or 503 with Retry-After, then room again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from waiting import eventually, quickly

from system.conftest import BY_WORDS
from system.process import Model, serving
from system.streams import Event, ask, asking, read_until

AT_ONCE_SECONDS = 1.0


async def open_answer(
    stack: AsyncExitStack, client: httpx.AsyncClient, session: str
) -> AsyncIterator[Event]:
    """An answer that goes on until the stack is left (or nobody holds it any more)."""
    events = await stack.enter_async_context(asking(client, session, "tell me everything"))
    await read_until(events, "token")
    return events


async def refused(client: httpx.AsyncClient, status: int, code: str, **body: Any) -> None:
    with quickly(AT_ONCE_SECONDS):
        response = await client.post(
            "/v1/sessions/more/turns", json={"message": "one more?", **body}
        )
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["code"] == code
    assert int(response.headers["retry-after"]) >= 1


async def room(client: httpx.AsyncClient, *, refused_as: int = 429, **body: Any) -> bool:
    found = await client.post("/v1/sessions/s/turns", json={"message": "now?", **body})
    assert found.status_code in (200, refused_as)
    return found.status_code == 200


@pytest.mark.parametrize("body", [{"stream": True}, {"stream": False}, {"memory": False}])
async def test_a_user_has_only_so_many_answers_open(
    model: Model, folder: Path, body: dict[str, Any]
) -> None:
    """`limits.streams_per_user`: streams, JSON and stateless calls count alike."""
    with serving(
        folder, fake=model, embedding=BY_WORDS, session={"detach": "0"},
        limits={"streams_per_user": 2},
    ) as service:  # fmt: skip
        async with service.client("anna") as anna, service.client("ben") as ben:
            model.mode("slow", delay=0.1, text="word " * 300)
            async with AsyncExitStack() as stack:
                opened = [await open_answer(stack, anna, name) for name in ("one", "two")]
                calls = len(model.requests())
                await refused(anna, 429, "too_many_streams", **body)
                assert len(model.requests()) == calls, "no model was called for it"
                assert (await anna.get("/v1/sessions/more")).status_code == 404, "nothing stored"
                model.mode("ok")
                assert (await ask(ben, "s", "am I held up?"))[-1].name == "done"
                assert [(await anext(events)).name for events in opened] == ["token"] * 2
            # Both have left: their places are free when their answers have ended.

            await eventually(lambda: room(anna, **body))


async def test_a_place_is_free_as_soon_as_an_answer_has_ended(model: Model, folder: Path) -> None:
    limits = {"streams_per_user": 1}
    with serving(folder, fake=model, embedding=BY_WORDS, limits=limits) as service:
        async with service.client() as client:
            for n in range(20):
                assert (await ask(client, f"s{n % 3}", "hello"))[-1].name == "done"
            failing = {"memory": "read", "options": {"max_tokens": 5}}
            model.mode("500", times=10)
            for _ in range(3):
                await ask(client, "s", "hello", **failing)
            model.mode("ok")
            for bad in ({"message": ""}, {"message": "x", "memory": "perhaps"}):
                answered = await client.post("/v1/sessions/s/turns", json=bad)
                assert answered.status_code == 400
            assert (await ask(client, "s", "hello"))[-1].name == "done"


async def test_a_process_has_only_so_many_answers_open(model: Model, folder: Path) -> None:
    """`limits.streams`: over it 503, whoever asks; a user over both is told of the own limit."""
    users = ("anna", "ben", "cleo", "dora")
    with serving(
        folder, fake=model, embedding=BY_WORDS, session={"detach": "0"},
        limits={"streams_per_user": 1, "streams": 3},
    ) as service:  # fmt: skip
        async with AsyncExitStack() as outer:
            clients = [await outer.enter_async_context(service.client(name)) for name in users]
            model.mode("slow", delay=0.1, text="word " * 300)
            async with AsyncExitStack() as stack:
                opened = [await open_answer(stack, client, "s") for client in clients[:3]]
                await refused(clients[3], 503, "overloaded", stream=True)
                await refused(clients[0], 429, "too_many_streams", stream=True)
                ready = await clients[3].get("/health/ready")
                assert ready.status_code == 200, "reading and health are not turns"
                assert [(await anext(events)).name for events in opened] == ["token"] * 3
                model.mode("ok")

            await eventually(lambda: room(clients[3], refused_as=503))


async def test_many_at_once_over_the_limit_are_each_told_so(model: Model, folder: Path) -> None:
    limits = {"streams_per_user": 5}
    with serving(folder, fake=model, embedding=BY_WORDS, limits=limits) as service:
        async with service.client() as client:
            model.mode("slow", delay=0.2, text="five words in an answer")
            statuses = [
                response.status_code
                for response in await asyncio.gather(
                    *(
                        client.post(
                            f"/v1/sessions/s{n}/turns", json={"message": "hi", "stream": n % 2 == 0}
                        )
                        for n in range(30)
                    )
                )
            ]
            assert sorted(statuses) == [200] * 5 + [429] * 25
            assert len(model.requests()) == 5
