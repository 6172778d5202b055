"""Brings the documents of an earlier release to the form that this release relies on.

The document `schema` of the collection `meta` says which form they have; there is none in a
database of release 0.1.0, and in an empty one. Workers that start together may all do the same
steps. Workers of the earlier release should have ended: what they change is not brought forward.
"""

from __future__ import annotations

from contextlib import suppress

from memory.errors import ConfigError
from memory.stores.codec import Document
from memory.stores.mongo.collections import META, SESSIONS, without_dense
from memory.stores.mongo.connection import Conflict, Connection
from memory.stores.mongo.facet import all_pages

VERSION = 2
_SCHEMA: Document = {"_id": "schema"}


async def prepare(db: Connection) -> None:
    """Raises ConfigError for a database that a later release has written."""
    known = await db.one(META, _SCHEMA)
    found = known["version"] if known else 1
    if found > VERSION:
        raise ConfigError(
            "store.url",
            f"the database has documents of version {found}, this release knows them up to "
            f"{VERSION}",
            "start the release that wrote it, or a later one",
        )
    if found < VERSION:
        await _mark_sessions_without_dense(db)
        with suppress(Conflict):  # another worker has inserted it
            await db.update(META, _SCHEMA, {"$set": {"version": VERSION}}, upsert=True)


async def _mark_sessions_without_dense(db: Connection) -> None:
    show = {"last_seq": 1, "dense_through": 1}
    async for page in all_pages(db, SESSIONS, "_id", show):
        behind = [found for found in page if found["dense_through"] < found["last_seq"]]
        # Each unless it has been changed meanwhile.
        await db.update_each(SESSIONS, [(s, {"$set": without_dense(s["_id"])}) for s in behind])
