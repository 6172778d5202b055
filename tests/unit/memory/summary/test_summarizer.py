from __future__ import annotations

import random
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory.models import Turn
from memory.summary.summarizer import (
    FOLD_AT,
    MAX_STATEMENT_CHARACTERS,
    Statement,
    extract,
    lost,
    marks_of,
    parse,
    passes,
    plan,
    prompt,
    roll,
    statements,
    transcript,
)
from memory.window import turn_tokens
from unit.builders import NOON, counter, dialogue, message, turn
from unit.texts import odd_text

FIRST_NAMES = ("Maria", "Bruno", "Anneliese", "Oskar", "Ji-woo", "Zoë")


def random_log(rng: random.Random) -> list[Turn]:
    turns: list[Turn] = []
    seq = 1
    for _ in range(rng.randint(0, 9)):
        roll_ = rng.random()
        if roll_ < 0.7:
            made = turn(odd_text(rng), odd_text(rng), seq=seq)
        elif roll_ < 0.85:
            made = turn(odd_text(rng), seq=seq)
        else:
            made = turn(odd_text(rng), "", seq=seq, status="failed")
        turns.append(made)
        seq = made.last_seq + 1
    if rng.random() < 0.5:
        turns.append(turn(odd_text(rng), "", seq=seq, status="running"))
    return turns


def random_statements(rng: random.Random) -> list[Statement]:
    messages = [
        message(
            f"{rng.choice(FIRST_NAMES)} told me {rng.randint(1, 99)} things. {odd_text(rng)}",
            seq=n,
            at=NOON + timedelta(days=rng.randint(0, 2)),
        )
        for n in range(rng.randint(0, 8))
    ]
    return statements(sorted(messages, key=lambda m: m.created_at))


def told(statement: Statement, text: str) -> bool:
    return all(mark in text.casefold() for mark in statement.marks)


# --- plan ------------------------------------------------------------------------------------


@given(st.randoms(use_true_random=False), st.integers(1, 900), st.floats(0.05, 0.85))
def test_a_plan_folds_the_oldest_finished_turns_and_never_the_newest(
    rng: random.Random, window: int, compact_to: float
) -> None:
    turns = random_log(rng)
    chosen = plan(turns, window_tokens=window, compact_to=compact_to, counter=counter())
    costs = [turn_tokens(t, counter()) for t in turns]
    finished = [t for t in turns if t.status != "running"]

    assert chosen == turns[: len(chosen)], "the oldest first, none skipped"
    assert all(t.status != "running" for t in chosen)
    assert not finished or finished[-1] not in chosen
    if sum(costs) <= FOLD_AT * window:
        assert chosen == []
        return
    left = sum(costs[len(chosen) :])
    assert left <= compact_to * window or len(chosen) == max(0, len(finished) - 1)
    if chosen:
        before_last = sum(costs[len(chosen) - 1 :])
        assert before_last > compact_to * window, "no more than needed"


def test_nothing_from_a_running_turn_on_is_folded() -> None:
    turns = dialogue([("hello " * 20, "hi " * 20)] * 6)
    turns[2] = msgspec.structs.replace(turns[2], status="running")
    chosen = plan(turns, window_tokens=50, compact_to=0.1, counter=counter())
    assert chosen == turns[:1]


def test_at_most_85_percent_of_the_window_folds_nothing() -> None:
    turns = dialogue([("hello", "hi")] * 10)
    total = sum(turn_tokens(t, counter()) for t in turns)
    for window, folds in ((int(total / 0.85) + 1, False), (int(total / 0.85) - 1, True)):
        found = plan(turns, window_tokens=window, compact_to=0.4, counter=counter())
        assert bool(found) is folds


# --- statements ------------------------------------------------------------------------------


def test_the_users_sentences_are_statements_and_questions_are_not() -> None:
    found = statements([message("I like tea. Do you like tea? My sister is Maria.")])
    assert [s.line for s in found] == ["User: I like tea.", "User: My sister is Maria."]
    assert found[0].day == "8 May 2024:"


def test_the_assistant_states_only_what_holds_a_name_a_number_or_a_date() -> None:
    found = statements(
        [message("That sounds lovely. The train leaves at 14:30.", role="assistant")]
    )
    assert [s.line for s in found] == ["Assistant: The train leaves at 14:30."]


def test_a_named_speaker_is_named() -> None:
    assert statements([message("I like tea.", speaker="Bruno")])[0].line == "Bruno: I like tea."


def test_single_words_state_nothing() -> None:
    assert statements([message("Thanks! OK. 好")]) == []


def test_long_sentences_are_stated_in_pieces() -> None:
    text = "word " * 400
    found = statements([message(text)])
    assert all(len(s.line) <= MAX_STATEMENT_CHARACTERS + len("User: ") for s in found)
    assert " ".join(s.line.removeprefix("User: ") for s in found) == " ".join(text.split())


