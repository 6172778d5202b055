"""The answer that is being made here: each reader reads at its own place, checkpoints store it.

Text is kept in pieces as the model sent them while they are new, and in pages once they are old;
readers who wait are woken for each change. Now and then what there is is stored, and the lease of
the turn renewed.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

from memory.config import SessionConfig
from memory.errors import StoreUnavailable, TurnLost
from memory.receipt import Receipt
from service.streaming.events import Accepted, End, Token

# A reader that is more pieces behind gets them joined in one event. Older pieces are joined for
# good: a string of a few letters takes ten times its text's room.
MOST_PIECES = 16
# Code points of one event for a reader that is behind the pieces: what is written at once for a
# client that does not read must not grow with the answer.
PAGE = 1024
PING_SECONDS = 15.0
# A lease is renewed this many times in its length.
LEASE_PARTS = 3


class Waiters:
    """Wakes all who wait, or each after `patience_seconds`. Unlike asyncio.Event it costs nothing
    to notify while nobody waits, which happens for every token of every answer, and one timer
    serves all who wait."""

    def __init__(self, patience_seconds: float) -> None:
        self._patience = patience_seconds
        self._waiting: dict[asyncio.Future[bool], float] = {}  # each with its deadline
        self._timer: asyncio.TimerHandle | None = None

    def notify(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for woken in waiting:
            _wake(woken, notified=True)

    async def wait(self) -> bool:
        """True after the next `notify`, False after `patience_seconds`. It knows nothing of calls
        before it: look for what is new first."""
        loop = asyncio.get_running_loop()
        woken: asyncio.Future[bool] = loop.create_future()
        self._waiting[woken] = loop.time() + self._patience
        if self._timer is None:
            self._timer = loop.call_later(self._patience, self._lose_patience)
        try:
            return await woken
        finally:
            self._waiting.pop(woken, None)

    def _lose_patience(self) -> None:
        self._timer, loop = None, asyncio.get_running_loop()
        for woken, deadline in self._waiting.items():
            if deadline <= loop.time():
                _wake(woken, notified=False)
            elif self._timer is None:  # the first that still waits: they stand in order
                self._timer = loop.call_at(deadline, self._lose_patience)


def _wake(woken: asyncio.Future[bool], *, notified: bool) -> None:
    if not woken.done():
        woken.set_result(notified)


class AnswerBuffer:
    """A Snapshot that grows. `accepted` is None for a stateless call."""

    def __init__(self, accepted: Accepted | None = None) -> None:
        self.accepted = accepted
        self.receipt: Receipt | None = None
        self.ended = False
        self.end: End | None = None
        self.length = 0  # in code points
        self._changes = Waiters(PING_SECONDS)
        # No text is copied for each few letters more: answers that grow side by side would leave
        # the heap full of holes.
        self._pages: list[str] = []  # of `PAGE` code points each
        self._joined: list[str] = []  # after them, less than a page: pieces joined
        self._recent: list[str] = []  # the pieces after them
        self._whole: str | None = None  # instead of all these, once nothing is added any more

    @property
    def text(self) -> str:
        if self._whole is not None:
            return self._whole
        return "".join((*self._pages, *self._joined, *self._recent))

    def show(self, receipt: Receipt) -> None:
        """The account of the context that goes to the model."""
        self.receipt = receipt
        self._changes.notify()

    def add(self, text: str) -> None:
        """One more piece; it must not be empty."""
        self.length += len(text)
        self._recent.append(text)
        if len(self._recent) == 2 * MOST_PIECES:
            self._join("".join(self._recent[:MOST_PIECES]))
            del self._recent[:MOST_PIECES]
        self._changes.notify()

    def seal(self) -> str:
        """The whole text, kept once from now on. Nothing may be added any more."""
        self._whole = self.text
        self._pages, self._joined, self._recent = [], [], []
        return self._whole

    def finish(self, end: End | None) -> None:
        """Let readers end, with this as their last event."""
        self.end, self.ended = end, True
        self._changes.notify()

    async def changed(self) -> bool:
        """Wait for the next change; False when there was none for `PING_SECONDS`."""
        return await self._changes.wait()

    def tokens(self, at: int) -> list[Token]:
        """The next of the text from code point `at` < `length` on: to its end, or one page if
        `at` is far behind."""
        if self._recent and at + len(self._recent[-1]) == self.length:  # the reader keeps up
            return [Token(self.length, self._recent[-1])]
        tokens = []
        for text in self._since(at):
            at += len(text)
            tokens.append(Token(at, text))
        return tokens

    def _join(self, text: str) -> None:
        self._joined.append(text)
        if sum(map(len, self._joined)) >= PAGE:
            text = "".join(self._joined)
            full = len(text) - len(text) % PAGE
            self._pages += (text[start : start + PAGE] for start in range(0, full, PAGE))
            self._joined = [text[full:]]

    def _since(self, at: int) -> list[str]:
        if self._whole is not None:
            return [self._whole[at : at + PAGE]]
        page, within = divmod(at, PAGE)
        if page < len(self._pages):
            return [self._pages[page][within:]]
        texts, start = [], self.length
        for text in reversed((*self._joined, *self._recent)):
            if start <= at:
                break
            texts.append(text)
            start -= len(text)
        texts.reverse()
        texts[0] = texts[0][at - start :]
        return texts if len(texts) <= MOST_PIECES else ["".join(texts)]


class Checkpoints:
    """So that a crash loses little of an answer. `flush` stores what there is; once it raises
    TurnLost, `lost` is called and nothing is flushed any more.

    Every running answer has one, so between two flushes it is only a timer. `gate` bounds how
    many flush at once: more would only wait in the store, each with a copy of its text.
    """

    def __init__(
        self,
        answer: AnswerBuffer,
        session: SessionConfig,
        *,
        flush: Callable[[], Awaitable[None]],
        lost: Callable[[], None],
        gate: asyncio.Semaphore,
    ) -> None:
        self._answer = answer
        self._growing_seconds = session.partial_flush or math.inf
        self._renewal_seconds = session.lease / LEASE_PARTS
        self._flush = flush
        self._lost = lost
        self._gate = gate
        self._flushing: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._stored = 0  # code points
        self._renewed = time.monotonic()
        self._wait()

    async def stop(self) -> None:
        """Flush no more: the end of the answer is stored by its caller."""
        if self._timer is not None:
            self._timer.cancel()
        if self._flushing is not None:
            self._flushing.cancel()
            with suppress(asyncio.CancelledError):
                await self._flushing

    def _wait(self) -> None:
        pause = min(self._growing_seconds, self._renewal_seconds)
        if not math.isinf(pause):
            self._timer = asyncio.get_running_loop().call_later(pause, self._flush_if_due)

    def _flush_if_due(self) -> None:
        grown = self._answer.length != self._stored and not math.isinf(self._growing_seconds)
        if grown or time.monotonic() - self._renewed >= self._renewal_seconds:
            self._flushing = asyncio.create_task(self._flush_now(), name="flush")
        else:
            self._wait()

    async def _flush_now(self) -> None:
        try:
            async with self._gate:
                self._stored, self._renewed = self._answer.length, time.monotonic()
                await self._flush()
        except TurnLost:
            self._lost()
            return
        except StoreUnavailable:
            pass  # the next flush tries again, and at last the end of the turn, which logs it
        self._wait()
