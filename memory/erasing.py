"""Takes a session out of every place it has reached. Each step can be repeated after a crash."""

from __future__ import annotations

import asyncio
import secrets
from datetime import timedelta

from memory.gates import SessionLocks
from memory.indexes.base import VectorIndex
from memory.lifetimes import new_session
from memory.models import now
from memory.projection import Projection
from memory.stores.base import TurnStore

# A batch of another worker's projection is over by then, if that worker lives.
CLAIM_SECONDS = 5.0
POLL_SECONDS = 0.05


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
        self._worker = secrets.token_hex(8)

    async def erase_session(self, *, user: str, key: str, session_id: str = "") -> int:
        """Delete turns, segments, points, then the document; returns the number of turns.

        The document is marked first, so that a crash in between is finished by the sweeper, and
        what runs meanwhile finds its turn gone. So it stays, too, while another worker may still
        be writing points of the session: the sweeper comes again.
        """
        async with self._locks.of(key):
            if not await self._store.change_session(key, {"erasing": True}) and session_id:
                made = new_session(user, session_id, now())
                await self._store.put_session(made)
                await self._store.change_session(key, {"erasing": True})
            deleted = await self._store.delete_session(key, keep_session=True)
            alone = await self._is_ours(key)
            if self._index is not None:
                await self._index.delete_session(user=user, session=key)
                await self._index.flush()
            if alone:
                await self._store.delete_session(key)
            self._projection.forget(key)
            return deleted

    async def _is_ours(self, key: str) -> bool:
        """Whether no other worker projects this session any more."""
        if self._store.exclusive:
            return True
        until = now() + timedelta(seconds=CLAIM_SECONDS)
        while now() < until:
            if await self._store.claim(key, worker=self._worker, until=until, now=now()):
                return True
            await asyncio.sleep(POLL_SECONDS)
        return False
