"""One lock per session inside this process: its projections are changed by one task at a time."""

from __future__ import annotations

import asyncio
from weakref import WeakValueDictionary

from memory.ids import SessionKey


class SessionLocks:
    """Held while a session's projections are changed; who erases it takes it too."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def of(self, key: SessionKey) -> asyncio.Lock:
        lock = self._locks.get(key)
        if lock is None:
            lock = self._locks[key] = asyncio.Lock()
        return lock
