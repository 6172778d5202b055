"""The running answers of this process, and what other processes tell them."""

from __future__ import annotations

import asyncio
import math

import structlog

from memory.errors import StoreUnavailable
from memory.models import Turn
from memory.stores.base import Store
from service.streaming.checkpoints import AT_ONCE
from service.streaming.events import run_of
from service.streaming.generation import Generation

log = structlog.get_logger("strata.turn")

SIGNAL_SECONDS = 0.5


class AnswerRegistry:
    """The running answers of this process. Nobody waits on a request to keep one alive."""

    def __init__(self) -> None:
        self._tasks: dict[asyncio.Task[None], Generation] = {}
        self._runs: dict[str, Generation] = {}
        self.flushing = asyncio.Semaphore(AT_ONCE)
        self.draining = False

    def start(self, producer: Generation) -> None:
        task = asyncio.create_task(producer.run(), name="turn")
        self._tasks[task] = self._runs[producer.run_id] = producer
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        producer = self._tasks.pop(task)
        self._runs.pop(producer.run_id, None)

    def __len__(self) -> int:
        return len(self._tasks)

    async def drain(self, grace_seconds: float) -> None:
        """Wait for the running answers, then store what the rest has and end them."""
        self.draining = True
        loop = asyncio.get_running_loop()
        ends = loop.time() + grace_seconds
        while self._tasks and (left := ends - loop.time()) > 0:
            await asyncio.wait(list(self._tasks), timeout=None if math.isinf(left) else left)
        # What was being accepted when this began may still have joined them.
        while self._tasks:
            for producer in list(self._tasks.values()):
                producer.stop("shutting_down")
            await asyncio.wait(list(self._tasks))

    def of(self, turn: Turn) -> Generation | None:
        """The producer of this attempt, if it runs here."""
        return self._runs.get(run_of(turn))

    async def listen(self, store: Store) -> None:
        """Heed what other workers signal to turns that run here, until cancelled."""
        while True:
            await asyncio.sleep(SIGNAL_SECONDS)
            turns = {turn.id: turn for p in self._runs.values() if (turn := p.accepted_turn)}
            if not turns:
                continue
            try:
                signals = await store.signals.read(list(turns.values()))
            except StoreUnavailable:
                continue  # the next time
            except Exception:  # the edge of a task: it must outlive any single failure
                log.exception("signals.crashed")
                continue
            for turn_id, signal in signals.items():
                if producer := self.of(turns[turn_id]):
                    producer.watched = signal.watched
                    if signal.cancel:
                        producer.stop("cancelled")
