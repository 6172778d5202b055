"""R19: SIGTERM lets answers end for a while, stores the rest, and closes everything."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path

import httpx

from system.conftest import BY_WORDS
from system.process import Model, serving
from system.streams import Event, ask, asking, history, until

STREAMS = 20


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


async def test_running_answers_end_within_grace_or_are_kept_as_partial(
    model: Model, folder: Path
) -> None:
    """R19 with 20 streams: half end within the grace, half would go on for long."""
    grace = 1.5
    with serving(folder, fake=model, embedding=BY_WORDS, server={"grace": f"{grace}s"}) as service:
        async with service.client("stopper", limits=httpx.Limits(max_connections=50)) as client:
            await ask(client, "warm", "up")
            model.mode("slow", delay=0.1, text="a quick answer")
            quick = [
                asyncio.create_task(ask(client, f"quick{n}", "how are you?"))
                for n in range(STREAMS // 2)
            ]
            await until(lambda: len(model.requests()) == 1 + STREAMS // 2)
            model.mode("slow", delay=0.2, text="word " * 100)
            slow = [
                asyncio.create_task(ask(client, f"slow{n}", "tell me everything"))
                for n in range(STREAMS // 2)
            ]
            await until(lambda: len(model.requests()) == 1 + STREAMS)
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
        assert time.monotonic() - began < grace + 4
        outcomes = [events[-1] for events in ended]
        assert [e.name for e in outcomes[: STREAMS // 2]] == ["done"] * (STREAMS // 2)
        for event in outcomes[STREAMS // 2 :]:
            assert event.name == "error"
            assert event.data["code"] == "shutting_down"
            assert event.data["retryable"] is True
        model.forget()
        service.start()
        async with service.client("stopper") as client:
            for n in range(STREAMS // 2):
                _, answer = await history(client, f"quick{n}")
                assert (answer["content"], answer["status"]) == ("a quick answer", "done")
                _, answer = await history(client, f"slow{n}")
                assert answer["status"] == "partial"
                streamed = ended[STREAMS // 2 + n]
                text = "".join(e.data["text"] for e in streamed if e.name == "token")
                assert answer["content"].startswith(text)
                turn = (await client.get(f"/v1/turns/{streamed[0].data['turn_id']}")).json()
                assert turn["status"] == "partial"


async def test_turns_that_wait_for_their_session_are_refused_when_it_stops(
    model: Model, folder: Path
) -> None:
    """R19: nothing new begins behind the turn that is being drained."""
    model.mode("slow", delay=0.1, text="word " * 200)
    with serving(folder, fake=model, embedding=BY_WORDS, server={"grace": "500ms"}) as service:
        async with service.client() as client:
            async with asking(client, "s", "first") as events:
                while (await anext(events)).name != "token":
                    pass
                waiting = [
                    asyncio.create_task(
                        client.post("/v1/sessions/s/turns", json={"message": f"waiting {n}"})
                    )
                    for n in range(4)
                ]
                await asyncio.sleep(0.2)
                began = time.monotonic()
                service.child.signal(signal.SIGTERM)
                rest = [event async for event in events]
            assert rest[-1].data["code"] == "shutting_down"
            for response in await asyncio.gather(*waiting):
                assert response.status_code == 503, response.text
                assert response.json()["code"] == "shutting_down"
        assert await asyncio.to_thread(service.child.wait) == 0
        assert time.monotonic() - began < 4
    assert len(model.requests()) == 1, "no model was called for what waited"


async def _until_answered(client: httpx.AsyncClient, path: str, status: int) -> httpx.Response:
    deadline = time.monotonic() + 5
    while True:
        response = await client.get(path)
        if response.status_code == status:
            return response
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
