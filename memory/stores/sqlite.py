"""The embedded store: SQLite, one process, one writer thread, one commit before the model call.

`synchronous=FULL` in WAL mode syncs at every commit, so an acknowledged turn survives a loss of
power; `secure_delete` overwrites what is deleted. Documents are JSON; only what is searched or
compared is a column. An exclusive lock on the data folder keeps a second process out.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from memory.errors import StoreUnavailable
from memory.models import Receipt, Segment, Session, Turn
from memory.stores.base import PAGE, Loaded

T = TypeVar("T")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS turns (
    id TEXT PRIMARY KEY, user_key TEXT NOT NULL, session_key TEXT NOT NULL,
    seq INTEGER NOT NULL, last_seq INTEGER NOT NULL, idempotency TEXT NOT NULL,
    status TEXT NOT NULL, token TEXT NOT NULL, created_at REAL NOT NULL,
    expires_at REAL NOT NULL, pending_since REAL, body BLOB NOT NULL, receipt BLOB
) WITHOUT ROWID;
CREATE UNIQUE INDEX IF NOT EXISTS turns_session ON turns (session_key, seq);
CREATE UNIQUE INDEX IF NOT EXISTS turns_idempotency ON turns (user_key, idempotency);
CREATE INDEX IF NOT EXISTS turns_user ON turns (user_key, created_at, id);
CREATE INDEX IF NOT EXISTS turns_pending ON turns (pending_since, session_key, user_key)
    WHERE pending_since IS NOT NULL;
CREATE INDEX IF NOT EXISTS turns_expiry ON turns (expires_at);
CREATE INDEX IF NOT EXISTS turns_running ON turns (status) WHERE status = 'running';
CREATE TABLE IF NOT EXISTS sessions (
    key TEXT PRIMARY KEY, user_key TEXT NOT NULL, updated_at REAL NOT NULL,
    expires_at REAL NOT NULL, erasing INTEGER NOT NULL, body BLOB NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS sessions_user ON sessions (user_key, updated_at, key);
CREATE INDEX IF NOT EXISTS sessions_expiry ON sessions (expires_at);
CREATE TABLE IF NOT EXISTS segments (
    session_key TEXT NOT NULL, first_seq INTEGER NOT NULL, expires_at REAL NOT NULL,
    body BLOB NOT NULL, PRIMARY KEY (session_key, first_seq)
) WITHOUT ROWID;
"""

_turn = msgspec.json.Decoder(Turn)
_session = msgspec.json.Decoder(Session)
_segment = msgspec.json.Decoder(Segment)
_receipt = msgspec.json.Decoder(Receipt)


