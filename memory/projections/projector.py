"""Catching up: index and summary follow the log, session by session, off the request path.

Each session has watermarks; what lies behind them is done again after a crash, and doing it
again changes nothing (point ids are derived, the summary is replaced by compare-and-swap). A
watermark is committed only after the index was flushed.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from typing import NamedTuple

import structlog

from memory.config import MemoryConfig
from memory.embeddings.dense import DenseModel
from memory.errors import StoreUnavailable, StrataError, reason
from memory.ids import SessionKey
from memory.indexes.base import VectorIndex
from memory.locks import SessionLocks
from memory.log.changes import ChangeFeed
from memory.models import Turn, expiry_of, now
from memory.projections.index import Indexing
from memory.projections.steps import Progress, Steps
from memory.sessions.documents import SessionDocuments
from memory.stores.base import PAGE, Store
from memory.summary.rolling import CLAIM_LEASES, RollingSummary
from memory.tokens import TokenCounter

log = structlog.get_logger("strata.projector")

FLUSH_SECONDS = 5.0
FLUSH_POINTS = 500
SHARED_CONCURRENCY = 4
BACKOFF_SECONDS = (1.0, 2.0, 5.0, 15.0, 60.0)
JITTER = 0.25  # of it: workers that failed together do not come back together
# From this failure in a row on, the messages of a session are tried one by one.
FAILURES = 5
MOST_POISONED = 1_000


class _Failures(NamedTuple):
    """How often a session has failed in a row, and when (monotonic) it is tried again."""

    times: int = 0
    not_before: float = 0.0


class State(NamedTuple):
    """`behind`: as `Projector.behind`. `lag_seconds`: the age of the oldest ended turn whose
    projection is not durable yet. `poisoned`: messages that were set aside (at most 1,000)."""

    behind: int
    lag_seconds: float
    poisoned: int


class Projector:
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
        config: MemoryConfig,
    ) -> None:
        self._changes = changes
        self._store = store
        self._index = index
        self._indexing = (
            None
            if index is None
            else Indexing(store=store, index=index, model=model, counter=counter)
        )
        self._steps = Steps(store=store, indexing=self._indexing, model=model, counter=counter)
        self._model = model
        self._summaries = summaries
        self._sessions = sessions
        self._config = config
        self._locks = locks
        self._progress: dict[str, Progress] = {}
        self._failures: dict[str, _Failures] = {}
        self._unflushed_since: float | None = None
        self._worker = secrets.token_hex(8)
        self._at_once = asyncio.Semaphore(
            config.projector.concurrency or (1 if store.embedded else SHARED_CONCURRENCY)
        )

    def wake(self, session_key: SessionKey) -> None:
        """There is news in this session."""
        self._changes.sessions.add(session_key)
        self._changes.event.set()

    def _take_changes(self) -> None:
        for key in self._changes.take():
            if progress := self._progress.get(key):
                progress.news = True
            if failures := self._failures.get(key):
                self._failures[key] = _Failures(failures.times)

    async def behind(self) -> int:
        """How many sessions (at most a page) have news that is not projected yet. What is done
        but waits for the next flush of the index does not count."""
        self._take_changes()
        return sum(not self._is_caught_up(key) for key in await self._waiting())

    async def state(self) -> State:
        """Raises StoreUnavailable."""
        since = await self._store.work.pending_since()
        lag_seconds = max(0.0, (now() - since).total_seconds()) if since else 0.0
        poisoned = len(await self._store.work.poisoned(limit=MOST_POISONED))
        return State(await self.behind(), lag_seconds, poisoned)

    async def _waiting(self) -> list[str]:
        """A page of pending sessions besides those that only wait for the next flush."""
        return await self._store.work.pending(finished=True, limit=PAGE + len(self._progress))

    def _is_caught_up(self, key: SessionKey) -> bool:
        progress = self._progress.get(key)
        return progress is not None and not progress.news

    def model_ready(self, *, reset: bool) -> None:
        """Dense vectors can be made from now on; with `reset`, those of before are void."""
        for progress in self._progress.values():
            progress.dense = 0 if reset else progress.dense
            progress.settled = min(progress.settled, progress.dense)
        self._changes.event.set()

    def forget(self, session_key: SessionKey) -> None:
        """The session was erased: what is known of its progress is void."""
        self._progress.pop(session_key, None)
        self._failures.pop(session_key, None)

    async def run(self) -> None:
        """Catch up until cancelled. Failures are logged and tried again, later and later."""
        while True:
            try:
                worked = await self.run_once()
                await self._commit_when_due()
            except StrataError as error:
                worked = False
                log.warning("projection.failed", error=type(error).__name__, detail=str(error))
            except Exception:  # the edge of a task: it must outlive any single failure
                worked = False
                log.exception("projection.crashed")
            if not worked:
                await self._changes.wait(self._config.projector.interval)

    async def settled(self) -> None:
        """Return when there is nothing left to do (a running turn is left to its end); raises
        what fails."""
        while True:
            worked = await self.run_once(raising=True)
            await self._summaries.drain()
            waited = bool(self._progress)
            await self.commit()
            if not worked and not waited:
                return

    async def drain(self) -> None:
        """Commit what is done (before the stores are closed)."""
        try:
            await self.commit()
        except StrataError as error:
            log.warning("projection.drain_failed", error=type(error).__name__)

    async def run_once(self, *, raising: bool = False) -> bool:
        """One batch for every pending session; True when anything was done."""
        self._take_changes()
        waiting = await self._waiting()
        return any(await asyncio.gather(*(self._one(key, raising=raising) for key in waiting)))

    async def _one(self, key: SessionKey, *, raising: bool) -> bool:
        failures = self._failures.get(key, _Failures())
        if not raising and time.monotonic() < failures.not_before:
            return False
        worked = False
        async with self._at_once:
            try:
                try:
                    async with self._locks.of(key):
                        worked = await self._catch_up(key)
                    if self._flushed_always:
                        await self._commit(key)
                finally:
                    if not self._store.embedded:
                        await self._store.sessions.release(key, worker=self._worker)
            except Exception as error:  # one session must not hold up the others
                self._failed(key, error)
                if raising:
                    raise
            await self._commit_when_due()
        return worked

    def _failed(self, key: SessionKey, error: Exception) -> None:
        times = self._failures.get(key, _Failures()).times
        delay = BACKOFF_SECONDS[min(times, len(BACKOFF_SECONDS) - 1)]
        delay *= random.uniform(1 - JITTER, 1 + JITTER)
        self._failures[key] = _Failures(times + 1, time.monotonic() + delay)
        if not isinstance(error, StrataError):
            log.error("projection.session_crashed", session=key, exc_info=error)
        log.warning(
            "projection.session_failed",
            session=key,
            error=type(error).__name__,
            detail=reason(error),
            retry_in_s=round(delay, 2),
        )

    @property
    def _flushed_always(self) -> bool:
        """What is written to the index is durable at once, so that watermarks need not wait."""
        return not self._store.embedded and not (self._index and self._index.embedded)

    async def _commit_when_due(self) -> None:
        since = self._unflushed_since
        if since is not None and (
            self._unflushed_points >= FLUSH_POINTS or time.monotonic() - since >= FLUSH_SECONDS
        ):
            await self.commit()

    @property
    def _unflushed_points(self) -> int:
        return sum(progress.points for progress in self._progress.values())

    async def commit(self) -> None:
        """Flush the index, then move the watermarks and settle the turns behind them."""
        progress = dict(self._progress)
        if not progress:
            return
        if self._index is not None:
            await self._index.flush()
        self._unflushed_since = None
        for key, reached in progress.items():
            await self._commit(key, reached)

    async def _commit(self, key: SessionKey, flushed: Progress | None = None) -> None:
        """Move the watermarks of a session as far as it had come when the index was flushed."""
        async with self._locks.of(key):
            reached = self._progress.get(key)
            if reached is None or (flushed is not None and reached is not flushed):
                return  # nothing new, or erased meanwhile
            await self._store.sessions.change(
                key, {"lexical_through": reached.lexical, "dense_through": reached.dense}
            )
            reruns = {
                id_: attempt
                for id_, (attempt, last_seq) in reached.reruns.items()
                if last_seq <= reached.settled
            }
            await self._store.work.mark_projected(key, through=reached.settled, reruns=reruns)
            del self._progress[key]

    async def _catch_up(self, key: SessionKey) -> bool:
        session = await self._sessions.repaired(key)
        if session is None or session.erasing:
            return False
        if not self._store.embedded:
            until = expiry_of(now(), CLAIM_LEASES * self._config.session.lease)
            if not await self._store.sessions.claim(
                key, worker=self._worker, until=until, now=now()
            ):
                return False  # another worker is at it
            session = await self._store.sessions.get(key)
            if session is None or session.erasing:
                return False
        progress = self._progress.get(key) or Progress(
            session.lexical_through, session.dense_through
        )
        before = progress.reached
        try:
            failed = self._failures.get(key, _Failures()).times
            worked = await self._steps.take(key, progress, alone=failed >= FAILURES - 1)
        except StoreUnavailable:
            raise
        except Exception:
            if progress.reached != before:
                self._keep(key, progress)
            self._summaries.request(key)  # a summary needs neither index nor embeddings
            raise
        self._failures.pop(key, None)
        through = progress.lexical
        if self._model.state == "ready":
            through = min(through, progress.dense)
        progress.news = worked
        if through > progress.settled or progress.reached != before:
            # Even without new work: a crash may have come between watermark and settling.
            progress.settled = through
            self._keep(key, progress)
        if worked:
            # What other workers have added to the session is not known here.
            added = progress.added_tokens if self._store.embedded else None
            self._summaries.request(key, added_tokens=added)
            progress.added_tokens = 0
        return worked

    def _keep(self, key: SessionKey, progress: Progress) -> None:
        """To be committed with the next flush."""
        self._progress[key] = progress
        if self._unflushed_since is None:
            self._unflushed_since = time.monotonic()

    async def respell(self, turn: Turn) -> None:
        """The turn has lost its neighbours before it: their words leave its sparse vector."""
        if self._indexing is not None:
            await self._indexing.respell(turn)
