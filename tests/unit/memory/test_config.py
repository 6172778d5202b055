from __future__ import annotations

import math
from typing import Any

import pytest
from pydantic import ValidationError

from memory.config import BudgetConfig, MemoryConfig, TtlConfig, parse_duration


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


def test_the_defaults_are_those_of_the_contract() -> None:
    config = MemoryConfig()
    budget = config.budget
    assert (budget.context_tokens, budget.window_tokens, budget.summary_tokens) == (8000, 4000, 800)
    assert (budget.recall_tokens, budget.facts_tokens, budget.answer_tokens) == (1200, 400, 0)
    assert config.window.compact_to == 0.4
    assert config.recall.deadline == 0.15
    assert config.recall.candidates == 150
    assert config.recall.floor == 0
    assert (config.ttl.memory, config.ttl.session) == (365 * 86400, math.inf)
    assert (config.session.wait, config.session.lease, config.session.detach) == (30, 10, 30)
    assert config.embedding.load_timeout == 60
    assert config.store.url == "sqlite:///.strata/strata.db"
    assert config.index.url == "edge:///.strata/index"


def test_parts_that_exceed_the_whole_are_refused_with_the_sum() -> None:
    with pytest.raises(ValidationError, match="6400 tokens exceed context_tokens = 6000"):
        BudgetConfig(context_tokens=6000)
    BudgetConfig(context_tokens=6400)


@pytest.mark.parametrize(
    "values",
    [
        {"budget": {"contxt_tokens": 5}},
        {"budgets": {}},
        {"budget": {"context_tokens": 0}},
        {"budget": {"window_tokens": -1}},
        {"window": {"compact_to": 0.9}},
        {"window": {"compact_to": 0}},
        {"recall": {"deadline": "soon"}},
        {"recall": {"candidates": 0}},
        {"recall": {"floor": 1.5}},
        {"ttl": {"memory": "for ever"}},
        {"embedding": {"provider": "torch"}},
        {"embedding": {"dimensions": 0}},
        {"session": {"wait": -1}},
        {"projector": {"concurrency": 0}},
    ],
)
def test_unknown_keys_and_impossible_values_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        MemoryConfig.model_validate(values)


@pytest.mark.parametrize(
    ("written", "ttl"), [("session", "session"), ("never", math.inf), ("30d", 2592000.0)]
)
def test_memory_lives_for_a_duration_for_ever_or_as_long_as_its_session(
    written: str, ttl: Any
) -> None:
    assert TtlConfig.model_validate({"memory": written}).memory == ttl


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        MemoryConfig().budget = BudgetConfig()  # type: ignore[misc]


def test_an_api_key_is_not_shown() -> None:
    config = MemoryConfig.model_validate({"embedding": {"api_key": "sk-canary"}})
    assert "canary" not in repr(config)
    assert "canary" not in config.model_dump_json()
