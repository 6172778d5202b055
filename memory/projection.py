"""Catching up: index and summary follow the log, session by session, off the request path.

Each session has watermarks; what lies behind them is done again after a crash, and doing it
again changes nothing (point ids are derived, the summary is replaced by compare-and-swap). A
watermark is committed only after the index was flushed.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from memory.config import MemoryConfig
from memory.embeddings import DenseModel
from memory.errors import EmbeddingUnavailable, IndexUnavailable, StoreUnavailable, StrataError
from memory.folding import CLAIM_LEASES, Folding
from memory.gates import SessionLocks
from memory.indexes.base import VectorIndex
from memory.lifetimes import expiry_of
from memory.models import Turn, now
from memory.points import Passage, make_points, passages_of, sparse_vector
from memory.sessions import Sessions
from memory.stores.base import PAGE, TurnStore
from memory.tokens import TokenCounter
from memory.window import turn_tokens

log = structlog.get_logger("strata.projection")

BATCH_TURNS = 100
NEIGHBOUR_TURNS = 3  # enough to find the previous passage and its own previous one
FLUSH_SECONDS = 5.0
FLUSH_POINTS = 500
SHARED_CONCURRENCY = 4
BACKOFF_SECONDS = (1.0, 2.0, 5.0, 15.0, 60.0)


@dataclass
class _Progress:
    """How far a session has come since its watermarks were last committed."""

    lexical: int
    dense: int
    settled: int = 0
    added_tokens: int = 0
    news: bool = True


class Projection:
    def __init__(
        self,
        *,
        store: TurnStore,
        index: VectorIndex | None,
        model: DenseModel,
        folding: Folding,
        sessions: Sessions,
        locks: SessionLocks,
        counter: TokenCounter,
        config: MemoryConfig,
    ) -> None:
        self._store = store
        self._index = index
        self._model = model
        self._folding = folding
        self._sessions = sessions
        self._counter = counter
        self._config = config
        self._locks = locks
        self._progress: dict[str, _Progress] = {}
        self._failures: dict[str, tuple[int, float]] = {}
        self._unflushed_points = 0
        self._unflushed_since: float | None = None
        self._woken = asyncio.Event()
        self._worker = secrets.token_hex(8)
        self._at_once = asyncio.Semaphore(
            config.projector.concurrency or (1 if store.exclusive else SHARED_CONCURRENCY)
        )

    def wake(self, session_key: str) -> None:
        """There is news in this session."""
        if progress := self._progress.get(session_key):
            progress.news = True
        self._failures.pop(session_key, None)
        self._woken.set()

    async def behind(self) -> int:
        """How many sessions (at most a page) have news that is not projected yet. What is done
        but waits for the next flush of the index does not count."""
        return sum(not self._is_caught_up(key) for key in await self._waiting())

    async def _waiting(self) -> list[str]:
        """A page of pending sessions besides those that only wait for the next flush."""
        return await self._store.pending(finished=True, limit=PAGE + len(self._progress))

    def _is_caught_up(self, key: str) -> bool:
        progress = self._progress.get(key)
        return progress is not None and not progress.news

    def model_ready(self, *, reset: bool) -> None:
        """Dense vectors can be made from now on; with `reset`, those of before are void."""
        for progress in self._progress.values():
            progress.dense = 0 if reset else progress.dense
            progress.settled = min(progress.settled, progress.dense)
        self._woken.set()

    def forget(self, session_key: str) -> None:
        """The session was erased: what is known of its progress is void."""
        self._progress.pop(session_key, None)

    async def run(self) -> None:
        """Catch up until cancelled. Failures are logged and tried again, later and later."""
        while True:
            self._woken.clear()
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
                interval = self._config.projector.interval
                try:
                    async with asyncio.timeout(interval):
                        await self._woken.wait()
                except TimeoutError:
                    pass

    async def settled(self) -> None:
        """Return when there is nothing left to do (a running turn is left to its end); raises
        what fails."""
        while True:
            worked = await self.run_once(raising=True)
            await self._folding.drain()
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
        waiting = await self._waiting()
        return any(await asyncio.gather(*(self._one(key, raising=raising) for key in waiting)))

    async def _one(self, key: str, *, raising: bool) -> bool:
        failures, not_before = self._failures.get(key, (0, 0.0))
        if not raising and time.monotonic() < not_before:
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
                    if not self._store.exclusive:
                        await self._store.release(key, worker=self._worker)
            except (IndexUnavailable, StoreUnavailable, EmbeddingUnavailable) as error:
                if raising:
                    raise
                delay = BACKOFF_SECONDS[min(failures, len(BACKOFF_SECONDS) - 1)]
                self._failures[key] = (failures + 1, time.monotonic() + delay)
                log.warning(
                    "projection.session_failed",
                    session=key,
                    error=type(error).__name__,
                    detail=str(error)[:200],
                    retry_in_s=delay,
                )
            await self._commit_when_due()
        return worked

    @property
    def _flushed_always(self) -> bool:
        """What is written to the index is durable at once, so that watermarks need not wait."""
        return not self._store.exclusive and not (self._index and self._index.in_process)

    async def _commit_when_due(self) -> None:
        since = self._unflushed_since
        if since is not None and (
            self._unflushed_points >= FLUSH_POINTS or time.monotonic() - since >= FLUSH_SECONDS
        ):
            await self.commit()

    async def commit(self) -> None:
        """Flush the index, then move the watermarks and settle the turns behind them."""
        progress = dict(self._progress)
        if not progress:
            return
        if self._index is not None:
            await self._index.flush()
        self._unflushed_points, self._unflushed_since = 0, None
        for key, reached in progress.items():
            await self._commit(key, reached)

    async def _commit(self, key: str, flushed: _Progress | None = None) -> None:
        """Move the watermarks of a session as far as it had come when the index was flushed."""
        async with self._locks.of(key):
            reached = self._progress.get(key)
            if reached is None or (flushed is not None and reached is not flushed):
                return  # nothing new, or erased meanwhile
            await self._store.change_session(
                key, {"lexical_through": reached.lexical, "dense_through": reached.dense}
            )
            await self._store.settle(key, through=reached.settled)
            del self._progress[key]

    async def _catch_up(self, key: str) -> bool:
        session = await self._sessions.repaired(key)
        if session is None or session.erasing:
            return False
        if not self._store.exclusive:
            until = expiry_of(now(), CLAIM_LEASES * self._config.session.lease)
            if not await self._store.claim(key, worker=self._worker, until=until, now=now()):
                return False  # another worker is at it
            session = await self._store.session(key)
            if session is None or session.erasing:
                return False
        progress = self._progress.get(key) or _Progress(
            session.lexical_through, session.dense_through
        )
        if self._index is None:
            through = await self._finished_through(key, progress)
            worked = through > progress.lexical
            progress.lexical = progress.dense = through
        else:
            reached = progress.lexical
            try:
                worked = await self._index_batch(self._index, key, progress)
                worked = await self._embed_batch(self._index, key, progress) or worked
            except (IndexUnavailable, EmbeddingUnavailable):
                if progress.lexical > reached:
                    self._keep(key, progress)
                self._folding.request(key)  # a summary needs neither
                raise
        through = progress.lexical
        if self._model.state == "ready":
            through = min(through, progress.dense)
        progress.news = worked
        if through > progress.settled:
            # Even without new work: a crash may have come between watermark and settling.
            progress.settled = through
            self._keep(key, progress)
        if worked:
            # What other workers have added to the session is not known here.
            added = progress.added_tokens if self._store.exclusive else None
            self._folding.request(key, added_tokens=added)
            progress.added_tokens = 0
        return worked

    def _keep(self, key: str, progress: _Progress) -> None:
        """To be committed with the next flush."""
        self._progress[key] = progress
        if self._unflushed_since is None:
            self._unflushed_since = time.monotonic()

    async def _finished_through(self, key: str, progress: _Progress) -> int:
        after = progress.lexical
        turns = _finished(await self._store.range(key, after=after, limit=BATCH_TURNS))
        progress.added_tokens += self._tokens(turns)
        return turns[-1].last_seq if turns else after

    def _tokens(self, turns: Sequence[Turn]) -> int:
        return sum(turn_tokens(turn, self._counter) for turn in turns)

    async def _index_batch(self, index: VectorIndex, key: str, progress: _Progress) -> bool:
        """The next turns get points: with dense vectors if those of all before have theirs."""
        found = await self._store.range(key, after=progress.lexical, limit=BATCH_TURNS)
        turns = _finished(found)
        if not turns:
            return False
        before = await self._store.history(
            key, now=now(), before=turns[0].seq, first=1, limit=NEIGHBOUR_TURNS
        )
        earlier, new = passages_of(reversed(before)), passages_of(turns)
        with_dense = self._model.state == "ready" and progress.dense == progress.lexical
        vectors: Sequence[list[float] | None] = [None] * len(new)
        failure = None
        if with_dense:
            try:
                vectors = await self._embed(new)
            except EmbeddingUnavailable as error:  # words can be found already
                with_dense, failure = False, error
        # Off the event loop: an import brings hundreds of passages at once.
        points = await asyncio.to_thread(make_points, earlier, new, vectors, self._counter)
        if points:
            await index.upsert(points)
            if earlier:  # the passage before has got its next neighbour
                vector = sparse_vector([*earlier, *new], len(earlier) - 1)
                await index.update_sparse([(earlier[-1].id, vector)])
        progress.lexical = turns[-1].last_seq
        progress.added_tokens += self._tokens(turns)
        if with_dense:
            progress.dense = progress.lexical
        self._unflushed_points += len(points)
        if failure is not None:
            raise failure
        return True

    async def _embed_batch(self, index: VectorIndex, key: str, progress: _Progress) -> bool:
        """Points that came while no model was loaded get their dense vectors."""
        if self._model.state != "ready" or progress.dense >= progress.lexical:
            return False
        found = await self._store.range(key, after=progress.dense, limit=BATCH_TURNS)
        turns = [turn for turn in _finished(found) if turn.last_seq <= progress.lexical]
        passages = passages_of(turns)
        vectors = await self._embed(passages)
        await index.update_dense(
            [(p.id, vector) for p, vector in zip(passages, vectors, strict=True)]
        )
        progress.dense = turns[-1].last_seq if turns else progress.lexical
        self._unflushed_points += len(passages)
        return True

    async def respell(self, turn: Turn) -> None:
        """The turn has lost its neighbours before it: their words leave its sparse vector."""
        passages = passages_of([turn])
        if self._index is not None and passages:
            following = await self._store.range(turn.session_key, after=turn.last_seq, limit=1)
            line = [*passages, *passages_of(following)]
            await self._index.update_sparse([(line[0].id, sparse_vector(line, 0))])

    async def _embed(self, passages: Sequence[Passage]) -> list[list[float]]:
        return await self._model.documents([p.dense_key for p in passages])


def _finished(turns: Sequence[Turn]) -> list[Turn]:
    """Turns up to the first one that still runs."""
    done = []
    for turn in turns:
        if turn.status == "running":
            break
        done.append(turn)
    return done