class SqliteStore:
    """A `TurnStore` in the file `path`; `lock_path` names the lock file of the data folder."""

    def __init__(self, path: Path, *, timeout_seconds: float = 2.0) -> None:
        self._path = path
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
        self._writer.executescript(_SCHEMA)
        self._reader = self._connect()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._path, timeout=self._timeout, isolation_level=None, check_same_thread=False
        )
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "secure_delete=ON"):
            connection.execute(f"PRAGMA {pragma}")
        return connection

    async def close(self) -> None:
        def work() -> None:
            for connection in (self._reader, self._writer):
                if connection is not None:
                    connection.close()

        await self._write(work)
        self._write_thread.shutdown(wait=True)
        self._read_thread.shutdown(wait=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    async def ping(self) -> None:
        await self._read(lambda db: db.execute("SELECT 1").fetchone())
        if self._write_failed:  # a full disk can be read all the same
            await self._transaction(lambda db: db.execute("PRAGMA user_version = 1"))

    async def load(self, session_key: str, *, limit: int = PAGE) -> Loaded:
        def work(db: sqlite3.Connection) -> Loaded:
            row = db.execute("SELECT body FROM sessions WHERE key = ?", (session_key,)).fetchone()
            session = _session.decode(row[0]) if row else None
            covered = session.summary.covers_through if session else 0
            turns: list[Turn] = []
            for (body,) in db.execute(
                "SELECT body FROM turns WHERE session_key = ? ORDER BY seq DESC LIMIT ?",
                (session_key, limit),
            ):
                if turns and turns[-1].seq <= covered:
                    break
                turns.append(_turn.decode(body))
            return Loaded(session, turns)

        return await self._read(work)

    async def append(self, turns: Sequence[Turn]) -> int:
        rows = [(*_columns(turn), turn.recorded_at.timestamp()) for turn in turns]

        def work(db: sqlite3.Connection) -> int:
            inserted = 0
            for row in rows:
                try:
                    db.execute(
                        "INSERT INTO turns (id, user_key, session_key, seq, last_seq, idempotency,"
                        " status, token, created_at, expires_at, body, receipt, pending_since)"
                        " VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?)",
                        row,
                    )
                except sqlite3.IntegrityError:
                    break
                inserted += 1
            return inserted

        return await self._transaction(work)

    async def save(self, turn: Turn) -> bool:
        row = _columns(turn)

        def work(db: sqlite3.Connection) -> bool:
            changed = db.execute(
                "UPDATE turns SET status = ?, body = ?, receipt = ?"
                " WHERE id = ? AND token = ? AND status = 'running'",
                (turn.status, row[10], row[11], turn.id, turn.token),
            )
            return changed.rowcount == 1

        return await self._transaction(work)

    async def interrupt_running(self) -> int:
        def work(db: sqlite3.Connection) -> int:
            rows = db.execute("SELECT body FROM turns WHERE status = 'running'").fetchall()
            for (body,) in rows:
                turn = _turn.decode(body)
                answer = turn.assistant and msgspec.structs.replace(
                    turn.assistant, status="interrupted"
                )
                turn = msgspec.structs.replace(turn, status="interrupted", assistant=answer)
                db.execute(
                    "UPDATE turns SET status = 'interrupted', body = ? WHERE id = ?",
                    (_columns(turn)[10], turn.id),
                )
            return len(rows)

        return await self._transaction(work)

    async def turn(self, turn_id: str, *, now: datetime) -> Turn | None:
        def work(db: sqlite3.Connection) -> Turn | None:
            row = db.execute(
                "SELECT body, receipt FROM turns WHERE id = ? AND expires_at > ?",
                (turn_id, now.timestamp()),
            ).fetchone()
            if row is None:
                return None
            receipt = _receipt.decode(row[1]) if row[1] else None
            return msgspec.structs.replace(_turn.decode(row[0]), receipt=receipt)

        return await self._read(work)

    async def turns(self, ids: Sequence[str], *, now: datetime) -> dict[str, Turn]:
        rows = await self._rows(
            f"SELECT body FROM turns WHERE id IN ({_marks(ids)}) AND expires_at > ?",
            (*ids, now.timestamp()),
        )
        return {turn.id: turn for turn in map(_turn.decode, rows)}

    async def by_idempotency(self, user_key: str, keys: Sequence[str]) -> dict[str, Turn]:
        rows = await self._rows(
            f"SELECT body FROM turns WHERE user_key = ? AND idempotency IN ({_marks(keys)})",
            (user_key, *keys),
        )
        return {turn.idempotency: turn for turn in map(_turn.decode, rows)}

    async def history(
        self, session_key: str, *, now: datetime, before: int | None, first: int, limit: int
    ) -> list[Turn]:
        rows = await self._rows(
            "SELECT body FROM turns WHERE session_key = ? AND seq < ? AND last_seq >= ?"
            " AND expires_at > ? ORDER BY seq DESC LIMIT ?",
            (session_key, before or 2**62, first, now.timestamp(), limit),
        )
        return [_turn.decode(body) for body in rows]

    async def range(self, session_key: str, *, after: int, limit: int) -> list[Turn]:
        # A turn has at most two messages, so seq ≥ after is enough for the index.
        rows = await self._rows(
            "SELECT body FROM turns WHERE session_key = ? AND seq >= ? AND last_seq > ?"
            " ORDER BY seq LIMIT ?",
            (session_key, after, after, limit),
        )
        return [_turn.decode(body) for body in rows]

    async def user_turns(
        self,
        user_key: str,
        *,
        now: datetime,
        limit: int,
        session_key: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        before: tuple[datetime, str] | None = None,
    ) -> list[Turn]:
        where = ["user_key = ?", "expires_at > ?"]
        values: list[Any] = [user_key, now.timestamp()]
        if before is not None:
            where.append("(created_at, id) < (?, ?)")
            values += [before[0].timestamp(), before[1]]
        for clause, value in (
            ("session_key = ?", session_key),
            ("created_at >= ?", since and since.timestamp()),
            ("created_at < ?", until and until.timestamp()),
        ):
            if value is not None:
                where.append(clause)
                values.append(value)
        rows = await self._rows(
            f"SELECT body FROM turns WHERE {' AND '.join(where)}"
            " ORDER BY created_at DESC, id DESC LIMIT ?",
            (*values, limit),
        )
        return [_turn.decode(body) for body in rows]

    async def pending(self, *, user_key: str | None = None, limit: int = PAGE) -> list[str]:
        chosen = "AND user_key = ?" if user_key else ""
        return await self._rows(
            "SELECT session_key FROM turns WHERE pending_since IS NOT NULL "
            f"{chosen} GROUP BY session_key ORDER BY min(pending_since) LIMIT ?",
            (user_key, limit) if user_key else (limit,),
        )

    async def settle(self, session_key: str, *, through: int) -> None:
        def work(db: sqlite3.Connection) -> None:
            db.execute(
                "UPDATE turns SET pending_since = NULL WHERE session_key = ? AND last_seq <= ?"
                " AND pending_since IS NOT NULL AND status != 'running'",
                (session_key, through),
            )

        await self._transaction(work)

    async def unsettle(self) -> None:
        def work(db: sqlite3.Connection) -> None:
            db.execute("UPDATE turns SET pending_since = created_at")
            for (body,) in db.execute("SELECT body FROM sessions").fetchall():
                session = msgspec.structs.replace(
                    _session.decode(body), lexical_through=0, dense_through=0
                )
                _put_session(db, session)

        await self._transaction(work)

    async def unsettle_dense(self, *, reset: bool) -> None:
        def work(db: sqlite3.Connection) -> None:
            for (body,) in db.execute("SELECT body FROM sessions").fetchall():
                session = _session.decode(body)
                if reset and session.dense_through:
                    session = msgspec.structs.replace(session, dense_through=0)
                    _put_session(db, session)
                if session.dense_through < session.last_seq:
                    db.execute(
                        "UPDATE turns SET pending_since = created_at"
                        " WHERE session_key = ? AND last_seq > ? AND pending_since IS NULL",
                        (session.key, session.dense_through),
                    )

        await self._transaction(work)

    async def session(self, key: str) -> Session | None:
        rows = await self._rows("SELECT body FROM sessions WHERE key = ?", (key,))
        return _session.decode(rows[0]) if rows else None

    async def sessions(
        self, user_key: str, *, before: tuple[datetime, str] | None, limit: int
    ) -> list[Session]:
        after = (before[0].timestamp(), before[1]) if before else (1e18, "")
        rows = await self._rows(
            "SELECT body FROM sessions WHERE user_key = ? AND (updated_at, key) < (?, ?)"
            " AND erasing = 0 ORDER BY updated_at DESC, key DESC LIMIT ?",
            (user_key, *after, limit),
        )
        return [_session.decode(body) for body in rows]

    async def put_session(self, session: Session) -> bool:
        def work(db: sqlite3.Connection) -> bool:
            if db.execute("SELECT 1 FROM sessions WHERE key = ?", (session.key,)).fetchone():
                return False
            _put_session(db, session)
            return True

        return await self._transaction(work)

    async def change_session(
        self, key: str, changes: Mapping[str, Any], *, summary_version: int | None = None
    ) -> bool:
        def work(db: sqlite3.Connection) -> bool:
            row = db.execute("SELECT body FROM sessions WHERE key = ?", (key,)).fetchone()
            if row is None:
                return False
            session = _session.decode(row[0])
            if summary_version is not None and session.summary.version != summary_version:
                return False
            _put_session(db, msgspec.structs.replace(session, **changes))
            return True

        return await self._transaction(work)

    async def put_segment(self, segment: Segment) -> None:
        def work(db: sqlite3.Connection) -> None:
            db.execute(
                "INSERT OR REPLACE INTO segments VALUES (?, ?, ?, ?)",
                (
                    segment.session_key,
                    segment.first_seq,
                    segment.expires_at.timestamp(),
                    msgspec.json.encode(segment),
                ),
            )

        await self._transaction(work)

    async def segments(self, session_key: str, *, now: datetime) -> list[Segment]:
        rows = await self._rows(
            "SELECT body FROM segments WHERE session_key = ? AND expires_at > ? ORDER BY first_seq",
            (session_key, now.timestamp()),
        )
        return [_segment.decode(body) for body in rows]

    async def delete_session(self, session_key: str, *, keep_session: bool = False) -> int:
        def work(db: sqlite3.Connection) -> int:
            db.execute("DELETE FROM segments WHERE session_key = ?", (session_key,))
            gone = db.execute("DELETE FROM turns WHERE session_key = ?", (session_key,)).rowcount
            if not keep_session:
                db.execute("DELETE FROM sessions WHERE key = ?", (session_key,))
            return gone

        deleted = await self._transaction(work)
        await self._checkpoint()
        return deleted

    async def drop_segments(self, session_key: str) -> None:
        def work(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM segments WHERE session_key = ?", (session_key,))

        await self._transaction(work)

    async def expired_sessions(self, *, before: datetime, limit: int = PAGE) -> list[str]:
        return await self._rows(
            "SELECT DISTINCT session_key FROM turns WHERE expires_at <= ? LIMIT ?",
            (before.timestamp(), limit),
        )

    async def delete_expired(self, session_keys: Sequence[str], *, before: datetime) -> int:
        which = f"session_key IN ({_marks(session_keys)}) AND expires_at <= ?"
        values = (*session_keys, before.timestamp())

        def work(db: sqlite3.Connection) -> int:
            db.execute(f"DELETE FROM segments WHERE {which}", values)
            return db.execute(f"DELETE FROM turns WHERE {which}", values).rowcount

        deleted = await self._transaction(work)
        await self._checkpoint()
        return deleted

    async def forget_session(self, session_key: str) -> bool:
        def work(db: sqlite3.Connection) -> bool:
            turn = "SELECT 1 FROM turns WHERE session_key = ? LIMIT 1"
            if db.execute(turn, (session_key,)).fetchone():
                return False
            db.execute("DELETE FROM segments WHERE session_key = ?", (session_key,))
            db.execute("DELETE FROM sessions WHERE key = ?", (session_key,))
            return True

        forgotten = await self._transaction(work)
        await self._checkpoint()
        return forgotten

    async def _checkpoint(self) -> None:
        """What was deleted leaves the write-ahead log too."""
        await self._write(lambda: self._db(self._writer).execute("PRAGMA wal_checkpoint(TRUNCATE)"))

    async def ended_sessions(self, *, before: datetime, limit: int = PAGE) -> list[Session]:
        rows = await self._rows(
            "SELECT body FROM sessions WHERE expires_at <= ?1 OR erasing = 1 LIMIT ?2",
            (before.timestamp(), limit),
        )
        return [_session.decode(body) for body in rows]

    async def _rows(self, query: str, values: Sequence[Any]) -> list[Any]:
        """The first column of every row."""
        return await self._read(lambda db: [row[0] for row in db.execute(query, values)])

    async def _read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        return await self._on(self._read_thread, lambda: work(self._db(self._reader)))

    async def _transaction(self, work: Callable[[sqlite3.Connection], T]) -> T:
        def run() -> T:
            db = self._db(self._writer)
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
    def _db(connection: sqlite3.Connection | None) -> sqlite3.Connection:
        if connection is None:
            raise StoreUnavailable("the store is not open")
        return connection


def _columns(turn: Turn) -> tuple[Any, ...]:
    receipt = msgspec.json.encode(turn.receipt) if turn.receipt else None
    return (
        turn.id,
        turn.user_key,
        turn.session_key,
        turn.seq,
        turn.last_seq,
        turn.idempotency,
        turn.status,
        turn.token,
        turn.created_at.timestamp(),
        turn.expires_at.timestamp(),
        msgspec.json.encode(msgspec.structs.replace(turn, receipt=None)),
        receipt,
    )


def _put_session(db: sqlite3.Connection, session: Session) -> None:
    db.execute(
        "INSERT OR REPLACE INTO sessions VALUES (?, ?, ?, ?, ?, ?)",
        (
            session.key,
            session.user_key,
            session.updated_at.timestamp(),
            session.expires_at.timestamp(),
            session.erasing,
            msgspec.json.encode(session),
        ),
    )


def _marks(values: Sequence[Any]) -> str:
    return ",".join("?" * len(values))
