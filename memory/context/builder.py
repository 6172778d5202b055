"""Gathers what a context is made of, beside the writes of the log.

The search begins with the question alone; window and summary are there once the session is read.
So a context is most often ready when its turn is durable.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from memory import window
from memory.config import BudgetConfig, ConfigSource, MemoryConfig
from memory.context.assembly import Material, assemble, check_question
from memory.errors import StoreUnavailable
from memory.ids import MessageId, SessionKey
from memory.log.transitions import recounted
from memory.models import LoadedSession, Recalled, Session, Turn, new_session, now
from memory.recall.search import Recall, hydrate
from memory.receipt import Context
from memory.stores.base import Store
from memory.tokens import TokenCounter
from memory.turn_request import TurnRequest


class _Seen(NamedTuple):
    """The session, the turns before the question, and the turn that asks it (if it is stored)."""

    session: Session
    turns: Sequence[Turn]
    asked: Turn | None


class ContextDraft:
    """The context of one request in the making: `begin` starts the search, `show` completes it.
    Must be awaited or cancelled."""

    def __init__(self, builder: ContextBuilder, request: TurnRequest, key: SessionKey) -> None:
        self._builder = builder
        self._request = request
        self._key = key
        self._seen: asyncio.Future[_Seen] | None = None
        self._building: asyncio.Task[Context] | None = None
        self._shown: LoadedSession | None = None

    def begin(self) -> None:
        if self._building is None:
            self._seen = asyncio.get_running_loop().create_future()
            building = self._builder.build(self._request, self._key, self._seen)
            self._building = asyncio.create_task(building, name="context")

    def show(self, session: Session, loaded: LoadedSession, asked: Turn | None = None) -> None:
        if self._shown is loaded:
            return
        if self._shown is not None:
            self.restart()
        self.begin()
        assert self._seen is not None
        first = _first_seq(session)
        turns = [
            turn
            for turn in reversed(loaded.turns)
            if turn.seq >= first and (asked is None or turn.id != asked.id)
        ]
        self._shown = loaded
        self._seen.set_result(_Seen(session, turns, asked))

    def restart(self) -> None:
        self.cancel()
        self._building = self._shown = None
        self.begin()

    async def context(self) -> Context:
        """Raises BudgetExceeded. A search that fails only degrades the context."""
        assert self._building is not None, "begin it first"
        return await self._building

    def cancel(self) -> None:
        """Harmless when repeated, and when the context is there."""
        if self._building is not None:
            self._building.cancel()


class ContextBuilder:
    def __init__(
        self,
        *,
        store: Store,
        recall: Recall,
        counter: TokenCounter,
        config: ConfigSource[MemoryConfig],
    ) -> None:
        self._store = store
        self._recall = recall
        self._counter = counter
        self._config = config

    def draft(self, request: TurnRequest, key: SessionKey) -> ContextDraft:
        """Raises BudgetExceeded when system text and question alone do not fit."""
        check_question(request.question, request.system, self._budget(request), self._counter)
        return ContextDraft(self, request, key)

    def plain(self, request: TurnRequest) -> Context:
        """The context of a stateless call: system text and question alone."""
        session = new_session(request.user.key, request.session_id, now())
        return self._assemble(request, _Seen(session, (), None), Recalled())

    async def build(
        self, request: TurnRequest, key: SessionKey, seen: asyncio.Future[_Seen]
    ) -> Context:
        recalled = await self._recalled(request, key, seen)
        return self._assemble(request, await seen, recalled)

    def _budget(self, request: TurnRequest) -> BudgetConfig:
        return request.budget or self._config.current.budget

    def _assemble(self, request: TurnRequest, seen: _Seen, recalled: Recalled) -> Context:
        session, turns, _ = seen
        summary = session.summary
        if summary.expires_at <= now():
            summary = msgspec.structs.replace(summary, text="")
        material = Material(
            question=request.question,
            system=request.system,
            summary=summary,
            turns=[recounted(turn, self._counter) for turn in _finished(turns)],
            recalled=recalled,
            degraded=("summary",) if summary.degraded else (),
            previous_marks=next((t.prefix_marks for t in reversed(turns) if t.prefix_marks), ()),
            unread=turns[0].seq - _first_seq(session) if turns else 0,
        )
        return assemble(material, budget=self._budget(request), counter=self._counter)

    async def _recalled(
        self, request: TurnRequest, key: SessionKey, seen: asyncio.Future[_Seen]
    ) -> Recalled:
        budget = self._budget(request)
        if request.recall == "none" or budget.recall_tokens == 0:
            return Recalled()
        ranked = await self._recall.search(
            request.question,
            user=request.user.key,
            session=key if request.recall == "session" else None,
            now=now(),
            deadline=request.recall_deadline,
            after=seen,
        )
        if not ranked.candidates:
            return Recalled(degraded=ranked.degraded)
        try:
            return await hydrate(
                ranked,
                store=self._store,
                user=request.user.key,
                in_prompt=self._in_prompt(await seen, budget),
                budget_tokens=budget.recall_tokens,
                ttl=self._config.current.ttl,
            )
        except StoreUnavailable:
            return Recalled(degraded=("recall",))

    def _in_prompt(self, seen: _Seen, budget: BudgetConfig) -> frozenset[MessageId]:
        """Messages that the prompt holds without recall: those of the turn itself, and those that
        most likely are in the window."""
        chosen, _ = window.select(
            _finished(seen.turns), budget_tokens=budget.window_tokens, counter=self._counter
        )
        own = seen.asked.messages if seen.asked else ()
        return frozenset(m.id for turn in chosen for m in window.shown(turn)) | {
            message.id for message in own
        }


def _first_seq(session: Session) -> int:
    """The first message after the summary."""
    return max(session.first_seq, session.summary.covers_through + 1)


def _finished(turns: Sequence[Turn]) -> list[Turn]:
    """Those of the turns that have ended and not expired."""
    moment = now()
    return [turn for turn in turns if turn.status != "running" and turn.expires_at > moment]
