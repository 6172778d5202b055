from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

from memory.interchange.batch import aware
from unit.builders import NOON


def test_times_are_utc_and_cut_to_milliseconds() -> None:
    assert aware(None) is None
    assert aware(datetime(2024, 5, 8, 12, 0, 0, 1999)) == NOON + timedelta(milliseconds=1)
    east = timezone(timedelta(hours=2))
    assert aware(datetime(2024, 5, 8, 14, tzinfo=east)) == NOON
    moment = aware(datetime(2024, 5, 8, 14, tzinfo=east))
    assert moment is not None
    assert moment.tzinfo is UTC
