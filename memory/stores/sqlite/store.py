"""The embedded store: SQLite, one process, one writer thread, one commit before the model call.

`synchronous=FULL` in WAL mode syncs at every commit, so an acknowledged turn survives a loss of
power; `secure_delete` overwrites what is deleted. Documents are JSON; only what is searched or
compared is a column. An exclusive lock on the data folder keeps a second process out.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from memory.models import Segment, Session, Turn, keyless
from memory.models import now as current
from memory.stores.base import PAGE, Loaded, Signal
from memory.stores.sqlite.database import Database
from memory.stores.sqlite.rows import (
    SCHEMA,
    columns,
    decode_receipt,
    decode_segment,
    decode_session,
    decode_turn,
    marks,
    put_session,
)
from memory.stores.sqlite.work import SqlitePending


class SqliteStore(SqlitePending):
    """A `TurnStore` in the file `path`; an exclusive lock on its folder keeps others out."""

    exclusive = True

    def __init__(self, path: Path, *, timeout_seconds: float = 2.0) -> None:
        self._db = Database(path, schema=SCHEMA, timeout_seconds=timeout_seconds)

    async def open(self) -> None:
        """Raises StoreUnavailable when another process has the folder."""
        await self._db.open()

    async def close(self) -> None:
        await self._db.close()

    async def ping(self) -> None:
        await self._db.ping()

    async def load(self, session_key: str, *, limit: int = PAGE) -> Loaded:
        def work(db: sqlite3.Connection) -> Loaded:
            row = db.execute("SELECT body FROM sessions WHERE key = ?", (session_key,)).fetchone()
            session = decode_session(row[0]) if row else None
            covered = session.summary.covers_through if session else 0
            turns: list[Turn] = []
            for (body,) in db.execute(
                "SELECT body FROM turns WHERE session_key = ? ORDER BY seq DESC LIMIT ?",
                (session_key, limit),
            ):
                if turns and turns[-1].seq <= covered:
                    break
                turns.append(decode_turn(body))
            return Loaded(session, turns)

        return await self._db.read(work)

    async def append(self, turns: Sequence[Turn]) -> int:
        rows = [(*columns(turn), turn.recorded_at.timestamp()) for turn in turns]

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

        return await self._db.transaction(work)

    async def withdraw(self, turn: Turn) -> None:
        def work(db: sqlite3.Connection) -> None:
            db.execute(
                "DELETE FROM turns WHERE id = ? AND token = ? AND status = 'running'",
                (turn.id, turn.token),
            )

        await self._db.transaction(work)

    async def save(self, turn: Turn) -> bool:
        def work(db: sqlite3.Connection) -> bool:
            row = columns(turn)  # not before: many may wait for the thread
            changed = db.execute(
                "UPDATE turns SET status = ?, body = ?, receipt = coalesce(?, receipt)"
                " WHERE id = ? AND token = ? AND status = 'running'",
                (turn.status, row[10], row[11], turn.id, turn.token),
            )
            return changed.rowcount == 1

        return await self._db.transaction(work)

    async def rerun(self, turn: Turn, *, was: Turn) -> bool:
        row = columns(turn)

        def work(db: sqlite3.Connection) -> bool:
            changed = db.execute(
                "UPDATE turns SET status = ?, token = ?, body = ?, receipt = ?, pending_since = ?"
                " WHERE id = ? AND token = ? AND status IN ('failed', 'interrupted')",
                (*row[6:8], row[10], row[11], current().timestamp(), turn.id, was.token),
            )
            if changed.rowcount == 1:
                db.execute("DELETE FROM aside WHERE turn_id = ?", (turn.id,))
            return changed.rowcount == 1

        return await self._db.transaction(work)

    async def interrupt_running(self) -> int:
        def work(db: sqlite3.Connection) -> int:
            rows = db.execute("SELECT body FROM turns WHERE status = 'running'").fetchall()
            for (body,) in rows:
                turn = decode_turn(body)
                answer = turn.assistant and msgspec.structs.replace(
                    turn.assistant, status="interrupted"
                )
                turn = msgspec.structs.replace(turn, status="interrupted", assistant=answer)
                db.execute(
                    "UPDATE turns SET status = 'interrupted', body = ? WHERE id = ?",
                    (columns(turn)[10], turn.id),
                )
            return len(rows)

        return await self._db.transaction(work)

    async def turn(self, turn_id: str, *, now: datetime) -> Turn | None:
        def work(db: sqlite3.Connection) -> Turn | None:
            row = db.execute(
                "SELECT body, receipt FROM turns WHERE id = ? AND expires_at > ?",
                (turn_id, now.timestamp()),
            ).fetchone()
            if row is None:
                return None
            receipt = decode_receipt(row[1]) if row[1] else None
            return msgspec.structs.replace(decode_turn(row[0]), receipt=receipt)

        return await self._db.read(work)

    async def turns(self, ids: Sequence[str], *, now: datetime) -> dict[str, Turn]:
        rows = await self._db.rows(
            f"SELECT body FROM turns WHERE id IN ({marks(ids)}) AND expires_at > ?",
            (*ids, now.timestamp()),
        )
        return {turn.id: turn for turn in map(decode_turn, rows)}

    async def forget_key(self, turn: Turn) -> None:
        def work(db: sqlite3.Connection) -> None:
            which = (turn.id, turn.idempotency)
            found = db.execute(
                "SELECT body FROM turns WHERE id = ? AND idempotency = ?", which
            ).fetchone()
            if found:
                kept = msgspec.structs.replace(decode_turn(found[0]), idempotency=keyless(turn.id))
                db.execute(
                    "UPDATE turns SET idempotency = ?, body = ? WHERE id = ?",
                    (kept.idempotency, columns(kept)[10], turn.id),
                )

        await self._db.transaction(work)

    async def signal(self, turn: Turn, *, cancel: bool = False, watched: datetime | None) -> None:
        pass  # its turns run in this process

    async def signals(self, turns: Sequence[Turn]) -> dict[str, Signal]:
        return {}

    async def by_idempotency(self, user_key: str, keys: Sequence[str]) -> dict[str, Turn]:
        rows = await self._db.rows(
            f"SELECT body FROM turns WHERE user_key = ? AND idempotency IN ({marks(keys)})",
            (user_key, *keys),
        )
        return {turn.idempotency: turn for turn in map(decode_turn, rows)}

    async def history(
        self, session_key: str, *, now: datetime, before: int | None, first: int, limit: int
    ) -> list[Turn]:
        rows = await self._db.rows(
            "SELECT body FROM turns WHERE session_key = ? AND seq < ? AND last_seq >= ?"
            " AND expires_at > ? ORDER BY seq DESC LIMIT ?",
            (session_key, before or 2**62, first, now.timestamp(), limit),
        )
        return [decode_turn(body) for body in rows]

    async def range(self, session_key: str, *, after: int, limit: int) -> list[Turn]:
        # A turn has at most two messages, so seq ≥ after is enough for the index.
        rows = await self._db.rows(
            "SELECT body FROM turns WHERE session_key = ? AND seq >= ? AND last_seq > ?"
            " ORDER BY seq LIMIT ?",
            (session_key, after, after, limit),
        )
        return [decode_turn(body) for body in rows]

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
        rows = await self._db.rows(
            f"SELECT body FROM turns WHERE {' AND '.join(where)}"
            " ORDER BY created_at DESC, id DESC LIMIT ?",
            (*values, limit),
        )
        return [decode_turn(body) for body in rows]

    async def session(self, key: str) -> Session | None:
        rows = await self._db.rows("SELECT body FROM sessions WHERE key = ?", (key,))
        return decode_session(rows[0]) if rows else None

    async def sessions(
        self, user_key: str, *, before: tuple[datetime, str] | None, limit: int
    ) -> list[Session]:
        after = (before[0].timestamp(), before[1]) if before else (1e18, "")
        rows = await self._db.rows(
            "SELECT body FROM sessions WHERE user_key = ? AND (updated_at, key) < (?, ?)"
            " ORDER BY updated_at DESC, key DESC LIMIT ?",
            (user_key, *after, limit),
        )
        return [decode_session(body) for body in rows]

    async def put_session(self, session: Session) -> bool:
        def work(db: sqlite3.Connection) -> bool:
            if db.execute("SELECT 1 FROM sessions WHERE key = ?", (session.key,)).fetchone():
                return False
            put_session(db, session)
            return True

        return await self._db.transaction(work)

    async def change_session(
        self, key: str, changes: Mapping[str, Any], *, unchanged: Session | None = None
    ) -> bool:
        def work(db: sqlite3.Connection) -> bool:
            row = db.execute("SELECT body FROM sessions WHERE key = ?", (key,)).fetchone()
            if row is None:
                return False
            session = decode_session(row[0])
            if unchanged is not None and not _is_unchanged(session, unchanged):
                return False
            put_session(db, msgspec.structs.replace(session, **changes))
            return True

        return await self._db.transaction(work)

    async def claim(self, key: str, *, worker: str, until: datetime, now: datetime) -> bool:
        return await self.session(key) is not None  # there is nobody else

    async def release(self, key: str, *, worker: str) -> None:
        pass

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

        await self._db.transaction(work)

    async def segments(self, session_key: str, *, now: datetime) -> list[Segment]:
        rows = await self._db.rows(
            "SELECT body FROM segments WHERE session_key = ? AND expires_at > ? ORDER BY first_seq",
            (session_key, now.timestamp()),
        )
        return [decode_segment(body) for body in rows]

    async def delete_session(self, session_key: str, *, through: int | None = None) -> int:
        which = "session_key = ?" if through is None else "session_key = ? AND seq <= ?"
        values = (session_key,) if through is None else (session_key, through)

        def work(db: sqlite3.Connection) -> int:
            db.execute("DELETE FROM segments WHERE session_key = ?", (session_key,))
            gone = db.execute(f"DELETE FROM turns WHERE {which}", values).rowcount
            if through is None:
                db.execute("DELETE FROM sessions WHERE key = ?", (session_key,))
            return gone

        deleted = await self._db.transaction(work)
        await self._db.checkpoint()
        return deleted

    async def drop_segments(self, session_key: str) -> None:
        def work(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM segments WHERE session_key = ?", (session_key,))

        await self._db.transaction(work)

    async def expired_sessions(self, *, before: datetime, limit: int = PAGE) -> list[str]:
        return await self._db.rows(
            "SELECT DISTINCT session_key FROM turns INDEXED BY turns_expiry WHERE expires_at <= ?"
            " LIMIT ?",
            (before.timestamp(), limit),
        )

    async def delete_expired(self, session_keys: Sequence[str], *, before: datetime) -> int:
        which = f"session_key IN ({marks(session_keys)}) AND expires_at <= ?"
        values = (*session_keys, before.timestamp())

        def work(db: sqlite3.Connection) -> int:
            db.execute(f"DELETE FROM segments WHERE {which}", values)
            return db.execute(f"DELETE FROM turns WHERE {which}", values).rowcount

        deleted = await self._db.transaction(work)
        await self._db.checkpoint()
        return deleted

    async def forget_session(self, session_key: str) -> bool:
        def work(db: sqlite3.Connection) -> bool:
            turn = "SELECT 1 FROM turns WHERE session_key = ? LIMIT 1"
            if db.execute(turn, (session_key,)).fetchone():
                return False
            db.execute("DELETE FROM segments WHERE session_key = ?", (session_key,))
            db.execute("DELETE FROM sessions WHERE key = ?", (session_key,))
            return True

        forgotten = await self._db.transaction(work)
        await self._db.checkpoint()
        return forgotten

    async def ended_sessions(self, *, before: datetime, limit: int = PAGE) -> list[Session]:
        rows = await self._db.rows(
            "SELECT body FROM sessions WHERE expires_at <= ?1 OR erasing = 1 LIMIT ?2",
            (before.timestamp(), limit),
        )
        return [decode_session(body) for body in rows]


def _is_unchanged(session: Session, was: Session) -> bool:
    return (
        session.summary.version == was.summary.version
        and (session.created_at, session.first_seq) == (was.created_at, was.first_seq)
        and not session.erasing
    )
