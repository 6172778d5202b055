from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from service.pieces import BEHIND, RECENT, Pieces

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


@given(
    st.integers(0, 4 * RECENT).flatmap(lambda n: st.lists(TEXT, min_size=n, max_size=n)),
    st.lists(st.integers(0, 10_000), max_size=4),
)
def test_from_any_code_point_on_the_rest_is_told_exactly(texts: list[str], cuts: list[int]) -> None:
    """R9: a reader may be cut anywhere, and as often as it likes."""
    answer, whole = Pieces("turn.1"), "".join(texts)
    for text in texts:
        answer.add(text)
    assert (answer.text, answer.length, len(answer)) == (whole, len(whole), len(texts))
    ends = {sum(map(len, texts[: n + 1])) for n in range(len(texts))}
    for at in (0, len(whole), *(cut % (len(whole) + 1) for cut in cuts)):
        first = answer.after(at)
        if first == len(answer):
            assert at == len(whole)
            continue
        found = told(answer.events(first, at))
        assert whole[:at] + "".join(text for _, text in found) == whole
        reached = at
        for k, text in found:
            reached += len(text)
            assert k == reached
            assert text
            assert k in ends
        assert len(found) == (1 if len(answer) - first > BEHIND else len(answer) - first)


def test_a_reader_that_is_far_behind_gets_one_event() -> None:
    answer = Pieces("turn.1")
    for n in range(BEHIND + 1):
        answer.add(f"{n} ")
    assert told(answer.events(0, 0)) == [(answer.length, answer.text)]
    assert len(answer.events(1, 2)) == BEHIND
