"""A producer owns an answer: the model call, the text so far, its storing. Readers only read.

Whoever reads may come late or leave; after the last one left, the answer goes on for
`session.detach` and is then stored as partial. Each reader has its own place; events of the text
are written when they are read, and joined for a reader that has fallen behind.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from typing import Literal

import msgspec
import structlog
from langchain_core.language_models import BaseChatModel

from memory.errors import StoreUnavailable, TurnLost, reason
from memory.models import Turn, TurnError, TurnStatus, now
from memory.open_turn import OpenTurn
from memory.receipt import Context, Receipt
from memory.turn_request import TurnRequest
from service.chat_models.answer import ModelFailed, stream_answer
from service.config.settings import Settings
from service.http.shapes import Options
from service.observability.metrics import Metrics
from service.streaming.admission import Slot
from service.streaming.answer_buffer import AnswerBuffer
from service.streaming.checkpoints import Checkpoints
from service.streaming.events import (
    BEGINNING,
    ERASED,
    PING,
    PING_SECONDS,
    Place,
    accepted_event,
    done_data,
    encode_event,
)
from service.streaming.waiters import Waiters

log = structlog.get_logger("strata.turn")

# The response that reads begins a moment after the producer does.
FIRST_READER_SECONDS = 5.0
StopReason = Literal["cancelled", "detached", "shutting_down", "lost"]


class Generation:
    """Runs one turn. `accepted` is None for a stateless call, whose context is given."""

    def __init__(
        self,
        *,
        count: Callable[[str], int],
        model: BaseChatModel,
        model_name: str,
        settings: Settings,
        metrics: Metrics,
        ask: TurnRequest,
        options: Options,
        flushing: asyncio.Semaphore,
        run_id: str,
        accepted: OpenTurn | None = None,
        context: Context | None = None,
        slot: Slot | None = None,
        started: float | None = None,
    ) -> None:
        self._count = count
        self._model = model
        self.model_name = model_name
        self._settings = settings
        self._metrics = metrics
        self._ask = ask
        self._options = options
        self._flushing = flushing
        self.run_id = run_id
        self._accepted = accepted
        self._context = context
        self._started = time.perf_counter() if started is None else started
        self._slot = slot
        self._answer = AnswerBuffer(run_id)
        self._last: bytes | None = None
        self.usage: dict[str, int] | None = None
        self.finish_reason: str | None = None
        self._news = Waiters(PING_SECONDS)
        self._readers = 0
        self._detach: asyncio.TimerHandle | None = None
        self.watched: datetime | None = None  # until then somebody reads along elsewhere
        self._generation: asyncio.Task[None] | None = None
        self._stop: StopReason | None = None
        self.finished = False
        self.status: TurnStatus = "running"
        self.turn: Turn | None = None
        self.error: TurnError | None = None

    # --- producing -------------------------------------------------------------------------

    async def run(self) -> None:
        """Produce to the end. Whatever happens, the last event tells it and the gate is freed."""
        accepted = self._accepted
        if self._slot is not None:
            self._slot.hold()
        try:
            self._schedule_detach(at_least=FIRST_READER_SECONDS)
            flusher = self._flusher(accepted) if accepted is not None else None
            self._generation = asyncio.create_task(self._generate(), name="answer")
            if self._stop is not None:
                self._generation.cancel()
            try:
                status, error = await self._outcome(self._generation)
            finally:
                if flusher is not None:
                    await flusher.stop()
            await self._end(status, error)
        except Exception:  # the edge of a task: the client must get an end, the log the reason
            log.exception("turn.crashed")
            self._fail(TurnError("model_error", "an unexpected error", True))
        finally:
            if accepted is not None:
                accepted.abandon()
            if self._detach is not None:
                self._detach.cancel()
            if self._slot is not None:
                self._slot.release()
            self._metrics.turn_ended(self.status, self._elapsed())
            self.finished = True
            self._news.tell()

    async def _outcome(self, generation: asyncio.Task[None]) -> tuple[TurnStatus, TurnError | None]:
        try:
            await generation
        except ModelFailed as failure:
            log.warning("model.failed", code=failure.error.code, cause=_cause(failure))
            return "failed", failure.error
        except asyncio.CancelledError:
            if self._stop is None:
                generation.cancel()
                raise
            if self._stop == "shutting_down":
                return "partial", TurnError(
                    "shutting_down", "the service is stopping; what was streamed is kept", True, 1.0
                )
            return "partial", None
        return "done", None

    async def _generate(self) -> None:
        if self._context is None:
            assert self._accepted is not None
            self._context = await self._accepted.context()
            self._accepted.release_context()
            self._news.tell()
        receipt, elapsed = self._context.receipt, self._elapsed()
        log.info(
            "turn.model_call",
            elapsed_ms=round(elapsed * 1000, 2),
            prompt_tokens=receipt.used_tokens,
            degraded=list(receipt.degraded),
        )
        self._metrics.model_called(
            elapsed, context_tokens=receipt.used_tokens, degraded=receipt.degraded
        )
        answer = stream_answer(
            self._model,
            self._context.messages,
            options=self._options,
            answer_tokens=(self._ask.budget or self._settings.budget).answer_tokens,
            config=self._settings.model,
        )
        # What the model reads is let go when it has answered, however slow the readers are.
        self._context = msgspec.structs.replace(self._context, messages=(), recall_block="")
        async for piece in answer:
            if self._stop is not None:
                raise asyncio.CancelledError  # some library on the way has swallowed it
            self.usage = piece.usage or self.usage
            self.finish_reason = piece.finish_reason or self.finish_reason
            text = storable(piece.text)
            if text:
                if not self._answer.length:
                    self._metrics.first_token(self._elapsed())
                self._answer.add(text)
                self._news.tell()

    def _flusher(self, accepted: OpenTurn) -> Checkpoints:
        return Checkpoints(
            self._answer,
            self._settings.session,
            flush=lambda: accepted.flush(self.text),
            lost=lambda: self.stop("lost"),
            gate=self._flushing,
        )

    async def _end(self, status: TurnStatus, error: TurnError | None) -> None:
        text, context, usage = self._answer.close(), self._context, self.usage
        if usage is None and context is not None and status != "failed":
            usage = {
                "prompt_tokens": context.receipt.used_tokens,
                "completion_tokens": self._count(text),
            }
        finish_reason = self.finish_reason or ("stop" if status == "done" else None)
        if status == "partial":
            finish_reason = self._stop
        self.usage, self.finish_reason = usage, finish_reason
        message_id = None
        if self._accepted is not None:
            try:
                self.turn = await self._accepted.finish(
                    text,
                    status=status,
                    usage=usage,
                    finish_reason=finish_reason,
                    error=error,
                    model=self.model_name,
                )
            except TurnLost as lost:
                log.warning("turn.lost", erased=lost.erased)
                if lost.erased:
                    self._fail(ERASED)
                else:
                    self._fail(TurnError("interrupted", "another worker took the turn over", True))
                return
            except StoreUnavailable as unavailable:
                log.error("turn.not_persisted", detail=reason(unavailable))
                self._fail(TurnError("not_persisted", "the answer could not be stored", True))
                return
            assert self.turn.assistant is not None
            message_id = self.turn.assistant.id
        self.status = status
        if error is not None:
            self._fail(error)
            return
        done = done_data(
            turn_id=self.turn.id if self.turn else None,
            message_id=message_id,
            finish_reason=finish_reason,
            usage=usage,
            model=self.model_name,
        )
        self._last = encode_event("done", f"{self.run_id}:e", done)

    def _fail(self, error: TurnError) -> None:
        self.error = error
        if self.status == "running":
            self.status = "interrupted" if error.code == "interrupted" else "failed"
        self._last = encode_event("error", f"{self.run_id}:e", error)

    def _elapsed(self) -> float:
        """Seconds since the request came."""
        return time.perf_counter() - self._started

    # --- stopping --------------------------------------------------------------------------

    def stop(self, reason: StopReason) -> None:
        """End the model call now; what there is is stored as partial."""
        if self._generation is None or not self._generation.done():
            self._stop = self._stop or reason
        if self._generation is not None:
            self._generation.cancel()

    def _schedule_detach(self, at_least: float = 0.0) -> None:
        seconds = max(self._settings.session.detach, at_least)
        if self._readers == 0 and not self.finished and not math.isinf(seconds):
            loop = asyncio.get_running_loop()
            self._detach = loop.call_later(seconds, self._detached)

    def _detached(self) -> None:
        if self.watched is not None and (left := (self.watched - now()).total_seconds()) > 0:
            self._schedule_detach(at_least=left)
        else:
            self.stop("detached")

    # --- reading ---------------------------------------------------------------------------

    @property
    def accepted_turn(self) -> Turn | None:
        """The turn as it was accepted."""
        return self._accepted.turn if self._accepted else None

    @property
    def text(self) -> str:
        """The answer so far."""
        return self._answer.text

    @property
    def receipt(self) -> Receipt | None:
        return self._context.receipt if self._context else None

    async def read(self, place: Place = BEGINNING) -> AsyncIterator[bytes]:
        """All events after `place`, live, with pings in between; ends after the last one."""
        if place.ended:
            return
        self._arrive()
        heads, at = place.heads, min(place.characters, self._answer.length)
        try:
            ended = False
            while not ended:
                news, heads, at, ended = self._after(heads, at)
                if news:
                    yield news
                elif not ended and not await self._news.wait():
                    yield PING
        finally:
            self._leave()

    def _after(self, heads: int, at: int) -> tuple[bytes, int, int, bool]:
        """What comes next for a reader that has these, how far it goes, and whether that is all.
        Nothing of it is held here: for a client that does not read, its response holds it once."""
        news = self._heads(heads)
        heads += len(news)
        if at < self._answer.length:
            events, at = self._answer.events(at)
            news += events
        ended = self.finished and at == self._answer.length
        if ended and self._last is not None:
            news.append(self._last)
        return b"".join(news), heads, at, ended

    def _heads(self, after: int) -> list[bytes]:
        """Those of the events before the text that there are by now."""
        accepted, context = self._accepted, self._context
        if after >= (accepted is not None) + (context is not None):
            return []
        heads = []
        if accepted is not None:
            heads.append(accepted_event(accepted.turn))
        if context is not None:
            heads.append(encode_event("context", f"{self.run_id}:c", context.receipt))
        return heads[after:]

    async def wait(self) -> None:
        """Until the turn has ended (for those who want JSON)."""
        self._arrive()
        try:
            while not self.finished:
                await self._news.wait()
        finally:
            self._leave()

    def _arrive(self) -> None:
        self._readers += 1
        if self._detach is not None:
            self._detach.cancel()
            self._detach = None

    def _leave(self) -> None:
        self._readers -= 1
        self._schedule_detach()


def storable(text: str) -> str:
    """A model's text without what no store and no client can hold."""
    return text.replace("\0", "").encode("utf-8", "replace").decode("utf-8")


def _cause(error: BaseException) -> str:
    cause = error.__cause__
    return type(cause).__name__ if cause else type(error).__name__
