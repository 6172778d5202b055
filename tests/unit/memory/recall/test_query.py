from __future__ import annotations

from datetime import date

import pytest
from hypothesis import given

from memory.indexes.features import name_hash, name_hashes
from memory.recall.query import Mention, Query, date_match, read
from unit.texts import any_text

ANNA, MARIA = "Anna Berg", "Maria"
SPEAKERS = frozenset({*name_hashes("u", ANNA), *name_hashes("u", MARIA)})


def asked(text: str) -> Query:
    return read(text, user="u", speakers=SPEAKERS)


@pytest.mark.parametrize(
    ("text", "dense"),
    [
        ("What is Anna's dog called?", "What is my dog called?"),
        ("What is Anna’s dog called?", "What is my dog called?"),
        ("Where did Anna and Maria go?", "Where did I and I go?"),
        ("where did anna go with the dog?", "where did I go with the dog?"),
        ("What does Oskar think of it?", "What does Oskar think of it?"),
        ("Where is Annaberg?", "Where is Annaberg?"),
        ("Wo ist der Hund von Anna?", "Wo ist der Hund von Anna?"),
    ],
)
def test_names_of_participants_become_the_first_person_in_english(text: str, dense: str) -> None:
    assert asked(text).dense == dense
    assert asked(text).text == text


def test_a_question_knows_which_participants_it_names() -> None:
    assert asked("What did Anna say?").names == {name_hash("u", "Anna")}
    assert asked("What did Oskar say?").names == frozenset()
    assert asked("Was hat Anna gesagt?").names == {name_hash("u", "anna")}


def test_a_common_word_in_lower_case_names_nobody() -> None:
    speakers = frozenset(name_hashes("u", "Will"))
    assert read("What will Maria do?", user="u", speakers=speakers).names == frozenset()
    assert read("What does Will do?", user="u", speakers=speakers).names == speakers


def test_hashes_of_names_belong_to_one_user_and_tell_nothing() -> None:
    assert name_hash("u", "Anna") == name_hash("u", "ANNA") != name_hash("v", "Anna")
    assert len(name_hashes("u", ANNA)) == 3
    assert "anna" not in "".join(name_hashes("u", ANNA)).casefold()


@pytest.mark.parametrize(
    ("text", "mentions"),
    [
        ("What happened on 8 May 2023?", (Mention(2023, 5, 8),)),
        ("What happened on the 8th of May, 2023?", (Mention(2023, 5, 8),)),
        ("What happened on May 8, 2023?", (Mention(2023, 5, 8),)),
        ("What happened on Sept. 3rd?", (Mention(None, 9, 3),)),
        ("What happened in May 2023?", (Mention(2023, 5, None),)),
        ("Was geschah am 2023-05-08 und wo war ich?", (Mention(2023, 5, 8),)),
        ("2023-05 ?", (Mention(2023, 5, None),)),
        ("What happened on 2023-13-45?", ()),
        ("What happened in May?", ()),
        ("Was geschah am 8 May 2023 und wo war ich?", ()),
    ],
)
def test_explicit_dates_are_understood(text: str, mentions: tuple[Mention, ...]) -> None:
    assert asked(text).dates == mentions


@pytest.mark.parametrize(
    ("said", "match"),
    [
        (date(2023, 5, 6), 0.0), (date(2023, 5, 7), 1.0), (date(2023, 5, 8), 1.0),
        (date(2023, 5, 10), 1.0), (date(2023, 5, 11), 0.5), (date(2023, 5, 16), 0.5),
        (date(2023, 5, 17), 0.25), (date(2023, 6, 8), 0.25), (date(2023, 6, 9), 0.0),
    ],
)  # fmt: skip
def test_a_day_matches_what_was_said_on_it_and_soon_after(said: date, match: float) -> None:
    assert date_match((Mention(2023, 5, 8),), said) == match


@pytest.mark.parametrize(
    ("said", "match"),
    [(date(2022, 12, 30), 1.0), (date(2023, 1, 1), 1.0), (date(2023, 1, 5), 0.5)],
)
def test_a_day_without_a_year_matches_across_the_turn_of_the_year(said: date, match: float) -> None:
    assert date_match((Mention(None, 12, 31),), said) == match


def test_a_day_without_a_year_matches_the_day_before_at_new_year() -> None:
    assert date_match((Mention(None, 1, 1),), date(2023, 12, 31)) == 1.0


def test_a_month_matches_itself_and_half_the_next() -> None:
    december = (Mention(2022, 12, None),)
    days = [date(2022, 11, 30), date(2022, 12, 1), date(2023, 1, 31), date(2023, 2, 1)]
    assert [date_match(december, day) for day in days] == [0.0, 1.0, 0.5, 0.0]


def test_a_day_that_does_not_exist_matches_nothing() -> None:
    assert date_match((Mention(2023, 2, 30),), date(2023, 3, 2)) == 0.0
    assert date_match((Mention(None, 2, 29),), date(2023, 2, 28)) == 0.0
    assert date_match((), date(2023, 3, 2)) == 0.0


@pytest.mark.parametrize(
    ("text", "asks"),
    [
        ("What did you recommend for dinner?", True),
        ("Which book have you suggested?", True),
        ("What was your answer about the train?", True),
        ("What did the assistant say?", True),
        ("What is my dog called?", False),
        ("Do you like tea?", False),
        ("Was hast du mir über die Bahn gesagt?", True),
        ("Wie heißt mein Hund?", False),
        ("你之前给我推荐了哪本书？", True),
        ("我的狗叫什么？", False),
    ],
)
def test_a_question_for_what_the_assistant_said_is_recognised(text: str, asks: bool) -> None:
    assert asked(text).asks_assistant is asks


def test_of_a_long_question_the_beginning_and_the_end_are_embedded() -> None:
    text = "What is this about? " + "word " * 5000 + "Tell me in one sentence."
    question = asked(text)
    assert question.text == text
    assert len(question.dense) < 5000
    assert question.dense.startswith("What is this about?")
    assert question.dense.endswith("Tell me in one sentence.")


def test_a_question_knows_whether_it_is_english() -> None:
    assert asked("What is my dog called?").english
    assert not asked("Wie heißt mein Hund und wo ist er?").english


@given(any_text)
def test_any_question_can_be_read(text: str) -> None:
    question = asked(text)
    date_match(question.dates, date(2024, 2, 29))
