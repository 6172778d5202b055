"""One MongoDB database through motor: the only module that imports it, pymongo or bson.

Every command has a deadline, and whatever the driver says becomes one of our errors.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from datetime import UTC
from typing import Any
from uuid import uuid4

import pymongo
from bson.codec_options import CodecOptions
from motor.motor_asyncio import AsyncIOMotorClient
from pymongo import IndexModel
from pymongo.errors import (
    BulkWriteError,
    ConfigurationError,
    DuplicateKeyError,
    OperationFailure,
    PyMongoError,
)

from memory.errors import ConfigError, StoreUnavailable
from memory.stores.codec import Document
from memory.stores.mongo.collections import COLLECTIONS, INDEXES, at

DATABASE = "strata"
BATCH = 200  # documents that one command changes at most: a server may need a ms for each
INDEX_BUILD_SECONDS = 3600.0  # a new index over a large collection takes its time
SLACK_SECONDS = 0.25  # the driver's own deadline comes first and says more
POOL = 50
DUPLICATE, REFUSED, DIFFERENT = 11000, (13, 18), (85, 86)

Order = Sequence[tuple[str, int]]


class Conflict(Exception):
    """A unique index refused the document at `place` of an insert (or the only one)."""

    def __init__(self, place: int = 0) -> None:
        self.place = place


class Connection:
    """The database that `url` names (else `strata`). Every method raises StoreUnavailable when
    there is no answer within `timeout_seconds`; no message quotes a document or a password."""

    def __init__(self, url: str, *, timeout_seconds: float, listeners: Sequence[Any] = ()) -> None:
        self._url = url
        self._timeout = timeout_seconds
        self._listeners = list(listeners)
        self._client: Any = None
        self._collections: dict[str, Any] = {}

    async def open(self) -> None:
        """Connect and make what indexes are missing. Raises ConfigError, StoreUnavailable."""
        try:
            # A name of the form mongodb+srv is looked up at once: not on the event loop.
            self._client = await asyncio.to_thread(self._connect, asyncio.get_running_loop())
            options: CodecOptions[Document] = CodecOptions(tz_aware=True, tzinfo=UTC)
            database = self._client.get_default_database(DATABASE, codec_options=options)
            self._collections = {name: database[name] for name in COLLECTIONS}
        except (PyMongoError, ValueError, TypeError) as error:
            # Its text may quote the URL, and so a password.
            raise ConfigError(
                "store.url", f"not usable ({type(error).__name__})", "mongodb://host/database"
            ) from None
        try:
            await self.ping()
            async with self._do(INDEX_BUILD_SECONDS) as collections:
                await asyncio.gather(*map(_index, collections.values()))
        except BaseException as error:
            await self.close()
            cause = error.__cause__
            if isinstance(cause, OperationFailure) and cause.code in REFUSED:
                raise ConfigError("store.url", "MongoDB refuses these credentials") from cause
            raise

    def _connect(self, loop: asyncio.AbstractEventLoop) -> Any:
        ms = max(1, round(self._timeout * 1000))
        return AsyncIOMotorClient(
            self._url, io_loop=loop, appname="strata", w="majority", journal=True,
            maxPoolSize=POOL, serverSelectionTimeoutMS=ms, connectTimeoutMS=ms,
            socketTimeoutMS=ms, waitQueueTimeoutMS=ms, event_listeners=self._listeners,
        )  # fmt: skip

    async def close(self) -> None:
        client, self._client, self._collections = self._client, None, {}
        if client is not None:  # closing writes to the server, which may not answer
            await asyncio.to_thread(client.close)

    @asynccontextmanager
    async def _do(self, seconds: float | None = None) -> AsyncIterator[dict[str, Any]]:
        """The collections by name, for one command with a deadline (by default the usual one).
        Raises Conflict, too.

        The usual deadline is that of the socket. Only another one is set with pymongo.timeout: it
        sends maxTimeMS with each command, which can cost a server further statements.
        """
        if self._client is None:
            raise StoreUnavailable("the store is not open")
        try:
            with pymongo.timeout(seconds) if seconds else nullcontext():
                seconds = seconds or self._timeout
                async with asyncio.timeout(seconds + SLACK_SECONDS):
                    yield self._collections
        except DuplicateKeyError as error:
            raise Conflict from error
        except BulkWriteError as error:
            if not _is_conflict(error.details):
                raise StoreUnavailable(_said(error)) from error
            raise Conflict(error.details["writeErrors"][0]["index"]) from error
        except ConfigurationError as error:
            raise ConfigError("store.url", _said(error)) from error
        except PyMongoError as error:
            raise StoreUnavailable(_said(error)) from error
        except TimeoutError:
            raise StoreUnavailable(f"MongoDB: no answer within {seconds:g} s") from None

    async def ping(self) -> None:
        async with self._do():
            await self._client.admin.command("ping")

    async def one(
        self, collection: str, where: Document, show: Mapping[str, Any] | None = None
    ) -> Document | None:
        async with self._do() as collections:
            found: Document | None = await collections[collection].find_one(where, show)
        return found

    async def find(
        self,
        collection: str,
        where: Document,
        *,
        sort: Order = (),
        limit: int = 0,
        show: Mapping[str, Any] | None = None,
    ) -> list[Document]:
        async with self._do() as collections:
            cursor = collections[collection].find(
                where, show, sort=list(sort) or None, limit=limit, batch_size=limit
            )
            found: list[Document] = await cursor.to_list(None)
        return found

    async def insert(self, collection: str, documents: list[Document]) -> int:
        """Insert in order up to the first one that a unique index refuses; returns how many were
        inserted."""
        mark, done = uuid4().hex, 0
        marked = [{**document, "write": mark} for document in documents]
        while rest := marked[done : done + BATCH]:
            try:
                async with self._do() as collections:
                    if len(rest) == 1:
                        await collections[collection].insert_one(rest[0])
                    else:
                        await collections[collection].insert_many(rest)
            except Conflict as conflict:
                # What is refused may be this very insert, repeated by the driver.
                ours = 0
                while ours < len(rest) and await self._bears(collection, rest[ours]["_id"], mark):
                    ours += 1
                done += ours
                if ours <= conflict.place:
                    break
            else:
                done += len(rest)
        return done

    async def update(
        self, collection: str, where: Document, update: Document, *, upsert: bool = False
    ) -> bool:
        """Change one document; False when none matches `where` (with `upsert` it is inserted)."""
        async with self._do() as collections:
            result = await collections[collection].update_one(where, update, upsert=upsert)
        return bool(result.matched_count)

    async def update_once(self, collection: str, where: Document, update: Document) -> bool:
        """Change one document so that `where` matches it no more; False when another call has, or
        none matched. An update that the driver repeated counts as done."""
        mark = uuid4().hex
        marked = {**update, "$set": {**update.get("$set", {}), "write": mark}}
        if await self.update(collection, where, marked):
            return True
        return await self._bears(collection, where["_id"], mark)

    async def _bears(self, collection: str, id_: str, mark: str) -> bool:
        found = await self.one(collection, at(id_), {"write": 1})
        return found is not None and found.get("write") == mark

    async def update_many(self, collection: str, where: Document, update: Document) -> None:
        async with self._do() as collections:
            await collections[collection].update_many(where, update)

    async def update_each(self, collection: str, updates: list[tuple[Document, Document]]) -> None:
        """Change one document with each of these filters and updates."""
        if updates:
            async with self._do() as collections:
                await collections[collection].bulk_write(
                    [pymongo.UpdateOne(where, update) for where, update in updates], ordered=False
                )

    async def update_all(self, collection: str, where: Document, update: Document) -> None:
        """Change all that match `where`, by pages. The update must end that they match."""
        async for page in self._pages(collection, where):
            await self.update_many(collection, page, update)

    async def delete(self, collection: str, where: Document) -> int:
        """Delete all that match `where`, by pages; returns how many."""
        deleted = 0
        async for page in self._pages(collection, where):
            async with self._do() as collections:
                result = await collections[collection].delete_many(page)
            deleted += result.deleted_count
        return deleted

    async def _pages(self, collection: str, where: Document) -> AsyncIterator[Document]:
        """Filters for a part each of what matches `where` at that time, so that no command takes
        long."""
        size = BATCH
        while size == BATCH:
            page = await self.find(collection, where, limit=BATCH, show={"_id": 1})
            size = len(page)
            if page:
                yield {**where, "_id": {"$in": [document["_id"] for document in page]}}


async def _index(collection: Any) -> None:
    """Make its indexes in one command: a server may need a second for each such command."""
    models = {
        index.name: IndexModel(list(index.keys), name=index.name, **index.options)
        for index in INDEXES
        if index.collection == collection.name
    }
    if not models:
        return
    try:
        await collection.create_indexes(list(models.values()))
    except OperationFailure as error:
        if error.code not in DIFFERENT:
            raise
        for name, model in models.items():
            try:
                await collection.create_indexes([model])
            except OperationFailure:
                raise ConfigError(
                    "store.url",
                    f"the collection {collection.name} has another index in place of {name!r}",
                    "drop that index; this one is made at the next start",
                ) from error


def _is_conflict(details: Mapping[str, Any]) -> bool:
    """Whether nothing but a unique index refused it, and what was done before is durable."""
    codes = {fault["code"] for fault in details.get("writeErrors", ())}
    return codes == {DUPLICATE} and not details.get("writeConcernErrors")


def _said(error: PyMongoError) -> str:
    """The kind of the error, and where: its text may quote a document."""
    if isinstance(error, OperationFailure):
        return f"MongoDB: {type(error).__name__}, code {error.code}"
    return f"MongoDB: {str(error).partition(', Timeout:')[0] or type(error).__name__}"
