"""What projections still have to do in MongoDB, and what they cannot take: found by sparse indexes,
changed by pages. Stored names call a poisoned message `aside`."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from memory.ids import MessageId, SessionKey, TurnId, UserKey
from memory.models import NEVER, Turn
from memory.models import now as current
from memory.stores.base import NO_RERUNS, PAGE, PoisonedMessage
from memory.stores.codec import Document, owner
from memory.stores.mongo.collections import (
    SESSIONS,
    TURNS,
    WITHOUT_DENSE,
    all_of,
    at,
    later_than,
    pending,
    without_dense,
)
from memory.stores.mongo.connection import BATCH
from memory.stores.mongo.facet import Facet, all_pages
from memory.stores.mongo.turns import NOT_POISONED


class MongoWork(Facet):
    """`WorkStore` in MongoDB."""

    async def pending(
        self, *, user_key: UserKey | None = None, finished: bool = False, limit: int = PAGE
    ) -> list[SessionKey]:
        where: Document = {"status": {"$ne": "running"}} if finished else {}
        if user_key is not None:
            mine = {"$gt": f"{user_key}.", "$lt": f"{user_key}/"}  # "/" comes after "."
            where |= {"user_key": user_key, "pending_in": mine}
        return await self._session_keys("pending_since", "pending_in", NEVER, where, limit)

    async def pending_since(self) -> datetime | None:
        waiting = {"pending_since": {"$lte": NEVER}, "status": {"$ne": "running"}}
        order, show = (("pending_since", 1),), {"_id": 0, "pending_since": 1}
        found = await self._db.find(TURNS, waiting, sort=order, limit=1, show=show)
        return found[0]["pending_since"] if found else None

    async def pending_reruns(
        self, session_key: SessionKey, *, through: int, limit: int
    ) -> list[Turn]:
        where = {**_pending_in(session_key, through), "attempt": {"$gt": 1}}
        return await self._turns(where, sort=(("seq", 1),), limit=limit)

    async def mark_projected(
        self, session_key: SessionKey, *, through: int, reruns: Mapping[TurnId, int] = NO_RERUNS
    ) -> None:
        gone = {"$unset": {"pending_since": "", "pending_in": ""}}
        where = _pending_in(session_key, through)
        await self._db.update_all(TURNS, {**where, "attempt": 1}, gone)
        for id_, attempt in reruns.items():
            await self._db.update(TURNS, {**where, "_id": id_, "attempt": attempt}, gone)

    async def mark_poisoned(self, message_id: MessageId, *, reason: str, now: datetime) -> bool:
        turn_id, _, part = message_id.rpartition(".")
        set_ = {"$set": {"aside_since": now, f"aside.{part}": reason}}
        return await self._db.update(TURNS, at(turn_id), set_)

    async def poisoned(self, *, limit: int = PAGE) -> list[PoisonedMessage]:
        where, order = {"aside_since": {"$lte": NEVER}}, (("aside_since", 1),)
        show = {"aside_since": 1, "aside": 1}
        found = await self._db.find(TURNS, where, sort=order, limit=limit, show=show)
        listed = [
            PoisonedMessage(MessageId(f"{document['_id']}.{part}"), reason, document["aside_since"])
            for document in found
            for part, reason in sorted(document["aside"].items(), reverse=True)
        ]
        return listed[:limit]

    async def mark_all_pending(self) -> None:
        # The watermarks first: a turn pending below its watermark would be marked projected.
        await self._set_back("lexical_through", "dense_through")
        after = ""
        while found := await self._db.find(
            TURNS, {"_id": {"$gt": after}}, sort=(("_id", 1),), limit=1, show={"session_key": 1}
        ):
            key = found[0]["session_key"]
            await self._make_pending(key, after=0)
            after = f"{key};"  # ";" comes after ":"

    async def mark_dense_pending(self, *, reset: bool) -> None:
        if reset:
            await self._set_back("dense_through")
        show = {"last_seq": 1, "dense_through": 1}
        async for page in all_pages(self._db, SESSIONS, WITHOUT_DENSE, show):
            for session in page:
                if session["dense_through"] < session["last_seq"]:
                    await self._make_pending(session["_id"], after=session["dense_through"])

    async def _set_back(self, *watermarks: str) -> None:
        """These watermarks of all sessions become 0, and no message is poisoned."""
        await self._db.update_all(TURNS, {"aside_since": {"$lte": NEVER}}, NOT_POISONED)
        zero = dict.fromkeys(watermarks, 0)
        async for page in all_pages(self._db, SESSIONS, "_id", {}):
            keys = [session["_id"] for session in page]
            updates = [(at(key), {"$set": {**zero, **without_dense(key)}}) for key in keys]
            await self._db.update_each(SESSIONS, updates)

    async def _make_pending(self, session_key: SessionKey, *, after: int) -> None:
        moment = current()
        while page := await self._db.find(
            TURNS,
            later_than(session_key, after),
            sort=(("_id", 1),),
            limit=BATCH,
            show={"last_seq": 1},
        ):
            ids = [document["_id"] for document in page]
            where = {**all_of(ids), "pending_since": {"$exists": False}}
            await self._db.update_many(TURNS, where, {"$set": pending(session_key, moment)})
            after = page[-1]["last_seq"]


def _pending_in(session_key: SessionKey, through: int) -> Document:
    """The filter for ended turns of a session that are pending."""
    return {
        "user_key": owner(session_key),
        "pending_in": session_key,
        "last_seq": {"$lte": through},
        "status": {"$ne": "running"},
    }
