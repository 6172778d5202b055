"""The index as a projection of the log: the turns of a session as points, batch by batch.

Three kinds of work: turns that have no points yet, points that lack a dense vector, and turns that
ran again. What was written counts only once the index is durable: until then it stands in a
`Progress`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from memory.embeddings import DenseModel
from memory.errors import EmbeddingUnavailable, StoreUnavailable
from memory.ids import SessionKey
from memory.indexes.base import VectorIndex
from memory.models import Message, Turn, now
from memory.projections.points import Passage, make_points, passages_of, sparse_vector
from memory.projections.poison import Poison, Probe
from memory.projections.progress import Progress
from memory.stores.base import TurnsStore, WorkStore
from memory.tokens import TokenCounter

BATCH_TURNS = 100
NEIGHBOUR_TURNS = 3  # enough to find the previous passage and its own previous one


class NoIndex:
    """Stands where there is no index: turns are counted and passed over."""

    def __init__(self, *, turns: TurnsStore, work: WorkStore, counter: TokenCounter) -> None:
        self._turns = turns
        self._work = work
        self._counter = counter

    async def advance(self, key: SessionKey, progress: Progress, *, alone: bool) -> bool:
        turns = await _next_turns(self._turns, key, after=progress.lexical)
        if turns:
            progress.add(turns, self._counter, dense=True)
        reruns = await _next_reruns(self._work, key, progress)
        progress.see_reruns(reruns)
        return bool(turns or reruns)

    async def respell(self, turn: Turn) -> None:
        pass


class IndexProjection:
    """Every method may be repeated, and raises IndexUnavailable, StoreUnavailable,
    EmbeddingUnavailable, and whatever a text can make index or model raise."""

    def __init__(
        self,
        *,
        turns: TurnsStore,
        work: WorkStore,
        index: VectorIndex,
        model: DenseModel,
        counter: TokenCounter,
    ) -> None:
        self._turns = turns
        self._work = work
        self._index = index
        self._model = model
        self._counter = counter
        self._poison = Poison(work=work, index=index, model=model)

    async def advance(self, key: SessionKey, progress: Progress, *, alone: bool) -> bool:
        """One batch of each kind of work; True when anything was done. With `alone` turn by turn,
        and messages that fail alone are poisoned. What was done before a failure is in
        `progress`."""
        work = (self._add_turns, self._add_dense_vectors, self._replace_reruns)
        return any([await kind(key, progress, alone) for kind in work])

    async def _add_turns(self, key: SessionKey, progress: Progress, alone: bool) -> bool:
        """The next turns get points: with dense vectors if all turns before have theirs."""
        turns = await _next_turns(self._turns, key, after=progress.lexical)
        if not turns:
            return False
        dense = not alone and self._model.state == "ready" and progress.dense == progress.lexical

        async def add(batch: Sequence[Turn]) -> int:
            before = await self._passages_before(batch[0])
            return await self._write(before, passages_of(batch), dense=dense)

        try:
            await self._in_batches(
                turns,
                add,
                lambda batch: progress.add(batch, self._counter, dense=dense),
                progress,
                alone=alone,
                probes=[Probe(self._add_message, embeds=False)],
            )
        except EmbeddingUnavailable:  # their points are there: the words can be found already
            progress.add(turns, self._counter, dense=False)
            raise
        return True

    async def _add_dense_vectors(self, key: SessionKey, progress: Progress, alone: bool) -> bool:
        """Points that came while no model was loaded get their dense vectors."""
        if self._model.state != "ready" or progress.dense >= progress.lexical:
            return False
        found = await _next_turns(self._turns, key, after=progress.dense)
        turns = [turn for turn in found if turn.last_seq <= progress.lexical]

        def done(batch: Sequence[Turn]) -> None:
            progress.dense = batch[-1].last_seq

        await self._in_batches(
            turns,
            self._add_dense,
            done,
            progress,
            alone=alone,
            probes=[Probe(self._add_dense_message, embeds=True)],
        )
        if not turns:
            progress.dense = progress.lexical
        return True

    async def _replace_reruns(self, key: SessionKey, progress: Progress, alone: bool) -> bool:
        """Points of turns that ran again are replaced by those of the answer they have now."""
        turns = await _next_reruns(self._work, key, progress)
        for turn in turns:
            dense = self._model.state == "ready" and progress.dense >= turn.last_seq
            probes = [Probe(self._add_message, embeds=False)]
            if dense:
                probes.append(Probe(self._add_dense_message, embeds=True))

            async def replace(batch: Sequence[Turn], dense: bool = dense) -> int:
                return await self._replace(batch[0], dense=dense, through=progress.lexical)

            await self._in_batches(
                [turn], replace, progress.see_reruns, progress, alone=alone, probes=probes
            )
        return bool(turns)

    async def _in_batches(
        self,
        turns: Sequence[Turn],
        write: Callable[[Sequence[Turn]], Awaitable[int]],
        done: Callable[[Sequence[Turn]], None],
        progress: Progress,
        *,
        alone: bool,
        probes: Sequence[Probe],
    ) -> None:
        """`write` these turns and note that they are `done`: at once, or turn by turn when `alone`.
        Then a turn that fails has its poisoned messages found by `probes`, and is done too."""
        size = 1 if alone else BATCH_TURNS
        for start in range(0, len(turns), size):
            batch = turns[start : start + size]
            try:
                progress.points += await write(batch)
            except StoreUnavailable:
                raise
            except Exception:
                if not alone:
                    raise
                await self._poison.find(batch[0], probes)
            done(batch)

    async def _add_message(self, turn: Turn, message: Message) -> int:
        """The points of one message of the next turn, without dense vectors."""
        line = passages_of([turn])
        earlier = [p for p in line if p.message.seq < message.seq]
        new = [p for p in line if p.message.id == message.id]
        return await self._write([*await self._passages_before(turn), *earlier], new, dense=False)

    async def _add_dense(self, turns: Sequence[Turn]) -> int:
        passages = passages_of(turns)
        vectors = await self._embed(passages)
        await self._index.update_dense(
            [(p.id, vector) for p, vector in zip(passages, vectors, strict=True)]
        )
        return len(passages)

    async def _add_dense_message(self, turn: Turn, message: Message) -> int:
        mine = message if message.role == "user" else None
        theirs = message if message.role == "assistant" else None
        return await self._add_dense([msgspec.structs.replace(turn, user=mine, assistant=theirs)])

    async def _replace(self, turn: Turn, *, dense: bool, through: int) -> int:
        """A turn that ran again, among turns that have points up to message `through`."""
        ids = [message.id for message in turn.messages]
        await self._index.delete_messages(user=turn.user_key, messages=ids)
        later = await self._turns.range(turn.session_key, after=turn.last_seq, limit=2)
        following = passages_of(t for t in later if t.last_seq <= through)[:2]
        before, new = await self._passages_before(turn), passages_of([turn])
        return await self._write(before, new, following, dense=dense)

    async def respell(self, turn: Turn) -> None:
        """The turn has lost its neighbours before it: their words leave its sparse vector."""
        passages = passages_of([turn])
        if passages:
            following = await self._turns.range(turn.session_key, after=turn.last_seq, limit=1)
            line = [*passages, *passages_of(following)]
            await self._index.update_sparse([(line[0].id, sparse_vector(line, 0))])

    async def _passages_before(self, turn: Turn) -> list[Passage]:
        found = await self._turns.history(
            turn.session_key, now=now(), before=turn.seq, first=1, limit=NEIGHBOUR_TURNS
        )
        return passages_of(reversed(found))

    async def _write(
        self,
        earlier: Sequence[Passage],
        new: Sequence[Passage],
        following: Sequence[Passage] = (),
        *,
        dense: bool,
    ) -> int:
        """The number of points written. Raises EmbeddingUnavailable when they are there without
        the dense vectors they were to have."""
        vectors: Sequence[list[float] | None] = [None] * len(new)
        failure = None
        if dense:
            try:
                vectors = await self._embed(new)
            except EmbeddingUnavailable as error:
                failure = error
        # Off the event loop: an import brings hundreds of passages at once.
        points = await asyncio.to_thread(
            make_points,
            earlier,
            new,
            vectors,
            self._counter,
            following=following,
            with_text=self._index.keeps_text,
        )
        if points:
            await self._index.upsert(points)
        line = [*earlier, *new, *following]
        # The passage before has a new next neighbour, the one after a new previous one.
        places = [len(earlier) - 1] if earlier else []
        places += [len(earlier) + len(new)] if following else []
        if places:
            await self._index.update_sparse([(line[n].id, sparse_vector(line, n)) for n in places])
        if failure is not None:
            raise failure
        return len(points)

    async def _embed(self, passages: Sequence[Passage]) -> list[list[float]]:
        return await self._model.documents([p.dense_key for p in passages])


async def _next_turns(store: TurnsStore, key: SessionKey, *, after: int) -> list[Turn]:
    """A batch of turns, up to the first one that still runs."""
    done = []
    for turn in await store.range(key, after=after, limit=BATCH_TURNS):
        if turn.status == "running":
            break
        done.append(turn)
    return done


async def _next_reruns(work: WorkStore, key: SessionKey, progress: Progress) -> list[Turn]:
    """Turns up to the watermark that have run again since they got their points."""
    found = await work.pending_reruns(
        key, through=progress.lexical, limit=BATCH_TURNS + len(progress.reruns)
    )
    return [t for t in found if progress.reruns.get(t.id) != (t.attempt, t.last_seq)]
