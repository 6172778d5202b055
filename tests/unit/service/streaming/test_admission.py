from __future__ import annotations

import random

import pytest

from service.http.problems import Problem
from service.streaming.admission import Slot, Streams


def refused(streams: Streams, user: str) -> Problem:
    with pytest.raises(Problem) as caught:
        streams.take(user)
    assert int(caught.value.headers()["Retry-After"]) >= 1
    return caught.value


def test_a_user_has_so_many_and_no_more() -> None:
    streams = Streams(per_user=2, total=10)
    first, _second = streams.take("anna"), streams.take("anna")
    problem = refused(streams, "anna")
    assert (problem.status, problem.code) == (429, "too_many_streams")
    streams.take("ben")
    first.release()
    streams.take("anna")
    assert len(streams) == 3


def test_a_process_has_so_many_and_no_more() -> None:
    streams = Streams(per_user=2, total=3)
    slots = [streams.take(user) for user in ("anna", "ben", "cleo")]
    problem = refused(streams, "dora")
    assert (problem.status, problem.code) == (503, "overloaded")
    slots[1].release()
    streams.take("dora")


def test_a_users_own_limit_is_told_first() -> None:
    streams = Streams(per_user=1, total=1)
    streams.take("anna")
    assert refused(streams, "anna").status == 429
    assert refused(streams, "ben").status == 503


def test_a_slot_is_free_when_its_last_holder_has_let_it_go() -> None:
    streams = Streams(per_user=1, total=1)
    slot = streams.take("anna")
    slot.hold()  # a producer
    slot.release()  # who took it
    slot.hold()  # a reader
    slot.release()  # the producer has ended
    assert refused(streams, "anna").status == 429
    slot.release()
    assert len(streams) == 0
    streams.take("anna")


def test_a_slot_that_is_free_can_neither_be_held_nor_released() -> None:
    streams = Streams(per_user=1, total=1)
    slot = streams.take("anna")
    slot.release()
    for again in (slot.release, slot.hold):
        with pytest.raises(AssertionError):
            again()
    assert len(streams) == 0


def test_nothing_is_kept_of_users_who_have_none_open(rng: random.Random) -> None:
    streams = Streams(per_user=3, total=8)
    held: list[tuple[str, Slot]] = []
    for _ in range(2_000):
        user = f"user{rng.randrange(6)}"
        mine = sum(name == user for name, _ in held)
        if mine == 3 or len(held) == 8:
            assert refused(streams, user).status == (429 if mine == 3 else 503)
            held.pop(rng.randrange(len(held)))[1].release()
        else:
            held.append((user, streams.take(user)))
        assert len(streams) == len(held)
    for _, slot in held:
        slot.release()
    assert len(streams) == 0
    assert not streams._open
