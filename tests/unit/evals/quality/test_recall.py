from __future__ import annotations

import json
import math

import pytest

from evals.quality.recall import Row, effective, figures, recall_budget, retrieved_line
from memory import MemoryConfig


def row(
    question: str,
    *,
    budget: int = 512,
    category: str = "single-hop",
    evidence: tuple[str, ...] = ("1",),
    retrieved: tuple[str, ...] = (),
    tokens: int = 100,
    degraded: tuple[str, ...] = (),
) -> Row:
    return Row(
        question_id=question,
        category=category,
        budget=budget,
        retrieved=list(retrieved),
        context_tokens=tokens,
        context="<memory>…</memory>",
        evidence=list(evidence),
        degraded=degraded,
        seconds=0.01,
    )


def test_recall_is_the_mean_share_of_the_evidence() -> None:
    rows = [
        row("a", evidence=("1", "2"), retrieved=("2", "9"), tokens=90),
        row("b", evidence=("3",), retrieved=("3",), tokens=110),
    ]
    found = figures("set", rows, budgets=[512], embedding="off")
    assert found["questions"] == 2
    at_512 = found["budgets"]["512"]
    assert (at_512["recall"], at_512["all"], at_512["tokens"]) == (75.0, 50.0, 100.0)


def test_questions_without_evidence_are_not_scored() -> None:
    rows = [
        row("a", retrieved=("1",)),
        row("b", evidence=(), category="temporal"),
        row("c", category="abstention"),
        row("d", category="adversarial"),
    ]
    found = figures("set", rows, budgets=[512], embedding="off")
    assert found["questions"] == 1
    assert found["budgets"]["512"]["recall"] == 100.0
    assert set(found["budgets"]["512"]["by_category"]) == {"single-hop"}


def test_budgets_and_categories_are_kept_apart() -> None:
    rows = [
        row("a", budget=512),
        row("a", budget=1024, retrieved=("1",)),
        row("b", budget=512, category="temporal", retrieved=("1",)),
        row("b", budget=1024, category="temporal", retrieved=("1",)),
    ]
    found = figures("set", rows, budgets=[512, 1024], embedding="off")["budgets"]
    assert found["512"]["recall"] == 50.0
    assert found["1024"]["recall"] == 100.0
    assert found["512"]["by_category"]["temporal"]["recall"] == 100.0
    assert found["512"]["by_category"]["temporal"]["questions"] == 1


def test_degraded_answers_are_counted() -> None:
    rows = [row("a", degraded=("recall",)), row("b", degraded=("recall",)), row("c")]
    assert figures("set", rows, budgets=[512], embedding="off")["degraded"] == {"recall": 2}


def test_a_set_without_scored_questions_gives_zeros() -> None:
    found = figures("set", [], budgets=[512], embedding="off")
    assert found["budgets"]["512"] == {"recall": 0.0, "all": 0.0, "tokens": 0.0, "by_category": {}}


def test_a_line_says_what_the_scorer_reads() -> None:
    line = json.loads(retrieved_line(row("a", retrieved=("2", "1"))))
    assert set(line) == {"question_id", "budget", "retrieved", "context_tokens", "context"}
    assert line["retrieved"] == ["2", "1"]


@pytest.mark.parametrize("question_tokens", [0, 10_000])
def test_nothing_but_recall_is_in_the_context(question_tokens: int) -> None:
    budget = recall_budget(512, question_tokens=question_tokens)
    assert budget.recall_tokens == 512
    assert budget.window_tokens == budget.summary_tokens == budget.facts_tokens == 0
    assert budget.context_tokens > 512 + question_tokens


def test_recall_is_measured_without_a_deadline() -> None:
    assert math.isinf(effective(MemoryConfig(), [256, 512]).recall.deadline)
