"""The embedded store: SQLite, one process, one writer thread, one commit before the model call.

An acknowledged turn survives a loss of power.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from memory.ids import TurnId
from memory.models import Turn
from memory.stores.base import Signal
from memory.stores.codec import Codec
from memory.stores.sqlite.database import Database
from memory.stores.sqlite.schema import prepare
from memory.stores.sqlite.sessions import SqliteSegments, SqliteSessions
from memory.stores.sqlite.turns import SqliteTurns
from memory.stores.sqlite.work import SqliteWork


class NoSignals:
    """`SignalsStore` of turns that all run in this process: no other one asks anything."""

    async def send(self, turn: Turn, *, cancel: bool = False, watched: datetime | None) -> None:
        pass

    async def read(self, turns: Sequence[Turn]) -> dict[TurnId, Signal]:
        return {}


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
        self.signals = NoSignals()

    async def open(self) -> None:
        """Bring the file up to date, and finish what a crash has cut short. Raises ConfigError for
        a file of a later release, StoreUnavailable when another process has the folder."""
        await self._db.open()
        await self.work.finish_resets()

    async def close(self) -> None:
        await self._db.close()

    async def ping(self) -> None:
        await self._db.ping()
