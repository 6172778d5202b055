from __future__ import annotations

from memory.ids import SessionKey
from memory.projections.backoff import BACKOFF_SECONDS, JITTER, Backoff

KEY, OTHER = SessionKey("one"), SessionKey("other")


def test_each_failure_in_a_row_waits_longer_up_to_the_last_step() -> None:
    backoff = Backoff()
    for times, seconds in enumerate((*BACKOFF_SECONDS, BACKOFF_SECONDS[-1]), start=1):
        waits = backoff.failed(KEY)
        assert (1 - JITTER) * seconds <= waits <= (1 + JITTER) * seconds
        assert backoff.times(KEY) == times
        assert backoff.waits(KEY)
    assert not backoff.waits(OTHER)
    assert backoff.times(OTHER) == 0


def test_a_retry_at_once_keeps_the_count_and_a_success_forgets_it() -> None:
    backoff = Backoff()
    backoff.failed(KEY)
    backoff.retry_now(KEY)
    assert not backoff.waits(KEY)
    assert backoff.times(KEY) == 1
    backoff.forget(KEY)
    backoff.retry_now(KEY)
    assert backoff.failures == {}
