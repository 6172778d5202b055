"""Recall: a question becomes ranked candidates from this user's whole past.

Talks to the index and to the embedding model, never to the store: whether a candidate still
lives, whose it is and what it says is for the orchestrator to read again. Failing or late parts
cost recall, not the answer; `degraded` says which.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any, NamedTuple

import structlog

from memory.breaker import Breaker
from memory.config import ConfigSource, MemoryConfig
from memory.embeddings import sparse
from memory.embeddings.dense import DenseModel
from memory.errors import EmbeddingUnavailable, IndexUnavailable
from memory.ids import SessionKey, UserKey
from memory.indexes.base import VectorIndex
from memory.recall.fusion import Candidate, fuse
from memory.recall.query import Query, read

# Of the deadline: what is left is for the search itself, by words if the vector is late.
EMBEDDING_SHARE = 0.7
# So many searches in a row fail, or are late, before the next ones go without.
BREAK_AFTER = 5
PROBE_SECONDS = 2.0

log = structlog.get_logger("strata.recall")


class Ranked(NamedTuple):
    """Best first. `degraded` names "recall" (nothing was searched) or "embedding" (by words)."""

    candidates: list[Candidate]
    degraded: tuple[str, ...]


class _Asked(NamedTuple):
    question: Query
    vector: list[float] | None
    degraded: tuple[str, ...]


class Recall:
    def __init__(
        self, *, index: VectorIndex | None, model: DenseModel, config: ConfigSource[MemoryConfig]
    ) -> None:
        self._index = index
        self._model = model
        self._config = config
        self.breaker = Breaker(failures=BREAK_AFTER, probe_seconds=PROBE_SECONDS)
        self.timed: Callable[[float], None] = lambda seconds: None  # told what a search took

    async def search(
        self,
        question: str,
        *,
        user: UserKey,
        now: datetime,
        session: SessionKey | None = None,
        deadline: float | None = None,
        after: asyncio.Future[Any] | None = None,
    ) -> Ranked:
        """Search within `deadline` seconds (the configured one by default, inf = none). A search
        in this process begins `after` the store was read: it would keep the event loop from
        what comes next. An index that keeps failing is not waited for, but for a probe now and
        then."""
        if self._index is None or not self.breaker.allows():
            return Ranked([], ("recall",))
        seconds = self._config.current.recall.deadline if deadline is None else deadline
        began, outside = time.perf_counter(), 0.0
        try:
            async with asyncio.timeout(None if math.isinf(seconds) else seconds) as limit:
                index = self._index
                asked = await self._read(index, question, user, seconds * EMBEDDING_SHARE)
                if index.embedded and after is not None:
                    outside = await _outside(limit, after)
                found = await self._search(index, asked, user, now, session)
        except (IndexUnavailable, TimeoutError) as error:
            log.warning("recall.failed", error=type(error).__name__, detail=str(error)[:200])
        except Exception as error:  # an index may return anything: that costs recall, no answer
            log.error("recall.crashed", error=type(error).__name__)
        else:
            if self.breaker.succeeded():
                log.info("recall.resumed")
            return found
        finally:
            self.timed(time.perf_counter() - began - outside)
        if self.breaker.failed():
            log.error("recall.suspended", probe_every_s=PROBE_SECONDS)
        return Ranked([], ("recall",))

    async def _read(
        self, index: VectorIndex, text: str, user: UserKey, embedding_seconds: float
    ) -> _Asked:
        question = read(text, user=user, speakers=await index.speakers(user))
        try:
            async with asyncio.timeout(
                None if math.isinf(embedding_seconds) else embedding_seconds
            ):
                return _Asked(question, await self._model.query(question.dense), ())
        except (EmbeddingUnavailable, TimeoutError):
            # What words find is better than nothing.
            return _Asked(question, None, ("embedding",))

    async def _search(
        self,
        index: VectorIndex,
        asked: _Asked,
        user: UserKey,
        now: datetime,
        session: SessionKey | None,
    ) -> Ranked:
        hits = await index.search(
            user=user,
            session=session,
            sparse=sparse.embed_query(asked.question.text),
            dense=asked.vector,
            limit=self._config.current.recall.candidates,
            now=now,
        )
        english = self._model.english_only
        ranked = fuse(hits, asked.question, self._config.current.recall, english_model=english)
        return Ranked(ranked, asked.degraded)


async def _outside(limit: asyncio.Timeout, waiting: asyncio.Future[Any]) -> float:
    """Wait for what is not recall's own time; the seconds that it took."""
    ends, began = limit.when(), asyncio.get_running_loop().time()
    limit.reschedule(None)
    await waiting
    took = asyncio.get_running_loop().time() - began
    if ends is not None:
        limit.reschedule(ends + took)
    return took
