"""What `GET /metrics` gives Prometheus: counts and times of this service, no names, no text.

Several workers share one folder of numbers (`prometheus_client`'s multiprocess mode, which the
variable PROMETHEUS_MULTIPROC_DIR switches on before the first import): a scrape of any one gives
the numbers of all. Nothing here is called once per token.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector

from memory import Strata
from memory.projections.projector import ProjectionState

SHARED_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
REFRESH_SECONDS = 1.0
_WAITS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_TURNS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 120.0, 300.0)
_RECALLS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.5, 1.0)
_TOKENS = (100, 250, 500, 1000, 2000, 4000, 8000, 16_000, 32_000, 64_000, 128_000)


class Metrics:
    """The numbers of one process, for the code that has them to set. Seconds of a turn count from
    its request on; labels are names from the contract, never from a request."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        counter, gauge = partial(Counter, registry=registry), partial(Gauge, registry=registry)

        def histogram(name: str, what: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(name, what, buckets=buckets, registry=registry)

        self.turns = counter("strata_turns", "Turns that ended, by status.", ["status"])
        self.turn_seconds = histogram(
            "strata_turn_seconds", "From the request to the stored answer.", _TURNS
        )
        self.first_token_seconds = histogram(
            "strata_first_token_seconds", "From the request to the first token.", _WAITS
        )
        self.model_call_seconds = histogram(
            "strata_model_call_seconds", "From the request to the call of the model.", _WAITS
        )
        self.context_tokens = histogram(
            "strata_context_tokens", "Tokens of the contexts sent.", _TOKENS
        )
        self.degraded = counter(
            "strata_degraded", "Contexts that lacked a part, by part.", ["part"]
        )
        self.recall_seconds = histogram(
            "strata_recall_seconds", "What recall took, failed or not.", _RECALLS
        )
        self._streams = gauge(
            "strata_open_streams", "Answers that are being produced.", multiprocess_mode="livesum"
        )
        self._breakers = gauge(
            "strata_breakers_open", "Processes that do without a part that keeps failing.",
            ["part"], multiprocess_mode="livesum",
        )  # fmt: skip

    def refresh(self, *, open_streams: int, strata: Strata) -> None:
        """Set the numbers that are states: how many answers run, which breakers are open."""
        self._streams.set(open_streams)
        parts = {"recall": strata.recall.breaker, "summary": strata.summaries.breaker}
        for part, breaker in parts.items():
            self._breakers.labels(part).set(breaker.state != "closed")

    async def keep_fresh(self, *, open_streams: Callable[[], int], strata: Strata) -> None:
        """Refresh until cancelled: a scrape of another worker gets numbers of this one that are at
        most `REFRESH_SECONDS` old."""
        while True:
            self.refresh(open_streams=open_streams(), strata=strata)
            await asyncio.sleep(REFRESH_SECONDS)

    def text(self, projection: ProjectionState | None) -> bytes:
        """The metrics of all workers in Prometheus's text format; all share one `projection`."""
        registry = self._registry
        if os.environ.get(SHARED_FOLDER):
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        found = CollectorRegistry()
        found.register(_Joined([*registry.collect(), *_of_projection(projection)]))
        return generate_latest(found)


class _Joined:
    """A collector of metrics that were collected before."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = list(metrics)

    def collect(self) -> Iterator[Metric]:
        return iter(self._metrics)


def _of_projection(state: ProjectionState | None) -> list[Metric]:
    if state is None:  # the store is down: no number is better than a wrong one
        return []
    return [
        GaugeMetricFamily(
            "strata_projection_behind_sessions", "Sessions with news to project.", state.pending
        ),
        GaugeMetricFamily(
            "strata_projection_lag_seconds", "Age of the oldest turn to project.", state.lag_seconds
        ),
        GaugeMetricFamily(
            "strata_projection_poisoned_messages", "Messages that were set aside.", state.poisoned
        ),
    ]
