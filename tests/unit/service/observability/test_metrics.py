from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from memory.projections.projector import ProjectionState
from service.observability.metrics import Metrics


def samples(metrics: Metrics, projection: ProjectionState | None = None) -> dict[str, float]:
    return {
        sample.name + "".join(f",{k}={v}" for k, v in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(metrics.text(projection).decode())
        for sample in family.samples
    }


def test_what_is_told_is_counted() -> None:
    metrics = Metrics()
    for status in ("done", "done", "failed"):
        metrics.turns.labels(status).inc()
        metrics.turn_seconds.observe(0.3)
    for tokens in (900, 100):
        metrics.model_call_seconds.observe(0.02)
        metrics.context_tokens.observe(tokens)
    for part in ("recall", "summary"):
        metrics.degraded.labels(part).inc()
    metrics.first_token_seconds.observe(0.2)
    metrics.recall_seconds.observe(0.004)
    found = samples(metrics)
    assert found["strata_turns_total,status=done"] == 2
    assert found["strata_turns_total,status=failed"] == 1
    assert found["strata_turn_seconds_count"] == 3
    assert found["strata_context_tokens_sum"] == 1000
    assert found["strata_degraded_total,part=recall"] == 1
    assert found["strata_degraded_total,part=summary"] == 1
    assert found["strata_first_token_seconds_bucket,le=0.2"] == 1
    assert found["strata_recall_seconds_bucket,le=0.002"] == 0
    assert found["strata_recall_seconds_bucket,le=0.005"] == 1


def test_without_the_store_nothing_is_said_of_the_projection() -> None:
    assert not any("projection" in name for name in samples(Metrics()))
    found = samples(Metrics(), ProjectionState(pending=2, lag_seconds=1.5, poisoned=3))
    assert found["strata_projection_behind_sessions"] == 2
    assert found["strata_projection_lag_seconds"] == 1.5
    assert found["strata_projection_poisoned_messages"] == 3


def test_two_of_them_in_one_process_know_nothing_of_each_other() -> None:
    one, two = Metrics(), Metrics()
    one.turns.labels("done").inc()
    assert "strata_turns_total,status=done" not in samples(two)
