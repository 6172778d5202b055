"""Rolls summaries forward, off the request path, one session after the other.

A fold reads the turns after the summary and replaces the rolled text by compare-and-swap on its
version, together with `covers_through` and with its segment, which becomes a document of its own
afterwards: so only what was committed is ever filed, and whoever comes next files what a crash
left. What a fold loses to a crash or to another worker is folded again.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta

import msgspec
import structlog

from memory.breaker import Breaker
from memory.config import MemoryConfig
from memory.context.assembly import SUMMARY_FENCE_TOKENS
from memory.errors import SessionBusy, StrataError
from memory.ids import SessionKey
from memory.locks import SessionLocks
from memory.models import NEVER, Message, Segment, Session, Summary, Turn, now
from memory.sessions.lifetime import expiry_of
from memory.stores.base import PAGE, Store
from memory.summary.summarizer import (
    FOLD_AT,
    Summarizer,
    Suspending,
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

log = structlog.get_logger("strata.summaries")

# Enough turns at once to fill the window several times; what is beyond is folded next.
READ_WINDOWS = 4
MAX_ROUNDS = 1000
KNOWN_SESSIONS = 10_000
# A text is not rolled anew for each segment that expires, but once a day at most.
REFOLD_AHEAD = timedelta(days=1)
# A session is claimed for so many leases: its projection takes longer than a flush of an answer.
CLAIM_LEASES = 3
# So often in a row the model fails before the next summaries are extracts at once.
BREAK_AFTER = 3
PROBE_SECONDS = 30.0
POLL_SECONDS = 0.05


class RollingSummary:
    def __init__(
        self,
        *,
        store: Store,
        counter: TokenCounter,
        config: MemoryConfig,
        locks: SessionLocks,
        summarizer: Summarizer | None,
    ) -> None:
        self._store = store
        self._counter = counter
        self._config = config
        self._locks = locks
        self.breaker = Breaker(failures=BREAK_AFTER, probe_seconds=PROBE_SECONDS)
        self._summarizer = summarizer and Suspending(summarizer, self.breaker)
        self._worker = secrets.token_hex(8)
        self._due: dict[str, None] = {}
        self._room_left: dict[str, float] = {}
        self._news = asyncio.Event()

    def request(self, session_key: SessionKey, *, added_tokens: int | None = None) -> None:
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

    async def fold(self, key: SessionKey) -> None:
        """Fold until the turns after the summary fit the window again."""
        if self._config.budget.summary_tokens == 0 or self._config.budget.window_tokens == 0:
            return
        for _round in range(MAX_ROUNDS):
            session = await self._store.sessions.get(key)
            if session is None or session.erasing:
                return
            if session.summary.unfiled is not None:
                await self._file(session)
                continue
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

    def _note_room(self, key: SessionKey, turns: Sequence[Turn]) -> None:
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
            page = await self._store.turns.range(session.key, after=covered, limit=PAGE)
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
            unfiled=self._segment(session, turns, messages),
        )
        await self._commit(session, summary)

    def _segment(
        self, session: Session, turns: Sequence[Turn], messages: Sequence[Message]
    ) -> Segment:
        kept, _ = extract(statements(messages), budget_tokens=self._room(), counter=self._counter)
        return Segment(
            session_key=session.key,
            first_seq=turns[0].seq,
            last_seq=turns[-1].last_seq,
            text=kept,
            expires_at=min(turn.expires_at for turn in turns),
            begun=session.created_at,
        )

    async def refold(self, session: Session) -> None:
        """Roll the text anew from the segments that live, because a part of it has expired."""
        last = session.summary.unfiled
        segments = await self._living_segments(session)
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
            expires_at=min((s.expires_at for s in segments), default=NEVER),
            unfiled=last if last is not None and last.expires_at > now() else None,
        )
        await self._commit(session, summary)

    async def _living_segments(self, session: Session) -> list[Segment]:
        """Those of this life of the session, up to what the summary covers."""
        horizon = self._refold_horizon()
        last = session.summary.unfiled
        filed = await self._store.segments.of(session.key, now=horizon)
        found = [s for s in filed if last is None or s.first_seq < last.first_seq]
        if last is not None and last.expires_at > horizon:
            found.append(last)
        return [
            segment
            for segment in found
            if segment.begun in (None, session.created_at)
            and segment.last_seq <= session.summary.covers_through
        ]

    def _room(self) -> int:
        """Tokens of a rolled text, so that it fits its layer with the fence around it."""
        return max(0, self._config.budget.summary_tokens - SUMMARY_FENCE_TOKENS)

    def _refold_horizon(self) -> datetime:
        """Segments that expire before this moment are left out of a text that is rolled anew."""
        ttl = self._config.ttl.memory
        long_lived = isinstance(ttl, float) and ttl > 10 * REFOLD_AHEAD.total_seconds()
        return now() + (REFOLD_AHEAD if long_lived else timedelta())

    async def _commit(self, session: Session, summary: Summary) -> None:
        async with self._alone(session.key):
            if summary.expires_at <= now():  # a part of it expired while it was written
                return
            if not await self._store.sessions.change(
                session.key, {"summary": summary}, unchanged=session
            ):
                return  # another was first, or it was erased
            log.info(
                "summary.rolled",
                session=session.key,
                version=summary.version,
                covers_through=summary.covers_through,
                tokens=summary.tokens,
                retired=summary.retired,
                degraded=summary.degraded,
            )
            await self._put(msgspec.structs.replace(session, summary=summary))

    async def _file(self, session: Session) -> None:
        """What a crash left: the segment of a summary that was committed."""
        async with self._alone(session.key):
            current = await self._store.sessions.get(session.key)
            if current is not None and not current.erasing:
                await self._put(current)

    async def _put(self, session: Session) -> None:
        """Give the segment of the last fold its own document. An expired one gets none."""
        segment = session.summary.unfiled
        if segment is None:
            return
        if segment.expires_at > now():
            await self._store.segments.put(segment)
        filed = msgspec.structs.replace(session.summary, unfiled=None)
        await self._store.sessions.change(session.key, {"summary": filed}, unchanged=session)

    @asynccontextmanager
    async def _alone(self, key: SessionKey) -> AsyncIterator[None]:
        """No other worker projects or erases the session meanwhile. Raises SessionBusy when one
        does for long."""
        seconds = CLAIM_LEASES * self._config.session.lease
        give_up = time.monotonic() + seconds
        while True:
            async with self._locks.of(key):
                until = expiry_of(now(), seconds)
                ours = await self._store.sessions.claim(
                    key, worker=self._worker, until=until, now=now()
                )
                if ours or await self._store.sessions.get(key) is None:
                    try:
                        yield
                    finally:
                        await self._store.sessions.release(key, worker=self._worker)
                    return
            if time.monotonic() > give_up:
                raise SessionBusy(1.0)
            await asyncio.sleep(POLL_SECONDS)
