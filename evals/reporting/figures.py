"""Pure: samples become the few figures that a report shows. Empty samples give zeros."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, quantiles


def mean(values: Sequence[float]) -> float:
    return fmean(values) if values else 0.0


def percentile(values: Sequence[float], percent: int) -> float:
    """The value that `percent` (1 … 99) of the sample do not exceed, interpolated inside it."""
    if len(values) < 2:
        return float(values[0]) if values else 0.0
    return quantiles(values, n=100, method="inclusive")[percent - 1]


def spread(values: Sequence[float]) -> dict[str, float]:
    """`mean`, `p50`, `p95` and `max`, with one decimal."""
    return {
        "mean": round(mean(values), 1),
        "p50": round(percentile(values, 50), 1),
        "p95": round(percentile(values, 95), 1),
        "max": round(max(values, default=0.0), 1),
    }


def latency_ms(seconds: Sequence[float]) -> dict[str, float]:
    """`p50` and `p99` in milliseconds, with two decimals."""
    times = [1000 * value for value in seconds]
    return {"p50": round(percentile(times, 50), 2), "p99": round(percentile(times, 99), 2)}


def share(part: float, whole: float) -> float:
    """`part` of `whole` in percent, with two decimals."""
    return round(100 * part / whole, 2) if whole else 0.0
