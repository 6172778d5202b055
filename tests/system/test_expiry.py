"""R15, S10: what has expired is invisible at once, and after the sweep in no byte on disk."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
from waiting import eventually, slowdown

from system.conftest import BY_WORDS
from system.process import Model, Service, serving
from system.streams import answer, ask

CANARY = "Quetzalcoatl"
# The service keeps times in milliseconds.
CLOCK_SECONDS = 0.01


async def visible(client: httpx.AsyncClient) -> str:
    """Everything that any read path tells, as one text."""
    texts = []
    for path in (
        "/v1/sessions",
        "/v1/sessions/secrets",
        "/v1/sessions/secrets/messages",
        "/v1/memories",
        f"/v1/memories?q={CANARY}",
        "/v1/memories?q=plan&session_id=secrets",
    ):
        texts.append((await client.get(path)).text)
    for session in ("secrets", "other"):
        body = {"query": "What is the secret plan?"}
        response = await client.post(f"/v1/sessions/{session}/context", json=body)
        texts.append(response.text)
    return "\n".join(texts)


async def indexed(service: Service) -> int:
    async with service.client() as client:
        ready = (await client.get("/health/ready")).json()
    points: int = ready["index"]["points"]
    return points


@asynccontextmanager
async def expiring(
    model: Model, folder: Path, *, sweep_interval: str = "500ms", **ttl: str
) -> AsyncIterator[tuple[Service, httpx.AsyncClient]]:
    """A service with these times to live, and its client."""
    with serving(
        folder, fake=model, embedding=BY_WORDS, ttl=ttl,
        projector={"sweep_interval": sweep_interval, "interval": "50ms"},
    ) as service:  # fmt: skip
        async with service.client() as client:
            await ask(client, "warm", "up", memory=False)
            yield service, client


def seconds_to_live(quiet: float) -> float:
    """Long enough on this machine, at this moment, to look at what was said before it expires."""
    return round(quiet * slowdown(), 1)


class Told(NamedTuple):
    """When the first was said (at the earliest) and the last (at the latest)."""

    first: float
    last: float


async def tell_secrets(client: httpx.AsyncClient) -> Told:
    """A turn, recorded messages and their index points."""
    first = time.monotonic()
    await answer(client, "secrets", f"The secret plan is called {CANARY}.")
    messages = [{"role": "user", "content": f"{CANARY} again", "speaker": CANARY, "id": CANARY}]
    response = await client.post("/v1/sessions/secrets/messages", json={"messages": messages})
    assert response.status_code == 201
    return Told(first, time.monotonic())


async def assert_visible_for(client: httpx.AsyncClient, told: Told, seconds: float) -> None:
    """It is in each look that ended before it expired, and in none that began afterwards."""
    seen = 0
    while True:
        began = time.monotonic()
        shown = CANARY in await visible(client)
        if time.monotonic() < told.first + seconds - CLOCK_SECONDS:
            assert shown
            seen += 1
        if began > told.last + seconds + CLOCK_SECONDS:
            assert not shown
            assert seen
            return


async def gone_from_every_file(service: Service) -> None:
    await eventually(lambda: CANARY.encode() not in service.stored_bytes(), what="swept")


async def test_memories_are_gone_after_their_time_and_swept_from_every_file(
    model: Model, folder: Path
) -> None:
    model.mode("ok", text=f"Noted: {CANARY}.")
    seconds = seconds_to_live(2)
    async with expiring(model, folder, memory=f"{seconds}s") as (service, client):
        told = await tell_secrets(client)
        assert await eventually(lambda: indexed(service))
        await assert_visible_for(client, told, seconds)
        await gone_from_every_file(service)

        async def unindexed() -> bool:
            return await indexed(service) == 0

        await eventually(unindexed)
        assert (await client.get("/v1/sessions/secrets")).status_code == 404
        assert CANARY not in service.log.read_text()
        # The session can be used again.
        model.mode("ok", text="A fresh start.")
        await answer(client, "secrets", "Hello again")


async def test_what_expired_is_invisible_before_any_sweep(model: Model, folder: Path) -> None:
    """R15: invisible at once, titles (the first words of the first message) included."""
    model.mode("ok", text=f"Noted: {CANARY}.")
    seconds = seconds_to_live(2)
    async with expiring(
        model, folder, sweep_interval="1h", memory=f"{seconds}s"
    ) as (service, client):  # fmt: skip
        await assert_visible_for(client, await tell_secrets(client), seconds)
        assert CANARY.encode() in service.stored_bytes(), "nothing was swept yet"


async def test_the_title_goes_with_the_message_it_was_taken_from(
    model: Model, folder: Path
) -> None:
    seconds = seconds_to_live(3)
    async with expiring(
        model, folder, sweep_interval="300ms", memory=f"{seconds}s"
    ) as (service, client):  # fmt: skip
        first = time.monotonic()
        await answer(client, "secrets", f"{CANARY} is the secret plan")
        told = Told(first, time.monotonic())
        assert await eventually(lambda: indexed(service))
        await eventually(lambda: time.monotonic() > told.last + seconds * 2 / 3)
        await answer(client, "secrets", "Let us talk about the weather")
        await assert_visible_for(client, told, seconds)
        session = (await client.get("/v1/sessions/secrets")).json()
        assert session["title"] == "Let us talk about the weather"
        assert session["messages"] == 2
        await gone_from_every_file(service)


async def test_a_session_ends_after_its_last_activity_and_leaves_memories(
    model: Model, folder: Path
) -> None:
    """docs/contract: `ttl.session` after the last activity; memories live on by `ttl.memory`."""
    model.mode("ok", text="Noted.")
    async with expiring(model, folder, session=f"{seconds_to_live(2)}s") as (_, client):
        await answer(client, "secrets", f"The secret plan is called {CANARY}.")
        session = (await client.get("/v1/sessions/secrets")).json()
        assert session["expires_at"] is not None
        assert (await client.get("/v1/sessions")).json()["sessions"]

        async def ended() -> bool:
            listed = (await client.get("/v1/sessions")).json()["sessions"]
            shown = await client.get("/v1/sessions/secrets")
            return listed == [] and shown.status_code == 404

        await eventually(ended)
        history = await client.get("/v1/sessions/secrets/messages")
        assert history.status_code == 404
        # As memory it lives on, in other sessions …
        found = (await client.get("/v1/memories", params={"q": CANARY})).json()
        assert CANARY in found["memories"][0]["content"]
        context = await client.post("/v1/sessions/new/context", json={"query": "secret plan?"})
        assert CANARY in context.text
        # … and the session begins anew, with the next seq.
        turn = await answer(client, "secrets", "Hello again", recall="none")
        assert turn["user"]["seq"] == 3
        assert CANARY not in str(model.requests()[-1]["messages"])
        session = (await client.get("/v1/sessions/secrets")).json()
        assert session["messages"] == 2
        assert session["title"] == "Hello again"


async def test_memory_that_lives_with_its_session_goes_with_it(model: Model, folder: Path) -> None:
    """docs/contract: `ttl.memory` "session"."""
    model.mode("ok", text="Noted.")
    seconds = seconds_to_live(2)
    async with expiring(
        model, folder, session=f"{seconds}s", memory="session"
    ) as (service, client):  # fmt: skip
        await assert_visible_for(client, await tell_secrets(client), seconds)
        await gone_from_every_file(service)


async def test_a_session_can_have_its_own_time(model: Model, folder: Path) -> None:
    """docs/contract.md: PATCH `ttl`."""
    with serving(
        folder, fake=model, embedding=BY_WORDS, projector={"sweep_interval": "500ms"}
    ) as service:
        async with service.client() as client:
            await answer(client, "short", "remember me not")
            await answer(client, "long", "remember me")
            changed = await client.patch("/v1/sessions/short", json={"ttl": "1s"})
            assert changed.status_code == 200
            assert changed.json()["expires_at"] is not None

            async def ended() -> bool:
                return (await client.get("/v1/sessions/short")).status_code == 404

            await eventually(ended)
            assert (await client.get("/v1/sessions/long")).status_code == 200


async def test_a_deleted_session_leaves_no_byte(model: Model, folder: Path) -> None:
    """S10, and DELETE of docs/contract.md: with everything that came from it."""
    model.mode("ok", text=f"Noted: {CANARY}.")
    with serving(folder, fake=model, embedding=BY_WORDS, projector={"interval": "50ms"}) as service:
        async with service.client() as client:
            await tell_secrets(client)
            assert CANARY in await visible(client)
            assert await eventually(lambda: indexed(service))
            assert (await client.delete("/v1/sessions/secrets")).status_code == 200
            assert CANARY not in await visible(client)
            assert await indexed(service) == 0
            assert CANARY.encode() not in service.stored_bytes()
            assert (await client.delete("/v1/sessions/secrets")).status_code == 404
