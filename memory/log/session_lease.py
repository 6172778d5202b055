"""One turn at a time per session: by a queue inside this process, by a lease between processes.

The running turn is the lease. A writer that finds one waits for its end, or ends it when its
process is gone. Safety rests on the fencing token, never on clocks: a writer that was taken over
matches nothing.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from datetime import timedelta
from typing import NamedTuple

from memory.config import ConfigSource, MemoryConfig
from memory.errors import SessionBusy, Stopping, TooManyWaiting
from memory.ids import SessionKey
from memory.log.session_tails import SessionTails
from memory.log.transitions import interrupted
from memory.models import LoadedSession, Session, Turn, User, now
from memory.stores.base import Store

# A lease counts as over only some time after its end: clocks of two machines differ.
CLOCK_SKEW = timedelta(seconds=2)
# Pauses between two looks at a session that runs elsewhere: ever longer, and different in each
# process, so that they do not all look, and insert, at the same moment.
POLL_SECONDS = 0.05
LONGEST_POLL_SECONDS = 0.25
POLL_GROWTH = 1.5
RETRY_SECONDS = 1.0


class OpenedSession(NamedTuple):
    """A session as it counts now, with what was loaded: the next turn's seq is `last_seq` + 1.
    `waited`: another turn ended meanwhile."""

    session: Session
    loaded: LoadedSession
    last_seq: int
    waited: bool = False


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

    async def acquire(self, key: SessionKey, *, wait_seconds: float, most_waiting: int) -> None:
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


class SessionLease:
    def __init__(
        self, *, store: Store, tails: SessionTails, config: ConfigSource[MemoryConfig]
    ) -> None:
        self._store = store
        self._tails = tails
        self._config = config

    async def open(
        self, user: User, session_id: str, key: SessionKey, *, wait_until: float
    ) -> OpenedSession:
        """The session for a writer that is first in its queue: no turn runs in it, and if it had
        ended, it begins anew in the store.

        Raises SessionBusy when a turn still runs at `wait_until` (monotonic clock, seconds).
        """
        waited, pause = False, POLL_SECONDS
        while True:
            loaded = await self._store.turns.load(key)
            # A running turn need not be the newest: its retry will find that the session has gone
            # on, or its process is gone.
            running = [turn for turn in loaded.turns if turn.status == "running"]
            over = [turn for turn in running if self.is_over(turn)]
            for turn in over:
                await self._store.turns.save(interrupted(turn))
                self._tails.forget_abandoned(turn)
            if over:
                continue
            if not running:
                break
            left = wait_until - time.monotonic()
            if left <= 0:
                raise SessionBusy(RETRY_SECONDS)
            waited = True
            await asyncio.sleep(min(left, pause * random.uniform(0.5, 1.0)))
            pause = min(pause * POLL_GROWTH, LONGEST_POLL_SECONDS)
        session = loaded.session_now(user.key, session_id, self._config.current.ttl.session)
        if loaded.session is not None and session is not loaded.session:
            await self._store.sessions.change(key, session.fields_of_new_life())
            await self._store.segments.delete(key)
        return OpenedSession(session, loaded, loaded.last_seq, waited)

    def is_over(self, running: Turn) -> bool:
        """Whether the lease of a running turn has ended, for the first in its session's queue."""
        # In an embedded store, being first means that the turn's own writer has given it up.
        if self._store.embedded or self._tails.is_abandoned(running):
            return True
        return lease_is_over(running)


def lease_is_over(running: Turn) -> bool:
    """Whether the writer of a running turn has had its time. It may still live; once the turn is
    taken over it can write nothing."""
    return running.lease_until is None or running.lease_until + CLOCK_SKEW <= now()
