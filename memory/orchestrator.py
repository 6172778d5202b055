"""Memory: joins the log of turns with the context that is built for them.

`begin` makes a question durable while its context is gathered; the OpenTurn that it returns stores
the answer. Reading back is in history.py, catching up in projections/, expiry in retention/.
"""

from __future__ import annotations

from collections.abc import Sequence

from memory.context.builder import ContextBuilder
from memory.log.recording import Recorded, Recorder
from memory.log.transitions import Incoming
from memory.log.turn_log import TurnLog
from memory.models import User, session_key
from memory.open_turn import OpenTurn
from memory.receipt import Context
from memory.turn_request import TurnRequest


class Memory:
    def __init__(self, *, log: TurnLog, contexts: ContextBuilder) -> None:
        self._log = log
        self._contexts = contexts
        self._recorder = Recorder(log)

    async def begin(self, request: TurnRequest) -> OpenTurn:
        """Make the question durable and begin to recall.

        Raises BudgetExceeded, SessionBusy, TooManyWaiting, Stopping, StoreUnavailable; then
        nothing was stored. With an idempotency key also Answered, KeyReused, TurnRunning,
        TurnSuperseded.
        """
        key = session_key(request.user.key, request.session_id)
        draft = self._contexts.draft(request, key)
        try:
            accepted = await self._log.accept(request, key, draft)
        except BaseException:
            draft.cancel()
            raise
        return OpenTurn(log=self._log, accepted=accepted, draft=draft)

    async def preview(self, request: TurnRequest) -> Context:
        """What a turn would send now; nothing is stored, an unknown session is an empty one.

        Raises BudgetExceeded, StoreUnavailable.
        """
        key = session_key(request.user.key, request.session_id)
        draft = self._contexts.draft(request, key)
        draft.begin()
        try:
            opened = await self._log.read(request.user, request.session_id, key)
            draft.show(opened.session, opened.loaded)
            return await draft.context()
        finally:
            draft.cancel()

    def plain(self, request: TurnRequest) -> Context:
        """The context of a stateless call: system text and question alone. BudgetExceeded."""
        return self._contexts.plain(request)

    async def record(self, user: User, session_id: str, messages: Sequence[Incoming]) -> Recorded:
        """Store messages without calling a model, in order; those whose `id` is known are skipped.

        Raises InvalidInput, SessionBusy, TooManyWaiting, Stopping, StoreUnavailable.
        """
        return await self._recorder.record(user, session_id, messages)

    def stop(self) -> None:
        """Take no more turns or messages; those that wait for their session are refused too."""
        self._log.queue.shut()

    async def drain(self) -> None:
        """Wait for turns that are being ended after their callers have gone."""
        await self._log.drain()
