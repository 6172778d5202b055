"""Rolls summaries forward, off the request path, one session after the other.

A compaction reads the turns after the summary and replaces the rolled text by compare-and-swap on
its version, together with `covers_through` and with its segment. The segment becomes a document of
its own afterwards (`unfiled` until then): so only committed segments are ever filed, and the next
compaction files one that a crash left. What a compaction loses to a crash or to another worker is
compacted again.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta

import msgspec
import structlog
from cachetools import LRUCache

from memory.breaker import Breaker
from memory.config import ConfigSource, MemoryConfig
from memory.errors import SessionBusy, StrataError
from memory.ids import SessionKey
from memory.locks import SessionLocks
from memory.models import Segment, Session, Summary, Turn, expiry_of, now
from memory.stores.base import PAGE, Store
from memory.summary.plan import COMPACT_AT, plan
from memory.summary.summarizer import Summarizer, SuspendingSummarizer
from memory.summary.writer import SummaryWriter
from memory.tokens import TokenCounter
from memory.window import turn_tokens

log = structlog.get_logger("strata.summaries")

# Enough turns at once to fill the window several times; the rest is compacted in the next round.
READ_WINDOWS = 4
MAX_ROUNDS = 1000
KNOWN_SESSIONS = 10_000
# A text is not rebuilt for each segment that expires, but once a day at most.
REBUILD_AHEAD = timedelta(days=1)
# A session is claimed for so many leases: its projection takes longer than a flush of an answer.
CLAIM_LEASES = 3
# So often in a row the model fails before the next summaries are extracts at once.
BREAK_AFTER = 3
PROBE_SECONDS = 30.0
POLL_SECONDS = 0.05


class RollingSummary:
    """The summaries of all sessions. `compact` and `rebuild` can be repeated and may run in
    several workers: one of them commits."""

    def __init__(
        self,
        *,
        store: Store,
        counter: TokenCounter,
        config: ConfigSource[MemoryConfig],
        locks: SessionLocks,
        summarizer: Summarizer | None,
    ) -> None:
        self._store = store
        self._counter = counter
        self._config = config
        self._locks = locks
        self.breaker = Breaker(failures=BREAK_AFTER, probe_seconds=PROBE_SECONDS)
        self._writer = SummaryWriter(
            counter=counter,
            summarizer=summarizer and SuspendingSummarizer(summarizer, self.breaker),
        )
        self._worker = secrets.token_hex(8)
        self._due: dict[SessionKey, None] = {}
        self._requested = asyncio.Event()
        # How many tokens may come before a session has to be looked at again.
        self._room_left: LRUCache[SessionKey, float] = LRUCache(KNOWN_SESSIONS)

    def request(self, key: SessionKey, *, added_tokens: int | None = None) -> None:
        """Look at this session soon. With `added_tokens`, only once as many have been added as
        the last look left room for."""
        room = self._room_left.pop(key, None)
        if added_tokens is not None and room is not None and room > added_tokens:
            self._room_left[key] = room - added_tokens
            return
        self._due[key] = None
        self._requested.set()

    async def run(self) -> None:
        """Compact the requested sessions until cancelled."""
        while True:
            await self._requested.wait()
            await self.drain()

    async def drain(self) -> None:
        """Compact every session requested so far. Failures are logged: the next turn of the
        session requests it again."""
        self._requested.clear()
        while self._due:
            key = next(iter(self._due))
            del self._due[key]
            try:
                await self.compact(key)
            except StrataError as error:
                log.warning("compaction.failed", session=key, error=type(error).__name__)
            except Exception:  # the edge of a task: one session must not stop the others
                log.exception("compaction.crashed", session=key)

    async def compact(self, key: SessionKey) -> None:
        """Compact turns until those after the summary fit the window again. Raises
        StoreUnavailable, SessionBusy."""
        config = self._config.current
        if config.budget.summary_tokens == 0 or config.budget.window_tokens == 0:
            return
        for _round in range(MAX_ROUNDS):
            session = await self._store.sessions.get(key)
            if session is None or session.erasing:
                return
            if session.summary.unfiled is not None:
                await self._file_left(session)
                continue
            if session.summary.text and session.summary.expires_at <= now():
                await self.rebuild(session)
                continue
            after = await self._turns_after(session, config.budget.window_tokens)
            turns = plan(
                after,
                window_tokens=config.budget.window_tokens,
                compact_to=config.window.compact_to,
                counter=self._counter,
            )
            if not turns:
                used = sum(turn_tokens(turn, self._counter) for turn in after)
                self._room_left[key] = COMPACT_AT * config.budget.window_tokens - used
                return
            await self._commit(session, await self._writer.compacted(session, turns, config=config))

    async def _turns_after(self, session: Session, window_tokens: int) -> list[Turn]:
        """The turns after the summary that have not expired, oldest first."""
        covered = max(session.summary.covers_through, session.first_seq - 1)
        turns: list[Turn] = []
        tokens = 0
        moment = now()
        while tokens < READ_WINDOWS * window_tokens:
            page = await self._store.turns.range(session.key, after=covered, limit=PAGE)
            visible = [turn for turn in page if turn.expires_at > moment]
            turns += visible
            tokens += sum(turn_tokens(turn, self._counter) for turn in visible)
            if len(page) < PAGE:
                break
            covered = page[-1].last_seq
        return turns

    async def rebuild(self, session: Session) -> None:
        """Make the text anew of the segments that have not expired, because a part of it has.
        Raises StoreUnavailable, SessionBusy."""
        config = self._config.current
        segments = await self._segments(session, expiring_after=_rebuild_horizon(config))
        await self._commit(session, await self._writer.rebuilt(session, segments, config=config))

    async def _segments(self, session: Session, *, expiring_after: datetime) -> list[Segment]:
        """Those of this life of the session, up to what the summary covers."""
        last = session.summary.unfiled
        filed = await self._store.segments.of(session.key, now=expiring_after)
        found = [s for s in filed if last is None or s.first_seq < last.first_seq]
        if last is not None and last.expires_at > expiring_after:
            found.append(last)
        return [
            segment
            for segment in found
            if segment.begun in (None, session.created_at)
            and segment.last_seq <= session.summary.covers_through
        ]

    async def _commit(self, session: Session, summary: Summary) -> None:
        async with self._claimed(session.key):
            if summary.expires_at <= now():  # a part of it expired while it was written
                return
            if not await self._store.sessions.change(
                session.key, {"summary": summary}, unchanged=session
            ):
                return  # another was first, or it was erased
            log.info(
                "summary.rolled",
                session=session.key,
                version=summary.version,
                covers_through=summary.covers_through,
                tokens=summary.tokens,
                retired=summary.retired,
                degraded=summary.degraded,
            )
            await self._file(msgspec.structs.replace(session, summary=summary))

    async def _file_left(self, session: Session) -> None:
        """File the segment of a committed summary that a crash left."""
        async with self._claimed(session.key):
            current = await self._store.sessions.get(session.key)
            if current is not None and not current.erasing:
                await self._file(current)

    async def _file(self, session: Session) -> None:
        """Give the segment of the last compaction its own document. An expired one gets none."""
        segment = session.summary.unfiled
        if segment is None:
            return
        if segment.expires_at > now():
            await self._store.segments.put(segment)
        filed = msgspec.structs.replace(session.summary, unfiled=None)
        await self._store.sessions.change(session.key, {"summary": filed}, unchanged=session)

    @asynccontextmanager
    async def _claimed(self, key: SessionKey) -> AsyncIterator[None]:
        """No other worker projects or erases the session meanwhile. Raises SessionBusy when one
        still does after the time for which sessions are claimed."""
        seconds = CLAIM_LEASES * self._config.current.session.lease
        give_up = time.monotonic() + seconds
        while True:
            async with self._locks.of(key):
                until = expiry_of(now(), seconds)
                ours = await self._store.sessions.claim(
                    key, worker=self._worker, until=until, now=now()
                )
                if ours or await self._store.sessions.get(key) is None:
                    try:
                        yield
                    finally:
                        await self._store.sessions.release(key, worker=self._worker)
                    return
            if time.monotonic() > give_up:
                raise SessionBusy(1.0)
            await asyncio.sleep(POLL_SECONDS)


def _rebuild_horizon(config: MemoryConfig) -> datetime:
    """Segments that expire before this moment are left out of a text that is rebuilt."""
    ttl = config.ttl.memory
    long_lived = isinstance(ttl, float) and ttl > 10 * REBUILD_AHEAD.total_seconds()
    return now() + (REBUILD_AHEAD if long_lived else timedelta())
