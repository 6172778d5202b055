"""What is done to the service while its clients talk. Each scenario is one row of the table."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from system.process import Model
from waiting import eventually

from torture.clients import Clients
from torture.cluster import Cluster
from torture.said import phases
from torture.verdict import Verdict, lacking

TOKEN_SECONDS = 0.02  # the model's; an answer has a dozen
AFTER_A_FAULT = 60.0
NOTHING = "none: all at once"


@dataclass(frozen=True)
class Row:
    promise: str
    store: str
    rounds: int
    faults: str
    verdict: Verdict
    kills: int = 0


@asynccontextmanager
async def clients(
    cluster: Cluster, model: Model, rng: random.Random, **more: Any
) -> AsyncIterator[Clients]:
    model.forget()
    made = Clients(address=cluster.address, model_url=model.url, rng=rng, **more)
    try:
        yield made
    finally:
        await made.close()


async def at_once(
    cluster: Cluster, model: Model, rng: random.Random, *, turns: int, **more: Any
) -> Row:
    """R3, R4: every tab of every session says `turns` things at once, and nothing fails. No
    prompt lacks an earlier turn."""
    async with clients(cluster, model, rng, **more) as people:
        async with people.talking(turns):
            pass
        verdict = await people.verdict()
        verdict.disordered += lacking(people.prompts, await people.histories())
    promise = "R3" if len(cluster.workers) == 1 else "R4"
    return Row(promise, cluster.store, 1, NOTHING, verdict)


def together(rows: Sequence[Row]) -> Row:
    """Rounds of one scenario as one row."""
    verdict = Verdict()
    for row in rows:
        verdict.add(row.verdict)
    first = rows[0]
    return Row(first.promise, first.store, sum(row.rounds for row in rows), first.faults, verdict)


async def killed(
    cluster: Cluster, model: Model, rng: random.Random, *, kills: int, **more: Any
) -> Row:
    """R1, R6, R7: `kill -9` of one of the processes at a random moment, again and again; it is
    replaced, and the sessions it held are taken over."""

    async def kill() -> None:
        victim = rng.randrange(len(cluster.workers))
        await cluster.kill(victim)
        await cluster.start(victim)

    row = await _under_faults(cluster, model, rng, faults=kills, inflict=kill, **more)
    promise = "R1, R6, R7" if more.get("retries", True) else "R1, R6 (clients that never retry)"
    return Row(promise, cluster.store, kills, f"{kills} kill -9, {row}", row.verdict, kills)


async def store_killed(
    cluster: Cluster, model: Model, rng: random.Random, *, kills: int,
    kill_and_restart: Callable[[], None], **more: Any,
) -> Row:  # fmt: skip
    """R2: `kill -9` of the store under load."""

    async def kill() -> None:
        await asyncio.to_thread(kill_and_restart)

    row = await _under_faults(
        cluster, model, rng, faults=kills, inflict=kill, answers_between=20, **more
    )
    faults = f"{kills} kill -9 of the store, {row}"
    return Row("R2", cluster.store, kills, faults, row.verdict)


@dataclass
class _Met:
    """What the faults met, and how it ended."""

    phases: Counter[Any]
    verdict: Verdict

    def __str__(self) -> str:
        order = ("before accepted", "after accepted", "mid-stream", "after done")
        return ", ".join(f"{self.phases[name]} turns {name}" for name in order)


async def _under_faults(
    cluster: Cluster, model: Model, rng: random.Random, *, faults: int, inflict: Any,
    answers_between: int = 1, **more: Any,
) -> _Met:  # fmt: skip
    """A fault at a random moment after the clients have got on since the last one."""
    met: Counter[Any] = Counter()
    async with clients(cluster, model, rng, **more) as people:
        model.mode("slow", delay=TOKEN_SECONDS)
        async with people.talking():
            for _ in range(faults):
                enough = answered(people) + answers_between
                await eventually(lambda enough=enough: answered(people) >= enough, AFTER_A_FAULT)
                await asyncio.sleep(rng.uniform(0, 0.4))
                met += phases(people.said, now=time.monotonic())
                await inflict()
        model.mode()
        return _Met(met, await people.verdict())


def answered(people: Clients) -> int:
    return sum(one.done is not None for one in people.said)


async def awakened(
    cluster: Cluster, model: Model, rng: random.Random, *, rounds: int, sessions: int = 8,
    retries: bool = True,
) -> Row:  # fmt: skip
    """R6: a process stands still beyond its lease while it answers, another one takes its
    sessions over and answers; then it wakes, and can write nothing."""
    zombies = 0
    async with clients(
        cluster, model, rng, users=2, sessions=sessions // 2, retries=retries
    ) as people:
        for number in range(rounds):
            victim = rng.randrange(len(cluster.workers))
            url = cluster.workers[victim].url
            other = cluster.other(url)
            model.mode("slow", delay=0.05)

            def to_the_victim(url: str = url) -> str:
                return url

            def to_the_other(other: str = other) -> str:
                return other

            said = len(people.said)
            late = [
                asyncio.create_task(people.say(place, "t0", number, address=to_the_victim))
                for place in people.places
            ]
            await eventually(
                lambda said=said: any(one.attempts[-1].text for one in people.said[said:])
            )
            await asyncio.sleep(rng.uniform(0, 0.3))
            cluster.stop(victim)
            try:
                running = [one for one in people.said[said:] if one.phase != "after done"]
                zombies += sum(one.accepted != set() for one in running)
                model.mode()
                await asyncio.gather(
                    *(
                        people.say(place, "t1", number, address=to_the_other)
                        for place in people.places
                    )
                )
                before = await people.histories(address=to_the_other)
            finally:
                cluster.go_on(victim)
            await asyncio.gather(*late)
            for place, messages in (await people.histories()).items():
                assert messages[: len(before[place])] == before[place], "a zombie wrote"
            await people.collect()
        async with people.talking(0):
            pass
        verdict = await people.verdict()
    faults = f"{rounds} SIGSTOP beyond the lease, {zombies} answers of the dead"
    return Row("R6", cluster.store, rounds, faults, verdict)
