from __future__ import annotations

import random
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory.summary.extract import extract
from memory.summary.statements import (
    MAX_STATEMENT_CHARACTERS,
    marks_of,
    parse,
    statements,
    transcript,
)
from unit.builders import NOON, counter, message
from unit.memory.summary.logs import random_statements


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


def test_a_transcript_holds_every_message_in_order_under_its_day() -> None:
    messages = [
        message("one"), message("two", role="assistant"),
        message("three", at=NOON + timedelta(days=1), speaker="Bruno"),
    ]  # fmt: skip
    assert transcript(messages).splitlines() == [
        "8 May 2024:", "User: one", "Assistant: two", "9 May 2024:", "Bruno: three",
    ]  # fmt: skip
