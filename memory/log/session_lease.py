"""A session as it counts now, and its newest turns: what every write begins with.

The running turn is the session's lease. Who finds one waits for its end; one whose writer is
gone is ended here. Safety rests on the turn's token, never on clocks: whoever was taken over can
write nothing more.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from memory.errors import SessionBusy
from memory.ids import SessionKey
from memory.log.transitions import interrupted
from memory.models import Session, Turn, User, now, session_key
from memory.sessions.lifetime import begun_anew, ended, new_session
from memory.stores.base import LoadedSession, Store

# A lease is over only some time after its end: clocks of two machines differ.
CLOCK_SKEW = timedelta(seconds=2)
# Who waits for another process asks the store now and then, ever less often: one of each process
# does, and their steps differ, so that they do not all ask, and insert, at the same moment.
POLL_SECONDS = 0.05
LONGEST_POLL_SECONDS = 0.25
POLL_GROWTH = 1.5
KNOWN_ABANDONED = 1_000
KNOWN_LEFT = 10_000
# Turns that a retry with the same idempotency key may run again.
RUN_AGAIN = ("failed", "interrupted")
ENDED_WELL = ("done", "partial")


class Opened(NamedTuple):
    """`waited`: another turn ended while this one was opened."""

    session: Session
    loaded: LoadedSession
    waited: bool


class _Left(NamedTuple):
    """How a session was left: its last seq, and until when it goes on if nothing more comes."""

    last_seq: int
    until: datetime


class Opening:
    def __init__(self, *, store: Store, session_ttl: float) -> None:
        self._store = store
        self._session_ttl = session_ttl
        self._abandoned: dict[str, None] = {}
        self._left: dict[str, _Left] = {}

    def abandoned(self, turn: Turn) -> None:
        """Nobody in this process writes this attempt any more, whatever its lease says."""
        if len(self._abandoned) >= KNOWN_ABANDONED:
            del self._abandoned[next(iter(self._abandoned))]
        self._abandoned[turn.fencing_token] = None

    def left(self, turn: Turn, *, until: datetime) -> None:
        """A turn has ended here: if nothing comes between, the next one follows it, unless the
        session has ended then."""
        if self._store.embedded or turn.status not in ENDED_WELL:
            return
        if len(self._left) >= KNOWN_LEFT:
            del self._left[next(iter(self._left))]
        self._left[turn.session_key] = _Left(turn.last_seq, until)

    def take_left(self, session_key: SessionKey) -> int | None:
        """The last seq of the session if this process has left it, for one try."""
        left = self._left.pop(session_key, None)
        return left.last_seq if left is not None and left.until > now() else None

    async def append_ahead(
        self, user: User, turn: Turn, read: Callable[[Session, LoadedSession, Turn], None]
    ) -> Opened | None:
        """Insert a turn that follows what this process has left, and read the session meanwhile:
        `read` is told what there is before the turn, as soon as it is known. None when something
        else is there: then the turn is not, and the session has to be opened.
        """
        looking = asyncio.create_task(self._look(user, turn, read))
        try:
            if not await self._store.turns.append([turn]):
                return None
            opened = await looking
            if opened is None:  # the session was erased elsewhere, or begun anew
                await self._store.turns.withdraw(turn)
        except BaseException:
            self.abandoned(turn)  # a server may have stored it all the same
            raise
        finally:
            if not looking.done():
                looking.cancel()
                await asyncio.gather(looking, return_exceptions=True)
        return opened

    async def _look(
        self, user: User, turn: Turn, read: Callable[[Session, LoadedSession, Turn], None]
    ) -> Opened | None:
        session, turns = await self._store.turns.load(turn.session_key)
        loaded = LoadedSession(session, [before for before in turns if before.id != turn.id])
        counts = self._as_it_counts(user, turn.session_id, loaded)
        goes_on = session is None or counts is session
        if not (goes_on and _is_followed_by(loaded, turn)):
            return None
        read(counts, loaded, turn)
        return Opened(counts, loaded, waited=False)

    async def session(self, user: User, session_id: str, *, wait_until: float) -> Opened:
        """The session as it counts now, for who holds its gate and wants to write: no turn runs
        in it, and if it had ended it begins anew in the store.

        Raises SessionBusy when a turn still runs at `wait_until` (by the monotonic clock).
        """
        key = session_key(user.key, session_id)
        waited, pause = False, POLL_SECONDS
        while True:
            loaded = await self._store.turns.load(key)
            # One that is not the newest may be there too: it is run again by who will find that
            # the session has gone on, or by who is gone.
            running = [turn for turn in loaded.turns if turn.status == "running"]
            over = [turn for turn in running if self.is_over(turn)]
            for turn in over:
                await self._store.turns.save(interrupted(turn))
                self._abandoned.pop(turn.fencing_token, None)
            if over:
                continue
            if not running:
                break
            left = wait_until - time.monotonic()
            if left <= 0:
                raise SessionBusy(1.0)
            waited = True
            await asyncio.sleep(min(left, pause * random.uniform(0.5, 1.0)))
            pause = min(pause * POLL_GROWTH, LONGEST_POLL_SECONDS)
        session = self._as_it_counts(user, session_id, loaded)
        if loaded.session is not None and session is not loaded.session:
            await self._store.sessions.change(
                key, {"first_seq": session.first_seq, "summary": session.summary, "title": ""}
            )
            await self._store.segments.delete(key)
        return Opened(session, loaded, waited)

    async def append(self, opened: Opened, turns: Sequence[Turn]) -> tuple[int, Opened]:
        """Insert in order; how many there are now, and what was before them. Another worker that
        runs the last turn again at this moment has lost it by that."""
        try:
            inserted = await self._store.turns.append(turns)
            if inserted and not self._store.embedded:
                opened = await self._as_it_was_left(opened)
        except BaseException:
            for turn in turns:
                if turn.status == "running":
                    self.abandoned(turn)  # a server may have stored it all the same
            raise
        return inserted, opened

    async def _as_it_was_left(self, opened: Opened) -> Opened:
        """What was opened, for who has appended to it: its last turn may have been run again
        since. Who runs it again looks for a later turn after the write, as this looks for that."""
        session, turns = opened.loaded
        if not turns or turns[0].status not in RUN_AGAIN:
            return opened
        while True:
            last = await self._store.turns.get(turns[0].id, now=now())
            if last is None or last.fencing_token == turns[0].fencing_token:
                return opened
            if last.status == "running":
                last = interrupted(last)
                if not await self._store.turns.save(last):
                    continue  # it has ended just now
            return opened._replace(loaded=LoadedSession(session, [last, *turns[1:]]))

    async def glance(self, user: User, session_id: str) -> Opened:
        """The same for who only reads: a running turn may be among its turns."""
        loaded = await self._store.turns.load(session_key(user.key, session_id))
        return Opened(self._as_it_counts(user, session_id, loaded), loaded, False)

    def is_over(self, running: Turn) -> bool:
        """Whether the lease of a running turn has ended, for who holds its session's gate."""
        if self._store.embedded or running.fencing_token in self._abandoned:
            return True  # the session's gate is ours: whoever wrote it here has given it up
        return lease_is_over(running)

    def _as_it_counts(self, user: User, session_id: str, loaded: LoadedSession) -> Session:
        session = loaded.session
        if session is None:
            return new_session(user.key, session_id, now())
        last = loaded.turns[0] if loaded.turns else None
        if ended(session, last, now(), self._session_ttl):
            return begun_anew(session, last_seq(loaded))
        return session


def lease_is_over(running: Turn) -> bool:
    """Whether its writer has had its time; it may still live, and can write nothing once the turn
    is taken over."""
    return running.lease_until is None or running.lease_until + CLOCK_SKEW <= now()


def _is_followed_by(loaded: LoadedSession, turn: Turn) -> bool:
    """Whether this turn is the next one: the last has ended, will not be run again, and nothing
    comes between. The session may know of the turn already: projections see it at once."""
    session, turns = loaded
    if not turns or turns[0].status not in ENDED_WELL or turns[0].last_seq != turn.seq - 1:
        return False
    runs = any(before.status == "running" for before in turns)
    return not runs and (session is None or session.last_seq <= turn.last_seq)


def last_seq(loaded: LoadedSession) -> int:
    newest = loaded.turns[0].last_seq if loaded.turns else 0
    return max(newest, loaded.session.last_seq if loaded.session else 0)
