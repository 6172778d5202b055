from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory.errors import InvalidInput
from service.streaming.events import BEGINNING, Place, encode_event, place_of, token_event

TURN = "0a.1b:0000000003"


@pytest.mark.parametrize(
    ("last", "place"),
    [
        (None, BEGINNING),
        ("", BEGINNING),
        (f"{TURN}.1:a", Place(1, 1)),
        (f"{TURN}.1:c", Place(1, 2)),
        (f"{TURN}.12:t7", Place(12, 2, 7)),
        (f"{TURN}.2:t0", Place(2, 2, 0)),
        (f"{TURN}.1:e", Place(1, 2, 0, True)),
    ],
)
def test_an_event_id_says_what_its_reader_has(last: str | None, place: Place) -> None:
    assert place_of(last, TURN) == place


@pytest.mark.parametrize(
    "last",
    [
        TURN,
        f"{TURN}:a",
        f"{TURN}.:a",
        f"{TURN}.1:",
        f"{TURN}.1:x",
        f"{TURN}.1:t",
        f"{TURN}.1:t-1",
        f"{TURN}.1:t1.5",
        f"{TURN}.1:t1 ",
        f" {TURN}.1:a",
        f"{TURN}.1:a\n",
        f"{TURN}.one:a",
        f"{TURN}.-1:a",
        f"{TURN}.1:t{'9' * 13}",
        f"{TURN}.{'9' * 10}:a",
        f"{TURN}4.1:a",
        f"{TURN[:-1]}.1:a",
        "0a.1b:0000000005.1:a",
        ".1:a",
        "x" * 100_000,
        f"{TURN}.\u0661:a",
    ],
)
def test_an_id_that_is_none_of_this_turn_is_refused(last: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        place_of(last, TURN)
    assert refused.value.field == "Last-Event-ID"


@given(st.text())
def test_no_id_crashes(last: str) -> None:
    try:
        place = place_of(last, TURN)
    except InvalidInput:
        return
    assert place == BEGINNING if not last else place.attempt is not None


@given(st.text(st.characters(exclude_categories=["Cs"])), st.integers(0, 10**12))
def test_any_text_is_one_event_of_four_lines(text: str, end: int) -> None:
    for event in (
        token_event(f"{TURN}.1", end, text),
        encode_event("token", f"{TURN}.1:t{end}", {"text": text}),
    ):
        name, id_, data, *rest = event.decode().split("\n")
        assert (name, id_, rest) == ("event: token", f"id: {TURN}.1:t{end}", ["", ""])
        assert json.loads(data.removeprefix("data: ")) == {"text": text}
        assert "\r" not in data
