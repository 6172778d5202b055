from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory.errors import InvalidInput
from memory.models import Turn, TurnError
from memory.receipt import Layers, Receipt
from service.streaming.answer_buffer import AnswerBuffer
from service.streaming.events import (
    BEGINNING,
    INTERRUPTED,
    Accepted,
    Cursor,
    Done,
    Event,
    Snapshot,
    SseEncoder,
    Token,
    after,
    builtins_of,
    cursor_of,
)
from service.streaming.replay import stored_answer
from unit.builders import turn

TURN = "0a.1b:0000000003"


@pytest.mark.parametrize(
    ("last", "cursor"),
    [
        (None, BEGINNING),
        ("", BEGINNING),
        (f"{TURN}.1:a", Cursor(1, 1)),
        (f"{TURN}.1:c", Cursor(1, 2)),
        (f"{TURN}.12:t7", Cursor(12, 2, 7)),
        (f"{TURN}.2:t0", Cursor(2, 2, 0)),
        (f"{TURN}.1:e", Cursor(1, 2, 0, True)),
    ],
)
def test_an_event_id_says_what_its_reader_has(last: str | None, cursor: Cursor) -> None:
    assert cursor_of(last, TURN) == cursor


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
        cursor_of(last, TURN)
    assert refused.value.field == "Last-Event-ID"


@given(st.text())
def test_no_id_crashes(last: str) -> None:
    try:
        cursor = cursor_of(last, TURN)
    except InvalidInput:
        return
    assert cursor == BEGINNING if not last else cursor.attempt is not None


RUN = f"{TURN}.1"
RECEIPT = Receipt(
    budget_tokens=100, used_tokens=7, estimated=False, layers=Layers(), dropped=(), degraded=(),
    prefix_hash="", stable_prefix_tokens=0,
)  # fmt: skip
DONE = Done("turn", "message", "stop", {"prompt_tokens": 7}, "model")
FAILED = TurnError("model_error", "it failed", True)
EVENTS: list[Event] = [
    Accepted("turn", "chat", 3), RECEIPT, Token(4, "text"), DONE, FAILED,
]  # fmt: skip


def fields(event: bytes) -> tuple[str, str, Any]:
    """Name, id and data of one server-sent event, which is four lines."""
    name, id_, data, *rest = event.decode().split("\n")
    assert rest == ["", ""]
    assert "\r" not in data
    assert (name[:7], id_[:4], data[:6]) == ("event: ", "id: ", "data: ")
    return name[7:], id_[4:], json.loads(data[6:])


@given(st.text(st.characters(exclude_categories=["Cs"])), st.integers(0, 10**12))
def test_any_text_is_one_event_of_four_lines(text: str, end: int) -> None:
    found = fields(SseEncoder(RUN).encode([Token(end, text)]))
    assert found == ("token", f"{RUN}:t{end}", {"text": text})


@pytest.mark.parametrize(
    ("event", "stage"), list(zip(EVENTS, ("a", "c", "t4", "e", "e"), strict=True))
)
def test_each_event_has_its_name_and_id(event: Event, stage: str) -> None:
    name, id_, data = fields(SseEncoder(RUN).encode([event]))
    assert id_ == f"{RUN}:{stage}"
    assert [name, data] == json.loads(json.dumps(builtins_of(event)))


def read(answer: Snapshot, cursor: Cursor) -> tuple[list[Event], Cursor]:
    """All there is for now."""
    events, some = [], True
    while some and not cursor.ended:
        some, cursor = after(cursor, answer)
        events += some
    return events, cursor


@given(
    pieces=st.lists(st.text("ab 日👩", min_size=1, max_size=3), max_size=60),
    looks=st.lists(st.sampled_from(["live", "stored", "resumed", "wait"]), max_size=70),
    end=st.sampled_from([DONE, FAILED]),
    has_context=st.booleans(),
)
def test_a_reader_gets_each_event_once_wherever_it_reads(
    pieces: list[str], looks: list[str], end: Done | TurnError, has_context: bool
) -> None:
    """R9: here, from the store, or by turns, with or without its cursor from an event's id."""
    if not has_context:  # it failed before there was one
        pieces, end = [], FAILED
    stored = turn("question", "", seq=3, status="running")
    if isinstance(end, Done):
        end = Done(stored.id, stored.assistant.id, "stop", {"prompt_tokens": 7}, "model")
    live = AnswerBuffer(Accepted(stored.id, stored.session_id, stored.seq))
    changes: list[Any] = [lambda: live.show(RECEIPT)] if has_context else []
    changes += [lambda text=text: live.add(text) for text in pieces]
    changes.append(lambda: (live.seal(), live.finish(end)))
    found: list[Event] = []
    cursor = BEGINNING
    encode = SseEncoder(f"{stored.id}.1").encode
    for n, change in enumerate([lambda: None, *changes, lambda: None]):
        change()
        look = looks[n] if n < len(looks) else "live"
        if look == "wait" and n <= len(changes):
            continue
        as_stored = stored_answer(stored_as(stored, live))
        events, cursor = read(as_stored if look == "stored" else live, cursor)
        if events and look == "resumed":
            cursor = cursor_of(fields(encode(events[-1:]))[1], stored.id)
        found += events
    text = "".join(pieces)
    assert cursor.ended
    assert found[0] == Accepted(stored.id, "chat", 3)
    assert [e for e in found if isinstance(e, Receipt)] == [RECEIPT] * has_context
    tokens = [e for e in found if isinstance(e, Token)]
    assert "".join(token.text for token in tokens) == text
    assert all(text[: token.end].endswith(token.text) for token in tokens)
    assert len(found) == 2 + has_context + len(tokens)
    assert found[-1] == end


def stored_as(running: Turn, live: AnswerBuffer) -> Turn:
    """The turn as the store has it when the answer here is like this."""
    end = live.end
    assert running.assistant is not None
    stored = msgspec.structs.replace(
        running,
        assistant=msgspec.structs.replace(running.assistant, content=live.text),
        receipt=live.receipt,
    )
    if isinstance(end, Done):
        given = {"usage": end.usage, "finish_reason": end.finish_reason, "model": end.model}
        return msgspec.structs.replace(stored, status="done", **given)
    if isinstance(end, TurnError):
        return msgspec.structs.replace(stored, status="failed", error=end)
    return stored


def test_a_stateless_answer_begins_with_its_context() -> None:
    answer = AnswerBuffer()
    answer.show(RECEIPT)
    answer.add("text")
    answer.finish(DONE)
    events, _ = read(answer, BEGINNING)
    assert events == [RECEIPT, Token(4, "text"), DONE]


@pytest.mark.parametrize("status", ["done", "interrupted"])
def test_text_that_a_crash_has_lost_is_an_interruption(status: Any) -> None:
    answer = stored_answer(turn("question", "text", status=status))
    events, cursor = after(Cursor(1, 2, 100), answer)
    assert (events, cursor.ended) == ([INTERRUPTED], True)


def test_an_answer_that_was_cut_off_ends_without_an_event() -> None:
    answer = AnswerBuffer(Accepted("turn", "chat", 1))
    answer.finish(None)
    events, cursor = read(answer, BEGINNING)
    assert (events, cursor.ended) == ([Accepted("turn", "chat", 1)], True)
