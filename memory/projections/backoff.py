"""When a session whose projection failed is tried again: later and later, and not all at once."""

from __future__ import annotations

import random
import time
from typing import NamedTuple

from memory.ids import SessionKey

BACKOFF_SECONDS = (1.0, 2.0, 5.0, 15.0, 60.0)
JITTER = 0.25  # of it: workers that failed together do not come back together


class Failures(NamedTuple):
    """How often a session has failed in a row, and when (monotonic) it is tried again."""

    times: int = 0
    not_before: float = 0.0


class Backoff:
    """The failures of every session that has failed and not succeeded since."""

    def __init__(self) -> None:
        self.failures: dict[SessionKey, Failures] = {}

    def waits(self, key: SessionKey) -> bool:
        return time.monotonic() < self.failures.get(key, Failures()).not_before

    def times(self, key: SessionKey) -> int:
        return self.failures.get(key, Failures()).times

    def failed(self, key: SessionKey) -> float:
        """Seconds until the next try."""
        times = self.times(key)
        seconds = BACKOFF_SECONDS[min(times, len(BACKOFF_SECONDS) - 1)]
        seconds *= random.uniform(1 - JITTER, 1 + JITTER)
        self.failures[key] = Failures(times + 1, time.monotonic() + seconds)
        return seconds

    def retry_now(self, key: SessionKey) -> None:
        if key in self.failures:
            self.failures[key] = Failures(self.times(key))

    def forget(self, key: SessionKey) -> None:
        """It succeeded, or is gone."""
        self.failures.pop(key, None)
