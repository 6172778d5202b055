"""The embedded store: SQLite, one process, one writer thread, one commit before the model call.

`synchronous=FULL` in WAL mode syncs at every commit, so an acknowledged turn survives a loss of
power; `secure_delete` overwrites what is deleted. An exclusive lock on the data folder keeps a
second process out.
"""

from __future__ import annotations

from pathlib import Path

from memory.stores.sqlite.database import Database
from memory.stores.sqlite.rows import SCHEMA
from memory.stores.sqlite.segments import SqliteSegments
from memory.stores.sqlite.sessions import SqliteSessions
from memory.stores.sqlite.signals import SqliteSignals
from memory.stores.sqlite.turns import SqliteTurns
from memory.stores.sqlite.work import SqliteWork


class SqliteStore:
    """A `Store` in the file `path`; an exclusive lock on its folder keeps others out."""

    embedded = True

    def __init__(self, path: Path, *, timeout_seconds: float = 2.0) -> None:
        self._db = Database(path, schema=SCHEMA, timeout_seconds=timeout_seconds)
        self.turns = SqliteTurns(self._db)
        self.sessions = SqliteSessions(self._db)
        self.segments = SqliteSegments(self._db)
        self.work = SqliteWork(self._db)
        self.signals = SqliteSignals()

    async def open(self) -> None:
        """Raises StoreUnavailable when another process has the folder."""
        await self._db.open()

    async def close(self) -> None:
        await self._db.close()

    async def ping(self) -> None:
        await self._db.ping()
