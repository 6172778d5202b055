"""One batch of each kind that takes a session's projection further.

What was written counts only once the index is durable: until then it stands in a `Progress`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import structlog

from memory.embeddings.dense import DenseModel
from memory.errors import EmbeddingUnavailable, StoreUnavailable
from memory.ids import SessionKey
from memory.models import Turn, now
from memory.projections.index import Indexing
from memory.stores.base import Store
from memory.tokens import TokenCounter
from memory.window import turn_tokens

log = structlog.get_logger("strata.projector")

BATCH_TURNS = 100


@dataclass
class Progress:
    """How far a session has come since its watermarks were last committed. `reruns` are the
    turns that ran again and have their points: the attempt and the last seq of each."""

    lexical: int
    dense: int
    settled: int = 0
    added_tokens: int = 0
    points: int = 0
    news: bool = True
    reruns: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def reached(self) -> tuple[int, int, int]:
        return self.lexical, self.dense, len(self.reruns)

    def see(self, turns: Sequence[Turn]) -> None:
        """These turns have their points."""
        self.reruns |= {t.id: (t.attempt, t.last_seq) for t in turns if t.attempt > 1}


class Steps:
    """`indexing` is None where there is no index: then every turn is passed over."""

    def __init__(
        self, *, store: Store, indexing: Indexing | None, model: DenseModel,
        counter: TokenCounter,
    ) -> None:  # fmt: skip
        self._store = store
        self._indexing = indexing
        self._model = model
        self._counter = counter

    async def take(self, key: SessionKey, progress: Progress, *, alone: bool) -> bool:
        """One batch of each kind; True when anything was done. With `alone` turn by turn, and
        messages that fail alone are set aside. What was done before a failure is in `progress`.

        Raises whatever index, model or a text can make it raise."""
        if self._indexing is None:
            return await self._pass_over(key, progress)
        steps = (self._add, self._add_dense, self._add_again)
        return any([await step(self._indexing, key, progress, alone) for step in steps])

    async def _pass_over(self, key: SessionKey, progress: Progress) -> bool:
        """Without an index there is nothing to write."""
        turns = _finished(
            await self._store.turns.range(key, after=progress.lexical, limit=BATCH_TURNS)
        )
        again = await self._again(key, progress)
        progress.see([*turns, *again])
        progress.added_tokens += self._tokens(turns)
        if turns:
            progress.lexical = progress.dense = turns[-1].last_seq
        return bool(turns or again)

    def _tokens(self, turns: Sequence[Turn]) -> int:
        return sum(turn_tokens(turn, self._counter) for turn in turns)

    async def _add(
        self, indexing: Indexing, key: SessionKey, progress: Progress, alone: bool
    ) -> bool:
        """The next turns get points: with dense vectors if those of all before have theirs."""
        found = await self._store.turns.range(key, after=progress.lexical, limit=BATCH_TURNS)
        turns = _finished(found)
        if not turns:
            return False
        dense = not alone and self._model.state == "ready" and progress.dense == progress.lexical
        failure = None
        for batch in [[turn] for turn in turns] if alone else [turns]:
            try:
                progress.points += await indexing.add(batch, dense=dense)
            except EmbeddingUnavailable as error:
                dense, failure = False, error
            except StoreUnavailable:
                raise
            except Exception:
                if not alone:
                    raise
                await self._set_aside(
                    batch[0], await indexing.faults(batch[0], indexing.add_message, dense=False)
                )
            progress.lexical = batch[-1].last_seq
            progress.added_tokens += self._tokens(batch)
            progress.see(batch)
            if dense:
                progress.dense = progress.lexical
        if failure is not None:
            raise failure
        return True

    async def _add_dense(
        self, indexing: Indexing, key: SessionKey, progress: Progress, alone: bool
    ) -> bool:
        """Points that came while no model was loaded get their dense vectors."""
        if self._model.state != "ready" or progress.dense >= progress.lexical:
            return False
        found = await self._store.turns.range(key, after=progress.dense, limit=BATCH_TURNS)
        turns = [turn for turn in _finished(found) if turn.last_seq <= progress.lexical]
        for batch in [[turn] for turn in turns] if alone else [turns]:
            try:
                progress.points += await indexing.add_dense(batch)
            except StoreUnavailable:
                raise
            except Exception:
                if not alone:
                    raise
                await self._set_aside(
                    batch[0],
                    await indexing.faults(batch[0], indexing.add_dense_message, dense=True),
                )
            progress.dense = batch[-1].last_seq if batch else progress.lexical
        if not turns:
            progress.dense = progress.lexical
        return True

    async def _again(self, key: SessionKey, progress: Progress) -> list[Turn]:
        """Turns up to the watermark that have run again since they got their points."""
        found = await self._store.work.pending_reruns(
            key, through=progress.lexical, limit=BATCH_TURNS + len(progress.reruns)
        )
        return [t for t in found if progress.reruns.get(t.id) != (t.attempt, t.last_seq)]

    async def _add_again(
        self, indexing: Indexing, key: SessionKey, progress: Progress, alone: bool
    ) -> bool:
        """Their points are replaced by those of the answer that they have now."""
        turns = await self._again(key, progress)
        for turn in turns:
            dense = self._model.state == "ready" and progress.dense >= turn.last_seq
            through = progress.lexical
            try:
                progress.points += await indexing.replace(turn, dense=dense, through=through)
            except StoreUnavailable:
                raise
            except Exception:
                if not alone:
                    raise
                faults = await indexing.faults(turn, indexing.add_message, dense=False)
                if dense:
                    faults |= await indexing.faults(turn, indexing.add_dense_message, dense=True)
                await self._set_aside(turn, faults)
            progress.see([turn])
        return bool(turns)

    async def _set_aside(self, turn: Turn, faults: Mapping[str, str]) -> None:
        """What fails alone must not keep what comes after it from being found."""
        for message_id, reason in faults.items():
            await self._store.work.mark_poisoned(message_id, reason=reason, now=now())
            log.error(
                "projection.poisoned",
                session=turn.session_key,
                message=message_id,
                reason=reason,
            )


def _finished(turns: Sequence[Turn]) -> list[Turn]:
    """Turns up to the first one that still runs."""
    done = []
    for turn in turns:
        if turn.status == "running":
            break
        done.append(turn)
    return done