@pytest.mark.parametrize(
    ("text", "marks"),
    [
        ("I met Maria at 14:30.", {"maria", "14:30"}),
        ("The price is 1,200.50 then", {"1,200.50"}),
        ("Nothing to see here", set()),
        ("I moved to Zürich in 2021", {"zürich", "2021"}),
    ],
)
def test_names_numbers_and_dates_are_the_marks(text: str, marks: set[str]) -> None:
    assert marks_of(text) == marks


@given(st.randoms(use_true_random=False))
def test_a_rendered_text_is_parsed_into_the_same_statements(rng: random.Random) -> None:
    known = random_statements(rng)
    text, left_out = extract(known, budget_tokens=10_000, counter=counter())
    assert left_out == []
    assert [(s.day, s.line) for s in parse(text)] == [(s.day, s.line) for s in known]


# --- extract and lost ------------------------------------------------------------------------


@given(st.randoms(use_true_random=False), st.integers(0, 200))
def test_an_extract_keeps_to_its_budget_and_its_order(rng: random.Random, budget: int) -> None:
    known = random_statements(rng)
    text, left_out = extract(known, budget_tokens=budget, counter=counter())
    assert counter().count(text) <= budget
    lines = text.splitlines()
    place = 0
    kept = [s for s in known if not any(s is other for other in left_out)]
    for statement in kept:
        place = lines.index(statement.line, place) + 1
    assert len(kept) + len(left_out) == len(known)


def test_an_extract_prefers_the_newest_and_what_holds_names() -> None:
    known = statements(
        [
            message("My cat is called Oskar."),
            message("I like green tea very much."),
            message("My dog is called Bruno."),
        ]
    )
    room = counter().count("8 May 2024:\n" + known[0].line + "\n")
    text, _ = extract(known, budget_tokens=room + 2, counter=counter())
    assert text.splitlines() == ["8 May 2024:", "User: My dog is called Bruno."]
    text, _ = extract(known, budget_tokens=2 * room - 3, counter=counter())
    assert "Oskar" in text
    assert "Bruno" in text
    assert "tea" not in text


@given(st.randoms(use_true_random=False), st.integers(0, 300))
def test_what_a_text_does_not_tell_is_missing_or_retired(rng: random.Random, budget: int) -> None:
    known = random_statements(rng)
    text, _ = extract(rng.sample(known, len(known) // 2), budget_tokens=200, counter=counter())
    missing, retired = lost(text, known, budget_tokens=budget, counter=counter())
    untold = [s for s in known if s.marks and not told(s, text)]
    assert len(missing) + retired == len(untold)
    assert all(s in untold for s in missing)
    lines = "".join(s.line + "\n" for s in missing)
    assert counter().count(lines) <= budget + len(missing)


# --- roll ------------------------------------------------------------------------------------


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


NEWS = statements(
    [message("My dog is called Bruno. I moved to Zürich in 2021. I like my green tea.")]
)


async def rolled(summarizer: Any, *, budget: int = 200, previous: str = "") -> Any:
    return await roll(
        previous,
        NEWS,
        news="(the news)",
        budget_tokens=budget,
        counter=counter(),
        summarizer=summarizer,
    )


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
    assert model.calls[0]["news"] == "(the news)"


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
    result = await roll(
        "", plain, news="", budget_tokens=100, counter=counter(),
        summarizer=Model("I'm sorry, but I can't help with that."),
    )  # fmt: skip
    assert result.degraded
    assert "green tea" in result.text


async def test_a_model_is_told_what_it_lost_and_may_do_better() -> None:
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
        result = await roll(
            text, new, news="", budget_tokens=budget, counter=counter(), summarizer=model
        )
        assert counter().count(result.text) <= budget
        untold = [s for s in known if s.marks and not told(s, result.text)]
        assert len(untold) <= result.retired <= len([s for s in known if s.marks])
        text, retired_before = result.text, retired_before + result.retired


# --- what a model reads ----------------------------------------------------------------------


def test_a_transcript_holds_every_message_in_order_under_its_day() -> None:
    messages = [
        message("one"), message("two", role="assistant"),
        message("three", at=NOON + timedelta(days=1), speaker="Bruno"),
    ]  # fmt: skip
    assert transcript(messages).splitlines() == [
        "8 May 2024:", "User: one", "Assistant: two", "9 May 2024:", "Bruno: three",
    ]  # fmt: skip


@given(st.randoms(use_true_random=False), st.integers(1, 300))
def test_passes_hold_every_message_in_order_and_what_a_model_can_read(
    rng: random.Random, most: int
) -> None:
    turns = random_log(rng)
    runs = passes(turns, max_tokens=most, counter=counter())
    everything = [m for t in turns for m in t.messages if m.content]
    assert [m for run in runs for m in run] == everything
    assert all(runs)
    for run in runs:
        assert sum(m.tokens for m in run) <= most or len(run) == 1


def test_a_prompt_is_cut_to_what_the_model_can_read() -> None:
    system, user = prompt(
        previous="Bruno.", news="word " * 5000, max_tokens=100, must_keep="Zürich",
        counter=counter(), context_tokens=1000,
    )  # fmt: skip
    assert counter().count(user) <= 700
    assert "Summary so far:\nBruno." in user
    assert user.endswith("Zürich")
    assert "50 words" in system
