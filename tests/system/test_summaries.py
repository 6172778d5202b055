"""R14: whichever worker compacts, and whenever it is killed, each message stands in one place."""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
from waiting import eventually

from memory.models import User, now, session_key
from memory.stores.mongo.store import MongoStore
from memory.summary.rolling import BREAK_AFTER
from service.auth.keys import TENANT
from system.conftest import BY_WORDS
from system.process import Model, Service, serving
from system.streams import history

Groups = dict[str, dict[str, Any]]

SMALL = {"context_tokens": 900, "window_tokens": 300, "summary_tokens": 120, "recall_tokens": 100,
         "facts_tokens": 0}  # fmt: skip
USER = "anna"
SESSION = "long"
ROUNDS = 5
SUMMARY_SECONDS = 0.15
GIVE_UP_SECONDS = 10.0  # a summary that nobody asks for by then will not be asked for
PEOPLE = "Maria Bruno Oskar Anneliese Tadeusz Kirsten Vasquez Ottoline".split()


class Checked:
    """What the readers of one session have seen: it only moves on."""

    def __init__(self) -> None:
        self.version = self.covered = self.checks = 0

    async def check(self, client: httpx.AsyncClient) -> None:
        """Covered by the summary, else in the window or counted as dropped, never two of these."""
        before = await history(client, SESSION)
        response = await client.post(
            f"/v1/sessions/{SESSION}/context", json={"query": "?", "recall": "none"}
        )
        assert response.status_code == 200, response.text
        receipt = response.json()["receipt"]
        after = (await client.get(f"/v1/sessions/{SESSION}")).json()["summary"]
        messages = await history(client, SESSION)
        assert [m["seq"] for m in messages] == list(range(1, len(messages) + 1))

        window, summary = receipt["layers"]["window"], receipt["layers"]["summary"]
        covered = summary["covers_through"]
        first, last = window["first_seq"], window["last_seq"]
        assert covered < first <= last <= len(messages)
        assert last >= len(before)
        assert window["messages"] == last - first + 1
        dropped = sum(
            d["count"]
            for d in receipt["dropped"]
            if (d["layer"], d["reason"]) == ("window", "budget")
        )
        assert dropped == first - covered - 1
        for version, through in ((summary["version"], covered),
                                 (after["version"], after["covers_through"])):  # fmt: skip
            assert (version > self.version) == (through > self.covered)
            assert version >= self.version
            self.version, self.covered = version, through
        self.checks += 1


async def tell(client: httpx.AsyncClient, numbers: list[int]) -> None:
    """Record statements; what a killed service did not take is not said."""
    for n in numbers:
        name = PEOPLE[n % len(PEOPLE)]
        text = f"I met {name} on day {n}. " + "We talked for hours. " * 8
        body = {"messages": [{"role": "user", "content": text, "id": f"m{n}"}]}
        with suppress(httpx.TransportError):
            response = await client.post(f"/v1/sessions/{SESSION}/messages", json=body)
            assert response.status_code in (201, 409), response.text


async def killed_at_its_write(service: Service, model: Model, rng: random.Random) -> bool:
    """Kill it about when the summary that it asked for is answered; whether it asked for one."""
    give_up = time.monotonic() + GIVE_UP_SECONDS
    while time.monotonic() < give_up:
        asked = await asyncio.to_thread(model.requests)
        if asked:
            # All these clocks are one.
            moment = asked[-1]["at"] + SUMMARY_SECONDS + rng.uniform(-0.02, 0.06)
            await asyncio.sleep(max(0.0, moment - time.monotonic()))
            service.kill()
            return True
        await asyncio.sleep(0.005)
    service.kill()
    return False


