"""What projections still have to do in the embedded store, and what they cannot take.

What changes all sessions does so in many short transactions, and turns are written between them:
the table `resets` holds how far it has come, so that it goes on after a crash. The table of
poisoned messages is called `aside`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial

from memory.ids import MessageId, SessionKey, TurnId, UserKey
from memory.models import Turn, turn_of
from memory.models import now as current
from memory.stores.base import NO_RERUNS, PAGE, PoisonedMessage
from memory.stores.sqlite.database import Facet

# Ended turns of a session up to one of its messages.
PENDING_IN = (
    "session_key = ? AND last_seq <= ? AND pending_since IS NOT NULL AND status != 'running'"
)
SESSIONS_AT_ONCE, TURNS_AT_ONCE = 500, 2_000
ALL, DENSE = "all", "dense"
SET_BACK = {ALL: "lexical_through = 0, dense_through = 0", DENSE: "dense_through = 0"}


class SqliteWork(Facet):
    """`WorkStore` in SQLite."""

    async def pending(
        self, *, user_key: UserKey | None = None, finished: bool = False, limit: int = PAGE
    ) -> list[SessionKey]:
        chosen = "AND status != 'running' " if finished else ""
        chosen += "AND user_key = ?" if user_key else ""
        # Left alone, SQLite walks through all turns to have the groups in order.
        return await self._db.column(
            "SELECT session_key FROM turns INDEXED BY turns_pending WHERE pending_since IS NOT NULL"
            f" {chosen} GROUP BY session_key ORDER BY min(pending_since) LIMIT ?",
            (user_key, limit) if user_key else (limit,),
        )

    async def pending_since(self) -> datetime | None:
        [since] = await self._db.column(
            "SELECT min(pending_since) FROM turns WHERE pending_since IS NOT NULL"
            " AND status != 'running'"
        )
        return datetime.fromtimestamp(since, UTC) if since is not None else None

    async def pending_reruns(
        self, session_key: SessionKey, *, through: int, limit: int
    ) -> list[Turn]:
        where = f"{PENDING_IN} AND attempt > 1 ORDER BY seq LIMIT ?"
        return await self._turns(where, (session_key, through, limit))

    async def mark_projected(
        self, session_key: SessionKey, *, through: int, reruns: Mapping[TurnId, int] = NO_RERUNS
    ) -> None:
        projected = f"UPDATE turns SET pending_since = NULL WHERE {PENDING_IN} AND attempt = ?"
        values = (session_key, through)

        def work(db: sqlite3.Connection) -> None:
            if is_resetting(db):
                return  # it was projected with the vectors of before
            db.execute(projected, (*values, 1))
            for id_, attempt in reruns.items():
                db.execute(f"{projected} AND id = ?", (*values, attempt, id_))

        await self._db.transaction(work)

    async def mark_poisoned(self, message_id: MessageId, *, reason: str, now: datetime) -> bool:
        marked = await self._db.execute(
            "INSERT OR REPLACE INTO aside SELECT id, ?, ?, ? FROM turns WHERE id = ?",
            (message_id, reason, now.timestamp(), turn_of(message_id)),
        )
        return marked == 1

    async def poisoned(self, *, limit: int = PAGE) -> list[PoisonedMessage]:
        rows = await self._db.rows(
            "SELECT message_id, reason, since FROM aside ORDER BY since, message_id LIMIT ?",
            (limit,),
        )
        return [
            PoisonedMessage(id_, reason, datetime.fromtimestamp(since, UTC))
            for id_, reason, since in rows
        ]

    async def mark_all_pending(self) -> None:
        await self._reset(ALL)

    async def mark_dense_pending(self, *, reset: bool) -> None:
        if reset:
            await self._reset(DENSE)
        else:
            await self._mark_without_dense()

    async def _reset(self, kind: str) -> None:
        def begin(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM aside")
            db.execute("INSERT OR REPLACE INTO resets VALUES (?, '')", (kind,))

        await self._db.transaction(begin)
        await self.finish_resets()

    async def finish_resets(self) -> None:
        """Go on with the resets that were begun, to their end."""
        for kind in await self._db.column("SELECT kind FROM resets"):
            while await self._db.transaction(partial(_set_back, kind=kind)):
                pass
            await self._mark_without_dense()
            await self._db.execute("DELETE FROM resets WHERE kind = ?", (kind,))

    async def _mark_without_dense(self) -> None:
        """Make pending the turns above their session's dense watermark."""
        key: str | None = ""
        while key is not None:
            key = await self._db.transaction(partial(_mark_some, after=key))


def is_resetting(db: sqlite3.Connection) -> bool:
    """Whether watermarks are being set back: then none is raised, and no turn counts as projected,
    by a projection that began before."""
    return db.execute("SELECT 1 FROM resets LIMIT 1").fetchone() is not None


def _set_back(db: sqlite3.Connection, kind: str) -> bool:
    """The watermarks of some sessions, from where this reset has come; False at its end."""
    (after,) = db.execute("SELECT session_key FROM resets WHERE kind = ?", (kind,)).fetchone()
    (last,) = db.execute(
        "SELECT max(key) FROM (SELECT key FROM sessions WHERE key > ? ORDER BY key LIMIT ?)",
        (after, SESSIONS_AT_ONCE),
    ).fetchone()
    if last is None:
        return False
    db.execute(
        f"UPDATE sessions SET {SET_BACK[kind]} WHERE key > ? AND key <= ?"
        " AND (lexical_through > 0 OR dense_through > 0)",
        (after, last),
    )
    db.execute("UPDATE resets SET session_key = ? WHERE kind = ?", (last, kind))
    return True


def _mark_some(db: sqlite3.Connection, after: str) -> SessionKey | None:
    """The turns without dense vectors of some sessions with a key beyond `after`; the last of
    these keys, or None at the end."""
    moment, changed = current().timestamp(), 0
    sessions = db.execute(
        "SELECT key, dense_through FROM sessions INDEXED BY sessions_without_dense"
        " WHERE dense_through < last_seq AND key > ? ORDER BY key LIMIT ?",
        (after, SESSIONS_AT_ONCE),
    ).fetchall()
    for key, through in sessions:
        # A turn has at most two messages, so seq ≥ through is enough for the index.
        changed += db.execute(
            "UPDATE turns SET pending_since = ?"
            " WHERE session_key = ? AND seq >= ? AND last_seq > ? AND pending_since IS NULL",
            (moment, key, through, through),
        ).rowcount
        if changed >= TURNS_AT_ONCE:
            return SessionKey(key)
    return SessionKey(sessions[-1][0]) if len(sessions) == SESSIONS_AT_ONCE else None
