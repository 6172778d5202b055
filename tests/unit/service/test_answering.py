from __future__ import annotations

import random

import pytest

from memory.config import ConfigSource
from service.answering import Admission, Slot
from service.config.settings import LimitsConfig, Settings
from service.http.problems import Problem


def limited(*, per_user: int, total: int) -> ConfigSource[Settings]:
    return ConfigSource(Settings(limits=LimitsConfig(streams_per_user=per_user, streams=total)))


def refused(admission: Admission, user: str) -> Problem:
    with pytest.raises(Problem) as caught:
        admission.take(user)
    assert int(caught.value.headers()["Retry-After"]) >= 1
    return caught.value


def test_a_user_has_so_many_and_no_more() -> None:
    admission = Admission(limited(per_user=2, total=10))
    first, _second = admission.take("anna"), admission.take("anna")
    problem = refused(admission, "anna")
    assert (problem.status, problem.code) == (429, "too_many_streams")
    admission.take("ben")
    first.release()
    admission.take("anna")
    assert len(admission) == 3


def test_a_process_has_so_many_and_no_more() -> None:
    admission = Admission(limited(per_user=2, total=3))
    slots = [admission.take(user) for user in ("anna", "ben", "cleo")]
    problem = refused(admission, "dora")
    assert (problem.status, problem.code) == (503, "overloaded")
    slots[1].release()
    admission.take("dora")


def test_a_users_own_limit_comes_first() -> None:
    admission = Admission(limited(per_user=1, total=1))
    admission.take("anna")
    assert refused(admission, "anna").status == 429
    assert refused(admission, "ben").status == 503


def test_a_slot_is_free_when_its_last_holder_has_released_it() -> None:
    admission = Admission(limited(per_user=1, total=1))
    slot = admission.take("anna")
    slot.hold()  # its generation
    slot.release()  # its taker
    slot.hold()  # a response
    slot.release()  # the generation has ended
    assert refused(admission, "anna").status == 429
    slot.release()
    assert len(admission) == 0
    admission.take("anna")


def test_a_slot_that_is_free_can_neither_be_held_nor_released() -> None:
    admission = Admission(limited(per_user=1, total=1))
    slot = admission.take("anna")
    slot.release()
    for again in (slot.release, slot.hold):
        with pytest.raises(AssertionError):
            again()
    assert len(admission) == 0


def test_nothing_is_kept_of_users_who_have_none_open(rng: random.Random) -> None:
    admission = Admission(limited(per_user=3, total=8))
    held: list[tuple[str, Slot]] = []
    for _ in range(2_000):
        user = f"user{rng.randrange(6)}"
        mine = sum(name == user for name, _ in held)
        if mine == 3 or len(held) == 8:
            assert refused(admission, user).status == (429 if mine == 3 else 503)
            held.pop(rng.randrange(len(held)))[1].release()
        else:
            held.append((user, admission.take(user)))
        assert len(admission) == len(held)
    for _, slot in held:
        slot.release()
    assert len(admission) == 0
    assert not admission._open


def test_a_limit_that_is_changed_counts_for_the_next() -> None:
    config = limited(per_user=1, total=10)
    admission = Admission(config)
    admission.take("anna")
    assert refused(admission, "anna").status == 429
    config.current = limited(per_user=2, total=10).current
    admission.take("anna")
