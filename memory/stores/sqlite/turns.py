"""The log in the embedded store: a row per turn, its receipt beside it."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from msgspec.structs import replace

from memory.ids import SessionKey, TurnId, UserKey
from memory.models import NEVER, LoadedSession, Turn, keyless
from memory.models import now as current
from memory.stores.base import PAGE
from memory.stores.codec import TurnRow
from memory.stores.sqlite.database import Facet, into, marks
from memory.stores.sqlite.sessions import SESSION

INSERT = f"INSERT {into('turns', (*TurnRow._fields, 'pending_since'))}"


class SqliteTurns(Facet):
    """`TurnsStore` in SQLite."""

    async def load(self, session_key: SessionKey, *, limit: int = PAGE) -> LoadedSession:
        def work(db: sqlite3.Connection) -> LoadedSession:
            row = db.execute(
                f"SELECT {SESSION} FROM sessions WHERE key = ?", (session_key,)
            ).fetchone()
            session = self._codec.session_from_row(*row) if row else None
            covered = session.summary.covers_through if session else 0
            turns: list[Turn] = []
            for (body,) in db.execute(
                "SELECT body FROM turns WHERE session_key = ? ORDER BY seq DESC LIMIT ?",
                (session_key, limit),
            ):
                if turns and turns[-1].seq <= covered:
                    break
                turns.append(self._codec.turn_from_row(body))
            return LoadedSession(session, turns)

        return await self._db.read(work)

    async def append(self, turns: Sequence[Turn]) -> int:
        rows = [(*self._codec.turn_row(turn), turn.recorded_at.timestamp()) for turn in turns]

        def work(db: sqlite3.Connection) -> int:
            for inserted, row in enumerate(rows):
                try:
                    db.execute(INSERT, row)
                except sqlite3.IntegrityError:
                    return inserted
            return len(rows)

        return await self._db.transaction(work)

    async def withdraw(self, turn: Turn) -> None:
        await self._db.execute(
            "DELETE FROM turns WHERE id = ? AND token = ? AND status = 'running'",
            (turn.id, turn.fencing_token),
        )

    async def save(self, turn: Turn) -> bool:
        def work(db: sqlite3.Connection) -> bool:
            row = self._codec.turn_row(turn)  # not before: many may wait for the thread
            changed = db.execute(
                "UPDATE turns SET status = ?, body = ?, receipt = coalesce(?, receipt)"
                " WHERE id = ? AND token = ? AND status = 'running'",
                (row.status, row.body, row.receipt, row.id, row.token),
            )
            return changed.rowcount == 1

        return await self._db.transaction(work)

    async def rerun(self, turn: Turn, *, was: Turn) -> bool:
        row = self._codec.turn_row(turn)
        anew = (row.status, row.token, row.attempt, row.body, row.receipt, current().timestamp())

        def work(db: sqlite3.Connection) -> bool:
            changed = db.execute(
                "UPDATE turns SET status = ?, token = ?, attempt = ?, body = ?, receipt = ?,"
                " pending_since = ?"
                " WHERE id = ? AND token = ? AND status IN ('failed', 'interrupted')",
                (*anew, turn.id, was.fencing_token),
            )
            if changed.rowcount == 1:
                db.execute("DELETE FROM aside WHERE turn_id = ?", (turn.id,))
            return changed.rowcount == 1

        return await self._db.transaction(work)

    async def interrupt_running(self) -> int:
        def interrupted(turn: Turn) -> Turn:
            answer = turn.assistant and replace(turn.assistant, status="interrupted")
            return replace(turn, status="interrupted", assistant=answer)

        return await self._replace("status = 'running'", (), interrupted)

    async def get(self, turn_id: TurnId, *, now: datetime) -> Turn | None:
        rows = await self._db.rows(
            "SELECT body, receipt FROM turns WHERE id = ? AND expires_at > ?",
            (turn_id, now.timestamp()),
        )
        return self._codec.turn_from_row(*rows[0]) if rows else None

    async def get_many(self, ids: Sequence[TurnId], *, now: datetime) -> dict[TurnId, Turn]:
        found = await self._turns(
            f"id IN ({marks(ids)}) AND expires_at > ?", (*ids, now.timestamp())
        )
        return {turn.id: turn for turn in found}

    async def forget_key(self, turn: Turn) -> None:
        await self._replace(
            "id = ? AND idempotency = ?",
            (turn.id, turn.idempotency),
            lambda stored: replace(stored, idempotency=keyless(turn.id)),
        )

    async def by_idempotency(self, user_key: UserKey, keys: Sequence[str]) -> dict[str, Turn]:
        found = await self._turns(
            f"user_key = ? AND idempotency IN ({marks(keys)})", (user_key, *keys)
        )
        return {turn.idempotency: turn for turn in found}

    async def history(
        self, session_key: SessionKey, *, now: datetime, before: int | None, first: int, limit: int
    ) -> list[Turn]:
        return await self._turns(
            "session_key = ? AND seq < ? AND last_seq >= ? AND expires_at > ?"
            " ORDER BY seq DESC LIMIT ?",
            (session_key, before or 2**62, first, now.timestamp(), limit),
        )

    async def range(self, session_key: SessionKey, *, after: int, limit: int) -> list[Turn]:
        # A turn has at most two messages, so seq ≥ after is enough for the index.
        return await self._turns(
            "session_key = ? AND seq >= ? AND last_seq > ? ORDER BY seq LIMIT ?",
            (session_key, after, after, limit),
        )

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
        # An id is never empty: what was created at `until` comes after (until, "").
        bounds = [bound for bound in (before, until and (until, "")) if bound]
        end, id_ = min(bounds, default=(NEVER, ""))
        where = "user_key = ? AND created_at >= ? AND (created_at, id) < (?, ?) AND expires_at > ?"
        begin = since.timestamp() if since else -math.inf
        values: list[Any] = [user_key, begin, end.timestamp(), id_, now.timestamp()]
        if session_key is not None:
            where += " AND session_key = ?"
            values.append(session_key)
        order = "ORDER BY created_at DESC, id DESC LIMIT ?"
        return await self._turns(f"{where} {order}", (*values, limit))

    async def overdue(self, *, before: datetime, limit: int = PAGE) -> list[Turn]:
        running = await self._turns("status = 'running'")
        late = [turn for turn in running if turn.lease_until and turn.lease_until < before]
        return late[:limit]

    async def delete_expired(self, session_keys: Sequence[SessionKey], *, before: datetime) -> int:
        which = f"session_key IN ({marks(session_keys)}) AND expires_at <= ?"
        values = (*session_keys, before.timestamp())

        def work(db: sqlite3.Connection) -> int:
            db.execute(f"DELETE FROM segments WHERE {which}", values)
            return db.execute(f"DELETE FROM turns WHERE {which}", values).rowcount

        return await self._db.erase(work)

    async def _replace(
        self, where: str, values: Sequence[Any], change: Callable[[Turn], Turn]
    ) -> int:
        def work(db: sqlite3.Connection) -> int:
            bodies = db.execute(f"SELECT body FROM turns WHERE {where}", values).fetchall()
            for (body,) in bodies:
                row = self._codec.turn_row(change(self._codec.turn_from_row(body)))
                db.execute(
                    "UPDATE turns SET status = ?, idempotency = ?, body = ? WHERE id = ?",
                    (row.status, row.idempotency, row.body, row.id),
                )
            return len(bodies)

        return await self._db.transaction(work)
