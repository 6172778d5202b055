"""Short ways to the values and parts that tests need. Fakes of what lies outside; no mocks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

import pytest
from langchain_core.embeddings import Embeddings
from waiting import eventually

from memory import MemoryConfig, Strata, TurnRequest, User, open_memory
from memory.config import ConfigSource, EmbeddingConfig
from memory.context.builder import ContextBuilder
from memory.embeddings import DenseModel, LoadedEmbeddings, SparseVector
from memory.errors import TurnEnded
from memory.indexes import make_index
from memory.indexes.base import Hits, Point, VectorIndex
from memory.log.changes import ChangeFeed
from memory.log.transitions import answered
from memory.log.turn_log import TurnLog
from memory.models import NEVER, Message, MessageStatus, Role, Turn, TurnStatus
from memory.models import session_key as key_of
from memory.models import turn_id as id_of
from memory.open_turn import OpenTurn
from memory.orchestrator import Memory
from memory.recall.search import Recall
from memory.receipt import ChatMessage
from memory.stores import make_store
from memory.stores.base import Store
from memory.strata import _load_embeddings, put_together
from memory.tokens import (
    MESSAGE_OVERHEAD_TOKENS,
    REPLY_OVERHEAD_TOKENS,
    TiktokenCounter,
    TokenCounter,
)

NOON = datetime(2024, 5, 8, 12, tzinfo=UTC)
USER = User("acme", "anna")
SESSION = "chat"


@cache
def counter() -> TiktokenCounter:
    return TiktokenCounter(estimated=False)


def count_messages(counter: TokenCounter, messages: Sequence[ChatMessage]) -> int:
    """Tokens of a whole request: contents, the overhead of each message, and of the reply."""
    return REPLY_OVERHEAD_TOKENS + sum(
        MESSAGE_OVERHEAD_TOKENS + counter.count(message.content) for message in messages
    )


def message(
    content: str,
    *,
    seq: int = 1,
    role: Role = "user",
    status: MessageStatus = "done",
    speaker: str | None = None,
    at: datetime = NOON,
    user: User = USER,
    session: str = SESSION,
) -> Message:
    turn_id = id_of(key_of(user.key, session), seq)
    return Message(
        id=f"{turn_id}.{'u' if role == 'user' else 'a'}",
        seq=seq,
        role=role,
        content=content,
        status=status,
        tokens=counter().count(content),
        created_at=at,
        recorded_at=at,
        speaker=speaker,
        turn_id=turn_id,
    )


def turn(
    question: str | None,
    answer: str | None = None,
    *,
    seq: int = 1,
    status: TurnStatus = "done",
    at: datetime = NOON,
    expires: datetime = NEVER,
    user: User = USER,
    session: str = SESSION,
    speaker: str | None = None,
    idempotency: str | None = None,
    token: str = "token",
) -> Turn:
    """A turn; with `answer=None` (or `question=None`) a recorded message of its own seq."""
    key = key_of(user.key, session)
    id_ = id_of(key, seq)
    shared: dict[str, Any] = {"at": at, "user": user, "session": session}
    asked = None
    if question is not None:
        asked = message(question, seq=seq, speaker=speaker, **shared)
    last_seq = seq + (question is not None and answer is not None)
    answered = None
    if answer is not None:
        answered = message(
            answer, seq=last_seq, role="assistant", status=status, speaker=None, **shared
        )
        answered = _with_id(answered, f"{id_}.a")
    return Turn(
        id=id_,
        user_key=user.key,
        session_key=key,
        session_id=session,
        seq=seq,
        last_seq=last_seq,
        status=status,
        fencing_token=token,
        user=asked,
        assistant=answered,
        idempotency=idempotency or f"t{id_}",
        created_at=at,
        recorded_at=at,
        expires_at=expires,
    )


def _with_id(answer: Message, id_: str) -> Message:
    import msgspec

    return msgspec.structs.replace(answer, id=id_)


def dialogue(
    pairs: Sequence[tuple[str, str]], *, start: int = 1, at: datetime = NOON, **more: Any
) -> list[Turn]:
    """Finished turns one minute apart."""
    return [
        turn(question, answer, seq=start + 2 * n, at=at + timedelta(minutes=n), **more)
        for n, (question, answer) in enumerate(pairs)
    ]


async def expired(moment: datetime) -> None:
    """Return once `moment` has passed."""
    await eventually(lambda: datetime.now(UTC) > moment + timedelta(milliseconds=2))


def config(folder: Path, **groups: dict[str, Any]) -> MemoryConfig:
    """Files under `folder`, no embedding model unless asked for, a generous recall deadline."""
    values: dict[str, dict[str, Any]] = {
        "store": {"url": f"sqlite:///{folder}/strata.db"},
        "index": {"url": f"edge:///{folder}/index"},
        "embedding": {"provider": "none"},
        "recall": {"deadline": "5s"},
        "session": {"wait": "5s"},
    }
    for name, group in groups.items():
        values[name] = {**values.get(name, {}), **group}
    return MemoryConfig.model_validate(values)


@asynccontextmanager
async def opened(
    folder: Path, *, summarizer: Any = None, **groups: dict[str, Any]
) -> AsyncIterator[Strata]:
    """A memory on real files in which nothing runs by itself."""
    async with open_memory(
        config(folder, **groups), summarizer=summarizer, background=False
    ) as strata:
        yield strata


@asynccontextmanager
async def assembled(
    folder: Path,
    *,
    model: DenseModel | None = None,
    around: Callable[[VectorIndex], VectorIndex] = lambda index: index,
    **groups: dict[str, Any],
) -> AsyncIterator[Strata]:
    """As `opened`, with an embedding model and an index of the test's own."""
    settings = config(folder, **groups)
    store, inner = make_store(settings), make_index(settings)
    assert inner is not None
    index = around(inner)
    model = model or DenseModel(settings.embedding)
    strata = put_together(
        settings, store=store, index=index, embeddings=model, counter=counter(), summarizer=None
    )
    await store.open()
    if await index.open():
        await store.work.mark_all_pending()
    loading = asyncio.create_task(_load_embeddings(strata))
    try:
        yield strata
    finally:
        loading.cancel()
        await asyncio.gather(loading, return_exceptions=True)
        await strata.projector.drain()
        await index.close()
        model.close()
        await store.close()


