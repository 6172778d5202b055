"""R11: the index is taken away in the middle of a load run, in every way the proxy knows."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

from servers.proxy import FAULTS, Proxy
from system.process import Model
from waiting import eventually

from torture.clients import Clients
from torture.cluster import Cluster
from torture.said import Said
from torture.scenarios import TOKEN_SECONDS, Row, answered, clients

CATCHING_UP_SECONDS = 120.0
BREAKER_SECONDS = 30.0
SEARCHED = 20
DEGRADED = "recall"


async def index_away(
    cluster: Cluster, model: Model, rng: random.Random, *, proxy: Proxy, seconds: float, **more: Any
) -> Row:
    """No turn fails meanwhile, the receipts say `degraded`; afterwards every message of everyone
    is in the index, once, and is found."""
    async with clients(cluster, model, rng, **more) as people:
        model.mode("slow", delay=TOKEN_SECONDS)
        async with people.talking():
            await eventually(lambda: answered(people) > 2 * len(people.places))
            said_before = len(people.said)
            for mode, options in FAULTS:
                proxy.mode(mode, **options)
                ends = time.monotonic() + seconds / len(FAULTS)
                await eventually(lambda ends=ends: time.monotonic() > ends, seconds + 10)
            proxy.mode("pass")
            during = people.said[said_before : len(people.said) - len(people.places)]
            after = answered(people)
            await eventually(lambda: answered(people) > after + len(people.places))
        model.mode()
        verdict = await people.verdict()
        degraded = sum(DEGRADED in one.attempts[-1].degraded for one in during)
        assert degraded, "the index was away, and no receipt says so"
        failed = [one for one in people.said if one.outcome != "done" or one.hits]
        verdict.lost += [f"{one.marker}: {one.outcome}, {one.attempts}" for one in failed]
        verdict.lost += await _not_indexed(people, rng)
    faults = f"index away for {seconds:.0f} s in 5 ways, {degraded} of {len(during)} turns degraded"
    return Row("R11", cluster.store, len(FAULTS), faults, verdict)


async def _not_indexed(people: Clients, rng: random.Random) -> list[str]:
    """What the index lacks or has too much once it has caught up; a message is one point."""
    deadline = time.monotonic() + CATCHING_UP_SECONDS
    stored = sum(len(messages) for messages in (await people.histories()).values())
    ready: dict[str, Any] = {}
    while time.monotonic() < deadline:
        ready = (await people.http.get(f"{people.address()}/health/ready")).json()
        if ready["projection"]["behind"] == 0 and ready["index"].get("points") == stored:
            break
        await asyncio.sleep(0.1)
    else:
        return [f"{stored} messages, but {ready['index']} and {ready['projection']}"]
    wrong = []
    for one in rng.sample(people.said, min(SEARCHED, len(people.said))):
        texts = await _found(people, one)
        if one.text not in texts:
            wrong.append(f"{one.marker}: not found")
        if any(one.user not in text for text in texts):
            wrong.append(f"{one.marker}: found what another user said")
    return wrong


async def _found(people: Clients, one: Said) -> list[str]:
    """What a search for its text finds. A breaker may still keep a worker from its index."""
    given = {"q": one.text, "role": "user"}

    async def searched() -> Any:
        url = f"{people.address()}/v1/memories"
        found = await people.http.get(url, params=given, headers={"X-User-Id": one.user})
        told = found.json()
        return None if DEGRADED in told["degraded"] else told

    told = await eventually(searched, BREAKER_SECONDS)
    return [item["content"] for item in told["memories"]]
