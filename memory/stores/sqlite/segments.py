"""What each compaction took out of the log, in the embedded store."""

from __future__ import annotations

import sqlite3
from datetime import datetime

import msgspec

from memory.ids import SessionKey
from memory.models import Segment
from memory.stores.sqlite.database import Database
from memory.stores.sqlite.rows import decode_segment


class SqliteSegments:
    def __init__(self, db: Database) -> None:
        self._db = db

    async def put(self, segment: Segment) -> None:
        def work(db: sqlite3.Connection) -> None:
            db.execute(
                "INSERT OR REPLACE INTO segments VALUES (?, ?, ?, ?)",
                (
                    segment.session_key,
                    segment.first_seq,
                    segment.expires_at.timestamp(),
                    msgspec.json.encode(segment),
                ),
            )

        await self._db.transaction(work)

    async def of(self, session_key: SessionKey, *, now: datetime) -> list[Segment]:
        rows = await self._db.rows(
            "SELECT body FROM segments WHERE session_key = ? AND expires_at > ? ORDER BY first_seq",
            (session_key, now.timestamp()),
        )
        return [decode_segment(body) for body in rows]

    async def delete(self, session_key: SessionKey) -> None:
        def work(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM segments WHERE session_key = ?", (session_key,))

        await self._db.transaction(work)
