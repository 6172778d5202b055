from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory.durations import duration_text, parse_duration


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("150ms", 0.15), ("2s", 2.0), ("5m", 300.0), ("12h", 43200.0), ("30d", 2592000.0),
        ("never", math.inf), ("1.5h", 5400.0), ("7", 7.0), (7, 7.0), (0.25, 0.25), (" 2S ", 2.0),
    ],
)  # fmt: skip
def test_durations_are_seconds(written: Any, seconds: float) -> None:
    assert parse_duration(written) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "written", ["", "soon", "-1s", "5 m", "1e3", -1, math.nan, True, None, "2w"]
)
def test_anything_else_is_no_duration(written: Any) -> None:
    with pytest.raises(ValueError, match="duration"):
        parse_duration(written)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.15, "150ms"), (2.0, "2s"), (300.0, "5m"), (43200.0, "12h"), (365 * 86400.0, "365d"),
        (0.5, "500ms"), (90.0, "90s"), (0.0, "0s"), (math.inf, "never"),
    ],
)  # fmt: skip
def test_seconds_are_shown_in_the_largest_whole_unit(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


@given(st.integers(0, 10**9))
def test_what_is_shown_reads_back(milliseconds: int) -> None:
    seconds = milliseconds / 1000
    assert parse_duration(duration_text(seconds)) == pytest.approx(seconds)
