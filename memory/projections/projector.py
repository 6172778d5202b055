"""Catching up: index and summary follow the log, session by session, off the request path.

Each session has watermarks; what lies behind them is done again after a crash, and doing it
again changes nothing (point ids are derived, the summary is replaced by compare-and-swap). A
watermark is committed only after the index was flushed.
"""

from __future__ import annotations

import asyncio
import secrets
from typing import NamedTuple

import structlog

from memory.config import ConfigSource, MemoryConfig
from memory.embeddings import DenseModel
from memory.errors import StoreUnavailable, StrataError, reason
from memory.ids import SessionKey
from memory.indexes.base import VectorIndex
from memory.locks import SessionLocks
from memory.log.changes import ChangeFeed
from memory.models import Session, Turn, expiry_of, now
from memory.projections.backoff import Backoff
from memory.projections.index import IndexProjection, NoIndex
from memory.projections.progress import Progress, Watermarks
from memory.sessions.documents import SessionDocuments
from memory.stores.base import PAGE, Store
from memory.summary.rolling import CLAIM_LEASES, RollingSummary
from memory.tokens import TokenCounter

log = structlog.get_logger("strata.projector")

SHARED_CONCURRENCY = 4
# From this failure in a row on, the messages of a session are tried one by one.
FAILURES = 5
MOST_POISONED = 1_000


class ProjectionState(NamedTuple):
    """`pending`: as `Projector.pending`. `lag_seconds`: the age of the oldest ended turn whose
    projection is not durable yet. `poisoned`: messages that no projection takes (at most 1,000)."""

    pending: int
    lag_seconds: float
    poisoned: int


