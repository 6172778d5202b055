"""What the model is to read, while the rest is still being done.

The search begins with the question alone; the window and the summary are there once the session
is read. So a draft is made beside the writes, and is most often ready when they are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from memory import window
from memory.config import MemoryConfig
from memory.context.assembly import Material, assemble, check_question
from memory.errors import StoreUnavailable
from memory.log.transitions import recounted
from memory.models import Recalled, Session, Turn, now
from memory.recall.hydration import hydrate
from memory.recall.search import Recall
from memory.receipt import Context
from memory.sessions.lifetime import new_session
from memory.stores.base import LoadedSession, Store
from memory.tokens import TokenCounter
from memory.turn_request import TurnRequest


class _Seen(NamedTuple):
    """The session, the turns before the question, and the question's own."""

    session: Session
    turns: Sequence[Turn]
    asked: Turn | None


class ContextDraft:
    """A context in the making: it waits for what `show` tells. Must be awaited or cancelled."""

    def __init__(self, composing: ContextBuilder, ask: TurnRequest) -> None:
        self._seen: asyncio.Future[_Seen] = asyncio.get_running_loop().create_future()
        self._context = asyncio.create_task(composing.compose(ask, self._seen))

    @property
    def is_shown(self) -> bool:
        return self._seen.done()

    def show(self, session: Session, loaded: LoadedSession, asked: Turn | None = None) -> None:
        """The session as it counts, the newest turns, and the turn that asks, which may be among
        them. Only once."""
        turns = _window_turns(session, loaded)
        turns = [turn for turn in turns if asked is None or turn.id != asked.id]
        self._seen.set_result(_Seen(session, turns, asked))

    async def context(self) -> Context:
        return await self._context

    def cancel(self) -> None:
        """Harmless when repeated, and when the context is there."""
        self._context.cancel()


class ContextBuilder:
    def __init__(
        self, *, store: Store, recall: Recall, counter: TokenCounter, config: MemoryConfig
    ) -> None:
        self._store = store
        self._recall = recall
        self._counter = counter
        self._config = config

    def begin(self, ask: TurnRequest) -> ContextDraft:
        """Search beside the read of the session. Raises BudgetExceeded."""
        budget = ask.budget or self._config.budget
        check_question(ask.question, ask.system, budget, self._counter)
        return ContextDraft(self, ask)

    def again(self, ask: TurnRequest) -> ContextDraft:
        """The same for a question that is known to fit."""
        return ContextDraft(self, ask)

    async def compose(self, ask: TurnRequest, seen: asyncio.Future[_Seen]) -> Context:
        recalled = await self._recalled(ask, seen)
        session, turns, _ = await seen
        return self._assemble(ask, session, turns, recalled)

    def plain(self, ask: TurnRequest) -> Context:
        """The context of a stateless call: system text and question alone."""
        session = new_session(ask.user.key, ask.session_id, now())
        return self._assemble(ask, session, (), Recalled())

    def _assemble(
        self, ask: TurnRequest, session: Session, turns: Sequence[Turn], recalled: Recalled
    ) -> Context:
        summary, degraded = session.summary, ("summary",) if session.summary.degraded else ()
        if summary.expires_at <= now():
            summary = msgspec.structs.replace(summary, text="")
        material = Material(
            question=ask.question,
            system=ask.system,
            summary=summary,
            turns=[recounted(turn, self._counter) for turn in _finished(turns)],
            recalled=recalled,
            degraded=degraded,
            previous_marks=next((t.prefix_marks for t in reversed(turns) if t.prefix_marks), ()),
            unread=turns[0].seq - _first_seq(session) if turns else 0,
        )
        return assemble(material, budget=ask.budget or self._config.budget, counter=self._counter)

    async def _recalled(self, ask: TurnRequest, seen: asyncio.Future[_Seen]) -> Recalled:
        budget = ask.budget or self._config.budget
        if ask.recall == "none" or budget.recall_tokens == 0:
            return Recalled()
        ranked = await self._recall.search(
            ask.question,
            user=ask.user.key,
            session=ask.key if ask.recall == "session" else None,
            now=now(),
            deadline=ask.recall_deadline,
            after=seen,
        )
        if not ranked.candidates:
            return Recalled(degraded=ranked.degraded)
        try:
            return await hydrate(
                ranked,
                store=self._store,
                user=ask.user.key,
                inside=self._inside(ask, await seen),
                budget_tokens=budget.recall_tokens,
                ttl=self._config.ttl,
            )
        except StoreUnavailable:
            return Recalled(degraded=("recall",))

    def _inside(self, ask: TurnRequest, seen: _Seen) -> frozenset[str]:
        """The ids of the messages that the prompt holds anyway: those of the turn itself, and
        those that most likely are in the window."""
        room = (ask.budget or self._config.budget).window_tokens
        chosen, _ = window.select(_finished(seen.turns), budget_tokens=room, counter=self._counter)
        own = seen.asked.messages if seen.asked else ()
        return frozenset(m.id for turn in chosen for m in window.living(turn)) | {
            message.id for message in own
        }


def _first_seq(session: Session) -> int:
    """The first message after the summary."""
    return max(session.first_seq, session.summary.covers_through + 1)


def _window_turns(session: Session, loaded: LoadedSession) -> list[Turn]:
    """The turns after the summary, oldest first."""
    return [turn for turn in reversed(loaded.turns) if turn.seq >= _first_seq(session)]


def _finished(turns: Sequence[Turn]) -> list[Turn]:
    """Those that live and have ended."""
    moment = now()
    return [turn for turn in turns if turn.status != "running" and turn.expires_at > moment]
