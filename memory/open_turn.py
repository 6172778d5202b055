"""A question that is durable, until its answer is."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any, Self

import structlog

from memory.context.builder import ContextDraft
from memory.errors import StrataError, TurnEnded, reason
from memory.log.transitions import answered
from memory.log.turn_log import AcceptedTurn, TurnLog
from memory.models import MessageStatus, Turn, TurnError, TurnStatus, expiry_of, now
from memory.receipt import Context, Receipt

log = structlog.get_logger("strata.turn")

UNANSWERED = TurnError("model_error", "the turn ended without an answer", True)


class OpenTurn:
    """One turn of a session, which no other turn can begin in meanwhile.

    Ended by `finish` or `abandon`. As an async context manager it ends by itself: left by an
    exception, or without `finish`, the turn is stored as failed with the text that was flushed.
    """

    def __init__(self, *, log: TurnLog, accepted: AcceptedTurn, draft: ContextDraft) -> None:
        self._log = log
        self.turn, self._session_expires_at = accepted
        self._draft: ContextDraft | None = draft
        self._receipt: Receipt | None = None
        self._receipt_stored = False
        self._prefix_marks: tuple[str, ...] = ()
        self._flushed = ""
        self._ended = False

    async def context(self) -> Context:
        """`messages` are for the model, `receipt` is their account, stored with the turn.

        Raises TurnEnded.
        """
        if self._draft is None:
            raise TurnEnded(self.turn.id)
        context = await self._draft.context()
        self._receipt, self._prefix_marks = context.receipt, context.prefix_marks
        return context

    def release_context(self) -> None:
        """Free what the context is made of; its receipt stays. `context` fails from now on."""
        if self._draft is not None:
            self._draft.cancel()
            self._draft = None

    async def flush(self, text: str) -> None:
        """Store the answer so far and renew the lease.

        Raises TurnEnded, TurnLost (erased, or taken over after its lease), StoreUnavailable.
        """
        if self._ended:
            raise TurnEnded(self.turn.id)
        lease_seconds = self._log.config.current.session.lease
        receipt = None if self._receipt_stored else self._receipt
        await self._log.save(
            self._answered(
                text, "running", lease_until=expiry_of(now(), lease_seconds), receipt=receipt
            )
        )
        self._flushed = text
        self._receipt_stored = self._receipt_stored or receipt is not None

    async def finish(
        self,
        text: str,
        *,
        status: TurnStatus = "done",
        usage: dict[str, int] | None = None,
        finish_reason: str | None = None,
        error: TurnError | None = None,
        model: str | None = None,
    ) -> Turn:
        """Store the answer and free the session; the turn as it is stored.

        A failed turn's text, if there is any, stays as a partial message. Raises TurnEnded,
        TurnLost, StoreUnavailable; the session is free in each case.
        """
        if self._ended:
            raise TurnEnded(self.turn.id)
        turn = self._answered(
            text,
            status,
            receipt=self._receipt,
            prefix_marks=self._prefix_marks,
            usage=usage,
            finish_reason=finish_reason,
            error=error,
            model=model,
        )
        saved = False
        try:
            await self._log.save(turn)
            saved = True
        finally:
            self._end(turn if saved else self.turn, saved=saved)
        return turn

    def abandon(self) -> None:
        """Free the session and store nothing more. Harmless when repeated."""
        self._end(self.turn, saved=False)

    def _end(self, turn: Turn, *, saved: bool) -> None:
        if not self._ended:
            self._ended = True
            self.release_context()
            self._log.end(turn, saved=saved, session_expires_at=self._session_expires_at)

    def _answered(self, text: str, status: TurnStatus, **changes: Any) -> Turn:
        message: MessageStatus = "partial" if status == "failed" and text else status
        return answered(
            self.turn,
            str(text),  # a model's text may be a subclass, which no codec knows
            status=status,
            message_status=message,
            counter=self._log.counter,
            **changes,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._ended:
            return
        # In a task of its own: the caller may have been cancelled, and may be again.
        failing = self._log.spawn(self.finish(self._flushed, status="failed", error=UNANSWERED))
        try:
            await asyncio.shield(failing)
        except StrataError as failure:  # the caller's own exception says more
            log.warning("turn.not_ended", error=type(failure).__name__, detail=reason(failure))
