"""Takes a session out of every place it has reached. Each step can be repeated after a crash."""

from __future__ import annotations

import asyncio
import secrets
from datetime import timedelta

from memory.errors import EraseUnfinished, IndexUnavailable
from memory.ids import SessionKey
from memory.indexes.base import VectorIndex
from memory.locks import SessionLocks
from memory.models import Session, new_session, now
from memory.projections.projector import Projector
from memory.stores.base import Store

# A batch of another worker's projection is over by then, if that worker lives.
CLAIM_SECONDS = 5.0
POLL_SECONDS = 0.05


class Eraser:
    """Erases single sessions, at a user's request or because they have ended."""

    def __init__(
        self, *, store: Store, index: VectorIndex | None, projector: Projector, locks: SessionLocks
    ) -> None:
        self._store = store
        self._index = index
        self._projector = projector
        self._locks = locks
        self._worker = secrets.token_hex(8)

    async def erase_session(self, key: SessionKey, *, through: int | None = None) -> int:
        """Delete turns, segments, points, then the document; returns the number of turns. Raises
        StoreUnavailable, EraseUnfinished.

        Only what has been said so far (or up to the seq `through`): the document is marked first,
        and the session begins a new life. So everything is hidden at once, and messages that come
        meanwhile are kept. The sweeper finishes an erase that a crash or an index that is away
        (EraseUnfinished) cut short.
        """
        async with self._locks.of(key):
            loaded = await self._store.turns.load(key, limit=1)
            session, turns = loaded
            if session is None:
                if not turns:
                    return 0
                session = new_session(turns[0].user_key, turns[0].session_id, now())
                await self._store.sessions.put(session)
            if through is None:
                through = loaded.last_seq
            fresh = session.begun_anew(through)
            await self._store.sessions.change(
                key,
                fresh.fields_of_new_life()
                | {
                    "erasing": True,
                    "created_at": now(),
                    "last_seq": fresh.last_seq,
                    "ttl_seconds": None,
                    "metadata": {},
                },
            )
            return await self._finish(fresh)

    async def finish(self, key: SessionKey) -> int:
        """Go on with an erase that was begun; returns the number of turns. Raises
        StoreUnavailable, EraseUnfinished."""
        async with self._locks.of(key):
            session = await self._store.sessions.get(key)
            if session is None or not session.erasing:
                return 0
            return await self._finish(session)

    async def _finish(self, session: Session) -> int:
        """Delete everything before `first_seq`. All points of the session can go: one that is
        being erased is not projected, so none belongs to its new life.

        The mark stays while another worker may still be writing points of the session.
        """
        key = session.key
        deleted = await self._store.sessions.delete(key, through=session.first_seq - 1)
        self._projector.forget(key)
        alone = await self._is_ours(key)
        if self._index is not None:
            try:
                await self._index.delete_session(user=session.user_key, session=key)
                await self._index.flush()
            except IndexUnavailable as error:
                raise EraseUnfinished(str(error)) from error
        if alone and not await self._store.sessions.delete_if_empty(key):
            # Points of the new life that another worker made just now are gone too: made again.
            through = session.first_seq - 1
            await self._store.sessions.change(
                key, {"erasing": False, "lexical_through": through, "dense_through": through}
            )
            self._projector.changes.note(key)
        if not self._store.embedded:
            await self._store.sessions.release(key, worker=self._worker)
        return deleted

    async def _is_ours(self, key: SessionKey) -> bool:
        """Claim the session; False when another worker still projects it after a while."""
        if self._store.embedded:
            return True
        until = now() + timedelta(seconds=CLAIM_SECONDS)
        while now() < until:
            if await self._store.sessions.claim(key, worker=self._worker, until=until, now=now()):
                return True
            await asyncio.sleep(POLL_SECONDS)
        return False
