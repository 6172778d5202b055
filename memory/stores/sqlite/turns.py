"""The log in the embedded store. Documents are JSON; only what is searched or compared is a column."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec

from memory.ids import SessionKey, TurnId, UserKey
from memory.models import Turn, keyless
from memory.models import now as current
from memory.stores.base import PAGE, LoadedSession
from memory.stores.sqlite.database import Database
from memory.stores.sqlite.rows import (
    columns,
    decode_receipt,
    decode_session,
    decode_turn,
    marks,
)


class SqliteTurns:
    def __init__(self, db: Database) -> None:
        self._db = db

    async def load(self, session_key: SessionKey, *, limit: int = PAGE) -> LoadedSession:
        def work(db: sqlite3.Connection) -> LoadedSession:
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
            return LoadedSession(session, turns)

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
                (turn.id, turn.fencing_token),
            )

        await self._db.transaction(work)

    async def save(self, turn: Turn) -> bool:
        def work(db: sqlite3.Connection) -> bool:
            row = columns(turn)  # not before: many may wait for the thread
            changed = db.execute(
                "UPDATE turns SET status = ?, body = ?, receipt = coalesce(?, receipt)"
                " WHERE id = ? AND token = ? AND status = 'running'",
                (turn.status, row[10], row[11], turn.id, turn.fencing_token),
            )
            return changed.rowcount == 1

        return await self._db.transaction(work)

    async def rerun(self, turn: Turn, *, was: Turn) -> bool:
        row = columns(turn)

        def work(db: sqlite3.Connection) -> bool:
            changed = db.execute(
                "UPDATE turns SET status = ?, token = ?, body = ?, receipt = ?, pending_since = ?"
                " WHERE id = ? AND token = ? AND status IN ('failed', 'interrupted')",
                (*row[6:8], row[10], row[11], current().timestamp(), turn.id, was.fencing_token),
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

    async def get(self, turn_id: TurnId, *, now: datetime) -> Turn | None:
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

    async def get_many(self, ids: Sequence[TurnId], *, now: datetime) -> dict[str, Turn]:
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

    async def by_idempotency(self, user_key: UserKey, keys: Sequence[str]) -> dict[str, Turn]:
        rows = await self._db.rows(
            f"SELECT body FROM turns WHERE user_key = ? AND idempotency IN ({marks(keys)})",
            (user_key, *keys),
        )
        return {turn.idempotency: turn for turn in map(decode_turn, rows)}

    async def history(
        self, session_key: SessionKey, *, now: datetime, before: int | None, first: int, limit: int
    ) -> list[Turn]:
        rows = await self._db.rows(
            "SELECT body FROM turns WHERE session_key = ? AND seq < ? AND last_seq >= ?"
            " AND expires_at > ? ORDER BY seq DESC LIMIT ?",
            (session_key, before or 2**62, first, now.timestamp(), limit),
        )
        return [decode_turn(body) for body in rows]

    async def range(self, session_key: SessionKey, *, after: int, limit: int) -> list[Turn]:
        # A turn has at most two messages, so seq ≥ after is enough for the index.
        rows = await self._db.rows(
            "SELECT body FROM turns WHERE session_key = ? AND seq >= ? AND last_seq > ?"
            " ORDER BY seq LIMIT ?",
            (session_key, after, after, limit),
        )
        return [decode_turn(body) for body in rows]

    async def of_user(
        self,
        user_key: UserKey,
        *,
        now: datetime,
        limit: int,
        session_key: SessionKey | None = None,
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

    async def overdue(self, *, before: datetime, limit: int = PAGE) -> list[Turn]:
        rows = await self._db.rows("SELECT body FROM turns WHERE status = 'running'", ())
        running = map(decode_turn, rows)
        return [turn for turn in running if turn.lease_until and turn.lease_until < before][:limit]

    async def delete_expired(self, session_keys: Sequence[SessionKey], *, before: datetime) -> int:
        which = f"session_key IN ({marks(session_keys)}) AND expires_at <= ?"
        values = (*session_keys, before.timestamp())

        def work(db: sqlite3.Connection) -> int:
            db.execute(f"DELETE FROM segments WHERE {which}", values)
            return db.execute(f"DELETE FROM turns WHERE {which}", values).rowcount

        deleted = await self._db.transaction(work)
        await self._db.checkpoint()
        return deleted
