"""A session's turns as points of the index: new ones, those that ran again, late dense vectors.

Where a batch fails again and again, each message is tried alone: one that fails while anything
else succeeds at the same moment is the fault; an index or a model that is away is none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from memory.embeddings.dense import DenseModel
from memory.errors import EmbeddingUnavailable, IndexUnavailable, StoreUnavailable
from memory.indexes.base import VectorIndex
from memory.models import Message, Turn, now
from memory.projections.points import Passage, make_points, passages_of, sparse_vector
from memory.stores.base import Store
from memory.tokens import TokenCounter

NEIGHBOUR_TURNS = 3  # enough to find the previous passage and its own previous one
# So often a message must fail alone, each time with a control that succeeds right after it.
ALONE_TRIES = 5
CONTROL = "control"
_REASONS: dict[type[Exception], str] = {
    EmbeddingUnavailable: "embedding",
    IndexUnavailable: "index",
}


class Indexing:
    """Every method raises IndexUnavailable, StoreUnavailable; those that embed, too,
    EmbeddingUnavailable. Each can be repeated. They return the number of points written."""

    def __init__(
        self, *, store: Store, index: VectorIndex, model: DenseModel, counter: TokenCounter
    ) -> None:
        self._store = store
        self._index = index
        self._model = model
        self._counter = counter

    async def add(self, turns: Sequence[Turn], *, dense: bool) -> int:
        """The next turns of a session. Raises EmbeddingUnavailable once they have points without
        dense vectors."""
        return await self._write(await self._before(turns[0]), passages_of(turns), (), dense)

    async def add_message(self, turn: Turn, message: Message) -> int:
        """One message of the next turn, without a dense vector."""
        line = passages_of([turn])
        earlier = [*await self._before(turn), *(p for p in line if p.message.seq < message.seq)]
        new = [p for p in line if p.message.id == message.id]
        return await self._write(earlier, new, (), dense=False)

    async def replace(self, turn: Turn, *, dense: bool, through: int) -> int:
        """A turn that ran again, among turns that have points up to message `through`. Raises as
        `add`."""
        ids = [message.id for message in turn.messages]
        await self._index.delete_messages(user=turn.user_key, messages=ids)
        later = await self._store.turns.range(turn.session_key, after=turn.last_seq, limit=2)
        following = passages_of(t for t in later if t.last_seq <= through)[:2]
        return await self._write(
            await self._before(turn), passages_of([turn]), following, dense, always=True
        )

    async def add_dense(self, turns: Sequence[Turn]) -> int:
        """Turns that have points get dense vectors."""
        passages = passages_of(turns)
        vectors = await self._embed(passages)
        await self._index.update_dense(
            [(p.id, vector) for p, vector in zip(passages, vectors, strict=True)]
        )
        return len(passages)

    async def add_dense_message(self, turn: Turn, message: Message) -> int:
        mine = message if message.role == "user" else None
        theirs = message if message.role == "assistant" else None
        return await self.add_dense([msgspec.structs.replace(turn, user=mine, assistant=theirs)])

    async def respell(self, turn: Turn) -> None:
        """The turn has lost its neighbours before it: their words leave its sparse vector."""
        passages = passages_of([turn])
        if passages:
            following = await self._store.turns.range(
                turn.session_key, after=turn.last_seq, limit=1
            )
            line = [*passages, *passages_of(following)]
            await self._index.update_sparse([(line[0].id, sparse_vector(line, 0))])

    async def faults(
        self, turn: Turn, work: Callable[[Turn, Message], Awaitable[int]], *, dense: bool
    ) -> dict[str, str]:
        """The messages of this turn with which `work` alone fails, and why. Raises what keeps
        anything else from succeeding, too."""
        await self._control(turn, dense)
        found = {}
        for message in turn.messages:
            failure: Exception | None = None
            for _ in range(ALONE_TRIES):
                try:
                    await work(turn, message)
                except StoreUnavailable:
                    raise
                except Exception as error:  # whatever a text can do to what reads it
                    failure = error
                else:
                    failure = None
                    break
                await self._control(turn, dense)
            if failure is not None:
                found[message.id] = _REASONS.get(type(failure), type(failure).__name__)
        return found

    async def _control(self, turn: Turn, dense: bool) -> None:
        """A harmless write, and a short text for the model."""
        await self._index.delete_messages(user=turn.user_key, messages=[CONTROL])
        if dense:
            await self._model.documents([CONTROL])

    async def _before(self, turn: Turn) -> list[Passage]:
        found = await self._store.turns.history(
            turn.session_key, now=now(), before=turn.seq, first=1, limit=NEIGHBOUR_TURNS
        )
        return passages_of(reversed(found))

    async def _write(
        self, earlier: Sequence[Passage], new: Sequence[Passage], following: Sequence[Passage],
        dense: bool, *, always: bool = False,
    ) -> int:  # fmt: skip
        vectors: Sequence[list[float] | None] = [None] * len(new)
        failure = None
        if dense:
            try:
                vectors = await self._embed(new)
            except EmbeddingUnavailable as error:  # words can be found already
                failure = error
        # Off the event loop: an import brings hundreds of passages at once.
        points = await asyncio.to_thread(
            make_points, earlier, new, vectors, self._counter, following=following
        )
        if points:
            await self._index.upsert(points)
        if points or always:
            await self._respell_neighbours(earlier, new, following)
        if failure is not None:
            raise failure
        return len(points)

    async def _respell_neighbours(
        self, earlier: Sequence[Passage], new: Sequence[Passage], following: Sequence[Passage]
    ) -> None:
        """The passage before has got its next neighbour, the one after its previous one."""
        line = [*earlier, *new, *following]
        places = [len(earlier) - 1] if earlier else []
        places += [len(earlier) + len(new)] if following else []
        if places:
            await self._index.update_sparse([(line[n].id, sparse_vector(line, n)) for n in places])

    async def _embed(self, passages: Sequence[Passage]) -> list[list[float]]:
        return await self._model.documents([p.dense_key for p in passages])
