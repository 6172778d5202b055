"""A session as it counts now, and its newest turns: what every write begins with."""

from __future__ import annotations

from memory.documents import interrupted
from memory.lifetimes import begun_anew, ended, new_session
from memory.models import Session, User, now, session_key
from memory.stores.base import Loaded, TurnStore


class Opening:
    def __init__(self, *, store: TurnStore, session_ttl: float) -> None:
        self._store = store
        self._session_ttl = session_ttl

    async def session(
        self, user: User, session_id: str, *, restart: bool = True
    ) -> tuple[Session, Loaded]:
        """The session as it counts now, and its newest turns. With `restart` (for who holds its
        gate), a turn left running is ended, and a session that ended begins anew in the store.
        """
        key = session_key(user.key, session_id)
        loaded = await self._store.load(key)
        if restart and loaded.turns and loaded.turns[0].status == "running":
            # The session's gate is ours, so whoever wrote this turn has given it up.
            await self._store.save(interrupted(loaded.turns[0]))
            loaded = await self._store.load(key)
        session = loaded.session
        if session is None:
            return new_session(user.key, session_id, now()), loaded
        last = loaded.turns[0] if loaded.turns else None
        if ended(session, last, now(), self._session_ttl):
            session = begun_anew(session, last_seq(loaded))
            if restart:
                await self._store.change_session(
                    key, {"first_seq": session.first_seq, "summary": session.summary, "title": ""}
                )
                await self._store.drop_segments(key)
        return session, loaded


def last_seq(loaded: Loaded) -> int:
    newest = loaded.turns[0].last_seq if loaded.turns else 0
    return max(newest, loaded.session.last_seq if loaded.session else 0)
