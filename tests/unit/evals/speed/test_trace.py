"""What counts as a move, as a climb and as carrying the question."""

from __future__ import annotations

from typing import Any

import msgspec

from evals.speed.trace import Call, files, table, walk
from evals.speed.traced import QUESTION, carries


class Said(msgspec.Struct):
    content: str
    __module__ = "memory.models"


class Holder:
    __module__ = "memory.log"

    def __init__(self, **attributes: Any) -> None:
        self.__dict__ |= attributes


def call(file: str, caller: str | None = None, *, task: int = 0, question: bool = True) -> Call:
    return Call(task, file, "f", caller, question)


def test_a_move_is_a_climb_when_the_file_before_did_not_make_the_call() -> None:
    calls = [call("a"), call("b", "a"), call("c", "b"), call("c", "b"), call("d", "a")]
    found = walk(calls)
    assert (found.calls, found.moves, found.climbs) == (5, 4, 1)
    assert found.entries == {"a": 1, "b": 1, "c": 1, "d": 1}


def test_tasks_are_counted_apart_however_they_take_turns() -> None:
    one = [call("a"), call("b", "a"), call("c", "b")]
    other = [call("x", task=1), call("y", "x", task=1), call("z", "y", task=1)]
    mixed = [c for pair in zip(one, other, strict=True) for c in pair]
    assert walk(mixed) == walk([*one, *other])
    assert walk(mixed).climbs == 0


def test_the_table_counts_the_questions_calls_apart() -> None:
    calls = [call("a"), call("b", "a", question=False), call("c", "b")]
    assert files(calls) == ["a", "b", "c"]
    lines = table(calls).splitlines()
    assert [line.split(" | ")[1:4] for line in lines[4:6]] == [["3", "3", "0"], ["2", "2", "1"]]


def test_the_question_is_carried_by_itself_and_by_objects_around_it() -> None:
    turn = Holder(turn=Holder(user=Said(QUESTION)))
    for value in (QUESTION, f"{QUESTION} ", Said(QUESTION), turn):
        assert carries(value)
    for value in ("My dog", Said("My dog"), [QUESTION], {"q": QUESTION}, Holder(a=turn), None):
        assert not carries(value)
