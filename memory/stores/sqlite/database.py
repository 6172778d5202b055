"""One SQLite file: its lock, its writer thread, its reader thread, its transactions.

`synchronous=FULL` in WAL mode syncs at every commit; `secure_delete` overwrites what is deleted.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from memory.errors import StoreUnavailable
from memory.models import Turn
from memory.stores.codec import Codec
from memory.stores.sqlite.lock import FolderLock

T = TypeVar("T")


class Database:
    """The file `path` in a folder of its own, which is locked while it is open.

    `prepare` is called with the writing connection when the file is opened. Every method raises
    StoreUnavailable when SQLite fails.
    """

    def __init__(
        self, path: Path, *, prepare: Callable[[sqlite3.Connection], None], timeout_seconds: float
    ) -> None:
        self._path = path
        self._prepare = prepare
        self._timeout = timeout_seconds
        self._lock = FolderLock(path.parent)
        self._write_thread = ThreadPoolExecutor(1, thread_name_prefix="sqlite-write")
        self._read_thread = ThreadPoolExecutor(1, thread_name_prefix="sqlite-read")
        self._writer: sqlite3.Connection | None = None
        self._reader: sqlite3.Connection | None = None
        self._write_failed = False

    async def open(self) -> None:
        """Once: a database that was closed stays closed. Raises what `prepare` raises, too."""
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock.acquire()
        try:
            await self._write(self._open)
        except BaseException:
            await self.close()
            raise

    def _open(self) -> None:
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))  # its log inherits the mode
        self._writer = self._connect()
        self._prepare(self._writer)
        self._reader = self._connect()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._path, timeout=self._timeout, isolation_level=None, check_same_thread=False
        )
        for pragma in "journal_mode=WAL synchronous=FULL secure_delete=ON cache_size=-1000".split():
            connection.execute(f"PRAGMA {pragma}")
        return connection

    async def close(self) -> None:
        # Each on its own thread: a connection that is closed under a running query takes the
        # whole process with it.
        if self._reader is not None:
            await self._on(self._read_thread, self._reader.close)
        if self._writer is not None:
            await self._write(self._writer.close)
        self._reader = self._writer = None
        self._write_thread.shutdown(wait=True)
        self._read_thread.shutdown(wait=True)
        self._lock.release()

    async def ping(self) -> None:
        """Read; after a write that failed, write too: a full disk can be read all the same."""
        await self.read(lambda db: db.execute("SELECT 1").fetchone())
        if self._write_failed:
            await self.transaction(_write_nothing_new)

    async def rows(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        return await self.read(lambda db: db.execute(query, values).fetchall())

    async def column(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        """The first column of every row."""
        return await self.read(lambda db: [row[0] for row in db.execute(query, values)])

    async def execute(self, statement: str, values: Sequence[Any] = ()) -> int:
        """One statement as a transaction; the number of rows that it changed."""
        return await self.transaction(lambda db: db.execute(statement, values).rowcount)

    async def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """What `work` returns, on the thread of the reading connection."""
        return await self._on(self._read_thread, lambda: work(self._opened(self._reader)))

    async def transaction(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """What `work` returns, once its changes are on the disk; none of them if it raises."""

        def run() -> T:
            with transaction(self._opened(self._writer)) as db:
                return work(db)

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
        except (sqlite3.Error, RuntimeError) as error:  # the latter when the threads have ended
            raise StoreUnavailable(f"SQLite: {error}") from error

    @staticmethod
    def _opened(connection: sqlite3.Connection | None) -> sqlite3.Connection:
        if connection is None:
            raise StoreUnavailable("the store is not open")
        return connection

    async def erase(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """A transaction whose deletions are gone from every file when it returns."""
        result = await self.transaction(work)
        await self.checkpoint()
        return result

    async def checkpoint(self) -> None:
        """Let what was deleted leave the write-ahead log, too."""
        # Read to its end on its own thread: a statement in progress locks out the writes after it.
        await self._write(
            lambda: self._opened(self._writer).execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        )


class Facet:
    """What a facet of the store works with."""

    def __init__(self, db: Database, codec: Codec) -> None:
        self._db = db
        self._codec = codec

    async def _turns(self, where: str, values: Sequence[Any] = ()) -> list[Turn]:
        bodies = await self._db.column(f"SELECT body FROM turns WHERE {where}", values)
        return [self._codec.turn_from_row(body) for body in bodies]


def _write_nothing_new(db: sqlite3.Connection) -> None:
    (version,) = db.execute("PRAGMA user_version").fetchone()
    db.execute(f"PRAGMA user_version = {version}")


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield db
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def marks(values: Sequence[Any]) -> str:
    """The placeholders of so many values."""
    return ",".join("?" * len(values))


def into(table: str, columns: Sequence[str]) -> str:
    """The end of an INSERT of one row."""
    return f"INTO {table} ({', '.join(columns)}) VALUES ({marks(columns)})"
