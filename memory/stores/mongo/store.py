"""The store for many workers: MongoDB, through one connection.

An acknowledged write is on the disks of a majority. Every change touches one document, or is a
page of changes that can be made again: it needs no transactions, so a standalone server will do as
well as a replica set or a cluster. The driver repeats a write whose answer was lost, and some
servers then run it twice: so a write that may happen only once puts a mark into the document, and
when it is refused, looks whether that mark is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from memory.stores.codec import Codec
from memory.stores.mongo.connection import Connection
from memory.stores.mongo.schema import prepare
from memory.stores.mongo.sessions import MongoSegments, MongoSessions
from memory.stores.mongo.turns import MongoSignals, MongoTurns
from memory.stores.mongo.work import MongoWork


class MongoStore:
    """A `Store` for any number of processes, in the database that `url` names.

    The server itself deletes documents `purge_grace_seconds` after they expired (never, if that is
    infinite). `listeners` are event listeners of pymongo.
    """

    embedded = False

    def __init__(
        self,
        url: str,
        *,
        timeout_seconds: float = 2.0,
        purge_grace_seconds: float = 86400.0,
        listeners: Sequence[Any] = (),
        codec: Codec | None = None,
    ) -> None:
        self._db = Connection(url, timeout_seconds=timeout_seconds, listeners=listeners)
        parts = (self._db, codec or Codec(), purge_grace_seconds)
        self.turns = MongoTurns(*parts)
        self.sessions = MongoSessions(*parts)
        self.segments = MongoSegments(*parts)
        self.work = MongoWork(*parts)
        self.signals = MongoSignals(*parts)

    async def open(self) -> None:
        """Connect, make what indexes are missing, bring documents of an earlier release up to
        date. Raises ConfigError, StoreUnavailable."""
        await self._db.open()
        try:
            await prepare(self._db)
        except BaseException:
            await self._db.close()
            raise

    async def close(self) -> None:
        await self._db.close()

    async def ping(self) -> None:
        await self._db.ping()
