from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from evals.reporting.figures import latency_ms, mean, percentile, share, spread

samples = st.lists(st.floats(0, 1e6), min_size=1, max_size=50)


@given(samples, st.integers(1, 99))
def test_a_percentile_lies_inside_the_sample(values: list[float], percent: int) -> None:
    found = percentile(values, percent)
    # Interpolation between equal values may round in the last digit.
    slack = 1e-9 * max(values)
    assert min(values) - slack <= found <= max(values) + slack


@given(samples)
def test_percentiles_grow(values: list[float]) -> None:
    assert percentile(values, 50) <= percentile(values, 95) + 1e-9 * max(values)


def test_the_median_of_an_even_sample_lies_between() -> None:
    assert percentile([1, 2, 3, 4], 50) == 2.5


def test_nothing_measured_gives_zeros() -> None:
    assert mean([]) == 0.0
    assert spread([]) == {"mean": 0.0, "p50": 0.0, "p95": 0.0, "max": 0.0}
    assert latency_ms([]) == {"p50": 0.0, "p99": 0.0}
    assert share(1, 0) == 0.0


def test_seconds_become_milliseconds() -> None:
    assert latency_ms([0.010, 0.020, 0.030]) == {"p50": 20.0, "p99": 29.8}


def test_a_share_is_a_percentage() -> None:
    assert share(1, 3) == 33.33
