"""One turn at a time per session inside this process, in order of arrival."""

from __future__ import annotations

import asyncio
import math

from memory.errors import SessionBusy, Stopping, TooManyWaiting
from memory.ids import SessionKey

MOST_WAITING = 64


class _Gate:
    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.users = 0


class SessionQueue:
    """A gate is taken by the request that accepts a turn and freed by whoever ends the turn.

    At most `most_waiting` wait at one gate; who comes then is told at once.
    """

    def __init__(self, *, most_waiting: int = MOST_WAITING) -> None:
        self._most_waiting = most_waiting
        self._gates: dict[str, _Gate] = {}
        self._shut = asyncio.Event()

    def shut(self) -> None:
        """Let nobody through any more, neither who comes nor who waits already."""
        self._shut.set()

    def is_free(self, key: SessionKey) -> bool:
        return key not in self._gates

    async def acquire(self, key: SessionKey, *, wait_seconds: float) -> None:
        """Raises SessionBusy when the gate is not free in time, TooManyWaiting when its queue is
        full, Stopping when all are shut."""
        if self._shut.is_set():
            raise Stopping("no more turns are taken")
        gate = self._gates.setdefault(key, _Gate())
        gate.users += 1
        try:
            if gate.users == 1:  # a lock that was just freed may be promised to who waits
                await gate.lock.acquire()
                return
            if wait_seconds <= 0:
                raise SessionBusy(1.0)
            if gate.users - 1 > self._most_waiting:  # all but the one who is through
                raise TooManyWaiting(1.0)
            async with asyncio.timeout(None if math.isinf(wait_seconds) else wait_seconds):
                await gate.lock.acquire()
        except TimeoutError:
            self._leave(key, gate)
            raise SessionBusy(1.0) from None
        except BaseException:
            self._leave(key, gate)
            raise
        if self._shut.is_set():
            self.release(key)
            raise Stopping("no more turns are taken")

    def release(self, key: SessionKey) -> None:
        gate = self._gates[key]
        gate.lock.release()
        self._leave(key, gate)

    def _leave(self, key: SessionKey, gate: _Gate) -> None:
        gate.users -= 1
        if gate.users == 0:
            del self._gates[key]
