"""Rolls summaries forward, off the request path, one session after the other.

A fold reads the turns after the summary, writes a segment, and replaces the rolled text by
compare-and-swap on its version together with `covers_through`. What it loses to a crash or to
another worker is folded again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta

import msgspec
import structlog

from memory.config import MemoryConfig
from memory.context import SUMMARY_FENCE_TOKENS
from memory.errors import StrataError
from memory.gates import SessionLocks
from memory.models import Segment, Session, Summary, Turn, now
from memory.stores.base import PAGE, TurnStore
from memory.summary import (
    FOLD_AT,
    Summarizer,
    extract,
    parse,
    passes,
    plan,
    roll,
    statements,
    transcript,
)
from memory.tokens import TokenCounter
from memory.window import turn_tokens

log = structlog.get_logger("strata.folding")

# Enough turns at once to fill the window several times; what is beyond is folded next.
READ_WINDOWS = 4
MAX_ROUNDS = 1000
KNOWN_SESSIONS = 10_000
# A text is not rolled anew for each segment that expires, but once a day at most.
REFOLD_AHEAD = timedelta(days=1)


class Folding:
    def __init__(
        self,
        *,
        store: TurnStore,
        counter: TokenCounter,
        config: MemoryConfig,
        locks: SessionLocks,
        summarizer: Summarizer | None,
    ) -> None:
        self._store = store
        self._counter = counter
        self._config = config
        self._locks = locks
        self._summarizer = summarizer
        self._due: dict[str, None] = {}
        self._room_left: dict[str, float] = {}
        self._news = asyncio.Event()

    def request(self, session_key: str, *, added_tokens: int | None = None) -> None:
        """Look at this session soon. With `added_tokens`, only once as much has been added as
        the last look left room for."""
        room = self._room_left.pop(session_key, None)
        if added_tokens is not None and room is not None and room > added_tokens:
            self._room_left[session_key] = room - added_tokens
            return
        self._due[session_key] = None
        self._news.set()

    async def run(self) -> None:
        """Fold what is requested until cancelled."""
        while True:
            await self._news.wait()
            await self.drain()

    async def drain(self) -> None:
        """Fold everything requested so far."""
        self._news.clear()
        while self._due:
            key = next(iter(self._due))
            del self._due[key]
            try:
                await self.fold(key)
            except StrataError as error:
                # The next turn of the session requests it again.
                log.warning("fold.failed", session=key, error=type(error).__name__)
            except Exception:  # the edge of a task: one session must not stop the others
                log.exception("fold.crashed", session=key)

    async def fold(self, key: str) -> None:
        """Fold until the turns after the summary fit the window again."""
        if self._config.budget.summary_tokens == 0 or self._config.budget.window_tokens == 0:
            return
        for _round in range(MAX_ROUNDS):
            session = await self._store.session(key)
            if session is None or session.erasing:
                return
            if session.summary.text and session.summary.expires_at <= now():
                await self.refold(session)
                continue
            after = await self._turns_after(session)
            turns = plan(
                after,
                window_tokens=self._config.budget.window_tokens,
                compact_to=self._config.window.compact_to,
                counter=self._counter,
            )
            if not turns:
                self._note_room(key, after)
                return
            await self._fold(session, turns)

    def _note_room(self, key: str, turns: Sequence[Turn]) -> None:
        """How many tokens may come before this session has to be looked at again."""
        if len(self._room_left) > KNOWN_SESSIONS:
            self._room_left.clear()
        used = sum(turn_tokens(turn, self._counter) for turn in turns)
        self._room_left[key] = FOLD_AT * self._config.budget.window_tokens - used

    async def _turns_after(self, session: Session) -> list[Turn]:
        covered = max(session.summary.covers_through, session.first_seq - 1)
        enough = READ_WINDOWS * self._config.budget.window_tokens
        turns: list[Turn] = []
        tokens = 0
        moment = now()
        while tokens < enough:
            page = await self._store.range(session.key, after=covered, limit=PAGE)
            living = [turn for turn in page if turn.expires_at > moment]
            turns += living
            tokens += sum(turn_tokens(turn, self._counter) for turn in living)
            if len(page) < PAGE:
                break
            covered = page[-1].last_seq
        return turns

    async def _fold(self, session: Session, turns: Sequence[Turn]) -> None:
        budget = self._config.budget
        old = session.summary
        text, retired, degraded = old.text, old.retired, False
        messages = []
        for run in passes(turns, max_tokens=budget.context_tokens // 2, counter=self._counter):
            messages += run
            rolled = await roll(
                text,
                statements(run),
                news=transcript(run),
                budget_tokens=self._room(),
                counter=self._counter,
                summarizer=self._summarizer,
            )
            text, retired = rolled.text, retired + rolled.retired
            degraded = degraded or rolled.degraded
        expires = min(turn.expires_at for turn in turns)
        summary = Summary(
            text=text,
            version=old.version + 1,
            covers_through=turns[-1].last_seq,
            retired=retired,
            tokens=self._counter.count(text),
            degraded=degraded,
            expires_at=min(expires, old.expires_at) if old.text else expires,
        )
        kept, _ = extract(statements(messages), budget_tokens=self._room(), counter=self._counter)
        segment = Segment(
            session_key=session.key,
            first_seq=turns[0].seq,
            last_seq=turns[-1].last_seq,
            text=kept,
            expires_at=expires,
        )
        await self._commit(session, summary, segment)

    async def refold(self, session: Session) -> None:
        """Roll the text anew from the segments that live, because a part of it has expired."""
        segments = await self._store.segments(session.key, now=self._refold_horizon())
        known = [statement for segment in segments for statement in parse(segment.text)]
        rolled = await roll(
            "",
            known,
            news="\n".join(segment.text for segment in segments),
            budget_tokens=self._room(),
            counter=self._counter,
            summarizer=self._summarizer if segments else None,
        )
        summary = msgspec.structs.replace(
            session.summary,
            text=rolled.text,
            version=session.summary.version + 1,
            retired=rolled.retired,
            tokens=self._counter.count(rolled.text),
            degraded=rolled.degraded,
            **({"expires_at": min(s.expires_at for s in segments)} if segments else {}),
        )
        if not segments:
            summary = msgspec.structs.replace(summary, expires_at=Summary().expires_at)
        await self._commit(session, summary, None)

    def _room(self) -> int:
        """Tokens of a rolled text, so that it fits its layer with the fence around it."""
        return max(0, self._config.budget.summary_tokens - SUMMARY_FENCE_TOKENS)

    def _refold_horizon(self) -> datetime:
        """Segments that expire before this moment are left out of a text that is rolled anew."""
        ttl = self._config.ttl.memory
        long_lived = isinstance(ttl, float) and ttl > 10 * REFOLD_AHEAD.total_seconds()
        return now() + (REFOLD_AHEAD if long_lived else timedelta())

    async def _commit(self, session: Session, summary: Summary, segment: Segment | None) -> None:
        async with self._locks.of(session.key):
            current = await self._store.session(session.key)
            if current is None or current.erasing:
                return
            if current.created_at != session.created_at:  # erased, and begun by the same name
                return
            if current.summary.version != session.summary.version:
                return
            if summary.expires_at <= now():  # a part of it expired while it was written
                return
            if segment is not None:
                await self._store.put_segment(segment)
            await self._store.change_session(
                session.key, {"summary": summary}, summary_version=session.summary.version
            )
        log.info(
            "summary.rolled",
            session=session.key,
            version=summary.version,
            covers_through=summary.covers_through,
            tokens=summary.tokens,
            retired=summary.retired,
            degraded=summary.degraded,
        )
