from __future__ import annotations

from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory.text import (
    PIECE_CHARACTERS,
    TAIL_CHARACTERS,
    WHOLE_CHARACTERS,
    Span,
    cut,
    dense_key,
    lexical_key,
    point_id,
    speaker_of,
    written_day,
)
from unit.builders import message
from unit.texts import FRAGMENTS

long_text = st.lists(
    st.one_of(
        st.sampled_from(FRAGMENTS),
        st.sampled_from(("Well. ", "And then we went home! ", "\n", "。", " " * 300, "\n" * 500)),
        st.text(max_size=200),
    ),
    max_size=25,
).map("".join)


@given(long_text)
def test_passages_are_ordered_and_hold_everything_but_space(text: str) -> None:
    spans = cut(text)
    end = 0
    for span in spans:
        assert end <= span.start < span.end or (span.start == span.end == 0 and not text)
        assert not text[end : span.start].strip()
        end = span.end
    assert not text[end:].strip()


@given(long_text)
def test_no_passage_is_longer_than_a_whole_message(text: str) -> None:
    spans = cut(text)
    assert all(span.end - span.start <= WHOLE_CHARACTERS for span in spans)
    assert all(span.end - span.start <= PIECE_CHARACTERS for span in spans[:-1])


@given(st.text(max_size=WHOLE_CHARACTERS))
def test_a_message_of_at_most_520_characters_is_one_passage(text: str) -> None:
    assert cut(text) == [Span(0, len(text))]


@given(long_text)
def test_cutting_is_repeatable(text: str) -> None:
    assert cut(text) == cut(text)


def test_long_messages_are_cut_at_sentence_ends() -> None:
    sentence = "The weather was fine and we walked along the river for hours. "
    text = (sentence * 20).strip()
    for span in cut(text):
        assert text[span.start : span.end].startswith("The weather")
        assert text[span.start : span.end].endswith("hours.")


def test_long_chinese_messages_are_cut_at_their_full_stops() -> None:
    text = "我昨天在北京见了老朋友，我们聊了很久。" * 40
    assert all(text[span.start : span.end].endswith("。") for span in cut(text))


def test_a_sentence_longer_than_a_piece_is_cut_at_a_space() -> None:
    text = "word " * 300
    for span in cut(text):
        assert text[span.start : span.end].strip().split(" ") == ["word"] * len(
            text[span.start : span.end].split()
        )


def test_text_without_any_space_is_cut_hard() -> None:
    spans = cut("x" * 1000)
    assert [span.end - span.start for span in spans] == [400, 400, 200]


def test_a_short_tail_joins_the_piece_before() -> None:
    sentences = ["x" * 390 + ".", "y" * 390 + ".", "z" * (TAIL_CHARACTERS - 2) + "."]
    assert len(cut(" ".join(sentences))) == 2
    sentences[-1] = "z" * TAIL_CHARACTERS + "."
    assert len(cut(" ".join(sentences))) == 3


def test_a_tail_behind_a_gulf_of_space_stays_alone() -> None:
    text = "x" * 399 + "." + "\n" * 1000 + "The end."
    assert [text[span.start : span.end] for span in cut(text)][-1] == "The end."


def test_a_point_id_belongs_to_its_message_and_passage() -> None:
    ids = {point_id(m, n) for m in ("u.s:0000000001.u", "u.s:0000000001.a") for n in range(3)}
    assert len(ids) == 6
    assert point_id("a", 0) == point_id("a", 0)


def test_the_dense_key_is_speaker_and_passage_alone() -> None:
    assert dense_key(message("x", speaker="Bruno"), "I like tea") == "Bruno: I like tea"
    assert dense_key(message("x"), "I like tea") == "user: I like tea"
    assert speaker_of(message("x", role="assistant")) == "assistant"


def test_the_lexical_key_holds_the_day_and_the_neighbours_with_their_speakers() -> None:
    near = [(message("a", speaker="Bruno"), "hello"), (message("b", role="assistant"), "hi")]
    assert lexical_key(date(2023, 5, 8), near) == "8 may 2023\nBruno hello\nassistant hi"


@pytest.mark.parametrize(
    ("day", "written"),
    [(date(2023, 5, 8), "8 May 2023"), (date(1999, 12, 31), "31 December 1999")],
)
def test_a_day_is_written_out(day: date, written: str) -> None:
    assert written_day(day) == written
