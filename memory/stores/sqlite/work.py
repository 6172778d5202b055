"""What projections still have to do in the embedded store, and what they cannot take."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from datetime import UTC, datetime

import msgspec

from memory.ids import MessageId, SessionKey, UserKey
from memory.models import Turn, turn_of
from memory.models import now as current
from memory.stores.base import NO_RERUNS, PAGE, PoisonedMessage
from memory.stores.sqlite.database import Database
from memory.stores.sqlite.rows import decode_session, decode_turn, put_session

# Ended turns of a session up to one of its messages; at which attempt a turn is.
PENDING_IN = (
    "session_key = ? AND last_seq <= ? AND pending_since IS NOT NULL AND status != 'running'"
)
ATTEMPT = "json_extract(CAST(body AS TEXT), '$.attempt')"


class SqliteWork:
    def __init__(self, db: Database) -> None:
        self._db = db

    async def pending(
        self, *, user_key: UserKey | None = None, finished: bool = False, limit: int = PAGE
    ) -> list[SessionKey]:
        chosen = "AND status != 'running' " if finished else ""
        chosen += "AND user_key = ?" if user_key else ""
        # Left alone, SQLite walks through all turns to have the groups in order.
        return await self._db.rows(
            "SELECT session_key FROM turns INDEXED BY turns_pending WHERE pending_since IS NOT NULL"
            f" {chosen} GROUP BY session_key ORDER BY min(pending_since) LIMIT ?",
            (user_key, limit) if user_key else (limit,),
        )

    async def pending_since(self) -> datetime | None:
        rows = await self._db.rows(
            "SELECT min(pending_since) FROM turns WHERE pending_since IS NOT NULL"
            " AND status != 'running'",
            (),
        )
        return datetime.fromtimestamp(rows[0], UTC) if rows[0] is not None else None

    async def pending_reruns(
        self, session_key: SessionKey, *, through: int, limit: int
    ) -> list[Turn]:
        rows = await self._db.rows(
            f"SELECT body FROM turns WHERE {PENDING_IN} AND {ATTEMPT} > 1 ORDER BY seq LIMIT ?",
            (session_key, through, limit),
        )
        return [decode_turn(body) for body in rows]

    async def mark_projected(
        self, session_key: SessionKey, *, through: int, reruns: Mapping[str, int] = NO_RERUNS
    ) -> None:
        settled = f"UPDATE turns SET pending_since = NULL WHERE {PENDING_IN} AND {ATTEMPT} = ?"
        values = (session_key, through)

        def work(db: sqlite3.Connection) -> None:
            db.execute(settled, (*values, 1))
            for id_, attempt in reruns.items():
                db.execute(f"{settled} AND id = ?", (*values, attempt, id_))

        await self._db.transaction(work)

    async def mark_poisoned(self, message_id: MessageId, *, reason: str, now: datetime) -> bool:
        turn_id = turn_of(message_id)

        def work(db: sqlite3.Connection) -> bool:
            if not db.execute("SELECT 1 FROM turns WHERE id = ?", (turn_id,)).fetchone():
                return False
            row = (turn_id, message_id, reason, now.timestamp())
            db.execute("INSERT OR REPLACE INTO aside VALUES (?, ?, ?, ?)", row)
            return True

        return await self._db.transaction(work)

    async def poisoned(self, *, limit: int = PAGE) -> list[PoisonedMessage]:
        def work(db: sqlite3.Connection) -> list[PoisonedMessage]:
            rows = db.execute(
                "SELECT message_id, reason, since FROM aside ORDER BY since, message_id LIMIT ?",
                (limit,),
            )
            return [
                PoisonedMessage(i, reason, datetime.fromtimestamp(at, UTC))
                for i, reason, at in rows
            ]

        return await self._db.read(work)

    async def mark_all_pending(self) -> None:
        def work(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM aside")
            db.execute("UPDATE turns SET pending_since = ?", (current().timestamp(),))
            for (body,) in db.execute("SELECT body FROM sessions").fetchall():
                session = msgspec.structs.replace(
                    decode_session(body), lexical_through=0, dense_through=0
                )
                put_session(db, session)

        await self._db.transaction(work)

    async def mark_dense_pending(self, *, reset: bool) -> None:
        def work(db: sqlite3.Connection) -> None:
            if reset:
                db.execute("DELETE FROM aside")
            for (body,) in db.execute("SELECT body FROM sessions").fetchall():
                session = decode_session(body)
                if reset and session.dense_through:
                    session = msgspec.structs.replace(session, dense_through=0)
                    put_session(db, session)
                if session.dense_through < session.last_seq:
                    db.execute(
                        "UPDATE turns SET pending_since = ?"
                        " WHERE session_key = ? AND last_seq > ? AND pending_since IS NULL",
                        (current().timestamp(), session.key, session.dense_through),
                    )

        await self._db.transaction(work)
