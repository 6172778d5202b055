"""The answer that is being made here: each reader reads at its own place, checkpoints store it.

Text is kept in pieces as the model sent them while they are new, and in pages once they are old;
readers who wait are woken for each change. Now and then what there is is stored, and the lease of
the turn renewed.
"""

from __future__ import annotations

import asyncio
import math
import time
from array import array
from bisect import bisect_right
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

    __slots__ = ("_patience", "_timer", "_waiting")

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

    __slots__ = (
        "_changes",
        "_ends",
        "_joined",
        "_pages",
        "_recent",
        "accepted",
        "end",
        "ended",
        "length",
        "receipt",
    )

    def __init__(self, accepted: Accepted | None = None) -> None:
        self.accepted = accepted
        self.receipt: Receipt | None = None
        self.ended = False
        self.end: End | None = None
        self.length = 0  # in code points
        self._changes = Waiters(PING_SECONDS)
        # Pages, then what is not yet one. No text is copied for each few letters more: answers
        # that grow side by side would leave the heap full of holes.
        self._joined: list[str] = []
        self._ends = array("I")  # where each of them ends, in code points
        self._pages = 0
        self._recent: list[str] = []  # the pieces after them

    @property
    def text(self) -> str:
        return "".join((*self._joined, *self._recent))

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
        whole = self.text
        self._joined, self._recent, self._pages = [], [], 0
        self._ends = array("I")
        self._join(whole)
        return whole

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
        texts = [self._page(at)] if at < self._joined_length else self._since(at)
        tokens = []
        for text in texts:
            at += len(text)
            tokens.append(Token(at, text))
        return tokens

    def _join(self, text: str) -> None:
        end = self._joined_length + len(text)
        paged = self._ends[self._pages - 1] if self._pages else 0
        if end - paged >= PAGE:
            text = "".join((*self._joined[self._pages :], text))
            del self._joined[self._pages :], self._ends[self._pages :]
            self._pages += 1
        self._joined.append(text)
        self._ends.append(end)

    @property
    def _joined_length(self) -> int:
        return self._ends[-1] if self._ends else 0

    def _page(self, at: int) -> str:
        n = bisect_right(self._ends, at)
        begin = len(self._joined[n]) - (self._ends[n] - at)
        parts = [self._joined[n][begin : begin + PAGE]]
        length = len(parts[0])
        for text in self._joined[n + 1 :]:
            if length >= PAGE:
                break
            parts.append(text)
            length += len(text)
        return "".join(parts)[:PAGE]

    def _since(self, at: int) -> list[str]:
        texts, start = [], self.length
        for text in reversed(self._recent):
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

    __slots__ = (
        "_answer",
        "_flush",
        "_flushing",
        "_gate",
        "_growing_seconds",
        "_lost",
        "_renewal_seconds",
        "_renewed",
        "_stored",
        "_timer",
    )

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