class Projector:
    """Takes the sessions that `changes` names at once, all other pending ones every
    `projector.interval`."""

    def __init__(
        self,
        *,
        store: Store,
        index: VectorIndex | None,
        model: DenseModel,
        summaries: RollingSummary,
        sessions: SessionDocuments,
        locks: SessionLocks,
        counter: TokenCounter,
        changes: ChangeFeed,
        config: ConfigSource[MemoryConfig],
    ) -> None:
        self._store = store
        turns, work = store.turns, store.work
        self._projection = (
            NoIndex(turns=turns, work=work, counter=counter)
            if index is None
            else IndexProjection(turns=turns, work=work, index=index, model=model, counter=counter)
        )
        self._watermarks = Watermarks(store=store, index=index, locks=locks)
        self._model = model
        self._summaries = summaries
        self._sessions = sessions
        self._locks = locks
        self.changes = changes
        self._config = config
        self.backoff = Backoff()
        self._worker = secrets.token_hex(8)
        self._at_once = asyncio.Semaphore(
            config.current.projector.concurrency or (1 if store.embedded else SHARED_CONCURRENCY)
        )

    async def pending(self) -> int:
        """How many sessions (at most a page) have pending turns. Those that were projected and
        only wait for the next flush of the index do not count. Raises StoreUnavailable."""
        return sum(not self._is_caught_up(key) for key in await self._pending())

    async def state(self) -> ProjectionState:
        """Raises StoreUnavailable."""
        since = await self._store.work.pending_since()
        lag_seconds = max(0.0, (now() - since).total_seconds()) if since else 0.0
        poisoned = len(await self._store.work.poisoned(limit=MOST_POISONED))
        return ProjectionState(await self.pending(), lag_seconds, poisoned)

    async def _pending(self) -> list[SessionKey]:
        """A page of sessions with pending turns besides those that only wait for the flush."""
        return await self._store.work.pending(finished=True, limit=PAGE + len(self._watermarks))

    def _is_caught_up(self, key: SessionKey) -> bool:
        progress = self._watermarks.get(key)
        return progress is not None and not progress.pending and key not in self.changes.sessions

    def model_ready(self, *, reset: bool) -> None:
        """Dense vectors can be made from now on; with `reset`, earlier ones are void."""
        self._watermarks.model_ready(reset=reset)
        self.changes.event.set()

    def forget(self, key: SessionKey) -> None:
        """The session was erased: what is known of its progress is void."""
        self._watermarks.forget(key)
        self.backoff.forget(key)

    async def respell(self, turn: Turn) -> None:
        """The turns before this one are gone: their words leave its sparse vector. Raises
        IndexUnavailable, StoreUnavailable."""
        await self._projection.respell(turn)

    async def run(self) -> None:
        """Catch up until cancelled. Failures are logged and tried again, later and later."""
        while True:
            worked = False
            try:
                worked = await self.run_once()
                await self._watermarks.commit_when_due()
            except StrataError as error:
                log.warning("projection.failed", error=type(error).__name__, detail=str(error))
            except Exception:  # the edge of a task: it must outlive any single failure
                log.exception("projection.crashed")
            if not worked:
                await self.changes.wait(self._config.current.projector.interval)

    async def caught_up(self) -> None:
        """Return once every projection has seen every ended turn. Raises what fails."""
        while True:
            worked = await self.run_once(raising=True)
            await self._summaries.drain()
            uncommitted = len(self._watermarks)
            await self._watermarks.commit()
            if not worked and not uncommitted:
                return

    async def commit(self) -> None:
        """Flush the index, then move the watermarks: what was projected is pending no longer.
        Raises IndexUnavailable, StoreUnavailable."""
        await self._watermarks.commit()

    async def drain(self) -> None:
        """`commit` before the stores are closed; a failure is logged."""
        try:
            await self.commit()
        except StrataError as error:
            log.warning("projection.drain_failed", error=type(error).__name__)

    async def run_once(self, *, raising: bool = False) -> bool:
        """One batch for every pending session; True when anything was done. A session that failed
        waits for its time, unless it has changed since or its failure is to be `raising`."""
        for key in self.changes.take():
            if progress := self._watermarks.get(key):
                progress.pending = True
            self.backoff.retry_now(key)
        pending = await self._pending()
        return any(await asyncio.gather(*(self._one(key, raising=raising) for key in pending)))

    async def _one(self, key: SessionKey, *, raising: bool) -> bool:
        if not raising and self.backoff.waits(key):
            return False
        worked = False
        async with self._at_once:
            try:
                try:
                    async with self._locks.of(key):
                        worked = await self._catch_up(key)
                    if self._watermarks.durable_at_once:
                        await self._watermarks.commit_session(key)
                finally:
                    if not self._store.embedded:
                        await self._store.sessions.release(key, worker=self._worker)
            except Exception as error:  # one session must not hold up the others
                self._failed(key, error)
                if raising:
                    raise
            await self._watermarks.commit_when_due()
        return worked

    def _failed(self, key: SessionKey, error: Exception) -> None:
        seconds = self.backoff.failed(key)
        if not isinstance(error, StrataError):
            log.error("projection.session_crashed", session=key, exc_info=error)
        log.warning(
            "projection.session_failed",
            session=key,
            error=type(error).__name__,
            detail=reason(error),
            retry_in_s=round(seconds, 2),
        )

    async def _catch_up(self, key: SessionKey) -> bool:
        """One batch of a session whose lock is held; True when anything was done."""
        session = await self._claimed(key)
        if session is None or session.erasing:
            return False
        progress = self._watermarks.of(session)
        before = progress.reached
        alone = self.backoff.times(key) >= FAILURES - 1
        try:
            worked = await self._projection.advance(key, progress, alone=alone)
        except StoreUnavailable:
            raise
        except Exception:
            if progress.reached != before:
                self._watermarks.keep(key, progress)
            self._summaries.request(key)  # a summary needs neither index nor embeddings
            raise
        self.backoff.forget(key)
        self._note(key, progress, worked, moved=progress.reached != before)
        return worked

    async def _claimed(self, key: SessionKey) -> Session | None:
        """The session's document, repaired, and claimed where other workers could project it;
        None when there is nothing to do, or another worker is at it."""
        session = await self._sessions.repaired(key)
        if self._store.embedded or session is None or session.erasing:
            return session
        until = expiry_of(now(), CLAIM_LEASES * self._config.current.session.lease)
        if not await self._store.sessions.claim(key, worker=self._worker, until=until, now=now()):
            return None
        return await self._store.sessions.get(key)

    def _note(self, key: SessionKey, progress: Progress, worked: bool, *, moved: bool) -> None:
        through = progress.lexical
        if self._model.state == "ready":
            through = min(through, progress.dense)
        progress.pending = worked
        if through > progress.projected or moved:
            # Also without new work: a crash may have come between the watermark and the turns.
            progress.projected = through
            self._watermarks.keep(key, progress)
        if worked:
            # What other workers have added to the session is not known here.
            added = progress.added_tokens if self._store.embedded else None
            self._summaries.request(key, added_tokens=added)
            progress.added_tokens = 0
