"""R8: `cancel` closes the model connection within a second and keeps what was streamed."""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from waiting import assert_quick, eventually

from memory import User
from service.config.settings import Settings
from service.http.bodies import TurnBody
from service.services import open_services
from service.streaming.events import Token
from service.streaming.response import live
from system.conftest import BY_WORDS
from system.process import Model, Service
from system.streams import Event, answer, ask, asking, history, text_of

LONG = "word " * 400


async def cancel(client: httpx.AsyncClient, turn_id: str) -> Any:
    response = await client.post(f"/v1/turns/{turn_id}/cancel")
    assert response.status_code == 202, response.text
    told = response.json()
    assert told["turn_id"] == turn_id
    return told


async def assert_cancelled(
    client: httpx.AsyncClient, other: httpx.AsyncClient, model: Model, session: str, tokens: int
) -> None:
    """`other` cancels when `client` has got this many tokens and reads on."""
    await ask(client, "warm", "up")
    model.forget()
    model.mode("slow", delay=0.02, text=LONG)
    found: list[Event] = []
    at = 0.0
    async with asking(client, session, "tell me everything") as events:
        async for event in events:
            found.append(event)
            if not at and sum(e.name == "token" for e in found) == tokens:
                at = time.monotonic()
                assert (await cancel(other, found[0].data["turn_id"]))["status"] == "running"
    assert found[-1].name == "done"
    assert found[-1].data["finish_reason"] == "cancelled"
    assert_quick(found[-1].at - at, 1.5)
    (request,) = model.requests()
    assert request["disconnected_at"] is not None
    assert_quick(request["disconnected_at"] - at, 1.0)
    turn = (await other.get(f"/v1/turns/{found[0].data['turn_id']}")).json()
    assert (turn["status"], turn["finish_reason"], turn["error"]) == ("partial", "cancelled", None)
    assert turn["assistant"]["status"] == "partial"
    assert turn["assistant"]["content"] == text_of(found)
    assert text_of(found) in LONG
    assert turn["usage"]["completion_tokens"] > 0
    model.forget()
    assert (await ask(other, session, "and now?"))[-1].name == "done"


async def test_a_turn_is_cancelled_at_any_token(
    client: httpx.AsyncClient, model: Model, session: str, rng: random.Random
) -> None:
    for n in range(3):
        await assert_cancelled(client, client, model, f"{session}-{n}", rng.randrange(1, 30))


async def test_a_turn_is_cancelled_from_another_worker(
    both: tuple[httpx.AsyncClient, httpx.AsyncClient],
    model: Model,
    session: str,
    rng: random.Random,
) -> None:
    one, two = both
    await ask(two, "warm", "up")
    for n in range(2):
        await assert_cancelled(one, two, model, f"{session}-{n}", rng.randrange(1, 30))


async def test_before_the_first_token_there_is_nothing_to_keep(
    client: httpx.AsyncClient, model: Model, session: str
) -> None:
    await ask(client, "warm", "up")
    model.forget()
    model.mode("slow", delay=0.5, text=LONG)
    async with asking(client, session, "tell me everything") as events:
        accepted = await anext(events)
        await eventually(model.requests)
        at = time.monotonic()
        await cancel(client, accepted.data["turn_id"])
        rest = [event async for event in events]
    assert [e.name for e in rest] in (["context", "done"], ["done"])
    assert rest[-1].data["finish_reason"] == "cancelled"
    assert_quick(model.requests()[0]["disconnected_at"] - at, 1.0)
    question, reply = await history(client, session)
    assert (question["content"], question["status"]) == ("tell me everything", "done")
    assert (reply["content"], reply["status"]) == ("", "partial")


async def test_who_wants_json_gets_the_partial_turn(
    client: httpx.AsyncClient, model: Model, session: str
) -> None:
    model.mode("hang_after", chunks=3, text="one two three four")
    waiting = asyncio.create_task(answer(client, session, "count"))
    await eventually(lambda: model.requests() and model.requests()[0]["sent"] == "one two three")
    turn_id = (await history(client, session))[0]["turn_id"]
    await cancel(client, turn_id)
    turn = await waiting
    assert (turn["turn_id"], turn["status"], turn["finish_reason"]) == (
        turn_id, "partial", "cancelled",
    )  # fmt: skip
    assert "one two three".startswith(turn["assistant"]["content"])


async def test_a_turn_that_has_ended_stays_as_it_is(
    client: httpx.AsyncClient, plain: Service, model: Model, session: str
) -> None:
    done = await answer(client, session, "hello")
    for _ in range(2):
        assert (await cancel(client, done["turn_id"]))["status"] == "done"
    model.mode("500")
    failed = await ask(client, session, "hello?")
    assert (await cancel(client, failed[0].data["turn_id"]))["status"] == "failed"
    assert (await client.get(f"/v1/turns/{done['turn_id']}")).json() == done
    model.forget()
    async with plain.client(f"other-of-{session}") as other:
        response = await other.post(f"/v1/turns/{done['turn_id']}/cancel")
        assert response.status_code == 404


async def test_nobody_cancels_anothers_turn(
    client: httpx.AsyncClient, plain: Service, model: Model, session: str
) -> None:
    model.mode("slow", delay=0.03, text="one two three four five six")
    async with (
        plain.client(f"other-of-{session}") as other,
        asking(client, session, "count") as events,
    ):
        accepted = await anext(events)
        response = await other.post(f"/v1/turns/{accepted.data['turn_id']}/cancel")
        assert response.status_code == 404
        rest = [event async for event in events]
    assert rest[-1].data["finish_reason"] == "stop"


@pytest.fixture
def settings(model: Model, folder: Path) -> Settings:
    return Settings.model_validate(
        {
            "model": {"base_url": f"{model.url}/v1", "max_retries": 0},
            "store": {"url": f"sqlite:///{folder}/strata.db"},
            "index": {"url": "none"},
            "embedding": BY_WORDS,
        }
    )


async def test_cancelled_turns_leave_no_task_behind(
    model: Model, settings: Settings, rng: random.Random
) -> None:
    """R8: the task count is back to its base."""
    async with open_services(settings) as services:
        user = User("default", "anna")

        async def turn(session: str, tokens: int) -> None:
            body = TurnBody(message="tell me")
            generation = await services.answers.begin_turn(user, session, body)
            seen = 0
            async for events in live(generation):
                seen += sum(isinstance(event, Token) for event in events)
                if seen >= tokens:
                    generation.stop("cancelled")
            assert generation.status == "partial"

        model.mode("slow", delay=0.01, text=LONG)
        await turn("warm", 1)
        await services.strata.caught_up()
        base = len(asyncio.all_tasks())
        await asyncio.gather(*(turn(f"s{n}", rng.randrange(0, 10)) for n in range(20)))
        await eventually(lambda: not services.answers)
        await services.strata.caught_up()
        await eventually(lambda: len(asyncio.all_tasks()) <= base)
        assert len(services.admission) == 0
