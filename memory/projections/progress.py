"""How far the index has followed each session, from the write until it is durable."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from memory.ids import SessionKey, TurnId
from memory.indexes.base import VectorIndex
from memory.locks import SessionLocks
from memory.models import Session, Turn
from memory.stores.base import Store
from memory.tokens import TokenCounter
from memory.window import turn_tokens

FLUSH_SECONDS = 5.0
FLUSH_POINTS = 500


@dataclass
class Progress:
    """How far a session has come since its watermarks were last committed.

    `lexical` and `dense` are the last seq with points and with dense vectors; turns up to
    `projected` need nothing more. `reruns` are the turns that ran again and have their points:
    the attempt and the last seq of each. `points` and `added_tokens` count what was written.
    """

    lexical: int
    dense: int
    projected: int = 0
    added_tokens: int = 0
    points: int = 0
    pending: bool = True  # there may be turns beyond it
    reruns: dict[TurnId, tuple[int, int]] = field(default_factory=dict)

    @property
    def reached(self) -> tuple[int, int, int]:
        return self.lexical, self.dense, len(self.reruns)

    def add(self, turns: Sequence[Turn], counter: TokenCounter, *, dense: bool) -> None:
        """These turns, the next ones, have their points, with or without dense vectors."""
        self.lexical = turns[-1].last_seq
        if dense:
            self.dense = self.lexical
        self.added_tokens += sum(turn_tokens(turn, counter) for turn in turns)
        self.see_reruns(turns)

    def see_reruns(self, turns: Sequence[Turn]) -> None:
        """Note the attempt of each of these turns that ran again: that one has its points."""
        self.reruns |= {t.id: (t.attempt, t.last_seq) for t in turns if t.attempt > 1}


class Watermarks:
    """The progress of sessions until it is committed: a watermark moves, and turns are pending no
    longer, only once the index is durable. What a crash loses of it is projected again."""

    def __init__(self, *, store: Store, index: VectorIndex | None, locks: SessionLocks) -> None:
        self._store = store
        self._index = index
        self._locks = locks
        self._progress: dict[SessionKey, Progress] = {}
        self._unflushed_since: float | None = None
        # A write to a shared index is durable when it returns, so that nothing waits for a flush.
        self.durable_at_once = not store.embedded and not (index and index.embedded)

    def __len__(self) -> int:
        return len(self._progress)

    def get(self, key: SessionKey) -> Progress | None:
        """The progress of a session that waits for its commit."""
        return self._progress.get(key)

    def of(self, session: Session) -> Progress:
        return self._progress.get(session.key) or Progress(
            session.lexical_through, session.dense_through
        )

    def keep(self, key: SessionKey, progress: Progress) -> None:
        """To be committed after the next flush."""
        self._progress[key] = progress
        if self._unflushed_since is None:
            self._unflushed_since = time.monotonic()

    def forget(self, key: SessionKey) -> None:
        self._progress.pop(key, None)

    def model_ready(self, *, reset: bool) -> None:
        """Turns without dense vectors are not projected any more; with `reset` none is."""
        for progress in self._progress.values():
            progress.dense = 0 if reset else progress.dense
            progress.projected = min(progress.projected, progress.dense)

    async def commit_when_due(self) -> None:
        """`commit` after some time or some points. Raises IndexUnavailable, StoreUnavailable."""
        since = self._unflushed_since
        points = sum(progress.points for progress in self._progress.values())
        if since is not None and (
            points >= FLUSH_POINTS or time.monotonic() - since >= FLUSH_SECONDS
        ):
            await self.commit()

    async def commit(self) -> None:
        """Flush the index, then commit every session as far as it had come by then. Raises
        IndexUnavailable, StoreUnavailable."""
        flushed = dict(self._progress)
        if not flushed:
            return
        if self._index is not None:
            await self._index.flush()
        self._unflushed_since = None
        for key, progress in flushed.items():
            await self.commit_session(key, progress)

    async def commit_session(self, key: SessionKey, flushed: Progress | None = None) -> None:
        """Move the watermarks of a session whose points are durable, unless its progress is no
        longer the one that was `flushed`."""
        async with self._locks.of(key):
            progress = self._progress.get(key)
            if progress is None or (flushed is not None and progress is not flushed):
                return  # nothing new, or erased meanwhile
            await self._store.sessions.change(
                key, {"lexical_through": progress.lexical, "dense_through": progress.dense}
            )
            through = progress.projected
            reruns = {
                id_: attempt
                for id_, (attempt, last_seq) in progress.reruns.items()
                if last_seq <= through
            }
            await self._store.work.mark_projected(key, through=through, reruns=reruns)
            del self._progress[key]
