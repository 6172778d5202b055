"""Pure: whether to ask something that has kept failing, and when to try it again."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

BreakerState = Literal["closed", "open", "half_open"]


class Breaker:
    """Opens after `failures` in a row; then one caller in every `probe_seconds` may try, until
    one succeeds. What began before it opened counts too: its success closes it, its failure
    changes nothing.

    https://martinfowler.com/bliki/CircuitBreaker.html
    """

    def __init__(
        self, *, failures: int, probe_seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limit = failures
        self._probe_seconds = probe_seconds
        self._clock = clock
        self._failed = 0
        self._probe_at = 0.0
        self._probing = False

    @property
    def state(self) -> BreakerState:
        if self._failed < self._limit:
            return "closed"
        return "half_open" if self._probing else "open"

    def allows(self) -> bool:
        """Whether to try now. Who is allowed to tells the outcome, if there is one: a probe that
        was cancelled is followed by the next in its time."""
        if self.state == "closed":
            return True
        if self._clock() < self._probe_at:
            return False
        self._probe_at = self._clock() + self._probe_seconds
        self._probing = True
        return True

    def succeeded(self) -> bool:
        """Whether this has closed it."""
        closes = self.state != "closed"
        self._failed, self._probing = 0, False
        return closes

    def failed(self) -> bool:
        """Whether this has opened it."""
        opens = self._failed == self._limit - 1
        self._failed = min(self._limit, self._failed + 1)
        self._probing = False
        if opens:
            self._probe_at = self._clock() + self._probe_seconds
        return opens
