"""Reading back: turns, history, sessions, memories. Everything belongs to the asking user."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from datetime import datetime
from typing import Any, NamedTuple

import msgspec

from memory.config import ConfigSource, MemoryConfig
from memory.errors import NotFound
from memory.ids import SessionKey, TurnId
from memory.log.session_lease import lease_is_over
from memory.log.transitions import interrupted
from memory.models import Message, Recollection, Role, Session, Turn, User, now, session_key
from memory.recall.search import Recall, hydrate
from memory.retention.erasing import Eraser
from memory.sessions.documents import SessionDocuments
from memory.sessions.visibility import in_living_sessions, unexpired
from memory.stores.base import Store


class FoundMemories(NamedTuple):
    """`items` best first (with a query) or newest first; `degraded` names what the search lacked:
    "recall" (nothing was searched) or "embedding" (by words alone)."""

    items: list[Recollection]
    degraded: tuple[str, ...]


class History:
    """Reads back what a user said and was answered, and erases sessions. Nothing of another user
    is ever found: it does not exist here."""

    def __init__(
        self,
        *,
        store: Store,
        recall: Recall,
        sessions: SessionDocuments,
        erasing: Eraser,
        config: ConfigSource[MemoryConfig],
    ) -> None:
        self._store = store
        self._recall = recall
        self._sessions = sessions
        self._erasing = erasing
        self._config = config

    async def turn(self, user: User, turn_id: str) -> Turn:
        """The whole turn, receipt included.

        Raises NotFound, also for another user's turn and for recorded messages; StoreUnavailable.
        """
        if not turn_id.startswith(f"{user.key}."):
            raise NotFound("turn")
        turn = await self._store.turns.get(TurnId(turn_id), now=now())
        if turn is None or turn.user is None or turn.assistant is None:
            raise NotFound("turn")
        if not await self._of_living_sessions([turn]):
            raise NotFound("turn")
        return turn

    async def current_turn(self, user: User, turn: Turn) -> Turn:
        """A turn that does not run in this process, as it is now: this ends one whose writer is
        gone (`interrupted`). Raises NotFound, StoreUnavailable."""
        if turn.status == "running" and lease_is_over(turn):
            await self._store.turns.save(interrupted(turn))
            turn = await self.turn(user, turn.id)
        return turn

    async def _of_living_sessions(self, turns: Collection[Turn]) -> list[Turn]:
        ttl = self._config.current.ttl
        if ttl.memory != "session":
            return list(turns)
        return await in_living_sessions(
            turns, sessions=self._store.sessions, moment=now(), default_ttl=ttl.session
        )

    async def messages(
        self, user: User, session_id: str, *, before: int | None, limit: int
    ) -> tuple[list[Message], int | None]:
        """The newest page of messages with a seq below `before`, ascending, and the `before` of
        the next page (None on the last). Raises NotFound, StoreUnavailable."""
        session = await self.session(user, session_id)
        turns = await self._store.turns.history(
            session.key, now=now(), before=before, first=session.first_seq, limit=limit + 1
        )
        found = [m for turn in reversed(turns) for m in turn.messages]
        found = [m for m in found if before is None or m.seq < before]
        page = found[-limit:]
        more = len(found) > limit or len(turns) > limit
        return page, page[0].seq if more and page else None

    async def session(self, user: User, session_id: str) -> Session:
        """The session, repaired from its turns. Raises NotFound, StoreUnavailable."""
        key = session_key(user.key, session_id)
        session = await self._sessions.session(key)
        visible = await self._visible(session) if session is not None else None
        if visible is None:
            raise NotFound("session")
        return visible

    async def sessions(
        self, user: User, *, before: tuple[datetime, str] | None, limit: int
    ) -> tuple[list[Session], tuple[datetime, str] | None]:
        """A page by last activity, newest first, and the `before` of the next page (last activity
        and key of the last session seen; None on the last page). Raises StoreUnavailable."""
        await self._sessions.refresh(user.key)
        found = await self._store.sessions.page(user.key, before=before, limit=limit + 1)
        last = found[limit - 1] if len(found) > limit else None
        page = [seen for session in found[:limit] if (seen := await self._visible(session))]
        return page, (last.updated_at, last.key) if last else None

    async def _visible(self, session: Session) -> Session | None:
        """The session without what has expired; None when that is all, or when it has ended."""
        moment = now()
        if session.has_ended(None, moment, self._config.current.ttl.session):
            return None
        return await unexpired(self._store.turns, session, moment)

    async def change(self, user: User, session_id: str, changes: Mapping[str, Any]) -> Session:
        """Set `title`, `metadata`, `ttl_seconds`; the session as it is then.

        Raises NotFound, StoreUnavailable.
        """
        session = await self.session(user, session_id)
        values = dict(changes)
        if "ttl_seconds" in values:
            changed = msgspec.structs.replace(session, ttl_seconds=values["ttl_seconds"])
            values["expires_at"] = changed.ends_at(
                session.updated_at, self._config.current.ttl.session
            )
        await self._store.sessions.change(session.key, values)
        return await self.session(user, session_id)

    async def delete_session(self, user: User, session_id: str) -> int:
        """Erase a session with everything that came from it; the number of its turns.

        Raises NotFound, StoreUnavailable; EraseUnfinished when the index holds points of it still.
        """
        session = await self.session(user, session_id)
        return await self._erasing.erase_session(session.key)

    async def memories(
        self,
        user: User,
        *,
        query: str | None,
        limit: int,
        session_id: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        role: Role | None = None,
    ) -> FoundMemories:
        """Messages by meaning and words, or without a query simply the newest.

        `since` ≤ the time they were said < `until`. Raises StoreUnavailable.
        """
        key = session_key(user.key, session_id) if session_id else None

        def wanted(message: Message) -> bool:
            return (
                bool(message.content)
                and (role is None or message.role == role)
                and (since is None or message.created_at >= since)
                and (until is None or message.created_at < until)
            )

        if query is None:
            return FoundMemories(await self._newest(user, key, wanted, limit, since, until), ())
        ranked = await self._recall.search(query, user=user.key, now=now(), session=key)
        recalled = await hydrate(
            ranked,
            store=self._store,
            user=user.key,
            budget_tokens=10**9,
            ttl=self._config.current.ttl,
        )
        best: dict[str, Recollection] = {}
        for item in recalled.items:
            if wanted(item.message):
                best.setdefault(item.message.id, item)
        return FoundMemories(list(best.values())[:limit], ranked.degraded)

    async def _newest(
        self,
        user: User,
        key: SessionKey | None,
        wanted: Callable[[Message], bool],
        limit: int,
        since: datetime | None,
        until: datetime | None,
    ) -> list[Recollection]:
        found: list[Recollection] = []
        before: tuple[datetime, str] | None = None
        while len(found) < limit:
            turns = await self._store.turns.of_user(
                user.key,
                now=now(),
                limit=limit,
                session_key=key,
                since=since,
                until=until,
                before=before,
            )
            for turn in await self._of_living_sessions(turns):
                found += [
                    Recollection(
                        message=message,
                        session_id=turn.session_id,
                        passage=0,
                        score=0.0,
                        dense_rank=None,
                        lexical_rank=None,
                    )
                    for message in reversed(turn.messages)
                    if wanted(message)
                ]
            if len(turns) < limit:
                break
            before = (turns[-1].created_at, turns[-1].id)
        return found[:limit]
