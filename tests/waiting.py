"""How tests wait, and how they measure time on a machine that others use as well.

What must happen at some point is waited for as a condition, with one patience for all. What must
happen quickly has a bound in seconds of a quiet machine (`quickly`): on a busy one it is stretched
by what the same machine needs for a fixed piece of work at that moment.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

PATIENCE_SECONDS = 90.0
POLL_SECONDS = 0.01
PROBE_SECONDS = 0.03
# Two readings of one quiet machine differ by less than this.
NOISE = 1.25


def wait_for(
    check: Callable[[], Any], *, within_seconds: float = PATIENCE_SECONDS, what: object = ""
) -> Any:
    """Poll until `check` returns something true, and return it; fail after the deadline."""
    deadline = time.monotonic() + within_seconds
    while not (found := check()):
        assert time.monotonic() < deadline, f"did not happen in time: {what or check}"
        time.sleep(POLL_SECONDS)
    return found


async def eventually(
    check: Callable[[], Any], within_seconds: float = PATIENCE_SECONDS, *, what: object = ""
) -> Any:
    """As `wait_for`, inside an event loop; `check` may be a coroutine function."""
    deadline = time.monotonic() + within_seconds
    while True:
        found = check()
        if inspect.isawaitable(found):
            found = await found
        if found:
            return found
        assert time.monotonic() < deadline, f"did not happen in time: {what or check}"
        await asyncio.sleep(POLL_SECONDS)


def slowdown() -> float:
    """How many times longer work takes now than on a quiet machine, where this is 1."""
    began, worked = time.perf_counter(), time.thread_time()
    while (done := time.thread_time() - worked) < PROBE_SECONDS:
        pass
    return max(1.0, (time.perf_counter() - began) / done)


def assert_quick(took: float, seconds: float, *, what: object = "") -> None:
    """`took` is less than `seconds`, stretched if the machine is busy."""
    if took < seconds:
        return
    stretch = max(slowdown() for _ in range(3))
    allowed = seconds if stretch < NOISE else seconds * 2 * stretch
    assert took < allowed, f"{took:.2f} s, {allowed:.2f} s allowed (slowdown {stretch:.1f}) {what}"


@contextmanager
def quickly(seconds: float, *, after: float = 0.0) -> Iterator[None]:
    """The block takes less than `seconds` of a quiet machine, and no less than `after`."""
    began = time.monotonic()
    yield
    took = time.monotonic() - began
    assert took >= after, f"{took:.3f} s, which is less than {after:.3f} s"
    assert_quick(took, seconds)
