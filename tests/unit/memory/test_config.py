from __future__ import annotations

import math
from typing import Any

import pytest
from pydantic import ValidationError

from memory.config import BudgetConfig, MemoryConfig, TtlConfig


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


def test_every_field_is_described_in_a_sentence() -> None:
    for group in MemoryConfig.model_fields.values():
        assert group.annotation is not None
        for name, field in group.annotation.model_fields.items():  # type: ignore[attr-defined]
            assert field.description, name
            assert field.description[0] in "`hm" or field.description[0].isupper(), name
            assert field.description.endswith("."), name


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        MemoryConfig().budget = BudgetConfig()  # type: ignore[misc]


def test_an_api_key_is_not_shown() -> None:
    config = MemoryConfig.model_validate({"embedding": {"api_key": "sk-canary"}})
    assert "canary" not in repr(config)
    assert "canary" not in config.model_dump_json()
