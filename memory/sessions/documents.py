"""Session documents: projections of the log, made and repaired from it when they are read."""

from __future__ import annotations

import msgspec

from memory.config import ConfigSource, MemoryConfig
from memory.ids import SessionKey, UserKey
from memory.locks import SessionLocks
from memory.models import Session, new_session
from memory.stores.base import Store

MAX_PENDING = 100_000


class SessionDocuments:
    def __init__(
        self, *, store: Store, locks: SessionLocks, config: ConfigSource[MemoryConfig]
    ) -> None:
        self._store = store
        self._locks = locks
        self._config = config

    async def refresh(self, user_key: UserKey) -> None:
        """Bring titles, counts and last activity of this user's sessions up to date."""
        for key in await self._store.work.pending(user_key=user_key, limit=MAX_PENDING):
            await self.session(key)

    async def session(self, key: SessionKey) -> Session | None:
        """The session up to its newest turn, whether a projection has seen that or not."""
        if await self._store.sessions.get(key) is not None:
            return await self.repaired(key)  # only sets fields: harmless beside a projection
        async with self._locks.of(key):
            return await self.repaired(key)

    async def repaired(self, key: SessionKey) -> Session | None:
        """Its document, made or repaired from its newest turns; the caller holds its lock."""
        loaded = await self._store.turns.load(key, limit=1)
        if not loaded.turns:
            return loaded.session
        newest = loaded.turns[0]
        session = loaded.session
        if session is None:
            oldest = (await self._store.turns.range(key, after=0, limit=1))[0]
            session = msgspec.structs.replace(
                new_session(newest.user_key, newest.session_id, oldest.recorded_at),
                first_seq=oldest.seq,
            )
            await self._store.sessions.put(session)
        begun = newest.last_seq >= session.first_seq  # else it ended, and was not used again
        if not begun or (session.last_seq == newest.last_seq and session.title):
            return session
        title = session.title
        if not title:
            first = await self._store.turns.range(key, after=session.first_seq - 1, limit=1)
            title = first[0].title if first else ""
        changes = {
            "title": title,
            "last_seq": newest.last_seq,
            "updated_at": newest.recorded_at,
            "expires_at": session.ends_at(newest.recorded_at, self._config.current.ttl.session),
        }
        await self._store.sessions.change(key, changes)
        return msgspec.structs.replace(session, **changes)
