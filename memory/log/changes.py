"""Sessions in which something has changed: the log adds them, the projector takes them."""

from __future__ import annotations

import asyncio

from memory.ids import SessionKey


class ChangeFeed:
    """Only a hint that saves waiting for the next interval: what is pending stands in the store.

    A turn adds to `sessions` and sets `event`, which costs it no call; others `note` a session.
    """

    def __init__(self) -> None:
        self.sessions: set[SessionKey] = set()
        self.event = asyncio.Event()

    def note(self, key: SessionKey) -> None:
        self.sessions.add(key)
        self.event.set()

    def take(self) -> set[SessionKey]:
        """The sessions that changed since the last call."""
        taken, self.sessions = self.sessions, set()
        self.event.clear()
        return taken

    async def wait(self, timeout_seconds: float) -> None:
        """Return at the next change (or for one that was not taken yet), or after the timeout."""
        try:
            async with asyncio.timeout(timeout_seconds):
                await self.event.wait()
        except TimeoutError:
            pass