async def test_each_message_stands_once_under_two_workers_that_are_killed_while_they_compact(
    model: Model, folder: Path, shared: Groups, rng: random.Random
) -> None:
    groups = {**shared, "budget": SMALL, "session": {"lease": "500ms"},
              "model": {"max_retries": 0}}  # fmt: skip
    async with AsyncExitStack() as stack:
        services = [
            stack.enter_context(serving(folder / str(n), fake=model, **groups)) for n in (1, 2)
        ]
        seen, told, in_time = Checked(), 0, 0
        for n in range(ROUNDS):
            model.forget()
            model.mode("ok", delay=SUMMARY_SECONDS, text="They met.")
            victim, other = services if n % 2 else services[::-1]
            async with victim.client(USER) as doomed, other.client(USER) as client:
                async with asyncio.TaskGroup() as tasks:
                    killing = tasks.create_task(killed_at_its_write(victim, model, rng))
                    tasks.create_task(tell(doomed, list(range(told, told + 12, 2))))
                    tasks.create_task(tell(client, list(range(told + 1, told + 12, 2))))
                    told += 12
                    while not killing.done():
                        if n or await history_began(client):
                            await seen.check(client)
                for _ in range(5):
                    await seen.check(client)
                in_time += killing.result()
            victim.start()
        async with services[0].client(USER) as client:
            await tell(client, [told])

            async def compacted() -> bool:
                await seen.check(client)
                ready = (await client.get("/health/ready")).json()
                return seen.covered > 0 and ready["projection"]["behind"] == 0

            await eventually(compacted)
            await eventually(lambda: filed(shared["store"]["url"], seen, client))
    assert in_time >= 2, "killed while they compacted"
    assert seen.checks > 2 * ROUNDS
    assert seen.version > 1


async def history_began(client: httpx.AsyncClient) -> bool:
    response = await client.get(f"/v1/sessions/{SESSION}")
    return response.status_code == 200


async def filed(url: str, seen: Checked, client: httpx.AsyncClient) -> bool:
    """The segments follow one another up to what the summary covers."""
    store = MongoStore(url)
    await store.open()
    try:
        key = session_key(User(TENANT, USER).key, SESSION)
        session = await store.sessions.get(key)
        assert session is not None
        segments = await store.segments.of(key, now=now())
        last = session.summary.unfiled
        if last is not None:
            segments = [s for s in segments if s.first_seq != last.first_seq] + [last]
        ends = [0, *(s.last_seq for s in segments)]
        assert [s.first_seq for s in segments] == [end + 1 for end in ends[:-1]]
        assert ends[-1] == session.summary.covers_through
        return last is None
    finally:
        await store.close()


async def test_a_summary_model_that_hangs_or_fails_is_given_up_in_time_and_then_not_asked(
    model: Model, folder: Path
) -> None:
    """Its deadline is `turn_timeout`; after some failures summaries are extracts at once."""
    groups: Groups = {
        "budget": SMALL,
        "embedding": dict(BY_WORDS),
        "projector": {"interval": "50ms"},
        "model": {"max_retries": 0, "turn_timeout": "300ms"},
    }
    with serving(folder, fake=model, **groups) as service:
        async with service.client(USER) as client:
            for n, mode in enumerate(("hang", "500", "hang", "hang", "ok")):
                model.mode(mode)
                await tell(client, list(range(6 * n, 6 * n + 6)))

                async def rolled(version: int = n + 1) -> bool:
                    found = (await client.get(f"/v1/sessions/{SESSION}")).json()["summary"]
                    return bool(found["version"] >= version)

                await eventually(rolled)
                response = await client.post(
                    f"/v1/sessions/{SESSION}/context", json={"query": "?", "recall": "none"}
                )
                assert response.json()["receipt"]["degraded"] == ["summary"]
            assert len(model.requests()) == BREAK_AFTER
            ready = (await client.get("/health/ready")).json()
            assert ready["summary"]["status"] == "failing"
            assert ready["summary"]["breaker"] == "open"
            assert ready["degraded"] is True
            assert 'strata_breakers_open{part="summary"} 1.0' in (await client.get("/metrics")).text
