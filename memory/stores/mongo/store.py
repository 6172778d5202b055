"""The store for many workers: MongoDB, through one connection.

An acknowledged write is on the disks of a majority. Every change touches one document or is a page
of changes that can be begun again, so a standalone server, a replica set and a cluster serve alike.
A driver repeats a write whose answer was lost, and not every server notices that: so a write that
may happen only once leaves its own mark, and one that found its place taken looks for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from memory.models import Segment, Session, Turn, keyless
from memory.models import now as current
from memory.stores.base import PAGE, Loaded, Signal
from memory.stores.mongo.collections import (
    FIXED,
    SEGMENTS,
    SESSIONS,
    TURNS,
    Document,
    at,
    fields,
    later_than,
    owner,
    pending,
    segment_document,
    session_document,
    session_update,
    to_segment,
    to_session,
    to_turn,
    turn_document,
    turns_of,
    within,
)
from memory.stores.mongo.connection import Conflict, Connection, Order
from memory.stores.mongo.work import BARE, NOT_ASIDE, MongoPending

NEWEST = (("_id", -1),)
FIRST_READ = 50  # turns that a load reads beside the session; most windows hold fewer


class MongoStore(MongoPending):
    """A `TurnStore` for any number of processes, in the database that `url` names.

    Documents are deleted by the server itself `purge_grace_seconds` after they expired (never,
    if that is infinite). `listeners` are pymongo's own event listeners.
    """

    exclusive = False

    def __init__(
        self,
        url: str,
        *,
        timeout_seconds: float = 2.0,
        purge_grace_seconds: float = 86400.0,
        listeners: Sequence[Any] = (),
    ) -> None:
        self._db = Connection(url, timeout_seconds=timeout_seconds, listeners=listeners)
        self._grace = purge_grace_seconds

    async def open(self) -> None:
        """Raises ConfigError, StoreUnavailable."""
        await self._db.open()

    async def close(self) -> None:
        await self._db.close()

    async def ping(self) -> None:
        await self._db.ping()

    # --- turns ---------------------------------------------------------------------------------

    async def load(self, session_key: str, *, limit: int = PAGE) -> Loaded:
        first = min(limit, FIRST_READ)
        document, documents = await self._db.one_and_find(
            (SESSIONS, at(session_key)),
            TURNS,
            turns_of(session_key),
            sort=NEWEST,
            limit=first,
            show=BARE,
        )
        session = to_session(document) if document else None
        turns = [to_turn(found) for found in documents]
        covered = session.summary.covers_through if session else 0
        if len(turns) == first < limit and turns[-1].seq > covered:
            # A turn has at most two messages, so one that ends at `covered` begins here or later.
            rest = turns_of(session_key, first=covered - 1, before=turns[-1].seq)
            turns += await self._newest(rest, limit - first)
        uncovered = sum(turn.seq > covered for turn in turns)
        return Loaded(session, turns[: uncovered + 1])

    async def _newest(self, where: Document, limit: int) -> list[Turn]:
        return await self._turns(where, limit, sort=NEWEST)

    async def _turns(self, where: Document, limit: int, *, sort: Order = ()) -> list[Turn]:
        found = await self._db.find(TURNS, where, sort=sort, limit=limit, show=BARE)
        return [to_turn(document) for document in found]

    async def append(self, turns: Sequence[Turn]) -> int:
        documents = [
            {**turn_document(turn, self._grace), **pending(turn.session_key, turn.recorded_at)}
            for turn in turns
        ]
        return await self._db.insert(TURNS, documents)

    async def withdraw(self, turn: Turn) -> None:
        where = {**at(turn.id), "token": turn.token, "status": "running"}
        await self._db.delete(TURNS, where)

    async def save(self, turn: Turn) -> bool:
        changed = {name: value for name, value in fields(turn).items() if name not in FIXED}
        if turn.receipt is None:
            del changed["receipt"]
        where = {**at(turn.id), "token": turn.token, "status": "running"}
        return await self._db.update_once(TURNS, where, {"$set": changed})

    async def rerun(self, turn: Turn, *, was: Turn) -> bool:
        changed = {name: value for name, value in fields(turn).items() if name not in FIXED}
        where = {**at(turn.id), "token": was.token, "status": {"$in": ["failed", "interrupted"]}}
        update = {"$set": {**changed, **pending(turn.session_key, current())}, **NOT_ASIDE}
        return await self._db.update_once(TURNS, where, update)

    async def interrupt_running(self) -> int:
        return 0

    async def turn(self, turn_id: str, *, now: datetime) -> Turn | None:
        found = await self._db.one(TURNS, at(turn_id))
        turn = to_turn(found) if found else None
        return turn if turn and turn.expires_at > now else None

    async def turns(self, ids: Sequence[str], *, now: datetime) -> dict[str, Turn]:
        if not ids:
            return {}
        owners = {owner(id_) for id_ in ids}
        where = {"_id": {"$in": list(ids)}, "user_key": {"$in": list(owners)}}
        found = await self._turns(where, len(ids))
        return {turn.id: turn for turn in found if turn.expires_at > now}

    async def forget_key(self, turn: Turn) -> None:
        where = {**at(turn.id), "idempotency": turn.idempotency}
        await self._db.update(TURNS, where, {"$set": {"idempotency": keyless(turn.id)}})

    async def signal(self, turn: Turn, *, cancel: bool = False, watched: datetime | None) -> None:
        told: Document = {"cancelled": turn.attempt} if cancel else {}
        if watched is not None:
            told["watched"] = watched
        where = {**at(turn.id), "attempt": turn.attempt, "status": "running"}
        await self._db.update(TURNS, where, {"$set": told})

    async def signals(self, turns: Sequence[Turn]) -> dict[str, Signal]:
        attempts = {turn.id: turn.attempt for turn in turns}
        where = {
            "_id": {"$in": list(attempts)},
            "user_key": {"$in": list({turn.user_key for turn in turns})},
        }
        found = await self._db.find(TURNS, where, show={"cancelled": 1, "watched": 1})
        return {
            told["_id"]: Signal(told.get("cancelled") == attempts[told["_id"]], told.get("watched"))
            for told in found
        }

    async def by_idempotency(self, user_key: str, keys: Sequence[str]) -> dict[str, Turn]:
        if not keys:
            return {}
        where = {"user_key": user_key, "idempotency": {"$in": list(keys)}}
        return {turn.idempotency: turn for turn in await self._turns(where, len(keys))}

    async def history(
        self, session_key: str, *, now: datetime, before: int | None, first: int, limit: int
    ) -> list[Turn]:
        # A turn has at most two messages, so `first` bounds its seq too.
        which = turns_of(session_key, first=first - 1, before=before)
        where = {**which, "last_seq": {"$gte": first}, "expires_at": {"$gt": now}}
        return await self._newest(where, limit)

    async def range(self, session_key: str, *, after: int, limit: int) -> list[Turn]:
        return await self._turns(later_than(session_key, after), limit, sort=(("_id", 1),))

    async def user_turns(
        self,
        user_key: str,
        *,
        now: datetime,
        limit: int,
        session_key: str | None = None,
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
        found = await self._db.page(
            TURNS,
            where,
            by=("created_at", "_id"),
            after=before,
            limit=limit,
            newest_first=True,
            show=BARE,
        )
        return [to_turn(document) for document in found]

    # --- sessions ------------------------------------------------------------------------------

    async def session(self, key: str) -> Session | None:
        found = await self._db.one(SESSIONS, at(key))
        return to_session(found) if found else None

    async def sessions(
        self, user_key: str, *, before: tuple[datetime, str] | None, limit: int
    ) -> list[Session]:
        found = await self._db.page(
            SESSIONS,
            {"user_key": user_key},
            by=("updated_at", "_id"),
            after=before,
            limit=limit,
            newest_first=True,
        )
        return [to_session(document) for document in found]

    async def put_session(self, session: Session) -> bool:
        return await self._db.insert(SESSIONS, [session_document(session)]) == 1

    async def change_session(
        self, key: str, changes: Mapping[str, Any], *, unchanged: Session | None = None
    ) -> bool:
        update = session_update(changes)
        if unchanged is None:
            return await self._db.update(SESSIONS, at(key), update)
        where = {
            **at(key),
            "summary.version": unchanged.summary.version,
            "created_at": unchanged.created_at,
            "first_seq": unchanged.first_seq,
            "erasing": {"$ne": True},
        }
        return await self._db.update_once(SESSIONS, where, update)

    async def claim(self, key: str, *, worker: str, until: datetime, now: datetime) -> bool:
        free = [
            {"claimed_by": {"$exists": False}},
            {"claimed_by": worker},
            {"claimed_until": {"$lte": now}},
        ]
        taken = {"$set": {"claimed_by": worker, "claimed_until": until}}
        return await self._db.update(SESSIONS, {**at(key), "$or": free}, taken)

    async def release(self, key: str, *, worker: str) -> None:
        gone = {"$unset": {"claimed_by": "", "claimed_until": ""}}
        await self._db.update(SESSIONS, {**at(key), "claimed_by": worker}, gone)

    # --- segments, deleting --------------------------------------------------------------------

    async def put_segment(self, segment: Segment) -> None:
        document = segment_document(segment, self._grace)
        where, update = at(document.pop("_id")), {"$set": document}
        if "purge_at" not in document:
            update["$unset"] = {"purge_at": ""}
        try:
            await self._db.update(SEGMENTS, where, update, upsert=True)
        except Conflict:  # another inserted it at the same time: now it can be changed
            await self._db.update(SEGMENTS, where, update, upsert=True)

    async def segments(self, session_key: str, *, now: datetime) -> list[Segment]:
        where = {**within(session_key), "expires_at": {"$gt": now}}
        found = await self._db.find(SEGMENTS, where, sort=(("first_seq", 1),))
        return [to_segment(document) for document in found]

    async def delete_session(self, session_key: str, *, through: int | None = None) -> int:
        await self.drop_segments(session_key)
        before = None if through is None else through + 1
        deleted = await self._db.delete(TURNS, turns_of(session_key, before=before))
        if through is None:
            await self._db.delete(SESSIONS, at(session_key))
        return deleted

    async def drop_segments(self, session_key: str) -> None:
        await self._db.delete(SEGMENTS, within(session_key))

    async def expired_sessions(self, *, before: datetime, limit: int = PAGE) -> list[str]:
        return await self._session_keys("expires_at", "session_key", before, {}, limit)

    async def delete_expired(self, session_keys: Sequence[str], *, before: datetime) -> int:
        where = {
            "user_key": {"$in": list({owner(key) for key in session_keys})},
            "session_key": {"$in": list(session_keys)},
            "expires_at": {"$lte": before},
        }
        await self._db.delete(SEGMENTS, where)
        return await self._db.delete(TURNS, where)

    async def forget_session(self, session_key: str) -> bool:
        if await self._db.one(TURNS, turns_of(session_key), {"_id": 1}):
            return False
        await self.delete_session(session_key)
        return True

    async def ended_sessions(self, *, before: datetime, limit: int = PAGE) -> list[Session]:
        where = {"$or": [{"expires_at": {"$lte": before}}, {"erasing": True}]}
        return [to_session(found) for found in await self._db.find(SESSIONS, where, limit=limit)]
