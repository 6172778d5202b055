"""Turns of one session: one after the other, from however many processes; who waits is bounded."""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from waiting import assert_quick, quickly

from evals.fake_openai import digest
from system.conftest import BY_WORDS
from system.process import Model, serving
from system.streams import ask, asking, body_of, history, queued, read_until, text_of

Groups = dict[str, dict[str, Any]]

AT_ONCE = 50
ROOMY = {"context_tokens": 30_000, "window_tokens": 20_000}
PATIENT = {"wait": "120s"}
SLOWEST_ANSWER_SECONDS = 0.2
# An answer of a turn that others wait for: with a wait of 2 s the first turn and two more fit.
WORDS, WORD_SECONDS = 4, 0.2
WAIT_SECONDS = 2
LATE_SECONDS = 1.0
# An answer that ends this near the end of a wait lets the next turn run, or does not.
NEAR_SECONDS = 0.2


async def fifty_at_once(clients: list[httpx.AsyncClient], model: Model, delay: float) -> None:
    """Ask all at the same moment; then check that each prompt held all that came before."""
    model.mode("digest", delay=delay)
    barrier = asyncio.Barrier(AT_ONCE)

    async def one(n: int) -> str:
        await barrier.wait()
        events = await ask(clients[n % len(clients)], "s", f"question number {n}")
        assert events[-1].name == "done", events[-1]
        return text_of(events)

    answers = await asyncio.gather(*(one(n) for n in range(AT_ONCE)))
    messages = await history(clients[0], "s")
    assert [m["role"] for m in messages] == ["user", "assistant"] * AT_ONCE
    assert [m["seq"] for m in messages] == list(range(1, 2 * AT_ONCE + 1))
    assert {m["status"] for m in messages} == {"done"}
    asked = [m["content"] for m in messages[::2]]
    assert sorted(asked) == sorted(f"question number {n}" for n in range(AT_ONCE))
    # Each was told the answer that stands behind its own question.
    for question, reply in zip(messages[::2], messages[1::2], strict=True):
        assert reply["content"] == answers[int(question["content"].rpartition(" ")[2])]
    # The model was asked once for each, in the history's order, with the whole history before.
    requests = model.requests()
    assert len(requests) == AT_ONCE
    for place, request in enumerate(requests):
        prompt = request["messages"]
        assert [m["content"] for m in prompt[1:]] == [
            m["content"] for m in messages[: 2 * place + 1]
        ]
        assert messages[2 * place + 1]["content"] == digest(prompt)


async def test_fifty_turns_at_once_go_one_after_the_other(
    model: Model, folder: Path, rng: random.Random
) -> None:
    """R3: none lost, none doubled, each prompt holds all earlier turns."""
    with serving(folder, fake=model, embedding=BY_WORDS, budget=ROOMY, session=PATIENT) as service:
        async with service.client(timeout=120) as client:
            await fifty_at_once([client], model, rng.uniform(0, SLOWEST_ANSWER_SECONDS / 4))


@pytest.mark.parametrize("processes", [2, 4])
async def test_fifty_turns_at_once_over_several_processes(
    model: Model, folder: Path, shared: Groups, processes: int, rng: random.Random
) -> None:
    """R4: the same from 2 and 4 worker processes over one store."""
    async with AsyncExitStack() as stack:
        clients = []
        for number in range(processes):
            service = stack.enter_context(
                serving(folder / str(number), fake=model, budget=ROOMY, session=PATIENT, **shared)
            )
            client = service.client(timeout=120)
            clients.append(await stack.enter_async_context(client))
        await fifty_at_once(clients, model, rng.uniform(0, SLOWEST_ANSWER_SECONDS / 4))


async def busy(
    running: httpx.AsyncClient, waiting: httpx.AsyncClient, model: Model, *, wait: float
) -> None:
    """Let others ask while a turn runs: so many are answered, the rest is told 409 in time."""
    others = 8
    for client in (running, waiting):  # what is made at first use is made
        assert (await ask(client, "warm", "up"))[-1].name == "done"
    model.forget()
    model.mode("slow", delay=WORD_SECONDS, text=" ".join(["word"] * WORDS))

    async def one(n: int) -> tuple[int, float, float]:
        began = time.monotonic()
        response = await waiting.post(
            "/v1/sessions/s/turns", json=body_of(f"turn {n}", {"stream": n % 2 == 0})
        )
        ended = time.monotonic()
        seconds = ended - began
        if response.status_code == 409:
            assert response.headers["content-type"] == "application/problem+json"
            assert response.json()["code"] == "session_busy"
            assert int(response.headers["retry-after"]) >= 1
            assert seconds >= wait - 0.05
            assert_quick(seconds - wait, LATE_SECONDS)
        return response.status_code, began, ended

    async with asking(running, "s", "the first") as events:
        await read_until(events, "accepted")
        found = asyncio.gather(*(one(n) for n in range(others)))
        rest = [event async for event in events]
    assert rest[-1].name == "done"
    answered = await found
    served = sum(status == 200 for status, _, _ in answered)
    assert sum(status == 409 for status, _, _ in answered) == others - served
    # A turn runs when the one before has ended within the wait; a busy machine answers later.
    asked = [began for _, began, _ in answered]
    ends = [rest[-1].at, *(ended for status, _, ended in answered if status == 200)]
    fit = [sum(end < at + wait + near for end in ends)
           for at, near in ((min(asked), -NEAR_SECONDS), (max(asked), NEAR_SECONDS))]  # fmt: skip
    assert fit[0] <= served <= fit[1], (fit, served)
    assert served > 0 or not wait
    messages = await history(running, "s")
    assert [m["seq"] for m in messages] == list(range(1, 2 * (served + 1) + 1))
    assert {m["status"] for m in messages} == {"done"}
    assert len(model.requests()) == served + 1, "no model was called for who was refused"


