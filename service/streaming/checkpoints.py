"""Stores an answer now and then while it grows, and renews its turn's lease while it does not."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

from memory.config import SessionConfig
from memory.errors import StoreUnavailable, TurnLost
from service.streaming.answer_buffer import AnswerBuffer

# A lease is renewed this many times in its length.
LEASE_PARTS = 3


class Checkpoints:
    """So that a crash loses little of an answer. `flush` stores what there is; once it raises
    TurnLost, `lost` is called and nothing is flushed any more.

    Every running answer has one, so between two flushes it is only a timer. `gate` bounds how
    many flush at once: more would only wait in the store, each with a copy of its text.
    """

    __slots__ = (
        "_answer",
        "_flush",
        "_flushing",
        "_gate",
        "_growing_seconds",
        "_lost",
        "_renewal_seconds",
        "_renewed",
        "_stored",
        "_timer",
    )

    def __init__(
        self,
        answer: AnswerBuffer,
        session: SessionConfig,
        *,
        flush: Callable[[], Awaitable[None]],
        lost: Callable[[], None],
        gate: asyncio.Semaphore,
    ) -> None:
        self._answer = answer
        self._growing_seconds = session.partial_flush or math.inf
        self._renewal_seconds = session.lease / LEASE_PARTS
        self._flush = flush
        self._lost = lost
        self._gate = gate
        self._flushing: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._stored = 0  # code points
        self._renewed = time.monotonic()
        self._wait()

    async def stop(self) -> None:
        """Flush no more: the end of the answer is stored by its caller."""
        if self._timer is not None:
            self._timer.cancel()
        if self._flushing is not None:
            self._flushing.cancel()
            with suppress(asyncio.CancelledError):
                await self._flushing

    def _wait(self) -> None:
        pause = min(self._growing_seconds, self._renewal_seconds)
        if not math.isinf(pause):
            self._timer = asyncio.get_running_loop().call_later(pause, self._flush_if_due)

    def _flush_if_due(self) -> None:
        grown = self._answer.length != self._stored and not math.isinf(self._growing_seconds)
        if grown or time.monotonic() - self._renewed >= self._renewal_seconds:
            self._flushing = asyncio.create_task(self._flush_now(), name="flush")
        else:
            self._wait()

    async def _flush_now(self) -> None:
        try:
            async with self._gate:
                self._stored, self._renewed = self._answer.length, time.monotonic()
                await self._flush()
        except TurnLost:
            self._lost()
            return
        except StoreUnavailable:
            pass  # the next flush tries again, and at last the end of the turn, which logs it
        self._wait()
