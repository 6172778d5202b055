"""One answer: the model call, its text so far, its storing. Readers only read the buffer.

They may come late or leave; after the last one has left, the answer goes on for `session.detach`
and is then stored as partial.
"""

from __future__ import annotations

import asyncio
import math
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Literal

import structlog

from memory.config import SessionConfig
from memory.errors import StoreUnavailable, TurnLost, reason
from memory.models import Turn, TurnError, TurnStatus, now
from memory.open_turn import OpenTurn
from memory.receipt import ChatMessage, Context
from memory.tokens import TokenCounter
from service.chat_models.answer import ModelFailed, Piece
from service.observability.metrics import Metrics
from service.streaming.answer_buffer import AnswerBuffer, Checkpoints
from service.streaming.events import ERASED, Done, End, accepted_of, run_of

log = structlog.get_logger("strata.turn")

# The response that reads an answer begins a moment after it.
FIRST_READER_SECONDS = 5.0
StopReason = Literal["cancelled", "detached", "shutting_down", "lost"]
_SHUTTING_DOWN = TurnError(
    "shutting_down", "the service is stopping; what was streamed is kept", True, 1.0
)
_TAKEN_OVER = TurnError("interrupted", "another worker took the turn over", True)
_NOT_PERSISTED = TurnError("not_persisted", "the answer could not be stored", True)
_CRASHED = TurnError("model_error", "an unexpected error", True)