def another_memory(
    strata: Strata,
    *,
    store: Store | None = None,
    index: VectorIndex | None = None,
    embeddings: DenseModel | None = None,
    **groups: dict[str, Any],
) -> Memory:
    """The memory of another worker over the same stores, with some of its parts replaced."""
    source = ConfigSource(config(Path("unused"), **groups))
    recall = Recall(
        index=index or strata.index, model=embeddings or strata.embeddings, config=source
    )
    shared: dict[str, Any] = {
        "store": store or strata.store, "counter": strata.counter, "config": source,
    }  # fmt: skip
    log = TurnLog(changes=ChangeFeed(), **shared)
    return Memory(log=log, contexts=ContextBuilder(recall=recall, **shared))


async def late_write_is_lost(strata: Strata, writer: OpenTurn) -> bool:
    """Whether neither the writer nor its fencing token can write this turn any more."""
    with pytest.raises(TurnEnded):
        await writer.flush("late")
    late = answered(
        writer.turn, "late", status="running", message_status="running", counter=strata.counter
    )
    return not await strata.store.turns.save(late)


async def say(
    strata: Strata,
    question: str,
    answer: str = "Noted.",
    *,
    session: str = SESSION,
    user: User = USER,
    **more: Any,
) -> Turn:
    """One whole turn with a model that answers `answer`."""
    ask = TurnRequest(user=user, session_id=session, question=question, **more)
    accepted = await strata.memory.begin(ask)
    await accepted.context()
    return await accepted.finish(answer, status="done")


def embedded_bytes(folder: Path) -> bytes:
    """Every byte of every file under `folder`."""
    return b"\0".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


class LetterEmbeddings(Embeddings):
    """Eight numbers from the letters of a text: deterministic, without a model."""

    def embed_query(self, text: str) -> list[float]:
        vector = [1.0] * 8
        for character in text:
            vector[ord(character) % 8] += 1.0
        return vector

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [self.embed_query(text) for text in texts]


class LateModel(DenseModel):
    """A model that is loaded when `release` is set."""

    def __init__(self, embeddings: Embeddings | None = None, identity: str = "letters") -> None:
        super().__init__(EmbeddingConfig())
        self.release = asyncio.Event()
        self._coming = LoadedEmbeddings(embeddings or LetterEmbeddings(), 8, identity)

    async def load(self) -> None:
        await self.release.wait()
        self._loaded = self._coming
        self.state = "ready"


class StoreAround:
    """Passes everything on to a real store; subclasses look at, or break, calls of its facets."""

    def __init__(self, inner: Store, *, embedded: bool | None = None) -> None:
        self.inner = inner
        self.embedded = inner.embedded if embedded is None else embedded
        self.turns, self.sessions, self.segments, self.work, self.signals = (
            cast(Any, _FacetAround(self, name))
            for name in ("turns", "sessions", "segments", "work", "signals")
        )

    async def call(
        self, name: str, method: Callable[..., Awaitable[Any]], *given: Any, **named: Any
    ) -> Any:
        """One call of a facet's method, as `turns.append`."""
        return await method(*given, **named)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class _FacetAround:
    def __init__(self, store: StoreAround, facet: str) -> None:
        self._store, self._facet = store, facet

    def __getattr__(self, name: str) -> Any:
        method = getattr(getattr(self._store.inner, self._facet), name)
        return partial(self._store.call, f"{self._facet}.{name}", method)


class IndexAround:
    """Passes everything on to a real index; subclasses break one thing."""

    embedded = True

    def __init__(self, inner: VectorIndex) -> None:
        self.inner = inner

    @property
    def keeps_text(self) -> bool:
        return self.inner.keeps_text

    async def open(self) -> bool:
        return await self.inner.open()

    async def use_model(self, identity: str, dimensions: int) -> bool:
        return await self.inner.use_model(identity, dimensions)

    async def upsert(self, points: Sequence[Point]) -> None:
        await self.inner.upsert(points)

    async def update_sparse(self, vectors: Sequence[tuple[str, SparseVector]]) -> None:
        await self.inner.update_sparse(vectors)

    async def update_dense(self, vectors: Sequence[tuple[str, list[float]]]) -> None:
        await self.inner.update_dense(vectors)

    async def search(self, **query: Any) -> Hits:
        return await self.inner.search(**query)

    async def speakers(self, user: str) -> frozenset[str]:
        return await self.inner.speakers(user)

    async def delete_session(self, *, user: str, session: str) -> None:
        await self.inner.delete_session(user=user, session=session)

    async def delete_messages(self, *, user: str, messages: Sequence[str]) -> None:
        await self.inner.delete_messages(user=user, messages=messages)

    async def delete_expired(self, before: datetime) -> None:
        await self.inner.delete_expired(before)

    async def count(self, user: str | None = None) -> int:
        return await self.inner.count(user)

    async def flush(self) -> None:
        await self.inner.flush()

    async def close(self) -> None:
        await self.inner.close()