@pytest.mark.parametrize("wait", [0, WAIT_SECONDS])
async def test_a_busy_session_serves_who_can_wait_and_refuses_the_rest(
    model: Model, folder: Path, wait: int
) -> None:
    """R5: exactly the expected numbers, all answered in time."""
    session = {"wait": f"{wait}s"}
    with serving(folder, fake=model, embedding=BY_WORDS, session=session) as service:
        async with service.client() as client:
            await busy(client, client, model, wait=wait)


@pytest.mark.parametrize("wait", [0, WAIT_SECONDS])
async def test_a_session_that_is_busy_in_another_process_does_so_too(
    model: Model, folder: Path, shared: Groups, wait: int
) -> None:
    """R5: the turn runs in another process; who waits learns of its end from the store."""
    shared = {**shared, "session": {"wait": f"{wait}s"}}
    with (
        serving(folder / "1", fake=model, **shared) as one,
        serving(folder / "2", fake=model, **shared) as two,
    ):
        async with one.client() as running, two.client() as waiting:
            await busy(running, waiting, model, wait=wait)


@pytest.mark.parametrize("seconds", [0, 0.3])
async def test_a_busy_session_is_409_after_the_configured_wait(
    model: Model, folder: Path, seconds: float
) -> None:
    """R5."""
    model.mode("hang_after", chunks=1, text="wait for it")
    session = {"wait": f"{seconds}s"}
    with serving(folder, fake=model, embedding=BY_WORDS, session=session) as service:
        async with service.client() as client, asking(client, "s", "first") as events:
            await read_until(events, "token")
            for stream in (True, False):
                with quickly(seconds + 0.3, after=seconds - 0.01):
                    response = await client.post(
                        "/v1/sessions/s/turns", json={"message": "second", "stream": stream}
                    )
                assert response.status_code == 409
                assert response.headers["content-type"] == "application/problem+json"
                assert response.json()["code"] == "session_busy"
                assert int(response.headers["retry-after"]) >= 1
            other = await client.post(
                "/v1/sessions/s/messages",
                json={"messages": [{"role": "user", "content": "recorded"}]},
            )
            assert other.status_code == 409, "recording waits for a running turn as a turn does"
            found = await history(client, "s")
            assert [m["content"] for m in found] == ["first", found[1]["content"]]
            assert found[1]["status"] == "running"


async def record(client: httpx.AsyncClient, text: str) -> httpx.Response:
    body = {"messages": [{"role": "user", "content": text}]}
    return await client.post("/v1/sessions/s/messages", json=body)


async def test_a_full_queue_refuses_at_once_and_serves_the_others_in_order(
    model: Model, folder: Path
) -> None:
    """`limits.waiting_per_session`: 429 with Retry-After over it."""
    waiting = 3
    model.mode("held", text="the first of them")
    limits = {"waiting_per_session": waiting}
    with serving(folder, fake=model, embedding=BY_WORDS, limits=limits) as service:
        async with service.client() as client:
            async with asking(client, "s", "number 0") as events:
                await read_until(events, "accepted")
                behind = [await queued(client, "s", f"number {n}") for n in range(1, waiting + 1)]
                for refused in (
                    client.post("/v1/sessions/s/turns", json=body_of("one more", {})),
                    client.post("/v1/sessions/s/turns", json=body_of("more", {"stream": False})),
                    record(client, "recorded"),
                ):
                    with quickly(LATE_SECONDS):
                        response = await refused
                    assert response.status_code == 429, response.text
                    assert response.headers["content-type"] == "application/problem+json"
                    assert response.json()["code"] == "too_many_waiting"
                    assert int(response.headers["retry-after"]) >= 1
                model.mode("ok")
                other = await ask(client, "other", "another session is not held up")
                assert other[-1].name == "done"
                assert [event async for event in events][-1].name == "done"
            for answered in await asyncio.gather(*behind):
                assert answered.json()["status"] == "done"
            assert (await record(client, "there is room again")).status_code == 201
            asked = [m["content"] for m in await history(client, "s") if m["role"] == "user"]
    assert asked == [f"number {n}" for n in range(waiting + 1)] + ["there is room again"]
