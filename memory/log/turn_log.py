"""The log of turns: what makes a question durable, and what ends its turn.

`accept` is the one write that must succeed: one atomic insert decides each race for a seq. In this
process a queue keeps a session's turns apart, between processes the running turn itself does (see
session_lease.py).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Sequence
from datetime import datetime
from typing import Any, NamedTuple, Protocol, TypeVar

from memory.config import ConfigSource, MemoryConfig
from memory.errors import SessionBusy, TurnLost
from memory.ids import SessionKey
from memory.log.changes import ChangeFeed
from memory.log.idempotency import Idempotency
from memory.log.session_lease import RETRY_SECONDS, OpenedSession, SessionLease, SessionQueue
from memory.log.session_tails import ENDED_WELL, SessionTails
from memory.log.transitions import RERUNNABLE, accepted_turn, interrupted
from memory.models import LoadedSession, Session, Turn, User, now
from memory.stores.base import Store
from memory.tokens import TokenCounter
from memory.turn_request import TurnRequest

T = TypeVar("T")

RACES = 20  # lost in a row to other processes before a writer gives up


class AcceptedTurn(NamedTuple):
    """A turn that is durable and runs; when its session expires if this is its last turn."""

    turn: Turn
    session_expires_at: datetime


class Reader(Protocol):
    """Works beside the writes of `accept` (see context/builder.py)."""

    def begin(self) -> None:
        """The request will run: no answer to it is known. May be called again."""
        ...

    def show(self, session: Session, loaded: LoadedSession, asked: Turn) -> None:
        """The session as it counts and its newest turns, of which `asked` may be one. Shown
        something else before, the reader restarts."""
        ...

    def restart(self) -> None:
        """Other turns have ended since `begin`: what was found before does not know them."""
        ...


class TurnLog:
    """Writers take the `queue`, then `lease.open`, then `append`, then `note_change`."""

    def __init__(
        self,
        *,
        store: Store,
        counter: TokenCounter,
        config: ConfigSource[MemoryConfig],
        changes: ChangeFeed,
    ) -> None:
        self.store = store
        self.counter = counter
        self.config = config
        self._changes = changes
        self.queue = SessionQueue()
        self._tails = SessionTails()
        self.lease = SessionLease(store=store, tails=self._tails, config=config)
        self._idempotency = Idempotency(
            store=store, lease=self.lease, tails=self._tails, config=config
        )
        self._tasks: set[asyncio.Task[Any]] = set()

    # --- accepting -------------------------------------------------------------------------

    async def accept(self, request: TurnRequest, key: SessionKey, reader: Reader) -> AcceptedTurn:
        """Insert the request's turn, or begin its next attempt; the session's queue is held then.

        Raises SessionBusy, TooManyWaiting, Stopping, StoreUnavailable; with an idempotency key
        also Answered, KeyReused, TurnRunning, TurnSuperseded. Then nothing was stored.
        """
        config = self.config.current
        if not self.queue.is_free(key):  # a known answer need not wait for the session
            await self._idempotency.find(request, first_in_queue=False)
        wait_until = time.monotonic() + config.session.wait
        await self.queue.acquire(
            key,
            wait_seconds=config.session.wait,
            most_waiting=config.limits.waiting_per_session,
        )
        try:
            opened, turn = await self._insert(request, key, wait_until, reader)
        except BaseException:
            self.queue.release(key)
            raise
        if opened.waited:
            reader.restart()
        reader.show(opened.session, opened.loaded, turn)
        self.note_change(key)
        ttl_seconds = config.ttl.session
        return AcceptedTurn(turn, opened.session.ends_at(turn.recorded_at, ttl_seconds))

    async def _insert(
        self, request: TurnRequest, key: SessionKey, wait_until: float, reader: Reader
    ) -> tuple[OpenedSession, Turn]:
        keyed = request.idempotency_key is not None
        if not keyed:
            reader.begin()
        waited = False
        last_seq = None if self.store.embedded else self._tails.take(key)
        if last_seq is not None:
            turn = self._turn(request, key, last_seq + 1)
            ahead = await self._append_ahead(request.user, turn, reader)
            if ahead is not None:
                reader.begin()
                return ahead, turn
        for _race in range(RACES):
            opened, known = await self._open(request, key, wait_until)
            waited = waited or opened.waited
            if known is not None:
                again = await self._idempotency.run_again(known, opened)
                if again is None:
                    continue
                reader.begin()
                return opened._replace(waited=waited), again
            reader.begin()
            turn = self._turn(request, key, opened.last_seq + 1)
            inserted, opened = await self.append(opened, [turn])
            if inserted:
                return opened._replace(waited=waited), turn
            waited = True  # another process was first
        raise SessionBusy(RETRY_SECONDS)

    def _turn(self, request: TurnRequest, key: SessionKey, seq: int) -> Turn:
        config = self.config.current
        return accepted_turn(
            request,
            key,
            seq,
            ttl=config.ttl.memory,
            lease_seconds=config.session.lease,
            counter=self.counter,
        )

    async def _open(
        self, request: TurnRequest, key: SessionKey, wait_until: float
    ) -> tuple[OpenedSession, Turn | None]:
        """The session, and beside it the turn of the idempotency key if that has to run again."""
        opening = self.lease.open(request.user, request.session_id, key, wait_until=wait_until)
        if request.idempotency_key is None:
            return await opening, None
        try:
            async with asyncio.TaskGroup() as both:
                opened = both.create_task(opening)
                known = both.create_task(self._idempotency.find(request, first_in_queue=True))
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None
        return opened.result(), known.result()

    async def append(
        self, opened: OpenedSession, turns: Sequence[Turn]
    ) -> tuple[int, OpenedSession]:
        """Insert in order; how many are in the log now, and what stood before them. A retry of the
        last turn that begins in another process at this moment is ended by it."""
        try:
            inserted = await self.store.turns.append(turns)
            if inserted and not self.store.embedded:
                opened = await _with_last_turn_ended(self.store, opened)
        except BaseException:
            for turn in turns:
                if turn.status == "running":
                    self._tails.abandon(turn)  # a server may have stored it all the same
            raise
        return inserted, opened

    async def _append_ahead(self, user: User, turn: Turn, reader: Reader) -> OpenedSession | None:
        """Insert a turn behind the tail that this process left, and read the session meanwhile:
        one wait instead of two. None when something else stands there: then the turn does not."""
        looking = asyncio.create_task(self._look(user, turn, reader))
        try:
            if not await self.store.turns.append([turn]):
                return None
            opened = await looking
            if opened is None:  # the session was erased elsewhere, or begun anew
                await self.store.turns.withdraw(turn)
        except BaseException:
            self._tails.abandon(turn)  # a server may have stored it all the same
            raise
        finally:
            if not looking.done():
                looking.cancel()
                await asyncio.gather(looking, return_exceptions=True)
        return opened

    async def _look(self, user: User, turn: Turn, reader: Reader) -> OpenedSession | None:
        session, turns = await self.store.turns.load(turn.session_key)
        loaded = LoadedSession(session, [before for before in turns if before.id != turn.id])
        counts = loaded.session_now(user.key, turn.session_id, self.config.current.ttl.session)
        goes_on = session is None or counts is session
        if not (goes_on and _is_followed_by(loaded, turn)):
            return None
        reader.show(counts, loaded, turn)
        return OpenedSession(counts, loaded, turn.seq - 1)

    # --- writing, ending -------------------------------------------------------------------

    async def save(self, turn: Turn) -> None:
        """Replace a running turn. Raises TurnLost, StoreUnavailable."""
        if not await self.store.turns.save(turn):
            raise TurnLost(erased=await self.store.turns.get(turn.id, now=now()) is None)

    def end(self, turn: Turn, *, saved: bool, session_expires_at: datetime) -> None:
        """Free the session for its next turn. `saved`: the turn stands in the store as given."""
        if not saved:
            self._tails.abandon(turn)
        elif not self.store.embedded:
            self._tails.keep(turn, expires_at=session_expires_at)
        self.queue.release(turn.session_key)
        self.note_change(turn.session_key)

    def note_change(self, key: SessionKey) -> None:
        """For projections, which look at this session soon."""
        self._changes.sessions.add(key)
        self._changes.event.set()

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Do it to its end, whatever becomes of the caller; `drain` waits for it."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def drain(self) -> None:
        """Wait for what was spawned (before the store is closed)."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- reading ---------------------------------------------------------------------------

    async def read(self, user: User, session_id: str, key: SessionKey) -> OpenedSession:
        """The session as it counts now, for a reader: a running turn may be among its turns."""
        loaded = await self.store.turns.load(key)
        session = loaded.session_now(user.key, session_id, self.config.current.ttl.session)
        return OpenedSession(session, loaded, loaded.last_seq)


def _is_followed_by(loaded: LoadedSession, turn: Turn) -> bool:
    """Whether this turn is the next one: the last has ended, will not be run again, and nothing
    comes between. The session may know of the turn already: projections see it at once."""
    session, turns = loaded
    if not turns or turns[0].status not in ENDED_WELL or turns[0].last_seq != turn.seq - 1:
        return False
    runs = any(before.status == "running" for before in turns)
    return not runs and (session is None or session.last_seq <= turn.last_seq)


async def _with_last_turn_ended(store: Store, opened: OpenedSession) -> OpenedSession:
    """Symmetric check: this re-reads the last turn after inserting, a retry re-reads the newest
    after it has set the last one running. One of the two always sees the other."""
    session, turns = opened.loaded
    if not turns or turns[0].status not in RERUNNABLE:
        return opened
    while True:
        last = await store.turns.get(turns[0].id, now=now())
        if last is None or last.fencing_token == turns[0].fencing_token:
            return opened
        if last.status == "running":
            last = interrupted(last)
            if not await store.turns.save(last):
                continue  # it has ended just now
        return opened._replace(loaded=LoadedSession(session, [last, *turns[1:]]))
