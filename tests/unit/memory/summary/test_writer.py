from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory.summary.statements import parse, statements
from memory.summary.writer import SummaryWriter
from unit.builders import counter, message
from unit.memory.summary.logs import holds, random_statements
from unit.texts import odd_text


class Model:
    """A summariser that answers with the given texts in order, the last one for ever."""

    def __init__(self, *answers: str | Exception) -> None:
        self.answers = list(answers)
        self.calls: list[dict[str, Any]] = []

    async def __call__(self, **call: Any) -> str:
        self.calls.append(call)
        answer = self.answers[min(len(self.calls), len(self.answers)) - 1]
        if isinstance(answer, Exception):
            raise answer
        return answer


NEW = statements(
    [message("My dog is called Bruno. I moved to Zürich in 2021. I like my green tea.")]
)


async def rolled(summarizer: Any, *, budget: int = 200, previous: str = "") -> Any:
    writer = SummaryWriter(counter=counter(), summarizer=summarizer)
    return await writer.roll(previous, NEW, new_text="(the messages)", budget_tokens=budget)


async def test_without_a_model_the_summary_is_an_extract_and_not_degraded() -> None:
    result = await rolled(None)
    assert result.text.splitlines()[1] == "User: My dog is called Bruno."
    assert (result.retired, result.degraded) == (0, False)


async def test_a_models_text_is_taken_when_it_keeps_everything() -> None:
    text = "The user's dog is Bruno; they have lived in Zürich since 2021 and like tea."
    model = Model(text)
    result = await rolled(model)
    assert (result.text, result.degraded) == (text, False)
    assert len(model.calls) == 1
    assert model.calls[0]["new_text"] == "(the messages)"


async def test_what_a_model_lost_is_mended() -> None:
    result = await rolled(Model("The user has a dog called Bruno."))
    assert "The user has a dog called Bruno." in result.text
    assert "Zürich in 2021" in result.text
    assert not result.degraded


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "   \n",
        "I'm sorry, but I can't help with that.",
        "I cannot assist with this request.",
        "As an AI language model I am unable to summarise this.",
        "word " * 500,
        "They talked about this and that.",
    ],
)
async def test_an_empty_text_a_refusal_and_one_that_tells_nothing_are_refused_once_then_extracted(
    answer: str,
) -> None:
    model = Model(answer)
    result = await rolled(model)
    assert result.degraded
    assert len(model.calls) == 2
    assert answer.strip()[:20] not in result.text or not answer.strip()
    assert "Bruno" in result.text
    assert "Zürich" in result.text


async def test_a_refusal_is_no_summary_even_when_there_is_nothing_to_lose() -> None:
    plain = statements([message("I like my green tea with some milk.")])
    refusing = Model("I'm sorry, but I can't help with that.")
    writer = SummaryWriter(counter=counter(), summarizer=refusing)
    result = await writer.roll("", plain, new_text="", budget_tokens=100)
    assert result.degraded
    assert "green tea" in result.text


async def test_a_model_is_shown_what_it_lost_and_may_do_better() -> None:
    better = "Bruno is the dog. Zürich since 2021."
    model = Model("word " * 500, better)
    result = await rolled(model)
    assert (result.text, result.degraded) == (better, False)
    assert "Bruno" in model.calls[1]["must_keep"]


@pytest.mark.parametrize("error", [RuntimeError("down"), TimeoutError(), ValueError("bad json")])
async def test_a_model_that_fails_gives_a_degraded_extract(error: Exception) -> None:
    result = await rolled(Model(error))
    assert result.degraded
    assert "Bruno" in result.text


async def test_a_summary_of_no_tokens_is_empty_and_asks_no_model() -> None:
    model = Model("something")
    result = await rolled(model, budget=0)
    assert (result.text, model.calls) == ("", [])


@given(st.randoms(use_true_random=False), st.integers(0, 160), st.booleans())
async def test_a_rolled_text_fits_and_every_marked_statement_is_told_or_counted_as_retired(
    rng: random.Random, budget: int, with_model: bool
) -> None:
    model = Model(odd_text(rng, most=9), odd_text(rng, most=9)) if with_model else None
    text, retired_before = "", 0
    for _ in range(3):
        new = random_statements(rng)
        known = [*parse(text), *new]
        writer = SummaryWriter(counter=counter(), summarizer=model)
        result = await writer.roll(text, new, new_text="", budget_tokens=budget)
        assert counter().count(result.text) <= budget
        untold = [s for s in known if s.marks and not holds(result.text, s)]
        assert len(untold) <= result.retired <= len([s for s in known if s.marks])
        text, retired_before = result.text, retired_before + result.retired
