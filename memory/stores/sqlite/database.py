"""One SQLite file: its lock, its writer thread, its reader thread, its transactions.

`synchronous=FULL` in WAL mode syncs at every commit; `secure_delete` overwrites what is deleted.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from memory.errors import StoreUnavailable

T = TypeVar("T")


class Database:
    """The file `path` in a folder of its own, which is locked while it is open. Every method
    raises StoreUnavailable when SQLite fails."""

    def __init__(self, path: Path, *, schema: str, timeout_seconds: float) -> None:
        self._path = path
        self._schema = schema
        self._timeout = timeout_seconds
        self._lock: int | None = None
        self._write_thread = ThreadPoolExecutor(1, thread_name_prefix="sqlite-write")
        self._read_thread = ThreadPoolExecutor(1, thread_name_prefix="sqlite-read")
        self._writer: sqlite3.Connection | None = None
        self._reader: sqlite3.Connection | None = None
        self._write_failed = False

    async def open(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = os.open(self._path.parent / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            self._lock = None
            raise StoreUnavailable(
                f"{self._path.parent} is in use by another process: stop it or talk to it "
                f"with --url"
            ) from error
        await self._write(self._open)

    def _open(self, _: None = None) -> None:
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))  # its log inherits the mode
        self._writer = self._connect()
        self._writer.executescript(self._schema)
        self._reader = self._connect()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._path, timeout=self._timeout, isolation_level=None, check_same_thread=False
        )
        for pragma in (
            "journal_mode=WAL",
            "synchronous=FULL",
            "secure_delete=ON",
            "cache_size=-1000",
        ):
            connection.execute(f"PRAGMA {pragma}")
        return connection

    async def close(self) -> None:
        # Each on its own thread: a connection that is closed under a running query takes the
        # whole process with it.
        if self._reader is not None:
            await self._on(self._read_thread, self._reader.close)
        if self._writer is not None:
            await self._write(self._writer.close)
        self._write_thread.shutdown(wait=True)
        self._read_thread.shutdown(wait=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    async def ping(self) -> None:
        await self.read(lambda db: db.execute("SELECT 1").fetchone())
        if self._write_failed:  # a full disk can be read all the same
            await self.transaction(lambda db: db.execute("PRAGMA user_version = 1"))

    async def rows(self, query: str, values: Sequence[Any]) -> list[Any]:
        """The first column of every row."""
        return await self.read(lambda db: [row[0] for row in db.execute(query, values)])

    async def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        return await self._on(self._read_thread, lambda: work(self._opened(self._reader)))

    async def transaction(self, work: Callable[[sqlite3.Connection], T]) -> T:
        def run() -> T:
            db = self._opened(self._writer)
            db.execute("BEGIN IMMEDIATE")
            try:
                result = work(db)
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise
            return result

        return await self._write(run)

    async def _write(self, work: Callable[[], T]) -> T:
        # A write that has begun is waited for even when the caller is cancelled: whether it was
        # committed must not be a guess.
        def tracked() -> T:
            try:
                result = work()
            except sqlite3.Error:
                self._write_failed = True
                raise
            self._write_failed = False
            return result

        return await asyncio.shield(asyncio.ensure_future(self._on(self._write_thread, tracked)))

    async def _on(self, thread: ThreadPoolExecutor, work: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(thread, work)
        except sqlite3.Error as error:
            raise StoreUnavailable(f"SQLite: {error}") from error
        except RuntimeError as error:  # the thread pool is shut down
            raise StoreUnavailable(f"SQLite: {error}") from error

    @staticmethod
    def _opened(connection: sqlite3.Connection | None) -> sqlite3.Connection:
        if connection is None:
            raise StoreUnavailable("the store is not open")
        return connection

    async def checkpoint(self) -> None:
        """What was deleted leaves the write-ahead log too."""
        # Read to its end on its own thread: a statement in progress locks out the writes after it.
        await self._write(
            lambda: self._opened(self._writer).execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        )
