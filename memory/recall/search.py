"""Recall: from a question to what was said that bears on it, in this user's whole past.

`Recall.search` asks index and embedding model alone: it ranks. `hydrate` re-reads the best of it
from the store: owner, expiry and text come from there, so that a stale or hostile index can cost
recall, but never show another user's text, nor bring back what was erased or has expired. Parts
that fail or are late cost recall, not the answer; `degraded` names them.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any, NamedTuple

import structlog

from memory.breaker import Breaker
from memory.config import ConfigSource, MemoryConfig, TtlConfig
from memory.embeddings import DenseModel, sparse_query
from memory.errors import EmbeddingUnavailable, IndexUnavailable
from memory.ids import MessageId, SessionKey, TurnId, UserKey
from memory.indexes.base import VectorIndex
from memory.models import Message, Recalled, Recollection, Turn, turn_of
from memory.models import now as current
from memory.recall.fusion import Candidate, fuse
from memory.recall.query import Query, read
from memory.sessions.visibility import in_living_sessions
from memory.stores.base import Store
from memory.text import cut

# Of the deadline: what is left is for the search itself, by words if the vector is late.
EMBEDDING_SHARE = 0.7
# So many searches in a row fail, or are late, before the next ones go without.
BREAK_AFTER = 5
PROBE_SECONDS = 2.0
# How many tokens of candidates are read for each token of budget: some are refused, some do not
# fit where a shorter one does.
SLACK = 1.5
LINE_TOKENS = 4
MAX_TURNS = 400

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
            sparse=sparse_query(asked.question.text),
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


async def hydrate(
    ranked: Ranked,
    *,
    store: Store,
    user: UserKey,
    budget_tokens: int,
    ttl: TtlConfig,
    in_prompt: frozenset[MessageId] = frozenset(),
) -> Recalled:
    """The best candidates as recollections with the store's own text, without the messages that
    are `in_prompt` anyway. Raises StoreUnavailable."""
    outside = [c for c in ranked.candidates if c.payload["message"] not in in_prompt]
    chosen = _enough(outside, budget_tokens * SLACK)
    moment = current()
    ids = list({turn_of(c.payload["message"]): None for c in chosen})
    turns = await store.turns.get_many(ids, now=moment) if ids else {}
    if ttl.memory == "session":
        living = await in_living_sessions(
            turns.values(), sessions=store.sessions, moment=moment, default_ttl=ttl.session
        )
        turns = {turn.id: turn for turn in living}
    items, gone = [], 0
    for candidate in chosen:
        turn = turns.get(turn_of(candidate.payload["message"]))
        message = _message(turn, candidate, user)
        if turn is None or message is None:
            gone += 1
            continue
        items.append(
            Recollection(
                message=message,
                session_id=turn.session_id,
                passage=candidate.payload["passage"],
                score=candidate.score,
                dense_rank=candidate.dense_rank,
                lexical_rank=candidate.lexical_rank,
            )
        )
    in_window = len(in_prompt & {c.payload["message"] for c in ranked.candidates})
    return Recalled(tuple(items), gone, in_window, ranked.degraded)


def _message(turn: Turn | None, candidate: Candidate, user: UserKey) -> Message | None:
    if turn is None or turn.user_key != user:
        return None
    for message in turn.messages:
        if message.id == candidate.payload["message"]:
            fits = 0 <= candidate.payload["passage"] < len(cut(message.content))
            return message if message.content and fits else None
    return None


def _enough(candidates: Iterable[Candidate], tokens: float) -> list[Candidate]:
    """The best candidates whose texts fill `tokens`."""
    chosen: list[Candidate] = []
    turns: set[TurnId] = set()
    filled = 0.0
    for candidate in candidates:
        turns.add(turn_of(candidate.payload["message"]))
        if filled > tokens or len(turns) > MAX_TURNS:
            break
        chosen.append(candidate)
        filled += candidate.payload["tokens"] + LINE_TOKENS
    return chosen
