"""Wakes whoever waits for something new."""

from __future__ import annotations

import asyncio


class Waiters:
    """An asyncio.Event for many who wait again and again, each for a limited time. It is told for
    every token of every answer, so it costs nothing while nobody waits, and one timer serves all
    the waits that come while it runs."""

    __slots__ = ("_patience", "_timer", "_waiting")

    def __init__(self, patience_seconds: float) -> None:
        self._patience = patience_seconds
        self._waiting: dict[asyncio.Future[bool], float] = {}  # and until when
        self._timer: asyncio.TimerHandle | None = None

    def tell(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for woken in waiting:
            _wake(woken, news=True)

    async def wait(self) -> bool:
        """Whether there was news; if not, `patience_seconds` are over. What was told before does
        not count: look for it first."""
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
        for woken, until in self._waiting.items():
            if until <= loop.time():
                _wake(woken, news=False)
            elif self._timer is None:  # they are in the order of their coming
                self._timer = loop.call_at(until, self._lose_patience)


def _wake(woken: asyncio.Future[bool], *, news: bool) -> None:
    if not woken.done():
        woken.set_result(news)
