"""R11 and R12 on servers: the network to Qdrant or MongoDB breaks, before and during a turn."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import pytest
from servers.mongo import Mongo
from servers.proxy import FAULTS, Mode, Proxy
from waiting import assert_quick, eventually, quickly

from memory.recall.search import BREAK_AFTER
from system.process import Model, serving
from system.streams import Event, answer, ask, asking, history, text_of

Groups = dict[str, dict[str, Any]]
FACT = "My sister Valentina restores grand pianos in Trieste."
QUESTION = "Who restores grand pianos?"
DEADLINE = 0.3
TIMEOUT = 1.0


@pytest.fixture
def to_mongo(mongo: Mongo) -> Iterator[Proxy]:
    with Proxy(*mongo.address) as proxy:
        yield proxy


def through(proxy: Proxy, mongo: Mongo, shared: Groups) -> dict[str, Any]:
    """The configuration of the same database by way of the proxy, with a short deadline."""
    name = shared["store"]["url"].partition("?")[0].rpartition("/")[2]
    return {"url": mongo.database(name, port=proxy.port), "timeout": f"{TIMEOUT}s"}


def behind(proxy: Proxy, shared: Groups) -> Groups:
    """The same index by way of the proxy, with a short deadline."""
    index = {**shared["index"], "url": f"http://127.0.0.1:{proxy.port}"}
    return {**shared, "index": index, "recall": {"deadline": f"{DEADLINE}s"}}


async def remember(client: httpx.AsyncClient) -> None:
    await answer(client, "old", FACT)
    await eventually(lambda: recalled(client, "Valentina"))


async def first_token_seconds(client: httpx.AsyncClient, session: str) -> tuple[float, list[Event]]:
    began = time.monotonic()
    events = await ask(client, session, QUESTION)
    return next(event.at for event in events if event.name == "token") - began, events


async def whole(client: httpx.AsyncClient) -> bool:
    """A turn gets its memories; a search may miss its deadline on a busy machine."""
    return (await ask(client, "again", QUESTION))[1].data["degraded"] in ([], ["embedding"])


async def recalled(client: httpx.AsyncClient, text: str) -> bool:
    found = (await client.get("/v1/memories", params={"q": text})).json()
    return any(text in item["content"] for item in found["memories"])


@pytest.mark.parametrize(("mode", "options"), FAULTS)
async def test_an_index_server_that_is_away_costs_recall_only_and_catches_up(
    model: Model, folder: Path, shared: Groups, to_qdrant: Proxy,
    mode: Mode, options: dict[str, Any],
) -> None:  # fmt: skip
    """R11: first token ≤ deadline + 50 ms over normal; afterwards every message is indexed."""
    shared = behind(to_qdrant, shared)
    with serving(folder, fake=model, **shared) as service:
        async with service.client() as client:
            await remember(client)
            normal = median([(await first_token_seconds(client, f"n{n}"))[0] for n in range(5)])

            to_qdrant.mode(mode, **options)
            times = []
            for n in range(3):
                seconds, events = await first_token_seconds(client, f"broken{n}")
                times.append(seconds)
                assert events[1].data["degraded"] == ["recall"]
                assert events[-1].name == "done"
            assert_quick(median(times) - normal, DEADLINE + 0.05, what=(times, normal))
            # The window works all the same; ready names the part and stays green.
            events = await ask(client, "old", QUESTION)
            assert events[1].data["layers"]["window"]["messages"] == 2
            ready = await client.get("/health/ready", timeout=30)
            assert ready.status_code == 200
            assert ready.json()["index"]["status"] == "down"
            await answer(client, "said", "My canary is called Xylophon.")

            to_qdrant.mode("pass")
            await eventually(lambda: recalled(client, "Xylophon"))
            await eventually(lambda: whole(client))


@pytest.mark.parametrize(("mode", "options"), [("blackhole", {}), ("refuse", {})])
async def test_an_index_that_keeps_failing_costs_nobody_the_deadline(
    model: Model, folder: Path, shared: Groups, to_qdrant: Proxy,
    mode: Mode, options: dict[str, Any],
) -> None:  # fmt: skip
    """R11: after some failures answers go without recall at once, until a probe succeeds."""
    shared = behind(to_qdrant, shared)

    async def searched(client: httpx.AsyncClient) -> tuple[float, list[str]]:
        began = time.monotonic()
        answered = await client.post("/v1/sessions/new/context", json={"query": QUESTION})
        return time.monotonic() - began, answered.json()["receipt"]["degraded"]

    async def breaker(client: httpx.AsyncClient) -> tuple[str, bool]:
        metrics = (await client.get("/metrics")).text
        ready = (await client.get("/health/ready", timeout=30)).json()
        return ready["index"]["breaker"], 'strata_breakers_open{part="recall"} 1.0' in metrics

    with serving(folder, fake=model, **shared) as service:
        async with service.client() as client:
            await remember(client)
            assert await breaker(client) == ("closed", False)
            normal = median([(await searched(client))[0] for _ in range(5)])
            to_qdrant.mode(mode, **options)
            for _ in range(BREAK_AFTER):
                assert (await searched(client))[1] == ["recall"]
            found = [await searched(client) for _ in range(20)]
            assert {tuple(degraded) for _, degraded in found} == {("recall",)}
            assert_quick(median(seconds for seconds, _ in found) - normal, DEADLINE / 3)
            state, counted = await breaker(client)
            assert state != "closed"
            assert counted
            to_qdrant.mode("pass")
            await eventually(lambda: recalled(client, "Valentina"))
            assert await breaker(client) == ("closed", False)


@pytest.mark.parametrize(("mode", "options"), FAULTS)
async def test_a_store_server_that_is_away_is_503_and_no_model_is_called(
    model: Model, folder: Path, mongo: Mongo, shared: Groups, to_mongo: Proxy,
    mode: Mode, options: dict[str, Any],
) -> None:  # fmt: skip
    """R12, before `accepted`."""
    shared["store"] = through(to_mongo, mongo, shared)
    with serving(folder, fake=model, **shared) as service:
        async with service.client() as client:
            await answer(client, "s", "everything is fine")
            model.forget()
            to_mongo.mode(mode, **options)
            for stream in (True, False):
                with quickly(2 * TIMEOUT + 1):
                    response = await client.post(
                        "/v1/sessions/s/turns", json={"message": "and now?", "stream": stream}
                    )
                assert response.status_code == 503, response.text
                assert response.json()["code"] == "store_unavailable"
                assert int(response.headers["retry-after"]) >= 1
            assert model.requests() == []
            assert (await client.get("/health/live")).status_code == 200
            ready = await client.get("/health/ready")
            assert ready.status_code == 503
            assert ready.json()["store"]["status"] == "down"

            to_mongo.mode("pass")
            await eventually(lambda: ready_again(client))
            assert (await answer(client, "s", "are you back?"))["status"] == "done"
            said = [m["content"] for m in await history(client, "s") if m["role"] == "user"]
            assert said[0] == "everything is fine"
            assert said[-1] == "are you back?"


async def ready_again(client: httpx.AsyncClient) -> bool:
    return (await client.get("/health/ready")).status_code == 200


@pytest.mark.parametrize(("mode", "options"), FAULTS)
async def test_a_store_server_that_goes_away_during_a_stream_is_not_persisted(
    model: Model, folder: Path, mongo: Mongo, shared: Groups, to_mongo: Proxy,
    mode: Mode, options: dict[str, Any],
) -> None:  # fmt: skip
    """R12, mid-stream: `error` `not_persisted`, never `done`; the next turn works."""
    shared["store"] = through(to_mongo, mongo, shared)
    shared = {**shared, "session": {"partial_flush": "100ms", "lease": "1s"}}
    with serving(folder, fake=model, **shared) as service:
        async with service.client() as client:
            await answer(client, "s", "everything is fine")
            model.mode("slow", delay=0.05, text="one two three four five six seven eight")
            events: list[Event] = []
            async with asking(client, "s", "count slowly") as stream:
                async for event in stream:
                    events.append(event)
                    if len(text_of(events).split()) == 3 and event.name == "token":
                        to_mongo.mode(mode, **options)
            assert text_of(events) == "one two three four five six seven eight"
            assert [e.name for e in events if e.name in ("done", "error")] == ["error"]
            assert events[-1].data["code"] == "not_persisted"
            assert events[-1].data["retryable"] is True

            model.forget()
            to_mongo.mode("pass")
            await eventually(lambda: ready_again(client))
            assert (await answer(client, "s", "are you back?"))["status"] == "done"
            messages = await history(client, "s")
            assert [m["content"] for m in messages if m["role"] == "user"] == [
                "everything is fine", "count slowly", "are you back?"
            ]  # fmt: skip
            assert [m["seq"] for m in messages] == list(range(1, 7))
            assert messages[3]["status"] != "running"
