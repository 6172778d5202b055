"""Session documents and their segments in the embedded store."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec

from memory.ids import SessionKey, UserKey
from memory.models import Segment, Session
from memory.stores.base import PAGE
from memory.stores.codec import SegmentRow, SessionRow
from memory.stores.sqlite.database import Facet, into
from memory.stores.sqlite.work import is_resetting

SESSION = "body, lexical_through, dense_through"  # as Codec.session_from_row takes them
INTO = into("sessions", SessionRow._fields)
PUT = f"INSERT OR REPLACE {INTO}"
PUT_SEGMENT = f"INSERT OR REPLACE {into('segments', SegmentRow._fields)}"
OF_SESSION = "FROM segments WHERE session_key = ?"


class SqliteSessions(Facet):
    """`SessionsStore` in SQLite."""

    async def get(self, key: SessionKey) -> Session | None:
        found = await self._sessions("key = ?", (key,))
        return found[0] if found else None

    async def page(
        self, user_key: UserKey, *, before: tuple[datetime, str] | None, limit: int
    ) -> list[Session]:
        after = (before[0].timestamp(), before[1]) if before else (1e18, "")
        return await self._sessions(
            "user_key = ? AND (updated_at, key) < (?, ?)"
            " ORDER BY updated_at DESC, key DESC LIMIT ?",
            (user_key, *after, limit),
        )

    async def put(self, session: Session) -> bool:
        row = self._codec.session_row(session)
        return await self._db.execute(f"INSERT OR IGNORE {INTO}", row) == 1

    async def change(
        self, key: SessionKey, changes: Mapping[str, Any], *, unchanged: Session | None = None
    ) -> bool:
        def work(db: sqlite3.Connection) -> bool:
            row = db.execute(f"SELECT {SESSION} FROM sessions WHERE key = ?", (key,)).fetchone()
            if row is None:
                return False
            session = self._codec.session_from_row(*row)
            if unchanged and (session.erasing or _version(session) != _version(unchanged)):
                return False
            changed = msgspec.structs.replace(session, **changes)
            if "dense_through" in changes and is_resetting(db):
                # It was reached with the vectors of before.
                changed = msgspec.structs.replace(changed, dense_through=0)
            db.execute(PUT, self._codec.session_row(changed))
            return True

        return await self._db.transaction(work)

    async def claim(self, key: SessionKey, *, worker: str, until: datetime, now: datetime) -> bool:
        return await self.get(key) is not None  # there is nobody else

    async def release(self, key: SessionKey, *, worker: str) -> None:
        pass

    async def delete(self, session_key: SessionKey, *, through: int | None = None) -> int:
        return await self._db.erase(lambda db: _delete(db, session_key, through))

    async def delete_if_empty(self, session_key: SessionKey) -> bool:
        def work(db: sqlite3.Connection) -> bool:
            turn = "SELECT 1 FROM turns WHERE session_key = ? LIMIT 1"
            if db.execute(turn, (session_key,)).fetchone():
                return False
            _delete(db, session_key, None)
            return True

        return await self._db.erase(work)

    async def with_expired_turns(self, *, before: datetime, limit: int = PAGE) -> list[SessionKey]:
        return await self._db.column(
            "SELECT DISTINCT session_key FROM turns INDEXED BY turns_expiry WHERE expires_at <= ?"
            " LIMIT ?",
            (before.timestamp(), limit),
        )

    async def ended(self, *, before: datetime, limit: int = PAGE) -> list[Session]:
        return await self._sessions(
            "expires_at <= ?1 OR erasing = 1 LIMIT ?2", (before.timestamp(), limit)
        )

    async def _sessions(self, where: str, values: Sequence[Any]) -> list[Session]:
        rows = await self._db.rows(f"SELECT {SESSION} FROM sessions WHERE {where}", values)
        return [self._codec.session_from_row(*row) for row in rows]


class SqliteSegments(Facet):
    """`SegmentsStore` in SQLite."""

    async def put(self, segment: Segment) -> None:
        await self._db.execute(PUT_SEGMENT, self._codec.segment_row(segment))

    async def of(self, session_key: SessionKey, *, now: datetime) -> list[Segment]:
        bodies = await self._db.column(
            f"SELECT body {OF_SESSION} AND expires_at > ? ORDER BY first_seq",
            (session_key, now.timestamp()),
        )
        return [self._codec.segment_from_row(body) for body in bodies]

    async def delete(self, session_key: SessionKey) -> None:
        await self._db.execute(f"DELETE {OF_SESSION}", (session_key,))


def _delete(db: sqlite3.Connection, key: SessionKey, through: int | None) -> int:
    db.execute(f"DELETE {OF_SESSION}", (key,))
    if through is not None:
        turns = db.execute("DELETE FROM turns WHERE session_key = ? AND seq <= ?", (key, through))
    else:
        turns = db.execute("DELETE FROM turns WHERE session_key = ?", (key,))
        db.execute("DELETE FROM sessions WHERE key = ?", (key,))
    return turns.rowcount


def _version(session: Session) -> tuple[object, ...]:
    return session.summary.version, session.created_at, session.first_seq
