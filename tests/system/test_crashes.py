"""R1, R6: kill -9 at any moment loses nothing that was acknowledged, and frees every session."""

from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path
from typing import Any

import httpx
from waiting import eventually

from system.conftest import BY_WORDS
from system.process import Model, serving
from system.streams import Event, answer, ask, asking, history, read_until, text_of

KILLS = int(os.environ.get("STRATA_KILLS", "4"))
SESSIONS = 6


async def watch(client: httpx.AsyncClient, session: str, message: str) -> list[Event]:
    """What was received of one turn before the service died."""
    found: list[Event] = []
    try:
        async with asking(client, session, message) as events:
            async for event in events:
                found.append(event)
    except (httpx.HTTPError, AssertionError):
        pass
    return found


def check_kept(before: list[Any], events: list[Event], message: str, after: list[Any]) -> None:
    """R1 for one session: `before` is its history as it was, `events` what came since."""
    assert after[: len(before)] == before, "order and text of what was there are kept"
    names = [event.name for event in events]
    new = after[len(before) :]
    assert [m["seq"] for m in after] == list(range(1, len(after) + 1))
    if "accepted" in names:
        assert [m["role"] for m in new] == ["user", "assistant"], "an accepted turn was lost"
        assert new[0]["content"] == message
        assert new[0]["seq"] == events[0].data["seq"]
    if not new:
        return
    reply = new[1]
    if "done" in names:
        assert reply["status"] == "done"
        assert reply["content"] == text_of(events)
        assert reply["id"] == events[-1].data["message_id"]
    else:
        assert reply["status"] in ("done", "interrupted", "partial")
        streamed = text_of(events)
        assert reply["content"].startswith(streamed) or streamed.startswith(reply["content"])


async def test_kill_9_loses_nothing_that_was_acknowledged(
    model: Model, folder: Path, rng: random.Random
) -> None:
    """R1: at random moments after `accepted`, mid-stream and after `done`, several sessions at
    a time, over and over in the same files (STRATA_KILLS kills)."""
    settings = {"session": {"partial_flush": "20ms"}, "projector": {"interval": "50ms"}}
    with serving(folder, fake=model, embedding=BY_WORDS, **settings) as service:
        histories: dict[str, list[Any]] = {f"s{n}": [] for n in range(SESSIONS)}
        for kill in range(KILLS):
            async with service.client("crash") as client:
                if kill == 0:
                    await ask(client, "warm", "up")
                model.forget()
                model.mode("slow", delay=0.02, text=" ".join(f"w{n}" for n in range(20)))
                message = f"message of round {kill}"
                turns = [asyncio.create_task(watch(client, s, message)) for s in histories]
                await eventually(model.requests)
                await asyncio.sleep(rng.uniform(0, 0.7))
                service.kill()
                received = await asyncio.gather(*turns)
            service.start()
            async with service.client("crash") as client:
                for (session, before), events in zip(histories.items(), received, strict=True):
                    after = await history(client, session) if events or before else []
                    check_kept(before, events, message, after)
                    for event in events[:1]:
                        turn = (await client.get(f"/v1/turns/{event.data['turn_id']}")).json()
                        assert turn["status"] in ("done", "interrupted")
                    histories[session] = after
                model.forget()
                for session in list(histories)[:2]:
                    # R6: the first turn after the restart is 200, never 409.
                    await answer(client, session, "are you there again?")
                    histories[session] = await history(client, session)


async def test_what_was_said_before_a_crash_is_recalled_in_another_session(
    model: Model, folder: Path
) -> None:
    """R1 with R11: the projection is caught up after a crash, whether it had begun or not."""
    with serving(folder, fake=model, projector={"interval": "50ms"}) as service:
        async with service.client() as client:
            await answer(client, "old", "My sister Valentina restores grand pianos in Trieste.")
            service.kill()
        service.start()
        async with service.client() as client:

            async def recalled() -> bool:
                found = await client.get("/v1/memories", params={"q": "grand pianos Trieste"})
                items = found.json()["memories"]
                return bool(items) and items[0]["dense_rank"] is not None

            await eventually(recalled)
            model.forget()
            events = await ask(client, "new", "Who restores grand pianos?")
            receipt = events[1].data
            assert receipt["layers"]["recall"]["items"][0]["session_id"] == "old"
            assert receipt["degraded"] == []
            prompt = model.requests()[0]["messages"]
            assert "Valentina" in prompt[-1]["content"]
            assert prompt[-1]["content"].endswith("Who restores grand pianos?")


async def test_after_kill_9_no_turn_runs_and_the_interrupted_one_keeps_its_text(
    model: Model, folder: Path
) -> None:
    with serving(
        folder, fake=model, embedding=BY_WORDS, session={"partial_flush": "20ms"}
    ) as service:
        async with service.client() as client:
            model.mode("hang_after", chunks=3, text="one two three four five")
            async with asking(client, "s", "count") as events:
                found = await read_until(events, lambda so_far: text_of(so_far) == "one two three")

                async def flushed() -> bool:
                    return bool((await history(client, "s"))[1]["content"] == "one two three")

                await eventually(flushed)
                assert (await history(client, "s"))[1]["status"] == "running"
                service.kill()
        service.start()
        model.forget()
        async with service.client() as client:
            turn = (await client.get(f"/v1/turns/{found[0].data['turn_id']}")).json()
            assert turn["status"] == turn["assistant"]["status"] == "interrupted"
            assert turn["assistant"]["content"] == "one two three"
            await answer(client, "s", "go on")
            prompt = model.requests()[0]["messages"]
            assert [m["content"] for m in prompt[1:]] == ["count", "one two three", "go on"]
