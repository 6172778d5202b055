"""Deletes what has expired: index, derived, log, then session documents.

Reads have hidden it since its moment came; this makes it gone. Every step can be done again.
"""

from __future__ import annotations

import asyncio
from datetime import datetime

import structlog

from memory.config import MemoryConfig
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
    def __init__(
        self,
        *,
        store: Store,
        index: VectorIndex | None,
        erasing: Eraser,
        summaries: RollingSummary,
        projector: Projector,
        locks: SessionLocks,
        config: MemoryConfig,
    ) -> None:
        self._store = store
        self._index = index
        self._erasing = erasing
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
            await asyncio.sleep(self._config.projector.sweep_interval)

    async def sweep(self) -> int:
        """Returns how many turns were deleted."""
        await self._end_overdue()
        return await self._sweep_sessions() + await self._sweep_turns()

    async def _end_overdue(self) -> None:
        """Turns of workers that are gone, in sessions that nobody goes on with: else they would
        run for ever, and be recalled never."""
        if self._store.embedded:
            return  # its only process has ended them before it began
        for turn in await self._store.turns.overdue(before=now() - CLOCK_SKEW):
            if await self._store.turns.save(interrupted(turn)):
                log.info("turn.ended_for_its_worker", session=turn.session_key)
                self._projector.changes.note(turn.session_key)

    async def _sweep_sessions(self) -> int:
        deleted = 0
        for session in await self._store.sessions.ended(before=now()):
            if session.erasing:  # a crash came between, or the index was away
                deleted += await self._erasing.finish(session.key)
                continue
            loaded = await self._store.turns.load(session.key, limit=1)
            newest = loaded.turns[0] if loaded.turns else None
            if newest is None:
                await self._forget(session.key)  # a crash came between its turns and itself
                continue
            if not session.has_ended(newest, now(), self._config.ttl.session):
                continue  # it goes on; its document does not know of the newest turn yet
            if self._config.ttl.memory == "session":
                deleted += await self._erasing.erase_session(session.key, through=newest.last_seq)
                continue
            # Its turns live on as memory; what was this conversation's own ends.
            async with self._locks.of(session.key):
                fresh = session.begun_anew(newest.last_seq)
                await self._store.segments.delete(session.key)
                await self._store.sessions.change(
                    session.key,
                    {
                        "title": "",
                        "first_seq": fresh.first_seq,
                        "summary": fresh.summary,
                        "expires_at": fresh.expires_at,
                    },
                )
        return deleted

    async def _sweep_turns(self) -> int:
        # Index points expire in whole seconds; a turn must not go before its points.
        moment = now().replace(microsecond=0)
        deleted = 0
        while keys := await self._store.sessions.with_expired_turns(before=moment):
            for key in keys:
                await self._hide_summary(key)
                async with self._locks.of(key):  # what is being indexed has its points by then
                    await self._begin_at_the_living(key, moment)
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
        """The document of a session without turns goes last."""
        async with self._locks.of(key):
            forgotten = await self._store.sessions.delete_if_empty(key)
            if forgotten:
                self._projector.forget(key)
        return forgotten

    async def _begin_at_the_living(self, key: SessionKey, moment: datetime) -> None:
        """Before the turns go, so that what is overwritten here leaves the file with them. Should
        none be left, the document is found again by its time after a crash."""
        session = await self._store.sessions.get(key)
        if session is None:
            return
        lives = await unexpired(self._store.turns, session, moment)
        if lives is None:
            await self._store.sessions.change(key, {"title": "", "expires_at": moment})
        elif lives != session:
            await self._store.sessions.change(
                key, {"first_seq": lives.first_seq, "title": lives.title}
            )

    async def _hide_summary(self, key: SessionKey) -> None:
        session = await self._store.sessions.get(key)
        if session is not None and session.summary.expires_at <= now():
            await self._summaries.rebuild(session)
