"""The clients: users with sessions, each open in several tabs, that all talk at once.

They behave as good clients do: the same Idempotency-Key until there is an answer, a pause when
told to, another worker when one does not answer. They write down all that came back.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
from system.streams import read_events

from torture.said import Attempt, Said, canary
from torture.verdict import Place, Verdict, judge

PAUSE_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 0.3  # shorter than Retry-After says: the torture has no time
ANSWER_SECONDS = 120.0
TOLD_TO_WAIT = (409, 429, 503)
PAGE = 1000
COLLECT_SECONDS = 0.3

Address = Callable[[], str]


class Clients:
    """`retries`: without it a client that got no answer never asks again (and sends no key)."""

    def __init__(
        self, *, address: Address, model_url: str, rng: random.Random, users: int = 4,
        sessions: int = 3, tabs: int = 2, retries: bool = True,
    ) -> None:  # fmt: skip
        names = [canary(rng) for _ in range(users)]
        self.places: list[Place] = [(u, f"s{n}") for u in names for n in range(sessions)]
        self.said: list[Said] = []
        self.prompts: list[dict[str, Any]] = []
        self.again_share = 0.1
        self._tabs = tabs
        self._retries = retries
        self.address = address
        self._rng = rng
        self._model_url = model_url
        self.http = httpx.AsyncClient(
            timeout=ANSWER_SECONDS,
            trust_env=False,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
        )
        self._stopping = asyncio.Event()
        self._collecting = asyncio.Lock()

    async def close(self) -> None:
        await self.http.aclose()

    @asynccontextmanager
    async def talking(self, turns: int | None = None) -> AsyncIterator[None]:
        """All tabs talk until the block is left (or, with `turns`, until each has said so many);
        then every session gets one more turn, so that nothing runs any more."""
        collecting = asyncio.create_task(self._collect())
        tabs = [
            asyncio.create_task(self._talk(place, f"t{tab}", turns))
            for place in self.places
            for tab in range(self._tabs)
        ]
        try:
            yield
            if turns is None:
                self._stopping.set()
            await asyncio.gather(*tabs)
            await asyncio.gather(*(self.say(place, "t99", 0) for place in self.places))
            await self.collect()
        finally:
            for task in (collecting, *tabs):
                task.cancel()
            await asyncio.gather(collecting, *tabs, return_exceptions=True)

    async def _talk(self, place: Place, tab: str, turns: int | None) -> None:
        number = 0
        while not self._stopping.is_set() and number != turns:
            await self.say(place, tab, number)
            number += 1

    async def say(
        self, place: Place, tab: str, number: int, *, address: Address | None = None
    ) -> Said:
        """One turn, until it is known how it ended."""
        said = Said(*place, tab, number)
        self.said.append(said)
        deadline = time.monotonic() + ANSWER_SECONDS
        while said.outcome is None:
            assert time.monotonic() < deadline, f"no answer in time: {said}"
            attempt = Attempt()
            said.attempts.append(attempt)
            pause = await self._attempt(said, attempt, (address or self.address)())
            if attempt.ended == "done":
                said.outcome = "done"
            elif attempt.code == "turn_superseded":
                said.outcome = "superseded"
            elif attempt.ended == "error" and not (attempt.retryable and self._retries):
                said.outcome = "failed"
            elif not self._retries and (attempt.broken or attempt.code == "store_unavailable"):
                said.outcome = "unknown"
            else:
                await asyncio.sleep(pause)
        if self._retries and said.done and self._rng.random() < self.again_share:
            await self._ask_again(said, address or self.address)
        return said

    async def _ask_again(self, said: Said, address: Address) -> None:
        """As a client does whose answer was lost on its way. A fault may meet this too."""
        again = Attempt()
        await self._attempt(said, again, address())
        if again.ended is not None:
            said.again = again

    async def _attempt(self, said: Said, attempt: Attempt, url: str) -> float:
        """Fills the attempt; the seconds to wait before the next one."""
        headers = {"X-User-Id": said.user}
        if self._retries:
            headers["Idempotency-Key"] = said.key
        body = {"message": said.text, "stream": True}
        path = f"{url}/v1/sessions/{said.session}/turns"
        try:
            async with self.http.stream("POST", path, json=body, headers=headers) as response:
                attempt.status = response.status_code
                attempt.replayed = response.headers.get("idempotency-replayed") == "true"
                if response.status_code == 200:
                    async for event in read_events(response):
                        attempt.take(event)
                    assert attempt.ended is not None, f"a stream without an end: {attempt}"
                    return PAUSE_SECONDS
                await response.aread()
        except httpx.ConnectError:  # it cannot have arrived
            return PAUSE_SECONDS
        except httpx.TransportError:
            attempt.broken = True
            return PAUSE_SECONDS
        assert response.status_code in TOLD_TO_WAIT, f"{response.status_code}: {response.text}"
        attempt.code = response.json()["code"]
        return min(float(response.headers.get("retry-after", 0)), LONGEST_PAUSE_SECONDS)

    async def histories(
        self, *, address: Address | None = None
    ) -> dict[Place, list[dict[str, Any]]]:
        """The whole history of each session, oldest first."""
        return {p: await self.history(p, address=address) for p in self.places}

    async def history(
        self, place: Place, *, address: Address | None = None
    ) -> list[dict[str, Any]]:
        user, session = place
        found: list[dict[str, Any]] = []
        before: int | None = None
        while True:
            given = {"limit": PAGE} | ({"before": before} if before else {})
            url = f"{(address or self.address)()}/v1/sessions/{session}/messages"
            response = await self.http.get(url, params=given, headers={"X-User-Id": user})
            if response.status_code == 404:
                return []
            assert response.status_code == 200, response.text
            page = response.json()
            found = page["messages"] + found
            before = page["next_before"]
            if before is None:
                return found

    async def collect(self) -> None:
        """Take over the log of the model, which keeps only the newest requests. What another call
        has taken and not yet read is here, too, when this one is over."""
        async with self._collecting:
            response = await self.http.delete(f"{self._model_url}/requests")
            found = (r for r in response.json() if r["path"] == "/v1/chat/completions")
            self.prompts += [{"messages": r["messages"], "options": r["options"]} for r in found]

    async def _collect(self) -> None:
        while True:
            await self.collect()
            await asyncio.sleep(COLLECT_SECONDS)

    async def verdict(self) -> Verdict:
        return judge(self.said, await self.histories(), self.prompts)
