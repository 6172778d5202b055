"""One turn at a time per session inside this process, in order of arrival."""

from __future__ import annotations

import asyncio
import math

from memory.errors import SessionBusy, Stopping, TooManyWaiting
from memory.ids import SessionKey

MOST_WAITING = 64
RETRY_SECONDS = 1.0


class _Place:
    """The lock of one session, and how many hold it or wait for it."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.users = 0


class SessionQueue:
    """Acquired by the request that accepts a turn, released when that turn has ended."""

    def __init__(self) -> None:
        self._places: dict[SessionKey, _Place] = {}
        self._shut = asyncio.Event()

    def shut(self) -> None:
        """Let no request through any more, not even those that wait already."""
        self._shut.set()

    def is_free(self, key: SessionKey) -> bool:
        return key not in self._places

    async def acquire(
        self, key: SessionKey, *, wait_seconds: float, most_waiting: int = MOST_WAITING
    ) -> None:
        """Raises SessionBusy when the session is not free in time, TooManyWaiting when
        `most_waiting` wait for it already, Stopping when the queue is shut."""
        if self._shut.is_set():
            raise Stopping("no more turns are taken")
        place = self._places.setdefault(key, _Place())
        place.users += 1
        try:
            # asyncio.Lock may already be handed to a waiter, so ask our own count, not the lock.
            if place.users == 1:
                await place.lock.acquire()
                return
            if wait_seconds <= 0:
                raise SessionBusy(RETRY_SECONDS)
            if place.users - 1 > most_waiting:  # without the one that is through
                raise TooManyWaiting(RETRY_SECONDS)
            async with asyncio.timeout(None if math.isinf(wait_seconds) else wait_seconds):
                await place.lock.acquire()
        except TimeoutError:
            self._leave(key, place)
            raise SessionBusy(RETRY_SECONDS) from None
        except BaseException:
            self._leave(key, place)
            raise
        if self._shut.is_set():
            self.release(key)
            raise Stopping("no more turns are taken")

    def release(self, key: SessionKey) -> None:
        place = self._places[key]
        place.lock.release()
        self._leave(key, place)

    def _leave(self, key: SessionKey, place: _Place) -> None:
        place.users -= 1
        if place.users == 0:
            del self._places[key]
