"""R19: SIGTERM lets answers end for a while, stores the rest, and closes everything."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
from servers.mongo import Mongo
from waiting import assert_quick, eventually, wait_for

from system.conftest import BY_WORDS
from system.process import Model, Service, serving
from system.streams import Event, ask, asking, history, queued, read_until, text_of

STREAMS = 50
GRACE_SECONDS = 3.0
QUICK = "an answer of six quick words"


async def test_a_stopped_service_closes_its_stores_and_says_so(model: Model, folder: Path) -> None:
    with serving(folder, fake=model, embedding=BY_WORDS) as service:
        async with service.client() as client:
            await ask(client, "s", "remember the harbour")
        assert service.terminate() == 0
        events = [line["event"] for line in service.child.lines()]
        assert events[-1] == "stopped"
        assert not (folder / ".strata" / "serve.json").exists()
        assert not (folder / ".strata" / "strata.db-wal").exists(), "SQLite was not closed"


async def test_sigint_stops_it_too(model: Model, folder: Path) -> None:
    with serving(folder, fake=model, embedding=BY_WORDS) as service:
        service.child.signal(signal.SIGINT)
        assert service.child.wait() == 0
        assert not (folder / ".strata" / "serve.json").exists()


async def stopped_under_load(service: Service, model: Model, running: Callable[[], int]) -> None:
    """Half of the answers end within the grace, half would go on for long."""
    half = STREAMS // 2
    async with service.client("stopper", limits=httpx.Limits(max_connections=80)) as client:
        await ask(client, "warm", "up")
        model.mode("slow", delay=0.25, text=QUICK)
        quick = [asyncio.create_task(ask(client, f"quick{n}", "how are you?")) for n in range(half)]
        await eventually(lambda: len(model.requests()) == 1 + half)
        model.mode("slow", delay=0.2, text="word " * 100)
        slow = [
            asyncio.create_task(ask(client, f"slow{n}", "tell me everything")) for n in range(half)
        ]
        await eventually(lambda: len(model.requests()) == 1 + STREAMS)
        assert running() >= half
        began = time.monotonic()
        service.child.signal(signal.SIGTERM)
        ready = await _until_answered(client, "/health/ready", 503)
        assert ready.json()["status"] == "stopping"
        refused = await client.post("/v1/sessions/new/turns", json={"message": "one more?"})
        assert refused.status_code == 503
        assert refused.json()["code"] == "shutting_down"
        assert "retry-after" in refused.headers
        ended: list[list[Event]] = await asyncio.gather(*quick, *slow)
    assert await asyncio.to_thread(service.child.wait) == 0
    seconds = time.monotonic() - began
    assert running() == 0
    assert_quick(seconds, GRACE_SECONDS + 4, what=service.log.read_text()[-5000:])
    outcomes = [events[-1] for events in ended]
    assert [event.name for event in outcomes[:half]] == ["done"] * half
    for event in outcomes[half:]:
        assert event.name == "error"
        assert event.data["code"] == "shutting_down"
        assert event.data["retryable"] is True
    model.forget()
    service.start()
    async with service.client("stopper") as client:
        for n in range(half):
            _, answer = await history(client, f"quick{n}")
            assert (answer["content"], answer["status"]) == (QUICK, "done")
            assert text_of(ended[n]) == QUICK
            _, answer = await history(client, f"slow{n}")
            streamed = ended[half + n]
            assert (answer["content"], answer["status"]) == (text_of(streamed), "partial")
            turn = (await client.get(f"/v1/turns/{streamed[0].data['turn_id']}")).json()
            assert turn["status"] == "partial"
            # Its session waits for no lease.
        assert (await ask(client, "slow0", "and on?"))[-1].name == "done"


async def test_running_answers_end_within_grace_or_are_kept_as_partial(
    model: Model, folder: Path
) -> None:
    """R19 with 50 streams and SQLite."""

    def running() -> int:
        with closing(sqlite3.connect(folder / ".strata" / "strata.db")) as db:
            found = db.execute("SELECT count(*) FROM turns WHERE status = 'running'").fetchone()
        return int(found[0])

    server = {"grace": f"{GRACE_SECONDS}s"}
    with serving(folder, fake=model, embedding=BY_WORDS, server=server) as service:
        await stopped_under_load(service, model, running)


async def test_workers_end_their_answers_within_grace_or_keep_them_as_partial(
    model: Model, folder: Path, shared: dict[str, dict[str, Any]], mongo: Mongo
) -> None:
    """R19 with 50 streams, MongoDB and two workers."""
    turns = mongo.client[urlsplit(shared["store"]["url"]).path[1:]]["turns"]
    shared = {**shared, "server": {"grace": f"{GRACE_SECONDS}s", "workers": 2}}
    with serving(folder, fake=model, **shared) as service:
        wait_for(lambda: len(service.events("worker.serving")) == 2)
        await stopped_under_load(
            service, model, lambda: turns.count_documents({"status": "running"})
        )


async def test_turns_that_wait_for_their_session_are_refused_when_it_stops(
    model: Model, folder: Path
) -> None:
    """R19: nothing new begins behind the turn that is being drained."""
    model.mode("slow", delay=0.1, text="word " * 200)
    with serving(folder, fake=model, embedding=BY_WORDS, server={"grace": "500ms"}) as service:
        async with service.client() as client:
            async with asking(client, "s", "first") as events:
                await read_until(events, "token")
                waiting = [await queued(client, "s", f"waiting {n}") for n in range(4)]
                began = time.monotonic()
                service.child.signal(signal.SIGTERM)
                rest = [event async for event in events]
            assert rest[-1].data["code"] == "shutting_down"
            for response in await asyncio.gather(*waiting):
                assert response.status_code == 503, response.text
                assert response.json()["code"] == "shutting_down"
        assert await asyncio.to_thread(service.child.wait) == 0
        assert_quick(time.monotonic() - began, 4)
    assert len(model.requests()) == 1, "no model was called for what waited"


async def _until_answered(client: httpx.AsyncClient, path: str, status: int) -> httpx.Response:
    async def answered() -> httpx.Response | None:
        response = await client.get(path)
        return response if response.status_code == status else None

    found: httpx.Response = await eventually(answered)
    return found
