"""The collections of the MongoDB store: their indexes, the filters for them, and the fields that
stand there beside those of the codec.

Every document carries `user_key`, and every filter for one user's data names it: by it a cluster
is sharded.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from memory.ids import SessionKey
from memory.models import NEVER, turn_id
from memory.stores.codec import Document, owner

COLLECTIONS = TURNS, SESSIONS, SEGMENTS, META = "turns", "sessions", "segments", "meta"
WITHOUT_DENSE = "without_dense"
LAST_SEQ = 9_999_999_999  # an id has ten digits for it


class Index(NamedTuple):
    collection: str
    name: str
    keys: tuple[tuple[str, int], ...]
    unique: bool = False
    sparse: bool = False
    expires: bool = False  # deletes a document at the date it holds

    @property
    def options(self) -> dict[str, Any]:
        # Only what differs from the default: it is compared with what is there already.
        given = {"unique": self.unique, "sparse": self.sparse}
        options: dict[str, Any] = {name: True for name, value in given.items() if value}
        return {**options, "expireAfterSeconds": 0} if self.expires else options


# The ids of a session's turns are in the order of their `seq`: the index of `_id` serves for both.
# Each further one costs every turn before its model call.
# The fields of a sparse compound index exist together or not at all: a document with one of them
# would be in it. So `pending_in` repeats the session key while, and only while, a turn is pending.
INDEXES = (
    Index(TURNS, "idempotency", (("user_key", 1), ("idempotency", 1)), unique=True),
    Index(TURNS, "user", (("user_key", 1), ("created_at", 1), ("_id", 1))),
    Index(TURNS, "pending", (("pending_since", 1), ("pending_in", 1)), sparse=True),
    Index(TURNS, "pending_in", (("pending_in", 1), ("pending_since", 1)), sparse=True),
    Index(TURNS, "aside", (("aside_since", 1),), sparse=True),
    Index(TURNS, "expiry", (("expires_at", 1), ("session_key", 1))),
    Index(TURNS, "purge", (("purge_at", 1),), sparse=True, expires=True),
    Index(SESSIONS, "user", (("user_key", 1), ("updated_at", 1), ("_id", 1))),
    Index(SESSIONS, "expiry", (("expires_at", 1),)),
    Index(SESSIONS, "erasing", (("erasing", 1),), sparse=True),
    Index(SESSIONS, WITHOUT_DENSE, ((WITHOUT_DENSE, 1),), sparse=True),
    Index(SEGMENTS, "session", (("user_key", 1), ("session_key", 1), ("first_seq", 1))),
    Index(SEGMENTS, "purge", (("purge_at", 1),), sparse=True, expires=True),
)  # fmt: skip


def at(id_: str) -> Document:
    """The filter for one document by its id."""
    return {"_id": id_, "user_key": owner(id_)}


def all_of(ids: Collection[str]) -> Document:
    """The filter for documents by their ids."""
    owners = {owner(id_) for id_ in ids}
    return {"_id": {"$in": list(ids)}, "user_key": {"$in": list(owners)}}


def within(session_key: SessionKey) -> Document:
    """The filter for the segments of one session."""
    return {"user_key": owner(session_key), "session_key": session_key}


def turns_of(session_key: SessionKey, *, first: int = 0, before: int | None = None) -> Document:
    """The filter for the turns of a session with `first` ≤ seq < `before`."""
    end = min(before, LAST_SEQ) if before is not None else LAST_SEQ
    ids = {"$gte": turn_id(session_key, max(0, first)), "$lt": turn_id(session_key, end)}
    return {"user_key": owner(session_key), "_id": ids}


def later_than(session_key: SessionKey, seq: int) -> Document:
    """The filter for the turns of a session that end after message `seq`."""
    # A turn has at most two messages, so `seq` bounds its first one too: that one is in the index.
    return {**turns_of(session_key, first=seq), "last_seq": {"$gt": seq}}


def purge_at(expires_at: datetime, grace_seconds: float) -> Document:
    """The field by which the server deletes a document itself; none for what never expires."""
    if expires_at >= NEVER:
        return {}
    try:
        moment = expires_at + timedelta(seconds=grace_seconds)
    except OverflowError:  # an infinite grace too
        return {}
    return {"purge_at": moment} if moment < NEVER else {}


def pending(session_key: SessionKey, since: datetime) -> Document:
    """The fields of a turn that some projection has not seen."""
    return {"pending_since": since, "pending_in": session_key}


def without_dense(session_key: SessionKey) -> Document:
    """The field of a session whose dense watermark may lie below its last seq: by it these are
    found and paged. It is the key, since a compound index with `_id` would hold all sessions."""
    return {WITHOUT_DENSE: session_key}
