"""Puts a memory together from its configuration: `async with open_memory(config) as strata:`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from memory.config import ConfigSource, MemoryConfig
from memory.embeddings.dense import DenseModel
from memory.errors import ConfigError, IndexUnavailable, StoreUnavailable, StrataError
from memory.history import History
from memory.indexes.base import VectorIndex
from memory.locks import SessionLocks
from memory.log.session_queue import SessionQueue
from memory.orchestrator import Memory
from memory.projections.projector import Projector
from memory.recall.search import Recall
from memory.retention.erasing import Eraser
from memory.retention.sweeper import Sweeper
from memory.sessions.documents import SessionDocuments
from memory.stores.base import Store
from memory.summary import Summarizer
from memory.summary.rolling import RollingSummary
from memory.tokens import TokenCounter, load_counter

log = structlog.get_logger("strata")


@dataclass(frozen=True, kw_only=True)
class Strata:
    """An opened memory. `memory` takes turns, `history` reads back, the rest works behind them."""

    memory: Memory
    history: History
    store: Store
    index: VectorIndex | None
    model: DenseModel
    counter: TokenCounter
    recall: Recall
    sessions: SessionDocuments
    projector: Projector
    summaries: RollingSummary
    sweeper: Sweeper
    config: MemoryConfig
    model_loaded: asyncio.Event

    async def settled(self) -> None:
        """Return when the embedding model is loaded (or has failed) and nothing is pending."""
        await self.model_loaded.wait()
        await self.projector.settled()


def file_path(url: str, scheme: str) -> Path | None:
    """The path in `scheme:///relative` or `scheme:////absolute` (SQLAlchemy's form), or None."""
    prefix = f"{scheme}:///"
    return Path(url[len(prefix) :]) if url.startswith(prefix) and url != prefix else None


def make_store(config: MemoryConfig) -> Store:
    url, timeout = config.store.url, config.store.timeout
    if path := file_path(url, "sqlite"):
        from memory.stores.sqlite.store import SqliteStore

        return SqliteStore(path, timeout_seconds=timeout)
    if url.startswith(("mongodb://", "mongodb+srv://")):
        from memory.stores.mongo.store import MongoStore

        return MongoStore(url, timeout_seconds=timeout, purge_grace_seconds=config.ttl.purge_grace)
    raise ConfigError(
        "store.url",
        f"{url.partition('://')[0]}://… is not supported here",
        "use sqlite:///folder/file.db (relative), sqlite:////folder/file.db (absolute) or "
        "mongodb://host/database",
    )


def make_index(config: MemoryConfig) -> VectorIndex | None:
    url = config.index.url
    if url == "none":
        return None
    if path := file_path(url, "edge"):
        from memory.indexes.edge import EdgeIndex

        return EdgeIndex(path)
    if url.startswith(("http://", "https://")):
        from memory.indexes.qdrant import QdrantIndex

        key = config.index.api_key
        return QdrantIndex(
            url,
            api_key=key.get_secret_value() if key else None,
            collection=config.index.collection,
            timeout_seconds=config.index.timeout,
            payload_text=config.index.payload_text,
        )
    raise ConfigError(
        "index.url",
        f"{url.partition('://')[0]}://… is not supported here",
        "use edge:///folder (relative), edge:////folder (absolute), http(s)://host:port of a "
        "Qdrant server, or none",
    )


def put_together(
    config: MemoryConfig,
    *,
    store: Store,
    index: VectorIndex | None,
    model: DenseModel,
    counter: TokenCounter,
    summarizer: Summarizer | None,
) -> Strata:
    """All parts over a store and an index that are not open yet."""
    source = ConfigSource(config)
    locks = SessionLocks()
    gates = SessionQueue(most_waiting=config.limits.waiting_per_session)
    recall = Recall(index=index, model=model, config=config.recall)
    summaries = RollingSummary(
        store=store, counter=counter, config=source, locks=locks, summarizer=summarizer
    )
    sessions = SessionDocuments(store=store, locks=locks, session_ttl=config.ttl.session)
    projector = Projector(
        store=store,
        index=index,
        model=model,
        summaries=summaries,
        sessions=sessions,
        locks=locks,
        counter=counter,
        config=config,
    )
    erasing = Eraser(store=store, index=index, projector=projector, locks=locks)
    return Strata(
        memory=Memory(
            store=store,
            recall=recall,
            counter=counter,
            config=config,
            gates=gates,
            wake=projector.wake,
        ),
        history=History(
            store=store, recall=recall, sessions=sessions, erasing=erasing, config=config
        ),
        store=store,
        index=index,
        model=model,
        counter=counter,
        recall=recall,
        sessions=sessions,
        projector=projector,
        summaries=summaries,
        sweeper=Sweeper(
            store=store,
            index=index,
            erasing=erasing,
            summaries=summaries,
            projector=projector,
            locks=locks,
            config=config,
        ),
        config=config,
        model_loaded=asyncio.Event(),
    )


@asynccontextmanager
async def open_memory(
    config: MemoryConfig,
    *,
    chat_model: str = "gpt-4.1-mini",
    summarizer: Summarizer | None = None,
    background: bool = True,
) -> AsyncIterator[Strata]:
    """Open stores, load what is needed, and keep projections and expiry going.

    `chat_model` decides how tokens are counted; without a `summarizer` summaries are extracts.
    With `background=False` nothing runs by itself (call `projection.settled()`).
    Raises ConfigError, StoreUnavailable.
    """
    store, index = make_store(config), make_index(config)
    counter = await asyncio.to_thread(load_counter, chat_model)
    model = DenseModel(config.embedding if index else config.embedding.model_copy(
        update={"provider": "none"}
    ))  # fmt: skip
    strata = put_together(
        config, store=store, index=index, model=model, counter=counter, summarizer=summarizer
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
        jobs: list[Coroutine[Any, Any, None]] = [_load_model(strata)]
        if background:
            jobs += [strata.projector.run(), strata.summaries.run(), strata.sweeper.run()]
        tasks = [asyncio.create_task(job) for job in jobs]
        yield strata
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task
        await strata.projector.drain()
        if index is not None:
            with suppress(IndexUnavailable):
                await index.close()
        model.close()
        await store.close()


async def _opened(index: VectorIndex) -> bool:
    try:
        return await index.open()
    except IndexUnavailable as error:
        raise IndexUnavailable(f"{error} (see index.url; index.url = none: no recall)") from error


async def _load_model(strata: Strata) -> None:
    """Load the embedding model, make room for its vectors, and queue what lacks them."""
    model, index = strata.model, strata.index
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
        strata.model_loaded.set()
        log.info("embedding.loaded", state=model.state, reason=model.reason or None)
