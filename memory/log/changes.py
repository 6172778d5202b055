"""Sessions in which something has changed: the log notes them, the projector takes them."""

from __future__ import annotations

import asyncio

from memory.ids import SessionKey


class ChangeFeed:
    """Only a hint that saves waiting for the next interval: what is pending stands in the store."""

    def __init__(self) -> None:
        self._changed: set[SessionKey] = set()
        self._event = asyncio.Event()

    def note(self, key: SessionKey) -> None:
        self._changed.add(key)
        self._event.set()

    def wake(self) -> None:
        """End the wait without a change."""
        self._event.set()

    def take(self) -> set[SessionKey]:
        """The sessions that changed since the last call."""
        taken, self._changed = self._changed, set()
        self._event.clear()
        return taken

    async def wait(self, timeout_seconds: float) -> None:
        """Return at the next change (or for one that was not taken yet), or after the timeout."""
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._event.wait()
        except TimeoutError:
            pass
