"""Deletes what has expired: index, derived, log, then session documents.

Reads hide a message from the moment it expires; this deletes it. Every step can be repeated.
"""

from __future__ import annotations

import asyncio
from datetime import datetime

import structlog

from memory.config import ConfigSource, MemoryConfig
from memory.errors import StrataError, reason
from memory.ids import SessionKey
from memory.indexes.base import VectorIndex
from memory.locks import SessionLocks
from memory.log.session_lease import CLOCK_SKEW
from memory.log.transitions import interrupted
from memory.models import now
from memory.projections.projector import Projector
from memory.retention.erasing import Eraser
from memory.sessions.visibility import unexpired
from memory.stores.base import Store
from memory.summary.rolling import RollingSummary

log = structlog.get_logger("strata.sweeper")


class Sweeper:
    """Deletes expired turns and ended sessions of all users, with everything made from them."""

    def __init__(
        self,
        *,
        store: Store,
        index: VectorIndex | None,
        eraser: Eraser,
        summaries: RollingSummary,
        projector: Projector,
        locks: SessionLocks,
        config: ConfigSource[MemoryConfig],
    ) -> None:
        self._store = store
        self._index = index
        self._eraser = eraser
        self._summaries = summaries
        self._projector = projector
        self._locks = locks
        self._config = config

    async def run(self) -> None:
        """Sweep every `projector.sweep_interval` until cancelled."""
        while True:
            try:
                await self.sweep()
            except StrataError as error:
                log.warning("sweep.failed", error=type(error).__name__, detail=reason(error))
            except Exception:  # the edge of a task: the next sweep tries again
                log.exception("sweep.crashed")
            await asyncio.sleep(self._config.current.projector.sweep_interval)

    async def sweep(self) -> int:
        """Delete everything that has expired; returns the number of turns. Raises
        StoreUnavailable, IndexUnavailable, SessionBusy."""
        await self._end_overdue()
        return await self._sweep_sessions() + await self._sweep_turns()

    async def _end_overdue(self) -> None:
        """End the running turns of workers that are gone. A next turn of the session would end
        them too; in a session without one they would run for ever, and never be recalled."""
        if self._store.embedded:
            return  # the store's only process ended them when it started
        for turn in await self._store.turns.overdue(before=now() - CLOCK_SKEW):
            if await self._store.turns.save(interrupted(turn)):
                log.info("turn.ended_for_its_worker", session=turn.session_key)
                self._projector.changes.note(turn.session_key)

    async def _sweep_sessions(self) -> int:
        ttl, deleted = self._config.current.ttl, 0
        for session in await self._store.sessions.ended(before=now()):
            if session.erasing:  # a crash cut the erase short, or the index was away
                deleted += await self._eraser.finish(session.key)
                continue
            loaded = await self._store.turns.load(session.key, limit=1)
            newest = loaded.turns[0] if loaded.turns else None
            if newest is None:
                await self._forget(session.key)  # a crash came before the document was deleted
                continue
            if not session.has_ended(newest, now(), ttl.session):
                continue  # the document does not know of the newest turn yet
            if ttl.memory == "session":
                deleted += await self._eraser.erase_session(session.key, through=newest.last_seq)
                continue
            # Its turns stay as memory; title, summary and segments end with the conversation.
            async with self._locks.of(session.key):
                fresh = session.begun_anew(newest.last_seq)
                await self._store.segments.delete(session.key)
                await self._store.sessions.change(session.key, fresh.fields_of_new_life())
        return deleted

    async def _sweep_turns(self) -> int:
        # Index points expire in whole seconds; a turn must not go before its points.
        moment = now().replace(microsecond=0)
        deleted = 0
        while keys := await self._store.sessions.with_expired_turns(before=moment):
            for key in keys:
                await self._hide_summary(key)
                async with self._locks.of(key):  # after a projection that is under way
                    await self._begin_at_the_unexpired(key, moment)
            if self._index is not None:
                await self._index.delete_expired(moment)
                await self._index.flush()
            gone = await self._store.turns.delete_expired(keys, before=moment)
            for key in keys:
                if not await self._forget(key):
                    async with self._locks.of(key):
                        for oldest in await self._store.turns.range(key, after=0, limit=1):
                            await self._projector.respell(oldest)
            deleted += gone
            log.info("sweep.done", turns=gone, sessions=len(keys))
        return deleted

    async def _forget(self, key: SessionKey) -> bool:
        """Delete the document of a session that holds no turn; False when it holds one."""
        async with self._locks.of(key):
            forgotten = await self._store.sessions.delete_if_empty(key)
            if forgotten:
                self._projector.forget(key)
        return forgotten

    async def _begin_at_the_unexpired(self, key: SessionKey, moment: datetime) -> None:
        """Move the session's begin to its first unexpired turn, and take its title from there.
        Before the turns go, so that the old title leaves the file with them. Without any turn
        left, the document gets a time by which the next sweep finds it after a crash."""
        session = await self._store.sessions.get(key)
        if session is None:
            return
        left = await unexpired(self._store.turns, session, moment)
        if left is None:
            await self._store.sessions.change(key, {"title": "", "expires_at": moment})
        elif left != session:
            await self._store.sessions.change(
                key, {"first_seq": left.first_seq, "title": left.title}
            )

    async def _hide_summary(self, key: SessionKey) -> None:
        session = await self._store.sessions.get(key)
        if session is not None and session.summary.expires_at <= now():
            await self._summaries.rebuild(session)
