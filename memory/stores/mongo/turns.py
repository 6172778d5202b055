"""The log in MongoDB. What makes a write happen only once is explained in store.py."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime

from memory.ids import SessionKey, TurnId, UserKey
from memory.models import NEVER, LoadedSession, Turn, keyless
from memory.models import now as current
from memory.stores.base import PAGE, Signal
from memory.stores.codec import Document, owner
from memory.stores.mongo.collections import (
    SEGMENTS,
    SESSIONS,
    TURNS,
    all_of,
    at,
    later_than,
    pending,
    purge_at,
    turns_of,
)
from memory.stores.mongo.facet import BARE, Facet

NEWEST = (("_id", -1),)
FIRST_READ = 50  # turns that `load` reads along with the session: more than most windows hold
NOT_POISONED = {"$unset": {"aside_since": "", "aside": ""}}


class MongoTurns(Facet):
    """`TurnsStore` in MongoDB."""

    async def load(self, session_key: SessionKey, *, limit: int = PAGE) -> LoadedSession:
        first = min(limit, FIRST_READ)
        document, turns = await asyncio.gather(
            self._db.one(SESSIONS, at(session_key)),
            self._turns(turns_of(session_key), sort=NEWEST, limit=first),
        )
        session = self._codec.session_from_document(document) if document else None
        covered = session.summary.covers_through if session else 0
        if len(turns) == first < limit and turns[-1].seq > covered:
            # A turn has at most two messages, so one that ends at `covered` begins here or later.
            rest = turns_of(session_key, first=covered - 1, before=turns[-1].seq)
            turns += await self._turns(rest, sort=NEWEST, limit=limit - first)
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
        await self._db.delete(TURNS, _held(turn))

    async def save(self, turn: Turn) -> bool:
        changed = self._codec.turn_fields(turn)
        if turn.receipt is None:
            del changed["receipt"]
        return await self._db.update_once(TURNS, _held(turn), {"$set": changed})

    async def rerun(self, turn: Turn, *, was: Turn) -> bool:
        changed = self._codec.turn_fields(turn)
        where = {**_held(was), "status": {"$in": ["failed", "interrupted"]}}
        update = {"$set": {**changed, **pending(turn.session_key, current())}, **NOT_POISONED}
        return await self._db.update_once(TURNS, where, update)

    async def interrupt_running(self) -> int:
        return 0

    async def get(self, turn_id: TurnId, *, now: datetime) -> Turn | None:
        found = await self._db.one(TURNS, at(turn_id))
        turn = self._codec.turn_from_document(found) if found else None
        return turn if turn and turn.expires_at > now else None

    async def get_many(self, ids: Sequence[TurnId], *, now: datetime) -> dict[TurnId, Turn]:
        found = await self._turns(all_of(ids), limit=len(ids)) if ids else []
        return {turn.id: turn for turn in found if turn.expires_at > now}

    async def forget_key(self, turn: Turn) -> None:
        where = {**at(turn.id), "idempotency": turn.idempotency}
        await self._db.update(TURNS, where, {"$set": {"idempotency": keyless(turn.id)}})

    async def by_idempotency(self, user_key: UserKey, keys: Sequence[str]) -> dict[str, Turn]:
        where = {"user_key": user_key, "idempotency": {"$in": list(keys)}}
        found = await self._turns(where, limit=len(keys)) if keys else []
        return {turn.idempotency: turn for turn in found}

    async def history(
        self, session_key: SessionKey, *, now: datetime, before: int | None, first: int, limit: int
    ) -> list[Turn]:
        # A turn has at most two messages, so `first` bounds its seq too.
        which = turns_of(session_key, first=first - 1, before=before)
        where = {**which, "last_seq": {"$gte": first}, "expires_at": {"$gt": now}}
        return await self._turns(where, sort=NEWEST, limit=limit)

    async def range(self, session_key: SessionKey, *, after: int, limit: int) -> list[Turn]:
        where = later_than(session_key, after)
        return await self._turns(where, sort=(("_id", 1),), limit=limit)

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
        by = ("created_at", "_id")
        found = await self._page(TURNS, where, by=by, after=before, limit=limit, show=BARE)
        return [self._codec.turn_from_document(document) for document in found]

    async def overdue(self, *, before: datetime, limit: int = PAGE) -> list[Turn]:
        # A running turn is pending: so it is in a sparse index.
        where = {"pending_since": {"$lte": NEVER}, "status": "running", "until": {"$lt": before}}
        return await self._turns(where, limit=limit)

    async def delete_expired(self, session_keys: Sequence[SessionKey], *, before: datetime) -> int:
        where = {
            "user_key": {"$in": list({owner(key) for key in session_keys})},
            "session_key": {"$in": list(session_keys)},
            "expires_at": {"$lte": before},
        }
        await self._db.delete(SEGMENTS, where)
        return await self._db.delete(TURNS, where)


class MongoSignals(Facet):
    """`SignalsStore` in MongoDB: two fields of the turn's document."""

    async def send(self, turn: Turn, *, cancel: bool = False, watched: datetime | None) -> None:
        signal: Document = {"cancelled": turn.attempt} if cancel else {}
        if watched is not None:
            signal["watched"] = watched
        where = {**at(turn.id), "attempt": turn.attempt, "status": "running"}
        await self._db.update(TURNS, where, {"$set": signal})

    async def read(self, turns: Sequence[Turn]) -> dict[TurnId, Signal]:
        attempts = {turn.id: turn.attempt for turn in turns}
        found = await self._db.find(TURNS, all_of(attempts), show={"cancelled": 1, "watched": 1})
        return {
            one["_id"]: Signal(one.get("cancelled") == attempts[one["_id"]], one.get("watched"))
            for one in found
        }


def _held(turn: Turn) -> Document:
    """The filter for a turn that still runs under its fencing token."""
    return {**at(turn.id), "token": turn.fencing_token, "status": "running"}
