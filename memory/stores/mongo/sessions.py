"""Session documents in MongoDB."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from memory.ids import SessionKey, UserKey
from memory.models import Session
from memory.stores.base import PAGE
from memory.stores.codec import Codec
from memory.stores.mongo.collections import (
    SEGMENTS,
    SESSIONS,
    TURNS,
    WITHOUT_DENSE,
    at,
    turns_of,
    within,
    without_dense,
)
from memory.stores.mongo.connection import Connection
from memory.stores.mongo.paging import page, session_keys


class MongoSessions:
    """`SessionsStore` in MongoDB. A claim is two fields of the document."""

    def __init__(self, db: Connection, codec: Codec) -> None:
        self._db = db
        self._codec = codec

    async def get(self, key: SessionKey) -> Session | None:
        found = await self._db.one(SESSIONS, at(key))
        return self._codec.session_from_document(found) if found else None

    async def page(
        self, user_key: UserKey, *, before: tuple[datetime, str] | None, limit: int
    ) -> list[Session]:
        found = await page(
            self._db,
            SESSIONS,
            {"user_key": user_key},
            by=("updated_at", "_id"),
            after=before,
            limit=limit,
            newest_first=True,
        )
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
        return await session_keys(self._db, "expires_at", "session_key", before, {}, limit)

    async def ended(self, *, before: datetime, limit: int = PAGE) -> list[Session]:
        where = {"$or": [{"expires_at": {"$lte": before}}, {"erasing": True}]}
        found = await self._db.find(SESSIONS, where, limit=limit)
        return [self._codec.session_from_document(document) for document in found]
