from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.streaming.answer_buffer import BEHIND, PAGE, AnswerBuffer

# What a model may send: no surrogates, but characters of one to four bytes, and joined ones.
TEXT = st.text(
    st.characters(exclude_categories=["Cs"]) | st.sampled_from("👩‍👩‍👧\u0301𝒳"), min_size=1
)


def told(events: list[bytes]) -> list[tuple[int, str]]:
    """k and the text of each."""
    found = []
    for event in events:
        name, id_, data, *rest = event.decode().split("\n")
        assert (name, rest) == ("event: token", ["", ""])
        assert id_.startswith("id: turn.1:t")
        found.append((int(id_.removeprefix("id: turn.1:t")), json.loads(data[6:])["text"]))
    return found


def all_events(answer: AnswerBuffer, at: int) -> list[bytes]:
    found: list[bytes] = []
    while at < answer.length:
        events, at = answer.events(at)
        assert events
        found += events
    return found


@pytest.mark.parametrize("closed", [False, True])
@given(
    st.integers(0, 5 * BEHIND).flatmap(lambda n: st.lists(TEXT, min_size=n, max_size=n)),
    st.lists(st.integers(0, 10_000), max_size=4),
)
def test_from_any_code_point_on_the_rest_is_told_exactly(
    closed: bool, texts: list[str], cuts: list[int]
) -> None:
    """R9: a reader may be cut anywhere, and as often as it likes."""
    answer, whole = AnswerBuffer("turn.1"), "".join(texts)
    for text in texts:
        answer.add(text)
    if closed:
        assert answer.close() == whole
    assert (answer.text, answer.length) == (whole, len(whole))
    for at in (0, len(whole), *(cut % (len(whole) + 1) for cut in cuts)):
        found = told(all_events(answer, at))
        assert whole[:at] + "".join(text for _, text in found) == whole
        for k, text in found:
            at += len(text)
            assert k == at
            assert text


@given(st.integers(0, 5 * BEHIND), st.integers(1, BEHIND))
def test_a_reader_that_is_a_little_behind_gets_every_piece(before: int, behind: int) -> None:
    answer = AnswerBuffer("turn.1")
    for n in range(before):
        answer.add(f"{n} ")
    at = answer.length
    pieces = [f"new{n} " for n in range(behind)]
    for text in pieces:
        answer.add(text)
    assert [text for _, text in told(all_events(answer, at))] == pieces


def test_a_reader_that_is_far_behind_gets_pages() -> None:
    """R20: of which each is small, and all but the newest pieces are in few."""
    answer, many = AnswerBuffer("turn.1"), 3_000
    for n in range(many):
        answer.add(f"{n:05} ")
    for _ in range(2):
        found = [text for _, text in told(all_events(answer, 0))]
        assert max(map(len, found)) == PAGE
        assert len(found) <= answer.length / PAGE + 1 + BEHIND
        assert "".join(found) == answer.text
        answer.close()
