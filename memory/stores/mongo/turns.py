"""The log in MongoDB. What makes a write happen only once is explained in store.py."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from memory.ids import SessionKey, TurnId, UserKey
from memory.models import NEVER, LoadedSession, Turn, keyless
from memory.models import now as current
from memory.stores.base import PAGE
from memory.stores.codec import Codec, Document, owner
from memory.stores.mongo.collections import (
    SEGMENTS,
    SESSIONS,
    TURNS,
    at,
    later_than,
    pending,
    purge_at,
    turns_of,
)
from memory.stores.mongo.connection import Connection, Order
from memory.stores.mongo.paging import page

NEWEST = (("_id", -1),)
FIRST_READ = 50  # turns that `load` reads along with the session: more than most windows hold
BARE = {"receipt": 0}  # a turn without its receipt
NOT_POISONED = {"$unset": {"aside_since": "", "aside": ""}}


class MongoTurns:
    """`TurnsStore` in MongoDB."""

    def __init__(self, db: Connection, codec: Codec, *, purge_grace_seconds: float) -> None:
        self._db = db
        self._codec = codec
        self._grace = purge_grace_seconds

    async def load(self, session_key: SessionKey, *, limit: int = PAGE) -> LoadedSession:
        first = min(limit, FIRST_READ)
        document, documents = await self._db.one_and_find(
            (SESSIONS, at(session_key)),
            TURNS,
            turns_of(session_key),
            sort=NEWEST,
            limit=first,
            show=BARE,
        )
        session = self._codec.session_from_document(document) if document else None
        turns = [self._codec.turn_from_document(found) for found in documents]
        covered = session.summary.covers_through if session else 0
        if len(turns) == first < limit and turns[-1].seq > covered:
            # A turn has at most two messages, so one that ends at `covered` begins here or later.
            rest = turns_of(session_key, first=covered - 1, before=turns[-1].seq)
            turns += await self._newest(rest, limit - first)
        uncovered = sum(turn.seq > covered for turn in turns)
        return LoadedSession(session, turns[: uncovered + 1])

    async def append(self, turns: Sequence[Turn]) -> int:
        documents = [
            {
                **self._codec.turn_document(turn),
                **purge_at(turn.expires_at, self._grace),
                **pending(turn.session_key, turn.recorded_at),
            }
            for turn in turns
        ]
        return await self._db.insert(TURNS, documents)

    async def withdraw(self, turn: Turn) -> None:
        where = {**at(turn.id), "token": turn.fencing_token, "status": "running"}
        await self._db.delete(TURNS, where)

    async def save(self, turn: Turn) -> bool:
        changed = self._codec.turn_fields(turn)
        if turn.receipt is None:
            del changed["receipt"]
        where = {**at(turn.id), "token": turn.fencing_token, "status": "running"}
        return await self._db.update_once(TURNS, where, {"$set": changed})

    async def rerun(self, turn: Turn, *, was: Turn) -> bool:
        changed = self._codec.turn_fields(turn)
        where = {
            **at(turn.id),
            "token": was.fencing_token,
            "status": {"$in": ["failed", "interrupted"]},
        }
        update = {"$set": {**changed, **pending(turn.session_key, current())}, **NOT_POISONED}
        return await self._db.update_once(TURNS, where, update)

    async def interrupt_running(self) -> int:
        return 0

    async def get(self, turn_id: TurnId, *, now: datetime) -> Turn | None:
        found = await self._db.one(TURNS, at(turn_id))
        turn = self._codec.turn_from_document(found) if found else None
        return turn if turn and turn.expires_at > now else None

    async def get_many(self, ids: Sequence[TurnId], *, now: datetime) -> dict[TurnId, Turn]:
        if not ids:
            return {}
        owners = {owner(id_) for id_ in ids}
        where = {"_id": {"$in": list(ids)}, "user_key": {"$in": list(owners)}}
        found = await self._turns(where, len(ids))
        return {turn.id: turn for turn in found if turn.expires_at > now}

    async def forget_key(self, turn: Turn) -> None:
        where = {**at(turn.id), "idempotency": turn.idempotency}
        await self._db.update(TURNS, where, {"$set": {"idempotency": keyless(turn.id)}})

    async def by_idempotency(self, user_key: UserKey, keys: Sequence[str]) -> dict[str, Turn]:
        if not keys:
            return {}
        where = {"user_key": user_key, "idempotency": {"$in": list(keys)}}
        return {turn.idempotency: turn for turn in await self._turns(where, len(keys))}

    async def history(
        self, session_key: SessionKey, *, now: datetime, before: int | None, first: int, limit: int
    ) -> list[Turn]:
        # A turn has at most two messages, so `first` bounds its seq too.
        which = turns_of(session_key, first=first - 1, before=before)
        where = {**which, "last_seq": {"$gte": first}, "expires_at": {"$gt": now}}
        return await self._newest(where, limit)

    async def range(self, session_key: SessionKey, *, after: int, limit: int) -> list[Turn]:
        return await self._turns(later_than(session_key, after), limit, sort=(("_id", 1),))

    async def of_user(
        self,
        user_key: UserKey,
        *,
        now: datetime,
        limit: int,
        session_key: SessionKey | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        before: tuple[datetime, str] | None = None,
    ) -> list[Turn]:
        where: Document = {"user_key": user_key, "expires_at": {"$gt": now}}
        if since is not None or until is not None:
            bounds = {"$gte": since, "$lt": until}
            where["created_at"] = {name: value for name, value in bounds.items() if value}
        if session_key is not None:
            where["session_key"] = session_key
        found = await page(
            self._db,
            TURNS,
            where,
            by=("created_at", "_id"),
            after=before,
            limit=limit,
            newest_first=True,
            show=BARE,
        )
        return [self._codec.turn_from_document(document) for document in found]

    async def overdue(self, *, before: datetime, limit: int = PAGE) -> list[Turn]:
        # A running turn is pending: so it is in a sparse index.
        where = {"pending_since": {"$lte": NEVER}, "status": "running", "until": {"$lt": before}}
        return await self._turns(where, limit)

    async def delete_expired(self, session_keys: Sequence[SessionKey], *, before: datetime) -> int:
        where = {
            "user_key": {"$in": list({owner(key) for key in session_keys})},
            "session_key": {"$in": list(session_keys)},
            "expires_at": {"$lte": before},
        }
        await self._db.delete(SEGMENTS, where)
        return await self._db.delete(TURNS, where)

    async def _newest(self, where: Document, limit: int) -> list[Turn]:
        return await self._turns(where, limit, sort=NEWEST)

    async def _turns(self, where: Document, limit: int, *, sort: Order = ()) -> list[Turn]:
        found = await self._db.find(TURNS, where, sort=sort, limit=limit, show=BARE)
        return [self._codec.turn_from_document(document) for document in found]
