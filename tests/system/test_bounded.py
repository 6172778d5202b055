"""R18: what a turn costs does not grow with its session: tokens, processor time, memory."""

from __future__ import annotations

import random
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import pytest
from unit.builders import count_messages

from evals.speed.bench import BASELINE_TURNS, MEMORY_TURNS
from evals.speed.processes import Service, model_server, service
from evals.speed.turns import quiet, take_turn, user_texts
from memory.config import BudgetConfig
from memory.receipt import ChatMessage
from memory.tokens import TiktokenCounter

# Turns 17 to 24 of short sessions against as many of the long one, in turns.
SHORT_SESSIONS, WARM_TURNS, BLOCK_TURNS = 12, 16, 8
BUDGETS_EVERY = 10
LAYERS = ("window_tokens", "summary_tokens", "recall_tokens", "facts_tokens")


class Long:
    """A service with a long session, and short ones beside it."""

    def __init__(self, started: Service, http: httpx.AsyncClient) -> None:
        self._pid = started.process.pid
        self._http = http
        self._texts = user_texts()
        self._taken = 0

    async def say(self, session: str = "long") -> None:
        self._taken += 1
        turn = await take_turn(self._http, self._texts, session, self._taken, f"t{self._taken}")
        assert turn["status"] == "done"
        receipt = turn["receipt"]
        assert receipt["used_tokens"] <= receipt["budget_tokens"] == BudgetConfig().context_tokens

    async def quiet(self) -> None:
        await quiet(self._http)

    async def cpu_ms(self, session: str) -> float:
        """Processor time of one of some turns, their projections included."""
        before = self._cpu_ns()
        for _ in range(BLOCK_TURNS):
            await self.say(session)
        await self.quiet()
        return (self._cpu_ns() - before) / 1e6 / BLOCK_TURNS

    def _cpu_ns(self) -> int:
        """Of all threads, exactly: the usual counters have steps of 10 ms."""
        threads = Path(f"/proc/{self._pid}/task").iterdir()
        return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads)

    def rss_kb(self) -> int:
        lines = Path(f"/proc/{self._pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))

    async def points(self) -> int:
        return int((await self._http.get("/health/ready")).json()["index"].get("points", 0))

    async def try_budget(self, budget: dict[str, int], counter: TiktokenCounter) -> None:
        """A context under these budgets holds to each, by a count of our own."""
        query = self._texts[self._taken % len(self._texts)]
        response = await self._http.post(
            "/v1/sessions/long/context", json={"query": query, "budget": budget}
        )
        assert response.status_code == 200, response.text
        told = response.json()
        real = count_messages(counter, [ChatMessage(**message) for message in told["messages"]])
        receipt = told["receipt"]
        assert real == receipt["used_tokens"] <= budget["context_tokens"], budget
        for layer in LAYERS:
            found = receipt["layers"][layer.removesuffix("_tokens")]["tokens"]
            assert found <= budget[layer], (layer, budget)


def random_budget(rng: random.Random) -> dict[str, int]:
    """Lower than the configured one, from hardly anything to all of it."""
    most = BudgetConfig()
    parts = {layer: rng.randint(0, getattr(most, layer)) for layer in LAYERS}
    return {**parts, "context_tokens": rng.randint(500, most.context_tokens)}


@pytest.mark.slow
@pytest.mark.parametrize("index", ["none", "edge"])
async def test_a_turn_costs_the_same_after_two_thousand(
    tmp_path: Path, index: str, rng: random.Random, counter: TiktokenCounter
) -> None:
    """R18: prompt ≤ budget, CPU of turn 2,000 ≤ 1.15 × turn 20, resident memory bounded."""
    variables = {"STRATA_INDEX__URL": "none"} if index == "none" else {}
    async with (
        model_server(tmp_path) as model_url,
        service(tmp_path, model_url, **variables) as started,
        httpx.AsyncClient(base_url=started.url, timeout=60, trust_env=False) as http,
    ):
        long = Long(started, http)
        for _ in range(BASELINE_TURNS):
            await long.say()
        await long.quiet()
        before, points = long.rss_kb(), await long.points()
        for n in range(BASELINE_TURNS, MEMORY_TURNS):
            await long.say()
            if n % BUDGETS_EVERY == 0:
                await long.try_budget(random_budget(rng), counter)
        await long.quiet()
        grown, passages = long.rss_kb() - before, await long.points() - points

        for session in range(SHORT_SESSIONS):
            for _ in range(WARM_TURNS):
                await long.say(f"short{session}")
        await long.quiet()
        short_ms, long_ms = [], []
        for session in range(SHORT_SESSIONS):
            short_ms.append(await long.cpu_ms(f"short{session}"))
            long_ms.append(await long.cpu_ms("long"))
    found: dict[str, Any] = {
        "rss_kb": grown, "passages": passages, "short_ms": median(short_ms),
        "long_ms": median(long_ms), "ratio": median(long_ms) / median(short_ms),
    }  # fmt: skip
    print(index, found)
    assert found["ratio"] <= 1.15, found
    if index == "none":
        assert grown <= 5_000, found
    else:
        assert passages >= 2 * (MEMORY_TURNS - BASELINE_TURNS)
        assert grown <= 12 * passages, found
