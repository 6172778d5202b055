"""Session documents and their segments in MongoDB."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from memory.ids import SessionKey, UserKey
from memory.models import Segment, Session
from memory.stores.base import PAGE
from memory.stores.mongo.collections import (
    SEGMENTS,
    SESSIONS,
    TURNS,
    WITHOUT_DENSE,
    at,
    purge_at,
    turns_of,
    within,
    without_dense,
)
from memory.stores.mongo.connection import Conflict
from memory.stores.mongo.facet import Facet


class MongoSessions(Facet):
    """`SessionsStore` in MongoDB. A claim is two fields of the document."""

    async def get(self, key: SessionKey) -> Session | None:
        found = await self._db.one(SESSIONS, at(key))
        return self._codec.session_from_document(found) if found else None

    async def page(
        self, user_key: UserKey, *, before: tuple[datetime, str] | None, limit: int
    ) -> list[Session]:
        mine, by = {"user_key": user_key}, ("updated_at", "_id")
        found = await self._page(SESSIONS, mine, by=by, after=before, limit=limit)
        return [self._codec.session_from_document(document) for document in found]

    async def put(self, session: Session) -> bool:
        document = self._codec.session_document(session)
        if session.dense_through < session.last_seq:
            document |= without_dense(session.key)
        return await self._db.insert(SESSIONS, [document]) == 1

    async def change(
        self, key: SessionKey, changes: Mapping[str, Any], *, unchanged: Session | None = None
    ) -> bool:
        update, where = self._codec.session_update(key, changes), at(key)
        if "dense_through" in changes and unchanged is None:
            # Mostly it comes to the end of the session, and the mark goes with the same command.
            complete = {**where, "last_seq": {"$lte": changes["dense_through"]}}
            unset = {**update.get("$unset", {}), WITHOUT_DENSE: ""}
            if await self._db.update(SESSIONS, complete, {**update, "$unset": unset}):
                return True
        if "dense_through" in changes or "last_seq" in changes:
            update["$set"] |= without_dense(key)
        if unchanged is None:
            return await self._db.update(SESSIONS, where, update)
        where |= {
            "summary.version": unchanged.summary.version,
            "created_at": unchanged.created_at,
            "first_seq": unchanged.first_seq,
            "erasing": {"$ne": True},
        }
        return await self._db.update_once(SESSIONS, where, update)

    async def claim(self, key: SessionKey, *, worker: str, until: datetime, now: datetime) -> bool:
        free = [
            {"claimed_by": {"$exists": False}},
            {"claimed_by": worker},
            {"claimed_until": {"$lte": now}},
        ]
        taken = {"$set": {"claimed_by": worker, "claimed_until": until}}
        return await self._db.update(SESSIONS, {**at(key), "$or": free}, taken)

    async def release(self, key: SessionKey, *, worker: str) -> None:
        gone = {"$unset": {"claimed_by": "", "claimed_until": ""}}
        await self._db.update(SESSIONS, {**at(key), "claimed_by": worker}, gone)

    async def delete(self, session_key: SessionKey, *, through: int | None = None) -> int:
        await self._db.delete(SEGMENTS, within(session_key))
        before = None if through is None else through + 1
        deleted = await self._db.delete(TURNS, turns_of(session_key, before=before))
        if through is None:
            await self._db.delete(SESSIONS, at(session_key))
        return deleted

    async def delete_if_empty(self, session_key: SessionKey) -> bool:
        if await self._db.one(TURNS, turns_of(session_key), {"_id": 1}):
            return False
        await self.delete(session_key)
        return True

    async def with_expired_turns(self, *, before: datetime, limit: int = PAGE) -> list[SessionKey]:
        return await self._session_keys("expires_at", "session_key", before, {}, limit)

    async def ended(self, *, before: datetime, limit: int = PAGE) -> list[Session]:
        where = {"$or": [{"expires_at": {"$lte": before}}, {"erasing": True}]}
        found = await self._db.find(SESSIONS, where, limit=limit)
        return [self._codec.session_from_document(document) for document in found]


class MongoSegments(Facet):
    """`SegmentsStore` in MongoDB."""

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
