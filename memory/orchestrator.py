"""Memory: the turn from its question to its stored answer. The only file that joins the layers.

`accept` makes the user's message durable, `context` builds what the model reads, `flush` and
`finish` store the answer. Reading back is in library.py, catching up in projection.py, expiry in
sweeper.py; they share the parts that are put together in factory.py.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

from memory.config import MemoryConfig
from memory.context.builder import ContextBuilder, ContextDraft
from memory.errors import SessionBusy, TurnLost
from memory.log.idempotency import Idempotency
from memory.log.recording import Recorded, Recorder
from memory.log.session_lease import Opened, Opening, last_seq
from memory.log.session_queue import SessionQueue
from memory.log.transitions import (
    Incoming,
    answered,
    running_turn,
)
from memory.models import MessageStatus, Turn, TurnError, TurnStatus, User, now
from memory.open_turn import OpenTurn
from memory.recall.search import Recall
from memory.receipt import Context
from memory.sessions.lifetime import expiry_of, session_expiry
from memory.stores.base import Store
from memory.tokens import TokenCounter
from memory.turn_request import TurnRequest

_RACES = 20


class Memory:
    def __init__(
        self,
        *,
        store: Store,
        recall: Recall,
        counter: TokenCounter,
        config: MemoryConfig,
        gates: SessionQueue,
        wake: Callable[[str], None],
    ) -> None:
        self._store = store
        self._opening = Opening(store=store, session_ttl=config.ttl.session)
        self._recording = Recorder(
            store=store,
            opening=self._opening,
            counter=counter,
            config=config,
            gates=gates,
            wake=wake,
        )
        self._idempotency = Idempotency(store=store, opening=self._opening, ttl=config.ttl)
        self._composing = ContextBuilder(store=store, recall=recall, counter=counter, config=config)
        self._config = config
        self._gates = gates
        self._wake = wake
        self.counter = counter

    def stop(self) -> None:
        """Take no more turns or messages; those that wait for their session are refused too."""
        self._gates.shut()

    async def accept(self, ask: TurnRequest) -> OpenTurn:
        """Make the question durable and begin to recall.

        Raises BudgetExceeded, SessionBusy, Stopping, StoreUnavailable; then nothing was stored.
        With an idempotency key also Answered, KeyReused, TurnRunning, TurnSuperseded.
        """
        wait_until = time.monotonic() + self._config.session.wait
        draft = self._composing.begin(ask)
        try:
            waited = not self._gates.is_free(ask.key)
            if waited:
                await self._known(ask, gated=False)
            await self._gates.acquire(ask.key, wait_seconds=self._config.session.wait)
            try:
                opened, turn = await self._insert(ask, wait_until, draft)
            except BaseException:
                self._gates.release(ask.key)
                raise
        except BaseException:
            draft.cancel()
            raise
        if waited or opened.waited:
            # What was found before the wait does not know the turns that ended meanwhile.
            draft.cancel()
            draft = self._composing.again(ask)
        if not draft.is_shown:
            draft.show(opened.session, opened.loaded, turn)
        self._wake(ask.key)
        ends = session_expiry(opened.session, turn.recorded_at, self._config.ttl.session)
        return OpenTurn(ask=ask, turn=turn, session_ends=ends, draft=draft)

    async def _insert(
        self, ask: TurnRequest, wait_until: float, draft: ContextDraft
    ) -> tuple[Opened, Turn]:
        left = self._opening.take_left(ask.key)
        if left is not None:
            turn = self._turn(ask, left + 1)
            ahead = await self._opening.append_ahead(ask.user, turn, draft.show)
            if ahead is not None:
                return ahead, turn
        waited = draft.is_shown  # what is not so
        for _race in range(_RACES):
            opened, known = await self._open(ask, wait_until)
            waited = waited or opened.waited
            if known is not None:
                again = await self._idempotency.run_again(
                    known, opened, lease_seconds=self._config.session.lease
                )
                if again is not None:
                    return opened._replace(waited=waited), again
                continue
            turn = self._turn(ask, last_seq(opened.loaded) + 1)
            inserted, opened = await self._opening.append(opened, [turn])
            if inserted:
                return opened._replace(waited=waited), turn
            waited = True  # another process was first
        raise SessionBusy(1.0)

    def _turn(self, ask: TurnRequest, seq: int) -> Turn:
        return running_turn(
            ask.user,
            ask.session_id,
            seq,
            ask.question,
            ttl=self._config.ttl.memory,
            lease_seconds=self._config.session.lease,
            counter=self.counter,
            metadata=ask.metadata,
            idempotency_key=ask.idempotency_key,
            body_hash=ask.body_hash or None,
        )

    async def _open(self, ask: TurnRequest, wait_until: float) -> tuple[Opened, Turn | None]:
        """The session, and beside it what is known of the idempotency key."""
        opening = self._opening.session(ask.user, ask.session_id, wait_until=wait_until)
        if ask.idempotency_key is None:
            return await opening, None
        try:
            async with asyncio.TaskGroup() as both:
                opened = both.create_task(opening)
                known = both.create_task(self._known(ask, gated=True))
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None
        return opened.result(), known.result()

    async def _known(self, ask: TurnRequest, *, gated: bool) -> Turn | None:
        if ask.idempotency_key is None:
            return None
        return await self._idempotency.known(
            ask.user.key, ask.idempotency_key, ask.body_hash, gated=gated
        )

    async def context(self, accepted: OpenTurn) -> Context:
        """What the model is to read for an accepted turn."""
        assert accepted.draft is not None, "it was let go"
        return await accepted.draft.context()

    async def preview(self, ask: TurnRequest) -> Context:
        """What a turn would send now; nothing is stored, an unknown session is an empty one."""
        draft = self._composing.begin(ask)
        try:
            session, loaded, _ = await self._opening.glance(ask.user, ask.session_id)
            draft.show(session, loaded)
            return await draft.context()
        finally:
            draft.cancel()

    def plain(self, ask: TurnRequest) -> Context:
        """The context of a stateless call: system text and question alone."""
        return self._composing.plain(ask)

    async def flush(self, accepted: OpenTurn, text: str, *, context: Context | None = None) -> None:
        """Store the answer so far and renew the lease. Raises TurnLost, StoreUnavailable."""
        until = expiry_of(now(), self._config.session.lease)
        news = context.receipt if context and not accepted.receipt_stored else None
        await self._save(accepted, text, "running", "running", lease_until=until, receipt=news)
        accepted.receipt_stored = accepted.receipt_stored or news is not None

    async def finish(
        self,
        accepted: OpenTurn,
        text: str,
        *,
        status: TurnStatus,
        context: Context | None,
        usage: dict[str, int] | None = None,
        finish_reason: str | None = None,
        error: TurnError | None = None,
        model: str | None = None,
    ) -> Turn:
        """Store the answer and free the session. Raises TurnLost, StoreUnavailable.

        A failed turn's text, if there is any, stays as a partial message.
        """
        message: MessageStatus = "partial" if status == "failed" and text else status
        try:
            turn = await self._save(
                accepted,
                text,
                status,
                message,
                receipt=context.receipt if context else None,
                prefix_marks=context.prefix_marks if context else (),
                usage=usage,
                finish_reason=finish_reason,
                error=error,
                model=model,
            )
            accepted.stored = True
            self._opening.left(turn, until=accepted.session_ends)
            return turn
        finally:
            self.abandon(accepted)

    def abandon(self, accepted: OpenTurn) -> None:
        """Free the session without storing anything more. Harmless when repeated."""
        if not accepted.ended:
            accepted.ended = True
            accepted.let_go()
            if not accepted.stored:
                self._opening.abandoned(accepted.turn)
            self._gates.release(accepted.ask.key)
            self._wake(accepted.ask.key)

    async def _save(
        self,
        accepted: OpenTurn,
        text: str,
        status: TurnStatus,
        message_status: MessageStatus,
        **changes: Any,
    ) -> Turn:
        turn = answered(
            accepted.turn,
            text,
            status=status,
            message_status=message_status,
            counter=self.counter,
            **changes,
        )
        if not await self._store.turns.save(turn):
            raise TurnLost(erased=await self._store.turns.get(turn.id, now=now()) is None)
        return turn

    async def record(self, user: User, session_id: str, messages: Sequence[Incoming]) -> Recorded:
        """Store messages without calling a model, in order; those whose `id` is known are
        skipped. Raises InvalidInput, SessionBusy, Stopping, StoreUnavailable."""
        return await self._recording.record(user, session_id, messages)
