"""Puts a memory together from its configuration: `async with open_memory(config) as strata:`."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypedDict, Unpack

import structlog

from memory.config import BudgetConfig, ConfigSource, MemoryConfig
from memory.context.builder import ContextBuilder
from memory.embeddings import DenseModel
from memory.errors import IndexUnavailable, StoreUnavailable, StrataError
from memory.history import History
from memory.indexes import make_index
from memory.indexes.base import VectorIndex
from memory.locks import SessionLocks
from memory.log.changes import ChangeFeed
from memory.log.recording import Recorded
from memory.log.transitions import Incoming
from memory.log.turn_log import TurnLog
from memory.models import RecallScope, User
from memory.open_turn import OpenTurn
from memory.orchestrator import Memory
from memory.projections.projector import Projector
from memory.recall.search import Recall
from memory.receipt import Context
from memory.retention.erasing import Eraser
from memory.retention.sweeper import Sweeper
from memory.sessions.documents import SessionDocuments
from memory.stores import make_store
from memory.stores.base import Store
from memory.summary import Summarizer
from memory.summary.rolling import RollingSummary
from memory.tokens import TokenCounter, load_counter
from memory.turn_request import TurnRequest

log = structlog.get_logger("strata")


class TurnOptions(TypedDict, total=False):
    """As in TurnRequest."""

    recall: RecallScope
    system: str
    budget: BudgetConfig | None
    metadata: dict[str, Any] | None
    recall_deadline: float | None
    idempotency_key: str | None
    body_hash: str


@dataclass(frozen=True, kw_only=True)
class Strata:
    """An opened memory.

    `turn` and `context` are what an application needs; `history` reads back. The other attributes
    are the parts behind them: `memory` joins log and context, `projector` and `summaries` catch up
    in the background, `sweeper` deletes what has expired.
    """

    memory: Memory
    history: History
    store: Store
    index: VectorIndex | None
    embeddings: DenseModel
    counter: TokenCounter
    recall: Recall
    sessions: SessionDocuments
    projector: Projector
    summaries: RollingSummary
    sweeper: Sweeper
    config: ConfigSource[MemoryConfig]
    embeddings_loaded: asyncio.Event

    @asynccontextmanager
    async def turn(
        self, user: User, session_id: str, question: str, **options: Unpack[TurnOptions]
    ) -> AsyncIterator[OpenTurn]:
        """One question and its answer: durable when the block begins, and the session's only turn
        until the block ends. Left by an exception, or without `finish`, the turn has failed.

            async with strata.turn(User("acme", "anna"), "s1", "I moved to Lyon.") as turn:
                context = await turn.context()
                await turn.finish(answer)

        Raises as `Memory.begin`.
        """
        if options.get("idempotency_key") is not None:
            same = json.dumps([session_id, question, options.get("system", "")])
            options.setdefault("body_hash", hashlib.sha256(same.encode()).hexdigest())
        async with await self.memory.begin(
            TurnRequest(user=user, session_id=session_id, question=question, **options)
        ) as turn:
            yield turn

    async def context(
        self,
        user: User,
        session_id: str,
        query: str,
        *,
        budget: int | BudgetConfig | None = None,
        system: str = "",
        recall: RecallScope = "user",
    ) -> Context:
        """What a turn would send to the model now; nothing is stored.

        `budget` in tokens caps the whole context; a BudgetConfig says it for each layer. Raises
        BudgetExceeded when system text and query alone do not fit, StoreUnavailable.
        """
        if isinstance(budget, int):
            budget = self.config.current.budget.model_copy(update={"context_tokens": budget})
        return await self.memory.preview(
            TurnRequest(
                user=user,
                session_id=session_id,
                question=query,
                budget=budget,
                system=system,
                recall=recall,
            )
        )

    async def record(self, user: User, session_id: str, messages: Sequence[Incoming]) -> Recorded:
        """Store messages without calling a model, in order; those whose `id` is known are skipped.

        Raises InvalidInput, SessionBusy, TooManyWaiting, Stopping, StoreUnavailable.
        """
        return await self.memory.record(user, session_id, messages)

    async def caught_up(self) -> None:
        """Return when the embedding model is loaded (or has failed) and no ended turn is pending.

        Raises StoreUnavailable, IndexUnavailable.
        """
        await self.embeddings_loaded.wait()
        await self.projector.caught_up()


def put_together(
    config: MemoryConfig,
    *,
    store: Store,
    index: VectorIndex | None,
    embeddings: DenseModel,
    counter: TokenCounter,
    summarizer: Summarizer | None,
) -> Strata:
    """All parts over a store and an index that are not open yet."""
    source = ConfigSource(config)
    locks, changes = SessionLocks(), ChangeFeed()
    recall = Recall(index=index, model=embeddings, config=source)
    log = TurnLog(store=store, counter=counter, config=source, changes=changes)
    contexts = ContextBuilder(store=store, recall=recall, counter=counter, config=source)
    sessions = SessionDocuments(store=store, locks=locks, config=source)
    summaries = RollingSummary(
        store=store, counter=counter, config=source, locks=locks, summarizer=summarizer
    )
    projector = Projector(
        store=store,
        index=index,
        model=embeddings,
        summaries=summaries,
        sessions=sessions,
        locks=locks,
        counter=counter,
        changes=changes,
        config=source,
    )
    erasing = Eraser(store=store, index=index, projector=projector, locks=locks)
    return Strata(
        memory=Memory(log=log, contexts=contexts),
        history=History(
            store=store, recall=recall, sessions=sessions, erasing=erasing, config=source
        ),
        store=store,
        index=index,
        embeddings=embeddings,
        counter=counter,
        recall=recall,
        sessions=sessions,
        projector=projector,
        summaries=summaries,
        sweeper=Sweeper(
            store=store,
            index=index,
            eraser=erasing,
            summaries=summaries,
            projector=projector,
            locks=locks,
            config=source,
        ),
        config=source,
        embeddings_loaded=asyncio.Event(),
    )


@asynccontextmanager
async def open_memory(
    config: MemoryConfig,
    *,
    chat_model: str = "gpt-4.1-mini",
    summarizer: Summarizer | None = None,
    background: bool = True,
) -> AsyncIterator[Strata]:
    """Open the stores, load what is needed, and keep projections and expiry going.

    `chat_model` names the model whose tokens are counted; without a `summarizer` summaries are
    extracts. With `background=False` nothing runs by itself (`caught_up` does the work then).
    Raises ConfigError, StoreUnavailable, IndexUnavailable.
    """
    store, index = make_store(config), make_index(config)
    counter = await asyncio.to_thread(load_counter, chat_model)
    without_index = config.embedding.model_copy(update={"provider": "none"})
    embeddings = DenseModel(config.embedding if index else without_index)
    strata = put_together(
        config,
        store=store,
        index=index,
        embeddings=embeddings,
        counter=counter,
        summarizer=summarizer,
    )
    try:
        await store.open()
    except StoreUnavailable as error:
        raise StoreUnavailable(f"{error} (see store.url)") from error
    tasks: list[asyncio.Task[None]] = []
    try:
        interrupted = await store.turns.interrupt_running()
        if interrupted:
            log.warning("turns.interrupted", count=interrupted)
        if index is not None and await _opened(index):
            await store.work.mark_all_pending()
        jobs: list[Coroutine[Any, Any, None]] = [_load_embeddings(strata)]
        if background:
            jobs += [strata.projector.run(), strata.summaries.run(), strata.sweeper.run()]
        tasks = [asyncio.create_task(job) for job in jobs]
        yield strata
    finally:
        await strata.memory.drain()
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task
        await strata.projector.drain()
        if index is not None:
            with suppress(IndexUnavailable):
                await index.close()
        embeddings.close()
        await store.close()


async def _opened(index: VectorIndex) -> bool:
    try:
        return await index.open()
    except IndexUnavailable as error:
        raise IndexUnavailable(f"{error} (see index.url; index.url = none: no recall)") from error


async def _load_embeddings(strata: Strata) -> None:
    """Load the embedding model, make room for its vectors, and find the turns that lack them."""
    model, index = strata.embeddings, strata.index
    try:
        await model.load()
        if model.state == "ready" and index is not None:
            fresh = await index.use_model(model.identity, model.dimensions)
            # First, so that no watermark of the old model is committed over the reset.
            strata.projector.model_ready(reset=fresh)
            await strata.store.work.mark_dense_pending(reset=fresh)
            strata.projector.model_ready(reset=fresh)
    except StrataError as error:
        model.state, model.reason = "failed", str(error)
    finally:
        strata.embeddings_loaded.set()
        log.info("embedding.loaded", state=model.state, reason=model.reason or None)
