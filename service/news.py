"""Wakes whoever waits for something new."""

from __future__ import annotations

import asyncio


class News:
    """An asyncio.Event for many who wait again and again, each for a limited time. It is told for
    every token of every answer, so it costs nothing while nobody waits."""

    def __init__(self) -> None:
        self._waiting: list[asyncio.Future[bool]] = []

    def tell(self) -> None:
        waiting, self._waiting = self._waiting, []
        for woken in waiting:
            _wake(woken, True)

    async def wait(self, seconds: float) -> bool:
        """Whether there was news, after it or after this time. What was told before does not
        count: look for it first."""
        loop = asyncio.get_running_loop()
        woken = loop.create_future()
        self._waiting.append(woken)
        timer = loop.call_later(seconds, _wake, woken, False)
        try:
            return await woken
        finally:
            timer.cancel()
            if woken in self._waiting:
                self._waiting.remove(woken)


def _wake(woken: asyncio.Future[bool], news: bool) -> None:
    if not woken.done():
        woken.set_result(news)
