"""The embedded store: SQLite, one process, one writer thread, one commit before the model call.

`synchronous=FULL` in WAL mode syncs at every commit, so an acknowledged turn survives a loss of
power; `secure_delete` overwrites what is deleted. An exclusive lock on the data folder keeps a
second process out.
"""

from __future__ import annotations

from pathlib import Path

from memory.stores.codec import Codec
from memory.stores.sqlite.database import Database
from memory.stores.sqlite.schema import prepare
from memory.stores.sqlite.segments import SqliteSegments
from memory.stores.sqlite.sessions import SqliteSessions
from memory.stores.sqlite.signals import SqliteSignals
from memory.stores.sqlite.turns import SqliteTurns
from memory.stores.sqlite.work import SqliteWork


class SqliteStore:
    """A `Store` in the file `path`; an exclusive lock on its folder keeps others out."""

    embedded = True

    def __init__(
        self, path: Path, *, timeout_seconds: float = 2.0, codec: Codec | None = None
    ) -> None:
        codec = codec or Codec()
        self._db = Database(path, prepare=prepare, timeout_seconds=timeout_seconds)
        self.turns = SqliteTurns(self._db, codec)
        self.sessions = SqliteSessions(self._db, codec)
        self.segments = SqliteSegments(self._db, codec)
        self.work = SqliteWork(self._db, codec)
        self.signals = SqliteSignals()

    async def open(self) -> None:
        """Bring the file up to date, and finish what a crash has cut short. Raises ConfigError for
        a file of a later release, StoreUnavailable when another process has the folder."""
        await self._db.open()
        await self.work.finish_resets()

    async def close(self) -> None:
        await self._db.close()

    async def ping(self) -> None:
        await self._db.ping()
