from __future__ import annotations

import asyncio
import random

import httpx

from torture.clients import Clients

ASKED = {"path": "/v1/chat/completions", "messages": [], "options": {}}


async def test_what_a_call_has_taken_from_the_log_counts_when_the_next_one_is_over(
    rng: random.Random,
) -> None:
    """The log is emptied by who reads it; whoever reads now and then is cancelled at the end."""
    log, taken = [ASKED], asyncio.Event()

    async def give(request: httpx.Request) -> httpx.Response:
        found = log.copy()
        log.clear()
        if found:
            taken.set()
            await asyncio.sleep(0.05)  # on its way
        return httpx.Response(200, json=found)

    people = Clients(address=str, model_url="http://model", rng=rng)
    await people.close()
    people.http = httpx.AsyncClient(transport=httpx.MockTransport(give))
    now_and_then = asyncio.create_task(people.collect())
    await taken.wait()
    await people.collect()
    now_and_then.cancel()
    await asyncio.gather(now_and_then, return_exceptions=True)
    await people.close()
    assert len(people.prompts) == 1
