"""What each compaction took out of the log, in the embedded store."""

from __future__ import annotations

from datetime import datetime

from memory.ids import SessionKey
from memory.models import Segment
from memory.stores.codec import Codec, SegmentRow
from memory.stores.sqlite.database import Database, marks

PUT = (
    f"INSERT OR REPLACE INTO segments ({', '.join(SegmentRow._fields)})"
    f" VALUES ({marks(SegmentRow._fields)})"
)


class SqliteSegments:
    """`SegmentsStore` in SQLite."""

    def __init__(self, db: Database, codec: Codec) -> None:
        self._db = db
        self._codec = codec

    async def put(self, segment: Segment) -> None:
        await self._db.execute(PUT, self._codec.segment_row(segment))

    async def of(self, session_key: SessionKey, *, now: datetime) -> list[Segment]:
        bodies = await self._db.column(
            "SELECT body FROM segments WHERE session_key = ? AND expires_at > ? ORDER BY first_seq",
            (session_key, now.timestamp()),
        )
        return [self._codec.segment_from_row(body) for body in bodies]

    async def delete(self, session_key: SessionKey) -> None:
        await self._db.execute("DELETE FROM segments WHERE session_key = ?", (session_key,))
