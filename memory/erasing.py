"""Takes a session out of every place it has reached. Each step can be repeated after a crash."""

from __future__ import annotations

from memory.gates import SessionLocks
from memory.indexes.base import VectorIndex
from memory.lifetimes import new_session
from memory.models import now
from memory.projection import Projection
from memory.stores.base import TurnStore


class Erasing:
    def __init__(
        self,
        *,
        store: TurnStore,
        index: VectorIndex | None,
        projection: Projection,
        locks: SessionLocks,
    ) -> None:
        self._store = store
        self._index = index
        self._projection = projection
        self._locks = locks

    async def erase_session(self, *, user: str, key: str, session_id: str = "") -> int:
        """Delete turns, segments, points, then the document; returns the number of turns.

        The document is marked first, so that a crash in between is finished by the sweeper, and
        what runs meanwhile finds its turn gone.
        """
        async with self._locks.of(key):
            if not await self._store.change_session(key, {"erasing": True}) and session_id:
                made = new_session(user, session_id, now())
                await self._store.put_session(made)
                await self._store.change_session(key, {"erasing": True})
            deleted = await self._store.delete_session(key, keep_session=True)
            if self._index is not None:
                await self._index.delete_session(user=user, session=key)
                await self._index.flush()
            await self._store.delete_session(key)
            self._projection.forget(key)
            return deleted
