"""What each compaction took out of the log, in MongoDB."""

from __future__ import annotations

from datetime import datetime

from memory.ids import SessionKey
from memory.models import Segment
from memory.stores.codec import Codec
from memory.stores.mongo.collections import SEGMENTS, at, purge_at, within
from memory.stores.mongo.connection import Conflict, Connection


class MongoSegments:
    """`SegmentsStore` in MongoDB."""

    def __init__(self, db: Connection, codec: Codec, *, purge_grace_seconds: float) -> None:
        self._db = db
        self._codec = codec
        self._grace = purge_grace_seconds

    async def put(self, segment: Segment) -> None:
        document = self._codec.segment_document(segment)
        document |= purge_at(segment.expires_at, self._grace)
        where, update = at(document.pop("_id")), {"$set": document}
        if "purge_at" not in document:
            update["$unset"] = {"purge_at": ""}
        try:
            await self._db.update(SEGMENTS, where, update, upsert=True)
        except Conflict:  # another inserted it at the same time: now it can be changed
            await self._db.update(SEGMENTS, where, update, upsert=True)

    async def of(self, session_key: SessionKey, *, now: datetime) -> list[Segment]:
        where = {**within(session_key), "expires_at": {"$gt": now}}
        found = await self._db.find(SEGMENTS, where, sort=(("first_seq", 1),))
        return [self._codec.segment_from_document(document) for document in found]

    async def delete(self, session_key: SessionKey) -> None:
        await self._db.delete(SEGMENTS, within(session_key))