class Generation:
    """Makes one answer. `open_turn` is None for a stateless call, whose `context` is given.

    `stream` calls the model with the messages of a context. `started` is the time.perf_counter()
    at which the request came. `flushes` bounds the checkpoints of all answers together.
    `ended_turn` is the turn as it was stored at last, if it was.
    """

    def __init__(
        self,
        *,
        stream: Callable[[Sequence[ChatMessage]], AsyncIterator[Piece]],
        model_name: str,
        open_turn: OpenTurn | None,
        context: Context | None,
        session: SessionConfig,
        counter: TokenCounter,
        metrics: Metrics,
        flushes: asyncio.Semaphore,
        started: float,
    ) -> None:
        self._stream = stream
        self.model_name = model_name
        self._open_turn = open_turn
        self._context = context
        self._session = session
        self._counter = counter
        self._metrics = metrics
        self._flushes = flushes
        self._started = started
        self.accepted_turn = turn = open_turn.turn if open_turn is not None else None
        self.run_id = run_of(turn) if turn else f"{uuid.uuid4().hex}.1"
        self.answer = AnswerBuffer(accepted_of(turn) if turn else None)
        if context is not None:
            self.answer.show(context.receipt)
        self.status: TurnStatus = "running"
        self.ended_turn: Turn | None = None
        self.watched_until: datetime | None = None  # by a reader at another worker
        self._usage: dict[str, int] | None = None
        self._finish_reason: str | None = None
        self._readers = 0
        self._detach: asyncio.TimerHandle | None = None
        self._model_call: asyncio.Task[None] | None = None
        self._stop: StopReason | None = None

    async def run(self) -> None:
        """To the end: whatever happens, readers get a last event and the session is freed."""
        end: End | None = None
        try:
            self._schedule_detach(at_least=FIRST_READER_SECONDS)
            end = await self._store(*await self._outcome())
        except Exception:  # the edge of a task: the client must get an end, the log the reason
            log.exception("turn.crashed")
            end = self._failed(_CRASHED)
        finally:
            if self._open_turn is not None:
                self._open_turn.abandon()
            if self._detach is not None:
                self._detach.cancel()
            self._metrics.turns.labels(self.status).inc()
            self._metrics.turn_seconds.observe(self._elapsed_seconds())
            self.answer.finish(end)

    async def _outcome(self) -> tuple[TurnStatus, TurnError | None]:
        """Call the model, with checkpoints, and say how that ended."""
        checkpoints, open_turn = None, self._open_turn
        if open_turn is not None:
            checkpoints = Checkpoints(
                self.answer,
                self._session,
                flush=lambda: open_turn.flush(self.answer.text),
                lost=lambda: self.stop("lost"),
                gate=self._flushes,
            )
        self._model_call = asyncio.create_task(self._call_model(), name="answer")
        if self._stop is not None:
            self._model_call.cancel()
        try:
            await self._model_call
        except ModelFailed as failure:
            cause = failure.__cause__ or failure
            log.warning("model.failed", code=failure.error.code, cause=type(cause).__name__)
            return "failed", failure.error
        except asyncio.CancelledError:
            if self._stop is None:  # this task itself was cancelled
                self._model_call.cancel()
                raise
            return "partial", _SHUTTING_DOWN if self._stop == "shutting_down" else None
        finally:
            if checkpoints is not None:
                await checkpoints.stop()
        return "done", None

    async def _call_model(self) -> None:
        context = self._context
        if context is None:
            assert self._open_turn is not None
            context = await self._open_turn.context()
            self._open_turn.release_context()
        self._context = None  # its text is held until the model has answered, not for readers
        receipt, elapsed_seconds = context.receipt, self._elapsed_seconds()
        self.answer.show(receipt)
        log.info(
            "turn.model_call",
            elapsed_ms=round(elapsed_seconds * 1000, 2),
            prompt_tokens=receipt.used_tokens,
            degraded=list(receipt.degraded),
        )
        self._metrics.model_call_seconds.observe(elapsed_seconds)
        self._metrics.context_tokens.observe(receipt.used_tokens)
        for part in receipt.degraded:
            self._metrics.degraded.labels(part).inc()
        async for piece in self._stream(context.messages):
            if self._stop is not None:
                raise asyncio.CancelledError  # a library on the way has swallowed it
            self._usage = piece.usage or self._usage
            self._finish_reason = piece.finish_reason or self._finish_reason
            text = storable(piece.text)
            if text:
                if not self.answer.length:
                    self._metrics.first_token_seconds.observe(self._elapsed_seconds())
                self.answer.add(text)

    async def _store(self, status: TurnStatus, error: TurnError | None) -> End:
        """Store the answer, if it is to be stored; the last event of it."""
        text, usage, receipt = self.answer.seal(), self._usage, self.answer.receipt
        if usage is None and receipt is not None and status != "failed":
            usage = {
                "prompt_tokens": receipt.used_tokens,
                "completion_tokens": self._counter.count(text),
            }
        finish_reason = self._finish_reason or ("stop" if status == "done" else None)
        if status == "partial":
            finish_reason = self._stop
        if self._open_turn is not None:
            try:
                self.ended_turn = await self._open_turn.finish(
                    text,
                    status=status,
                    usage=usage,
                    finish_reason=finish_reason,
                    error=error,
                    model=self.model_name,
                )
            except TurnLost as lost:
                log.warning("turn.lost", erased=lost.erased)
                return self._failed(ERASED if lost.erased else _TAKEN_OVER)
            except StoreUnavailable as unavailable:
                log.error("turn.not_persisted", detail=reason(unavailable))
                return self._failed(_NOT_PERSISTED)
        self.status = status
        if error is not None:
            return error
        turn = self.ended_turn
        message_id = turn.assistant.id if turn and turn.assistant else None
        return Done(turn.id if turn else None, message_id, finish_reason, usage, self.model_name)

    def _failed(self, error: TurnError) -> TurnError:
        self.status = "interrupted" if error.code == "interrupted" else "failed"
        return error

    def _elapsed_seconds(self) -> float:
        """Since the request came."""
        return time.perf_counter() - self._started

    def stop(self, reason: StopReason) -> None:
        """End the model call now; what there is is stored as partial."""
        if self._model_call is None or not self._model_call.done():
            self._stop = self._stop or reason
        if self._model_call is not None:
            self._model_call.cancel()

    @contextmanager
    def reading(self) -> Iterator[AnswerBuffer]:
        """The answer for one more reader: as long as there is one, the model goes on."""
        self._readers += 1
        if self._detach is not None:
            self._detach.cancel()
            self._detach = None
        try:
            yield self.answer
        finally:
            self._readers -= 1
            self._schedule_detach()

    def _schedule_detach(self, at_least: float = 0.0) -> None:
        seconds = max(self._session.detach, at_least)
        if self._readers == 0 and not self.answer.ended and not math.isinf(seconds):
            self._detach = asyncio.get_running_loop().call_later(seconds, self._detached)

    def _detached(self) -> None:
        until = self.watched_until
        if until is not None and (left := (until - now()).total_seconds()) > 0:
            self._schedule_detach(at_least=left)
        else:
            self.stop("detached")


def storable(text: str) -> str:
    """A model's text without what no store and no client can hold."""
    return text.replace("\0", "").encode("utf-8", "replace").decode("utf-8")
