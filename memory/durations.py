"""Durations as people write them, `150ms 2s 5m 12h 30d never`, and as numbers of seconds."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}


def parse_duration(value: Any) -> float:
    """Seconds of `150ms 2s 5m 12h 30d`, a bare number of seconds, or `never` (infinity).
    Raises ValueError."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        if math.isnan(value) or value < 0:
            raise ValueError("a duration is not negative")
        return float(value)
    text = str(value).strip().lower()
    if text == "never":
        return math.inf
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)?", text)
    if not match:
        raise ValueError("write a duration as 150ms, 2s, 5m, 12h, 30d or never")
    return float(match[1]) * _UNITS[match[2] or "s"]


def duration_text(seconds: float) -> str:
    """`seconds` in the largest unit that gives a whole number: 31536000.0 is `365d`."""
    if math.isinf(seconds):
        return "never"
    for unit, size in _UNITS.items():
        count = round(seconds / size)
        if count and math.isclose(count * size, seconds):
            return f"{count}{unit}"
    return f"{seconds:g}s"


def _ttl(value: Any) -> Any:
    return value if value == "session" else parse_duration(value)


Duration = Annotated[float, BeforeValidator(parse_duration)]
Ttl = Annotated[float | Literal["session"], BeforeValidator(_ttl)]
